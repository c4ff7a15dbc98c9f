"""The ledger: a folder or bucket that holds every trial's record, whole or not at all."""

from cellray.ledger.files import StoredFile
from cellray.ledger.records import DAMAGED, TABLES, Ledger
from cellray.ledger.weights import read_weights, weights_of

__all__ = ["DAMAGED", "TABLES", "Ledger", "StoredFile", "read_weights", "weights_of"]

from .files import StoredFile
from .records import TABLES, Ledger
from .weights import read_weights, weights_of

__all__ = ["TABLES", "Ledger", "StoredFile", "read_weights", "weights_of"]

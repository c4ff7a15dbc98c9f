from .copies import StoredFile
from .records import DAMAGED, TABLES, Ledger, read_parquet
from .weights import read_weights, weights_of

__all__ = ["DAMAGED", "TABLES", "Ledger", "StoredFile", "read_parquet", "read_weights", "weights_of"]

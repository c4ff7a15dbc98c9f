"""A sweep shown in MLflow, live or repaired from the ledger; MLflow itself is imported on first use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A sweep shown in MLflow, live or repaired from the ledger; MLflow itself is imported on first use."""

from cellray.tracking.registry import Registered, register_model
from cellray.tracking.repair import Synced, sync
from cellray.tracking.stores import artifact_root, check_store, default_store, public_uri
from cellray.tracking.tracker import MLflowTracker

__all__ = [
    "MLflowTracker",
    "Registered",
    "Synced",
    "artifact_root",
    "check_store",
    "default_store",
    "public_uri",
    "register_model",
    "sync",
]

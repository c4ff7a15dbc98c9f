"""A sweep shown in MLflow, live or repaired from the ledger; MLflow itself is imported on first use."""

from cellray.tracking.stores import artifact_root, check_store, default_store, public_uri
from cellray.tracking.tracker import MLflowTracker, Synced, sync

__all__ = ["MLflowTracker", "Synced", "artifact_root", "check_store", "default_store", "public_uri", "sync"]

"""A sweep shown in MLflow, live or repaired from the ledger; MLflow itself is imported on first use."""

from cellray.tracking.page import serve_page, study_pages
from cellray.tracking.registry import Registered, register_model
from cellray.tracking.repair import Synced, sync
from cellray.tracking.stores import check_store, default_store, public_uri
from cellray.tracking.tracker import MLflowTracker

__all__ = [
    "MLflowTracker",
    "Registered",
    "Synced",
    "check_store",
    "default_store",
    "public_uri",
    "register_model",
    "serve_page",
    "study_pages",
    "sync",
]

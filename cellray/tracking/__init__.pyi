from .page import serve_page, study_pages
from .registry import Registered, register_model
from .repair import Synced, sync
from .stores import check_store, default_store, public_uri
from .tracker import MLflowTracker

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

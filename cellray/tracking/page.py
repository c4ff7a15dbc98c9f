"""MLflow's web page on a store of this machine, in this process alone, and where it shows each study."""

from __future__ import annotations

import os
import warnings

from cellray.tracking.stores import artifact_root, open_client
from cellray.tracking.views import comparison


def study_pages(tracking_uri: str, server: str) -> dict[str, str]:
    """Where a server's page compares the configurations of each study, by the study's name, the latest first.

    Args:
        tracking_uri: Of the store.
        server: Address of the server, without a slash at its end.
    """
    latest_first = ["last_update_time DESC"]
    found = open_client(tracking_uri).search_experiments(order_by=latest_first)
    return {e.name: f"{server}/{comparison(e.experiment_id, 'TABLE')}" for e in found if e.name != "Default"}


def serve_page(tracking_uri: str, port: int) -> None:
    """Serve the page on 127.0.0.1 until a signal ends it: one process, without MLflow's supervisor and job runners.

    Args:
        tracking_uri: Of a store that needs no server, as SQLite.
        port: To listen on.
    """
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # read when the server is imported
    warnings.simplefilter("ignore")  # of what the server imports
    import uvicorn
    from mlflow import server

    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = tracking_uri
    os.environ[server.SERVE_ARTIFACTS_ENV_VAR] = "true"
    if root := artifact_root(tracking_uri):
        os.environ[server.ARTIFACT_ROOT_ENV_VAR] = root
    uvicorn.run(
        "mlflow.server.fastapi_app:app", host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2
    )

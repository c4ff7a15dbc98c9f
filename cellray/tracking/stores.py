"""Where MLflow keeps runs: the default beside the ledger, an early check, and addresses fit to be printed."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from cellray.errors import LedgerError

if TYPE_CHECKING:
    from mlflow import MlflowClient

BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the default, 7 with back-off, is minutes; the tracker retries itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else one line for every run that ends
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set in the environment unless the user has: MLflow's client takes these no other way."""

_TAGS = """
select run_uuid, status, key, value from tags join runs using (run_uuid) join experiments using (experiment_id)
where experiments.name = ? and experiments.lifecycle_stage = 'active' and runs.lifecycle_stage = 'active'
"""
_PLAIN_REASONS = ("Connection refused", "Name or service not known", "No route to host", "timed out")
_CREDENTIALS = re.compile(r"([A-Za-z][\w+.-]*://)[^/\s@]+@")


def default_store(storage: str) -> str:
    """The tracking uri of the embedded store beside the ledger; for a bucket, in the folder `studies` here."""
    folder = Path("studies") if "://" in storage else Path(storage)
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def artifact_root(tracking_uri: str) -> str | None:
    """Folder of the artifacts of an SQLite store, `mlartifacts` beside it; None: the server's own."""
    path = _sqlite_path(tracking_uri)
    return None if path is None else str(path.absolute().parent / "mlartifacts")


def public_uri(uri: str) -> str:
    """The uri without user, password and query, which may be a token."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.netloc else uri


def scrub(text: object, uri: str) -> str:
    """An error's plain reason, or its first line up to 200 characters, without the credentials of any uri in it."""
    for reason in _PLAIN_REASONS:
        if reason in str(text):
            return reason.lower()
    line = _CREDENTIALS.sub(r"\1", str(text)).strip().partition("\n")[0]
    try:
        password = urlsplit(uri).password
    except ValueError:
        password = None
    for secret in {password, unquote(password)} if password else ():
        line = line.replace(secret, "***")
    return line if len(line) <= 200 else f"{line[:200]}…"


def open_client(tracking_uri: str) -> MlflowClient:
    """A client of that store alone; bounds the time of its requests and quiets MLflow's log."""
    _bound()
    path = _sqlite_path(tracking_uri)
    if path is not None:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient  # after the bounds, since some are read at import

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri)


def sqlite_runs(tracking_uri: str, study: str) -> dict[tuple[str, str], dict[str, str]]:
    """The runs of a study in an SQLite store: kind and key -> tags and `status`; none where that can't be read.

    Without MLflow, which takes seconds to import.
    """
    path = _sqlite_path(tracking_uri)
    runs: dict[str, dict[str, str]] = {}
    try:
        with closing(
            sqlite3.connect(f"{(path or Path()).absolute().as_uri()}?mode=ro", uri=True, timeout=2)
        ) as database:
            for run, status, name, value in database.execute(_TAGS, [study]):
                runs.setdefault(run, {"status": status})[name] = value
    except sqlite3.Error:
        return {}
    return {(tags.get("cellray.kind", ""), tags.get("cellray.key", "")): tags for tags in runs.values()}


def check_store(tracking_uri: str, *, timeout_s: float = 5.0) -> None:
    """See that the store answers, before any trial starts.

    Raises:
        LedgerError: If it doesn't within the time, naming the uri without its credentials.
    """
    failures: list[str] = []

    def ask() -> None:
        try:
            path = _sqlite_path(tracking_uri)
            if path is not None:
                _check_sqlite(path.absolute())
            else:
                open_client(tracking_uri).search_experiments(max_results=1)
        except Exception as error:
            failures.append(scrub(error, tracking_uri) or type(error).__name__)

    # A thread, since looking up a name or a silent database server can't be bounded otherwise.
    thread = threading.Thread(target=ask, daemon=True, name="cellray-store-check")
    if _sqlite_path(tracking_uri) is None:
        _bound()
        import mlflow  # noqa: F401  slow, and not the store's fault
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        failures.append(f"no answer within {timeout_s:g} s")
    if failures:
        raise LedgerError(
            f"the MLflow store {public_uri(tracking_uri)} is unreachable ({failures[0]}); "
            "start it, or give another --tracking-uri"
        )


def _bound() -> None:
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)


def _check_sqlite(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError("it can't be written")
    if path.exists():
        with closing(sqlite3.connect(path, timeout=2)) as database:
            database.execute("select count(*) from sqlite_master")


def _sqlite_path(tracking_uri: str) -> Path | None:
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None

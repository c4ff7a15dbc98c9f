"""What a pod of a study reaches: run in a pod by `cellray cluster check`, prints one JSON object."""

from __future__ import annotations

import json
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable

from cellray.errors import CellrayError
from cellray.storage import open_storage

TIMEOUT_S = 15.0


def tell_reach() -> None:
    """Print what keeps this machine from each part of an installation, '' where nothing does."""
    parts: dict[str, Callable[[], None]] = {"names": _names, "API server": _api, "MLflow": _mlflow, "bucket": _bucket}
    answers = {}
    for name, look in parts.items():
        try:
            look()
            answers[name] = ""
        except (OSError, ValueError, CellrayError) as error:
            answers[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    print(json.dumps(answers))


def _names() -> None:
    """Whether a name of the cluster is known to its DNS."""
    host = urllib.parse.urlsplit(os.environ.get("CELLRAY_TRACKING_URI", "")).hostname
    socket.getaddrinfo(host or "localhost", None)


def _api() -> None:
    """Whether the API server takes connections, which Ray's autoscaler needs."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if host:
        port = int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()


def _mlflow() -> None:
    """Whether MLflow is well."""
    uri = os.environ.get("CELLRAY_TRACKING_URI", "")
    if uri.startswith(("http://", "https://")):
        urllib.request.urlopen(f"{uri}/health", timeout=TIMEOUT_S).close()


def _bucket() -> None:
    """Whether the storage can be read and written."""
    files, root = open_storage(os.environ["CELLRAY_STORAGE"])
    place = f"{root}/.cluster-check"
    with files.open_output_stream(place) as stream:
        stream.write(b"here")
    with files.open_input_stream(place) as stream:
        if stream.read() != b"here":
            raise OSError("what was written doesn't come back")
    files.delete_file(place)

"""A word where a service that a command is pointed at stands open to the internet."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from rich.markup import escape

from cellray.cli.common import err


def warn_of_exposed(*, address: str | None = None, tracking_uri: str | None = None) -> None:
    """Warn of a Ray cluster or MLflow server at a public address, for which no password or token is set here.

    Args:
        address: Of the cluster: ``host:port``, ``http://host:port``, or words such as ``auto``.
        tracking_uri: Of the MLflow store; files and databases are no matter.
    """
    if address and is_public(address) and not _has_ray_token():
        advice = "start it with RAY_AUTH_MODE=token and set RAY_AUTH_TOKEN here"
        _warn(f"--address {address}", "run code on its nodes", advice)
    if tracking_uri and tracking_uri.startswith(("http://", "https://")):
        host = urlsplit(tracking_uri)
        has_password = host.username or {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"} & os.environ.keys()
        if not has_password and is_public(tracking_uri):
            advice = "let it ask for a password, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here"
            _warn(f"--tracking-uri {host.scheme}://{host.netloc}", "change its runs and models", advice)


def is_public(address: str) -> bool:
    """Whether a host has an address on the open internet; a name that can't be looked up has none."""
    found = set()
    with suppress(OSError, ValueError):
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        if "." in host or ":" in host:  # other names, and words such as `auto`, are of the local network
            found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    return any(ipaddress.ip_address(number).is_global for number in found)


def _has_ray_token() -> bool:
    """Whether Ray shows a token to clusters, by the places where it looks for one."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None:
        return mode.lower() == "token"
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or os.path.exists(os.path.expanduser("~/.ray/auth_token"))


def _warn(where: str, what: str, advice: str) -> None:
    err.print(
        f"[yellow]Warning:[/yellow] {escape(where)} is a public address, and no password or token for it is set here: "
        f"whoever reaches it may {what}. Keep it in a private network, or {advice}.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip

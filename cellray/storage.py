"""Where files lie: a local folder or ``s3://``, opened from its address, with patience for a network that is away.

Credentials come from the environment (``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, or whatever else AWS's own
tools understand), never from an address, since addresses get printed and stored. ``AWS_ENDPOINT_URL`` names any other
object store, as does ``s3://bucket/path?scheme=http&endpoint_override=host:port``.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import stat
import time
from collections.abc import Callable
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

_T = TypeVar("_T")

PATIENCE_S = 600.0
"""So long is a remote storage that is away waited for."""
LONGEST_PAUSE_S = 15.0
DELAYED = "allow_delayed_open=true"

_log = logging.getLogger(__name__)
_PASSING = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|TOO_MANY_REQUESTS|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    r"|REQUEST_EXPIRED|curlCode|HTTP status (408|429|5\d\d)|timed? ?out",
    re.IGNORECASE,
)
_HINTS = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "access denied: see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the rights of this key",
    "INVALID_ACCESS_KEY_ID": "the store doesn't know the key in AWS_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID": "the store doesn't know the key in AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "AWS_SECRET_ACCESS_KEY doesn't fit AWS_ACCESS_KEY_ID",
    "SLOW_DOWN": "the store has too many requests",
    "HTTP status 503": "the store has too many requests, or starts",
    "NETWORK_CONNECTION": "nothing answers at its endpoint (AWS_ENDPOINT_URL, if it isn't AWS's own)",
}


def is_remote(path: str) -> bool:
    """Whether a path is an address such as ``s3://bucket/folder``."""
    return "://" in path


def open_storage(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of a folder or ``s3://…``, and the path in it.

    Raises:
        ValueError: If it is no such address, or has credentials in it. The message can be printed.
    """
    if not is_remote(address):
        # Absolute, since a worker that is sent this address has another working directory.
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(address))
    parts = urlsplit(address)
    if parts.scheme != "s3":
        raise ValueError(f"expected a folder or s3://bucket/path, got {parts.scheme}://…")
    if "@" in parts.netloc:
        raise ValueError(
            "credentials don't belong into an address, which gets stored and printed; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    # Small files in one request instead of three.
    whole = f"{address}{'&' if parts.query else '?'}{DELAYED}"
    try:
        found, root = fs.FileSystem.from_uri(whole)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace(whole, public(address)).replace(address, public(address))) from error
    return found, root.rstrip("/")


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """A file of this machine, open for reading: a plain one, since a device may have no end and a pipe no beginning.

    Raises:
        OSError: If it can't be opened, or is no plain file.
    """
    name = os.fspath(path)
    no_file = OSError(errno.EINVAL, "a device, pipe or socket, expected a plain file", name)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise no_file if error.errno == errno.ENXIO else error from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name) if stat.S_ISDIR(mode) else no_file
    return open(name, "rb", opener=lambda *_: descriptor)  # readers of TIFF ask for its name


def read_plain(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a plain file of this machine.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        OSError: As `open_plain`, or if it is larger.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= most else b""
        while size <= most and (more := file.read(2**20)):  # it grows, or its size is unknown
            data += more
            size = len(data)
    if size > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", os.fspath(path))
    return data


def public(address: str) -> str:
    """An address without its query, endpoint and keys: fit to be printed."""
    scheme, mark, rest = address.split("?")[0].rpartition("://")
    return f"{scheme}{mark}{rest.rsplit('@', 1)[-1] if mark else rest}"


def plain_reason(error: BaseException) -> str:
    """What an error of a storage means, in words."""
    text = str(error)
    for name, words in _HINTS.items():
        if name in text:
            return words
    return error.strerror if isinstance(error, OSError) and error.filename and error.strerror else text


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_passing(error: Exception) -> bool:
    """Whether an error may go away by itself: no network, a server that starts or is busy."""
    return isinstance(error, OSError) and _PASSING.search(str(error)) is not None


def patiently(act: Callable[[], _T], where: str, patience_s: float = PATIENCE_S) -> _T:
    """Do something with a remote storage; while it is away, try again with growing pauses.

    Args:
        act: May be done twice.
        where: The storage, for the line that says that it is waited for.
        patience_s: After so long, the error is raised.
    """
    end = time.monotonic() + patience_s
    pause = 0.25
    while True:
        try:
            return act()
        except OSError as error:
            left = end - time.monotonic()
            if not is_passing(error) or left <= 0:
                raise
            if pause > 1:
                _log.warning("%s is away (%s); waiting for up to %.0f s more", where, plain_reason(error), left)
        # Many workers see a store go away at one moment; they should not all come back at one.
        time.sleep(min(pause * random.uniform(0.5, 1.5), left))
        pause = min(2 * pause, LONGEST_PAUSE_S)

"""What this machine has read of a bucket's trials, kept in its cache: a report made again asks for what is new."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from cellray.storage import open_plain

SETTLED_S = 60.0
"""A file that was changed more recently isn't kept: a bucket tells times in whole seconds, so it may change unseen."""


class StoredFile(NamedTuple):
    """A file of a ledger."""

    path: str
    """In the study's folder."""
    n_bytes: int
    changed: float
    """Seconds since 1970; 0 where a bucket doesn't tell."""


class Copies:
    """Copies of files, each good for as long as the bucket lists it with the same size and time of change.

    Args:
        whose: Names the ledger, with its store.
        listed: What it has now; copies of anything else are removed.
    """

    def __init__(self, whose: tuple[str, ...], listed: Iterable[StoredFile]) -> None:
        from cellray.data import default_cache_dir

        self._folder = default_cache_dir() / "ledgers" / hashlib.sha256(repr(whose).encode()).hexdigest()[:16]
        self._listed = {file.path: file for file in listed if ".." not in file.path.split("/")}
        for copy in self._folder.rglob("*"):
            if copy.relative_to(self._folder).as_posix() not in self._listed and copy.is_file():
                with suppress(OSError):
                    copy.unlink()

    def find(self, path: str) -> bytes | None:
        """The content of a file, None where there is no good copy; FileNotFoundError if the bucket has no such file."""
        listed = self._listed.get(path)
        if listed is None:
            raise FileNotFoundError(path)
        with suppress(OSError), open_plain(self._folder / path) as copy:
            state = os.fstat(copy.fileno())
            if (state.st_size, state.st_mtime) == (listed.n_bytes, listed.changed):
                return copy.read()
        return None

    def keep(self, path: str, data: bytes) -> None:
        """Keep what was read of a file; nothing if it is new, if no time is known, or if the cache can't be written."""
        listed = self._listed[path]
        if len(data) != listed.n_bytes or not listed.changed or time.time() - listed.changed < SETTLED_S:
            return
        copy = self._folder / path
        aside = copy.with_name(f"{copy.name}.{uuid.uuid4().hex[:8]}")
        with suppress(OSError):
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(data)
                os.utime(aside, (listed.changed, listed.changed))
                aside.replace(copy)
            finally:
                aside.unlink(missing_ok=True)

"""What this machine has read of a ledger's trials, or made of that, kept in its cache: only what is new is read."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cellray.storage import open_plain

SETTLED_S = 60.0
"""Of a file that was changed more recently nothing is kept: a bucket tells times in whole seconds, so it may change
unseen."""
FORGOTTEN_S = 30 * 86400.0
"""What wasn't asked for in so long is removed: the ledger itself may be gone."""
NAME = "[0-9a-f]" * 16
"""Of a ledger's folder: nothing else is removed."""
CHECK_BYTES = 4
FORMAT = 2
"""Names the folders: those of another one are removed when they are forgotten."""


class StoredFile(NamedTuple):
    """A file of a ledger."""

    path: str
    """In the study's folder."""
    n_bytes: int
    changed: float
    """Seconds since 1970; 0 where a bucket doesn't tell."""


class Copies:
    """What is kept, each piece good for as long as the ledger lists the files it is of with the same sizes and times.

    Args:
        whose: Names the ledger, with its store.
        listed: The files of its trials now; what is of a trial that is gone is removed.
    """

    def __init__(self, whose: tuple[str, ...], listed: Iterable[StoredFile]) -> None:
        from cellray.data import default_cache_dir

        everyone = default_cache_dir() / "ledgers"  # CELLRAY_CACHE may have a folder of that name already
        self._folder = everyone / hashlib.sha256(repr((FORMAT, whose)).encode()).hexdigest()[:16]
        self.listed = {file.path: file for file in listed if ".." not in file.path.split("/")}
        with suppress(OSError):
            os.utime(self._folder)
        trials = {path.split("/")[1] for path in self.listed if "/" in path}
        gone = (trial for trial in self._folder.glob("trials/*") if trial.name not in trials)
        forgotten = (other for other in everyone.glob(NAME) if time.time() - _changed(other) > FORGOTTEN_S)
        for folder in (*gone, *forgotten):
            shutil.rmtree(folder, ignore_errors=True)

    def find(self, name: str, of: Iterable[str], made_by: str = "") -> bytes | None:
        """What is kept under a name, if it was made of these files as they are now, and by the same code."""
        with suppress(OSError), open_plain(self._place(name, of, made_by)) as piece:
            check, data = piece.read(CHECK_BYTES), piece.read()
            if check == _check(data):
                return data
        return None

    def keep(self, name: str, data: bytes, of: Iterable[str], made_by: str = "") -> None:
        """Keep something in the place of what was kept under this name before; nothing if one of the files is new or
        has no time, if it's the file itself, but of another size, or if the cache can't be written."""
        of = list(of)
        files = [self.listed[path] for path in of if path in self.listed]
        times = [file.changed for file in files]
        if not times or not all(times) or time.time() - max(times) < SETTLED_S:
            return
        if of == [name] and len(data) != files[0].n_bytes:
            return
        place = self._place(name, of, made_by)
        aside = place.with_suffix(f".{uuid.uuid4().hex[:8]}")
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            before = [old for old in place.parent.iterdir() if old.stem == place.stem and old != place]
            try:
                aside.write_bytes(_check(data) + data)
                aside.replace(place)
            finally:
                for old in (aside, *before):
                    old.unlink(missing_ok=True)

    def _place(self, name: str, of: Iterable[str], made_by: str) -> Path:
        now = repr(([self.listed.get(path) for path in of], made_by))
        return self._folder / f"{name}.{hashlib.sha256(now.encode()).hexdigest()[:16]}"


def _check(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(CHECK_BYTES, "little")


def _changed(folder: Path) -> float:
    """Seconds since 1970; now, if it can't be seen."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return time.time()

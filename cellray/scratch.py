"""Temporary folders that don't pile up: a process that is killed can't remove its own, so the next one does."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cellray.processes import is_running


def scratch_folder(kind: str, place: str | None = None) -> tempfile.TemporaryDirectory[str]:
    """A fresh temporary folder, gone at the latest with this process; removes those that dead processes left.

    Args:
        kind: Names its purpose: a word of small letters.
        place: The folder to make it in; None: where the system keeps such.
    """
    prefix = f"cellray-{kind}-"
    for left in Path(place or tempfile.gettempdir()).glob(f"{prefix}*-*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=place, ignore_cleanup_errors=True)

"""Folders that several processes may want to fill at once: written aside, then renamed, one process at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from cellray.errors import DataError


def default_cache_dir() -> Path:
    """``$CELLRAY_CACHE``, else ``~/.cache/cellray``."""
    return Path(os.environ.get("CELLRAY_CACHE") or Path.home() / ".cache" / "cellray").absolute()


@contextmanager
def filling(folder: Path, is_good: Callable[[], bool] | None = None) -> Iterator[Path | None]:
    """Give a new folder to fill, which becomes `folder` at the end; None if another process has filled it meanwhile."""
    is_good = is_good or folder.is_dir
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock")).acquire()
    except OSError as error:
        raise DataError(
            f"{folder.parent}: the cache can't be written: {error}; set CELLRAY_CACHE to another folder"
        ) from error
    with lock:
        if is_good():
            yield None
            return
        _sweep_leftovers(folder)
        aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            yield aside
            _put_in_place(aside, folder, is_good)
        except OSError as error:
            raise DataError(f"{folder.parent}: the cache can't be written: {error}; is the disk full?") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, folder: Path, is_good: Callable[[], bool]) -> None:
    aside.chmod(0o755)  # mkdtemp makes it private
    if folder.exists() and not is_good():
        ruin = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
        with suppress(OSError):
            folder.rename(ruin / "ruin")
        shutil.rmtree(ruin, ignore_errors=True)
    try:
        aside.rename(folder)
    except OSError:
        if not is_good():  # else another machine, whose lock this one doesn't see, was first with the same content
            raise


def _sweep_leftovers(folder: Path) -> None:
    """Remove what killed processes left behind a day ago or earlier."""
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 86400:
                shutil.rmtree(left, ignore_errors=True)

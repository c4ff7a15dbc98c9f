"""Datasets that lie in a bucket: fetched into the cache, once for each machine and each state of the bucket."""

from __future__ import annotations

import hashlib
import json
import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pyarrow import fs

from cellray.data.cache import filling
from cellray.data.source import MAX_FILE_BYTES, MAX_FILES
from cellray.errors import DataError
from cellray.storage import open_storage, patiently, plain_reason, public

THREADS = 16
BLOCK_BYTES = 2**22
MAX_PACK_BYTES = 2**40
"""A single file that is the whole dataset, such as a zip pack, is refused above this."""


def fetch_dataset(address: str, cache_dir: Path) -> Path:
    """A dataset's own copy on this machine.

    Args:
        address: ``s3://bucket/folder``, or of a zip pack or manifest CSV. With a manifest its whole folder is fetched.
        cache_dir: Gets the copy, under the hash of every file's name, size and time of change; an older copy stays.

    Returns:
        Folder, zip pack or manifest in the cache.

    Raises:
        DataError: If the address names nothing, can't be read, or holds more than one dataset would.
    """
    shown = public(address)
    try:
        storage, path = open_storage(address)
        whole = storage.get_file_info(path)
        is_file = whole.type == fs.FileType.File
        top = posixpath.dirname(path) if is_file else path
        alone = is_file and not path.lower().endswith(".csv")
        selector = fs.FileSelector(top, allow_not_found=True, recursive=True)
        found = [whole] if alone else storage.get_file_info(selector)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown}: can't be read: {plain_reason(error)}") from error
    files = {info.path[len(top) + 1 :]: info for info in found if info.type == fs.FileType.File}
    if not files:
        raise DataError(f"{shown}: no files there, expected a folder, a zip pack or a manifest CSV")
    if len(files) > MAX_FILES:
        raise DataError(f"{shown}: more than {MAX_FILES} files below it, expected one dataset")
    most = MAX_PACK_BYTES if alone else MAX_FILE_BYTES
    for name, info in files.items():
        if info.size > most:
            raise DataError(f"{shown}: {name} has {info.size} bytes, expected at most {most} for one file")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{shown}: a file is called {name!r}, which names a place outside of the dataset")
    state = [address, *sorted((name, info.size, str(info.mtime)) for name, info in files.items())]
    folder = cache_dir / "fetched" / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    with filling(folder) as aside:
        if aside is not None:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda name: _copy(storage, f"{top}/{name}", aside / name), files))
    return folder / posixpath.basename(path) if is_file else folder


def _copy(storage: fs.FileSystem, path: str, target: Path) -> None:
    """Bring one file here."""
    target.parent.mkdir(parents=True, exist_ok=True)

    def get() -> None:
        with storage.open_input_stream(path) as source, target.open("wb") as copied:
            while block := source.read(BLOCK_BYTES):
                copied.write(block)

    try:
        patiently(get, path)
    except OSError as error:
        raise DataError(f"s3://{path}: can't be fetched: {plain_reason(error)}") from error

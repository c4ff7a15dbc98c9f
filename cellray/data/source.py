"""Where the files of a dataset lie: a folder, or a zip pack read without unpacking it."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from cellray.errors import DataError
from cellray.storage import open_plain, read_plain

MAX_DEPTH = 6
"""Folders are searched this deep."""
MAX_FILES = 200_000
"""A folder with more files than this is hardly the one that was meant."""
MAX_FILE_BYTES = 2**30
"""A single image file larger than this is refused unread."""


class Source:
    """The files below one root, named by posix paths relative to it."""

    def __init__(self, path: Path, sizes: dict[str, int], stamps: dict[str, str], archive: zipfile.ZipFile | None):
        self.path = path
        self.sizes = sizes
        self._stamps = stamps
        self._archive = archive

    def find(self, name: str) -> str | None:
        """The file of this name; if there is none, the one whose name differs in case or Unicode form alone."""
        if name in self.sizes:
            return name
        alike = self._alike.get(plain_name(name), [])
        return alike[0] if len(alike) == 1 else None

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.sizes:
            found.setdefault(plain_name(name), []).append(name)
        return found

    def files(self, folder: str) -> list[str]:
        """Names of the files directly inside `folder` ('' is the root), sorted."""
        head = f"{folder}/" if folder else ""
        return sorted(n for n in self.sizes if n.startswith(head) and "/" not in n[len(head) :])

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly inside `folder` that hold files, sorted, relative to the root."""
        head = f"{folder}/" if folder else ""
        inner = {n[len(head) :].split("/", 1)[0] for n in self.sizes if n.startswith(head) and "/" in n[len(head) :]}
        return [head + name for name in sorted(inner)]

    def where(self, name: str) -> str:
        """How an error message calls a file."""
        return f"{self.path}:{name}" if self._archive else str(self.path / name)

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        size = self.sizes[name]
        if size > MAX_FILE_BYTES:
            raise DataError(f"{self.where(name)}: {size} bytes, expected at most {MAX_FILE_BYTES} for one file")
        try:
            if self._archive is not None:
                data = self._archive.read(name)
            else:
                data = read_plain(self.path / name, MAX_FILE_BYTES)
        except OSError as error:
            raise DataError(f"{self.where(name)}: can't be read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise DataError(f"{self.where(name)}: can't be read: {error}") from error
        except Exception as error:  # zlib.error of a damaged member
            raise DataError(f"{self.where(name)}: damaged in the zip: {error}") from error
        if not data:
            raise DataError(f"{self.where(name)}: the file is empty (0 bytes), expected an image")
        return data

    def hashes(self, names: Iterable[str], memo_dir: Path) -> dict[str, str]:
        """Content hash of each named file; remembered under `memo_dir` by path, size and time of change."""
        memo_file = memo_dir / f"{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:24]}.json"
        memo: dict[str, list[str]] = {}
        with suppress(OSError, ValueError):
            memo = json.loads(memo_file.read_text())
        names = list(names)
        known = {n: memo[n][1] for n in names if n in memo and memo[n][0] == self._stamps[n]}
        missing = [n for n in names if n not in known]
        if missing:
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                digests = list(pool.map(lambda n: hashlib.blake2b(self.read(n), digest_size=16).hexdigest(), missing))
            known.update(zip(missing, digests, strict=True))
            memo.update({n: [self._stamps[n], known[n]] for n in missing})
            with suppress(OSError):  # a memo that can't be kept only costs time
                memo_dir.mkdir(parents=True, exist_ok=True)
                aside = memo_file.with_suffix(f".{os.getpid()}.tmp")
                aside.write_text(json.dumps(memo))
                aside.replace(memo_file)
        return known


def plain_name(name: str) -> str:
    """A name without what file systems change on the way: case, and how accents are written."""
    return unicodedata.normalize("NFC", name).casefold()


def open_source(path: Path) -> Source:
    """List a folder or a zip.

    Raises:
        DataError: If it is missing, empty, or neither.
    """
    if not path.exists():
        unset = " (an environment variable in it isn't set)" if "$" in str(path) else ""
        raise DataError(f"{path}: no such folder or file{unset}; expected a folder, a zip pack or a manifest CSV")
    source = _open_folder(path) if path.is_dir() else _open_zip(path)
    if not source.sizes:
        raise DataError(f"{path}: no files in it, expected images with masks")
    return source


def _open_folder(path: Path) -> Source:
    sizes: dict[str, int] = {}
    stamps: dict[str, str] = {}
    for folder, inner, names in os.walk(path, followlinks=True):
        relative = Path(folder).relative_to(path)
        inner[:] = sorted(n for n in inner if not _is_clutter(n)) if len(relative.parts) < MAX_DEPTH else []
        for name in names:
            with suppress(OSError):  # a dangling link is no file
                stat = os.stat(os.path.join(folder, name))
                key = (relative / name).as_posix()
                sizes[key], stamps[key] = stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}"
        if len(sizes) > MAX_FILES:
            raise DataError(f"{path}: more than {MAX_FILES} files below it, expected one dataset")
    return Source(path, sizes, stamps, None)


def _open_zip(path: Path) -> Source:
    try:
        archive = zipfile.ZipFile(open_plain(path))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a zip ({error}); expected a folder, a zip pack or a manifest CSV") from error
    members = [
        m for m in archive.infolist() if not m.is_dir() and not any(map(_is_clutter, m.filename.split("/")[:-1]))
    ]
    sizes = {m.filename: m.file_size for m in members}
    stamp = f"{path.stat().st_size}:{path.stat().st_mtime_ns}"
    return Source(path, sizes, {m.filename: f"{stamp}:{m.CRC}" for m in members}, archive)


def _is_clutter(folder: str) -> bool:
    return folder.startswith(".") or folder == "__MACOSX"

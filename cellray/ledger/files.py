"""Files of one study in a local folder or a bucket, each written whole or not at all, by one code path for both."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from pyarrow import NativeFile, fs

from cellray.errors import LedgerError, StorageError
from cellray.ledger.copies import Copies, StoredFile
from cellray.storage import PATIENCE_S, is_full, open_storage, patiently, plain_reason, public, read_plain

_T = TypeVar("_T")

TRIALS = "trials"
PART = ".part"
"""Ends the name of a file that is being written."""
MOST_JSON_BYTES, MOST_BYTES = 2**28, 2**34
"""Of a record, and of any other file; larger ones aren't cellray's."""
CHUNK_BYTES = 2**24
MOST_AT_ONCE = 16
"""Files that a bucket is asked for at once, or that are written at once."""


class StudyFiles:
    """The files of one study.

    Args:
        storage: Local folder or ``s3://bucket/prefix``; made if missing.
        study: Name of the study: its folder in there.
        patience_s: How long a bucket that answered once and then goes away is waited for.

    Raises:
        LedgerError: If the storage can't be reached.
    """

    def __init__(self, storage: str, study: str, patience_s: float = PATIENCE_S, _has_answered: bool = False) -> None:
        try:
            self._fs, root = open_storage(storage)
        except ValueError as error:
            raise LedgerError(f"storage {public(storage)!r} can't be opened: {error}") from error
        self._local = isinstance(self._fs, fs.LocalFileSystem)
        self.storage, self.study = (root if self._local else storage), study
        self._root = f"{root}/{study}"
        self._patience_s, self._has_answered = patience_s, _has_answered
        self._copies: Copies | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, float, bool]]:
        return type(self), (self.storage, self.study, self._patience_s, self._has_answered)

    def within(self, folder: str) -> Self:
        """The same for a folder of the study that has records of its own."""
        return type(self)(self.storage, f"{self.study}/{folder}", self._patience_s, self._has_answered)

    def with_copies(self) -> Self:
        """For one who reads all trials, as they are now: what is fetched from a bucket is kept on this machine, and so
        may be what is made of them.

        Raises:
            StorageError: If the storage can't be read.
        """
        whose = (self.storage, self.study, "" if self._local else os.environ.get("AWS_ENDPOINT_URL", ""))
        found = object.__new__(type(self))
        found.__dict__ |= vars(self) | {"_copies": Copies(whose, self.files(TRIALS))}
        return found

    def _do(self, act: Callable[[], _T], path: str) -> _T:
        """Read something; a bucket that goes away is waited for, but not one that never answered.

        Raises:
            FileNotFoundError: If there is no such file.
            StorageError: If it can't be read.
        """
        try:
            return self._patiently(act)
        except FileNotFoundError:
            self._has_answered = True
            raise
        except OSError as error:
            raise StorageError(f"{self._named(path)} can't be read: {plain_reason(error)}") from error

    def _patiently(self, act: Callable[[], _T]) -> _T:
        if self._has_answered and not self._local:
            return patiently(act, self.uri, self._patience_s)
        done = act()
        self._has_answered = True
        return done

    def _named(self, path: str) -> str:
        return f"{self.uri}/{path}" if path else self.uri

    @property
    def uri(self) -> str:
        """Where the study lies, for people."""
        if self._local:
            return self._root
        return f"{public(self.storage).rstrip('/')}/{self.study}"

    def prepare(self) -> None:
        """Make the study's folder and prove that it can be written.

        Raises:
            LedgerError: If it can't, or the bucket isn't there: a misspelt one must not be made.
        """
        try:
            bucket = self._root.partition("/")[0]
            if not self._local and self._do(lambda: self._fs.get_file_info(bucket), "").type == fs.FileType.NotFound:
                raise LedgerError(f"storage {public(self.storage)!r}: there is no bucket {bucket!r}; make it first")
            self.write(".probe", b"cellray")
            self.delete(".probe")
        except StorageError as error:
            cause = error.__cause__ or error
            words = f"storage {public(self.storage)!r} is not writable: {plain_reason(cause)} (--storage names another)"
            raise (StorageError if is_full(cause) else LedgerError)(words) from error

    # Files, named by their path in the study's folder.

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all: aside and renamed locally, in one request on S3.

        Raises:
            StorageError: If the storage doesn't take it.
        """
        target = f"{self._root}/{path}"
        try:
            self._patiently(lambda: self._replace(target, data) if self._local else self._put(target, data))
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            words = "something of another kind lies in its place; move it away"
            raise StorageError(f"{self._named(path)} can't be written: {words}") from error
        except OSError as error:
            raise StorageError(f"{self._named(path)} can't be written: {plain_reason(error)}") from error

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write some files, several at once and each as `write` does; which of them are there after an error is open.

        Raises:
            StorageError: If the storage doesn't take one.
        """
        with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
            list(pool.map(self.write, files, files.values()))

    @staticmethod
    def _replace(target: str, data: bytes) -> None:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        aside = f"{target}.{uuid.uuid4().hex[:8]}{PART}"
        try:
            while True:
                with open(aside, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                try:
                    return os.replace(aside, target)
                except FileNotFoundError:
                    pass  # taken for the rest of a killed process (`remove_parts`)
        except BaseException:
            if os.path.exists(aside):
                os.remove(aside)
            raise

    def _put(self, target: str, data: bytes) -> None:
        with self._fs.open_output_stream(target) as stream:
            stream.write(data)

    def remove_parts(self) -> None:
        """Remove what killed processes were writing; one that lives writes it again."""
        if self._local:
            for part in Path(self._root).rglob(f"*{PART}"):
                part.unlink(missing_ok=True)

    def read(self, path: str) -> bytes:
        """The bytes of a file; FileNotFoundError if there is none.

        Raises:
            LedgerError: If it is no plain file, or larger than any that cellray writes.
        """

        most = MOST_JSON_BYTES if path.endswith(".json") else MOST_BYTES

        def get() -> bytes:
            try:
                if self._local:
                    return read_plain(f"{self._root}/{path}", most)
                with self._fs.open_input_stream(f"{self._root}/{path}") as stream:
                    return _read_at_most(stream, most)
            except NotADirectoryError as error:
                raise FileNotFoundError(path) from error
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EFBIG):
                    raise LedgerError(f"{self.uri}/{path} can't be read: {error.strerror}") from None
                raise

        if self._local or self._copies is None or not path.startswith(f"{TRIALS}/"):
            return self._do(get, path)
        if path not in self._copies.listed:
            raise FileNotFoundError(path)
        data = self._copies.find(path, [path])
        if data is None:
            data = self._do(get, path)
            self._copies.keep(path, data, [path])
        return data

    def read_all(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        """The bytes of each file in turn, None where there is none; a bucket is asked for several at once."""

        def get(path: str) -> bytes | None:
            try:
                return self.read(path)
            except FileNotFoundError:
                return None

        if self._local:
            yield from map(get, paths)
            return
        with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
            ahead: deque[Future[bytes | None]] = deque()
            for path in paths:
                ahead.append(pool.submit(get, path))
                if len(ahead) > 2 * MOST_AT_ONCE:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def exists(self, path: str) -> bool:
        """Whether there is such a file.

        Raises:
            StorageError: If the storage can't be read.
        """
        return self._do(lambda: self._fs.get_file_info(f"{self._root}/{path}"), path).type == fs.FileType.File

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        if self.exists(path):
            with suppress(FileNotFoundError):  # an attempt whose answer was lost
                self._do(lambda: self._fs.delete_file(f"{self._root}/{path}"), path)

    def put_aside(self, path: str) -> str:
        """Rename a file out of the way; returns its new path."""
        aside = f"{path}.damaged"
        self.write(aside, self.read(path))
        self.delete(path)
        return aside

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, sorted; empty if there is no such folder.

        Raises:
            StorageError: If the storage can't be read.
        """
        selector = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        return sorted(info.base_name for info in self._do(lambda: self._fs.get_file_info(selector), ""))

    def files(self, folder: str) -> list[StoredFile]:
        """Every file below a folder, for one with copies as it was then; folders that are links, which may lead
        anywhere or in a circle, aren't entered.

        Raises:
            StorageError: If the storage can't be read.
        """
        if self._copies is not None and folder == TRIALS:
            return list(self._copies.listed.values())
        if self._local:
            return self._do(lambda: list(self._walk(folder)), folder)
        selector = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True, recursive=True)
        found = self._do(lambda: self._fs.get_file_info(selector), "")
        return [
            StoredFile(info.path.removeprefix(f"{self._root}/"), info.size, info.mtime.timestamp() if info.mtime else 0)
            for info in found
            if info.type == fs.FileType.File
        ]

    def _walk(self, folder: str) -> Iterator[StoredFile]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error

        for inner, _, names in os.walk(f"{self._root}/{folder}", onerror=refuse):
            for name in names:
                path = f"{inner}/{name}"
                with suppress(OSError):  # removed meanwhile, or a link to nothing
                    found = os.stat(path)
                    if stat.S_ISREG(found.st_mode):
                        yield StoredFile(path.removeprefix(f"{self._root}/"), found.st_size, found.st_mtime)


def _read_at_most(stream: NativeFile, most: int) -> bytes:
    """The rest of a stream, which must end after so many bytes."""
    parts, size = [], 0
    while part := stream.read(CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if size > most:
            raise OSError(errno.EFBIG, f"larger than {most} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)

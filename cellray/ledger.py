"""The ledger: a folder or bucket that holds every trial's record, whole or not at all.

``<storage>/<study>/trials/<key>/trial.json`` is written last and marks a record as complete; whatever lies beside it
without one belongs to a trial that is still running or was killed. One code path serves a local folder and ``s3://``.
"""

from __future__ import annotations

import io
import json
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from pyarrow import fs

from cellray.errors import LedgerError
from cellray.processes import is_running
from cellray.storage import PATIENCE_S, open_storage, patiently, plain_reason, public

T = TypeVar("T")

TABLES = ("history", "images", "objects")
PART = ".part"
"""Ends the name of a file that is being written."""
READERS = 16
"""Files of a bucket that are asked for at once."""
LEASE_S = 60.0
"""A sweep that hasn't renewed its lease for so long is taken for dead."""


class StoredFile(NamedTuple):
    """A file of a ledger."""

    path: str
    """In the study's folder."""
    n_bytes: int
    changed: float
    """Seconds since 1970."""


class Ledger:
    """The records of one study.

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

    def __reduce__(self) -> tuple[type[Ledger], tuple[str, str, float, bool]]:
        return Ledger, (self.storage, self.study, self._patience_s, self._has_answered)

    def _do(self, act: Callable[[], T]) -> T:
        """Read or write something; a bucket that goes away is waited for, but not one that never answered."""
        try:
            if self._has_answered and not self._local:
                return patiently(act, self.uri, self._patience_s)
            done = act()
        except FileNotFoundError:
            self._has_answered = True
            raise
        self._has_answered = True
        return done

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
            if not self._local and self._fs.get_file_info(bucket).type == fs.FileType.NotFound:
                raise LedgerError(f"storage {public(self.storage)!r}: there is no bucket {bucket!r}; make it first")
            self.write(".probe", b"cellray")
            self.delete(".probe")
        except OSError as error:
            raise LedgerError(f"storage {public(self.storage)!r} is not writable: {plain_reason(error)}") from error

    # Files, named by their path in the study's folder.

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all: aside and renamed locally, in one request on S3."""
        target = f"{self._root}/{path}"
        if not self._local:
            return self._do(lambda: self._put(target, data))
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
                    pass  # taken for the rest of a killed process (`_remove_parts`)
        except BaseException:
            if os.path.exists(aside):
                os.remove(aside)
            raise

    def _put(self, target: str, data: bytes) -> None:
        with self._fs.open_output_stream(target) as stream:
            stream.write(data)

    def _remove_parts(self) -> None:
        """Remove what killed processes were writing; one that lives writes it again."""
        if self._local:
            for part in Path(self._root).rglob(f"*{PART}"):
                part.unlink(missing_ok=True)

    def read(self, path: str) -> bytes:
        """The bytes of a file; FileNotFoundError if there is none."""

        def get() -> bytes:
            with self._fs.open_input_stream(f"{self._root}/{path}") as stream:
                return bytes(stream.read())

        return self._do(get)

    def read_all(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        """The bytes of each file in turn, None where there is none; a bucket is asked for several at once."""

        def get(path: str) -> bytes | None:
            try:
                return self.read(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

        if self._local:
            yield from map(get, paths)
            return
        with ThreadPoolExecutor(READERS) as pool:
            ahead: deque[Future[bytes | None]] = deque()
            for path in paths:
                ahead.append(pool.submit(get, path))
                if len(ahead) > 2 * READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def exists(self, path: str) -> bool:
        """Whether there is such a file.

        Raises:
            LedgerError: If the storage can't be read.
        """
        try:
            return self._do(lambda: self._fs.get_file_info(f"{self._root}/{path}")).type == fs.FileType.File
        except OSError as error:
            raise LedgerError(f"{self.uri} can't be read: {plain_reason(error)}") from error

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        if self.exists(path):
            with suppress(FileNotFoundError):  # an attempt whose answer was lost
                self._do(lambda: self._fs.delete_file(f"{self._root}/{path}"))

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, sorted; empty if there is no such folder.

        Raises:
            LedgerError: If the storage can't be read.
        """
        selector = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        try:
            return sorted(info.base_name for info in self._do(lambda: self._fs.get_file_info(selector)))
        except OSError as error:
            raise LedgerError(f"{self.uri} can't be read: {plain_reason(error)}") from error

    def files(self, folder: str) -> list[StoredFile]:
        """Every file below a folder.

        Raises:
            LedgerError: If the storage can't be read.
        """
        selector = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True, recursive=True)
        try:
            found = self._do(lambda: self._fs.get_file_info(selector))
        except OSError as error:
            raise LedgerError(f"{self.uri} can't be read: {plain_reason(error)}") from error
        return [
            StoredFile(info.path.removeprefix(f"{self._root}/"), info.size, info.mtime.timestamp() if info.mtime else 0)
            for info in found
            if info.type == fs.FileType.File
        ]

    # Records.

    def record(self, key: str) -> dict[str, Any] | None:
        """A trial's record, or None if it has none yet.

        Raises:
            LedgerError: If it can't be read.
        """
        path = f"trials/{key}/trial.json"
        try:
            data = self.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LedgerError(f"{self.uri}/{path} can't be read: {plain_reason(error)}") from error
        return self._parsed(key, data)

    def records(self, keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The complete records of these keys; None: all, ordered by key.

        Raises:
            LedgerError: If one can't be read.
        """
        keys = self.names("trials") if keys is None else list(keys)
        files = self.read_all(f"trials/{key}/trial.json" for key in keys)
        try:
            return [self._parsed(key, data) for key, data in zip(keys, files, strict=True) if data is not None]
        except OSError as error:
            raise LedgerError(f"{self.uri} can't be read: {plain_reason(error)}") from error

    def _parsed(self, key: str, data: bytes) -> dict[str, Any]:
        where = f"{self.uri}/trials/{key}/trial.json"
        try:
            record = json.loads(data)
        except ValueError as error:
            raise LedgerError(f"{where} is not a record ({error}); remove it and the trial runs again") from error
        if not isinstance(record, dict) or "key" not in record:
            raise LedgerError(f"{where} is not a record (it has no key); remove it and the trial runs again")
        return record

    def table(self, key: str, name: str) -> pd.DataFrame:
        """One of a trial's tables: `history`, `images` or `objects`."""
        return pd.read_parquet(io.BytesIO(self.read(f"trials/{key}/{name}.parquet")))

    def write_record(
        self, record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], files: Mapping[str, bytes]
    ) -> None:
        """Store a trial's record with its tables and other files, replacing an earlier one."""
        folder = f"trials/{record['key']}"
        self.delete(f"{folder}/trial.json")
        for name, table in tables.items():
            self.write(f"{folder}/{name}.parquet", table.to_parquet(index=False))
        for path, data in files.items():
            self.write(f"{folder}/{path}", data)
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=True)
        self.write(f"{folder}/trial.json", text.encode())

    def write_plan(self, trials: Iterable[tuple[str, int, str, str]]) -> None:
        """Keep what a study plans, so that a report needs no data: label, seed and both keys of each trial."""
        names = ("label", "seed", "key", "evaluation_key")
        plan = [dict(zip(names, trial, strict=True)) for trial in trials]
        self.write("plan.json", json.dumps(plan, indent=1).encode())

    def plan(self) -> list[dict[str, Any]]:
        """What the last sweep planned: label, seed, key and evaluation key of each trial.

        Raises:
            LedgerError: If no sweep has been here.
        """
        try:
            return json.loads(self.read("plan.json"))
        except FileNotFoundError:
            raise LedgerError(f"{self.uri} has no plan.json: no sweep of this study was started there") from None

    def load_checkpoint(self, key: str, name: str) -> bytes | None:
        """A trial's checkpoint `last` or `best`, or None."""
        try:
            return self.read(f"trials/{key}/checkpoints/{name}.pt")
        except FileNotFoundError:
            return None

    def save_checkpoint(self, key: str, name: str, data: bytes) -> None:
        """Keep a trial's checkpoint."""
        self.write(f"trials/{key}/checkpoints/{name}.pt", data)

    # One sweep at a time.

    @contextmanager
    def lease(self, on_wait: Callable[[str], None] = lambda words: None) -> Iterator[None]:
        """Hold the ledger for one sweep; renewed in the background, released at the end.

        A holder on another machine may have died with it: it is watched until it renews its lease or the lease expires.

        Args:
            on_wait: Told, in a sentence, that somebody is watched.

        Raises:
            LedgerError: If another sweep holds it.
        """
        holder = {"host": socket.gethostname(), "pids": _pid_space(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        other = self._living_holder(on_wait)
        if other is not None:
            raise LedgerError(
                f"{self.uri} is held by another sweep (process {other['pid']} on {other['host']}, last seen "
                f"{time.time() - other['seen']:.0f} s ago); wait for it, or stop it and try again in {LEASE_S:.0f} s"
            )
        self._renew(holder)
        time.sleep(0.05)
        now = self.holder()
        if now is not None and now["id"] != holder["id"]:
            raise LedgerError(f"{self.uri} was taken by another sweep just now (process {now['pid']} on {now['host']})")
        self._remove_parts()
        stop = threading.Event()
        at_once = Ledger(self.storage, self.study, patience_s=0)

        def renew() -> None:
            while not stop.wait(LEASE_S / 4):
                # The storage may be away for a while (the next round tries again), and a machine that slept for so
                # long that another sweep took over must not take the ledger back: records agree whoever writes them.
                with suppress(OSError):
                    if at_once._is_mine(holder):
                        at_once._renew(holder)

        thread = threading.Thread(target=renew, daemon=True, name="cellray-lease")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._remove_parts()
            with suppress(OSError, LedgerError):  # it expires by itself
                if at_once._is_mine(holder):
                    at_once.delete("lease.json")

    def _living_holder(self, on_wait: Callable[[str], None]) -> dict[str, Any] | None:
        """Who holds the ledger, after a look at whether one on another machine lives."""
        other = self.holder()
        if other is None or _is_here(other):
            return other
        left_s = min(other["seen"] + LEASE_S - time.time(), LEASE_S)  # its clock may be ahead
        on_wait(
            f"process {other['pid']} on {other['host']} was sweeping this ledger {LEASE_S - left_s:.0f} s "
            f"ago; unless it says so again, this sweep takes over in {left_s:.0f} s"
        )
        end = time.monotonic() + left_s
        while time.monotonic() < end:
            time.sleep(min(1.0, left_s))
            now = self._lease()
            if now is None or now["seen"] != other["seen"]:
                return now
        return None

    def _renew(self, holder: dict[str, Any]) -> None:
        self.write("lease.json", json.dumps({**holder, "seen": time.time()}).encode())

    def _lease(self) -> dict[str, Any] | None:
        """The lease as it lies there."""
        try:
            lease = json.loads(self.read("lease.json"))
        except (FileNotFoundError, ValueError):
            return None
        return lease if isinstance(lease, dict) and {"host", "pid", "id", "seen"} <= set(lease) else None

    def _is_mine(self, holder: dict[str, Any]) -> bool:
        lease = self._lease()
        return lease is None or lease["id"] == holder["id"]

    def holder(self) -> dict[str, Any] | None:
        """Who holds the ledger now, if anybody: `host`, `pid`, and when it was `seen`."""
        other = self._lease()
        if other is None or time.time() - other["seen"] > LEASE_S:
            return None
        if _is_here(other) and not is_running(other["pid"]):
            return None
        return other


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether it is, or was, a process of this machine."""
    return (holder["host"], holder.get("pids")) == (socket.gethostname(), _pid_space())


def _pid_space() -> str:
    """What tells containers of one host name apart: a process number means something in its own only."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

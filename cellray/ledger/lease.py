"""One sweep at a time: the lease of a ledger, renewed while its holder lives."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pydantic import BaseModel, ConfigDict, ValidationError

from cellray.errors import LedgerError, StorageError
from cellray.ledger.files import StudyFiles
from cellray.processes import is_running

LEASE_S = 60.0
"""A sweep that hasn't renewed its lease for so long is taken for dead."""
LEASE_FILE = "lease.json"


class Lease(BaseModel):
    """The contents of lease.json: the process that sweeps."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    pids: str = ""
    """What tells containers of one host name apart: a process number means something in its own only."""
    pid: int
    id: str
    seen: float
    """Seconds since 1970 when it last said that it lives."""


@contextmanager
def held(files: StudyFiles, on_wait: Callable[[str], None] = lambda words: None) -> Iterator[None]:
    """Hold a study's folder for one sweep; renewed in the background, released at the end.

    A holder on another machine may have died with it: it is watched until it renews its lease or the lease expires.

    Args:
        files: The study's.
        on_wait: Told, in a sentence, that somebody is watched.

    Raises:
        LedgerError: If another sweep holds it.
    """
    me = Lease(host=socket.gethostname(), pids=_pid_space(), pid=os.getpid(), id=uuid.uuid4().hex, seen=0.0)
    other = _living_holder(files, on_wait)
    if other is not None:
        raise LedgerError(
            f"{files.uri} is held by another sweep (process {other.pid} on {other.host}, last seen "
            f"{max(0.0, time.time() - other.seen):.0f} s ago); wait for it, or stop it and try again in {LEASE_S:.0f} s"
        )
    _renew(files, me)
    time.sleep(0.05)
    now = current_holder(files)
    if now is not None and now.id != me.id:
        raise LedgerError(f"{files.uri} was taken by another sweep just now (process {now.pid} on {now.host})")
    files.remove_parts()
    stop = threading.Event()
    at_once = StudyFiles(files.storage, files.study, patience_s=0)

    def is_mine() -> bool:
        lease = _stored(at_once)
        return lease is None or lease.id == me.id

    def renew() -> None:
        while not stop.wait(LEASE_S / 4):
            # The storage may be away for a while (the next round tries again), and a machine that slept for so
            # long that another sweep took over must not take the ledger back: records agree whoever writes them.
            with suppress(OSError):
                if is_mine():
                    _renew(at_once, me)

    thread = threading.Thread(target=renew, daemon=True, name="cellray-lease")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        files.remove_parts()
        with suppress(OSError, LedgerError):  # it expires by itself
            if is_mine():
                at_once.delete(LEASE_FILE)


def current_holder(files: StudyFiles) -> Lease | None:
    """Who holds a study's folder now, if anybody."""
    other = _stored(files)
    if other is None or time.time() - other.seen > LEASE_S:
        return None
    if _is_here(other) and not is_running(other.pid):
        return None
    return other


def _living_holder(files: StudyFiles, on_wait: Callable[[str], None]) -> Lease | None:
    """Who holds it, after a look at whether one lives that is on another machine, or seen by a clock that went back."""
    other = current_holder(files)
    if other is None or (_is_here(other) and other.seen <= time.time()):
        return other
    left_s = min(other.seen + LEASE_S - time.time(), LEASE_S)  # its clock may be ahead
    on_wait(
        f"process {other.pid} on {other.host} was sweeping this ledger {LEASE_S - left_s:.0f} s "
        f"ago; unless it says so again, this sweep takes over in {left_s:.0f} s"
    )
    end = time.monotonic() + left_s
    while time.monotonic() < end:
        time.sleep(min(1.0, left_s))
        now = _stored(files)
        if now is None or now.seen != other.seen:
            return now
    return None


def _renew(files: StudyFiles, holder: Lease) -> None:
    files.write(LEASE_FILE, holder.model_copy(update={"seen": time.time()}).model_dump_json().encode())


def _stored(files: StudyFiles) -> Lease | None:
    """The lease as it lies there; one that can't be read holds nobody off."""
    try:
        return Lease.model_validate_json(files.read(LEASE_FILE))
    except StorageError:
        raise
    except (FileNotFoundError, LedgerError, ValidationError):
        return None


def _is_here(holder: Lease) -> bool:
    """Whether it is, or was, a process of this machine."""
    return (holder.host, holder.pids) == (socket.gethostname(), _pid_space())


def _pid_space() -> str:
    """What tells containers of one host name apart: a process number means something in its own only."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

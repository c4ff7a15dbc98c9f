"""A sweep as a process of its own, what all its processes write down, and kills at chosen moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent


class Event(NamedTuple):
    """A line that `watched/sitecustomize.py` wrote."""

    seconds: float
    host: str
    pid: int
    word: str
    what: str


class Command:
    """A `cellray` command as a process; its output and the log of all its processes lie in `folder`.

    Args:
        arguments: Of the command line.
        folder: Where its temporary files go, too. Commands with one folder go on writing the same log.
        environment: In addition to this process's own.
        within: Words before the command, that run it on another machine.
    """

    def __init__(self, *arguments: str, folder: Path, environment: dict[str, str], within: Sequence[str] = ()) -> None:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._log, self._out = folder / "events.log", folder / "out.txt"
        self._log.touch()
        self._skip, self._skip_out = len(self._log.read_bytes()), 0
        if self._out.exists():
            self._skip_out = len(self._out.read_text())
        self._family: set[tuple[int, str]] = set()
        more = {
            **watching(self._log),
            "TMPDIR": str(folder / "tmp"),
            "RAY_TMPDIR": tempfile.gettempdir(),  # the paths of Ray's sockets can't be long
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with self._out.open("ab") as stream:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "cellray", *arguments],
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env={**os.environ, **more, **environment},
            )
        self.started = time.time()

    @property
    def pid(self) -> int:
        return self.process.pid

    def runs(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        """What it said so far."""
        return self._out.read_text()[self._skip_out :]

    def events(self, word: str = "") -> list[Event]:
        """What its processes wrote down since it was started; only lines with that word, if one is given."""
        with self._log.open("rb") as stream:
            stream.seek(self._skip)
            return [event for event in _parsed(stream.read()) if word in ("", event.word)]

    def family(self) -> list[int]:
        """Its processes that live, itself included."""
        self._family.update((pid, born(pid)) for pid in [self.pid, *descendants(self.pid)])
        return [pid for pid, since in tuple(self._family) if since and born(pid) == since]

    def named(self, part: str) -> list[int]:
        """Its living processes whose command line has such a part."""
        return [pid for pid in self.family() if part in title(pid)]

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 600.0) -> bool:
        """Wait until something is true or the command has ended; whether it is true."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"it didn't happen in time\n{self.output()}"
            if not self.runs():
                return bool(condition())
            time.sleep(0.05)
        return True

    def end(self, timeout_s: float = 900.0) -> int:
        """Wait for its end; its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it doesn't end\n{self.output()}") from None

    def clean_up(self) -> None:
        """Kill what is left of it."""
        for pid in self.family():
            kill(pid)
        self.process.wait()


def watching(log: Path) -> dict[str, str]:
    """The environment in which Python processes write down what they do."""
    path = os.pathsep.join([str(TESTS / "watched"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"CELLRAY_WATCH": str(log), "PYTHONPATH": path}


def kill(pid: int) -> None:
    """`kill -9`."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def read_events(folder: Path) -> list[Event]:
    """Everything that the commands of a folder wrote down."""
    return _parsed((folder / "events.log").read_bytes())


def _parsed(log: bytes) -> list[Event]:
    lines = log.decode().rpartition("\n")[0].splitlines()
    fields = (line.split("\t") for line in lines)
    return [Event(float(seconds), host, int(pid), word, what) for seconds, host, pid, word, what in fields]


def descendants(pid: int) -> list[int]:
    """Children of a process, their children and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def born(pid: int) -> str:
    """When a process was started, by which it differs from a later one of the same number; '' if it is dead."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def parent(pid: int) -> int:
    """Of a process that lives."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """State, parent and so on of a process; empty if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return fields if fields[0] not in "ZX" else []


def title(pid: int) -> str:
    """Its command line, or the name that Ray gave it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""

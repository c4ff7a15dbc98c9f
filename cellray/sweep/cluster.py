"""Ray for one sweep: started here or joined, and asked whether it can hold the trials at all."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cellray.device import ALLOCATOR_ENV
from cellray.errors import StudyError
from cellray.scratch import scratch_folder
from cellray.study import ResourcesConfig, Study

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a local cluster: only settings and small news travel through Ray; images are mapped from the cache."""
MOST_NODES = 100
"""Counted of one group of an autoscaling cluster that names no limit."""
LONGEST_TMPDIR = 35
"""Characters of a temporary folder: the names of sockets below it have 72 more, and a system takes 107."""
SHORT_PLACES = ("/tmp", "/dev/shm")
_ROUNDING = 1e-9  # three workers with 1/3 GPU each fit on one


@contextmanager
def connect(address: str | None = None, code_folder: Path | None = None) -> Iterator[None]:
    """Ray for one sweep: the cluster at `address`, or a fresh one on this machine that ends with the sweep.

    Args:
        address: Of a running cluster.
        code_folder: Where workers, too, look for losses of the user's own.

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
    if code_folder is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(code_folder.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _on_loopback() if address is None else nullcontext():
                ray.init(
                    **(local if address is None else {"address": address}),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": env},
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


def check_feasible(study: Study) -> None:
    """Raise `StudyError` unless the nodes of the running cluster can hold one trial; each worker lies on one node.

    Ray itself would wait for ever for resources that no node has. The error names the shortest change of the study with
    which a trial would fit. Nodes that an autoscaling cluster may start count too.
    """
    nodes = _nodes()
    resources = study.resources
    if n_places(resources, nodes) >= resources.n_workers:
        return
    change = shortest_change(resources, nodes)
    if change is None:
        advice = "no change of the study helps: add nodes"
    else:
        advice = "set " + " and ".join(f"resources.{name} to {value:g}" for name, value in change.items())
    raise StudyError(f"resources: the cluster can't hold one trial: {_lacking(resources, nodes)}; {advice}")


def room_for(resources: ResourcesConfig) -> int:
    """How many trials the running cluster holds at once, at least one."""
    return max(n_places(resources, _nodes()) // resources.n_workers, 1)


def _nodes() -> list[dict[str, float]]:
    """What each node of the running cluster has, and each that an autoscaler may add to them."""
    import ray
    from ray._private.state import state  # where Ray Train and Ray Data ask; there is no public way

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with suppress(AttributeError):  # private, so it may change
        for group in getattr(state.get_cluster_config(), "node_group_configs", ()):
            n_more = group.max_count if group.max_count >= 0 else MOST_NODES
            nodes += [dict(group.resources)] * min(n_more, MOST_NODES)
    return nodes


def n_places(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers of a trial the nodes hold, all of them empty.

    Args:
        resources: Of one trial.
        nodes: What each node has, by Ray's names (`CPU`, `GPU`).
    """
    share = resources.gpus / resources.n_workers
    total = 0
    for node in nodes:
        rooms = [int(node.get("CPU", 0.0) / resources.cpus + _ROUNDING)]
        if share:
            gpus = int(node.get("GPU", 0.0) + _ROUNDING)
            # a worker with a part of a GPU doesn't lie on two
            rooms.append(gpus * int(1 / share + _ROUNDING) if share < 1 else int(gpus / share))
        total += min(rooms)
    return total


def shortest_change(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """The fewest settings, each lowered as little as possible, with which the nodes hold one trial.

    Of several single settings the one that costs the trial least: CPUs, then GPUs, then workers.

    Returns:
        Value by name (`cpus`, `gpus`, `workers`), or None if nothing helps.
    """
    most = int(max((node.get("CPU", 0.0) for node in nodes), default=0.0))
    lower: dict[str, list[float]] = {
        "cpus": [float(n) for n in range(min(math.ceil(resources.cpus) - 1, most), 0, -1)],
        "gpus": [float(n) for n in range(math.ceil(resources.gpus) - 1, -1, -1)],
        "workers": [float(n) for n in range(resources.n_workers - 1, 0, -1)],
    }
    for names in (("cpus",), ("gpus",), ("workers",), ("gpus", "cpus"), ("workers", "cpus"), ("workers", "gpus")):
        for values in itertools.product(*(lower[name] for name in names)):
            change = dict(zip(names, values, strict=True))
            try:
                changed = ResourcesConfig.model_validate({**resources.model_dump(exclude_none=True), **change})
            except ValueError:  # GPUs that can't be shared out evenly to the workers
                continue
            if n_places(changed, nodes) >= changed.n_workers:
                return change
    return None


def _lacking(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> str:
    """What one trial needs and the nodes don't have."""
    n = resources.n_workers
    need = {"CPU": resources.cpus * n, "GPU": resources.gpus}
    if n > 1:
        totals = " and ".join(f"{amount:g} {name}s" for name, amount in need.items() if amount)
        return f"it needs {totals} in {n} equal workers, and its nodes have room for {n_places(resources, nodes)}"
    best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in need}
    lacking = [
        f"{amount:g} {name}{'s' if amount > 1 else ''} (largest node: {best[name]:g})"
        for name, amount in need.items()
        if amount > best[name]
    ]
    return (
        f"it needs {' and '.join(lacking)}"
        if lacking
        else (f"no node has both {need['CPU']:g} CPU{'s' if need['CPU'] > 1 else ''} and {need['GPU']:g} GPU")
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

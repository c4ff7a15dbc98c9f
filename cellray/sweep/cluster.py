"""Ray for one sweep: started here or joined, and asked whether it can hold the trials at all."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellray.device import ALLOCATOR_ENV
from cellray.errors import StudyError
from cellray.study import Study

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a local cluster: only settings and small news travel through Ray; images are mapped from the cache."""


@contextmanager
def connect(address: str | None = None, code_folder: Path | None = None) -> Iterator[None]:
    """Ray for one sweep: the cluster at `address`, or a fresh one on this machine that ends with the sweep.

    Args:
        address: Of a running cluster.
        code_folder: Where workers, too, look for losses of the user's own.

    Raises:
        StudyError: If there is no cluster at the address, or none can be started.
    """
    # Ray reads these when it starts: no usage statistics, no log files of Tune's own loggers, GPUs left as they are.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # "local" starts a cluster of our own, whatever RAY_ADDRESS says and whatever else runs on this machine.
    local = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    env = {**ALLOCATOR_ENV, "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0"}
    if code_folder is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(code_folder.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
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
    try:
        yield
    finally:
        ray.shutdown()


def check_feasible(study: Study) -> None:
    """Raise `StudyError` unless some node of the running cluster can hold one trial.

    Ray itself would wait for ever for resources that no node has.
    """
    import ray

    need = {"CPU": float(study.resources.cpus), "GPU": float(study.resources.gpus)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0.0) >= amount for name, amount in need.items()) for node in nodes):
        return
    best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in need}
    lacking = [
        f"{amount:g} {name}s (largest node: {best[name]:g})" for name, amount in need.items() if amount > best[name]
    ]
    what = ", ".join(lacking) or "CPUs and GPUs on one node"
    raise StudyError(
        f"resources: no node of the cluster can hold one trial: it needs {what}; lower resources in the study"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

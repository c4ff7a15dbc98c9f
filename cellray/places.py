"""What nodes hold of a trial, those named that an autoscaling cluster may start, and what is lacking."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, TypeAdapter, ValidationError

from cellray.errors import StudyError
from cellray.study import ResourcesConfig

GROUPS_VARIABLE = "CELLRAY_WORKER_GROUPS"
"""Of the environment: the worker groups of an autoscaling cluster, as a JSON list of `WorkerGroup`."""
_ROUNDING = 1e-9  # three workers with 1/3 GPU each fit on one


class WorkerGroup(BaseModel, frozen=True):
    """Like nodes, so many of which an autoscaler may start."""

    name: str
    nodes: int
    CPU: float = 0.0
    GPU: float = 0.0

    @property
    def node(self) -> dict[str, float]:
        """What each of its nodes has."""
        return {"CPU": self.CPU, "GPU": self.GPU}

    def __str__(self) -> str:
        gpus = f" and {counted(self.GPU, 'GPU')}" if self.GPU else ""
        return f"{self.name} (up to {self.nodes} nodes with {counted(self.CPU, 'CPU')}{gpus} each)"


def named_groups() -> list[WorkerGroup]:
    """The worker groups that the environment names.

    Raises:
        StudyError: If what it says is no such list.
    """
    text = os.environ.get(GROUPS_VARIABLE, "").strip()
    try:
        return TypeAdapter(list[WorkerGroup]).validate_json(text) if text else []
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the text"
        example = '[{"name": "cpu", "nodes": 4, "CPU": 4, "GPU": 0}]'
        raise StudyError(f"{GROUPS_VARIABLE}: {where}: {first['msg']}; expected {example}, got {text!r}") from None


def counted(n: float, name: str) -> str:
    return f"{n:g} {name}{'s' if n != 1 else ''}"


def remedy(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> str:
    """What to do where the nodes don't hold one trial: the shortest change of the study, if there is one."""
    change = shortest_change(resources, nodes)
    if change is None:
        return "no change of the study helps: add nodes"
    return "set " + " and ".join(f"resources.{name} to {value:g}" for name, value in change.items())


def n_places(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers of a trial the nodes hold, all of them empty.

    Args:
        resources: Of one trial.
        nodes: What each node has, by Ray's names (`CPU`, `GPU`).
    """
    share = resources.n_gpus / resources.n_workers
    total = 0
    for node in nodes:
        rooms = [int(node.get("CPU", 0.0) / resources.cpus + _ROUNDING)]
        if share:
            gpus = int(node.get("GPU", 0.0) + _ROUNDING)
            # a worker with a part of a GPU doesn't lie on two
            rooms.append(gpus * int(1 / share + _ROUNDING) if share < 1 else int(gpus / share))
        total += min(rooms)
    return total


def n_beside(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]], n: int) -> int:
    """How many trials can be judged, each with the CPUs of one worker and no GPU, beside `n` that are trained.

    0 of trials that have no more than that anyway, and so give nothing up before they are judged.
    """
    if not resources.n_gpus and resources.n_workers == 1:
        return 0
    return max(n_places(resources.model_copy(update={"gpus": 0.0}), nodes) - n * resources.n_workers, 0)


def shortest_change(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """The fewest settings, each lowered as little as possible, with which the nodes hold one trial.

    Of several single settings the one that costs the trial least: CPUs, then GPUs, then workers.

    Returns:
        Value by name (`cpus`, `gpus`, `workers`), or None if nothing helps.
    """
    most = int(max((node.get("CPU", 0.0) for node in nodes), default=0.0))
    lower: dict[str, list[float]] = {
        "cpus": [float(n) for n in range(min(math.ceil(resources.cpus) - 1, most), 0, -1)],
        "gpus": [float(n) for n in range(math.ceil(resources.n_gpus) - 1, -1, -1)],
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


def lacking(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> str:
    """What one trial needs and the nodes don't have."""
    n = resources.n_workers
    need = {"CPU": resources.cpus * n, "GPU": resources.n_gpus}
    if n > 1:
        totals = " and ".join(f"{amount:g} {name}s" for name, amount in need.items() if amount)
        return f"it needs {totals} in {n} equal workers, and its nodes have room for {n_places(resources, nodes)}"
    best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in need}
    lacking = [
        f"{counted(amount, name)} (largest node: {best[name]:g})"
        for name, amount in need.items()
        if amount > best[name]
    ]
    return (
        f"it needs {' and '.join(lacking)}"
        if lacking
        else f"no node has both {counted(need['CPU'], 'CPU')} and {need['GPU']:g} GPU"
    )

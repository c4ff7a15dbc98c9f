"""What a cluster can hold: its nodes, those that its autoscaler may add, and what the autoscaler says of a trial.

Nothing in Ray tells a driver which nodes an autoscaler may add. The manifests of `k8s/` name their worker groups to the
head, and `cellray submit` does so anew for each study. Where the nodes there are and the groups named don't suffice,
the autoscaler is asked: it alone knows what it may start, whatever was named to us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cellray.device import has_gpu
from cellray.errors import StudyError
from cellray.places import WorkerGroup, counted, lacking, n_beside, n_places, named_groups, remedy
from cellray.study import ResourcesConfig

ANSWER_S = 20.0
"""An autoscaler that hasn't said anything for so long, with a trial waiting, says nothing."""
GROUP_LABEL = "ray.io/node-group"
"""Of a node: the group that it belongs to."""


def check_feasible(resources: ResourcesConfig, say: Callable[[str], None] = lambda words: None) -> None:
    """Raise `StudyError` unless the running cluster can hold one trial, with nodes that it may start for it.

    Ray itself would wait for ever for resources that no node has. The error names the shortest change of the study with
    which a trial would fit.

    Args:
        resources: Of one trial, settled.
        say: Told once if the first node has to be waited for.
    """
    nodes, groups = _nodes_and_groups()
    known = _with_groups(nodes, groups)
    if n_places(resources, known) >= resources.n_workers:
        return
    answer = _ask_autoscaler(_bundles(resources), nodes)
    if answer:
        return
    if answer is None and not groups and not any(node.get("CPU") for node in nodes):
        say("no node of the cluster can hold a trial yet, and no autoscaler says whether one will: waiting for nodes")
        return
    problem = f"resources: the cluster can't hold one trial: {lacking(resources, known)}"
    if groups:
        problem += f"; its worker groups: {', '.join(map(str, groups))}"
    elif answer is False and not any(node.get("CPU") for node in nodes):
        need = " and ".join(counted(n, name) for name, n in _bundles(resources)[0].items())
        raise StudyError(
            f"resources: the cluster can't hold one trial: its autoscaler has no worker group whose nodes have {need}; "
            f"set resources.cpus or resources.gpus lower, or add such a group"
        )
    raise StudyError(f"{problem}; {remedy(resources, known)}")


def settle(resources: ResourcesConfig) -> ResourcesConfig:
    """The resources of a trial on the running cluster, with a number of GPUs where the study says `auto`."""
    if resources.gpus != "auto":
        return resources
    nodes, groups = _nodes_and_groups()
    if len(nodes) == 1 and not groups and nodes[0].get("GPU"):
        return resources.settled(has_gpu())  # this machine: torch has to see it, too
    known = any(node.get("GPU", 0.0) >= 1 for node in _with_groups(nodes, groups))
    return resources.settled(known or (not groups and bool(_ask_autoscaler([{"GPU": 1.0}], nodes))))


def room_for(resources: ResourcesConfig) -> int:
    """How many trials the running cluster holds at once with all nodes that it may start, at least one."""
    return max(n_places(resources, _with_groups(*_nodes_and_groups())) // resources.n_workers, 1)


def room_beside(resources: ResourcesConfig, n: int) -> int:
    """How many trials the running cluster can judge beside `n` that are trained, with all nodes that it may start."""
    return n_beside(resources, _with_groups(*_nodes_and_groups()), n)


def nodes_in_words() -> str:
    """What the cluster's nodes have, in a few words."""
    nodes = [node for node in _alive_nodes(frozenset()) if node.get("CPU") or node.get("GPU")]
    if not nodes:
        return "the cluster has no node for trials yet"
    totals = [counted(sum(node.get(name, 0.0) for node in nodes), name) for name in ("CPU", "GPU")]
    return f"the cluster has {counted(len(nodes), 'node')} with {' and '.join(totals)}"


def _nodes_and_groups() -> tuple[list[dict[str, float]], list[WorkerGroup]]:
    """What each node of the running cluster has, those of named groups left out, which count them; and these groups."""
    groups = named_groups()
    return _alive_nodes({group.name for group in groups}), groups


def _alive_nodes(without: Collection[str]) -> list[dict[str, float]]:
    """What each node of the running cluster has, those of some groups left out."""
    import ray

    return [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and (node.get("Labels") or {}).get(GROUP_LABEL) not in without
    ]


def _with_groups(nodes: Sequence[dict[str, float]], groups: Sequence[WorkerGroup]) -> list[dict[str, float]]:
    return [*nodes, *(group.node for group in groups for _ in range(group.nodes))]


def _bundles(resources: ResourcesConfig) -> list[dict[str, float]]:
    """What each worker of a trial asks of its node."""
    share = resources.n_gpus / resources.n_workers
    return [{"CPU": float(resources.cpus), **({"GPU": share} if share else {})}] * resources.n_workers


def _ask_autoscaler(bundles: list[dict[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool | None:
    """Whether the cluster's autoscaler can make room for what one trial asks; None if there is none that says so.

    It is asked as a trial would ask it, and so may start the first node already.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    is_expected = not any(node.get("CPU") for node in nodes)  # else who would hold trials here?
    if not (is_expected or _answers(_status())):
        return None
    request, asked_at, until = placement_group(bundles, strategy="PACK"), None, time.monotonic() + ANSWER_S
    try:
        while time.monotonic() < until:
            if request.wait(0.5):
                return True
            status = _status()
            if not _answers(status):
                continue
            if asked_at is None:  # what was asked has stood since this version of the cluster's state
                asked_at = status.cluster_resource_state.cluster_resource_state_version
            if status.autoscaling_state.last_seen_cluster_resource_state_version > asked_at:
                refused = status.autoscaling_state.infeasible_gang_resource_requests
                asked = [_rounded(bundle) for bundle in bundles]
                return asked not in [[_rounded(b.resources_bundle) for b in gang.requests] for gang in refused]
        return None
    finally:
        remove_placement_group(request)


def _rounded(bundle: Mapping[str, float]) -> dict[str, float]:
    """Resources as Ray counts them: in ten-thousandths, cut off."""
    return {name: round(amount, 3) for name, amount in bundle.items()}


def _answers(status: Any) -> bool:
    """Whether an autoscaler has reported."""
    return status is not None and status.autoscaling_state.autoscaler_state_version > 0


def _status() -> Any:
    """What Ray's head knows of the cluster and its autoscaler (version 2); None if it can't be asked."""
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    with suppress(AttributeError):  # private, so it may change
        reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
        reply.ParseFromString(global_worker.gcs_client.get_cluster_status())  # type: ignore[attr-defined]
        return reply
    return None

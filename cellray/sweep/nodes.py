"""The nodes of a cluster before the first trial: do they run this cellray, and see the ledger and the same images?"""

from __future__ import annotations

from collections.abc import Mapping

import cellray
from cellray.errors import CellrayError, StudyError
from cellray.ledger import Ledger
from cellray.study import DataConfig
from cellray.trial import Sets


def check_nodes(data: DataConfig, sets: Sets, ledger: Ledger) -> None:
    """Open data and ledger on every other node of the running cluster, as a trial would; each decodes the images then.

    Nodes that come later are checked by the trials that they are given.

    Raises:
        StudyError: Naming the first node that can't, and why.
    """
    import ray
    from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here and n["Resources"].get("CPU")]
    # Not counted against the trials' CPUs, and nowhere else than on its node.
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    answers = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            data.model_dump_json(), ledger, cellray.__version__
        )
        for node in others
    ]
    expected = fingerprints(sets)
    for node, answer in zip(others, answers, strict=True):
        try:
            problem, found = ray.get(answer)
        except (NodeDiedError, TaskUnschedulableError):
            continue  # it left meanwhile
        except RayError as error:
            problem, found = _cause(error), {}
        if not problem and found != expected:
            name = next(name for name in expected if found.get(name) != expected[name])
            problem = f"dataset {name!r} has other images there than here: the same path must hold the same files"
        if problem:
            raise StudyError(f"node {node['NodeManagerAddress']} can't run this study: {problem}")


def fingerprints(sets: Sets) -> dict[str, str]:
    """Fingerprint of every set, by its name."""
    return {dataset.name: dataset.fingerprint for dataset in (sets.train, *sets.external.values())}


def _look(data: str, ledger: Ledger, version: str) -> tuple[str, Mapping[str, str]]:
    """On a node: what keeps it from running a trial, else '' and the fingerprints of what it sees."""
    if cellray.__version__ != version:
        return f"it has cellray {cellray.__version__}, this is {version}", {}
    try:
        ledger.read("lease.json")
    except FileNotFoundError:
        return f"it doesn't see the ledger {ledger.uri}: --storage must be s3://… or a folder that all nodes share", {}
    except OSError as error:
        return str(error), {}
    try:
        return "", fingerprints(Sets.open(DataConfig.model_validate_json(data)))
    except CellrayError as error:
        return f"{error} (data must be s3://… or a path that all nodes share)", {}


def _cause(error: Exception) -> str:
    """The last line of an error that came from another process: the first ones are its traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__

"""Imports only point down the ladder, and importing a module does nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cellray"

LADDER = (
    ("errors", "processes", "arrays", "times", "torch_later"),
    ("outside",),
    ("storage", "scratch"),
    ("postprocess", "metrics", "losses", "device"),
    ("overlay", "statistics"),
    ("model", "data"),
    ("study",),
    ("record", "places"),
    ("operating_point", "published", "scores", "observers"),
    ("evaluation", "ledger"),
    ("training", "prediction", "results"),
    ("trial",),
    ("search", "ensemble"),
    ("sweep", "forecast", "submission"),
    ("tracking", "report", "proposal"),
    ("cli",),
    ("__main__",),
)
"""Lowest rung first. Whoever adds a module or a folder places it here."""

RUNG = {name: height for height, rung in enumerate(LADDER) for name in rung}

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def part_of(module: str) -> str:
    """`cellray.data.cache` -> `data`; '' for the package itself."""
    return module.partition(".")[2].partition(".")[0]


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def homes(package: str) -> dict[str, str]:
    """The module of each name that a folder offers by its stub file, imported when it is asked for."""
    stub = PACKAGE.parent.joinpath(*package.split("."), "__init__.pyi")
    nodes = ast.walk(ast.parse(stub.read_text())) if stub.is_file() else ()
    return {a.name: f"{package}.{n.module}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}


def imports(module: str) -> set[str]:
    """Full names of everything a module imports, inside functions and for types alone too."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: imports are absolute"
            assert node.module
            # `from cellray import data` names a module, `from cellray.data import Dataset` doesn't.
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= modules if len(modules) == len(node.names) else {*modules, node.module}
            found |= {homes(node.module)[alias.name] for alias in node.names if alias.name in homes(node.module)}
    return found


def needs(module: str) -> set[str]:
    """The other modules that importing a module, and calling everything in it, runs."""
    found = (imports(module) & MODULES.keys()) - {module}
    # The `__init__` of a folder runs before what is in it; its own are running already.
    folders = {name.rpartition(".")[0] for name in found} & MODULES.keys()
    return found | {folder for folder in folders if not f"{module}.".startswith(f"{folder}.")}


def public_names(module: str) -> set[str]:
    """Names that a module defines at its top level for others."""
    found: set[str] = set()
    for node in tree_of(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_every_module_has_its_rung():
    parts = {part_of(module) for module in MODULES} - {""}
    assert parts <= RUNG.keys(), f"place {sorted(parts - RUNG.keys())} on the ladder in this file"


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m)])
def test_imports_point_down(module):
    here = part_of(module)
    own = {part_of(name) for name in imports(module) if name.split(".")[0] == "cellray"} - {"", here}
    wrong = {there for there in own if RUNG[there] >= RUNG[here]}
    assert not wrong, f"{module} ({LADDER[RUNG[here]]}) imports {sorted(wrong)}, which isn't below it"


@pytest.mark.parametrize("module", [m for m in MODULES if RUNG.get(part_of(m), 0) < RUNG["sweep"]])
def test_ray_and_mlflow_stay_above_the_trial(module):
    assert not {name.split(".")[0] for name in imports(module)} & {"ray", "mlflow"}


def test_the_walk_sees_imports_inside_functions():
    assert "ray" in imports("cellray.sweep.cluster")


def test_the_walk_sees_through_stub_files():
    assert "cellray.training.fitting" in imports("cellray.trial.run")


def test_no_modules_import_each_other_in_a_circle():
    order = TopologicalSorter({module: needs(module) for module in MODULES})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_a_public_name_is_defined_in_one_module():
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for name in public_names(module):
            homes.setdefault(name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


SIDE_EFFECTS = """
import importlib, json, os, sys, threading
import numpy, torch
numpy.random.seed(5); torch.manual_seed(5)
low, high = (part.split() for part in sys.argv[1:])

def state():
    return {
        "threads": torch.get_num_threads(),
        "numpy": numpy.random.get_state()[1][:3].tolist(),
        "torch": torch.get_rng_state()[:64].tolist(),
        "device": str(torch.get_default_device()),
        "cuda": torch.cuda.is_initialized(),
        "argv": sys.argv,
        "folder": os.getcwd(),
        "files": sorted(os.listdir()),
        "home": sorted(n for n in os.listdir(os.path.expanduser("~")) if "cellray" in n),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("CELLRAY", "OMP", "MALLOC", "MLFLOW"))},
        "live threads": sorted(t.name for t in threading.enumerate()),
    }

before = json.loads(json.dumps(state()))
for name in low + high:
    if name == high[0]:
        early = sorted({m.split(".")[0] for m in sys.modules} & {"ray", "mlflow"})
        assert not early, f"{early} came with the lower modules"
    importlib.import_module(name)
    after = json.loads(json.dumps(state()))
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, (name, changed)
    before = after
"""


@pytest.mark.slow
def test_importing_does_nothing_and_up_to_the_trial_loads_neither_ray_nor_mlflow(tmp_path):
    names = [m for m in MODULES if part_of(m) != "__main__"]
    low = [m for m in names if RUNG.get(part_of(m), 0) < RUNG["sweep"]]
    high = [m for m in names if m not in low]
    home, work = tmp_path / "home", tmp_path / "work"  # libraries may write to the former (matplotlib's fonts)
    home.mkdir()
    work.mkdir()
    mine = {"HOME": str(home), "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS, " ".join(low), " ".join(high)],
        cwd=work,
        env={**os.environ, **mine},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""

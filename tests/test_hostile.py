"""Hostile surroundings: files that lie where a command is started, and things that are no plain files.

Each row is a situation: how it's made, the command, its exit code, what it must say and in what time.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from commands import run_apart, run_here
from tiny_study import draw_images, tiny_study

from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.losses.bound import find_function
from cellray.outside import FOLDERS_VARIABLE, allow_code_in
from cellray.record import PlannedTrial

INSTALLED = (
    "json", "typing", "random", "pickle", "logging", "numpy", "torch", "PIL", "tifffile", "pandas", "yaml", "optuna",
    "ray", "mlflow", "scipy", "pyarrow", "matplotlib", "setup_worker", "__future__",
)  # fmt: skip
ABSENT = ("sitecustomize", "usercustomize", "bottleneck", "numexpr", "cupy", "triton_kernels")
"""Modules that libraries import where they are installed."""
SETTINGS = (
    "matplotlibrc", ".numba_config.yaml", ".env", ".flaskenv", ".mlflow", "MLproject", "pyproject.toml", "setup.cfg",
    "ray.yaml", ".rayignore", "gunicorn.conf.py", "alembic.ini", "optuna.cfg", "logging.conf",
)  # fmt: skip
"""Files of a working folder that libraries read, or may come to read."""
OWN_LOSS = """
from lab_helpers import cross_entropy

def own(logits, target, *, gain: float = 1.0):
    return gain * cross_entropy(logits.float(), target)
"""
HELPERS = "from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy\n"


def plant(folder: Path, names: tuple[str, ...], marks: Path) -> None:
    """Modules that leave a mark when they are imported, and can't be."""
    folder.mkdir(parents=True, exist_ok=True)
    marks.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w').close()\nraise ImportError('planted')\n")


class Lab(NamedTuple):
    """A working folder, and below it a study's, its data and a storage, with planted modules in all of them."""

    place: Path
    marks: Path

    def run(self, *words: str) -> str:
        """What a command says, in a process of its own; it must not have imported what was planted."""
        done = run_apart(*words, cwd=self.place, env={"CELLRAY_CACHE": str(self.marks.parent / "cache")})
        assert sorted(path.name for path in self.marks.iterdir()) == []
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    lab = Lab(folder / "here", folder / "marks")
    images = draw_images(lab.place / "data")
    for place in (lab.place, images, lab.place / "studies"):
        plant(place, INSTALLED + ABSENT, lab.marks)
        for name in SETTINGS:
            make_pipe(place / name)  # whoever opens it waits for ever
    plant(lab.place / "lab", INSTALLED, lab.marks)  # where --allow-code lets the others be imported
    study = yaml.safe_load(tiny_study(images, resources={"max_concurrent": 1}).dump_yaml())
    (lab.place / "lab" / "tiny.yaml").write_text(yaml.safe_dump(study))
    study |= {"name": "own", "configurations": [{"label": "Own", "loss": {"name": "lab_losses:own"}}]}
    (lab.place / "lab" / "own.yaml").write_text(yaml.safe_dump(study))
    (lab.place / "lab" / "lab_losses.py").write_text(OWN_LOSS)
    (lab.place / "lab" / "lab_helpers.py").write_text(HELPERS)
    return lab


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--version", "cellray"),
        ("losses check dice", "1 checked, 0 failed"),
        ("model check c_resunet", "trained"),
        ("data check data", "trainval"),
        ("plan lab/own.yaml --allow-code", "1 to do"),
        ("train lab/tiny.yaml --config BCE --seed 0", "record:"),
        ("sweep lab/own.yaml --allow-code", "report:"),
        ("track sync own", "1 records"),
    ],
)
def test_nothing_planted_is_imported(lab, words, expected):
    assert expected in lab.run(*words.split())


class TestOwnCode:
    @pytest.fixture
    def beside(self, tmp_path, monkeypatch) -> Path:
        monkeypatch.setenv(FOLDERS_VARIABLE, "")
        return tmp_path

    def test_is_found_last_and_by_its_file(self, beside, monkeypatch):
        (beside / "hostile_losses.py").write_text(OWN_LOSS)
        (beside / "lab_helpers.py").write_text(HELPERS)
        with pytest.raises(StudyError, match="No module named 'hostile_losses'"):
            find_function("hostile_losses:own")
        allow_code_in(beside)
        assert find_function("hostile_losses:own").__module__ == "hostile_losses"
        assert str(beside) not in __import__("sys").path

    @pytest.mark.parametrize("name", ["json", "tifffile", "time"])
    def test_never_takes_an_installed_modules_place(self, beside, name):
        plant(beside, (name,), beside / "marks")
        allow_code_in(beside)
        with pytest.raises(StudyError, match=rf"{name}\.py has the name of another module \(.*\); rename it"):
            find_function(f"{name}:own")
        assert not list((beside / "marks").iterdir())


@contextmanager
def limited(seconds: int = 20, more_bytes: int = 4 * 2**30) -> Iterator[None]:
    """What hangs or eats memory in here fails."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    most = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + more_bytes, most[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, most)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the whole path may be too long for its name


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte of nothing


KINDS = (make_pipe, make_device, make_socket, make_huge)
PLAIN = "expected a plain file"
LARGE = "larger than|expected at most|not a zip|unknown format"


class Case(NamedTuple):
    """What is replaced, and the command that meets it."""

    victim: str
    """May be a pattern."""
    command: str
    said: str
    """With {why} for the reason."""
    code: int = 2


CASES = (
    Case("lab/tiny.yaml", "plan lab/tiny.yaml", "lab/tiny.yaml: can't be read: {why}"),
    Case("lab/tiny.yaml", "sweep lab/tiny.yaml", "lab/tiny.yaml: can't be read: {why}"),
    Case("lab/tiny.yaml", "status lab/tiny.yaml", "lab/tiny.yaml: can't be read: {why}"),
    Case(
        "lab/more.py", "submit lab/far.yaml --address http://127.0.0.1:9 --allow-code", "more.py can't be sent: {why}"
    ),
    Case("lab/first.pt", "plan lab/started.yaml", "first.pt: {why}"),
    Case("data/trainval/images/trainval_0.png", "plan lab/tiny.yaml", "trainval_0.png: {why}"),
    Case("data/trainval/ground_truths/masks/trainval_1.png", "data check data", "trainval_1.png: {why}"),
    Case("data/metadata.csv", "data check data/metadata.csv", "metadata.csv: {why}"),
    Case("pack.zip", "data check pack.zip", "pack.zip: {why}"),
    Case("images/a.png", "predict tiny images --out found", "not counted: images/a.png: {why}", 3),
    Case("studies/tiny/trials/*/trial.json", "report tiny", "trial.json can't be read: {why}"),
    Case("studies/tiny/trials/*/trial.json", "status tiny", "trial.json can't be read: {why}"),
    Case("studies/tiny/trials/*/images.parquet", "report tiny", "images.parquet can't be read: {why}"),
    Case("studies/tiny/plan.json", "report tiny", "plan.json can't be read: {why}"),
    Case("studies/tiny/trials/*/checkpoints/best.pt", "plan lab/follows.yaml", "best.pt can't be read: {why}"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Studies, data and a ledger with a trial, before anything is replaced."""
    folder = tmp_path_factory.mktemp("whole")
    images = draw_images(folder / "data")
    study = tiny_study(images)
    (folder / "images").mkdir()
    shutil.copy(images / "test" / "images" / "test_0.png", folder / "images" / "b.png")
    plain = yaml.safe_load(study.dump_yaml())
    plain["data"]["train"]["path"] = "../data"
    (folder / "lab").mkdir()
    for name, changes in {
        "tiny": {},
        "far": {"data": yaml.safe_load(study.dump_yaml())["data"]},
        "started": {"model": {"base_features": 2, "weights": "first.pt"}},
        "follows": {"model": {"base_features": 2, "weights": "study:tiny/BCE/0"}},
    }.items():
        (folder / "lab" / f"{name}.yaml").write_text(yaml.safe_dump(plain | changes))
    done = run_here("train", "lab/tiny.yaml", "--config", "BCE", "--seed", "0", cwd=folder, env={})
    assert done.returncode == 0, done.stderr
    ledger = Ledger(str(folder / "studies"), "tiny")
    ledger.write("study.yaml", study.dump_yaml().encode())
    ledger.write_plan([PlannedTrial(r.label, r.seed, r.key) for r in ledger.records()])
    return folder


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.victim}-{case.command.split()[0]}")
def test_what_is_no_plain_file_is_refused_at_once(whole, tmp_path, monkeypatch, case, make):
    place = tmp_path / "place"
    shutil.copytree(whole, place)
    victim = next(place.glob(case.victim), place / case.victim)
    victim.unlink(missing_ok=True)
    monkeypatch.chdir(place)
    make(victim)
    with limited():
        done = run_here(*case.command.split(), cwd=place, env={"CELLRAY_CACHE": str(tmp_path / "cache")})
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == case.code, said
    why = LARGE if make is make_huge else PLAIN
    assert re.search(re.escape(case.said).replace(r"\{why\}", f".*({why})"), said), said
    assert "Traceback" not in said

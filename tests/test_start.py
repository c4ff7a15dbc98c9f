"""What is imported: nothing heavy for help and status, torch only where something is computed, no compiler for a
trial, no Matplotlib for a sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from report_data import plan_for, record, scores

from cellray.ledger import Ledger
from cellray.report import ReportActor

RUN = """
import sys
from cellray.cli.app import run
try:
    run()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"matplotlib", "mlflow", "optuna", "pandas", "ray", "scipy", "skimage", "sklearn", "torch"}
print("imported:", sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""

TRAIN = """
import sys
from pathlib import Path
from tiny_study import draw_images, tiny_study, train_all
import cellray.report, cellray.sweep, cellray.tracking
from cellray.ledger import Ledger
here = Path(sys.argv[1])
study = tiny_study(draw_images(here / "disks"))
(here / "tiny.yaml").write_text(study.dump_yaml())
_, records, _ = train_all(study, Ledger(str(here), study.name))
print([record.outcome for record in records])
heavy = {"torch._dynamo", "scipy.stats", "matplotlib", "mlflow", "optuna"}
print("imported:", sorted(heavy & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A storage with a study that has come halfway, and its file."""
    folder = tmp_path_factory.mktemp("storage")
    ledger = Ledger(str(folder), "made_up")
    ledger.write("study.yaml", b"name: made_up\n")
    actor = ReportActor(ledger, plan_for(["A", "B"], (0,)))
    actor.trial_ended(record("A", 0, {"test": scores(0.8)}))
    actor.flush()
    return folder


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("--help",), "ranked answer"),
        (("sweep", "--help"), "STUDY.yaml"),
        (("status", "made_up"), "made_up: 2 trials planned, 1 finished"),
        (("status", "made_up/study.yaml"), "0.800"),
    ],
)
def test_what_only_looks_imports_little(storage, words, shown):
    more = ["--storage", str(storage)] if words[0] == "status" else []
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *words, *more], cwd=storage, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    assert shown in ran.stdout
    assert ran.stdout.splitlines()[-1] == "imported: []"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A storage in which every trial of a study is done, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    run = [sys.executable, "-c", TRAIN, str(folder)]
    ran = subprocess.run(run, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return folder, ran.stdout


@pytest.mark.slow
def test_a_trial_imports_no_compiler_and_a_sweep_beside_it_no_matplotlib(trained):
    assert trained[1].splitlines() == ["['finished', 'finished']", "imported: []"]


@pytest.mark.slow
def test_where_nothing_is_to_be_done_losses_are_not_checked_again(trained):
    folder, _ = trained

    def imported(*words: str) -> str:
        run = [sys.executable, "-c", RUN, *words, "--storage", str(folder)]
        ran = subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()[-1]

    assert imported("sweep", "tiny.yaml") == "imported: ['matplotlib', 'mlflow', 'pandas', 'scipy', 'skimage']"
    assert imported("sweep", "tiny.yaml") == "imported: ['pandas', 'scipy', 'skimage']"
    assert "torch" not in imported("report", "tiny.yaml")
    text = (folder / "tiny.yaml").read_text()
    (folder / "other.yaml").write_text(text.replace("Does it run?", "Does it run again?"))
    assert "torch" in imported("sweep", "other.yaml")

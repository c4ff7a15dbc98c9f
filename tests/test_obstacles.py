"""What lies in a ledger's way, and what is damaged in it: nothing is lost for that, and one line says what to do."""

from __future__ import annotations

import codecs
import errno
import html
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from commands import run_here
from tiny_study import draw_images, lasting, same, tiny_study

from cellray.cli.app import nearest
from cellray.errors import ClusterError, StorageError
from cellray.ledger import Ledger
from cellray.report.exports import csv_bytes
from cellray.results import known_study
from cellray.study import read_study
from cellray.training import fitting
from cellray.trial import Sets, run_trial

weights_module = importlib.import_module("cellray.ledger.weights")


class Place:
    """A folder with a study file, its ledger, and what commands say there."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.ledger = Ledger(str(folder / "studies"), "tiny")

    def __call__(self, *words: str):
        return run_here(*words, cwd=self.folder, env={"CELLRAY_CACHE": str(self.cache)})

    def file(self, path: str, label: str = "Dice") -> Path:
        """A file of a trial, or of the study."""
        key = next(r.key for r in self.ledger.records() if r.label == label)
        return self.folder / "studies" / "tiny" / path.replace("TRIAL", f"trials/{key}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two trials, done."""
    place = Place(tmp_path_factory.mktemp("obstacles"), tmp_path_factory.mktemp("cache"))
    study = tiny_study(draw_images(place.folder / "disks"))
    (place.folder / "tiny.yaml").write_text(study.dump_yaml())
    for label in ("Dice", "BCE"):
        done = place("train", "tiny.yaml", "--config", label, "--seed", "0")
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(trained, tmp_path):
    """The same in a folder that a test may damage."""
    shutil.copytree(trained.folder, tmp_path / "here")
    return Place(tmp_path / "here", trained.cache)


def train(place: Place):
    return place("train", "tiny.yaml", "--config", "Dice", "--seed", "0")


REFUSALS = {"full disk": errno.ENOSPC, "full quota": errno.EDQUOT, "no right": errno.EACCES, "bad disk": errno.EIO}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "where"),
    [
        ("full disk", "best.pt"),
        ("full disk", "last.pt"),
        ("full disk", "images.parquet"),
        ("full disk", "trial.json"),
        ("full quota", "last.pt"),
        ("no right", "last.pt"),
        ("bad disk", "last.pt"),
    ],
)
def test_what_the_storage_refuses_is_no_outcome_and_the_same_command_goes_on(place, monkeypatch, problem, where):
    code = REFUSALS[problem]
    path, whole = place.file("TRIAL"), place.ledger.records()
    shutil.rmtree(path)
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith(where):
            raise OSError(code, os.strerror(code), str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        done = train(place)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert os.strerror(code) in done.stderr and where in done.stderr and "go on: cellray train" in done.stderr
    assert not (path / "trial.json").exists() and not list(path.rglob("*.part"))
    assert train(place).returncode == 0
    assert all(same(lasting(a), lasting(b)) for a, b in zip(place.ledger.records(), whole, strict=True))


def test_a_disk_that_is_full_elsewhere_is_no_outcome_either(place, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "maps.npy")

    shutil.rmtree(place.file("TRIAL"))
    monkeypatch.setattr(fitting, "add_maps", full)
    done = train(place)
    assert done.returncode == 4 and "is full" in done.stderr and len(place.ledger.records()) == 1


def test_weights_in_a_bucket_that_is_away_are_no_outcome_either(monkeypatch):
    def away(address):
        raise OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(weights_module, "open_storage", away)
    with pytest.raises(StorageError, match=r"s3://b/w\.pt"):
        weights_module.read_weights("s3://b/w.pt", storage="studies")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "another file": lambda data: b"PK\x03\x04 no checkpoint" * 50,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["last", "best"])
def test_a_trial_with_a_damaged_checkpoint_is_trained_again_to_the_same_record(place, name, damage):
    study = tiny_study(place.folder / "disks")
    trial, path = study.trials()[0], place.file(f"TRIAL/checkpoints/{name}.pt")
    whole = place.ledger.records()
    path.write_bytes(damage(path.read_bytes()))
    path.parents[1].joinpath("trial.json").unlink()
    done = train(place)
    told = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stderr
    assert f"{trial.label}, seed 0: its checkpoint `{name}` is damaged" in told and f"{name}.pt.damaged" in told
    assert path.with_suffix(".pt.damaged").exists()
    assert all(same(lasting(a), lasting(b)) for a, b in zip(place.ledger.records(), whole, strict=True))


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_in_the_middle_of_a_training_costs_the_epochs_before_it(place, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(place.cache))
    study = tiny_study(place.folder / "disks")
    trial, sets, ledger = study.trials()[0], Sets.open(study.data), Ledger(str(place.folder / "new"), "tiny")
    assert run_trial(trial, sets, ledger, until=1) is None
    key = sets.keys(trial)[0]
    ledger.save_checkpoint(key, "last", ledger.load_checkpoint(key, "last")[:-100])
    notes = []
    record = run_trial(trial, sets, ledger, on_note=notes.append)
    assert len(notes) == 1 and "last.pt.damaged" in notes[0]
    assert same(lasting(record), lasting(next(r for r in place.ledger.records() if r.label == "Dice")))


@pytest.mark.slow
def test_a_missing_best_checkpoint_of_a_complete_training_is_made_again(place):
    path = place.file("TRIAL/checkpoints/best.pt")
    path.unlink()
    path.parents[1].joinpath("trial.json").unlink()
    done = train(place)
    assert done.returncode == 0 and "it isn't there" in " ".join(done.stdout.split()) and path.exists()


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_named_with_what_to_do(place, command, damage):
    path = place.file("TRIAL/checkpoints/best.pt")
    path.write_bytes(damage(path.read_bytes()))
    words = {"predict": ("disks/test/images", "--out", "out"), "evaluate": ("disks",)}[command]
    told = refused(place, command, "tiny", *words, "--config", "Dice")
    assert "checkpoints/best.pt is damaged" in told and "trial.json, and the sweep trains it again" in told


def refused(place: Place, *words: str, code: int = 2) -> str:
    """The one line of a command that can't do its work."""
    done = place(*words)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    return done.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_table(path: Path) -> None:
    pd.DataFrame({"x": [1]}).to_parquet(path)


def no_rows(path: Path) -> None:
    pd.read_parquet(path).iloc[:0].to_parquet(path)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def seed_of_another_type(path: Path) -> None:
    path.write_text(path.read_text().replace('"seed": 0', '"seed": "zero"'))


OBSTACLES = [
    ("TRIAL/trial.json", deep),
    ("TRIAL/trial.json", cut),
    ("TRIAL/trial.json", empty),
    ("TRIAL/trial.json", seed_of_another_type),
    ("TRIAL/images.parquet", cut),
    ("TRIAL/images.parquet", empty),
    ("TRIAL/images.parquet", another_table),
    ("TRIAL/images.parquet", no_rows),
    ("TRIAL/objects.parquet", cut),
    ("TRIAL/history.parquet", empty),
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "damage"), OBSTACLES, ids=[f"{p} {d.__name__}" for p, d in OBSTACLES])
def test_a_damaged_trial_is_named_and_missing_and_the_others_are_shown(place, path, damage):
    file = place.file(path)
    damage(file)
    done = place("report", "tiny")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert str(file) in done.stderr and "runs again" in done.stderr
    page = (place.folder / "studies/tiny/report/index.html").read_text()
    trials = pd.read_csv(place.folder / "studies/tiny/report/trials.csv").set_index("label")
    assert "Damaged, and counted as missing" in page and "Damaged, and counted as missing" in done.stdout
    assert trials.outcome.to_dict() == {"Dice": "missing", "BCE": "finished"}


@pytest.mark.parametrize("what", ["images.parquet", "trial.json"])
def test_status_and_compare_name_a_damaged_trial(place, what):
    empty(place.file(f"TRIAL/{what}"))
    for words in (("status", "tiny"), ("compare", "Dice", "BCE", "--study", "tiny")):
        done = place(*words)
        assert "Traceback" not in done.stderr and what in done.stdout + done.stderr, words


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\0\0"])
def test_an_overlay_that_is_no_picture_is_named_and_left_out(place, content):
    for file in place.file("TRIAL/overlays").iterdir():
        file.write_bytes(content)
    assert place("report", "tiny").returncode == 0
    page = (place.folder / "studies/tiny/report/index.html").read_text()
    assert "Dice: overlays/test.best.png is damaged and left out" in page


@pytest.mark.slow
def test_a_file_in_the_place_of_the_report_is_named(place):
    (place.folder / "studies/tiny/report").write_text("")
    told = refused(place, "report", "tiny")
    assert "studies/tiny/report/" in told and "move it away" in told


@pytest.mark.parametrize("obstacle", ["out", "out/scores.json/x"])
def test_what_lies_in_the_place_of_an_output_is_named(place, obstacle):
    (place.folder / obstacle).parent.mkdir(parents=True, exist_ok=True)
    (place.folder / obstacle).write_text("")
    assert "out" in refused(place, "evaluate", "tiny", "disks", "--out", "out")


def test_a_damaged_status_is_made_again(place):
    (place.folder / "studies/tiny/report").mkdir()
    (place.folder / "studies/tiny/report/status.json").write_text("{")
    assert "2 finished" in place("status", "tiny").stdout


TEXTS = {
    "escape": ("a\x1b[31mb", "control characters"),
    "nul": ("a\0b", "control characters"),
    "a line's end": ("a\nb", "control characters"),
    "right to left": ("a\u202eb", "control characters"),
    "no width": ("a\u200bb", "invisible"),
    "blank first": (" a", "blank"),
    "blanks alone": ("  ", "blank"),
}


@pytest.mark.parametrize(("label", "words"), TEXTS.values(), ids=TEXTS)
def test_a_label_that_is_no_plain_text_is_refused(place, label, words):
    write_study(place, configurations=[{"label": label, "loss": {"name": "dice"}}])
    told = refused(place, "plan", "tiny.yaml")
    assert "configurations[0].label: must not" in told and words in told


def test_a_study_that_ran_with_such_a_label_is_still_read(place):
    write_study(place, configurations=[{"label": "a\x1bb ", "loss": {"name": "dice"}}])
    stored = read_study((place.folder / "tiny.yaml").read_text(), "study.yaml")
    assert [trial.label for trial in known_study(stored, None).trials()] == ["a\x1bb "]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow.db", "mlartifacts", "MLFLOW.DB", "mlflow.db-wal"])
def test_a_study_is_not_called_as_the_store_beside_it(place, name):
    write_study(place, name=name)
    assert "name: is a name that MLflow's files have" in refused(place, "plan", "tiny.yaml")


@pytest.mark.parametrize("text", ['question: "\\ud800"', '"\\udfff": 1', "question: Is\u202e it?"])
def test_text_that_is_none_gives_a_sentence(place, text):
    file = place.folder / "tiny.yaml"
    file.write_text(file.read_text().replace("question: Does it run?", text))
    told = refused(place, "plan", "tiny.yaml")
    assert "half of a character" in told or "question: must not have control characters" in told


LABELS = ["[/]", "[red]x[/red]", "=1+2", "@x", "<b>&"]


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_the_same_everywhere(place, label):
    write_study(place, configurations=[{"label": label, "loss": {"name": "dice"}}])
    place.file("TRIAL/trial.json").unlink()
    (place.folder / "studies/tiny/plan.json").unlink()
    done = place("train", "tiny.yaml", "--config", label, "--seed", "0")
    assert done.returncode == 0 and f"{label}, seed 0: finished" in done.stdout
    assert label in place("report", "tiny").stdout
    folder = place.folder / "studies/tiny/report"
    safe = f"'{label}" if label[0] in "=@" else label
    assert pd.read_csv(folder / "trials.csv").label.tolist() == [safe]
    assert html.escape(label) in (folder / "index.html").read_text()


def test_numbers_of_a_csv_stay_numbers():
    table = pd.DataFrame({"label": ["-1", "+x"], "value": [-1.5, 2.0]})
    assert csv_bytes(table) == b"label,value\n'-1,-1.5\n'+x,2.0\n"


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["{} >&-", "{} | true"])
def test_nobody_who_reads_is_no_traceback(place, shell):
    command = shlex.join([sys.executable, "-m", "cellray", "status", "tiny", "--json"])
    done = subprocess.run(
        ["bash", "-c", shell.format(command)], cwd=place.folder, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_any_signal_to_end_is_answered_while_data_are_opened(place, monkeypatch, number):
    monkeypatch.setattr(Sets, "open", lambda *_, **__: signal.raise_signal(number))
    done = train(place)
    assert done.returncode == 130
    assert "Interrupted; nothing is lost. To go on: cellray train" in " ".join(done.stderr.split())


def test_a_ray_that_does_not_start_is_no_bad_input(place, monkeypatch):
    def busy(address):
        raise ClusterError("Ray can't be started here: it took too long")

    monkeypatch.setattr("cellray.sweep.connect", busy)
    place.file("TRIAL/trial.json").unlink()
    done = place("sweep", "tiny.yaml")
    assert done.returncode == 5 and "it took too long" in done.stderr
    assert "To try again: cellray sweep tiny.yaml" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_letters_that_the_terminal_lacks_are_no_traceback(place):
    command, env = (
        [sys.executable, "-m", "cellray", "plan", "tiny.yaml"],
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "20"},
    )
    write_study(place, name="β")
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 2 and done.stderr.startswith("Error: ") and "Traceback" not in done.stderr


def test_a_minus_is_one_on_every_terminal():
    codecs.register_error("nearest", nearest)
    assert "[−0.18 ± 0.3] µ".encode("ascii", "nearest") == b"[-0.18 +- 0.3] ?"


def write_study(place: Place, **changes) -> None:
    tree = yaml.safe_load((place.folder / "tiny.yaml").read_text()) | changes
    (place.folder / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))

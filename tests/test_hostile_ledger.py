"""Hostile ledgers: every file of a study that isn't what it should be, and what is said of it.

Each line is a situation: how it's made, the command, its exit code, and what it must say. All end in 20 s without a
traceback, and lose no other trial.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from commands import run_here
from matplotlib import rc_context
from test_hostile import limited
from tiny_study import draw_images, tiny_study

from cellray.ledger import Ledger

Make = Callable[[Path], object]


def says(**changes: Any) -> Make:
    """Other values in a JSON object; None: without the key."""

    def make(path: Path) -> None:
        tree = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))

    return make


def holds(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def becomes(change: Callable[[bytes], bytes]) -> Make:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Make:
    """Another table, of its own kind."""
    return lambda path: change(pd.read_parquet(path)).to_parquet(path, index=False)


def is_gone(path: Path) -> None:
    path.unlink()


def is_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def points_to(target: str) -> Make:
    """A link."""

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return make


def in_circles(study: Path) -> None:
    """Two folders that lead to each other: as many ways as there are powers of two."""
    for name in ("trials", "report"):
        (study / name / "circle").symlink_to("..")


def lease(ahead_s: float = 0.0, **changes: Any) -> Make:
    """Somebody elsewhere holds the ledger, by a clock that is ahead of ours."""

    def make(path: Path) -> None:
        held = {"host": "elsewhere", "pids": "", "pid": 7, "id": "x", "seen": time.time() + ahead_s}
        path.write_text(json.dumps(held | changes))

    return make


class Situation(NamedTuple):
    file: str
    """In the study's folder; {key} is that of the trial of Dice, and {other} that of BCE."""
    make: Make
    words: str
    """It must say these."""
    command: str = "status tiny"
    code: int = 0
    never: str = "Traceback"


RECORD, PLAN, STUDY, STATUS, LEASE = (
    "trials/{key}/trial.json",
    "plan.json",
    "study.yaml",
    "report/status.json",
    "lease.json",
)
HISTORY, IMAGES, OBJECTS = (f"trials/{{key}}/{name}.parquet" for name in ("history", "images", "objects"))
TABLE: dict[str, Any] = {"command": "report tiny", "code": 2}
DONE, RUNS = "2 trials planned, 2 finished", "runs again"
SITUATIONS = (
    Situation(RECORD, says(outcome=None), "outcome: Field required"),
    Situation(RECORD, says(outcome="vanished"), "outcome: Input should be"),
    Situation(RECORD, says(outcome=["finished"]), "outcome: Input should be"),
    Situation(RECORD, says(schema=999), "schema: 999 is of a newer cellray, this one reads up to 1"),
    Situation(RECORD, says(schema="new"), "schema: Input should be a valid integer"),
    Situation(RECORD, says(schema=10**30), "trial.json"),
    Situation(RECORD, says(key=None), "key: Field required"),
    Situation(RECORD, says(key="0" * 16), "key: '0000000000000000' is another trial's"),
    Situation(RECORD, says(key=7), "key: Input should be a valid string"),
    Situation(RECORD, says(key="../../etc"), "is another trial's"),
    Situation(RECORD, says(label=None), "label: Field required"),
    Situation(RECORD, says(label=7), "label: Input should be a valid string"),
    Situation(RECORD, says(seed=None), "seed: Field required"),
    Situation(RECORD, says(seed="zero"), "seed: Input should be a valid integer"),
    Situation(RECORD, says(seed=0.5), "seed: Input should be a valid integer"),
    Situation(RECORD, says(seconds="long"), "seconds: Input should be an object"),
    Situation(RECORD, says(metrics=None), "it is finished, but has no scores"),
    Situation(RECORD, says(metrics={}), "it is finished, but has no scores"),
    Situation(RECORD, says(metrics=[1]), "metrics"),
    Situation(RECORD, says(metrics={"own": {"test": {"f1_iou": "high"}}}), "metrics.own.test.f1_iou"),
    Situation(RECORD, says(steps="many"), "steps: Input should be a valid integer"),
    Situation(RECORD, says(settings=3), "settings"),
    Situation(RECORD, says(provenance=[]), "provenance: Input should be an object"),
    Situation(RECORD, says(operating_point="middle"), "operating_point"),
    Situation(RECORD, says(reason="\x1b[2J[/red]"), DONE, never="\x1b"),
    Situation(RECORD, says(added_later={"deep": [1]}), DONE),
    Situation(RECORD, holds(b""), RUNS),
    Situation(RECORD, holds(b" \n"), RUNS),
    Situation(RECORD, holds(b"{}"), "Field required"),
    Situation(RECORD, holds(b"[]"), "Input should be an object"),
    Situation(RECORD, holds(b"null"), "Input should be an object"),
    Situation(RECORD, holds(b"7"), "Input should be an object"),
    Situation(RECORD, holds(b'"finished"'), "Input should be an object"),
    Situation(RECORD, holds(b"\x00" * 5000), RUNS),
    Situation(RECORD, holds(b"\x80\x81\xfe"), RUNS),
    Situation(RECORD, holds(b"{" * 100_000), RUNS),
    Situation(RECORD, holds(b'{"a":' * 100_000), RUNS),
    Situation(RECORD, becomes(lambda data: data[:-40]), RUNS),
    Situation(RECORD, becomes(lambda data: data * 2), RUNS),
    Situation(RECORD, becomes(lambda data: data.decode().encode("utf-16")), RUNS),
    Situation(RECORD, becomes(lambda data: codecs.BOM_UTF8 + data), RUNS),
    Situation(RECORD, is_gone, "1 of 2 planned trials are missing"),
    Situation(RECORD, points_to("nowhere"), "1 of 2 planned trials are missing"),
    Situation(RECORD, points_to("../{other}/trial.json"), "is another trial's"),
    Situation(RECORD, points_to("trial.json"), "Too many levels of symbolic links", code=2),
    Situation(RECORD, is_folder, "trial.json", code=2),
    Situation(HISTORY, table(lambda t: t.drop(columns="epoch")), "damaged (it lacks 'epoch')", **TABLE),
    Situation(HISTORY, table(lambda t: t.assign(epoch=None)), "damaged (an epoch has no number)", **TABLE),
    Situation(HISTORY, table(lambda t: t.assign(val_dice="high")), "damaged (could not convert", **TABLE),
    Situation(HISTORY, table(lambda t: t.assign(lr=[[1.0]] * len(t))), "damaged (setting an array element", **TABLE),
    Situation(IMAGES, table(lambda t: pd.concat([t, t])), "damaged (a test image has two rows)", **TABLE),
    Situation(IMAGES, table(lambda t: t.assign(n_true=float("nan"))), "damaged (n_true isn't a number", **TABLE),
    Situation(IMAGES, table(lambda t: t.assign(n_pred=0.5)), "damaged (n_pred isn't a number of cells", **TABLE),
    Situation(IMAGES, table(lambda t: t.assign(n_pred=1e300)), "damaged (n_pred isn't a number of cells", **TABLE),
    Situation(OBJECTS, table(lambda t: t.drop(columns="kind")), "damaged (it lacks 'kind')", **TABLE),
    Situation(OBJECTS, table(lambda t: t.assign(true_id="one")), "damaged ('>' not supported", **TABLE),
    Situation(PLAN, is_gone, "no sweep of this study was started there", code=2),
    Situation(PLAN, holds(b""), "plan.json is not a plan of trials", code=2),
    Situation(PLAN, holds(b"[1, 2]"), "plan.json is not a plan of trials", code=2),
    Situation(PLAN, holds(b'{"label": "Dice"}'), "plan.json is not a plan of trials", code=2),
    Situation(PLAN, holds(b'[{"label": "Dice"}]'), "0.seed: ", code=2),
    Situation(PLAN, holds(b"[" * 100_000), "plan.json is not a plan of trials", code=2),
    Situation(PLAN, is_folder, "plan.json", code=2),
    Situation(STUDY, is_gone, "no study 'tiny' in studies", code=2),
    Situation(STUDY, holds(b""), "study.yaml", code=2),
    Situation(STUDY, holds(b"\xff\xfe\x00"), "study.yaml", code=2),
    Situation(STUDY, holds(b"- a list"), "study.yaml", code=2),
    Situation(STUDY, holds(b"[" * 50_000), "study.yaml", code=2),
    Situation(STUDY, holds(b"#" * 2**21), "study.yaml", code=2),
    Situation(STUDY, holds(b"!!python/object/apply:os.system [touch mark]"), "study.yaml", code=2),
    Situation(STATUS, holds(b""), DONE),
    Situation(STATUS, holds(b"[]"), DONE),
    Situation(STATUS, holds(b'{"planned": 9}'), DONE),
    Situation(STATUS, holds(b'{"planned": 2, "table": []}'), DONE),
    Situation(STATUS, holds(b"[" * 100_000), DONE),
    Situation("report/verdict.txt", holds(b"\xff\xfe"), DONE),
    Situation(LEASE, holds(b"junk"), "no sweep is running"),
    Situation(LEASE, holds(b"{}"), "no sweep is running"),
    Situation(LEASE, lease(), "running (process 7 on elsewhere)"),
    Situation(LEASE, lease(seen=0.0), "no sweep is running"),
    Situation(LEASE, lease(seen="now"), "no sweep is running"),
    Situation(LEASE, lease(ahead_s=30), "running (process 7 on elsewhere)"),
    Situation(
        LEASE, lease(ahead_s=10**6), "running (process 7 on elsewhere)"
    ),  # our clock went back; a sweep waits a minute
    Situation("", in_circles, "has no report yet", command="fetch tiny --to there", code=2),
    Situation("", in_circles, DONE),
    Situation("nothing", lambda file: None, "no study 'tinier' in studies", command="status tinier", code=2),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger of two trials."""
    folder = tmp_path_factory.mktemp("ledger")
    (folder / "tiny.yaml").write_text(tiny_study(draw_images(folder / "disks")).dump_yaml())
    for label in ("Dice", "BCE"):
        done = run_here("train", "tiny.yaml", "--config", label, "--seed", "0", cwd=folder, env={})
        assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "disks")  # nothing here needs images
    (folder / "studies" / "tiny" / "report").mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", SITUATIONS, ids=lambda case: f"{Path(case.file).name}: {case.words}")
def test_what_is_wrong_in_a_ledger_is_named_and_costs_no_other_trial(whole, tmp_path, case):
    place = tmp_path / "place"
    shutil.copytree(whole, place, symlinks=True)
    keys = {record.label: record.key for record in Ledger(str(place / "studies"), "tiny").records()}
    file = place / "studies" / "tiny" / case.file.format(key=keys["Dice"])
    case.make(file)
    if file.is_symlink() and "{" in os.readlink(file):
        points_to(os.readlink(file).format(other=keys["BCE"]))(file)
    with limited():
        done = run_here(*case.command.split(), cwd=place, env={})
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == case.code, said
    assert case.words in said and case.never not in said and "Traceback" not in said, said
    assert not (place / "mark").exists()


@pytest.mark.slow
def test_settings_of_figures_beside_the_command_change_none(whole, tmp_path):
    """As Matplotlib takes them from a file `matplotlibrc` there."""

    def figures() -> dict[str, bytes]:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(whole, place)
        assert run_here("report", "tiny", cwd=place, env={}).returncode == 0
        return {path.name: path.read_bytes() for path in place.glob("studies/tiny/report/figures/*.svg")}

    plain = figures()
    with rc_context({"font.size": 30, "axes.linewidth": 9, "axes.grid": True, "lines.linewidth": 7}):
        assert figures() == plain != {}

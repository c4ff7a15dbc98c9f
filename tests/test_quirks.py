"""Rankings under single quirks, from a made-up ledger whose every score follows from counts on paper."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from report_data import key_of, plan_for, record
from typer.testing import CliRunner

from cellray.cli.app import app
from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.metrics import summarise
from cellray.record import PlannedTrial
from cellray.report.quirk_rankings import quirk_rankings, quirk_table
from cellray.results import Results
from cellray.study import Study, read_study

STUDY = """\
name: made_up
question: Which quirk moves what?
data:
  train: {name: drawn, synthetic: {n_trainval: 10}}
training: {steps: 10, batch_size: 4, crop_px: 96}
configurations:
  - {label: A, loss: {name: bce}}
  - {label: B, loss: {name: dice}}
  - {label: C, loss: {name: focal}}
  - {label: B twice, loss: {name: dice}, quirks: [double_activation]}
  - {label: B all, loss: {name: dice}, quirks: [double_activation, flattened_tversky, lr_test_ignored]}
seeds: [0, 5]
"""


def counts(tp: int, n_pred: int, many: int, spurious_many: int, near_many: int, point: str = "own") -> dict:
    """One image of ten cells: found one-to-one, predicted, and the counts of many-to-one matching."""
    row = {"set": "test", "image": "a", "point": point, "n_true": 10, "n_pred": n_pred}
    for rule in ("iou", "distance"):
        row |= {f"tp_{rule}": tp, f"fp_{rule}": n_pred - tp, f"fn_{rule}": 10 - tp, f"fp_{rule}_many": spurious_many}
    return row | {"tp_iou_many": many, "tp_distance_many": near_many, "distance_sum": 0.0, "reach_px": 5.0}


OWN = {
    "A": counts(6, 8, 10, 2, 10),  # F1 12/18 = 0.667, many-to-one 20/22 = 0.909; 2 too few; released error 0
    "B": counts(7, 10, 7, 3, 9),  # F1 14/20 = 0.7, many-to-one the same; none too few; released error 2
    "C": counts(9, 10, 9, 1, 9),  # F1 0.9, but the second seed collapses
    "B twice": counts(1, 10, 1, 9, 1),  # F1 0.1
    "B all": counts(4, 5, 10, 1, 10),  # many-to-one 20/21
}
SHARED = {"A": counts(10, 10, 10, 0, 10, "shared")}  # F1 1 at the published point


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path), "made_up")
    ledger.prepare()
    ledger.write("study.yaml", study().dump_yaml().encode())
    plan = []
    for label, own in OWN.items():
        for seed in (0, 5):
            lost = label == "C" and seed == 5
            shared = SHARED.get(label, {**own, "point": "shared"})
            sets = {"test": summarise(pd.DataFrame([own]))}
            outcome = "collapsed" if lost else "finished"
            ledger.write_record(record(label, seed, sets, outcome=outcome), {"images": pd.DataFrame([own, shared])}, {})
            plan.append(PlannedTrial(label, seed, key_of(label, seed), "e" * 16))
    ledger.write_plan(plan)
    return ledger


def study() -> Study:
    return read_study(STUDY, "study.yaml")


def results(ledger: Ledger) -> Results:
    return Results.now(ledger, plan_for(list(OWN), (0, 5)))


def orders(ledger: Ledger, metric: str) -> dict[str, list[str]]:
    rankings = quirk_rankings(results(ledger), study(), metric)
    return {r.quirk: [label for label, _, _ in r.order] for r in rankings}


def test_each_quirk_moves_what_it_should(ledger):
    by_f1 = orders(ledger, "f1_iou")
    assert by_f1["strict"] == ["B", "A", "C"]  # 0.7, 0.667, and 0.45 with the collapse counted as 0
    assert by_f1["double_activation"] == ["A", "C", "B"]  # B's twin has 0.1
    assert by_f1["double_activation + skip_collapsed"] == ["C", "A", "B"]  # C without its collapse: 0.9
    assert by_f1["many_to_one"] == ["A", "B", "C"]
    assert by_f1["shared_threshold"] == ["A", "B", "C"]
    assert by_f1["skip_collapsed"] == ["C", "B", "A"]
    assert by_f1["released_counts"] == by_f1["strict"]
    assert by_f1["all in judging"] == ["A", "C", "B"]  # 1.0 at the shared point, 0.9 without its collapse, 0.7
    assert by_f1["all"] == ["A", "B", "C"]  # the twin with all quirks has 20/21
    assert "lr_test_ignored" not in by_f1  # no configuration differs by that alone


def test_the_released_counts_turn_the_counting_error_round(ledger):
    by_mae = orders(ledger, "mae")
    assert by_mae["strict"][0] == "B"  # its spurious cells make up for those it misses
    assert by_mae["released_counts"][0] == "A"


def test_the_table_says_what_moved(ledger):
    rankings = quirk_rankings(results(ledger), study(), "f1_iou")
    table = quirk_table(rankings, "f1_iou")
    assert table.columns == ["quirk", "moved", "order"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["strict"] == ["0 of 3", "1 B 0.700, 2 A 0.667, 3 C 0.450"]
    assert rows["released_counts"] == rows["strict"]
    assert rows["skip_collapsed"] == ["3 of 3", "1 C 0.900 (was 3), 2 B 0.700 (was 1), 3 A 0.667 (was 2)"]


@pytest.mark.slow
def test_the_command_prints_it(ledger, tmp_path):
    result = CliRunner().invoke(app, ["audit", "quirks", "made_up", "--storage", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "1 C 0.900 (was 3), 2 B 0.700 (was 1)" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["audit", "quirks", "made_up", "--storage", str(tmp_path), "--json"])
    found = json.loads(result.output)
    assert [r["quirk"] for r in found["f1_iou"]][:2] == ["strict", "double_activation"]
    assert found["f1_iou"][0]["order"][0] == {"label": "B", "rank": 1.0, "mean": pytest.approx(0.7)}


def test_a_study_with_quirks_throughout_has_nothing_strict_to_compare_with(ledger):
    quirky = read_study(STUDY.replace("seeds:", "quirks: [many_to_one]\nseeds:"), "study.yaml")
    with pytest.raises(StudyError, match=r"runs with many_to_one: .*search_spaces/quirks\.yaml"):
        quirk_rankings(results(ledger), quirky, "f1_iou")

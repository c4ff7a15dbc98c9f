"""What figures read of a ledger beyond its records, against tables small enough to count by eye."""

from __future__ import annotations

import pandas as pd
import pyarrow.parquet as pq
import pytest
from report_data import key_of, plan_for, record, results_of, scores

from cellray.ledger import Ledger
from cellray.record import PlannedTrial
from cellray.report import make_tables
from cellray.report.protocol import one_liners
from cellray.results import Plan, Results
from cellray.results.details import read_details

TWO_SETS = {"test": scores(0.8), "far": scores(0.5)}


def image(name, n_true, n_pred, tp, *, set_name="test", point="own", crowded=0):
    """A row of images.parquet whose hits stay hits up to IoU 0.5 and are none above."""
    grid = {f"tp_iou_{tenth}0": tp if tenth <= 5 else 0 for tenth in range(1, 10)}
    return {
        "set": set_name, "point": point, "image": name, "n_true": n_true, "n_pred": n_pred, "tp_iou": tp,
        "fp_iou": n_pred - tp, "fn_iou": n_true - tp, "crowded": crowded, "unused": 7.0, **grid,
    }  # fmt: skip


def cell(name, kind, area_true, area_pred, set_name="test"):
    """A row of objects.parquet."""
    return {
        "set": set_name, "image": name, "true_id": int(area_true > 0), "pred_id": int(area_pred > 0),
        "area_true": area_true, "area_pred": area_pred, "kind": kind, "iou": 0.5,
    }  # fmt: skip


TABLES = {
    "history": pd.DataFrame({"epoch": [1, 2], "train_loss": [0.5, 0.4], "val_dice": [float("nan"), 0.7]}),
    "images": pd.DataFrame(
        [
            image("a", 4, 2, 1, crowded=2),
            image("b", 2, 2, 2),
            image("c", 0, 3, 0),
            image("a", 4, 4, 4, point="shared"),
            image("v", 9, 9, 9, set_name="val"),
            image("f", 2, 1, 1, set_name="far"),
        ]
    ),
    "objects": pd.DataFrame(
        [
            cell("a", "hit", 10, 10), cell("a", "missed", 10, 0), cell("a", "merged", 10, 0), cell("a", "split", 10, 0),
            cell("b", "hit", 10, 10), cell("b", "hit", 100, 90), cell("c", "spurious", 0, 10),
            cell("v", "hit", 10, 10, "val"), cell("f", "hit", 10, 10, "far"), cell("f", "missed", 10, 0, "far"),
        ]
    ),
}  # fmt: skip


class Counting(Ledger):
    """A ledger that remembers what was read."""

    def __init__(self, storage, study):
        super().__init__(storage, study)
        self.paths = []

    def read(self, path):
        if path.endswith(".parquet"):
            self.paths.append(path)
        return super().read(path)


def details_of(tmp_path, trials, plan=None):
    """Details of records with the tables above; `trials` maps (label, seed) to an outcome."""
    ledger = Counting(str(tmp_path), "made_up")
    for (label, seed), outcome in trials.items():
        tables = {} if outcome == "failed" else TABLES
        stored = record(label, seed, None if outcome == "failed" else TWO_SETS, outcome=outcome)
        ledger.write_record(stored, tables, {})
    plan = plan or plan_for(list(dict.fromkeys(t[0] for t in trials)), sorted({t[1] for t in trials}))
    return read_details(Results.now(ledger, plan)), ledger


def test_counts_are_those_of_the_own_point_without_validation(tmp_path):
    details, _ = details_of(tmp_path, {("A", 0): "finished"})
    assert details.counts_of("test")["A"][["image", "n_true", "n_pred"]].to_numpy().tolist() == [
        ["a", 4, 2], ["b", 2, 2], ["c", 0, 3],
    ]  # fmt: skip
    assert set(details.counts["set"]) == {"test", "far"}
    assert list(details.histories) == [("A", 0)]
    assert list(details.histories["A", 0].train_loss) == [0.5, 0.4]


def test_f1_over_iou_thresholds_is_a_micro_average(tmp_path):
    details, _ = details_of(tmp_path, {("A", 0): "finished"})
    curve = details.iou[details.iou["set"] == "test"].set_index("threshold")
    # 3 of 6 true cells found by 7 predictions
    assert curve.f1[0.5] == pytest.approx(2 * 3 / (6 + 7))
    assert curve.precision[0.1] == pytest.approx(3 / 7)
    assert curve.recall[0.1] == pytest.approx(3 / 6)
    assert curve.f1[0.6] == 0
    assert len(curve) == 9


def test_strata_by_crowding_and_size(tmp_path):
    details, _ = details_of(tmp_path, {("A", 0): "finished"})
    rows = details.strata[details.strata["set"] == "test"].set_index(["stratum", "level"])
    assert rows.f1_iou["crowding", "crowded"] == pytest.approx(2 * 1 / (4 + 2))
    assert rows.f1_iou["crowding", "sparse"] == 1
    assert rows.mae["crowding", "empty"] == 3
    # the mean area is 150 / 6 = 25: cells of 10 are small, the one of 100 is large
    assert rows.recall_iou["size", "small"] == pytest.approx(2 / 5)
    assert rows.recall_iou["size", "large"] == 1
    assert rows.missed["size", "small"] == pytest.approx(1 / 5)


def test_failed_and_collapsed_trials_count_as_worst_in_every_set_and_level(tmp_path):
    details, _ = details_of(
        tmp_path, {("A", 0): "finished", ("A", 1): "collapsed", ("B", 0): "failed", ("B", 1): "finished"}
    )
    for table, n_rows in ((details.iou, 2 * 9), (details.strata, 5 + 2)):
        lost = table[table.outcome != "finished"]
        assert sorted(set(zip(lost.label, lost.seed, strict=True))) == [("A", 1), ("B", 0)]
        assert len(lost) == 2 * n_rows
    assert (details.iou.f1[details.iou.outcome != "finished"] == 0).all()
    lost = details.strata[details.strata.outcome != "finished"]
    assert (lost.recall_iou == 0).all()
    assert (lost.f1_iou[lost.stratum == "crowding"] == 0).all()
    assert (lost.missed[lost.stratum == "size"] == 1).all()
    assert lost.mae.isna().all()  # never the perfect count of an empty image
    assert len(details.counts[details.counts.label == "A"]) == 2 * 4  # as predicted, the collapsed one too
    assert set(details.counts.seed[details.counts.label == "B"]) == {1}


def test_the_quirk_skip_collapsed_leaves_them_out(tmp_path):
    trials = {("A", 0): "finished", ("A", 1): "collapsed"}
    plan = plan_for(["A"], (0, 1))
    plan = Plan(plan.study, plan.question, plan.rank_by, plan.trials, skip_collapsed=True)
    details, _ = details_of(tmp_path, trials, plan)
    assert set(details.iou.seed) == {0}
    assert set(details.strata.seed) == {0}


def test_each_file_is_read_once_even_if_labels_share_a_trial(tmp_path):
    key = key_of("A", 0)
    plan = Plan("made_up", "?", "f1_iou", (PlannedTrial("A", 0, key), PlannedTrial("twin of A", 0, key)))
    details, ledger = details_of(tmp_path, {("A", 0): "finished"}, plan)
    assert sorted(ledger.paths) == [f"trials/{key}/{name}.parquet" for name in ("history", "images", "objects")]
    assert set(details.counts.label) == set(details.iou.label) == set(details.strata.label) == {"A", "twin of A"}


def test_a_missing_trial_is_nothing_and_an_empty_ledger_gives_empty_tables(tmp_path):
    details, _ = details_of(tmp_path, {("A", 0): "finished"}, plan_for(["A", "B"], (0, 1)))
    assert set(details.iou.label) == {"A"}
    assert set(details.iou.seed) == {0}
    nothing, _ = details_of(tmp_path / "other", {}, plan_for(["A"], (0,)))
    assert nothing.histories == {}
    for table in (nothing.counts, nothing.iou, nothing.strata):
        assert table.empty
        assert "label" in table
    assert nothing.counts_of("test") == {}


def test_records_of_an_older_version_give_what_they_have(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    images = TABLES["images"][["set", "point", "image", "n_true", "n_pred"]]
    ledger.write_record(record("A", 0, TWO_SETS), {"images": images}, {})
    plan = plan_for(["A"], (0,))
    details = read_details(Results.now(ledger, plan))
    assert len(details.counts) == 4
    assert details.iou.empty
    assert details.strata.empty
    assert details.histories == {}


def test_of_objects_only_needed_columns_are_read(tmp_path, monkeypatch):
    asked = []
    read = pq.ParquetFile.read

    def remember(file, columns=None, **how):
        asked.append(columns)
        return read(file, columns=columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "read", remember)
    details_of(tmp_path, {("A", 0): "finished"})
    of_objects = [set(columns) for columns in asked if columns is not None and "kind" in columns]
    assert of_objects == [set(TABLES["objects"]) - {"iou"}]


def test_the_protocol_says_which_trials_ran_compiled_steps():
    plan = plan_for(["Dice"], (0, 5, 25))
    compiled = {"compiler": "Inductor, g++ 12", "steps": 100}
    ran = [compiled, compiled | {"steps": 0}, None]  # the second went on without a compiler before its first epoch
    records = [record("Dice", seed, {"test": scores(0.7)}, compiled=c) for seed, c in zip((0, 5, 25), ran, strict=True)]
    tables = make_tables(results_of(records, plan))
    said = dict(one_liners(records, plan, tables))["Compiled"]
    assert said == "training steps of 1 of 3 trials, by Inductor, g++ 12; this moves last digits only"
    assert "Compiled" not in dict(one_liners(records[1:], plan, tables))

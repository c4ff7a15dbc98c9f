"""A study's results: each file of a ledger read once, and one rule for lost trials wherever they are compared."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from label_images import random_pair, row_of
from report_data import add_cells, key_of, plan_for, record, write_realistic
from tiny_study import tiny_study
from typer.testing import CliRunner

from cellray.cli.app import app
from cellray.forecast.effect import smallest_effect
from cellray.ledger import Ledger
from cellray.metrics import METRICS, summarise
from cellray.record import PlannedTrial
from cellray.report import build_report, load_tables
from cellray.results import Results, make_block, plan_of
from cellray.results.details import read_details
from cellray.results.samples import Sample
from cellray.scores import score_table
from cellray.study import EvaluationConfig

LABELS, SEEDS = ("A", "B", "C"), (0, 1, 2)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A study of three configurations and three seeds on six images, one trial collapsed, and its ledger."""
    folder = tmp_path_factory.mktemp("judged")
    losses = zip(LABELS, ("dice", "bce", "focal"), strict=True)
    configurations = [{"label": label, "loss": {"name": loss}} for label, loss in losses]
    study = tiny_study(folder, configurations=configurations, seeds=SEEDS)
    ledger, plan = Ledger(str(folder), study.name), []
    for i, label in enumerate(LABELS):
        for seed in SEEDS:
            pairs = [random_pair(100 * i + 10 * seed + image) for image in range(6)]
            own = [row_of(t, p, probs=np.linspace(0, 1, t.size).reshape(t.shape)) for t, p in pairs]
            rows = pd.DataFrame(own).assign(set="test", point="own", image=list("abcdef"), group="")
            lost = (label, seed) == ("B", 1)
            found = record(
                label, seed, None, metrics={"own": {"test": summarise(rows)}},
                outcome="collapsed" if lost else "finished",
            )  # fmt: skip
            ledger.write_record(found, {"images": rows}, {})
            plan.append(PlannedTrial(label, seed, key_of(label, seed), "e" * 16, record=found))
    ledger.write_plan(plan)
    return study, ledger, plan


@pytest.fixture(scope="module")
def reported(judged):
    """What the report of that study says of the smallest difference, by metric."""
    study, ledger, plan = judged
    found = load_tables(Results(ledger, plan_of(study, plan), ledger.records())).inference.detectable
    return found[found["set"] == "test"].set_index("metric").difference


@pytest.mark.parametrize("metric", METRICS)
def test_a_plan_and_a_report_tell_the_same_smallest_difference(judged, reported, metric):
    study, ledger, plan = judged
    by_metric = study.model_copy(update={"evaluation": EvaluationConfig(rank_by=metric)})
    planned = smallest_effect(ledger, by_metric, plan, n_seeds=3, n_units=6)
    if planned is None:
        assert np.isnan(reported[metric])
    else:
        assert planned.source == "variances of the study's own 3 seeds so far"
        assert planned.difference == pytest.approx(reported[metric], rel=1e-12)


class TestBlock:
    SAMPLES = {  # noqa: RUF012
        key: {("test", "own"): Sample(("a", "b"), {"mpe": np.array(values), "f1_iou": np.array(values)}, {})}
        for key, values in {"A0": (-6.0, -2.0), "A1": (1.0, 5.0), "B0": (0.25, 0.75), "B1": (9.0, 9.0)}.items()
    }

    def block(self, metric, outcomes=("finished",) * 4, samples=SAMPLES, skip_collapsed=False):
        trials = [PlannedTrial(key[0], int(key[1]), key) for key in ("A0", "A1", "B0", "B1")]
        values = {"A0": -4.0, "A1": 3.0, "B0": 0.5, "B1": 9.0}
        records = {
            key: record(key[0], int(key[1]), {"test": {metric: value}}, key=key, outcome=outcome)
            for (key, value), outcome in zip(values.items(), outcomes, strict=True)
        }
        scores = score_table(
            trials, records, ["test"], [metric], {("test", metric): 0.0 if metric == "f1_iou" else 50.0}
        )
        scores = scores[scores.point == "own"]
        return make_block(scores, samples, ["A", "B"], [0, 1], skip_collapsed=skip_collapsed).values.tolist()

    def test_a_signed_error_is_ranked_by_its_size(self):
        # less is better, so all are negative; the error of A0 is too few cells, and its units are turned
        assert self.block("mpe") == [[[-6, -2], [-1, -5]], [[-0.25, -0.75], [-9, -9]]]

    def test_a_lost_trial_is_worst_on_every_unit(self):
        lost = ("finished", "collapsed", "finished", "failed")
        assert self.block("mpe", lost) == [[[-6, -2], [-50, -50]], [[-0.25, -0.75], [-50, -50]]]
        assert self.block("f1_iou", lost)[1] == [[0.25, 0.75], [0, 0]]

    def test_under_the_quirk_a_lost_trial_is_missing(self):
        (_, collapsed), _ = self.block("f1_iou", ("finished", "collapsed") * 2, skip_collapsed=True)
        assert np.isnan(collapsed).all()

    def test_a_configuration_that_was_stopped_is_compared_with_nothing(self):
        stopped, other = self.block("f1_iou", ("finished", "stopped", "finished", "finished"))
        assert np.isnan(stopped).all() and other == [[0.25, 0.75], [9, 9]]

    def test_without_the_units_of_one_trial_only_scores_are_compared(self):
        few = {key: sample for key, sample in self.SAMPLES.items() if key != "A1"}
        assert self.block("mpe", samples=few) == [[[-4], [-3]], [[-0.5], [-9]]]


class Counted:
    """Counts what is opened below the storage."""

    def __init__(self, monkeypatch):
        self.reads: Counter[str] = Counter()
        plain = Ledger.read

        def read(ledger, path):
            self.reads[path] += 1
            return plain(ledger, path)

        monkeypatch.setattr(Ledger, "read", read)


@pytest.mark.slow
def test_a_report_opens_each_file_of_the_ledger_at_most_once(tmp_path, monkeypatch):
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_realistic(ledger, labels=[f"c{i}" for i in range(12)], seeds=(0, 5), external=(), n_images=6, epochs=4)
    study = tiny_study(tmp_path, name="made_up", seeds=[0, 5])
    ledger.write("study.yaml", study.dump_yaml().encode())
    ledger.write_plan(plan.trials)
    counted = Counted(monkeypatch)
    told = CliRunner().invoke(app, ["report", "made_up", "--storage", str(tmp_path)])
    assert told.exit_code == 0, told.output
    read = {path: n for path, n in counted.reads.items() if not path.startswith("report/")}
    assert sum(path.endswith("trial.json") for path in read) == 24
    assert sum(path.endswith("images.parquet") for path in read) == 24
    assert {path: n for path, n in read.items() if n > 1} == {}


def put_back(path: Path, data: bytes) -> None:
    """Other content without a trace: the same size, and the time of change that the file had."""
    found = path.stat()
    assert len(data) == found.st_size
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.slow
def test_a_report_made_again_after_one_more_trial_reads_the_tables_of_that_trial_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    ledger = Ledger(str(tmp_path), "made_up")
    lost = {("B", 0): "collapsed", ("C", 5): "failed"}
    plan = write_realistic(ledger, labels=["A", "B", "C"], seeds=(0, 5), n_images=6, epochs=3, bad=lost)
    add_cells(ledger)
    for path in (tmp_path / "made_up" / "trials").rglob("*"):
        os.utime(path, times=(time.time() - 3600,) * 2)
    trials = tmp_path / "made_up" / "trials"
    last = trials / plan.trials[0].key
    shutil.move(last, tmp_path / "later")

    def report() -> dict[str, bytes]:
        return {path: ledger.read(path) for path in build_report(Results.now(ledger, plan), export=True)}

    first = report()
    tables = list(trials.rglob("*.parquet"))
    assert len(tables) == 3 * 5
    whole = {path: path.read_bytes() for path in tables}
    for path in tables:  # what isn't read may as well be no table
        put_back(path, b"x" * len(whole[path]))
    assert report() == first
    shutil.move(tmp_path / "later", last)
    grown = report()
    assert "damaged" not in grown["report/index.html"].decode() and grown != first
    for path, data in whole.items():
        put_back(path, data)
    assert report() == grown
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "another"))
    assert report() == grown  # to the byte what a report is that reads everything

    key = key_of("A", 5)
    for name in ("history", "images", "objects"):  # a file that was changed is read, and what is wrong with it seen
        path = trials / key / f"{name}.parquet"
        path.write_bytes(b"x" * len(whole[path]))
        results = Results.now(ledger, plan)
        read_details(results)
        assert list(results.damaged) == [key] and f"{key}/{name}.parquet is damaged" in results.damaged[key]
        path.write_bytes(whole[path])


def test_what_a_lost_trial_counts_as_takes_one_image_table_a_split(tmp_path, monkeypatch):
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_realistic(ledger, labels=["A", "B", "C"], seeds=(0, 5), external=(), n_images=6, epochs=2)
    truth = ledger.table(plan.trials[0].key, "images")
    counts = truth[(truth.set == "test") & (truth.point == "own")].n_true
    counted = Counted(monkeypatch)
    results = Results.now(ledger, plan)
    assert results.nothing["test"]["mae"] == pytest.approx(counts.mean())
    assert sum(path.endswith("images.parquet") for path in counted.reads) == 2
    assert set(results.samples) == {trial.key for trial in plan.trials}
    assert max(counted.reads.values()) == 1


def test_two_studies_together_keep_their_own_records_apart(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    ledger.write_record(record("A", 0, {"test": {"f1_iou": 0.5}}), {}, {})
    results = Results.now(ledger, plan_for(["A", "B"], (0,)))
    both = Results.together([results, results], ["A"])
    assert [(t.label, t.key) for t in both.plan.trials] == [(f"{i}/A", f"{i}/{key_of('A', 0)}") for i in (0, 1)]
    assert [r.score("f1_iou") for r in both.records.values()] == [0.5, 0.5]

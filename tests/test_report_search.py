"""Stopped and dropped configurations: how they are ranked, compared and written about, by numbers worked by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_data import plan_for, record, results_of, scores
from tiny_study import tiny_study

from cellray.ledger import Ledger
from cellray.record import PlannedTrial
from cellray.report import Tables, build_report, format_table, make_tables
from cellray.report.comparing import compare_configurations
from cellray.report.inference import infer
from cellray.report.ranking import select
from cellray.results import Block, Plan, Results, plan_of
from cellray.results.details import read_details
from cellray.scores import score, worst_values
from cellray.statistics import friedman

SEEDS = (0, 1, 2)
OF_50 = {"settings": {"training": {"epochs": 50}}}


def stopped(label, seed, epoch, dice, **changed):
    """The record of a trial that was ended early."""
    return record(label, seed, None, outcome="stopped", epochs=epoch, validation_dice=dice, **OF_50, **changed)


def finished(label, *values):
    """A configuration's records, one a seed."""
    return [record(label, seed, {"test": scores(f1)}, **OF_50) for seed, f1 in enumerate(values)]


def ranked(tables, metric="f1_iou"):
    return select(tables.ranking, set_name="test", metric=metric).set_index("label")


def last_cells(tables):
    """Rank and last column of each configuration in the printed table."""
    return {row[1]: (row[0], row[-1]) for row in format_table(tables, metric="f1_iou").rows}


def searched():
    """Two whole configurations, three that were stopped, one without a record."""
    records = finished("whole", 0.8, 0.7, 0.75) + finished("poor", 0.1, 0.1, 0.1)
    records += [stopped("early", seed, 4, 0.60) for seed in SEEDS]
    records += [stopped("late", seed, 12, dice) for seed, dice in zip(SEEDS, (0.30, 0.40, 0.50), strict=True)]
    records += [stopped("later", 0, 12, 0.70), stopped("later", 1, 12, 0.68)]
    records += [record("later", 2, None, outcome="failed")]
    return records, plan_for(["early", "later", "nobody", "late", "poor", "whole"], SEEDS)


# Ranks.


@pytest.mark.parametrize("metric", ["f1_iou", "mae"])
def test_a_stopped_trial_counts_as_nothing(metric):
    for values in (None, {metric: 0.5}):
        outcome, _, counted, note = score(metric, "stopped", values, 9.0)
        assert (outcome, note) == ("stopped", "stopped")
        assert math.isnan(counted)


def test_a_stopped_trials_error_is_no_ones_worst():
    records = [record("A", 0, {"test": scores(0.5, error=2.0)})]
    records.append(record("B", 0, {"test": scores(0.5, error=90.0)}, outcome="stopped"))
    assert worst_values(records, ["test"], {}, ["mae"]) == {("test", "mae"): 2.0}


def test_stopped_configurations_follow_by_epoch_and_then_by_validation_dice():
    tables = make_tables(results_of(*searched()))
    rows = ranked(tables)
    # of the two at epoch 12, (0.7 + 0.68 + 0) / 3 = 0.46, with the failed seed as 0, beats (0.3 + 0.4 + 0.5) / 3 = 0.40
    assert list(rows.index) == ["whole", "poor", "later", "late", "early", "nobody"]
    assert rows["rank"].tolist()[:2] == [1, 2]
    gone = rows.loc[["later", "late", "early"]]
    assert gone[["rank", "mean", "sd", "worst", "survivors_mean", "survivors_rank"]].isna().all(axis=None)
    assert (gone.n == 0).all()
    assert gone.stopped_epoch.tolist() == [12, 12, 4]
    assert gone.stopped_of.tolist() == [50, 50, 50]
    assert gone.stopped_dice.tolist() == pytest.approx([0.46, 0.40, 0.60])


def test_the_printed_table_says_where_they_stopped():
    cells = last_cells(make_tables(results_of(*searched())))
    assert cells["late"] == ("–", "3 stopped at epoch 12 of 50, validation Dice 0.400")
    assert cells["later"] == ("–", "1 failed, 2 stopped at epoch 12 of 50, validation Dice 0.460")
    assert cells["nobody"] == ("–", "3 missing")
    assert cells["whole"] == ("1", "")


def test_one_stopped_seed_takes_its_configuration_out_of_the_ranks():
    records = [*finished("A", 0.9, 0.9), stopped("A", 2, 7, 0.5), *finished("B", 0.4, 0.4, 0.4)]
    tables = make_tables(results_of(records, plan_for(["A", "B"], SEEDS)))
    rows = ranked(tables)
    assert list(rows.index) == ["B", "A"]
    assert math.isnan(rows.loc["A", "rank"])
    assert rows.loc["A", "stopped_dice"] == 0.5  # the seeds that finished have no Dice at that epoch
    assert rows.loc["A", "n_finished"] == 2


def test_stopped_trials_are_not_missing_and_no_loss():
    records = [*finished("A", 0.9, 0.8, 0.7), stopped("B", 0, 7, 0.5), stopped("B", 1, 7, 0.5)]
    records.append(record("B", 2, None, outcome="collapsed"))
    tables = make_tables(results_of(records, plan_for(["A", "B"], SEEDS)))
    assert not ranked(tables).provisional.any()
    (note,) = format_table(tables, metric="f1_iou").notes
    assert note.startswith("1 configuration was stopped early and so not compared")


def test_without_a_validation_or_planned_epochs_the_table_says_what_it_knows():
    records = [record("A", 0, None, outcome="stopped", epochs=2)]
    tables = make_tables(results_of(records, replace(plan_for(["A"], seeds=(0,)), epochs=None)))
    assert last_cells(tables) == {"A": ("–", "1 stopped at epoch 2, validation Dice –")}


def test_the_planned_epochs_are_the_plans_where_the_record_is_silent():
    tables = make_tables(results_of([record("A", 0, None, outcome="stopped", epochs=2)], plan_for(["A"], seeds=(0,))))
    assert ranked(tables).stopped_of.item() == 10


# Statements about chance.


def by_seeds(records, plan) -> Tables:
    """Inference over seeds alone, as the images aren't there."""
    results = results_of(records, plan)
    return infer(make_tables(results), results)


def test_inference_leaves_stopped_configurations_out():
    records = finished("A", 0.80, 0.82, 0.81) + finished("B", 0.60, 0.61, 0.60)
    alone = by_seeds(records, plan_for(["A", "B"], SEEDS))
    records += finished("C", 0.9, 0.9) + [stopped("C", 2, 7, 0.9)] + [stopped("D", seed, 9, 0.2) for seed in SEEDS]
    tables = by_seeds(records, plan_for(["C", "A", "D", "B"], SEEDS))
    for name in ("pairs", "ranks", "stability", "friedman", "detectable"):
        pd.testing.assert_frame_equal(getattr(tables.inference, name), getattr(alone.inference, name))
    assert ranked(tables).loc[["C", "D"], ["low", "high", "rank_low", "rank_high"]].isna().all(axis=None)
    assert ranked(tables).rank_high.tolist()[:2] == [1, 2]  # of two, not of four


@pytest.mark.parametrize("left", [0, 1, 2])
def test_inference_copes_with_few_configurations_left(left):
    labels = ["A", "B", "C"]
    records = [r for label in labels[:left] for r in finished(label, 0.8, 0.7, 0.6)]
    records += [stopped(label, seed, 3, 0.1) for label in labels[left:] for seed in SEEDS]
    tables = by_seeds(records, plan_for(labels, SEEDS))
    assert list(tables.inference.ranks.label) == labels[:left]
    assert len(tables.inference.pairs_of("test", "f1_iou")) == left * (left - 1) // 2
    assert ranked(tables).low.notna().sum() == left


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 1])
def test_a_report_is_built_whatever_is_left(tmp_path, left):
    ledger = Ledger(str(tmp_path), "made_up")
    for r in finished("A", 0.8, 0.7, 0.6) if left else [stopped("A", seed, 3, 0.2) for seed in SEEDS]:
        ledger.write_record(r, {}, {})
    for seed in SEEDS:
        ledger.write_record(stopped("B", seed, 3, 0.1), {}, {})
    assert "report/index.html" in build_report(Results.now(ledger, plan_for(["A", "B"], SEEDS)), export=True)
    assert "3 stopped at epoch 3 of 50, validation Dice 0.100" in ledger.read("report/ranking.md").decode()


def test_a_stopped_configuration_is_not_compared(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    for r in finished("A", 0.8, 0.7, 0.6) + finished("B", 0.8, 0.7) + [stopped("B", 2, 3, 0.1)]:
        ledger.write_record(r, {}, {})
    plan = plan_for(["A", "B"], SEEDS)
    assert compare_configurations(Results.now(ledger, plan), "A", "B").rows[0][-1] == "the second stopped early"
    assert compare_configurations(Results.now(ledger, plan), "B", "A").rows[0][-1] == "the first stopped early"


def test_figures_get_the_histories_of_stopped_configurations_alone(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_dice": [0.1, 0.2, 0.1]})
    images = pd.DataFrame([{"set": "test", "point": "own", "image": "a", "n_true": 4, "n_pred": 3}])
    records = [*finished("A", 0.8, 0.7), stopped("A", 2, 3, 0.1), *finished("B", 0.8, 0.7, 0.6)]
    for r in records:
        ledger.write_record(r, {"history": history, "images": images if r.metrics else pd.DataFrame()}, {})
    plan = plan_for(["A", "B"], SEEDS)
    details = read_details(Results.now(ledger, plan))
    assert set(details.histories) == {(label, seed) for label in "AB" for seed in SEEDS}
    assert set(details.counts.label) == {"B"}


# Racing: some have more seeds than others.


def raced():
    """C was dropped after two seeds, A and B have four."""
    values = {"A": (0.80, 0.90, 0.70, 0.85), "B": (0.70, 0.82, 0.66, 0.79), "C": (0.40, 0.52)}
    records = [r for label, row in values.items() for r in finished(label, *row)]
    trials = tuple(PlannedTrial(r.label, r.seed, r.key) for r in records)
    plan = Plan("made_up", "Which?", "f1_iou", trials, dropped={"C": "dropped after 2 seeds"})
    return values, by_seeds(records, plan)


def test_a_dropped_configuration_keeps_its_mean_and_its_rank():
    _, tables = raced()
    rows = ranked(tables)
    assert rows["rank"].tolist() == [1, 2, 3]
    assert rows.loc["C", "mean"] == pytest.approx(0.46)
    assert rows.loc["C", "n_planned"] == 2
    assert not rows.provisional.any()
    table = format_table(tables, metric="f1_iou")
    assert table.rows[2][-1] == "dropped after 2 seeds"
    assert any(
        note.startswith("Configurations were given 2 to 4 seeds: means are over each one's own") for note in table.notes
    )


def test_pairs_are_compared_over_the_seeds_that_both_have():
    values, tables = raced()
    pairs = tables.inference.pairs_of("test", "f1_iou").set_index(["a", "b"])
    assert pairs.n_seeds.to_dict() == {("A", "B"): 4, ("A", "C"): 2, ("B", "C"): 2}
    a, b, c = (np.array(values[label]) for label in "ABC")
    assert pairs.loc[("A", "B"), "difference"] == pytest.approx((a - b).mean())
    assert pairs.loc[("A", "C"), "difference"] == pytest.approx((a[:2] - c).mean())
    assert not pairs.loc[("A", "C"), "decided"]  # two seeds decide nothing


def test_ranks_within_images_are_over_the_seeds_that_all_have():
    """With its own seeds B would look better than A on image 1 only because seed 1 is a lucky one."""
    by_image = {"A": [[0.9, 0.5], [1.0, 0.9]], "B": [[0.8, 0.4]], "C": [[0.1, 0.1]]}
    from cellray.report.inference import _means

    values = np.full((3, 2, 2), np.nan)
    for i, rows in enumerate(by_image.values()):
        values[i, : len(rows)] = rows
    means, images = _means(Block(values, is_median=False))
    assert images.tolist() == [[0.9, 0.5], [0.8, 0.4], [0.1, 0.1]]
    assert means.tolist() == pytest.approx([(0.9 + 0.5 + 1.0 + 0.9) / 4, 0.6, 0.1])
    assert friedman(images).n_images == 2


def test_what_could_be_detected_is_said_of_those_that_race():
    values, tables = raced()
    records = [r for label in "AB" for r in finished(label, *values[label])]
    pair = by_seeds(records, plan_for(["A", "B"], (0, 1, 2, 3)))
    assert tables.inference.detectable.difference.tolist() == pair.inference.detectable.difference.tolist()
    assert tables.inference.detectable.difference.notna().all()


def search_file(**states):
    """A search.json with the state of each label, and the seeds given."""
    return {
        "method": "racing", "metrics": ["f1_iou"], "stopping": None,
        "configurations": [
            {"label": label, "number": i, "source": "given", "parameters": {}, "values": [0.5], "seeds": seeds,
             "state": state, "reason": "", "epoch": None, "epochs": 50}
            for i, (label, (state, seeds)) in enumerate(states.items())
        ],
    }  # fmt: skip


def test_the_plan_knows_from_the_ledger_who_was_dropped(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    ledger.write_plan([PlannedTrial("A", 0, "k0", "e"), PlannedTrial("B", 0, "k1", "e")])
    plan = plan_of(tiny_study(tmp_path), ledger.plan())
    assert Results.now(ledger, plan).plan.dropped == {}
    found = search_file(A=("finished", 4), B=("dropped", 1), C=("dropped", 3), D=("stopped", 3))
    ledger.write("search.json", json.dumps(found).encode())
    plan = Results.now(ledger, plan).plan
    assert plan.dropped == {"B": "dropped after 1 seed", "C": "dropped after 3 seeds"}
    assert [t.key for t in plan.trials] == ["k0", "k1"]

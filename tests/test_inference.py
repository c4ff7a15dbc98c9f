"""Intervals, pairs and ranks of made-up studies whose images are known, and what is read of a ledger for them."""

from __future__ import annotations

import gc
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_images import random_pair, row_of
from pandas.testing import assert_frame_equal
from report_data import key_of, plan_for, record
from scipy import stats

from cellray.ledger import Ledger
from cellray.metrics import MEDIANS, METRICS, summarise
from cellray.record import PlannedTrial, TrialRecord
from cellray.report import Tables, inference, make_tables
from cellray.report.inference import infer, versus
from cellray.report.ranking import select
from cellray.results import Plan, Results, Samples
from cellray.results.samples import image_tables, parse_images
from cellray.statistics import PAIR_COLUMNS, crossed_mean, friedman, mean_median, median_pairs, nemenyi

# Hits of ten cells, ten predicted, so that an image's F1 and what it adds to the set's are a tenth of it.
HITS = {
    "A": [[9, 8, 10, 9], [8, 8, 9, 9], [10, 9, 9, 8]],
    "B": [[7, 8, 9, 6], [8, 6, 8, 7], [7, 7, 9, 9]],
    "C": [[6, 7, 8, 7], [7, 6, 7, 7], [5, 8, 9, 7]],
}
SEEDS = (0, 1, 2)
KEPT = ("f1_iou", "recall_iou", "mae", "medae", "mpe")
"""Metrics of the records; more would take longer and show nothing else."""


def image_rows(
    hits: Sequence[float] = (),
    *,
    n_pred: Sequence[float] | None = None,
    n_true: float = 10,
    names: Sequence[str] = tuple("abcdefghijklmnopqrst"),
    groups: Sequence[str] = ("",) * 20,
    set_name: str = "test",
    point: str = "own",
) -> pd.DataFrame:
    """Image rows of one set; with `n_pred` alone every prediction up to the true count is a hit."""
    found = np.full(len(hits), 10.0) if n_pred is None else np.array(n_pred, dtype=float)
    tp = np.array(hits, dtype=float) if len(hits) else np.minimum(found, n_true)
    return pd.DataFrame(
        {
            "set": set_name, "point": point, "image": names[: len(tp)], "group": groups[: len(tp)],
            "n_true": n_true, "n_pred": found, "tp_iou": tp, "fp_iou": found - tp, "fn_iou": n_true - tp,
        }
    )  # fmt: skip


def of_hits(hits: Mapping[str, Sequence[Sequence[float]]], **how: Any) -> dict[tuple[str, int], pd.DataFrame]:
    """The image rows of each label and seed."""
    return {(label, seed): image_rows(row, **how) for label, rows in hits.items() for seed, row in enumerate(rows)}


def of_counts(n_pred: Mapping[str, Sequence[Sequence[float]]], **how: Any) -> dict[tuple[str, int], pd.DataFrame]:
    return {(c, seed): image_rows(n_pred=row, **how) for c, rows in n_pred.items() for seed, row in enumerate(rows)}


def stored(label: str, seed: int, rows: pd.DataFrame, *, outcome: str = "finished", **changed: float) -> TrialRecord:
    """The record of a trial with these images."""
    metrics: dict[str, Any] = {}
    for (name, point), part in rows.groupby(["set", "point"]):
        values = summarise(part)
        metrics.setdefault(point, {})[name] = {key: values[key] for key in KEPT} | changed
    return record(label, seed, None, outcome=outcome, metrics=metrics)


class Files:
    """A ledger in memory that counts what is read."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.read_paths: list[str] = []

    def add(self, key: str, rows: pd.DataFrame) -> None:
        self.files[f"trials/{key}/images.parquet"] = rows.to_parquet(index=False)

    def reading(self, key: str, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def read_all(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        for path in paths:
            self.read_paths.append(path)
            yield self.files.get(path)


def trial(key: str, evaluation: str = "e", **changed: Any) -> TrialRecord:
    return record(key, 0, None, key=key, evaluation_key=evaluation, **{"metrics": {"own": {"test": {}}}} | changed)


def plan_with(*keys: str) -> Plan:
    return replace(plan_for([]), trials=tuple(PlannedTrial(key, 0, key) for key in keys))


def samples_in(ledger: Files, *records: TrialRecord, metric: str | None = None) -> Samples:
    """The samples of these trials, all of them planned."""
    return Results(ledger, plan_with(*(r.key for r in records)), records, metric=metric).samples


def inferred(
    trials: Mapping[tuple[str, int], pd.DataFrame],
    *,
    rank_by: str = "f1_iou",
    outcomes: Mapping[tuple[str, int], str] | None = None,
    changed: Mapping[tuple[str, int], Mapping[str, float]] | None = None,
    unread: Sequence[tuple[str, int]] = (),
    skip_collapsed: bool = False,
    only_ranking: bool = False,
    labels: Sequence[str] | None = None,
) -> Tables:
    """The tables of a study of these trials; all labels with all seeds are planned.

    Args:
        trials: Image rows by label and seed.
        rank_by: Metric.
        outcomes: Of trials that didn't finish.
        changed: Metrics that a record gives otherwise than its images.
        unread: Trials whose image rows aren't there.
        skip_collapsed: The quirk.
        only_ranking: As for `infer`.
        labels: In the order of the plan.
    """
    results = study(trials, rank_by, outcomes or {}, changed or {}, unread, skip_collapsed, labels)
    return infer(make_tables(results), results, only_ranking=only_ranking)


def study(trials, rank_by="f1_iou", outcomes=None, changed=None, unread=(), skip_collapsed=False, labels=None):
    """The results of these trials."""
    records = [
        stored(*who, rows, outcome=(outcomes or {}).get(who, "finished"), **(changed or {}).get(who, {}))
        for who, rows in trials.items()
    ]
    labels = labels or list(dict.fromkeys(label for label, _ in trials))
    plan = replace(plan_for(labels, SEEDS, rank_by), skip_collapsed=skip_collapsed)
    ledger = Files()
    for who, rows in trials.items():
        if who not in unread:
            ledger.add(key_of(*who), rows)
    return Results(ledger, plan, records)


def ranked(tables: Tables, metric: str = "f1_iou", set_name: str = "test", point: str = "own") -> pd.DataFrame:
    return select(tables.ranking, set_name=set_name, metric=metric, point=point).set_index("label")


def pair(tables: Tables, a: str, b: str, metric: str = "f1_iou", set_name: str = "test") -> Any:
    pairs = tables.inference.pairs_of(set_name, metric)
    (row,) = pairs[(pairs.a == a) & (pairs.b == b)].itertuples()
    return row


def ends(values: Any, span: float = math.inf) -> Any:
    """The interval's, cut where no difference can lie."""
    low, high = crossed_mean(np.array(values)).interval()
    return pytest.approx((max(float(low), -span), min(float(high), span)))


def clipped(values: Any) -> Any:
    """The same within the range of F1."""
    low, high = crossed_mean(np.array(values)).interval()
    return pytest.approx((max(float(low), 0), min(float(high), 1)))


def ends_of(tables: Tables, label: str) -> tuple[float, float]:
    row = ranked(tables).loc[label]
    return row.low, row.high


def by_seed(*scores: float) -> Any:
    """Student's interval over seeds."""
    found = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    return pytest.approx((found.low, found.high))


def f1(label: str) -> np.ndarray:
    return np.array(HITS[label]) / 10


# What is compared.


def test_intervals_and_pairs_are_those_of_seeds_and_images():
    tables = inferred(of_hits(HITS))
    best, second = ranked(tables).iloc[0], ranked(tables).iloc[1]
    assert (best.name, second.name) == ("A", "B")
    assert best["mean"] == pytest.approx(f1("A").mean())
    assert (best.low, best.high) == ends(f1("A"))
    row = pair(tables, "A", "B")
    assert (row.n_seeds, row.n_images) == (3, 4)
    assert row.difference == pytest.approx(f1("A").mean() - f1("B").mean())
    assert (row.low, row.high) == ends(f1("A") - f1("B"))
    assert row.p == pytest.approx(crossed_mean(f1("A") - f1("B")).p)


def test_a_micro_averaged_metric_is_compared_by_what_images_add_to_it():
    trials = {
        (label, seed): image_rows([n + seed % 2, n, 5], n_pred=[n + 2, n + 1, 9])
        for label, n in (("A", 7), ("B", 4))
        for seed in SEEDS
    }
    tables = inferred(trials)
    for label in "AB":
        scores = [summarise(trials[label, seed])["f1_iou"] for seed in SEEDS]
        row = ranked(tables).loc[label]
        assert row["mean"] == pytest.approx(np.mean(scores))
        assert row.low < row["mean"] < row.high
    difference = ranked(tables).loc["A", "mean"] - ranked(tables).loc["B", "mean"]
    assert pair(tables, "A", "B").difference == pytest.approx(difference)


def test_only_the_metric_that_ranks_has_all_columns_and_decides():
    pairs = inferred(of_hits(HITS)).inference.pairs
    assert list(pairs.columns) == ["set", "metric", *PAIR_COLUMNS]
    ranks_it = pairs.metric == "f1_iou"
    assert pairs[ranks_it].superiority.notna().all()
    assert pairs[pairs.metric == "recall_iou"].superiority.isna().all()
    assert pairs[ranks_it].p_adjusted.notna().all()
    assert pairs[pairs.metric == "recall_iou"].p.notna().all()
    assert not pairs[pairs.metric == "recall_iou"].decided.any()


def test_the_shared_point_has_intervals_of_its_own_images():
    lower = {label: (np.array(rows) - 2).tolist() for label, rows in HITS.items()}
    own, shared = of_hits(HITS), of_hits(lower, point="shared")
    tables = inferred({who: pd.concat([own[who], shared[who]]) for who in own})
    row = ranked(tables, point="shared").loc["B"]
    assert (row.low, row.high) == ends(f1("B") - 0.2)
    assert math.isnan(row.rank_low)  # ranks are those of the own point


def test_external_sets_are_judged_by_themselves():
    turned = {"A": HITS["C"], "B": HITS["B"], "C": HITS["A"]}
    own, other = of_hits(HITS), of_hits(turned, set_name="cfos", names=["w", "x", "y", "z"])
    tables = inferred({who: pd.concat([own[who], other[who]]) for who in own})
    assert pair(tables, "C", "A", set_name="cfos").p == pytest.approx(pair(tables, "A", "C").p)
    assert list(tables.inference.ranks["set"].unique()) == ["test", "cfos"]


# Lost, missing and odd trials.


@pytest.mark.parametrize("outcome", ["collapsed", "failed"])
def test_a_lost_trial_counts_as_worst_on_every_image(outcome):
    trials = of_hits(HITS)
    trials["A", 1] = image_rows(n_pred=[0, 0, 0, 0])
    tables = inferred(trials, outcomes={("A", 1): outcome})
    counted = f1("A")
    counted[1] = 0
    assert ranked(tables).loc["A", "mean"] == pytest.approx(counted.mean())
    assert ends_of(tables, "A") == clipped(counted)
    found = pair(tables, "B", "A")
    assert (found.n_seeds, found.n_images) == (3, 4)
    assert (found.low, found.high) == ends(f1("B") - counted, 1)


def test_a_collapse_that_predicts_well_counts_as_worst_all_the_same():
    tables = inferred(of_hits(HITS), outcomes={("A", 1): "collapsed"})
    counted = f1("A")
    counted[1] = 0
    assert pair(tables, "B", "A").difference == pytest.approx(f1("B").mean() - counted.mean())


def test_a_failed_trial_without_images_is_lost_too():
    trials = of_hits(HITS)
    tables = inferred(trials, outcomes={("C", 2): "failed"}, unread=[("C", 2)])
    counted = f1("C")
    counted[2] = 0
    assert (pair(tables, "A", "C").low, pair(tables, "A", "C").high) == ends(f1("A") - counted, 1)


def test_a_metric_that_is_no_number_counts_as_worst():
    tables = inferred(of_hits(HITS), changed={("B", 0): {"f1_iou": math.nan}})
    counted = f1("B")
    counted[0] = 0
    assert ranked(tables).loc["B", "n_nan"] == 1
    assert (pair(tables, "A", "B").low, pair(tables, "A", "B").high) == ends(f1("A") - counted, 1)


def test_a_lost_trials_counting_error_is_the_worst_seen_on_every_image():
    # errors 1 and 3; predicting nothing makes 10, and one trial of B 14
    counts = {"A": [[11, 13]] * 3, "B": [[24, 24], [13, 11], [11, 11]]}
    tables = inferred(of_counts(counts), rank_by="mae", outcomes={("A", 2): "collapsed"})
    errors = np.array([[1.0, 3.0], [1.0, 3.0], [14.0, 14.0]])
    assert ranked(tables, "mae").loc["A", "mean"] == pytest.approx(errors.mean())
    other = np.array([[14.0, 14.0], [3.0, 1.0], [1.0, 1.0]])
    row = pair(tables, "B", "A", "mae")
    assert row.difference == pytest.approx(errors.mean() - other.mean())
    assert (row.low, row.high) == ends(errors - other)


def test_missing_trials_leave_common_seeds():
    trials = of_hits(HITS)
    del trials["B", 1]
    tables = inferred(trials)
    row = pair(tables, "A", "B")
    assert row.n_seeds == 2
    assert (row.low, row.high) == ends((f1("A") - f1("B"))[[0, 2]])
    assert pair(tables, "A", "C").n_seeds == 3
    assert ends_of(tables, "B") == clipped(f1("B")[[0, 2]])


def test_under_the_quirk_lost_trials_are_left_out():
    tables = inferred(of_hits(HITS), outcomes={("A", 0): "collapsed"}, skip_collapsed=True)
    row = pair(tables, "A", "B")
    assert row.n_seeds == 2
    assert (row.low, row.high) == ends((f1("A") - f1("B"))[1:])
    assert ends_of(tables, "A") == clipped(f1("A")[1:])


def test_a_configuration_without_any_trial_has_no_interval_and_no_rank():
    tables = inferred(of_hits(HITS), labels=list("ABCD"))
    assert ranked(tables).loc["D", ["rank", "low", "high", "rank_low", "rank_high"]].isna().all()
    assert "D" not in set(tables.inference.pairs.a) | set(tables.inference.pairs.b)
    assert ranked(tables).loc["A", "rank_high"] <= 3


def test_a_study_without_records_has_empty_tables():
    plan = plan_for(list("AB"), SEEDS)
    tables = infer(make_tables(Results(Files(), plan)), Results(Files(), plan))
    assert len(tables.inference.pairs) == 0
    assert tables.ranking[["low", "high", "rank_low", "rank_high"]].isna().all(axis=None)


def test_one_configuration_has_an_interval_and_no_pairs():
    tables = inferred(of_hits({"A": HITS["A"]}))
    assert len(tables.inference.pairs) == 0
    assert list(tables.inference.pairs.columns) == ["set", "metric", *PAIR_COLUMNS]
    assert ends_of(tables, "A") == ends(f1("A"))


# What the units are.


def test_images_of_one_group_are_one_unit():
    tables = inferred(of_hits(HITS, groups=["mouse 1", "mouse 2", "mouse 1", "mouse 2"]))
    of_group = {label: np.stack([f1(label)[:, ::2].mean(1), f1(label)[:, 1::2].mean(1)], axis=1) for label in HITS}
    row = pair(tables, "A", "B")
    assert row.n_images == 2
    assert (row.low, row.high) == ends(of_group["A"] - of_group["B"])
    assert tables.inference.unit == "group of images"
    assert inferred(of_hits(HITS)).inference.unit == "image"


def test_an_image_without_a_group_is_a_unit_even_if_it_is_called_like_one():
    ledger = Files()
    ledger.add("one", image_rows([9, 8, 7], names=["x", "y", "z"], groups=["y", "", "y"]))
    sample = samples_in(ledger, trial("one"))["one"]["test", "own"]
    assert len(sample.units) == 2
    assert sorted(sample.values["f1_iou"]) == pytest.approx([0.8, 0.8])  # 9 and 7 together, and 8


def test_validation_images_that_differ_between_seeds_leave_seeds_only():
    names = [list("abcd"), list("cdef"), list("efgh")]
    trials = {
        (label, seed): pd.concat([image_rows(row), image_rows(row, set_name="val", names=names[seed])])
        for label, rows in HITS.items()
        for seed, row in enumerate(rows)
    }
    tables = inferred(trials)
    row = pair(tables, "A", "B", set_name="val")
    assert (row.n_seeds, row.n_images) == (3, 1)
    assert (row.low, row.high) == by_seed(*(f1("A") - f1("B")).mean(1))
    best = ranked(tables, set_name="val").loc["A"]
    assert (best.low, best.high) == by_seed(*f1("A").mean(1))
    assert pair(tables, "A", "B").n_images == 4  # the test images are the same


def test_without_the_images_of_one_trial_only_seeds_are_compared():
    tables = inferred(of_hits(HITS), unread=[("C", 0)])
    row = pair(tables, "A", "B")
    assert row.n_images == 1
    assert (row.low, row.high) == by_seed(*(f1("A") - f1("B")).mean(1))


def test_images_stored_in_another_order_are_the_same_images():
    trials = of_hits(HITS)
    trials["A", 1] = trials["A", 1].iloc[::-1]
    row = pair(inferred(trials), "A", "B")
    assert (row.low, row.high) == ends(f1("A") - f1("B"))


# Metrics of other kinds.


def test_an_error_is_compared_the_other_way_around():
    counts = {"A": [[9, 12], [8, 11], [10, 11]], "B": [[5, 16], [6, 13], [7, 14]]}
    tables = inferred(of_counts(counts), rank_by="mae")
    errors = {label: np.abs(10.0 - np.array(rows)) for label, rows in counts.items()}
    row = pair(tables, "A", "B", "mae")
    assert row.difference == pytest.approx(errors["B"].mean() - errors["A"].mean())
    assert (row.low, row.high) == ends(errors["B"] - errors["A"])
    other = ranked(tables, "mae").loc["B"]
    assert (other.low, other.high) == ends(errors["B"])


def test_a_signed_error_is_compared_by_its_size():
    # too few by half in one seed is as bad as too many by half in the other
    counts = {"A": [[5, 5, 6], [15, 15, 14], [5, 6, 5]], "B": [[10, 9, 9], [9, 10, 9], [9, 9, 10]]}
    tables = inferred(of_counts(counts), rank_by="mpe")
    a = np.array([[50, 50, 40], [50, 50, 40], [50, 40, 50]])
    b = np.array([[0, 10, 10], [10, 0, 10], [10, 10, 0]])
    row = pair(tables, "B", "A", "mpe")
    assert row.difference == pytest.approx(a.mean() - b.mean())
    assert (row.low, row.high) == ends(a - b)
    worse = ranked(tables, "mpe").loc["A"]
    assert worse["mean"] == pytest.approx(a.mean())
    assert (worse.low, worse.high) == ends(a)


def test_medians_have_order_statistic_intervals():
    counts = {
        "A": [[9, 12, 10, 11], [8, 11, 10, 10], [10, 11, 9, 9]],
        "B": [[2, 18, 1, 4], [3, 2, 3, 19], [2, 4, 2, 5]],
    }
    tables = inferred(of_counts(counts), rank_by="medae")
    medians = {label: mean_median(np.abs(10.0 - np.array(rows))) for label, rows in counts.items()}
    for label, (mean, low, high) in medians.items():
        row = ranked(tables, "medae").loc[label]
        assert row["mean"] == pytest.approx(mean)
        assert (row.low, row.high) == pytest.approx((max(low, 0), high))
    expected = median_pairs(list(medians.values()), list(medians), 3).iloc[0]
    row = pair(tables, "A", "B", "medae")
    assert (row.difference, row.low, row.high, row.p) == pytest.approx(
        tuple(expected[["difference", "low", "high", "p"]])
    )
    assert row.decided == expected.decided


def test_intervals_end_where_the_metric_does():
    tables = inferred(of_hits({"A": [[10, 10], [10, 9], [4, 10]], "B": [[1, 0], [0, 0], [0, 4]]}))
    f1_rows, mae = ranked(tables), ranked(tables, "mae")
    assert crossed_mean(np.array([[1, 1], [1, 0.9], [0.4, 1]])).interval()[1] > 1
    assert (f1_rows.high <= 1).all() and f1_rows.loc["A", "high"] == 1
    assert (f1_rows.low >= 0).all() and f1_rows.loc["B", "low"] == 0
    assert list(mae.low) == [0, 0] and list(mae.high) == [0, 0]


def test_an_unbounded_error_may_exceed_1_but_not_fall_below_0():
    row = ranked(inferred(of_counts({"A": [[10, 18], [10, 10], [12, 10]]})), "mae").loc["A"]
    assert row.low == 0
    assert row.high > 1


def test_a_difference_of_shares_lies_between_minus_1_and_1():
    pairs = inferred(of_hits({"A": [[10, 10]] * 2, "B": [[0, 0], [10, 10]]})).inference.pairs_of("test", "f1_iou")
    assert (pairs.low.item(), pairs.high.item()) == (-1, 1)  # mean 0.5, but with two seeds 12.7 x 0.5 on either side


# The tables.


def test_the_ranking_keeps_its_order_and_its_rows():
    trials = of_hits(HITS)
    trials["A", 2] = image_rows(n_pred=[0] * 4)
    results = study(trials, outcomes={("A", 2): "collapsed"})
    plain = make_tables(results)
    found = infer(plain, results).ranking
    new = ["low", "high", "rank_low", "rank_high", "kept_mean", "kept_low", "kept_high"]
    assert set(found.columns) == {*plain.ranking.columns, *new}
    before = plain.ranking.drop(columns=new, errors="ignore")
    assert_frame_equal(found[list(before.columns)], before)


def test_the_ranks_of_the_ranking_are_those_of_the_pairs():
    tables = inferred(of_hits({"A": [[10, 9, 9, 10]] * 3, "B": [[5, 4, 4, 5]] * 3, "C": [[5, 5, 4, 4]] * 3}))
    rows = ranked(tables)
    # A is far ahead of both, which are alike
    assert list(rows.rank_low) == [1, 2, 2]
    assert list(rows.rank_high) == [1, 3, 3]
    ranks = tables.inference.ranks.set_index("label")
    assert list(ranks.loc[["A", "B", "C"], "rank_low"]) == [1, 2, 2]
    assert list(ranks.loc[["A", "B", "C"], "mean_rank"]) == [1, 2.5, 2.5]  # 2.5 and 2.5, 3 2, 2.5 2.5, 2 3


def test_stability_and_friedman_are_those_of_the_metric_that_ranks():
    tables = inferred(of_hits(HITS))
    found = tables.inference
    assert len(found.stability) == 9
    assert found.stability.groupby("rank").share.sum().to_numpy() == pytest.approx(np.ones(3), abs=0.05)
    assert found.stability.set_index(["label", "rank"]).share["A", 1] > 0.9
    expected = friedman(np.stack([f1(label).mean(0) for label in HITS]))
    (test,) = found.friedman.itertuples()
    assert (test.set, test.n_images, test.statistic) == ("test", 4, pytest.approx(expected.statistic))
    assert test.critical_difference == pytest.approx(nemenyi(3, 4))


def test_the_detectable_difference_is_that_of_the_leaders_pairs():
    found = inferred(of_hits(HITS)).inference.detectable.set_index("metric").difference
    both = [crossed_mean(f1("A") - f1(other)) for other in "BC"]
    sizes = [float((d.critical(0.05) + d.critical(0.4)) * d.se) for d in both]
    assert found["f1_iou"] == pytest.approx(np.mean(sizes))  # the median of two
    assert math.isnan(found["medae"])


def test_only_the_ranking_is_made_where_time_is_short():
    trials = of_hits(HITS)
    full, short = inferred(trials), inferred(trials, only_ranking=True)
    expected = full.inference.pairs_of("test", "f1_iou").reset_index(drop=True)
    assert_frame_equal(short.inference.pairs, expected, check_dtype=False)
    assert_frame_equal(ranked(short), ranked(full))
    rest = short.ranking[(short.ranking.metric != "f1_iou") | (short.ranking.point != "own")]
    assert rest[["low", "high", "rank_low", "rank_high"]].isna().all(axis=None)


def test_among_many_configurations_only_the_leaders_pairs_are_made(monkeypatch):
    monkeypatch.setattr(inference, "MOST_COMPARED", 2)
    tables = inferred(of_hits(HITS))
    pairs = tables.inference.pairs_of("test", "f1_iou")
    assert list(zip(pairs.a, pairs.b, strict=True)) == [("A", "B"), ("A", "C")]
    medians = tables.inference.pairs_of("test", "medae")
    assert len(medians) == 2 and len(set(medians.a)) == 1
    assert ranked(tables).rank_low.isna().all()
    assert list(ranked(tables)["rank"]) == [1, 2, 3]
    assert len(tables.inference.stability) == len(tables.inference.friedman) == 0


# A set that one configuration alone was judged on must not turn the numbers of the other sets into objects.
def test_pairs_keep_their_types_beside_a_set_without_pairs():
    trials = of_hits(HITS)
    for seed in SEEDS:
        trials["A", seed] = pd.concat([trials["A", seed], image_rows(HITS["A"][seed], set_name="cfos")])
    pairs = inferred(trials).inference.pairs
    assert pairs.decided.dtype == bool
    assert pairs.p.dtype == float


# A live table of a study whose records lack the metric that ranks has nothing to put together.
def test_records_without_the_metric_that_ranks_have_no_intervals():
    tables = inferred(of_hits(HITS), rank_by="pq", only_ranking=True)
    assert tables.inference is None


# Chosen couples.


def test_chosen_couples_are_adjusted_over_themselves():
    results = study(of_hits(HITS))
    tables = make_tables(results)
    table = versus(tables, results.samples, [("C", "A"), ("B", "C")], set_name="test", metric="f1_iou")
    assert list(zip(table.a, table.b, strict=True)) == [("A", "C"), ("B", "C")]
    alone = [float(crossed_mean(f1(a) - f1(b)).p) for a, b in ("AC", "BC")]
    assert list(table.p) == pytest.approx(alone)
    least, most = sorted(alone)
    assert sorted(table.p_adjusted) == pytest.approx(sorted([2 * least, max(2 * least, most)]))


def test_couples_of_medians_are_compared_as_in_the_report():
    counts = {"A": [[9, 12, 10], [8, 11, 10], [10, 11, 9]], "B": [[2, 18, 1], [3, 2, 3], [2, 4, 7]]}
    results = study(of_counts(counts))
    tables = make_tables(results)
    row = versus(tables, results.samples, [("A", "B")], set_name="test", metric="medae").iloc[0]
    assert (row.a, row.n_seeds) == ("A", 3)
    assert row.difference == pytest.approx(6)  # medians 1 1 1 and 8 7 6
    # of three images the ends are the least and the greatest: means 0 and 5/3 for A, 6 and 25/3 for B
    seeds = 4.3027 / math.sqrt(3)  # Student's half-width of B's medians, of SD 1
    below, above = math.hypot(7 - 6, seeds), math.hypot(25 / 3 - 7, seeds)
    ends_of_both = (6 - math.hypot(below, 5 / 3 - 1), 6 + math.hypot(above, 1 - 0))
    assert (row.low, row.high) == pytest.approx(ends_of_both, abs=1e-4)
    report = infer(tables, results).inference.pairs_of("test", "medae").iloc[0]
    assert (row.low, row.high, row.p) == (report.low, report.high, report.p)


# The couple alone is decided, which is when nothing more is asked of it.
def test_couples_that_are_undecided_together_are_not_said_to_need_nothing():
    # Student's t 4.85 and 5.20 over three seeds: p 0.040 and 0.035, twice 0.035 is too much
    behind = {"B": (1.8, 2.8, 3.8), "C": (2.0, 3.0, 4.0)}
    hits = {"A": [[9.0]] * 3} | {label: [[9 - d] for d in differences] for label, differences in behind.items()}
    results = study(of_hits(hits))
    tables = make_tables(results)
    table = versus(tables, results.samples, [("A", "B"), ("A", "C")], set_name="test", metric="f1_iou")
    assert (table.p < 0.05).all() and not table.decided.any()
    assert not (table.more_seeds == 0).any()


# What is read.


def test_only_new_and_newly_judged_trials_are_read():
    ledger = Files()
    ledger.add("one", image_rows([9, 8]))
    ledger.add("two", image_rows([7, 8]))
    results, plan = Results(ledger, plan_with()), plan_with("one", "two")
    for records in ([trial("one")], [trial("one"), trial("two")]):
        results.update(plan, records)
        assert set(results.samples) == {r.key for r in records}
    assert ledger.read_paths == ["trials/one/images.parquet", "trials/two/images.parquet"]
    ledger.add("one", image_rows([5, 6]))
    results.update(plan, [trial("one", "new"), trial("two")])
    found = results.samples
    assert ledger.read_paths[2:] == ["trials/one/images.parquet"]
    assert found["one"]["test", "own"].values["f1_iou"] == pytest.approx([0.5, 0.6])
    assert set(found) == {"one", "two"}


def test_trials_that_are_no_longer_planned_are_forgotten():
    ledger = Files()
    ledger.add("one", image_rows([9, 8]))
    results = Results(ledger, plan_with("one"), [trial("one")])
    assert set(results.samples) == {"one"}
    results.update(plan_with(), [])
    assert results.samples == {}
    results.update(plan_with("one"), [trial("one")])
    assert set(results.samples) == {"one"} and len(ledger.read_paths) == 2


def test_trials_without_images_or_metrics_have_no_sample():
    ledger = Files()
    ledger.add("failed", image_rows([9, 8]))
    assert samples_in(ledger, trial("lacks images"), trial("failed", metrics={})) == {"lacks images": {}}


def test_a_trial_has_one_sample_for_each_set_and_point():
    ledger = Files()
    parts = [image_rows([9], set_name=name, point=point) for name in ("test", "val") for point in ("own", "shared")]
    ledger.add("one", pd.concat(parts))
    found = samples_in(ledger, trial("one"))["one"]
    assert set(found) == {("test", "own"), ("test", "shared"), ("val", "own"), ("val", "shared")}


@pytest.mark.parametrize("metric", METRICS)
def test_one_metric_read_alone_is_the_same(metric):
    ledger = Files()
    own = [
        row_of(true, pred, probs=np.linspace(0, 1, true.size).reshape(true.shape))
        for true, pred in map(random_pair, range(6))
    ]
    names = {"set": "test", "point": "own", "image": list("fedcba"), "group": ["", "", "g", "", "g", ""]}
    rows = pd.DataFrame(own).assign(**names)
    ledger.add("one", pd.concat([rows, rows.assign(point="shared"), rows.assign(set="val")]))
    (alone,) = samples_in(ledger, trial("one"), metric=metric)["one"].items()
    whole = samples_in(ledger, trial("one"))["one"]["test", "own"]
    assert alone[0] == ("test", "own")
    assert alone[1].units == whole.units
    if metric in MEDIANS:
        assert alone[1].images[metric] == pytest.approx(whole.images[metric])
    else:
        assert alone[1].values[metric] == pytest.approx(whole.values[metric])
        assert whole.values[metric].mean() == pytest.approx(summarise(rows)[metric])


# More trials than are read at once; some share their images, one has others and one lacks columns.
def test_trials_read_together_have_the_samples_that_each_has_alone():
    rng = np.random.default_rng(5)
    tables = {f"{i:03d}": image_rows(rng.integers(0, 10, 6), groups=("", "", "g", "", "g", "")) for i in range(70)}
    tables["001"] = image_rows([9, 8, 7])
    tables["002"] = tables["002"].drop(columns=["tp_iou", "fp_iou", "fn_iou"])
    ledger = Files()
    for key, rows in tables.items():
        ledger.add(key, rows)
    together = samples_in(ledger, *map(trial, tables))
    for key in tables:
        alone, found = samples_in(ledger, trial(key))[key]["test", "own"], together[key]["test", "own"]
        assert (found.units, list(found.values), list(found.images)) == (
            alone.units, list(alone.values), list(alone.images),
        )  # fmt: skip
        for of in ("values", "images"):
            for name, values in getattr(alone, of).items():
                np.testing.assert_array_equal(getattr(found, of)[name], values)
    assert len(together["001"]["test", "own"].units) == 3


def test_one_damaged_table_among_those_read_together_is_named_and_the_others_count(tmp_path):
    """Its columns are whole, but what should be a name is no text: that shows when all are converted."""
    ledger, intact = Ledger(str(tmp_path), "made_up"), image_rows([9, 8])
    no_text = pa.array([b"\xff\xfe"] * len(intact)).cast(pa.string(), safe=False)
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(intact).set_column(2, "image", no_text), stream)
    for key in ("one", "two", "six"):
        data = stream.getvalue() if key == "two" else intact.to_parquet(index=False)
        ledger.write(f"trials/{key}/images.parquet", data)
    results = Results(ledger, plan_with("one", "two", "six"), map(trial, ("one", "two", "six")))
    results.drop_damaged()
    assert results.samples.keys() == {"one", "six"}
    assert list(results.damaged) == ["two"] and "trials/two/images.parquet is damaged" in results.damaged["two"]


@pytest.mark.slow
def test_what_was_read_of_a_file_goes_without_a_search_for_garbage():
    data = image_rows([9, 8]).to_parquet(index=False)

    def left() -> int:
        gc.collect()
        for _ in range(5):
            image_tables([parse_images(data)])
        return gc.collect()

    gc.disable()
    try:
        assert 0 in [left() for _ in range(4)]  # imports of the first reading, and threads of other tests, leave some
    finally:
        gc.enable()


def test_an_older_table_has_neither_groups_nor_all_columns():
    ledger = Files()
    ledger.add("one", image_rows([9, 8]).drop(columns=["group", "tp_iou", "fp_iou", "fn_iou"]))
    sample = samples_in(ledger, trial("one"))["one"]["test", "own"]
    assert len(sample.units) == 2
    assert "mae" in sample.values and "f1_iou" not in sample.values


def test_what_units_add_stands_in_the_order_of_their_names():
    ledger = Files()
    ledger.add("one", image_rows([9, 8, 7], names=["b", "c", "a"]))
    sample = samples_in(ledger, trial("one"))["one"]["test", "own"]
    assert [name.split()[-1] for name in sample.units] == ["a", "b", "c"]
    assert sample.values["f1_iou"] == pytest.approx([0.7, 0.9, 0.8])


def test_values_for_medians_stand_in_the_order_of_the_images_names():
    ledger = Files()
    ledger.add("one", image_rows(n_pred=[9, 8, 7], names=["b", "c", "a"]))
    # read from a file, names are categories, which sort in the order in which the file first has them
    sample = samples_in(ledger, trial("one"))["one"]["test", "own"]
    assert sample.images["medae"] == pytest.approx([3, 1, 2])

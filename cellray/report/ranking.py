"""Ranked tables from a study's results.

The default rule decides every rank: a trial that failed or collapsed counts as the worst value of the metric,
and so does a metric that is not a number. A planned trial without a record is missing: it counts as nothing,
is shown as missing and makes the table provisional. The mean of the survivors stands beside the ranking.

A configuration of which a trial was stopped early has no mean and no rank. It stands below those that had their whole
budget, ordered by the epoch it reached and then by its validation Dice there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cellray.metrics import METRICS
from cellray.record import PlannedTrial, Seconds, TrainingSettings, TrialRecord
from cellray.results import Plan, Results
from cellray.scores import as_float, score_table, spread, worst_values
from cellray.statistics import Bootstrap, Outlook, Statement, look_ahead

OUTCOMES = ("finished", "collapsed", "failed", "stopped", "missing")


@dataclass(frozen=True)
class Advice:
    """Which configuration to take, from the runs that ended."""

    labels: tuple[str, ...]
    """In the order of the arrays below."""
    found: Statement
    """On new images; on this test set where images can't be told apart."""
    here: Statement | None
    """On this test set, where `found` is about new images."""
    bootstrap: Bootstrap
    """What both come from."""
    new_images: bool

    @property
    def take(self) -> str:
        """The recommended one."""
        return self.labels[self.found.take]

    @property
    def may_be_best(self) -> list[str]:
        """Those that may be the best."""
        return [label for label, may in zip(self.labels, self.found.may_be_best, strict=True) if may]

    @property
    def judged(self) -> list[str]:
        """Those with enough runs that ended."""
        return [label for label, mean in zip(self.labels, self.bootstrap.of.mean, strict=True) if not np.isnan(mean)]

    def ahead(self, margin: float) -> list[str]:
        """Those that may be better than the recommended one by more than a margin, the farthest ahead first."""
        order = np.argsort(-self.found.ahead, kind="stable")
        return [self.labels[i] for i in order if self.found.ahead[i] > margin]

    def alike(self, margin: float) -> list[str]:
        """Those that lose at most a margin to whichever is best, the recommended one first."""
        order = sorted(range(len(self.labels)), key=lambda i: (i != self.found.take, self.found.losses[i]))
        return [self.labels[i] for i in order if self.found.losses[i] <= margin]

    def look_ahead(self, margin: float) -> Outlook | None:
        """What more seeds would do for the statement, if it isn't within a margin."""
        of, alpha = self.bootstrap.of, self.bootstrap.alpha
        return look_ahead(self.found, of, margin, new_images=self.new_images, alpha=alpha)


@dataclass(frozen=True)
class Inference:
    """Tables at the own operating point; sets and metrics in the order of `Tables`."""

    pairs: pd.DataFrame
    """One row a set, metric and pair: set, metric, and `statistics.PAIR_COLUMNS`. Differences are turned so that above
    0 means that a is better. All columns for the metric that ranks, differences and p alone
    for the others: by those nothing is decided."""
    ranks: pd.DataFrame
    """One row a set and configuration, for the metric that ranks: set, and the columns of `statistics.rank_table`."""
    stability: pd.DataFrame
    """set, label, rank, share: of 2,000 resamples of seeds and images, those in which it had that rank."""
    friedman: pd.DataFrame
    """set, n_images, statistic, p, critical_difference: for the metric that ranks, over the seeds that all have."""
    detectable: pd.DataFrame
    """set, metric, difference: the smallest true difference of one pair that is found with 80 % power. Where a race
    dropped configurations, of a pair that it left."""
    choice: Advice | None = None
    """Which configuration to take, by the metric that ranks on the test set; None where nothing can be said."""
    unit: str = "image"
    """What seeds are crossed with on the test set: `image`, or `group of images`."""

    def pairs_of(self, set_name: str, metric: str) -> pd.DataFrame:
        """The pairs of one set and metric, best first."""
        return self.pairs[(self.pairs["set"] == set_name) & (self.pairs.metric == metric)]


@dataclass(frozen=True)
class References:
    """Predictions made elsewhere, on the test set."""

    values: pd.DataFrame
    """One row a reference and metric: label, set, metric, value (of a signed error its size), the 95 % interval over
    images (low, high), n_units (images, or groups of images)."""
    against: pd.DataFrame
    """One row a reference and configuration, by the metric that ranks: reference, configuration, n_seeds (runs that
    ended), n_units, and difference with its interval (low, high), turned so that above 0 the configuration is better.
    The intervals of all configurations hold together with 95 %; NaN with fewer than three seeds."""

    def of(self, set_name: str, metric: str) -> pd.DataFrame:
        """The rows of `values` of one set and metric."""
        return self.values[(self.values["set"] == set_name) & (self.values.metric == metric)]


@dataclass(frozen=True)
class Tables:
    """Everything the page, the exports and the terminal draw from."""

    scores: pd.DataFrame
    """One row a planned trial, set, point and metric; see `scores.score_table`."""
    ranking: pd.DataFrame
    """One row a configuration, set, point and metric; see `ranking_table`."""
    trials: pd.DataFrame
    """One row a planned trial; see `trial_table`."""
    sets: list[str]
    """`test`, the external sets, `val`."""
    metrics: list[str]
    """Keys of ``METRICS`` that the records have, in its order; all of them if there is no record yet."""
    worst: dict[tuple[str, str], float]
    """(set, metric) -> the value that a failed or collapsed trial counts as."""
    n_records: int
    """Planned trials that have a record."""
    rank_by: str = ""
    """The plan's."""
    skip_collapsed: bool = False
    """The plan's."""
    n_unplanned: int = 0
    """Records in the ledger that the plan doesn't name, or that are out of date (left out)."""
    notes: list[str] = field(default_factory=list)
    inference: Inference | None = None
    """Intervals, pairs and ranks over seeds × images; None until `report.inference.infer` has looked at the images."""
    references: References | None = None
    """Predictions made elsewhere; None where the study names none."""

    def choice_of(self, set_name: str, metric: str) -> Advice | None:
        """Which configuration to take, if it is said by that set and metric."""
        said = (set_name, metric) == ("test", self.rank_by) and self.inference is not None
        return self.inference.choice if said and self.inference is not None else None


def make_tables(results: Results, *, external_order: Sequence[str] = (), only: Collection[str] | None = None) -> Tables:
    """Score and rank a study.

    Args:
        results: Its records and what a lost trial counts as.
        external_order: The order in which to show external sets; by name where it is silent.
        only: Metrics wanted, for speed; None: all.
    """
    plan, records = results.plan, results.records
    sets = set_names(records.values(), external_order)
    metrics = [key for key in metric_keys(records.values()) if only is None or key in only]
    worst = worst_values(records.values(), sets, results.nothing, metrics)
    scores = score_table(plan.trials, records, sets, metrics, worst)
    notes = [
        f"{row.label}, seed {row.seed}: {METRICS[row.metric].title} on {row.set} is not a number; counted as worst"
        for row in rows_of(scores[(scores.note == "nan") & (scores.point == "own")])
    ]
    trials = trial_table(results, scores)
    return Tables(
        scores=scores,
        ranking=ranking_table(scores, plan, trials),
        trials=trials,
        sets=sets,
        metrics=metrics,
        worst=worst,
        n_records=len(records),
        rank_by=plan.rank_by,
        skip_collapsed=plan.skip_collapsed,
        n_unplanned=results.n_unplanned,
        notes=notes,
    )


def ahead_on_test(tables: Tables, label: str) -> list[str]:
    """Configurations for which the test images speak rather than for another: recommended, or first in the ranking.

    Args:
        tables: With what `infer` found, where it has looked at the images.
        label: The other one.
    """
    choice = tables.choice_of("test", tables.rank_by)
    ranked = select(tables.ranking, set_name="test", metric=tables.rank_by)
    first = ranked[ranked["rank"] == 1].label.tolist()
    found = [*([choice.take] if choice else []), *([] if label in first else first[:1])]
    return [other for other in dict.fromkeys(found) if other != label]


def metric_keys(records: Iterable[TrialRecord]) -> list[str]:
    """The metrics that any record has: records of an older version know fewer."""
    found = {key for r in records for sets in r.metrics.values() for values in sets.values() for key in values}
    return [key for key in METRICS if key in found] or list(METRICS)


def set_names(records: Iterable[TrialRecord], external_order: Sequence[str] = ()) -> list[str]:
    """`test` first, then external sets in the given order and by name, `val` last."""
    found: set[str] = set()
    for record in records:
        found = found.union(record.data.sets, *record.metrics.values())
    external = found - {"test", "val"}
    ordered = [name for name in external_order if name in external]
    ordered += sorted(external - set(ordered))
    return ["test", *ordered, *(["val"] if "val" in found else [])]


def ranking_table(scores: pd.DataFrame, plan: Plan, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration, set, point and metric, ordered by rank and then by label; those stopped early follow.

    Columns: set, point, metric, rank (shared by equal means, NaN without a result), label, n_planned, n_finished,
    n_collapsed, n_failed, n_stopped, n_missing, n_nan, n (trials in the mean), mean and sd (default rule), worst
    (the worst seed's), survivors_n, survivors_mean, survivors_sd, survivors_rank (finished trials with a value),
    order_differs (the two ranks differ), provisional (a planned trial is missing). SDs have n - 1 below the line.
    The 95 % intervals of the mean (low, high) and of the rank (rank_low, rank_high), and the best of three trainings by
    validation (kept_mean, kept_low, kept_high) are NaN until `infer` fills them.
    A stopped configuration has n = 0, no mean and no rank, but stopped_epoch, stopped_of and stopped_dice (see
    `stopped_at`). dropped: the plan's words for one that a race dropped, else "".
    """
    if scores.empty:
        return pd.DataFrame(columns=RANK_COLUMNS)
    group = ["set", "point", "metric", "label"]
    marks = {f"n_{outcome}": scores.outcome == outcome for outcome in OUTCOMES}
    marks |= {"n_planned": scores.outcome.notna(), "n_nan": scores.note == "nan"}
    counts = scores.assign(**marks).groupby(group, sort=False)[list(marks)].sum()

    # so are missing trials, by name, never by a NaN that an average would skip
    stopped = stopped_at(trials)
    counted = spread(scores, group, skip_collapsed=plan.skip_collapsed).drop(columns=["low", "high"])
    table = counts.reset_index().merge(counted, on=group, how="left", sort=False)
    table[["n", "survivors_n"]] = table[["n", "survivors_n"]].fillna(0).astype(int)
    table = table.join(stopped, on="label")
    table["dropped"] = [plan.dropped.get(label, "") for label in table.label]

    higher = table.metric.map({key: metric.higher_is_better for key, metric in METRICS.items()})
    sign = np.where(higher, -1.0, 1.0)
    for column, rank in (("mean", "rank"), ("survivors_mean", "survivors_rank")):
        # rounded, so that the order of a sum's terms can't break a tie
        table[rank] = (table[column] * sign).round(9)
        table[rank] = table.groupby(["set", "point", "metric"], sort=False)[rank].rank(method="min")
    table["order_differs"] = (table["rank"] != table.survivors_rank) & table["rank"].notna()
    table["provisional"] = table.groupby(["set", "point", "metric"], sort=False).n_missing.transform("sum") > 0
    table["place"] = table.groupby(["set", "point", "metric"], sort=False).ngroup()  # in the order of appearance
    table["late"], table["low_dice"] = -table.stopped_epoch, -table.stopped_dice
    table = table.sort_values(["place", "rank", "late", "low_dice", "label"], na_position="last", kind="stable")
    return table.reindex(columns=RANK_COLUMNS).reset_index(drop=True)


INTERVALS = ["low", "high", "rank_low", "rank_high", "kept_mean", "kept_low", "kept_high"]
RANK_COLUMNS = [
    "set", "point", "metric", "rank", "label", "n_planned", "n_finished", "n_collapsed", "n_failed", "n_stopped",
    "n_missing", "n_nan", "n", "mean", "sd", "worst", "survivors_n", "survivors_mean", "survivors_sd",
    "survivors_rank", "order_differs", "provisional", "stopped_epoch", "stopped_of", "stopped_dice", "dropped",
    *INTERVALS,
]  # fmt: skip


def stopped_at(trials: pd.DataFrame) -> pd.DataFrame:
    """How far configurations came that were stopped early, by label; one is stopped as soon as one of its trials is.

    Columns: stopped_epoch (the last one that a stopped trial trained), stopped_of (its planned epochs), stopped_dice
    (mean over seeds of the last validation Dice; a failed or collapsed seed counts 0, one that finished isn't there).

    Args:
        trials: Of `trial_table`.
    """
    stopped = trials[trials.outcome == "stopped"]
    table = stopped.groupby("label", sort=False)[["epochs", "planned_epochs"]].max()
    lost = trials[trials.outcome.isin(("failed", "collapsed")) & trials.label.isin(table.index)]
    dice = pd.concat([stopped[["label", "validation_dice"]], lost[["label"]].assign(validation_dice=0.0)])
    by_label = dice.groupby("label", sort=False).validation_dice
    # a stopped seed that was never validated makes the mean unknown
    table["stopped_dice"] = by_label.mean().where(by_label.count() == by_label.size())
    return table.rename(columns={"epochs": "stopped_epoch", "planned_epochs": "stopped_of"})


def trial_table(results: Results, scores: pd.DataFrame) -> pd.DataFrame:
    """One row a planned trial: outcome, budget, operating point, and each metric as `point.set.metric` (as stored).

    `lr_in_doubt`: the range test chose the lowest rate that it tried, or ended before half of its rates were tried.
    `range_test_ended`: the rate at which it ended early, if it did. `planned_epochs`: NaN where the budget is steps.
    `validation_dice`: of the last validation; a record of an older version doesn't have it.
    """
    table = pd.DataFrame([_trial_row(trial, results) for trial in results.plan.trials])
    if scores.empty:
        return table
    wide = scores.assign(column=scores.point + "." + scores.set + "." + scores.metric)
    order = list(wide.column.unique())
    # label and seed too: two labels with the same settings share a key
    wide = wide.pivot(index=["label", "seed", "key"], columns="column", values="value")[order]
    return table.merge(wide.reset_index(), on=["label", "seed", "key"], how="left", sort=False)


def _trial_row(trial: PlannedTrial, results: Results) -> dict[str, str | float]:
    """The budget and the outcome of one trial; NaN where its record, if it has one, says nothing."""
    record = results.records.get(trial.key)
    budget = record.settings.training if record else TrainingSettings()
    epochs = budget.epochs if "epochs" in budget.model_fields_set else results.plan.epochs
    seconds, point = (record.seconds, record.operating_point) if record else (Seconds(), None)

    def measured(*names: str) -> dict[str, float]:
        return {name: as_float(getattr(record, name, None)) for name in names}

    return {
        "label": trial.label,
        "seed": trial.seed,
        "key": trial.key,
        "outcome": record.outcome if record else "missing",
        "reason": (record.reason if record else None) or "",
        **measured("epochs", "steps", "best_epoch", "lr", "n_parameters"),
        "planned_epochs": as_float(epochs),
        **measured("validation_dice"),
        "lr_in_doubt": record is not None and record.lr_in_doubt,
        **measured("range_test_ended"),
        "training_s": as_float(seconds.training),
        "evaluation_s": as_float(seconds.evaluation),
        **measured("peak_memory_mb", "operating_point_score"),
        **{f"operating_point.{name}": as_float(getattr(point, name, None)) for name in OPERATING_POINT},
    }


OPERATING_POINT = ("threshold", "opening", "hole_area", "min_area", "watershed", "smoothing", "peak_distance")
"""Columns of an operating point, in the order of the table."""


def rows_of(table: pd.DataFrame) -> list[Any]:
    """The rows of a table, with its columns as attributes."""
    return list(table.itertuples(index=False))


def select(table: pd.DataFrame, *, set_name: str, metric: str, point: str = "own") -> pd.DataFrame:
    """The rows of one set, metric and operating point."""
    mask = (table["set"] == set_name) & (table["metric"] == metric) & (table["point"] == point)
    return table[mask]

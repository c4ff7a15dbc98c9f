"""Ranked tables from trial records: pure functions over records, plans and DataFrames.

The default rule decides every rank: a trial that failed or collapsed counts as the worst value of the metric,
and so does a metric that is not a number. A planned trial without a record is missing: it counts as nothing,
is shown as missing and makes the table provisional. The mean of the survivors stands beside the ranking.

A configuration of which a trial was stopped early has no mean and no rank. It stands below those that had their whole
budget, ordered by the epoch it reached and then by its validation Dice there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from cellray.metrics import METRICS
from cellray.scores import POINTS, Record, is_finite, score, worst_values

if TYPE_CHECKING:
    from cellray.report.inference import Inference

OUTCOMES = ("finished", "collapsed", "failed", "stopped", "missing")


@dataclass(frozen=True)
class PlannedTrial:
    """One trial that a study plans: its configuration's label, its seed and its key in the ledger."""

    label: str
    seed: int
    key: str
    evaluation_key: str = ""
    """Where given, a record evaluated otherwise is out of date, and the trial counts as missing."""

    def find(self, records: Mapping[str, Record]) -> Record | None:
        """Its record among those by key, if there is one and it is up to date."""
        record = records.get(self.key)
        if record is None or (self.evaluation_key and record.get("evaluation_key") != self.evaluation_key):
            return None
        return record


@dataclass(frozen=True)
class Plan:
    """What a report is about: the question, the metric that ranks, and every planned trial."""

    study: str
    question: str
    rank_by: str
    trials: tuple[PlannedTrial, ...]
    skip_collapsed: bool = False
    """The quirk of that name: means and ranks leave out collapsed and failed trials. The default rule never does."""
    epochs: int | None = None
    """Epochs of a trial where all have the same number; for progress and ETA, and where a record doesn't say."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Label -> when, in words: configurations that a race gives no more seeds. Their results are whole."""

    def planned(self, records: Iterable[Record]) -> dict[str, Record]:
        """The records of planned trials, by key; out-of-date ones are left out."""
        by_key = {record["key"]: record for record in records}
        return {trial.key: record for trial in self.trials if (record := trial.find(by_key)) is not None}

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the plan."""
        return list(dict.fromkeys(trial.label for trial in self.trials))


@dataclass(frozen=True)
class Tables:
    """Everything the page, the exports and the terminal draw from."""

    scores: pd.DataFrame
    """One row a planned trial, set, point and metric; see `score_table`."""
    ranking: pd.DataFrame
    """One row a configuration, set, point and metric; see `rank_table`."""
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
    skip_collapsed: bool = False
    """The plan's."""
    n_unplanned: int = 0
    """Records in the ledger that the plan doesn't name, or that are out of date (left out)."""
    notes: list[str] = field(default_factory=list)
    inference: Inference | None = None
    """Intervals, pairs and ranks over seeds × images; None until `report.inference.infer` has looked at the images."""


class TextTable(NamedTuple):
    """A table for the terminal or for Markdown: column titles, rows of text, sentences below."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def make_tables(
    records: Iterable[Record],
    plan: Plan,
    *,
    nothing: Mapping[str, Mapping[str, float]] | None = None,
    external_order: Sequence[str] = (),
    only: Collection[str] | None = None,
) -> Tables:
    """Score and rank a study.

    Args:
        records: Contents of trial.json, of any outcome, in any order.
        plan: The planned trials; records are found by key and labelled as the plan says.
        nothing: For each set, the counting errors of predicting nothing (`errors_of_nothing`).
        external_order: The order in which to show external sets; by name where it is silent.
        only: Metrics wanted, for speed; None: all.
    """
    stored = list(records)
    used = plan.planned(stored)
    sets = set_names(used.values(), external_order)
    metrics = [key for key in metric_keys(used.values()) if only is None or key in only]
    worst = worst_values(used.values(), sets, nothing or {}, metrics)
    scores = score_table(used, plan, sets, metrics, worst)
    notes = [
        f"{row.label}, seed {row.seed}: {METRICS[row.metric].title} on {row.set} is not a number; counted as worst"
        for row in rows_of(scores[(scores.note == "nan") & (scores.point == "own")])
    ]
    trials = trial_table(used, plan, scores)
    return Tables(
        scores=scores,
        ranking=rank_table(scores, plan, trials),
        trials=trials,
        sets=sets,
        metrics=metrics,
        worst=worst,
        n_records=len(used),
        skip_collapsed=plan.skip_collapsed,
        n_unplanned=len(stored) - len(used),
        notes=notes,
    )


def metric_keys(records: Iterable[Record]) -> list[str]:
    """The metrics that any record has: records of an older version know fewer."""
    found = {
        key for r in records for sets in (r.get("metrics") or {}).values() for values in sets.values() for key in values
    }
    return [key for key in METRICS if key in found] or list(METRICS)


def set_names(records: Iterable[Record], external_order: Sequence[str] = ()) -> list[str]:
    """`test` first, then external sets in the given order and by name, `val` last."""
    found: set[str] = set()
    for record in records:
        for sets in (record.get("metrics") or {}).values():
            found |= set(sets)
        found |= set((record.get("data") or {}).get("sets") or {})
    external = found - {"test", "val"}
    ordered = [name for name in external_order if name in external]
    ordered += sorted(external - set(ordered))
    return ["test", *ordered, *(["val"] if "val" in found else [])]


def score_table(
    records: Mapping[str, Record],
    plan: Plan,
    sets: Sequence[str],
    metrics: Sequence[str],
    worst: Mapping[tuple[str, str], float],
) -> pd.DataFrame:
    """One row a planned trial, set, point and metric.

    Columns: set, point, metric, label, seed, key, outcome, value (as stored, NaN if there is none), counted (what
    the default rule averages; NaN only for a missing or stopped trial), note ("", "nan", "worst", "stopped" or "not
    evaluated").
    """
    rows = []
    for trial in plan.trials:
        record = records.get(trial.key)
        outcome = "missing" if record is None else str(record["outcome"])
        stored = {} if record is None else record.get("metrics") or {}
        for name in sets:
            for point in POINTS:
                values = stored.get(point, {}).get(name)
                for key in metrics:
                    where = (name, point, key, trial.label, trial.seed, trial.key)
                    rows.append((*where, *score(METRICS[key], key, outcome, values, worst[name, key])))
    columns = ["set", "point", "metric", "label", "seed", "key", "outcome", "value", "counted", "note"]
    return pd.DataFrame(rows, columns=columns)


def rank_table(scores: pd.DataFrame, plan: Plan, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration, set, point and metric, ordered by rank and then by label; those stopped early follow.

    Columns: set, point, metric, rank (shared by equal means, NaN without a result), label, n_planned, n_finished,
    n_collapsed, n_failed, n_stopped, n_missing, n_nan, n (trials in the mean), mean and sd (default rule), worst
    (the worst seed's), survivors_n, survivors_mean, survivors_sd, survivors_rank (finished trials with a value),
    order_differs (the two ranks differ), provisional (a planned trial is missing). SDs have n - 1 below the line.
    The 95 % intervals of the mean (low, high) and of the rank (rank_low, rank_high) are NaN until `infer` fills them.
    A stopped configuration has n = 0, no mean and no rank, but stopped_epoch, stopped_of and stopped_dice (see
    `stopped_at`). dropped: the plan's words for one that a race dropped, else "".
    """
    if scores.empty:
        return pd.DataFrame(columns=RANK_COLUMNS)
    group = ["set", "point", "metric", "label"]
    frame = scores.copy()
    for outcome in OUTCOMES:
        frame[f"n_{outcome}"] = (frame.outcome == outcome).astype(int)
    frame["n_nan"] = (frame.note == "nan").astype(int)
    frame["n_planned"] = 1
    counts = frame.groupby(group, sort=False)[
        ["n_planned", "n_finished", "n_collapsed", "n_failed", "n_stopped", "n_missing", "n_nan"]
    ].sum()

    # missing trials are left out by name, never by a NaN that an average would skip; so are stopped configurations
    stopped = stopped_at(trials)
    full = frame[(frame.outcome != "missing") & ~frame.label.isin(stopped.index)]
    survivors = full[(full.outcome == "finished") & (full.note == "")]
    counted = spread(survivors if plan.skip_collapsed else full, group)
    survived = spread(survivors, group).add_prefix("survivors_")
    table = counts.join(counted).join(survived.drop(columns=["survivors_low", "survivors_high"])).reset_index()
    table[["n", "survivors_n"]] = table[["n", "survivors_n"]].fillna(0).astype(int)
    table = table.join(stopped, on="label")
    table["dropped"] = [plan.dropped.get(label, "") for label in table.label]

    higher = table.metric.map({key: metric.higher_is_better for key, metric in METRICS.items()})
    table["worst"] = table.low.where(higher, table.high)
    sign = np.where(higher, -1.0, 1.0)
    for column, rank in (("mean", "rank"), ("survivors_mean", "survivors_rank")):
        # rounded, so that the order of a sum's terms can't break a tie
        table[rank] = (table[column] * sign).round(9)
        table[rank] = table.groupby(["set", "point", "metric"], sort=False)[rank].rank(method="min")
    table["order_differs"] = (table["rank"] != table.survivors_rank) & table["rank"].notna()
    table["provisional"] = table.groupby(["set", "point", "metric"], sort=False).n_missing.transform("sum") > 0
    for column in ("set", "metric", "point"):  # keep the order of appearance
        table[column] = pd.Categorical(table[column], categories=list(scores[column].unique()), ordered=True)
    table["late"], table["low_dice"] = -table.stopped_epoch, -table.stopped_dice
    order = ["set", "point", "metric", "rank", "late", "low_dice", "label"]
    table = table.sort_values(order, na_position="last", kind="stable")
    for column in ("set", "metric", "point"):
        table[column] = table[column].astype(str)
    return table.reindex(columns=RANK_COLUMNS).reset_index(drop=True)


INTERVALS = ["low", "high", "rank_low", "rank_high"]
RANK_COLUMNS = [
    "set", "point", "metric", "rank", "label", "n_planned", "n_finished", "n_collapsed", "n_failed", "n_stopped",
    "n_missing", "n_nan", "n", "mean", "sd", "worst", "survivors_n", "survivors_mean", "survivors_sd",
    "survivors_rank", "order_differs", "provisional", "stopped_epoch", "stopped_of", "stopped_dice", "dropped",
    *INTERVALS,
]  # fmt: skip


def stopped_labels(tables: Tables) -> set[str]:
    """Labels of the configurations that were stopped early, which nothing is compared with."""
    ranking = tables.ranking
    return set(ranking.label[ranking.n_stopped > 0])


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


def spread(frame: pd.DataFrame, group: list[str]) -> pd.DataFrame:
    """n, mean, sd, low and high of `counted`; a NaN among the values makes a NaN of the result."""
    grouped = frame.groupby(group, sort=False)["counted"]
    out = pd.DataFrame(
        {"n": grouped.size(), "mean": grouped.mean(), "sd": grouped.std(), "low": grouped.min(), "high": grouped.max()}
    )
    holes = grouped.count() < out["n"]
    out.loc[holes, ["mean", "sd", "low", "high"]] = np.nan
    return out


def trial_table(records: Mapping[str, Record], plan: Plan, scores: pd.DataFrame) -> pd.DataFrame:
    """One row a planned trial: outcome, budget, operating point, and each metric as `point.set.metric` (as stored).

    `lr_at_edge`: the range test chose the lowest rate that it tried. `planned_epochs`: NaN where the budget is steps.
    `validation_dice`: of the last validation; a record of an older version doesn't have it.
    """
    rows = []
    for trial in plan.trials:
        record = records.get(trial.key, {})
        seconds = record.get("seconds") or {}
        training = (record.get("settings") or {}).get("training") or {}
        row = {
            "label": trial.label,
            "seed": trial.seed,
            "key": trial.key,
            "outcome": record.get("outcome", "missing"),
            "reason": record.get("reason") or "",
            **{name: number(record.get(name)) for name in ("epochs", "steps", "best_epoch", "lr", "n_parameters")},
            "planned_epochs": number(training.get("epochs", plan.epochs)),
            "validation_dice": number(record.get("validation_dice")),
            "lr_at_edge": is_at_edge(record),
            "training_s": number(seconds.get("training")),
            "evaluation_s": number(seconds.get("evaluation")),
            "peak_memory_mb": number(record.get("peak_memory_mb")),
            "operating_point_score": number(record.get("operating_point_score")),
        }
        point = record.get("operating_point") or {}
        for name in (
            "threshold",
            "opening",
            "hole_area",
            "min_area",
            "watershed",
            "smoothing",
            "peak_distance",
        ):
            row[f"operating_point.{name}"] = number(point.get(name))
        rows.append(row)
    table = pd.DataFrame(rows)
    if scores.empty:
        return table
    wide = scores.assign(column=scores.point + "." + scores.set + "." + scores.metric)
    order = list(wide.column.unique())
    # label and seed too: two labels with the same settings share a key
    wide = wide.pivot(index=["label", "seed", "key"], columns="column", values="value")[order]
    return table.merge(wide.reset_index(), on=["label", "seed", "key"], how="left", sort=False)


def is_at_edge(record: Record) -> bool:
    """Whether a range test chose the lowest rate that it tried: it found no rate at which the loss falls."""
    tried, lr = (record.get("range_test") or {}).get("lr"), record.get("lr")
    return bool(tried and is_finite(lr) and lr <= min(tried) * 1.001)


def rows_of(table: pd.DataFrame) -> list[Any]:
    """The rows of a table, with its columns as attributes."""
    return list(table.itertuples(index=False))


def number(value: object) -> float:
    """A stored number as a float, NaN where there is none."""
    return float(value) if is_finite(value) else float("nan")  # type: ignore[arg-type]


def select(table: pd.DataFrame, *, set_name: str, metric: str, point: str = "own") -> pd.DataFrame:
    """The rows of one set, metric and operating point."""
    mask = (table["set"] == set_name) & (table["metric"] == metric) & (table["point"] == point)
    return table[mask]


def metric_title(key: str) -> str:
    """The name of a metric in tables: a signed error is ranked, and so shown, by its size."""
    metric = METRICS[key]
    return f"|{metric.title}|" if metric.is_signed else metric.title


def format_value(key: str, value: float) -> str:
    """A number as tables show it: three decimals for a ratio, two for a counting error, a dash for none."""
    if not np.isfinite(value):
        return "–"
    bounded = METRICS[key].worst is not None
    text = f"{value:.3f}" if bounded else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return text.replace("-", "−")


def format_difference(key: str, value: float) -> str:
    """A difference with its sign."""
    return ("+" if value >= 0 else "") + format_value(key, value)


def format_p(p: float) -> str:
    """A p-value or a probability as papers print it."""
    if not np.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_spread(key: str, mean: float, sd: float) -> str:
    """`mean ± SD`, or the mean alone where one value has no spread."""
    return format_value(key, mean) + (f" ± {format_value(key, sd)}" if np.isfinite(sd) else "")


def format_interval(key: str, low: float, high: float) -> str:
    """`[low, high]`; empty where there is none."""
    return f"[{format_value(key, low)}, {format_value(key, high)}]" if np.isfinite([low, high]).all() else ""


def format_rank(rank: float, low: float = math.nan, high: float = math.nan) -> str:
    """A rank as text, with its interval as in `1 [1–5]` where that is known; a dash where nothing is known yet."""
    if not np.isfinite(rank):
        return "–"
    return f"{rank:.0f}" + (f" [{low:.0f}–{high:.0f}]" if np.isfinite([low, high]).all() else "")


def format_counts(row: Any) -> str:
    """The outcomes of a configuration that weren't `finished`, in words."""
    parts = [f"{getattr(row, f'n_{name}')} {name}" for name in OUTCOMES[1:] if getattr(row, f"n_{name}")]
    if row.n_stopped:
        of = f" of {row.stopped_of:.0f}" if np.isfinite(row.stopped_of) else ""
        where = f"at epoch {row.stopped_epoch:.0f}{of}, validation Dice {format_value('dice', row.stopped_dice)}"
        parts = [f"{part} {where}" if part.endswith(" stopped") else part for part in parts]
    if row.n_nan:
        parts.append(f"{row.n_nan} not a number")
    if row.dropped:
        parts.append(row.dropped)
    return ", ".join(parts)


def format_table(
    tables: Tables,
    *,
    metric: str,
    set_name: str = "test",
    extra: Sequence[str] = (),
    limit: int | None = None,
) -> TextTable:
    """The ranked table of one set as text, for the terminal, Markdown and LaTeX.

    Args:
        tables: From `make_tables`.
        metric: The one that ranks, a key of ``METRICS``.
        set_name: One of ``tables.sets``.
        extra: Further metrics, one column each (means by the default rule).
        limit: Only the first so many rows.
    """
    rows = select(tables.ranking, set_name=set_name, metric=metric)
    shared = select(tables.ranking, set_name=set_name, metric=metric, point="shared").set_index("label")
    more = {key: select(tables.ranking, set_name=set_name, metric=key).set_index("label") for key in extra}
    title = metric_title(metric)
    columns = ["rank", "configuration", title, "95 % interval", "survivors", "worst seed", "shared point"]
    columns += [metric_title(key) for key in extra] + ["finished", "else"]
    text = []
    for row in rows_of(rows.head(limit or len(rows))):
        survivors = format_spread(metric, row.survivors_mean, row.survivors_sd) + f" (n={row.survivors_n})"
        if row.order_differs and np.isfinite(row.survivors_rank):
            survivors += f" [{format_rank(row.survivors_rank)}]"
        text.append(
            [
                format_rank(row.rank, row.rank_low, row.rank_high),
                str(row.label),
                format_spread(metric, row.mean, row.sd),
                format_interval(metric, row.low, row.high) or "–",
                survivors,
                format_value(metric, row.worst),
                format_value(metric, shared["mean"].get(row.label, np.nan)),
                *(format_spread(key, m["mean"][row.label], m["sd"][row.label]) for key, m in more.items()),
                f"{row.n_finished}/{row.n_planned}",
                format_counts(row),
            ]
        )
    return TextTable(columns, text, table_notes(tables, rows, metric, set_name))


def table_notes(tables: Tables, rows: pd.DataFrame, metric: str, set_name: str) -> list[str]:
    """What a reader of a ranked table must know, in sentences."""
    notes = []
    if len(rows) and rows.n_missing.sum():
        notes.append(f"Provisional: {rows.n_missing.sum()} of {rows.n_planned.sum()} planned trials are missing.")
    full = rows[rows.n_stopped == 0]
    if len(full) and (full.n_collapsed.sum() or full.n_failed.sum()):
        lost = [(full.n_collapsed.sum(), "collapsed"), (full.n_failed.sum(), "failed")]
        words = " and ".join(f"{n} {word}" for n, word in lost if n)
        worst = format_value(metric, tables.worst[set_name, metric])
        counted = f"they count as the worst value, {worst}, and survivors leave them out"
        if tables.skip_collapsed:
            counted = "as the quirk skip_collapsed has it, the ranking leaves them out"
        notes.append(f"Of the trials, {words}: {counted}.")
    if len(full) and full.n_nan.sum():
        notes.append(f"{full.n_nan.sum()} values that are not a number count as the worst value too.")
    if n_stopped := len(rows) - len(full):
        who = "1 configuration was" if n_stopped == 1 else f"{n_stopped} configurations were"
        notes.append(
            f"{who} stopped early and so not compared: ranked as stopped, by the epoch reached and then by the "
            "validation Dice there (mean over seeds)."
        )
    if full.n_planned.nunique() > 1:
        notes.append(
            f"Configurations were given {full.n_planned.min()} to {full.n_planned.max()} seeds: means are over each "
            "one's own, comparisons over the seeds that both have."
        )
    if len(rows) and rows.order_differs.any():
        notes.append("[k]: rank by the survivors' mean, where it differs.")
    return notes

"""Numbers, ranks and ranked tables as text, for the terminal, Markdown, LaTeX and the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cellray.metrics import METRICS
from cellray.report.ranking import OUTCOMES, Advice, Tables, rows_of, select
from cellray.statistics import N_KEPT_OF


class TextTable(NamedTuple):
    """A table for the terminal or for Markdown: column titles, rows of text, sentences below."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


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


WIDEST = 0.5
"""An interval of a metric between 0 and 1, or of a difference in one, that is wider says nothing and isn't shown."""
TOO_FEW = "too few seeds to tell"
"""In its place."""


def is_telling(key: str, low: float, high: float) -> bool:
    """Whether there is an interval, and it isn't too wide to say anything."""
    return bool(np.isfinite([low, high]).all()) and (METRICS[key].worst is None or high - low <= WIDEST)


def format_interval(key: str, low: float, high: float) -> str:
    """`[low, high]`; empty where there is none that says anything."""
    return f"[{format_value(key, low)}, {format_value(key, high)}]" if is_telling(key, low, high) else ""


def interval_cell(key: str, low: float, high: float) -> str:
    """The same for a table, where an interval that says nothing is told from none."""
    return format_interval(key, low, high) or (TOO_FEW if np.isfinite([low, high]).all() else "")


def format_rank(rank: float, low: float = math.nan, high: float = math.nan) -> str:
    """A rank as text, with its interval as in `1 [1–5]` where that is known; a dash where nothing is known yet."""
    if not np.isfinite(rank):
        return "–"
    return f"{rank:.0f}" + (f" [{low:.0f}–{high:.0f}]" if np.isfinite([low, high]).all() else "")


def format_rate(low: float, high: float) -> str:
    """The ends of a probability's interval, in per cent."""
    return f"{100 * low:.0f} to {100 * high:.0f} %"


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


def format_table(tables: Tables, *, metric: str, set_name: str = "test", extra: Sequence[str] = ()) -> TextTable:
    """The ranked table of one set as text, for the terminal, Markdown and LaTeX.

    Args:
        tables: From `make_tables`.
        metric: The one that ranks, a key of ``METRICS``.
        set_name: One of ``tables.sets``.
        extra: Further metrics, one column each (means by the default rule).
    """
    rows = select(tables.ranking, set_name=set_name, metric=metric)
    shared = select(tables.ranking, set_name=set_name, metric=metric, point="shared").set_index("label")
    more = {key: select(tables.ranking, set_name=set_name, metric=key).set_index("label") for key in extra}
    choice = tables.choice_of(set_name, metric)
    kept, lost = bool(rows.kept_mean.notna().any()), bool((rows.survivors_n < rows.n).any())
    other = any(format_counts(row) for row in rows_of(rows))
    intervals = [interval_cell(metric, row.low, row.high) for row in rows_of(rows)]
    columns = ["rank", *(["may be best"] if choice else []), "configuration", metric_title(metric)]
    columns += ["95 % interval"] if tells_anything(intervals) else []
    columns += [KEPT] if kept else []
    columns += [*([ENDED] if lost else []), "worst seed", SHARED]
    columns += [metric_title(key) for key in extra] + ["finished", *(["else"] if other else [])]
    text = []
    for row, interval in zip(rows_of(rows), intervals, strict=True):
        ended = format_spread(metric, row.survivors_mean, row.survivors_sd) + f" (n={row.survivors_n})"
        if row.order_differs and np.isfinite(row.survivors_rank):
            ended += f" [{format_rank(row.survivors_rank)}]"
        text.append(
            [
                format_rank(row.rank),
                *([may_be_best(choice, str(row.label))] if choice else []),
                str(row.label),
                format_spread(metric, row.mean, row.sd),
                *([interval or "–"] if tells_anything(intervals) else []),
                *([format_value(metric, row.kept_mean)] if kept else []),
                *([ended] if lost else []),
                format_value(metric, row.worst),
                format_value(metric, shared["mean"].get(row.label, np.nan)),
                *(format_spread(key, m["mean"][row.label], m["sd"][row.label]) for key, m in more.items()),
                f"{row.n_finished}/{row.n_planned}",
                *([format_counts(row)] if other else []),
            ]
        )
    for one in rows_of(tables.references.of(set_name, metric)) if tables.references else ():
        known = {
            "configuration": reference_title(one.label),
            metric_title(metric): format_value(metric, one.value),
            "95 % interval": interval_cell(metric, one.low, one.high) or "–",
            **{metric_title(key): format_value(key, more_of(tables, one.label, key)) for key in extra},
        }
        text.append([known.get(column, "" if column == "else" else "–") for column in columns])
    return TextTable(columns, text, [*table_notes(tables, rows, metric, set_name), *unsaid_intervals(intervals)])


def tells_anything(intervals: Sequence[str]) -> bool:
    """Whether any row of a table has an interval, or none has even one that says nothing."""
    return not any(intervals) or any(text not in ("", TOO_FEW) for text in intervals)


def unsaid_intervals(intervals: Sequence[str]) -> list[str]:
    """Why a table shows no interval; empty where it does."""
    return [] if tells_anything(intervals) else ["No interval is shown: these are too few seeds to tell."]


def reference_title(label: str) -> str:
    """What tables call predictions made elsewhere."""
    return f"{label} (reference)"


def more_of(tables: Tables, reference: str, metric: str) -> float:
    """A reference's value on the test set by another metric; NaN where there is none."""
    rows = None if tables.references is None else tables.references.of("test", metric)
    found = [] if rows is None else rows[rows.label == reference]["value"].tolist()
    return found[0] if found else math.nan


KEPT, ENDED, SHARED = f"best of {N_KEPT_OF}", "runs that ended", "published threshold"
"""Columns of the ranked table: the best of some trainings by validation, the mean of the runs that ended, and the mean
at the published threshold and post-processing."""


def may_be_best(choice: Advice, label: str) -> str:
    """Whether a configuration may be the best, in a word; a dash where too few of its runs ended."""
    if label not in choice.labels or label not in choice.judged:
        return "–"
    return "yes" if label in choice.may_be_best else "no"


def table_notes(tables: Tables, rows: pd.DataFrame, metric: str, set_name: str) -> Iterator[str]:
    """What a reader of a ranked table must know, in sentences."""
    if len(rows) and rows.n_missing.sum():
        yield f"Provisional: {rows.n_missing.sum()} of {rows.n_planned.sum()} planned trials are missing."
    full = rows[rows.n_stopped == 0]
    if len(full) and (full.n_collapsed.sum() or full.n_failed.sum()):
        lost = [(full.n_collapsed.sum(), "collapsed"), (full.n_failed.sum(), "failed")]
        words = " and ".join(f"{n} {word}" for n, word in lost if n)
        worst = format_value(metric, tables.worst[set_name, metric])
        counted = f"each counts as the worst value, {worst}"
        if tables.skip_collapsed:
            counted = "as the quirk skip_collapsed has it, the ranking leaves them out"
        yield f"Of the trials, {words}: {counted}."
    if len(full) and full.n_nan.sum():
        yield f"{full.n_nan.sum()} values that are not a number count as the worst value too."
    if n_stopped := len(rows) - len(full):
        who = "1 configuration was" if n_stopped == 1 else f"{n_stopped} configurations were"
        yield (
            f"{who} stopped early and so not compared: ranked as stopped, by the epoch reached and then by the "
            "validation Dice there (mean over seeds)."
        )
    if full.n_planned.nunique() > 1:
        yield (
            f"Configurations were given {full.n_planned.min()} to {full.n_planned.max()} seeds: means are over each "
            "one's own, comparisons over the seeds that both have."
        )
    if tables.references is not None and len(tables.references.of(set_name, metric)):
        yield (
            "A reference is predictions made elsewhere: it has no seeds and no rank, its interval is over images, and "
            "cellray can't know whether its tool was trained or set on these test images."
        )
    if len(rows) and rows.order_differs.any():
        yield "[k]: rank by the mean of the runs that ended, where it differs."

"""The ranked tables of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from cellray.metrics import METRICS
from cellray.report.page.table_cells import (
    Column,
    PageTable,
    TableCell,
    head,
    number_cell,
    sort_key,
    strip,
    strip_limits,
    table_of,
)
from cellray.report.ranking import Tables, rows_of, select
from cellray.report.text import (
    format_counts,
    format_difference,
    format_interval,
    format_rank,
    format_spread,
    format_value,
    interval_cell,
    may_be_best,
    metric_title,
    more_of,
    reference_title,
    table_notes,
    tells_anything,
    unsaid_intervals,
)
from cellray.statistics import N_KEPT_OF

SHOWN = (
    "f1_iou", "precision_iou", "recall_iou", "f1_distance", "precision_distance", "recall_distance", "miou", "dice",
    "pq", "ap_50_90", "aji", "mae", "medae", "mpe",
)  # fmt: skip
"""The metrics that the page's tables show; the exports have all of them."""


def ranked_table(tables: Tables, metric: str, set_name: str) -> PageTable:
    """The ranking of one set: seeds, mean, what may be best, worst seed, published threshold, outcomes."""
    rows = select(tables.ranking, set_name=set_name, metric=metric)
    shared = select(tables.ranking, set_name=set_name, metric=metric, point="shared").set_index("label")["mean"]
    seeds = select(tables.scores, set_name=set_name, metric=metric)
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    counted = "skipped, as the quirk has it" if tables.skip_collapsed else "counted as worst"
    intervals = [interval_cell(metric, row.low, row.high) for row in rows_of(rows)]
    has_intervals = any(intervals) and tells_anything(intervals)
    choice = tables.choice_of(set_name, metric)
    kept, lost = bool(rows.kept_mean.notna().any()), bool((rows.survivors_n < rows.n).any())
    brackets = "; below, its 95 % interval over new seeds and new images" if has_intervals else ""
    low, high = strip_limits(seeds)

    def drawn(row: Any) -> Markup:
        mine = seeds[(seeds.label == row.label) & (seeds.outcome != "missing")]
        return strip(mine, row.mean, low, high, metric)

    def mean_cell(row: Any) -> TableCell:
        note = interval_cell(metric, row.low, row.high) if has_intervals else ""
        text = format_spread(metric, row.mean, row.sd)
        return TableCell(text, sort_key(row.mean), note=note, on_phone=drawn(row))

    def kept_cell(row: Any) -> TableCell:
        interval = format_interval(metric, row.kept_low, row.kept_high)
        return number_cell(row.kept_mean, format_value(metric, row.kept_mean), interval)

    def ended_cell(row: Any) -> TableCell:
        place = f", rank {format_rank(row.survivors_rank)}" if row.order_differs else ""
        kind = "moved" if row.order_differs and row.survivors_n < row.n else "number"
        text = format_spread(metric, row.survivors_mean, row.survivors_sd)
        return number_cell(row.survivors_mean, text, f"n = {row.survivors_n}{place}", kind)

    def shared_cell(row: Any) -> TableCell:
        at_shared = float(shared.get(row.label, np.nan))
        gain = sign * (row.mean - at_shared)
        note = f"own {format_difference(metric, gain)}" if np.isfinite(gain) else ""
        return number_cell(at_shared, format_value(metric, at_shared), note)

    columns = []
    if choice:
        text = "With 95 % confidence the best is among these; of each other one, another does at least as well"
        columns.append(Column("May be best", text, lambda row: best_cell(may_be_best(choice, str(row.label)))))
    kind = "number spare" if choice else "number"
    columns += [
        Column(
            "Rank",
            f"By the mean, failed and collapsed trials {counted}",
            lambda row: number_cell(row.rank, format_rank(row.rank), kind=kind),
        ),
        Column("Configuration", "", lambda row: head(str(row.label))),
        Column(
            metric_title(metric),
            f"Mean ± SD over seeds, failed and collapsed {counted}: this ranks{brackets}",
            mean_cell,
        ),
        Column(
            "Seeds",
            "A dot is a seed, the bar their mean; a cross is a failed or collapsed one at the worst value",
            lambda row: TableCell("", sort_key(row.mean), "strip spare", html=drawn(row)),
        ),
    ]
    if kept:
        text = (
            f"What to expect of the one that validation prefers among {N_KEPT_OF} trainings; below, its 95 % interval"
        )
        columns.append(Column(f"Best of {N_KEPT_OF}", text, kept_cell))
    if lost:
        text = "Mean ± SD over finished trials alone, and their number"
        columns.append(Column("Runs that ended", text, ended_cell))
    columns += [
        Column("Worst seed", "", lambda row: number_cell(row.worst, format_value(metric, row.worst))),
        Column(
            "At the published threshold",
            "The same mean with the published threshold and post-processing for all; below, by how much choosing them "
            "for each trial on its validation images is better (+) or worse (−)",
            shared_cell,
        ),
        Column(
            "Finished",
            "Finished of planned trials",
            lambda row: TableCell(f"{row.n_finished}/{row.n_planned}", row.n_finished, note=format_counts(row)),
        ),
    ]
    notes = [note for note in table_notes(tables, rows, metric, set_name) if not note.startswith("[k]")]
    if len(rows) and rows.order_differs.any():
        notes.append("Where a rank stands below the mean of the runs that ended, these alone would take that place.")
    table = table_of(columns, rows_of(rows), [*notes, *unsaid_intervals(intervals)])
    for one in rows_of(tables.references.of(set_name, metric)) if tables.references else ():
        known = {
            "Configuration": head(reference_title(one.label)),
            metric_title(metric): number_cell(
                one.value, format_value(metric, one.value), format_interval(metric, one.low, one.high)
            ),
        }
        table.rows.append([known.get(column.title, TableCell("–", "")) for column in columns])
    return table


def best_cell(word: str) -> TableCell:
    """Whether a configuration may be the best."""
    order = {"yes": 0.0, "no": 1.0}.get(word, "")
    return TableCell(word, order, "good" if word == "yes" else "moved")


def lead_sentence(tables: Tables, metric: str, set_name: str) -> str:
    """Who leads on an external set, and what became of the test set's leader; nothing without a result."""
    here, home = (select(tables.ranking, set_name=name, metric=metric) for name in (set_name, "test"))
    known = here[here["rank"].notna()]
    if known.empty or home.empty:
        return ""
    first, favourite = known.iloc[0], home.iloc[0].label
    tied = list(known[known["rank"] == first["rank"]].label)
    who = str(first.label) if len(tied) == 1 else f"{first.label} and {len(tied) - 1} more"
    verb = "leads" if len(tied) == 1 else "lead"
    text = f"{who} {verb} with {metric_title(metric)} {format_spread(metric, first['mean'], first.sd)}"
    if favourite in tied:
        return f"{text}, as on the test set." if len(tied) == 1 else f"{text}."
    row = known[known.label == favourite]
    if row.empty:
        return f"{text}; {favourite}, first on the test set, has no result here."
    there = format_spread(metric, row.iloc[0]["mean"], row.iloc[0].sd)
    return f"{text}; {favourite}, first on the test set, is at rank {format_rank(row.iloc[0]['rank'])} with {there}."


def metrics_table(tables: Tables, metric: str, set_name: str) -> PageTable:
    """The best-known metrics of one set, default rule, in the order of the ranking; ranking.csv has all."""
    keys = [key for key in dict.fromkeys((metric, *SHOWN)) if key in tables.metrics]
    order = select(tables.ranking, set_name=set_name, metric=metric)
    by_metric = {
        key: {row.label: row for row in rows_of(select(tables.ranking, set_name=set_name, metric=key))} for key in keys
    }
    columns = [("Configuration", "")] + [(metric_title(key), METRICS[key].description) for key in keys]
    body = []
    for label in order.label:
        cells = [head(str(label))]
        for key, rows in by_metric.items():
            row = rows[label]
            spread = f"± {format_value(key, row.sd)}" if np.isfinite(row.sd) else ""
            note = [spread, format_interval(key, row.low, row.high)]
            cells.append(number_cell(row.mean, format_value(key, row.mean), "\n".join(filter(None, note))))
        body.append(cells)
    for one in rows_of(tables.references.of(set_name, metric)) if tables.references else ():
        values = {key: more_of(tables, one.label, key) for key in keys}
        numbers = [number_cell(value, format_value(key, value)) for key, value in values.items()]
        body.append([head(reference_title(one.label)), *numbers])
    return PageTable(columns, body)

"""Every figure of a report by name, drawn from tables; what it is called, and what it says to who can't see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from cellray.report import figures
from cellray.report.details import Details
from cellray.report.exports import set_title_plain
from cellray.report.figures import Drawing, draw
from cellray.report.mixtures import find_mixtures
from cellray.report.search_drawings import of_search, of_weights
from cellray.report.searched import Search
from cellray.report.tables import Plan, Record, Tables, format_value, metric_title, select, stopped_labels

Agreement = Mapping[str, Mapping[str, float]]
"""Set -> metric -> how well human experts agree."""


def draw_figures(
    records: Mapping[str, Record],
    tables: Tables,
    plan: Plan,
    details: Details,
    agreement: Agreement,
    *,
    search: Search | None = None,
) -> dict[str, Drawing]:
    """Every figure that the records can fill, by name.

    Args:
        records: Of the planned trials, by key.
        tables: Scores and ranks.
        plan: The planned trials.
        details: Of the same records.
        agreement: How well human experts agree.
        search: What a search tried, where there was one.
    """
    everyone = list(select(tables.ranking, set_name="test", metric=plan.rank_by).label) or plan.labels
    full = compared(tables)
    labels = [label for label in everyone if label not in stopped_labels(tables)]
    drawn = [
        *of_ranking(full, plan.rank_by, agreement),
        *of_differences(full, plan.rank_by, labels),
        *of_quality(full, details, labels),
        *of_generalisation(full, details, plan.rank_by, labels, agreement),
        *of_training(records, full, plan, details, everyone),
        *of_weights(find_mixtures(records, tables, plan, search), plan.rank_by),
        *(of_search(search, records, plan) if search else ()),
    ]
    return {drawing.name: drawing for drawing in drawn if drawing is not None}


def of_ranking(tables: Tables, metric: str, agreement: Agreement) -> Iterator[Drawing | None]:
    """Seeds, means and intervals of each set."""
    for name in tables.sets:
        if name != "val":
            yield draw(
                f"ranking-{name}",
                f"{metric_title(metric)}, {set_title_plain(name)}",
                describe_ranking(tables, metric, name),
                figures.ranking_dots,
                tables.scores,
                tables.ranking,
                set_name=name,
                metric=metric,
                ceiling=agreement.get(name, {}).get(metric),
            )


def of_differences(tables: Tables, metric: str, labels: list[str]) -> Iterator[Drawing | None]:
    """What the tests on the test set say; nothing where none was made."""
    inference = tables.inference
    if inference is None:
        return
    title = metric_title(metric)
    yield draw(
        "critical-difference",
        f"Mean ranks and critical difference, {title}",
        "Axis of mean ranks over the test images with every configuration on it; bars join those within the critical "
        "difference of the Nemenyi test.",
        figures.critical_difference,
        inference.ranks,
        inference.friedman,
    )
    yield draw(
        "pair-matrix",
        f"Paired differences in {title}, row minus column",
        f"Matrix of paired differences in {title} between all configurations in the order of the ranking; the tables "
        "of pairs hold the numbers.",
        figures.pair_matrix,
        inference.pairs,
        labels,
        metric=metric,
    )
    yield draw(
        "rank-stability",
        "Stability of the ranks",
        "Dots whose area is the share of resamples of images and seeds in which a configuration had each rank.",
        figures.rank_stability,
        inference.stability,
        inference.ranks,
    )


def of_quality(tables: Tables, details: Details, labels: list[str]) -> Iterator[Drawing | None]:
    """How cells are found and counted."""
    yield draw(
        "iou-curves",
        "F1 against the overlap that a hit needs, test set",
        "F1 at IoU thresholds from 0.1 to 0.9 on the test set, one panel a configuration with its mean and its seeds.",
        figures.iou_curves,
        details.iou,
        labels,
    )
    yield draw(
        "iou-curves-sets",
        "F1 against the overlap that a hit needs, every set",
        "F1 at IoU thresholds from 0.1 to 0.9, one panel a set; the best three configurations are in colour.",
        figures.iou_curves_by_set,
        details.iou,
        labels,
        tables.sets,
    )
    yield draw(
        "precision-recall",
        "Precision and recall at the operating points, test set",
        "Precision against recall of every trial on the test set, with lines of equal F1; collapsed trials at the "
        "origin.",
        figures.precision_recall,
        tables.scores,
        labels,
    )
    counts = details.counts_of("test")
    yield draw(
        "counts",
        "Cells counted on test images",
        "Predicted against true number of cells in each test image, all seeds, with the line of equal counts.",
        figures.count_scatter,
        counts,
        labels,
    )
    yield draw(
        "bland-altman",
        "Agreement of predicted and true counts, test set (Bland–Altman)",
        "True minus predicted number of cells against the mean of both, one panel a configuration, with the mean "
        "difference and the limits of agreement.",
        figures.bland_altman,
        counts,
        labels,
    )


def of_generalisation(
    tables: Tables, details: Details, metric: str, labels: list[str], agreement: Agreement
) -> Iterator[Drawing | None]:
    """What is left on external sets."""
    title = metric_title(metric)
    ceiling = {name: values[metric] for name, values in agreement.items() if metric in values}
    yield draw(
        "drop",
        f"From the test set to each external set: {title}",
        f"Mean {title} of each configuration on the test set and on each external set, with the difference.",
        figures.drop,
        tables.ranking,
        tables.sets,
        metric=metric,
        ceiling=ceiling,
    )
    yield draw(
        "transfer",
        f"{title} of every configuration on every set",
        f"Heat map of mean {title} of each configuration on each set; the numbers are in the tables by set.",
        figures.transfer_map,
        tables.ranking,
        tables.sets,
        metric=metric,
    )
    yield draw(
        "strata",
        "Kinds of images and sizes of cells",
        "Heat maps, one a set: F1 on sparse and crowded images and recall of small, medium and large cells, for every "
        "configuration.",
        figures.strata,
        details.strata,
        labels,
        tables.sets,
    )
    yield draw(
        "error-kinds",
        "Kinds of errors, per true cell",
        "Stacked bars of missed, merged, split and spurious cells per true cell, one panel a set and one bar a "
        "configuration.",
        figures.error_kinds,
        tables.scores,
        labels,
        tables.sets,
    )


def of_training(
    records: Mapping[str, Record], tables: Tables, plan: Plan, details: Details, labels: list[str]
) -> Iterator[Drawing | None]:
    """Learning curves, range tests and cost."""
    by_trial = {(t.label, t.seed): records[t.key] for t in plan.trials if t.key in records}
    outcomes = {key: str(record["outcome"]) for key, record in by_trial.items()}
    yield draw(
        "validation-dice",
        "Learning curves: Dice on validation images",
        "Validation Dice by epoch, one panel a configuration and one line a seed; a cross marks a collapse.",
        figures.curves,
        details.histories,
        outcomes,
        labels,
        column="val_dice",
        title="validation Dice",
        shared_y=(0.0, 1.0),
    )
    yield draw(
        "training-loss",
        "Learning curves: training loss",
        "Training loss by epoch, one panel a configuration with its own scale and one line a seed.",
        figures.curves,
        details.histories,
        outcomes,
        labels,
        column="train_loss",
        title="training loss (own scale each)",
    )
    yield draw(
        "range-tests",
        "Learning-rate range tests",
        "Training loss against learning rate, one panel a configuration; a dot marks the rate that was used.",
        figures.range_tests,
        by_trial,
        labels,
    )
    yield draw(
        "term-scales",
        "Scales of balanced loss terms",
        "What each term of a balanced loss was multiplied by, one panel a configuration and one point a seed.",
        figures.term_scales,
        by_trial,
        labels,
    )
    yield draw(
        "costs",
        f"{metric_title(plan.rank_by)} on the test set against training time",
        f"Mean {metric_title(plan.rank_by)} of each configuration against its mean training time, and its peak memory "
        "where known; the table of costs holds the numbers.",
        figures.costs,
        tables.trials,
        tables.ranking,
        metric=plan.rank_by,
    )


def compared(tables: Tables) -> Tables:
    """Tables without the configurations that were stopped early: nothing is compared with those."""
    stopped = stopped_labels(tables)

    def of_others(table: pd.DataFrame) -> pd.DataFrame:
        return table[~table.label.isin(stopped)]

    return replace(
        tables,
        scores=of_others(tables.scores),
        ranking=of_others(tables.ranking),
        trials=of_others(tables.trials),
    )


def describe_ranking(tables: Tables, metric: str, set_name: str) -> str:
    """A sentence for readers who can't see the dot plot."""
    rows = select(tables.ranking, set_name=set_name, metric=metric)
    rows = rows[np.isfinite(rows["mean"].astype(float))]
    if rows.empty:
        return "Dot plot without results yet."
    first, last = rows.iloc[0], rows.iloc[-1]
    return (
        f"Dot plot of {metric_title(metric)} for every seed of {len(rows)} configurations, best on top: from "
        f"{first.label} (mean {format_value(metric, first['mean'])}) to {last.label} (mean "
        f"{format_value(metric, last['mean'])})."
    )

"""One configuration against another, or one study against another, by the statistics of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellray.errors import StudyError
from cellray.report.exports import EXTRA
from cellray.report.inference import versus
from cellray.report.ranking import Tables, make_tables, rows_of, select
from cellray.report.text import TextTable, format_difference, format_p, format_value, interval_cell, metric_title
from cellray.results import Results
from cellray.scores import stopped_in

PAIRED = (
    "Differences are paired by seed and image; above 0, the first is better. Failed and collapsed trials count as the "
    "worst value."
)


def compare_configurations(results: Results, a: str, b: str) -> TextTable:
    """Two configurations of a study: the metric that ranks on every set, and a few more on the test set.

    Args:
        results: The study's.
        a: A label.
        b: Another one.

    Raises:
        StudyError: If both are the same.
    """
    if a == b:
        raise StudyError(f"{a!r} is named twice: nothing to compare")
    plan, tables = results.plan, make_tables(results)
    asked = [(name, plan.rank_by) for name in tables.sets if name != "val"]
    asked += [("test", key) for key in EXTRA if key != plan.rank_by and key in tables.metrics]
    rows = []
    for name, metric in asked:
        found = versus(tables, results.samples, [(a, b)], set_name=name, metric=metric)
        rows.append([name, metric_title(metric), *_cells(tables, found, a, b, name, metric)])
    return TextTable(["set", "metric", *_columns(a, b)], rows, [PAIRED])


def compare_studies(studies: Sequence[Results]) -> TextTable:
    """Two studies, configuration by configuration where they have the same label, on the test set.

    They are paired by seed, and by image where both were judged on the same images.

    Raises:
        StudyError: If no label is in both, or they are ranked by different metrics.
    """
    first, second = (results.plan for results in studies)
    metric = first.rank_by
    if second.rank_by != metric:
        raise StudyError(f"{first.study} is ranked by {metric}, {second.study} by {second.rank_by}: nothing to compare")
    common = [label for label in first.labels if label in second.labels]
    if not common:
        raise StudyError(f"no configuration of {first.study} has a namesake in {second.study}")
    both = Results.together(studies, common)
    tables = make_tables(both)
    couples = [(f"0/{label}", f"1/{label}") for label in common]
    found = versus(tables, both.samples, couples, set_name="test", metric=metric)
    rows = []
    for label, (a, b) in zip(common, couples, strict=True):
        pair = found[(found.a.isin((a, b))) & (found.b.isin((a, b)))]
        rows.append([label, *_cells(tables, pair, a, b, "test", metric)])
    notes = [f"{metric_title(metric)} on the test set.", PAIRED]
    if len(found) and found.n_images.max() < 2:
        notes.append("The test images differ, or their rows are missing: only seeds are paired.")
    return TextTable(["configuration", *_columns(first.study, second.study)], rows, notes)


def _columns(a: str, b: str) -> list[str]:
    return [a, b, "difference", "95 % interval", "p", "first wins a rerun", "verdict"]


def _cells(tables: Tables, found: pd.DataFrame, a: str, b: str, set_name: str, metric: str) -> list[str]:
    means = select(tables.ranking, set_name=set_name, metric=metric).set_index("label")["mean"]
    shown = [format_value(metric, float(means.get(label, np.nan))) for label in (a, b)]
    if found.empty:
        early = [who for who, label in (("the first", a), ("the second", b)) if label in stopped_in(tables.scores)]
        why = f"{' and '.join(early)} stopped early" if early else "no common seed"
        return [*shown, "–", "–", "–", "–", why]
    pair = rows_of(found)[0]
    # the first is named first, whichever is better
    sign = 1.0 if pair.a == a else -1.0
    low, high = sorted((sign * pair.low, sign * pair.high))
    chance = pair.superiority if sign > 0 else 1 - pair.superiority
    better = "the first" if sign > 0 else "the second"
    return [
        *shown,
        format_difference(metric, sign * pair.difference),
        interval_cell(metric, low, high) or "–",
        format_p(pair.p_adjusted),
        f"{chance:.2f}" if np.isfinite(chance) else "–",
        f"{better} is better" if pair.decided else "undecided",
    ]

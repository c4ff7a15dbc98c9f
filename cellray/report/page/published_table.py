"""This study beside the reference study's published table, where it is the same ablation."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cellray import published
from cellray.report.page.table_cells import PageTable, head, number_cell
from cellray.report.ranking import Tables, rows_of, select
from cellray.report.text import format_rank, format_spread

METRIC = "f1_iou"
ENOUGH_SHARED = 6
"""Labels of the reference study that a study must share with it to be put beside it."""


def published_table(tables: Tables) -> PageTable | None:
    """Published F1, the same with collapsed runs counted, and this study's, in this study's order.

    None where fewer than `ENOUGH_SHARED` of the twelve configurations are in this study, or it doesn't know the metric.
    """
    known = published.recount()
    known = known[known.metric == METRIC].set_index("configuration")
    rows = [row for row in rows_of(select(tables.ranking, set_name="test", metric=METRIC)) if row.label in known.index]
    if len(rows) < ENOUGH_SHARED:
        return None
    columns = [
        ("Configuration", ""),
        ("Published", "Mean ± SD of the slides' table"),
        ("Rank", "By the published means"),
        ("Collapses counted", "The public runs, those that predict nothing counted as 0"),
        ("Rank, counted", "By those means"),
        ("This study", "Mean ± SD on the test set, failed and collapsed counted as worst"),
        ("Rank here", "In this study's whole ranking by F1 (IoU)"),
    ]
    slides_rank = known.slides_mean.round(9).rank(ascending=False, method="min")
    body = []
    for row in rows:
        theirs = known.loc[row.label]
        collapsed = f"{theirs.n_collapsed:.0f} of {theirs.n_runs:.0f} runs" if theirs.n_collapsed else ""
        body.append(
            [
                head(str(row.label)),
                number_cell(theirs.slides_mean, format_spread(METRIC, theirs.slides_mean, theirs.slides_sd)),
                number_cell(slides_rank[row.label], format_rank(slides_rank[row.label])),
                number_cell(theirs.all_mean, format_spread(METRIC, theirs.all_mean, theirs.all_sd), collapsed),
                number_cell(theirs.all_rank, format_rank(theirs.all_rank)),
                number_cell(row.mean, format_spread(METRIC, row.mean, row.sd)),
                number_cell(row.rank, format_rank(row.rank)),
            ]
        )
    notes = [
        "The reference study trained on fluorescent neuronal cells with its own budget: where this study's data or "
        "budget differ, orders may be compared, values may not. See cellray audit published for every metric."
    ]
    ended = [row for row in rows if np.isfinite(row.mean)]
    if len(ended) >= ENOUGH_SHARED:
        here = np.array([row.mean for row in ended])
        labels = [row.label for row in ended]
        theirs = (known.loc[labels, column].to_numpy(dtype=float) for column in ("slides_mean", "all_mean"))
        rho = [spearman(here, means) for means in theirs]
        if np.isfinite(rho).all():
            by_slides, by_all = (f"{value:+.2f}".replace("-", "−") for value in rho)
            notes.append(
                f"Spearman's rank correlation over these {len(ended)} configurations: {by_slides} with the "
                f"published order, {by_all} with collapses counted (1 is the same order, 0 no relation)."
            )
    return PageTable(columns, body, notes)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation in [-1, 1]; NaN if either is constant."""
    a, b = (pd.Series(values.round(9)).rank().to_numpy() for values in (x, y))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")

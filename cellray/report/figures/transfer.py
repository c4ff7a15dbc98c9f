"""What is left of a score on external sets."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellray.metrics import METRICS
from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.looks import BLUE, INK, MOST_PANELS, MUTED, PAPER
from cellray.report.figures.parts import (
    as_label,
    best_of,
    draw_ceiling,
    heat_cells,
    name_cells,
    named_rows,
    new_figure,
    sets_of,
    signed,
)
from cellray.report.findings import Findings
from cellray.report.text import format_value


def transfer_map(found: Findings) -> Figure | None:
    """Mean of each configuration on each set (test first), with the change from test written below the value."""
    metric, ranking = found.metric, found.compared.ranking
    shown = ["test", *found.external]
    if len(shown) < 2:
        return None
    rows = ranking[(ranking.metric == metric) & (ranking.point == "own") & ranking.set.isin(shown)]
    known = list(rows[rows.set == "test"].label)
    order = known[:MOST_PANELS]
    grid = rows.pivot(index="label", columns="set", values="mean").loc[order, shown].to_numpy(dtype=float)
    if not np.isfinite(grid).any():
        return None
    figure = new_figure(min(2.6 + 1.25 * len(shown), 12), 1.2 + 0.46 * len(order))
    axis = figure.add_subplot()
    span = METRICS[metric].worst is not None
    image = axis.imshow(
        grid, cmap="cividis" if METRICS[metric].higher_is_better else "cividis_r", aspect="auto",
        vmin=0 if span else None, vmax=1 if span else None,
    )  # fmt: skip
    texts = [[cell_text(metric, value, row[0] if j else None) for j, value in enumerate(row)] for row in grid]
    heat_cells(axis, image, grid, texts)
    name_cells(axis, [as_label(label) for label in order], [as_label(name, 16) for name in shown])
    if len(order) < len(known):
        figure.supxlabel(best_of(known, len(order)).strip(" ()"), fontsize=10)
    return figure


def cell_text(metric: str, value: float, home: float | None) -> str:
    """A mean and, below it, the change from the test set."""
    text = format_value(metric, value)
    return text if home is None else f"{text}\n({change_text(value - home)})"


def change_text(change: float) -> str:
    """A change with its sign."""
    return signed(change, f"{abs(change):.2f}")


def drop(found: Findings) -> Figure | None:
    """One panel an external set: each configuration from its mean on the test set to its mean there, best on top.

    Where it is known, what human experts reach against the ground truth is a dashed line.
    """
    metric, ranking = found.metric, found.compared.ranking
    rows = ranking[(ranking.metric == metric) & (ranking.point == "own")]
    rows = rows[np.isfinite(rows["mean"].astype(float))]
    shown = sets_of(rows, found.external)
    home = rows[rows.set == "test"].set_index("label")["mean"]
    if not shown or home.empty:
        return None
    labels = list(home.index[:MOST_PANELS])
    figure, axes = named_rows(len(shown), labels, row=0.235, top=0.55)
    for axis, name in zip(axes, shown, strict=True):
        away = rows[rows.set == name].set_index("label")["mean"].reindex(labels)
        for i, label in enumerate(labels):
            if not np.isfinite(away[label]):
                continue
            axis.plot([home[label], away[label]], [i, i], "-", color=MUTED, lw=1)
            axis.plot([home[label]], [i], "o", ms=5, mfc=PAPER, mec=MUTED)
            axis.plot([away[label]], [i], "o", ms=6, color=BLUE, mew=0)
            axis.annotate(
                change_text(away[label] - home[label]), (1, i), xycoords=axis.get_yaxis_transform(), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=9, color=INK, annotation_clip=False,
            )  # fmt: skip
        axis.set_title(as_label(name, 30), loc="left")
        draw_ceiling(axis, found.ceiling.get(name))
        if METRICS[metric].worst is not None:
            axis.set_xlim(0, 1)
    handles = [
        Line2D([], [], ls="", marker="o", ms=5, mfc=PAPER, mec=MUTED, label="test set"),
        Line2D([], [], ls="", marker="o", ms=6, color=BLUE, mew=0, label="external set (difference at the right)"),
    ]
    if any(name in found.ceiling for name in shown):
        handles.append(Line2D([], [], ls="--", lw=1.2, color=INK, label="human experts"))
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    figure.supxlabel(found.title + best_of(list(home.index), len(labels)), fontsize=10)
    return figure


DROP = ReportFigure(
    name="drop",
    section="generalisation",
    reading="From the open dot (test set) to the filled one (images from other laboratories, stains or microscopes), "
    "with the difference at the right: the shorter the line, the better a configuration carries over.",
    title="From the test set to each external set: {metric}",
    alt="Mean {metric} of each configuration on the test set and on each external set, with the difference.",
    plot=drop,
    is_folded=False,
)
TRANSFER = ReportFigure(
    name="transfer",
    section="generalisation",
    reading="The mean score of each configuration on each set; in brackets the change from the test set.",
    title="{metric} of every configuration on every set",
    alt="Heat map of mean {metric} of each configuration on each set; the numbers are in the tables by set.",
    plot=transfer_map,
)

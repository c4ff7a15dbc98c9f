"""Which cells are found and what goes wrong with the others."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.looks import GROUP_COLOURS, MOST_PANELS, PAPER
from cellray.report.figures.parts import (
    as_label,
    best_of,
    grid_of,
    heat_cells,
    labels_of,
    name_cells,
    named_rows,
    new_figure,
    sets_of,
)
from cellray.report.findings import Findings

LEVELS = (
    ("crowding", "sparse", "f1_iou", "F1\nsparse"),
    ("crowding", "crowded", "f1_iou", "F1\ncrowded"),
    ("size", "small", "recall_iou", "recall\nsmall"),
    ("size", "medium", "recall_iou", "recall\nmedium"),
    ("size", "large", "recall_iou", "recall\nlarge"),
)
"""Stratum, level, what is shown of it, and the column's title."""

KINDS = dict(zip(("missed", "merged", "split", "spurious"), GROUP_COLOURS, strict=False))


def strata(found: Findings) -> Figure | None:
    """Heat maps, one a set: F1 of images with few and many touching cells, recall of small, medium and large cells.

    Means over seeds; failed and collapsed trials are 0. Levels that a set lacks are left out. Of images without cells,
    the last column gives how many cells were predicted per image, over the trials that neither failed nor collapsed.
    """
    levels = found.details.strata
    means = levels.groupby(["set", "stratum", "level", "label"])[["f1_iou", "recall_iou"]].mean()
    empty = levels[(levels.level == "empty") & levels.mae.notna()].groupby(["set", "label"])["mae"].mean()
    there = set(zip(levels["set"], levels.stratum, levels.level, strict=True))
    known = labels_of(levels, found.labels)
    shown = known[:MOST_PANELS]
    grids = {}
    for name in sets_of(levels, found.tables.sets):
        columns = {
            title: means[score].xs((name, stratum, level)).reindex(shown)
            for stratum, level, score, title in LEVELS
            if (name, stratum, level) in there
        }
        if columns:
            grids[name] = pd.DataFrame(columns)
    if not grids or not shown:
        return None
    across = min(2, len(grids))
    down = math.ceil(len(grids) / across)
    figure = new_figure(9.6 if across == 2 else 6.0, 0.3 + down * (0.8 + 0.27 * len(shown)))
    axes = grid_of(figure, len(grids), across)
    for k, (axis, (name, grid)) in enumerate(zip(axes, grids.items(), strict=True)):
        values = grid.to_numpy(dtype=float)
        titles = list(grid.columns)
        drawn = values
        if name in empty.index.get_level_values("set"):
            titles.append("per empty\nimage")
            drawn = np.column_stack([values, np.full(len(values), np.nan)])
            for i, number in enumerate(empty[name].reindex(shown)):
                text = f"{number:.1f}" if np.isfinite(number) else "–"
                axis.text(len(titles) - 1, i, text, ha="center", va="center", fontsize=9)
        image = axis.imshow(drawn, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        heat_cells(axis, image, values, [[f"{x:.2f}".removeprefix("0") for x in row] for row in values])
        name_cells(axis, [as_label(label, 24) for label in shown], titles)
        axis.tick_params(labelleft=k % across == 0)
        axis.set_title(as_label(name, 32), loc="left", pad=31)  # above the names of the columns
    if len(shown) < len(known):
        figure.supxlabel(best_of(known, len(shown)).strip(" ()"), fontsize=10)
    return figure


def error_kinds(found: Findings) -> Figure | None:
    """Missed, merged, split and spurious cells per true cell, stacked, one panel a set; means over seeds.

    A failed or collapsed trial missed every cell. Each set has its own scale, as spurious cells have no bound.
    """
    scores = found.compared.scores
    rows = scores[scores.metric.isin(KINDS) & (scores.point == "own") & (scores.outcome != "missing")]
    rows = rows[rows["set"] != "val"]
    if rows.empty:
        return None
    lost = rows.note != ""
    rows = rows.assign(rate=rows.value.where(~lost, (rows.metric == "missed").astype(float)))
    means = rows.groupby(["set", "metric", "label"])["rate"].mean()
    known = labels_of(rows, found.labels)
    shown = known[:MOST_PANELS]
    names = sets_of(rows, found.tables.sets)
    figure, axes = named_rows(len(names), shown, row=0.235, top=0.5)
    for axis, name in zip(axes, names, strict=True):
        left = np.zeros(len(shown))
        for kind, colour in KINDS.items():
            width = means.xs((name, kind)).reindex(shown).fillna(0.0).to_numpy()
            axis.barh(range(len(shown)), width, left=left, height=0.72, color=colour, edgecolor=PAPER, linewidth=0.4)
            left += width
        axis.set_title(as_label(name, 30), loc="left")
        axis.grid(axis="y", visible=False)
    figure.supxlabel("cells per true cell" + best_of(known, len(shown)), fontsize=10)
    handles = [Patch(color=colour, label=kind) for kind, colour in KINDS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=4)
    return figure


STRATA = ReportFigure(
    name="strata",
    section="generalisation",
    reading="The score split by crowding of the image, and the recall by size of the cell: a weak column shows where a "
    "mean hides trouble. The last column counts what is predicted in an image without cells.",
    title="Kinds of images and sizes of cells",
    alt="Heat maps, one a set: F1 on sparse and crowded images and recall of small, medium and large cells, for "
    "every configuration.",
    plot=strata,
)
ERROR_KINDS = ReportFigure(
    name="error-kinds",
    section="generalisation",
    reading="What goes wrong, per true cell: cells missed, neighbours merged into one, one cell split in several, and "
    "spurious ones that are none. Short bars are good; each set has its own scale.",
    title="Kinds of errors, per true cell",
    alt="Stacked bars of missed, merged, split and spurious cells per true cell, one panel a set and one bar a "
    "configuration.",
    plot=error_kinds,
)

"""Finding cells: F1 over IoU thresholds, precision against recall."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.looks import BAD, BLUE, GROUP_COLOURS, MOST_PANELS, MUTED, NARROW, PAPER, label_looks
from cellray.report.figures.parts import as_label, best_of, labels_of, new_figure, panels, sets_of
from cellray.report.findings import Findings
from cellray.report.ranking import select

TOP = 3
"""Configurations in colour where all are drawn into one panel."""

TOP_STYLES = tuple(zip(GROUP_COLOURS[:TOP], ("-", "--", "-."), strict=True))


def iou_curves(found: Findings) -> Figure | None:
    """F1 against the IoU that a hit needs, one panel a configuration: its mean, its seeds, and all others in grey.

    Failed and collapsed trials are 0 throughout, and so pull the mean down.
    """
    rows = found.details.iou[found.details.iou["set"] == "test"]
    known = labels_of(rows, found.labels)
    if not known:
        return None
    shown = known[:MOST_PANELS]
    means = mean_curves(rows)
    figure, axes = panels(known, "IoU that a hit needs", "F1 on test", same_y=True)
    for label, axis in axes.items():
        draw_together(axis, means, [other for other in shown if other != label])
        for _, seed in rows[rows.label == label].groupby("seed"):
            axis.plot(seed.threshold, seed.f1, color=BLUE, lw=0.7, alpha=0.5)
        axis.plot(means.columns, means.loc[label], color=BLUE, lw=2)
        frame_curves(axis)
    handles = [
        Line2D([], [], color=BLUE, lw=2, label="mean, worst counted"),
        Line2D([], [], color=BLUE, lw=0.7, alpha=0.5, label="one seed"),
        Line2D([], [], color=MUTED, lw=0.7, alpha=0.5, label="the other configurations"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


def iou_curves_by_set(found: Findings) -> Figure | None:
    """F1 against the IoU that a hit needs, one panel a set: the best three configurations in colour."""
    iou = found.details.iou
    shown = sets_of(iou, found.tables.sets)
    if len(shown) < 2:
        return None
    figure, axes = panels(shown, "IoU that a hit needs", "F1, mean over seeds", height=2.3, same_y=True)
    top = labels_of(iou, found.labels)[:TOP]
    for name, axis in axes.items():
        means = mean_curves(iou[iou["set"] == name])
        draw_together(axis, means, list(means.index.difference(top)))
        for label, (colour, dashes) in reversed(list(zip(top, TOP_STYLES, strict=False))):
            if label in means.index:
                axis.plot(means.columns, means.loc[label], color=colour, ls=dashes, lw=2)
        frame_curves(axis)
    handles = [
        Line2D([], [], color=colour, ls=dashes, lw=2, label=as_label(label, 30))
        for label, (colour, dashes) in zip(top, TOP_STYLES, strict=False)
    ]
    if len(set(iou.label)) > TOP:
        handles.append(Line2D([], [], color=MUTED, lw=0.7, alpha=0.5, label="the others"))
    figure.legend(handles=handles, loc="outside upper right", ncols=4)
    return figure


def mean_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean F1 over seeds, one row a label and one column a threshold."""
    return rows.groupby(["label", "threshold"])["f1"].mean().unstack()


def draw_together(axis: Axes, means: pd.DataFrame, labels: Sequence[str]) -> None:
    """The curves of many configurations in grey, as one path with gaps: a twelfth of the bytes of twelve paths."""
    rows = means.loc[list(labels)].assign(gap=np.nan).to_numpy()
    axis.plot([*means.columns, np.nan] * len(rows), rows.ravel(), color=MUTED, lw=0.7, alpha=0.45)


def frame_curves(axis: Axes) -> None:
    """The same axes in every panel."""
    axis.set_xlim(0.08, 0.92)
    axis.set_ylim(0, 1)
    axis.set_xticks([0.1, 0.3, 0.5, 0.7, 0.9])


def precision_recall(found: Findings) -> Figure | None:
    """Precision against recall at each trial's operating point, one point a seed, with lines of equal F1.

    Failed and collapsed trials have neither precision nor recall: their cross stands in the corner towards (0, 0), with
    their number, so that they don't squeeze the others together. Colours tell groups of
    configurations, markers the members of a group.
    """
    precision, recall = (
        select(found.compared.scores, set_name="test", metric=key).set_index(["label", "seed"])
        for key in ("precision_iou", "recall_iou")
    )
    points = precision[["note"]].assign(precision=precision.counted, recall=recall.counted)
    points = points[np.isfinite(points.precision) & np.isfinite(points.recall)].reset_index()
    if points.empty:
        return None
    lost = points[points.note != ""]
    alive = points[points.note == ""]
    known = labels_of(alive, found.labels)
    shown = known[:MOST_PANELS]
    figure = new_figure(NARROW, 4.6 + 0.2 * math.ceil((len(shown) + 1) / 2))
    axis = figure.add_subplot()
    low = max(0.0, float(alive[["precision", "recall"]].min().min()) - 0.06) if len(alive) else 0.0
    draw_equal_f1(axis, low)
    looks = label_looks(shown)
    for label in reversed(shown):  # the best on top
        rows = alive[alive.label == label]
        axis.plot(rows.recall, rows.precision, ls="", ms=7, mec=PAPER, mew=0.6, alpha=0.9, **looks[label])
    handles = [Line2D([], [], ls="", ms=7, mew=0, label=as_label(label), **looks[label]) for label in shown]
    if len(lost):
        axis.plot([0.03], [0.03], "x", transform=axis.transAxes, ms=9, mec=BAD, mew=2.2, zorder=6)
        axis.annotate(f"{len(lost)} at (0, 0)", (0.055, 0.03), xycoords="axes fraction", va="center", fontsize=9)
        handles.append(Line2D([], [], ls="", marker="x", mec=BAD, mew=2, ms=8, label="failed or collapsed"))
    axis.set_xlim(low, 1)
    axis.set_ylim(low, 1)
    axis.set_aspect("equal")
    axis.set_xlabel("recall on test" + best_of(known, len(shown)))
    axis.set_ylabel("precision")
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def draw_equal_f1(axis: Axes, low: float) -> None:
    """Lines on which F1 = 2PR / (P + R) is the same, each with its value at its end."""
    for f1 in np.arange(0.1, 1.0, 0.1):
        if f1 / (2 - f1) >= 1 or f1 <= low:
            continue
        recall = np.linspace(f1 / (2 - f1), 1, 60)
        axis.plot(recall, f1 * recall / (2 * recall - f1), color=MUTED, lw=0.7, alpha=0.5, zorder=1)
        if f1 / (2 - f1) > low:
            axis.annotate(
                f"F1 {f1:.1f}", (1, f1 / (2 - f1)), xytext=(4, 0), textcoords="offset points", va="center",
                color=MUTED, fontsize=9, annotation_clip=False,
            )  # fmt: skip


IOU_CURVES = ReportFigure(
    name="iou-curves",
    section="quality",
    reading="How the score falls as an outline has to fit more exactly to count as found: at the left a rough hit is "
    "enough, at the right only an almost perfect outline counts. Grey: all other configurations.",
    title="F1 against the overlap that a hit needs, test set",
    alt="F1 at IoU thresholds from 0.1 to 0.9 on the test set, one panel a configuration with its mean and its seeds.",
    plot=iou_curves,
)
IOU_CURVES_BY_SET = ReportFigure(
    name="iou-curves-sets",
    section="quality",
    reading="The same on every set. Where lines cross, the order hangs on how exact an outline has to be.",
    title="F1 against the overlap that a hit needs, every set",
    alt="F1 at IoU thresholds from 0.1 to 0.9, one panel a set; the best three configurations are in colour.",
    plot=iou_curves_by_set,
)
PRECISION_RECALL = ReportFigure(
    name="precision-recall",
    section="quality",
    reading="To the right, fewer cells are missed; upwards, fewer are made up. A mark is one seed at its own operating "
    "point, the thin lines join equal F1, and a cross at the origin stands for collapsed or failed trials.",
    title="Precision and recall at the operating points, test set",
    alt="Precision against recall of every trial on the test set, with lines of equal F1; collapsed trials at the "
    "origin.",
    plot=precision_recall,
    is_folded=False,
)

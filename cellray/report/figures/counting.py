"""Predicted against true counts of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.parts import BLUE, MEAN, MOST_PANELS, MUTED, as_label, panels

SIZES = (2.6, 4.2, 6.0, 8.5)
"""Diameters of dots, in points, for 1, 2 to 3, 4 to 7 and more images."""


def count_scatter(counts: Mapping[str, pd.DataFrame], labels: Sequence[str]) -> Figure | None:
    """Predicted against true cells of each test image, all seeds; area tells how many images share a point."""
    known = [label for label in labels if label in counts and len(counts[label])]
    if not known:
        return None
    shown = known[:MOST_PANELS]
    top = max(float(max(counts[label].n_true.max(), counts[label].n_pred.quantile(0.995))) for label in shown)
    top = max(top, 1.0) * 1.05
    shared = {label: counts[label].groupby(["n_true", "n_pred"]).size().reset_index(name="n") for label in shown}
    figure, axes = panels(known, "true cells in an image", "predicted cells", height=2.2, same_y=True)
    for label, axis in axes.items():
        pairs = shared[label]
        beyond = int(pairs.n[pairs.n_pred > top].sum())
        axis.plot([0, top], [0, top], color=MUTED, lw=1)
        draw_dots(axis, pairs.n_true, pairs.n_pred.clip(upper=top), pairs.n)
        if beyond:
            axis.set_title(f"{as_label(label, 32)}  ({beyond} above)", loc="left")
        axis.set_xlim(-0.03 * top, top)
        axis.set_ylim(-0.03 * top, top * 1.02)
    return figure


def draw_dots(axis: Axes, x: pd.Series, y: pd.Series, n: pd.Series) -> None:
    """Dots whose size tells how many images share the place; those of a size are one path, of few bytes."""
    size = np.digitize(n, (2, 4, 8))
    for k, width in enumerate(SIZES):
        chosen = size == k
        if not chosen.any():
            continue
        # a dot is a line of nearly no length with round ends; snapped to pixels it would have none and vanish
        ends = np.stack([x[chosen], y[chosen], x[chosen] + 1e-3, y[chosen]], axis=1).reshape(-1, 2)
        path = Path(ends, [Path.MOVETO, Path.LINETO] * int(chosen.sum()))
        axis.add_patch(PathPatch(path, fill=False, ec=BLUE, lw=width, alpha=0.55, capstyle="round", snap=False))


def bland_altman(counts: Mapping[str, pd.DataFrame], labels: Sequence[str]) -> Figure | None:
    """Difference of the two counts of an image against their mean, one panel a configuration, all seeds together.

    The difference is true minus predicted, as in the count errors: above 0, too few were found. Lines are at the mean
    difference and at 1.96 standard deviations from it, the limits of agreement (Bland and Altman 1986); they include
    collapsed trials, which found nothing. One image and seed alone has no limits.

    Args:
        counts: Label -> one row an image and seed, with the columns n_true and n_pred.
        labels: In the order to show.
    """
    known = [label for label in labels if label in counts and len(counts[label])]
    if not known:
        return None
    shown = known[:MOST_PANELS]
    errors = {label: (counts[label].n_true - counts[label].n_pred).astype(float) for label in shown}
    means = {label: (counts[label].n_true + counts[label].n_pred) / 2 for label in shown}
    every = pd.concat(list(errors.values()))
    reach = max(float(every.abs().quantile(0.995)), 1.0) * 1.1
    right = max(max(float(mean.quantile(0.995)) for mean in means.values()), 1.0) * 1.05
    figure, axes = panels(
        known, "mean of true and predicted cells in an image", "true − predicted cells", height=2.2, same_y=True
    )
    for label, axis in axes.items():
        points = pd.DataFrame({"mean": means[label], "error": errors[label]})
        shared = points.groupby(["mean", "error"]).size().reset_index(name="n")
        draw_dots(axis, shared["mean"].clip(upper=right), shared.error.clip(-reach, reach), shared.n)
        bias, spread = float(errors[label].mean()), 1.96 * float(errors[label].std())
        axis.axhline(0, color=MUTED, lw=0.8)
        axis.axhline(bias, color=MEAN, lw=1.6)
        text = f"bias {bias:+.1f}"
        if np.isfinite(spread):
            for limit in (bias - spread, bias + spread):
                axis.axhline(limit, color=MEAN, lw=1.1, ls="--")
            text += f", limits {bias - spread:+.1f} to {bias + spread:+.1f}"
        axis.set_title(f"{as_label(label, 32)}\n{text}", loc="left", fontsize=9.5)
        axis.set_xlim(-0.03 * right, right)
        axis.set_ylim(-reach, reach)
    handles = [
        Line2D([], [], lw=1.6, color=MEAN, label="bias"),
        Line2D([], [], lw=1.1, ls="--", color=MEAN, label="limits of agreement (1.96 SD)"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


CELL_COUNTS = ReportFigure(
    name="counts",
    section="quality",
    reading="A dot is an image (a larger one several): on the line the count is right, below it cells are missing, "
    "above it there are too many.",
    title="Cells counted on test images",
    alt="Predicted against true number of cells in each test image, all seeds, with the line of equal counts.",
    plot=lambda found: count_scatter(found.details.counts_of("test"), found.labels),
)
BLAND_ALTMAN = ReportFigure(
    name="bland-altman",
    section="quality",
    reading="How wrong a count is (up: too few found) against how many cells there are. The middle line is the mean "
    "error, and most images lie between the outer two; a fan opening to the right means that crowded images "
    "fare worse.",
    title="Agreement of predicted and true counts, test set (Bland–Altman)",
    alt="True minus predicted number of cells against the mean of both, one panel a configuration, with the mean "
    "difference and the limits of agreement.",
    plot=lambda found: bland_altman(found.details.counts_of("test"), found.labels),
)

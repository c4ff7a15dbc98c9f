"""Predicted against true counts of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from cellray.report.figures.drawing import ReportFigure, Sketch
from cellray.report.figures.looks import BLUE, MOST_PANELS, MUTED
from cellray.report.figures.parts import as_label, panels
from cellray.report.findings import Findings

SIZES = (2.6, 4.2, 6.0, 8.5)
"""Diameters of dots, in points, for 1, 2 to 3, 4 to 7 and more images."""


def count_scatter(counts: Mapping[str, pd.DataFrame], labels: Sequence[str]) -> Figure | None:
    """Predicted against true cells of each test image, all seeds; area tells how many images share a point.

    A panel's title has the mean of true - predicted cells and, 1.96 standard deviations from it, the limits of
    agreement (Bland and Altman 1986); they include collapsed trials, which found nothing. One image and seed alone has
    no limits.
    The axes follow the bulk of the true counts: what lies beyond stands at the edge, and is counted in the title.

    Args:
        counts: Label -> one row an image and seed, with the columns n_true and n_pred.
        labels: In the order to show.
    """
    known = [label for label in labels if label in counts and len(counts[label])]
    if not known:
        return None
    shown = known[:MOST_PANELS]
    true = pd.concat([counts[label].n_true for label in shown])
    top = max(1.25 * min(float(true.max()), 3 * float(true.quantile(0.9))), 2.0)
    figure, axes = panels(known, "true cells in an image", "predicted cells", height=2.3, same_y=True, is_narrow=True)
    for label, axis in axes.items():
        shared = counts[label].groupby(["n_true", "n_pred"]).size().reset_index(name="n")
        axis.plot([0, top], [0, top], color=MUTED, lw=1)
        draw_dots(axis, shared.n_true.clip(upper=top), shared.n_pred.clip(upper=top), shared.n)
        beyond = int(shared.n[(shared.n_pred > top) | (shared.n_true > top)].sum())
        name = as_label(label, 26) + (f"  ({beyond} beyond)" if beyond else "")
        axis.set_title(f"{name}\n{agreement(counts[label])}", loc="left", fontsize=9)
        axis.set_xlim(-0.03 * top, top)
        axis.set_ylim(-0.03 * top, top * 1.02)
    return figure


def agreement(counts: pd.DataFrame) -> str:
    """Bias and limits of agreement of counts, in words."""
    error = (counts.n_true - counts.n_pred).astype(float)
    bias, spread = float(error.mean()), 1.96 * float(error.std())
    text = f"bias {bias:+.1f}"
    return f"{text}, limits {bias - spread:+.1f} to {bias + spread:+.1f}" if np.isfinite(spread) else text


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


def sketch_counts(found: Findings) -> Iterator[Sketch]:
    """The first few configurations, and, to be unfolded, the others."""
    counts = found.details.counts_of("test")
    known = [label for label in found.labels if label in counts and len(counts[label])]
    alt = (
        "Predicted against true number of cells in each test image, all seeds, one panel a configuration, with the "
        "line of equal counts, the mean error and its limits of agreement."
    )
    yield Sketch(CELL_COUNTS.title, alt, count_scatter(counts, known[:SEEN_AT_ONCE]))
    title = f"{CELL_COUNTS.title}: the other configurations"
    yield Sketch(title, alt, count_scatter(counts, known[SEEN_AT_ONCE:]), part="others", is_folded=True)


SEEN_AT_ONCE = 4
"""Configurations whose counts are seen at once."""
CELL_COUNTS = ReportFigure(
    name="counts",
    section="quality",
    reading="A dot is an image (a larger one several): on the line the count is right, below it cells are missing, "
    "above it there are too many. The bias is the mean of true less predicted cells, and most images lie within the "
    "limits.",
    title="Cells counted on test images",
    series=sketch_counts,
    is_folded=False,
)

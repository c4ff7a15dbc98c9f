"""The response of a study over the three weights of a combined loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.tri import Triangulation

from cellray.metrics import METRICS
from cellray.report.figures.drawing import ReportFigure, Sketch
from cellray.report.figures.looks import INK, MUTED
from cellray.report.figures.parts import as_label, new_figure
from cellray.report.findings import Findings
from cellray.report.mixtures import WeightFamily
from cellray.report.text import metric_title
from cellray.statistics.simplex import SimplexFit, between, proportions, simplex_grid

HEIGHT = 3**0.5 / 2
N_COLOURS = 12


def simplex_response(family: WeightFamily) -> Figure | None:
    """Triangle of three weights: configurations as dots, a fitted surface behind, its best point and where that may be.

    Dots and surface share one scale; dashed lines are the surface's standard error. Without a surface the dots
    stand alone. Where the configurations differ in more than the weights, the surface is over the weights
    alone and the rest is part of its scatter.
    """
    known = family.points[np.isfinite(family.points["mean"].astype(float))]
    if len(known) < 3:
        return None
    fit = family.fit
    figure = new_figure(7.6, 5.6)
    axis = figure.add_subplot()
    grid = simplex_grid(50)
    grid = between(proportions(known[["a", "b", "c"]].to_numpy(float)), grid) if fit else grid
    mean, error = fit.predict(grid) if fit else (known["mean"].to_numpy(float), np.empty(0))
    values = np.concatenate([mean, known["mean"].to_numpy(float)])
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1e-6
    colours = "cividis" if METRICS[family.metric].higher_is_better else "cividis_r"
    if fit:
        surface = Triangulation(*flat(grid))
        axis.tricontourf(surface, mean, levels=np.linspace(low, high, N_COLOURS + 1), cmap=colours)
        if np.ptp(error) > 1e-9:
            lines = axis.tricontour(surface, error, levels=3, colors="white", linewidths=1, linestyles="--")
            for text in axis.clabel(lines, fontsize=9, fmt="±%.2g"):  # legible on the bright end of the scale too
                text.set_path_effects([withStroke(linewidth=2, foreground="#333333")])
    x, y = flat(proportions(known[["a", "b", "c"]].to_numpy(float)))
    dots = axis.scatter(
        x, y, c=known["mean"], cmap=colours, vmin=low, vmax=high, s=60, edgecolors=INK, linewidths=0.9, zorder=4
    )
    handles = [Line2D([], [], ls="", marker="o", ms=7, mfc="none", mec=INK, label="one configuration")]
    if fit:
        handles += draw_best(axis, fit)
    frame(axis, family.names)
    bar = figure.colorbar(dots, ax=axis, fraction=0.04, pad=0.02, label=metric_title(family.metric))
    bar.outline.set_visible(False)
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


def flat(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, 3) as x and y in the triangle: a at the left, b at the right, c on top."""
    return weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * HEIGHT


def draw_best(axis: Axes, fit: SimplexFit) -> list[Line2D]:
    """The surface's best point as a star, and its 95 % region as small squares."""
    axis.plot(*flat(fit.region), ls="", marker="s", ms=4.5, mfc="none", mec="#d55e00", mew=1, zorder=3)
    axis.plot(*flat(fit.best[None]), ls="", marker="*", ms=17, mfc="#d55e00", mec="white", mew=1, zorder=5)
    weights = ", ".join(f"{weight:.2f}" for weight in fit.best)
    return [
        Line2D([], [], ls="", marker="*", ms=12, mfc="#d55e00", mew=0, label=f"best by the surface ({weights})"),
        Line2D([], [], ls="", marker="s", ms=4.5, mfc="none", mec="#d55e00", label="95 % region of the best"),
    ]


def frame(axis: Axes, names: tuple[str, str, str]) -> None:
    """The triangle, its lines at every fifth, and the names at the corners where that weight is 1."""
    axis.set_axis_off()
    axis.set_aspect("equal")
    axis.plot([0, 1, 0.5, 0], [0, 0, HEIGHT, 0], color=INK, lw=1.1, zorder=3)
    for share in (0.2, 0.4, 0.6, 0.8):
        for first in range(3):
            ends = np.zeros((2, 3))
            ends[:, first] = share
            ends[0, (first + 1) % 3] = ends[1, (first + 2) % 3] = 1 - share
            axis.plot(*flat(ends), color=MUTED, lw=0.5, alpha=0.5, zorder=2)
    corners = ((0, -0.03, "right", "top"), (1, -0.03, "left", "top"), (0.5, HEIGHT + 0.03, "center", "bottom"))
    for (x, y, ha, va), name in zip(corners, names, strict=True):
        axis.annotate(as_label(name, 22), (x, y), ha=ha, va=va, annotation_clip=False)
    axis.set_xlim(-0.1, 1.1)
    axis.set_ylim(-0.1, HEIGHT + 0.1)


def sketch_surfaces(found: Findings) -> Iterator[Sketch]:
    """One triangle for each family of losses mixed in enough ways."""
    for family in found.families:
        names = ", ".join(family.names)
        more = f"; {', '.join(family.varying)} vary too and add to the scatter" if family.varying else ""
        yield Sketch(
            f"{found.title} on the test set over the weights of {names}{more}",
            f"Triangle of the weights of {names} with {len(family.points)} mixtures as dots, the fitted score behind, "
            f"and its best point. {family.sentence} {family.caveat}",
            simplex_response(family),
            part="-".join(family.names),
        )


SIMPLEX = ReportFigure(
    name="simplex",
    section="weights",
    reading="A corner is one loss term alone, a point inside a mixture of all three. Colour is the score, dashed lines "
    "are its standard error; the star is the best mixture, and small squares are where it may also be.",
    series=sketch_surfaces,
    is_folded=False,
)

"""Parts that several figures share: panels, heat maps, titles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from cellray.metrics import METRICS
from cellray.report.figures.looks import INK, MOST_PANELS, NARROW, Look
from cellray.report.text import metric_title


def new_figure(width: float, height: float) -> Figure:
    """A figure that no global list keeps alive."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def as_label(text: str, width: int = 28) -> str:
    """A label that matplotlib doesn't read as TeX, cut where it would run over."""
    text = text if len(text) <= width else text[: width - 1] + "…"
    return text.replace("$", r"\$")


def axis_title(metric: str, set_name: str) -> str:
    """Metric, set and which way is better."""
    return f"{metric_title(metric)} on {as_label(set_name)} ({better_way(metric)})"


def better_way(metric: str) -> str:
    """Which way is better, in words."""
    return "higher is better" if METRICS[metric].higher_is_better else "lower is better"


def grid_of(figure: Figure, n: int, across: int, **how: Any) -> list[Axes]:
    """The axes of n panels, row by row, as many across; places without a panel stay empty."""
    axes = list(figure.subplots(math.ceil(n / across), across, squeeze=False, **how).ravel())
    for axis in axes[n:]:
        axis.remove()
    return axes[:n]


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Names at the left of rows, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(names) - 0.4, -0.6)


def panels(
    names: Sequence[str],
    x: str,
    y: str = "",
    *,
    height: float = 1.95,
    same_x: bool = True,
    same_y: bool = False,
    is_narrow: bool = False,
) -> tuple[Figure, dict[str, Axes]]:
    """A grid of small panels, three across or two in a narrow figure, one for each name or for the first of many;
    scales that all share stand at the edge, and so do the titles x and y."""
    shown = names[:MOST_PANELS]
    columns = min(2 if is_narrow else 3, len(shown))
    figure = new_figure(NARROW if is_narrow else 8.6, 0.7 + height * math.ceil(len(shown) / columns))
    axes = dict(zip(shown, grid_of(figure, len(shown), columns), strict=True))
    for i, (name, axis) in enumerate(axes.items()):
        axis.tick_params(axis="x", labelbottom=not same_x or i + columns >= len(shown))
        axis.tick_params(axis="y", labelleft=not same_y or i % columns == 0)
        axis.set_title(as_label(name, 26 if is_narrow else 32), loc="left")
    figure.supxlabel(x + best_of(names, len(shown)), fontsize=10)
    if y:
        figure.supylabel(y, fontsize=10)
    return figure, axes


def named_rows(n: int, labels: Sequence[str], *, row: float, top: float) -> tuple[Figure, list[Axes]]:
    """A narrow grid of panels with a row for each label, two across, labelled at the left and best on top.

    Args:
        n: Panels.
        labels: The rows of each.
        row: Height of a row in inches.
        top: Height of what is above and below the rows of a panel.
    """
    across = min(2, n)
    figure = new_figure(NARROW, 0.8 + math.ceil(n / across) * (top + row * len(labels)))
    axes = grid_of(figure, n, across, sharey=True)
    for k, axis in enumerate(axes):
        name_rows(axis, [as_label(label, 24) for label in labels])
        axis.tick_params(axis="y", labelleft=k % across == 0)
    return figure, axes


def best_of(labels: Sequence[str], n_shown: int) -> str:
    """What an axis title adds if only the first labels are shown."""
    return "" if n_shown >= len(labels) else f" (the best {n_shown} of {len(labels)} configurations)"


def signed(value: float, text: str) -> str:
    """A number's text with its sign before it."""
    return ("+" if value >= 0 else "−") + text


def sets_of(table: pd.DataFrame, sets: Sequence[str]) -> list[str]:
    """Those of the sets that a table has rows of, in their order, without the validation images."""
    there = set(table["set"])
    return [name for name in sets if name != "val" and name in there]


def labels_of(table: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Those of the labels that a table has rows of, in their order."""
    there = set(table["label"])
    return [label for label in labels if label in there]


def heat_cells(
    axis: Axes, image: AxesImage, grid: np.ndarray, texts: Sequence[Sequence[str]], *, bold: np.ndarray | None = None
) -> None:
    """Write a text into each cell of a heat map, black or white, whichever its colour lets one read; a dash for NaN."""
    for i, j in np.ndindex(*grid.shape):
        if not np.isfinite(grid[i, j]):
            axis.text(j, i, "–", ha="center", va="center", color=INK)
            continue
        red, green, blue, _ = image.cmap(image.norm(grid[i, j]))
        ink = "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"
        weight = "bold" if bold is not None and bold[i, j] else "normal"
        look: Look = {"color": ink, "fontsize": 9, "linespacing": 1.05, "fontweight": weight}
        axis.text(j, i, texts[i][j], ha="center", va="center", **look)


def name_cells(axis: Axes, rows: Sequence[str], columns: Sequence[str], *, slanted: bool = False) -> None:
    """Names beside and above a heat map, and nothing else around it."""
    axis.grid(visible=False)
    how: Look = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
    axis.set_xticks(range(len(columns)), columns, **how)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def draw_ceiling(axis: Axes, value: float | None) -> None:
    """What human experts reach against the ground truth, as a dashed line; nothing if it isn't known."""
    if value is not None and math.isfinite(value):
        axis.axvline(value, color=INK, lw=1.2, ls="--", zorder=1)

"""The ranking of one set: every seed of every configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellray.metrics import METRICS
from cellray.report.figures.drawing import ReportFigure, Sketch
from cellray.report.figures.looks import BAD, BLUE, INK, MEAN, MOST_ROWS, MUTED, NARROW
from cellray.report.figures.parts import as_label, axis_title, best_of, draw_ceiling, new_figure
from cellray.report.findings import Findings
from cellray.report.ranking import rows_of, select
from cellray.report.text import format_rank, format_value, is_telling
from cellray.report.words import set_title_plain


def ranking_dots(found: Findings, set_name: str) -> Figure | None:
    """Every seed of every configuration, best on top; failed and collapsed ones stand apart at the worst value.

    Of more than 40 configurations the best are shown.

    Where the ranking has `low` and `high`, a thin line below the seeds is the interval of the mean.
    """
    metric, ceiling = found.metric, found.ceiling.get(set_name)
    whole = select(found.compared.ranking, set_name=set_name, metric=metric)
    order = whole.iloc[:MOST_ROWS]
    points = select(found.compared.scores, set_name=set_name, metric=metric)
    points = points[points.label.isin(order.label)]
    lost = points[points.note.isin(["worst", "nan"])]
    alive = points[(points.outcome != "missing") & ~points.index.isin(lost.index)]
    if alive.empty and lost.empty:
        return None
    higher = METRICS[metric].higher_is_better
    figure = new_figure(NARROW, 1.5 + 0.26 * len(order))
    gutter, main = with_gutter(figure, has_gutter=not lost.empty, left=higher)
    tells = np.array(["low" in order and is_telling(metric, row.low, row.high) for row in rows_of(order)], dtype=bool)
    has_interval = bool(tells.any())
    extremes = [alive.counted] + ([pd.Series([ceiling])] if ceiling is not None else [])
    if has_interval:  # an interval that a collapse stretches runs off the axis, or it would squeeze all the others
        intact = order[(order.n == order.survivors_n) & tells]
        extremes += [intact.low.dropna(), intact.high.dropna()]
    low, high = limits(pd.concat(extremes))
    draw_ceiling(main, ceiling)
    for at, row in enumerate(rows_of(order)):
        seeds = alive[alive.label == row.label].sort_values("seed")
        main.plot(seeds.counted, [at] * len(seeds), "o", ms=6, color=BLUE, alpha=0.75, mew=0)
        draw_mean(main, row, at, low, high, metric)
        if tells[at]:
            main.plot([row.low, row.high], [at + 0.27] * 2, "-", color=MEAN, lw=1.1, solid_capstyle="butt")
        gone = lost[lost.label == row.label].sort_values("seed")
        for i, bad in enumerate(rows_of(gone)):
            marker = "s" if bad.outcome == "failed" else "x"
            spot = (i - (len(gone) - 1) / 2) * 0.11
            gutter.plot([spot], [at], marker, ms=6, mfc="none", mec=BAD, mew=1.8, clip_on=False)
        if row.n_missing:
            main.annotate(
                f"{row.n_missing} missing", (1, at), xycoords=main.get_yaxis_transform(), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=9, color=MUTED, annotation_clip=False,
            )  # fmt: skip
    main.set_xlim(low, high)
    main.set_xlabel(axis_title(metric, set_name) + best_of(list(whole.label), len(order)))
    labels = gutter if (higher and gutter is not None) else main
    names = [f"{as_label(row.label, 24)}  {format_rank(row.rank)}" for row in rows_of(order)]
    labels.set_yticks(range(len(order)), names)
    main.set_ylim(len(order) - 0.5, -0.5)
    for axis in (main, gutter):
        if axis is not None:
            axis.tick_params(axis="y", length=0)
    if gutter is not None:
        value = lost.counted.max() if not higher else lost.counted.min()
        gutter.set_xlim(-0.4, 0.4)
        gutter.set_xticks([0], [f"worst\n{format_value(metric, value)}"])
        gutter.grid(axis="x", visible=False)
    handles = dot_legend(points, order, has_interval, ceiling is not None)
    figure.legend(handles=handles, loc="outside upper right", ncols=3, handletextpad=0.3, columnspacing=1.2)
    return figure


def with_gutter(figure: Figure, *, has_gutter: bool, left: bool) -> tuple[Axes, Axes]:
    """The main axis and, on the bad side, a narrow one for trials that count as worst."""
    if not has_gutter:
        return None, figure.add_subplot()  # type: ignore[return-value]
    ratios = [1, 6] if left else [6, 1]
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": ratios, "wspace": 0.02})
    return (axes[0], axes[1]) if left else (axes[1], axes[0])


def limits(values: pd.Series) -> tuple[float, float]:
    """Axis limits with a margin, wide enough that equal values don't fill the axis."""
    if values.empty:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    pad = max(0.07 * (high - low), 0.01 * max(abs(high), 1e-3))
    return low - pad, high + pad


def draw_mean(axis: Axes, row: Any, at: int, low: float, high: float, metric: str) -> None:
    """The ranking mean as a bar (an arrow with its value beyond the axis), that of the runs that ended as a diamond."""
    if math.isnan(row.mean):
        return
    if low <= row.mean <= high:
        axis.plot([row.mean] * 2, [at - 0.32, at + 0.32], "-", color=MEAN, lw=2, solid_capstyle="butt")
    else:
        below = row.mean < low
        axis.annotate(
            f"◂ {format_value(metric, row.mean)}" if below else f"{format_value(metric, row.mean)} ▸",
            (low if below else high, at), xytext=(3 if below else -3, 0), textcoords="offset points",
            ha="left" if below else "right", va="center", fontsize=9, color=INK, fontweight="bold",
        )  # fmt: skip
    if row.survivors_n and row.survivors_n < row.n:
        axis.plot([row.survivors_mean], [at], "D", ms=8, mfc="none", mec=MUTED, mew=1.2)


def dot_legend(points: pd.DataFrame, order: pd.DataFrame, has_interval: bool, has_ceiling: bool) -> list[Line2D]:
    """Only what the figure shows."""
    handles = [
        Line2D([], [], ls="", marker="o", ms=6, color=BLUE, alpha=0.75, mew=0, label="one seed"),
        Line2D([], [], ls="", marker="|", ms=11, mew=2, color=MEAN, label="mean, worst counted"),
    ]
    if has_interval:
        handles.append(Line2D([], [], lw=1.1, color=MEAN, label="95 % interval"))
    if has_ceiling:
        handles.append(Line2D([], [], ls="--", lw=1.2, color=INK, label="human experts"))
    if ((order.survivors_n > 0) & (order.survivors_n < order.n)).any():
        handles.append(
            Line2D([], [], ls="", marker="D", ms=7, mfc="none", mec=MUTED, label="mean of the runs that ended")
        )
    if ((points.outcome == "collapsed") | (points.note == "nan")).any():
        handles.append(Line2D([], [], ls="", marker="x", mec=BAD, mew=1.8, label="collapsed"))
    if (points.outcome == "failed").any():
        handles.append(Line2D([], [], ls="", marker="s", mfc="none", mec=BAD, mew=1.8, label="failed"))
    return handles


def describe_ranking(found: Findings, set_name: str) -> str:
    """A sentence for readers who can't see the dot plot."""
    rows = select(found.compared.ranking, set_name=set_name, metric=found.metric)
    rows = rows[rows["mean"].notna()]
    if rows.empty:
        return "Dot plot without results yet."
    ends = [f"{row.label} (mean {format_value(found.metric, row.mean)})" for row in rows_of(rows.iloc[[0, -1]])]
    return (
        f"Dot plot of {found.title} for every seed of {len(rows)} configurations, best on top: from {ends[0]} "
        f"to {ends[1]}."
    )


def sketch_rankings(found: Findings) -> Iterator[Sketch]:
    """One dot plot a set, but of validation."""
    for name in ("test", *found.external):
        yield Sketch(
            f"Every seed: {found.title}, {set_title_plain(name)}",
            describe_ranking(found, name),
            ranking_dots(found, name),
            part=name,
        )


RANKING = ReportFigure(
    name="ranking",
    section="ranking",
    reading="A dot is one seed, so the width of a cloud is what chance does; the upright bar is their mean, the thin "
    "line its 95 % interval where known. Crosses apart are collapsed or failed trials: they count as the worst value.",
    series=sketch_rankings,
)

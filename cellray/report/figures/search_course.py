"""What a search tried, what it found on the way, and which parameters mattered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellray.metrics import METRICS
from cellray.report.figures.drawing import ReportFigure, Sketch
from cellray.report.figures.looks import BAD, BLUE, INK, MOST_ROWS, MUTED, PAPER, Look
from cellray.report.figures.parts import as_label, axis_title, better_way, grid_of, name_rows, new_figure
from cellray.report.findings import Findings
from cellray.report.searched import Search, Tried
from cellray.report.text import format_value, metric_title
from cellray.statistics.importance import ParameterShare

MOST_LABELLED = 8
"""Configurations of a front up to which their labels have room."""
FAR = 1.5
"""Interquartile ranges beyond the worse quartile at which a value leaves the scale."""


def search_history(search: Search) -> Figure | None:
    """The validation value of each configuration in the order of trying, and the best so far.

    Configurations that the study gives are squares, suggestions dots. Those that were ended early have no value: they
    are ticks in a strip of their own. A value that would squeeze all others (a collapse counts as worst) is a triangle
    at the edge of the scale.
    """
    metric = search.metrics[0]
    known = sorted(search.judged, key=lambda c: c.number)
    if len(known) < 2 or not search.suggests:
        return None
    stopped = search.in_state("stopped")
    higher = METRICS[metric].higher_is_better
    figure = new_figure(8.6, 4.2 if stopped else 3.8)
    if stopped:  # in a strip with the same numbers, below
        main, strip = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [8, 1], "hspace": 0.03})
    else:
        main = strip = figure.add_subplot()
    x = np.array([c.number for c in known])
    y = np.array([search.value(c) for c in known])
    low, high = scale(y, higher_is_better=higher)
    best = np.maximum.accumulate(y) if higher else np.minimum.accumulate(y)
    ends = np.append(x, max(c.number for c in search.configurations))
    main.step(ends, np.append(best, best[-1]), where="post", color=INK, lw=1.4, zorder=2)
    for source, look in LOOKS.items():
        mine = np.array([c.source == source for c in known])
        seen = mine & (y >= low) & (y <= high)
        main.plot(x[seen], y[seen], ls="", mec=PAPER, mew=0.6, zorder=3, **look)
        beyond = x[mine & ~seen]
        if len(beyond):
            edge = np.full(len(beyond), low if higher else high)
            there = {**look, "marker": "v" if higher else "^"}
            main.plot(beyond, edge, ls="", mec=PAPER, mew=0.6, clip_on=False, zorder=3, **there)
    main.set_ylim(low, high)
    main.margins(x=0.02)
    main.set_ylabel(f"{metric_title(metric)} on validation\n({better_way(metric)})")
    if stopped:
        strip.vlines([c.number for c in stopped], 0.15, 0.85, color=BAD, lw=1.6)
        strip.set_ylim(0, 1)
        strip.set_yticks([0.5], ["ended early"])
        strip.tick_params(axis="y", length=0)
        strip.grid(axis="y", visible=False)
    strip.set_xlabel("number of the configuration, in the order of trying")
    figure.legend(handles=history_legend(search, known, y, low, high), loc="outside upper right", ncols=5)
    return figure


LOOKS: dict[str, Look] = {
    "given": {"marker": "s", "ms": 7, "color": "#e69f00"},
    "suggested": {"marker": "o", "ms": 6.5, "color": BLUE},
}
NAMES = {"given": "given by the study", "suggested": "suggested"}


def scale(values: np.ndarray, *, higher_is_better: bool) -> tuple[float, float]:
    """Limits with a margin; on the bad side, values far beyond the quartiles are left outside."""
    turned = values if higher_is_better else -values
    first, third = np.quantile(turned, (0.25, 0.75))
    low = float(turned[turned >= first - FAR * (third - first)].min())
    high = float(turned.max())
    pad = max(0.07 * (high - low), 0.01 * max(abs(high), 1e-3))
    return (low - pad, high + pad) if higher_is_better else (-high - pad, -low + pad)


def history_legend(search: Search, known: Sequence[Tried], y: np.ndarray, low: float, high: float) -> list[Line2D]:
    """Only what the figure shows."""
    handles = [*source_handles(known), Line2D([], [], color=INK, lw=1.4, label="best so far")]
    if ((y < low) | (y > high)).any():
        worst = format_value(search.metrics[0], float(y.min() if y.min() < low else y.max()))
        marker = "v" if y.min() < low else "^"
        handles.append(Line2D([], [], ls="", marker=marker, ms=7, color=MUTED, label=f"beyond the scale, to {worst}"))
    return handles


def source_handles(tried: Sequence[Tried]) -> list[Line2D]:
    """What the marks of some configurations say of where they come from."""
    there = {c.source for c in tried}
    return [Line2D([], [], ls="", mew=0, label=NAMES[of], **look) for of, look in LOOKS.items() if of in there]


def pareto(search: Search) -> Figure | None:
    """Two metrics of a search against each other: what no other configuration beats in both is joined.

    Of more metrics, the first stands against each other one; the filled ones are then best in all of them together, and
    no line joins them.
    """
    if len(search.metrics) < 2 or len(search.judged) < 2:
        return None
    front = search.front()
    others = search.metrics[1:]
    figure = new_figure(7.4 if len(others) == 1 else 4.2 * min(len(others), 3), 4.6)
    axes = grid_of(figure, len(others), len(others))
    for axis, metric in zip(axes, others, strict=True):
        for source, look in LOOKS.items():
            rest = [c for c in search.judged if c.source == source and c not in front]
            axis.plot(*places(rest, search, metric), ls="", **{**look, "mfc": "none", "mec": look["color"]})
            best = [c for c in front if c.source == source]
            axis.plot(*places(best, search, metric), ls="", mec=PAPER, mew=0.6, zorder=3, **look)
        if len(others) == 1:
            axis.plot(*places(front, search, metric), color=INK, lw=1.2, zorder=2)
        name_points(axis, front, search, metric)
        axis.set_xlabel(axis_title(search.metrics[0], "validation"))
        axis.set_ylabel(axis_title(metric, "validation"))
        axis.margins(0.1)
    handles = source_handles(search.judged)
    handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=MUTED, label="beaten by one of the front"))
    if len(others) == 1:
        handles.append(Line2D([], [], color=INK, lw=1.2, label="the front"))
    figure.legend(handles=handles, loc="outside upper right", ncols=4)
    return figure


def places(tried: Sequence[Tried], search: Search, metric: str) -> tuple[list[float], list[float]]:
    """Of the first metric and of another one."""
    return [search.value(c) for c in tried], [search.value(c, metric) for c in tried]


def name_points(axis: Axes, front: Sequence[Tried], search: Search, metric: str) -> None:
    """The labels of the front, where there is room for them."""
    if len(front) > MOST_LABELLED:
        return
    for c, x, y in zip(front, *places(front, search, metric), strict=True):
        axis.annotate(as_label(c.label, 22), (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)


def seeds_given(search: Search) -> Figure | None:
    """How many seeds each configuration got: those with most first, a cross where a race dropped one."""
    if not search.gives_seeds or not search.configurations:
        return None
    values = {c.label: i for i, c in enumerate(search.best_first())}
    rows = sorted(search.configurations, key=lambda c: (-c.seeds, values.get(c.label, len(values)), c.number))
    shown = rows[:MOST_ROWS]
    figure = new_figure(7.6, 1.3 + 0.27 * len(shown))
    axis = figure.add_subplot()
    for i, c in enumerate(shown):
        is_out = c.state in ("dropped", "stopped")
        axis.plot([0, c.seeds], [i, i], color=MUTED if is_out else BLUE, lw=5, solid_capstyle="butt")
        if is_out:
            axis.plot([c.seeds], [i], "x", ms=8, mec=BAD, mew=2, clip_on=False, zorder=4)
    name_rows(axis, [as_label(c.label) for c in shown])
    axis.grid(axis="y", visible=False)
    most = max(max(c.seeds for c in shown), 1)
    axis.set_xlim(0, most * 1.04)
    axis.set_xticks(range(0, most + 1, max(1, most // 10)))
    rest = f" (the first {len(shown)} of {len(rows)} configurations)" if len(shown) < len(rows) else ""
    axis.set_xlabel("seeds given" + rest)
    if any(c.state in ("dropped", "stopped") for c in shown):
        handles = [
            Line2D([], [], color=BLUE, lw=5, label="in the race to the end"),
            Line2D([], [], color=MUTED, lw=5, marker="x", ms=8, mec=BAD, mew=2, label="dropped"),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


def importance_bars(shares: Sequence[ParameterShare], names: Mapping[str, str]) -> Figure | None:
    """Share of the variation that each parameter explains, with the range of resamples and what chance would give.

    Args:
        shares: Largest first.
        names: Of the parameters, by path.
    """
    if not shares:
        return None
    shown = shares[:MOST_ROWS]
    figure = new_figure(8.2, 1.4 + 0.34 * len(shown))
    axis = figure.add_subplot()
    most = max(share.n for share in shares)
    for i, share in enumerate(shown):
        look: Look = {"color": BLUE} if share.is_clear else {"facecolor": "none", "edgecolor": MUTED}
        axis.barh([i], [share.value], height=0.56, **look)
        axis.plot([share.low, share.high], [i, i], color=INK, lw=1.2)
        axis.plot([share.noise] * 2, [i - 0.42, i + 0.42], color=BAD, lw=1.6, ls=(0, (2, 1)))
    rows = [as_label(names[share.name], 34) + (f"  ({share.n} of them)" if share.n < most else "") for share in shown]
    name_rows(axis, rows)
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"share of the variation of the score ({most} configurations)")
    handles = [
        Line2D([], [], color=BLUE, lw=7, label="above chance"),
        Line2D([], [], ls="", marker="s", ms=8, mfc="none", mec=MUTED, label="may be chance"),
        Line2D([], [], color=INK, lw=1.2, label="resamples, 5–95 %"),
        Line2D([], [], color=BAD, lw=1.6, ls=(0, (2, 1)), label="random numbers reach"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=4, handlelength=1.4, columnspacing=1.1)
    return figure


def sketch_search(found: Findings) -> Iterator[Sketch]:
    """The course of a search by one metric, or the front of one by several."""
    search = found.search
    if search is None:
        return
    titles = [metric_title(key) for key in search.metrics]
    tried = f"{len(search.judged)} configurations with a value, {len(search.in_state('stopped'))} ended early"
    if len(titles) > 1:
        yield Sketch(
            "The front: what no other configuration beats in all of " + " and ".join(titles),
            f"Validation values of {tried}, one metric against another, with the front joined.",
            pareto(search),
        )
    else:
        yield Sketch(
            f"{titles[0]} on validation, in the order of trying",
            f"Validation {titles[0]} of each configuration by its number ({tried}), with the best so far as a line.",
            search_history(search),
        )


def sketch_seeds(found: Findings) -> Iterator[Sketch]:
    """Of a race by one metric."""
    if (search := found.search) is not None and len(search.metrics) == 1:
        yield Sketch(
            "Seeds given to each configuration",
            f"Bars of the seeds that each of {len(search.configurations)} configurations was given; a cross marks "
            "those that were dropped.",
            seeds_given(search),
        )


def sketch_importance(found: Findings) -> Iterator[Sketch]:
    """Where the search suggested enough to tell."""
    if (search := found.search) is not None and search.suggests and (shares := search.importance.shares):
        title = metric_title(search.metrics[0])
        yield Sketch(
            f"Importance of the parameters for {title} on validation (fANOVA)",
            f"Bars of the share of the variation of {title} that each parameter explains, with ranges and with what "
            "random numbers would explain; the largest is "
            f"{found.parameter_names[shares[0].name]} with {shares[0].value:.2f}.",
            importance_bars(shares, found.parameter_names),
        )


SEARCH_HISTORY = ReportFigure(
    name="search-history",
    section="weights",
    reading="Each mark is a configuration, the mean over its seeds on validation images. Where the line of the best so "
    "far is flat, further ones found nothing better; of two metrics, the line joins what none beats in both.",
    series=sketch_search,
    is_folded=False,
)
SEEDS_GIVEN = ReportFigure(
    name="seeds-given",
    section="weights",
    reading="All start with the same few seeds. A cross marks where a configuration was dropped as decided to be worse "
    "than the leader; the longest bars are those between which the race could not decide sooner.",
    series=sketch_seeds,
)
IMPORTANCE = ReportFigure(
    name="importance",
    section="weights",
    reading="How much of the variation of the score each parameter explains by itself; weights that sum to 1 share "
    "theirs. The line is the range over resamples of the configurations. A bar is filled if that range lies above the "
    "dashed mark, which is what random numbers would reach: the others may be chance.",
    series=sketch_importance,
)

"""Figures of a report: matplotlib without a display, as SVG for the page and as SVG and PNG files.

Colours are Okabe and Ito's, told apart by colour-blind readers; shapes repeat what colour says. Text is 9 pt or larger.
The same data give the same bytes: ids are salted, and no date is written.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellray.metrics import METRICS
from cellray.report.tables import format_value, metric_title, rows_of, select

INK, MUTED, GRID, PAPER = "#1f2328", "#5f6670", "#d0d6dc", "#fffffe"
BLUE, BAD, MEAN = "#0072b2", "#d55e00", "#1f2328"
SEED_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
SEED_STYLES = ("-", "--", ":", "-.")
THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PAPER: "var(--card)",
    BLUE: "var(--blue)",
}
"""Colours of a figure that follow the page's light or dark theme."""

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "cellray",
    "svg.fonttype": "path",
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Drawing:
    """A figure ready to be saved and embedded."""

    name: str
    """File stem; also the prefix of its ids in the page."""
    title: str
    alt: str
    svg: bytes
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG element for embedding: ids of its own, colours by theme, size by the page."""
        text = self.svg.decode()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = text.replace('href="#', f'href="#{self.name}-').replace("url(#", f"url(#{self.name}-")
        for colour, variable in THEME.items():
            text = text.replace(colour, variable)
        head, rest = text.split(">", 1)
        width = re.search(r'width="([\d.]+)pt"', head)
        head = re.sub(r' (width|height)="[^"]*"', "", head)
        # a minimum width keeps letters legible on a phone, where the figure scrolls
        narrow = min(float(width.group(1)) if width else 600, 620)
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        return f'{head} role="img" aria-label="{label}" style="min-width:{narrow:.0f}px">{rest}'


def draw(name: str, title: str, alt: str, plot: Any, /, *args: Any, **kwargs: Any) -> Drawing | None:
    """Run a plotting function that returns a Figure (or None, if there is nothing to draw) and save it twice."""
    with rc_context(STYLE):
        figure = plot(*args, **kwargs)
        if figure is None:
            return None
        FigureCanvasAgg(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # keep the places found for the SVG; finding them takes half the time
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return Drawing(name, title, alt, svg.getvalue(), png.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """A figure that no global list keeps alive."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str, width: int = 28) -> str:
    """A label that matplotlib doesn't read as TeX, cut where it would run over."""
    text = text if len(text) <= width else text[: width - 1] + "…"
    return text.replace("$", r"\$")


def ranking_dots(scores: pd.DataFrame, ranking: pd.DataFrame, *, set_name: str, metric: str) -> Figure | None:
    """Every seed of every configuration, best on top; failed and collapsed ones stand apart at the worst value."""
    order = select(ranking, set_name=set_name, metric=metric)
    points = select(scores, set_name=set_name, metric=metric)
    lost = points[points.note.isin(["worst", "nan"])]
    alive = points[(points.outcome != "missing") & ~points.index.isin(lost.index)]
    if alive.empty and lost.empty:
        return None
    higher = METRICS[metric].higher_is_better
    figure = new_figure(8.6, 1.5 + 0.34 * len(order))
    gutter, main = make_axes(figure, has_gutter=not lost.empty, left=higher)
    y = {label: i for i, label in enumerate(order.label)}
    low, high = limits(alive.counted)
    for row in rows_of(order):
        at = y[row.label]
        seeds = alive[alive.label == row.label].sort_values("seed")
        stopped = seeds.outcome == "stopped"
        main.plot(seeds.counted[~stopped], [at] * int((~stopped).sum()), "o", ms=6, color=BLUE, alpha=0.75, mew=0)
        main.plot(seeds.counted[stopped], [at] * int(stopped.sum()), "o", ms=6, mfc="none", mec=BLUE)
        draw_mean(main, row, at, low, high, metric)
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
    main.set_xlabel(axis_title(metric, set_name))
    labels = gutter if (higher and gutter is not None) else main
    labels.set_yticks(range(len(order)))
    labels.set_yticklabels([f"{plain(r.label)}  {'–' if math.isnan(r.rank) else int(r.rank)}" for r in rows_of(order)])
    main.set_ylim(len(order) - 0.5, -0.5)
    for axis in (main, gutter):
        if axis is not None:
            axis.tick_params(axis="y", length=0)
    if gutter is not None:
        value = lost.counted.max() if not higher else lost.counted.min()
        gutter.set_xlim(-0.4, 0.4)
        gutter.set_xticks([0])
        gutter.set_xticklabels([f"worst\n{format_value(metric, value)}"])
        gutter.grid(axis="x", visible=False)
    figure.legend(
        handles=dot_legend(points, order),
        loc="outside upper right",
        ncols=5,
        handletextpad=0.3,
        columnspacing=1.2,
    )
    return figure


def make_axes(figure: Figure, *, has_gutter: bool, left: bool) -> tuple[Axes, Axes]:
    """The main axis and, on the bad side, a narrow one for trials that count as worst."""
    if not has_gutter:
        return None, figure.add_subplot()  # type: ignore[return-value]
    ratios = [1, 7] if left else [7, 1]
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
    """The ranking mean as a bar (an arrow with its value if it lies beyond the axis), the survivors' as a diamond."""
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


def dot_legend(points: pd.DataFrame, order: pd.DataFrame) -> list[Line2D]:
    """Only what the figure shows."""
    handles = [
        Line2D([], [], ls="", marker="o", ms=6, color=BLUE, alpha=0.75, mew=0, label="one seed"),
        Line2D([], [], ls="", marker="|", ms=11, mew=2, color=MEAN, label="mean, worst counted"),
    ]
    if ((order.survivors_n > 0) & (order.survivors_n < order.n)).any():
        handles.append(Line2D([], [], ls="", marker="D", ms=7, mfc="none", mec=MUTED, label="survivors' mean"))
    if (points.outcome == "stopped").any():
        handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=BLUE, label="stopped early"))
    if ((points.outcome == "collapsed") | (points.note == "nan")).any():
        handles.append(Line2D([], [], ls="", marker="x", mec=BAD, mew=1.8, label="collapsed"))
    if (points.outcome == "failed").any():
        handles.append(Line2D([], [], ls="", marker="s", mfc="none", mec=BAD, mew=1.8, label="failed"))
    return handles


def axis_title(metric: str, set_name: str) -> str:
    """Metric, set and which way is better."""
    better = "higher is better" if METRICS[metric].higher_is_better else "lower is better"
    return f"{metric_title(metric)} on {plain(set_name)} ({better})"


def seed_look(seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Colour and dash of each seed, the same in every figure."""
    n = len(SEED_COLOURS)
    return {
        seed: {"color": SEED_COLOURS[i % n], "ls": SEED_STYLES[(i // n) % len(SEED_STYLES)]}
        for i, seed in enumerate(sorted(seeds))
    }


def panels(n: int, *, width: float = 8.6, height: float = 1.95) -> tuple[Figure, list[Axes]]:
    """A grid of small panels, three across, and the unused ones removed."""
    columns = min(3, n)
    rows = math.ceil(n / columns)
    figure = new_figure(width, 0.7 + height * rows)
    axes = list(np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel())
    for axis in axes[n:]:
        axis.remove()
    return figure, axes[:n]


def curves(
    histories: Mapping[tuple[str, int], pd.DataFrame],
    outcomes: Mapping[tuple[str, int], str],
    labels: Sequence[str],
    *,
    column: str,
    title: str,
    shared_y: tuple[float, float] | None = None,
) -> Figure | None:
    """One panel a configuration, one line a seed; a cross ends the line of a trial that collapsed."""
    known = [label for label in labels if any(key[0] == label for key in histories)]
    if not known:
        return None
    looks = seed_look(sorted({seed for _, seed in histories}))
    figure, axes = panels(len(known))
    last = max(float(h.epoch.max()) for h in histories.values() if len(h))
    bad = False
    for axis, label in zip(axes, known, strict=True):
        axis.set_title(plain(label, 32), loc="left")
        for seed, look in looks.items():
            rows = histories.get((label, seed))
            if rows is None or column not in rows:
                continue
            rows = rows[np.isfinite(rows[column].astype(float))]
            axis.plot(rows.epoch, rows[column], lw=1.3, marker="o" if len(rows) == 1 else "", ms=4, **look)
            if outcomes.get((label, seed)) in ("collapsed", "failed"):
                bad = True
                end = histories[label, seed].epoch.max()
                height = rows[column].iloc[-1] if len(rows) else (shared_y or (0, 0))[0]
                mark = "x" if outcomes[label, seed] == "collapsed" else "s"
                axis.plot([end], [height], mark, ms=8, mfc="none", mec=BAD, mew=2, clip_on=False, zorder=5)
        axis.set_xlim(0, last * 1.03 + 0.5)
        if shared_y:
            axis.set_ylim(*shared_y)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel(title, fontsize=10)
    handles = [Line2D([], [], lw=1.5, label=f"seed {seed}", **look) for seed, look in looks.items()]
    if bad:
        handles.append(Line2D([], [], ls="", marker="x", mec=BAD, mew=2, ms=8, label="collapsed"))
        if "failed" in outcomes.values():
            handles.append(Line2D([], [], ls="", marker="s", mfc="none", mec=BAD, mew=2, ms=7, label="failed"))
    figure.legend(handles=handles, loc="outside upper right", ncols=7)
    return figure


def range_tests(records: Mapping[tuple[str, int], Mapping[str, Any]], labels: Sequence[str]) -> Figure | None:
    """Loss against learning rate in the range test of each trial; a dot marks the rate that training then used."""
    tested = {key: r for key, r in records.items() if (r.get("range_test") or {}).get("lr")}
    known = [label for label in labels if any(key[0] == label for key in tested)]
    if not known:
        return None
    looks = seed_look(sorted({seed for _, seed in tested}))
    figure, axes = panels(len(known))
    for axis, label in zip(axes, known, strict=True):
        axis.set_title(plain(label, 32), loc="left")
        axis.set_xscale("log")
        tops = []
        for seed, look in looks.items():
            record = tested.get((label, seed))
            if record is None:
                continue
            lr = np.asarray(record["range_test"]["lr"], dtype=float)
            loss = np.asarray([np.nan if v is None else v for v in record["range_test"]["loss"]], dtype=float)
            ok = np.isfinite(loss)
            if not ok.any():
                continue
            axis.plot(lr[ok], loss[ok], lw=1.1, **look)
            tops.append((loss[ok].min(), loss[ok][: max(3, ok.sum() // 3)].max()))
            if record.get("lr"):
                height = np.interp(math.log(record["lr"]), np.log(lr[ok]), loss[ok])
                axis.plot([record["lr"]], [height], "o", ms=7, color=look["color"], mec=INK, mew=1.2, zorder=4)
        if tops:  # the explosion at the right end would flatten everything else
            low, high = min(t[0] for t in tops), max(t[1] for t in tops)
            axis.set_ylim(low - 0.1 * (high - low), high + 0.35 * (high - low) + 1e-6)
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel("training loss", fontsize=10)
    handles = [Line2D([], [], lw=1.5, label=f"seed {seed}", **look) for seed, look in looks.items()]
    handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=INK, ms=7, label="rate used"))
    figure.legend(handles=handles, loc="outside upper right", ncols=7)
    return figure


def count_scatter(counts: Mapping[str, pd.DataFrame], labels: Sequence[str]) -> Figure | None:
    """Predicted against true cells of each test image, all seeds; area tells how many images share a point."""
    known = [label for label in labels if label in counts and len(counts[label])]
    if not known:
        return None
    top = max(float(max(counts[label].n_true.max(), counts[label].n_pred.quantile(0.995))) for label in known)
    top = max(top, 1.0) * 1.05
    shared = {label: counts[label].groupby(["n_true", "n_pred"]).size().reset_index(name="n") for label in known}
    n_points = sum(map(len, shared.values()))
    figure, axes = panels(len(known), height=2.35)
    for axis, label in zip(axes, known, strict=True):
        pairs = shared[label]
        beyond = int(pairs.n[pairs.n_pred > top].sum())
        axis.plot([0, top], [0, top], color=MUTED, lw=1)
        axis.scatter(
            pairs.n_true, pairs.n_pred.clip(upper=top), s=9 * pairs.n**0.8, color=BLUE, alpha=0.55, linewidths=0,
            rasterized=n_points > 1500,  # each point is an element of the SVG
        )  # fmt: skip
        axis.set_title(plain(label, 32) + (f"  ({beyond} above)" if beyond else ""), loc="left")
        axis.set_xlim(-0.03 * top, top)
        axis.set_ylim(-0.03 * top, top * 1.02)
    figure.supxlabel("true cells in an image", fontsize=10)
    figure.supylabel("predicted cells", fontsize=10)
    return figure


def transfer_map(ranking: pd.DataFrame, sets: Sequence[str], *, metric: str) -> Figure | None:
    """Mean of each configuration on each set (test first), with the change from test written below the value."""
    shown = [name for name in sets if name != "val"]
    if len(shown) < 2:
        return None
    rows = ranking[(ranking.metric == metric) & (ranking.point == "own") & ranking.set.isin(shown)]
    order = list(rows[rows.set == "test"].label)
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
    for i in range(len(order)):
        for j in range(len(shown)):
            if not np.isfinite(grid[i, j]):
                axis.text(j, i, "–", ha="center", va="center", color=INK)
                continue
            r, g, b, _ = image.cmap(image.norm(grid[i, j]))
            ink = "#000000" if 0.299 * r + 0.587 * g + 0.114 * b > 0.5 else "#ffffff"
            text = format_value(metric, grid[i, j])
            if j:
                text += f"\n({grid[i, j] - grid[i, 0]:+.2f})"
            axis.text(j, i, text, ha="center", va="center", color=ink, fontsize=9, linespacing=1.05)
    axis.grid(visible=False)
    axis.set_xticks(range(len(shown)), [plain(name, 16) for name in shown])
    axis.set_yticks(range(len(order)), [plain(label) for label in order])
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure

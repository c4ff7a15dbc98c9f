"""What the tests of a study decide: critical differences, paired differences, how stable a rank is."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.looks import BLUE, INK, MEAN, MOST_PANELS, MUTED
from cellray.report.figures.parts import as_label, best_of, heat_cells, name_cells, new_figure, signed
from cellray.report.findings import Findings
from cellray.report.ranking import Inference, rows_of
from cellray.report.text import format_p, format_value

MOST_NUMBERS = 16
"""Configurations up to which the cells of a pair matrix have room for numbers."""


def critical_difference(tests: Inference) -> Figure | None:
    """Mean ranks over images on one axis, bars joining what the Nemenyi test can't tell apart (Demšar 2006).

    A picture of the whole field; which pair is decided is said by the paired tests, not by it.
    """
    ranks, test = (table[table["set"] == "test"] for table in (tests.ranks, tests.friedman))
    rows = ranks[ranks.mean_rank.notna()].sort_values("mean_rank", kind="stable")
    if len(rows) < 2 or test.empty:
        return None
    (test,) = rows_of(test.iloc[:1])
    names, at = list(rows.label), rows.mean_rank.to_numpy(dtype=float)
    n = len(names)
    groups = joined(at, float(test.critical_difference))
    n_left = (n + 1) // 2
    step, bar_step = 0.24, 0.13
    first = 0.3 + bar_step * len(groups)
    height = first + step * n_left
    figure = new_figure(9.2, height + 1.3)
    axis = figure.add_subplot()
    low, high = math.floor(at.min()), math.ceil(at.max())
    reach = max(high - low, 1)
    axis.set_xlim(low - 0.03 * reach, high + 0.03 * reach)
    axis.set_ylim(height, -0.6)  # in inches below the axis of ranks
    axis.plot([low, low + test.critical_difference], [-0.4, -0.4], color=INK, lw=1.2, marker="|", ms=6, clip_on=False)
    axis.annotate("critical difference", (low, -0.45), va="bottom", fontsize=9)
    axis.plot([low, high], [0, 0], color=INK, lw=1.2)
    for tick in range(low, high + 1):
        axis.plot([tick, tick], [0, -0.07], color=INK, lw=1)
        axis.annotate(f"{tick}", (tick, -0.1), ha="center", va="bottom", fontsize=9)
    for i, (name, rank) in enumerate(zip(names, at, strict=True)):
        is_left = i < n_left
        y = first + step * (i if is_left else n - 1 - i)
        edge = low - 0.02 * reach if is_left else high + 0.02 * reach
        axis.plot([rank, rank, edge], [0, y, y], color=MUTED, lw=0.9, clip_on=False)
        axis.plot([rank], [0], "o", ms=4, color=BLUE, mew=0, zorder=4)
        text = f"{as_label(name)}  {rank:.2f}" if is_left else f"{rank:.2f}  {as_label(name)}"
        axis.annotate(
            text, (edge, y), xytext=(-4 if is_left else 4, 0), textcoords="offset points",
            ha="right" if is_left else "left", va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    for k, (start, end) in enumerate(groups):
        y = 0.16 + bar_step * k
        axis.plot([at[start], at[end]], [y, y], color=INK, lw=3.2, solid_capstyle="round", zorder=5)
    axis.set_axis_off()
    difference = f"critical difference {test.critical_difference:.2f} ranks"
    p = format_p(test.p)
    how = f"Friedman test over {int(test.n_images)} images or groups: p {p if '<' in p else f'= {p}'}"
    axis.set_title(f"mean rank on test: {difference}; {how}", loc="center", fontsize=10)
    return figure


def joined(ranks: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """First and last place of each largest run of sorted ranks whose ends differ by no more than a difference."""
    groups: list[tuple[int, int]] = []
    for start in range(len(ranks)):
        end = int(np.flatnonzero(ranks - ranks[start] <= difference)[-1])
        if end > start and (not groups or end > groups[-1][1]):
            groups.append((start, end))
    return groups


def pair_matrix(found: Findings) -> Figure | None:
    """Paired differences, row minus column, turned so that above 0 the row is better; decided ones bold in a frame."""
    compared = {*found.pairs.a, *found.pairs.b}
    known = [label for label in found.labels if label in compared]
    if len(known) < 3:  # of two, it would say one number twice
        return None
    shown = known[:MOST_PANELS]
    place = {label: i for i, label in enumerate(shown)}
    n = len(shown)
    grid, decided = np.full((n, n), np.nan), np.zeros((n, n), dtype=bool)
    for row in rows_of(found.pairs):
        if row.a in place and row.b in place:
            i, j = place[row.a], place[row.b]
            grid[i, j], grid[j, i] = row.difference, -row.difference
            decided[i, j] = decided[j, i] = bool(row.decided)
    top = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 1.0
    has_numbers = n <= MOST_NUMBERS
    side = 0.5 if has_numbers else 0.3
    figure = new_figure(min(3.0 + side * n, 11), min(1.9 + 0.75 * side * n, 9))
    axis = figure.add_subplot()
    image = axis.imshow(grid, cmap="PuOr_r", vmin=-max(top, 1e-9), vmax=max(top, 1e-9), aspect="auto")
    if has_numbers:
        texts = [[short(found.metric, value) for value in row] for row in grid]
        heat_cells(axis, image, np.where(np.eye(n, dtype=bool), 0.0, grid), texts, bold=decided)
    for i, j in np.argwhere(decided):
        axis.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, ec="#000000", lw=1.1))
    name_cells(axis, [as_label(label) for label in shown], [as_label(label, 22) for label in shown], slanted=True)
    axis.set_xlabel(f"{found.title} on test: row better by" + best_of(known, n))
    axis.xaxis.set_label_position("bottom")
    figure.colorbar(image, ax=axis, fraction=0.03, pad=0.02).outline.set_visible(False)
    handles = [
        Line2D([], [], ls="", marker="s", ms=9, mfc="none", mec=INK, label="decided (p < 0.05, all pairs at once)")
    ]
    figure.legend(handles=handles, loc="outside lower right")
    return figure


def short(metric: str, difference: float) -> str:
    """A difference with its sign and without a leading zero, or nothing on the diagonal."""
    if not math.isfinite(difference):
        return ""
    return signed(difference, format_value(metric, abs(difference)).removeprefix("0"))


def rank_stability(tests: Inference) -> Figure | None:
    """Share of resamples (images × seeds) in which a configuration had each rank, as the area of a dot.

    The line below the dots is the interval of the rank, the bar the rank itself.
    """
    ranks, shares = (table[table["set"] == "test"] for table in (tests.ranks, tests.stability))
    order = ranks[ranks["rank"].notna()].sort_values(["rank", "label"], kind="stable")
    shares = shares[shares.share >= 0.005]
    if len(order) < 2 or shares.empty:
        return None
    n_known = list(order.label)
    order = order.iloc[:MOST_PANELS]
    place = {label: i for i, label in enumerate(order.label)}
    shares = shares[shares.label.isin(place)]
    figure = new_figure(8.6, 1.5 + 0.34 * len(order))
    axis = figure.add_subplot()
    axis.scatter(
        shares["rank"], shares.label.map(place), s=190 * shares.share, color=BLUE, alpha=0.75, linewidths=0, zorder=3
    )
    for row in rows_of(order):
        i = place[row.label]
        axis.plot([row.rank] * 2, [i - 0.34, i + 0.34], color=MEAN, lw=2, zorder=4)
        if math.isfinite(row.rank_low) and math.isfinite(row.rank_high):
            axis.plot([row.rank_low, row.rank_high], [i + 0.34] * 2, color=MEAN, lw=1.1, zorder=2)
    axis.set_yticks(range(len(order)), [as_label(label) for label in order.label])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(order) - 0.45, -0.6)
    n = len(n_known)
    axis.set_xlim(0.4, n + 0.6)
    axis.set_xticks([rank for rank in range(1, n + 1) if rank == 1 or n <= 15 or rank % 5 == 0])
    axis.set_xlabel("rank on test" + best_of(n_known, len(order)))
    handles = [
        Line2D([], [], ls="", marker="|", ms=11, mew=2, color=MEAN, label="rank"),
        Line2D([], [], lw=1.1, color=MEAN, label="95 % interval"),
        *(
            Line2D([], [], ls="", marker="o", ms=math.sqrt(190 * share), mew=0, color=BLUE, alpha=0.75, label=text)
            for share, text in ((0.1, "10 %"), (0.5, "50 %"), (1.0, "100 % of resamples"))
        ),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=5, handletextpad=0.5)
    return figure


CRITICAL_DIFFERENCE = ReportFigure(
    name="critical-difference",
    section="differences",
    reading="Each configuration hangs at its mean rank over the images; a bar joins those that lie within the critical "
    "difference and can't be told apart. It is a picture of the whole field: the paired tests above decide.",
    title="Mean ranks and critical difference, {metric}",
    alt="Axis of mean ranks over the test images with every configuration on it; bars join those within the critical "
    "difference of the Nemenyi test.",
    plot=lambda found: critical_difference(tests) if (tests := found.tables.inference) else None,
)
PAIR_MATRIX = ReportFigure(
    name="pair-matrix",
    section="differences",
    reading="Read along a row: by how much that configuration is better (+) or worse (−) than the one in the column, "
    "on the same images and seeds. Bold in a frame: decided by the paired tests; elsewhere it may be chance.",
    title="Paired differences in {metric}, row minus column",
    alt="Matrix of paired differences in {metric} between all configurations in the order of the ranking; the tables "
    "of pairs hold the numbers.",
    plot=pair_matrix,
)
RANK_STABILITY = ReportFigure(
    name="rank-stability",
    section="differences",
    reading="If the study were repeated with other images and seeds like these, how often would each configuration "
    "take each rank? One large dot is a firm rank; many small ones say that the rank is a matter of chance.",
    title="Stability of the ranks",
    alt="Dots whose area is the share of resamples of images and seeds in which a configuration had each rank.",
    plot=lambda found: rank_stability(tests) if (tests := found.tables.inference) else None,
)

"""What a configuration costs and what it scores for that; how balanced losses were scaled."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellray.metrics import METRICS
from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.looks import INK, MOST_PANELS, MUTED, PAPER, label_looks, seed_look
from cellray.report.figures.parts import as_label, axis_title, best_of, grid_of, new_figure, panels
from cellray.report.findings import Findings
from cellray.report.ranking import select


def costs(found: Findings) -> Figure | None:
    """Mean score of each configuration against its mean training time and, where known, its peak memory.

    A grey line joins the configurations that no other one beats at a lower cost.
    """
    order = select(found.compared.ranking, set_name="test", metric=found.metric).set_index("label")["mean"]
    spent = found.compared.trials.groupby("label")[["training_s", "peak_memory_mb"]].mean()
    table = spent.assign(score=order).loc[[label for label in order.index if label in spent.index]]
    table = table[np.isfinite(table.training_s) & np.isfinite(table.score.astype(float))]
    if len(table) < 2:
        return None
    n_known = list(table.index)
    table = table.iloc[:MOST_PANELS]
    unit, seconds = ("min", 60) if table.training_s.max() < 7200 else ("h", 3600)
    kinds = [(table.training_s / seconds, f"training time of a trial, {unit}")]
    if np.isfinite(table.peak_memory_mb).all() and (table.peak_memory_mb > 0).all():
        kinds.append((table.peak_memory_mb / 1024, "peak memory, GB"))
    figure = new_figure(9.6 if len(kinds) == 2 else 7.4, 4.2)
    axes = grid_of(figure, len(kinds), len(kinds), sharey=True)
    looks = label_looks(list(table.index))
    for axis, (cost, title) in zip(axes, kinds, strict=True):
        front = cheapest(cost, table.score, higher_is_better=METRICS[found.metric].higher_is_better)
        axis.plot(cost[front], table.score[front], color=MUTED, lw=1, zorder=1)
        for label in reversed(table.index):
            axis.plot([cost[label]], [table.score[label]], ls="", ms=8, mec=PAPER, mew=0.6, **looks[label])
        axis.set_xlabel(title)
        axis.margins(0.08)
    axes[0].set_ylabel(axis_title(found.metric, "test"))
    handles = [Line2D([], [], ls="", ms=8, mew=0, label=as_label(label), **looks[label]) for label in table.index]
    handles.append(Line2D([], [], color=MUTED, lw=1, label="best for the cost"))
    figure.legend(handles=handles, loc="outside right upper", title=best_of(n_known, len(table)).strip(" ()"))
    return figure


def cheapest(cost: pd.Series, score: pd.Series, *, higher_is_better: bool) -> list[str]:
    """The labels that no other one beats in both, by rising cost."""
    best, front = -np.inf, []
    gain = score if higher_is_better else -score
    for label in pd.DataFrame({"cost": cost, "gain": -gain}).sort_values(["cost", "gain"], kind="stable").index:
        if gain[label] > best:
            best = gain[label]
            front.append(str(label))
    return front


def term_scales(found: Findings) -> Figure | None:
    """What each term of a balanced loss was multiplied by, one panel a configuration and one point a seed."""
    scaled = {key: (r.term_scales, r.settings.loss) for key, r in found.trials.items() if r.term_scales}
    known = [label for label in found.everyone if any(key[0] == label for key in scaled)]
    if not known:
        return None
    looks = seed_look(sorted({seed for _, seed in scaled}))
    figure, axes = panels(known, "factor of the term, from the size of its gradient", height=1.7, same_x=False)
    for label, axis in axes.items():
        axis.set_xscale("log")
        rows = {seed: scales for (name, seed), (scales, _) in scaled.items() if name == label}
        loss = next(loss for (name, _), (_, loss) in scaled.items() if name == label)
        names = [str(term.name or "") for term in loss.terms]
        for i, (seed, scales) in enumerate(sorted(rows.items())):
            at = np.arange(len(scales)) + (i - (len(rows) - 1) / 2) * 0.1
            axis.plot(scales, at, ls="", marker="o", ms=6, mew=0, color=looks[seed]["color"])
        axis.set_yticks(range(len(names)), [as_label(name, 16) for name in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.axvline(1, color=INK, lw=0.8, zorder=1)
    handles = [
        Line2D([], [], ls="", marker="o", mew=0, color=look["color"], label=f"seed {seed}")
        for seed, look in looks.items()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=7)
    return figure


TERM_SCALES = ReportFigure(
    name="term-scales",
    section="training",
    reading="What each term of a combined loss was multiplied by so that all pull alike; far from 1, the raw terms "
    "differ in strength.",
    title="Scales of balanced loss terms",
    alt="What each term of a balanced loss was multiplied by, one panel a configuration and one point a seed.",
    plot=term_scales,
)
COSTS = ReportFigure(
    name="costs",
    section="training",
    reading="Upwards is better, to the left cheaper; the grey line joins those that no other beats at a lower cost.",
    title="{metric} on the test set against training time",
    alt="Mean {metric} of each configuration against its mean training time, and its peak memory where "
    "known; the table of costs holds the numbers.",
    plot=costs,
)

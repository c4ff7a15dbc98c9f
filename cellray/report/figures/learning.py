"""How trials trained: learning curves and learning-rate range tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellray.record import Tried
from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.looks import BAD, BLUE, INK, MUTED, Look, seed_handles, seed_look
from cellray.report.figures.parts import panels
from cellray.report.findings import Findings

ALIVE = 0.01
"""Validation Dice below which a network shows no cells."""

MOST_MARKERS = 16
"""Points of a line that get markers; on a denser one they would hide it."""

END_MARKS = {"collapsed": "x", "failed": "s", "stopped": "|"}
"""By outcome; a stopped trial was ended on purpose."""


def collapse_epoch(history: pd.DataFrame) -> int | None:
    """The epoch from which a trial showed no sign of life again, or None if it was alive when last seen.

    A validation Dice of at least 0.01 is a sign of life. A lower or undefined one, and a training loss that is not a
    number, are signs of death; an epoch without validation says nothing about the Dice, and the last epoch is always
    validated. The answer is the first sign of death after the last sign of life.

    Args:
        history: One row an epoch, in order, with the columns epoch, train_loss and val_dice (NaN = not validated);
            None without the last two.
    """
    if history.empty or not {"train_loss", "val_dice"} <= set(history):
        return None
    dice = history["val_dice"].to_numpy(dtype=float)
    dead = (dice < ALIVE) | ~np.isfinite(history["train_loss"].to_numpy(dtype=float))
    dead[-1] |= not np.isfinite(dice[-1])
    living = np.flatnonzero(dice >= ALIVE)
    after = np.flatnonzero(dead & (np.arange(len(dice)) > (living[-1] if len(living) else -1)))
    return int(history["epoch"].iloc[after[0]]) if len(after) else None


def curves(found: Findings, *, column: str, title: str, shared_y: tuple[float, float] | None = None) -> Figure | None:
    """One panel a configuration, one line a seed; a cross marks the epoch at which a trial collapsed.

    Points that not every epoch has get markers. Where a collapse leaves no trace in the history (too much predicted,
    say), the cross ends the line; so do the square of a trial that failed and the bar of one that was stopped early.
    """
    histories = found.details.histories
    known = [label for label in found.everyone if any(key[0] == label for key in histories)]
    if not known:
        return None
    looks = seed_look(sorted({seed for _, seed in histories}))
    figure, axes = panels(known, "epoch", title, same_y=shared_y is not None)
    last = max(float(h.epoch.max()) for h in histories.values() if len(h))
    marked: set[str] = set()
    for label, axis in axes.items():
        for seed, look in looks.items():
            history = histories.get((label, seed))
            if history is None or column not in history:
                continue
            rows = history[np.isfinite(history[column].astype(float))]
            is_rare = len(rows) == 1 or len(rows) < min(len(history), MOST_MARKERS)
            axis.plot(rows.epoch, rows[column], lw=1.3, marker="o" if is_rare else "", ms=3.2, **look)
            record = found.trials.get((label, seed))
            outcome: str = record.outcome if record else ""
            if outcome in END_MARKS:
                marked.add(outcome)
                end = collapse_epoch(history) if outcome == "collapsed" else None
                end = end or int(history.epoch.max())
                before = rows[rows.epoch <= end]
                height = before[column].iloc[-1] if len(before) else (shared_y or (0, 0))[0]
                axis.plot([end], [height], END_MARKS[outcome], **end_look(outcome), clip_on=False, zorder=5)
        axis.set_xlim(0, last * 1.03 + 0.5)
        if shared_y:
            axis.set_ylim(*shared_y)
    handles = seed_handles(looks)
    for outcome in sorted(marked):
        handles.append(Line2D([], [], ls="", marker=END_MARKS[outcome], **end_look(outcome), label=outcome))
    figure.legend(handles=handles, loc="outside upper right", ncols=7)
    return figure


def end_look(outcome: str) -> Look:
    """How the mark at the end of a line is drawn."""
    return {"ms": 8, "mfc": "none", "mec": INK if outcome == "stopped" else BAD, "mew": 2}


def range_tests(found: Findings) -> Figure | None:
    """Loss against learning rate in the range test of each trial; a dot marks the rate that training then used."""
    tested = {key: (r.range_test, r.lr) for key, r in found.trials.items() if r.range_test and r.range_test.lr}
    known = [label for label in found.everyone if any(key[0] == label for key in tested)]
    if not known:
        return None
    looks = seed_look(sorted({seed for _, seed in tested}))
    tried = [rate for test, _ in tested.values() for rate in test.lr]
    rates = (min(tried) / 1.3, max(tried) * 1.3)
    figure, axes = panels(known, "learning rate", "training loss")
    for label, axis in axes.items():
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xlim(*rates)
        tops = []
        for seed, look in looks.items():
            if (label, seed) not in tested:
                continue
            test, used = tested[label, seed]
            lr, loss = np.asarray(test.lr, dtype=float), np.asarray(test.loss, dtype=float)
            ok = np.isfinite(loss)
            if not ok.any():
                continue
            axis.plot(lr[ok], loss[ok], lw=1.1, **look)
            tops.append((loss[ok].min(), loss[ok][: max(3, ok.sum() // 3)].max()))
            if used:
                height = np.interp(math.log(used), np.log(lr[ok]), loss[ok])
                axis.plot([used], [height], "o", ms=7, color=look["color"], mec=INK, mew=1.2, zorder=4)
        if tops:  # the explosion at the right end would flatten everything else
            low, high = min(t[0] for t in tops), max(t[1] for t in tops)
            axis.set_ylim(low - 0.1 * (high - low), high + 0.35 * (high - low) + 1e-6)
    handles = seed_handles(looks)
    handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=INK, ms=7, label="rate used"))
    figure.legend(handles=handles, loc="outside upper right", ncols=7)
    return figure


def rate_choices(configurations: Sequence[Tried], labels: Sequence[str]) -> Figure | None:
    """Validation Dice against learning rate where rates were tried: a dot a training, a line through their means."""
    of_label = {c.label: c for c in configurations if any(d is not None for rate in c.rates for d in rate.dice)}
    known = [label for label in labels if label in of_label]
    if not known:
        return None
    tried = [rate.lr for label in known for rate in of_label[label].rates]
    figure, axes = panels(known, "learning rate", "best validation Dice", same_y=True)
    for label, axis in axes.items():
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xlim(min(tried) / 1.6, max(tried) * 1.6)
        axis.set_ylim(0, 1)
        dots = [(rate.lr, dice) for rate in of_label[label].rates for dice in rate.dice if dice is not None]
        axis.plot(*zip(*dots, strict=True), "o", ms=4, color=MUTED, mec="none")
        means = pd.DataFrame(dots, columns=["lr", "dice"]).groupby("lr").dice.mean()
        axis.plot(means.index, means, lw=1.5, color=BLUE)
        chosen = of_label[label].lr
        if chosen is not None and chosen in means.index:
            axis.plot([chosen], [means[chosen]], "o", ms=9, mfc="none", mec=INK, mew=1.5, zorder=4)
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, color=MUTED, label="one training"),
        Line2D([], [], lw=1.5, color=BLUE, label="mean"),
        Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec=INK, mew=1.5, label="rate used"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


VALIDATION_DICE = ReportFigure(
    name="validation-dice",
    section="training",
    reading="One line a seed. Lines still rising at the end would have gained from a longer training; a cross marks "
    "the epoch at which a trial collapsed.",
    title="Learning curves: Dice on validation images",
    alt="Validation Dice by epoch, one panel a configuration and one line a seed; a cross marks a collapse.",
    plot=lambda found: curves(found, column="val_dice", title="validation Dice", shared_y=(0.0, 1.0)),
)
TRAINING_LOSS = ReportFigure(
    name="training-loss",
    section="training",
    reading="Each loss has its own scale, so only the shape may be compared between panels, never the height.",
    title="Learning curves: training loss",
    alt="Training loss by epoch, one panel a configuration with its own scale and one line a seed.",
    plot=lambda found: curves(found, column="train_loss", title="training loss (own scale each)"),
)
RANGE_TESTS = ReportFigure(
    name="range-tests",
    section="training",
    reading="The loss while the learning rate grows: it falls where the network learns and shoots up where the rate is "
    "too high. The dot marks the rate that was used.",
    title="Learning-rate range tests",
    alt="Training loss against learning rate, one panel a configuration; a dot marks the rate that was used.",
    plot=range_tests,
)
RATES = ReportFigure(
    name="learning-rates",
    section="training",
    reading="Each configuration was first trained for a shorter time at a few rates, with seeds that take no further "
    "part. Where the line is flat the rate matters little; at an end of the line a better one may lie beyond.",
    title="Learning rates that were tried",
    alt="Best validation Dice against learning rate, one panel a configuration; a ring marks the rate that was used.",
    plot=lambda found: rate_choices(found.results.log.configurations if found.results.log else (), found.everyone),
)

"""The page of a sweep that runs: one file that loads itself again, written from what the reporting actor knows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from cellray.overlay import OVERLAY_COLOURS
from cellray.report.gallery import LEGEND, Picture
from cellray.report.page.templates import environment
from cellray.report.progress import SweepStatus
from cellray.times import duration

AGAIN_S = 10
_WIDTH, _HEIGHT = 180, 32
LIVE = "live.html"
"""Beside the report's own page."""
GIVES_WAY = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=index.html">'
    b'<title>The sweep has ended</title><p>The sweep has ended: <a href="index.html">its report</a>.</p></html>'
)
"""What takes its place at the end."""


def render_live(
    question: str, state: SweepStatus, curves: Mapping[tuple[str, int], Sequence[tuple[int, float]]],
    pictures: Sequence[Picture],
) -> bytes:  # fmt: skip
    """The page as bytes.

    Args:
        question: Of the study.
        state: Of `ReportActor.status`.
        curves: Epoch and validation Dice of each running trial, by label and seed, as far as it has been watched.
        pictures: Of the trial that ended last.
    """
    running = [
        {
            **row,
            "epoch": f"{row['epoch']} of {row['epochs']}" if row["epochs"] else row["epoch"],
            "dice": "–" if row["val_dice"] is None else f"{row['val_dice']:.3f}",
            "left": "–" if row["eta_s"] is None else f"about {duration(row['eta_s'])}",
            "curve": draw_curve(curves.get((row["label"], row["seed"]), ()), row["epochs"]),
        }
        for row in state["running"]
    ]
    page = environment().get_template("live.html.j2")
    return page.render(
        question=question,
        state=state,
        running=running,
        done=sum(state["done"].values()),
        counts=", ".join(f"{n} {outcome}" for outcome, n in state["done"].items()),
        left=duration(state["eta_s"]) if state["eta_s"] else "",
        at=time.strftime("%H:%M:%S"),
        again_s=AGAIN_S,
        pictures=pictures,
        legend=LEGEND,
        colours=OVERLAY_COLOURS,
    ).encode()


def draw_curve(points: Sequence[tuple[int, float]], epochs: int | None) -> Markup:
    """A small learning curve; its height is the Dice from 0 to 1."""
    if not points:
        return Markup("")
    last = max(epochs or 0, points[-1][0], 1)
    places = [(_WIDTH * epoch / last, _HEIGHT - 2 - (_HEIGHT - 4) * min(max(dice, 0.0), 1.0)) for epoch, dice in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    said = f"Validation Dice by epoch, now {points[-1][1]:.3f}"
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH + 4} {_HEIGHT}" width="{_WIDTH + 4}" height="{_HEIGHT}" role="img" '
        f'aria-label="{said}">'
        f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT - 2}" y2="{_HEIGHT - 2}"/>'
        f'<polyline points="{line}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/></svg>'
    )

"""How figures look: colours, marks, and what has room in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

Look = dict[str, Any]
"""Keyword arguments of matplotlib's functions."""

INK, MUTED, LINE, PAPER = "#1f2328", "#5f6670", "#d0d6dc", "#fffffe"
BLUE, BAD, MEAN = "#0072b2", "#d55e00", "#1f2328"
# one off BLUE, which a dark page lightens: there it would be the sky blue at the end
SEED_COLOURS = ("#0072b3", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
SEED_STYLES = ("-", "--", ":", "-.")
GROUP_COLOURS = (*SEED_COLOURS, INK)
MARKERS = ("o", "s", "^", "D", "v", "P")
NARROW = 5.4
"""Inches across that a phone shows whole; a wider figure scrolls there, so that only folded ones are wider."""
MOST_PANELS = 24
"""Configurations that get a panel of their own; a study of more shows its best."""
MOST_ROWS = 40
"""Configurations that get a row of their own."""


def seed_look(seeds: Sequence[int]) -> dict[int, Look]:
    """Colour and dash of each seed, the same in every figure."""
    n = len(SEED_COLOURS)
    return {
        seed: {"color": SEED_COLOURS[i % n], "ls": SEED_STYLES[(i // n) % len(SEED_STYLES)]}
        for i, seed in enumerate(sorted(seeds))
    }


def seed_handles(looks: Mapping[int, Look]) -> list[Line2D]:
    """What a legend says of the lines of seeds."""
    return [Line2D([], [], lw=1.5, label=f"seed {seed}", **look) for seed, look in looks.items()]


def label_looks(labels: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of each configuration: a colour for what its label says before a colon, a marker within."""
    groups: dict[str, int] = {}
    members: dict[str, int] = {}
    looks = {}
    for label in sorted(set(labels)):
        name = label.split(":")[0]
        group = groups.setdefault(name, len(groups))
        member = members[name] = members.get(name, -1) + 1
        n = len(GROUP_COLOURS)
        looks[label] = {"color": GROUP_COLOURS[group % n], "marker": MARKERS[(member + group // n) % len(MARKERS)]}
    return looks

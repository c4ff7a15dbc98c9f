"""What a figure of the report is, how all look, and how each is drawn.

A figure is one `ReportFigure`, defined in the file that draws it and listed in `figures.FIGURES`. The same data give
the same bytes: ids are salted, and no date is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context, rcParamsDefault
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from cellray.report.figures.looks import BLUE, INK, LINE, MUTED, NARROW, PAPER
from cellray.report.figures.saving import FONT, render
from cellray.report.findings import Findings

THEME = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "var(--card)", BLUE: "var(--blue)"}
"""Colours of a figure that follow the page's light or dark theme."""

PLAIN_STYLE = {name: value for name, value in rcParamsDefault.items() if "backend" not in name}
"""Whatever a file `matplotlibrc` says, that lies where the command was started."""
STYLE: dict[RcKeyType, Any] = {
    "font.family": FONT,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titley": 1.0,  # not searched for above ticks
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "cellray",
    "svg.fonttype": "path",
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Sketch:
    """A figure before it is saved."""

    title: str
    alt: str
    figure: Figure | None
    """None: there is nothing to draw."""
    part: str = ""
    """Of what, where there is a figure for each of several sets or losses; ends the file's name."""
    is_folded: bool | None = None
    """None: as all of its kind."""


@dataclass(frozen=True)
class ReportFigure:
    """One figure, or one for each set or family of losses: all that the report knows of it."""

    name: str
    """File stem, or what stands before `-<set>` in it."""
    section: str
    """Id of the page's section."""
    reading: str
    """One or two sentences for a reader who hasn't met such a figure."""
    title: str = ""
    """`{metric}` stands for the name of the metric that ranks; so in `alt`."""
    alt: str = ""
    """What it shows, for who can't see it."""
    plot: Callable[[Findings], Figure | None] = lambda found: None
    """None where there is nothing to show."""
    series: Callable[[Findings], Iterable[Sketch]] | None = None
    """Instead of title, alt and plot, where these depend on what there is to draw."""
    is_folded: bool = True
    """Whether it is opened only on demand, as a detail."""

    def sketches(self, found: Findings) -> Iterable[Sketch]:
        """What there is to draw, to be asked for within `STYLE`."""
        if self.series is not None:
            return self.series(found)
        return [Sketch(self.title.format(metric=found.title), self.alt.format(metric=found.title), self.plot(found))]


@dataclass(frozen=True)
class Drawing:
    """A figure ready to be saved and embedded."""

    name: str
    """File stem; also the prefix of its ids in the page."""
    title: str
    alt: str
    svg: bytes
    png: bytes
    kind: ReportFigure
    is_folded: bool = False
    """Whether it is opened only on demand."""

    @property
    def inline(self) -> Markup:
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
        points = float(width.group(1)) if width else 600.0
        style = f"max-width:{1.6 * points:.0f}px"
        if points > 72 * NARROW:  # on a phone it scrolls, or its letters couldn't be read
            style += f";min-width:{min(points, 620):.0f}px"
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        return Markup(f'{head} role="img" aria-label="{label}" style="{style}">{rest}')


def draw(kind: ReportFigure, found: Findings) -> list[Drawing]:
    """A figure's drawings; none where there is nothing to show."""
    drawings = []
    with rc_context(PLAIN_STYLE), rc_context(STYLE):
        for sketch in kind.sketches(found):
            if sketch.figure is not None:
                name = f"{kind.name}-{sketch.part}" if sketch.part else kind.name
                folded = kind.is_folded if sketch.is_folded is None else sketch.is_folded
                drawings.append(Drawing(name, sketch.title, sketch.alt, *render(sketch.figure), kind, folded))
    return drawings

"""How every figure of a report looks, and how it is saved: as SVG for the page and as SVG and PNG files.

Colours are Okabe and Ito's, told apart by colour-blind readers; shapes repeat what colour says. Text is 9 pt or larger.
The same data give the same bytes: ids are salted, and no date is written.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#1f2328", "#5f6670", "#d0d6dc", "#fffffe"
BLUE, BAD, MEAN = "#0072b2", "#d55e00", "#1f2328"
THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
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
    return Drawing(name, title, alt, shorten_svg(svg.getvalue()), png.getvalue())


def shorten_svg(svg: bytes) -> bytes:
    """The same drawing in half the bytes: coordinates to a tenth of a point, short names, no comments."""
    text = re.sub(r"<!--.*?-->|\n\s+(?=<)", "", svg.decode(), flags=re.S)
    text = text.replace("DejaVuSans-", "g")
    text = re.sub(r' transform="translate\((-?[\d.]+) 0\)"/>', r' x="\1"/>', text)
    # not in a transform, where a scale of 0.015625 turns the units of letters into points
    places = re.compile(r' (?:d|x|y)="[^"]*"')
    text = places.sub(lambda p: re.sub(r"-?\d+\.\d\d+", lambda n: f"{float(n[0]):.1f}", p[0]), text)
    text = re.sub(r"M (\S+ \S+) \nL \1 ", r"M \1h0", text)  # the dots of a scatter
    return text.encode()


def new_figure(width: float, height: float) -> Figure:
    """A figure that no global list keeps alive."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def as_label(text: str, width: int = 28) -> str:
    """A label that matplotlib doesn't read as TeX, cut where it would run over."""
    text = text if len(text) <= width else text[: width - 1] + "…"
    return text.replace("$", r"\$")

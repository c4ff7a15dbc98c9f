"""Saves a figure as SVG and as PNG, laid out and walked through once: both files get each stroke as it is drawn."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from matplotlib.backend_bases import FigureCanvasBase, GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D, Bbox, Transform
from numpy.typing import ArrayLike
from PIL import Image

FONT = "DejaVu Sans"
"""Ships with matplotlib: the same letters on every machine."""
ASCENT, DESCENT, LINE_GAP = (units / 2048 for units in (1556, 492, 410))
"""Of its lines in ems, as the font's table OS/2 has them; looked up for each text, they cost more than drawing it."""
DPI = 150
"""Of the PNG."""
SCALE = DPI / 72
ENLARGE = Affine2D().scale(SCALE)
"""From points, in which a figure is laid out and its SVG is written, to pixels."""


class TwoRenderers(RendererBase):
    """Draws into an SVG file and into pixels."""

    def __init__(self, figure: Figure, file: io.StringIO) -> None:
        super().__init__()
        width, height = (72 * inches for inches in figure.get_size_inches())
        self.svg = RendererSVG(width, height, file, image_dpi=DPI, metadata={"Date": None, "Creator": None})
        self.pixels = RendererAgg(width * SCALE, height * SCALE, DPI)

    def draw_path(self, gc: GraphicsContextBase, path: Path, transform: Transform, *face: Any) -> None:
        """A line or an area."""
        self.svg.draw_path(gc, path, transform, *face)
        self.pixels.draw_path(enlarged(gc), path, transform + ENLARGE, *face)

    def draw_markers(
        self, gc: GraphicsContextBase, marker: Path, size: Transform, path: Path, place: Transform, *face: Any
    ) -> None:
        """The same mark at each point of a path."""
        self.svg.draw_markers(gc, marker, size, path, place, *face)
        self.pixels.draw_markers(enlarged(gc), marker, size + ENLARGE, path, place + ENLARGE, *face)

    def draw_path_collection(  # type: ignore[override]
        self, gc: GraphicsContextBase, size: Transform, *shapes: Any, **more: Any
    ) -> None:
        """Many paths: these, their sizes and offsets, what places the offsets, and their looks."""
        paths, sizes, offsets, place, *looks = shapes
        self.svg.draw_path_collection(gc, size, *shapes, **more)
        large = (size + ENLARGE, paths, sizes, offsets, place + ENLARGE)
        self.pixels.draw_path_collection(enlarged(gc), *large, *looks, **more)

    def draw_quad_mesh(self, gc: GraphicsContextBase, size: Transform, *shapes: Any) -> None:
        """A colour bar: its columns, rows, corners and offsets, what places the offsets, colours and edges."""
        columns, rows, corners, offsets, place, colours, *looks = shapes
        # as a picture, where the SVG would have an area for each of 256 colours
        (left, low), (right, high) = size.transform(np.reshape(corners, (-1, 2))[[0, -1]])
        picture = np.uint8(255 * np.reshape(colours, (rows, columns, 4))[::-1])
        self.svg.draw_image(gc, left, low, picture, Affine2D().scale(right - left, high - low))
        large = (size + ENLARGE, columns, rows, corners, offsets, place + ENLARGE)
        self.pixels.draw_quad_mesh(enlarged(gc), *large, colours, *looks)

    def draw_image(
        self, gc: GraphicsContextBase, x: float, y: float, im: ArrayLike, transform: Transform | None = None
    ) -> None:
        """A heat map, resampled to pixels."""
        self.svg.draw_image(gc, x, y, im, transform)
        self.pixels.draw_image(enlarged(gc), x * SCALE, y * SCALE, im)

    def draw_text(self, gc: GraphicsContextBase, x: float, y: float, *line: Any, **more: Any) -> None:
        """A line of text, and how it stands."""
        self.svg.draw_text(gc, x, y, *line, **more)
        self.pixels.draw_text(enlarged(gc), x * SCALE, y * SCALE, *line, **more)

    def open_group(self, s: str, gid: str | None = None) -> None:
        """Only the SVG has groups."""
        self.svg.open_group(s, gid)

    def close_group(self, s: str) -> None:
        """Only the SVG has groups."""
        self.svg.close_group(s)

    def get_text_width_height_descent(
        self, s: str, prop: FontProperties, ismath: bool | Literal["TeX"]
    ) -> tuple[float, float, float]:
        """In points."""
        return text_extent(s, prop.get_size_in_points(), prop.get_weight(), bool(ismath))

    def _get_font_height_metrics(self, prop: FontProperties) -> tuple[float, float, float]:
        size = prop.get_size_in_points()
        return ASCENT * size, DESCENT * size, LINE_GAP * size

    def get_canvas_width_height(self) -> tuple[float, float]:
        """In points."""
        return self.svg.width, self.svg.height

    def get_image_magnification(self) -> float:
        """Pixels in a point."""
        return SCALE

    def option_image_nocomposite(self) -> bool:
        """No figure lays images over each other."""
        return True


class TwoCanvases(FigureCanvasBase):
    """Gives its figure's layout the renderer that will draw it."""

    def __init__(self, figure: Figure, file: io.StringIO) -> None:
        super().__init__(figure)
        self.renderer = TwoRenderers(figure, file)

    def get_renderer(self) -> TwoRenderers:
        """What draws the figure."""
        return self.renderer


def enlarged(gc: GraphicsContextBase) -> GraphicsContextBase:
    """The same pen for pixels: what it is clipped to is in points, its width is always."""
    area = gc.get_clip_rectangle()
    if area is None:
        return gc
    copy = GraphicsContextBase()
    copy.copy_properties(gc)
    copy.set_clip_rectangle(Bbox(area.get_points() * SCALE))
    return copy


@lru_cache(maxsize=10_000)
def text_extent(text: str, size: float, weight: str | int, is_math: bool) -> tuple[float, float, float]:
    """Width, height and descent of a line in points; figures of a report share most of their texts."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, is_math)


def render(figure: Figure) -> tuple[bytes, bytes]:
    """A figure as SVG and as PNG."""
    text, png = io.StringIO(), io.BytesIO()
    ease_layout(figure)
    figure.dpi = 72
    renderer = TwoCanvases(figure, text).get_renderer()
    figure.draw(renderer)
    renderer.svg.finalize()
    Image.fromarray(np.asarray(renderer.pixels.buffer_rgba())).convert("RGB").save(png, "PNG", dpi=(DPI, DPI))
    return shorten_svg(text.getvalue()), png.getvalue()


def ease_layout(figure: Figure) -> None:
    """Spare the layout what takes it half its time: frames, and where axes without a name would have it."""
    for axes in figure.axes:
        for spine in axes.spines.values():
            spine.set_in_layout(False)
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)


def shorten_svg(text: str) -> bytes:
    """The same drawing in half the bytes: coordinates to a tenth of a point, short names, no comments."""
    text = re.sub(r"<!--.*?-->|\n\s+(?=<)", "", text, flags=re.S)
    text = text.replace("DejaVuSans-", "g")
    text = re.sub(r' transform="translate\((-?[\d.]+) 0\)"/>', r' x="\1"/>', text)
    # not in a transform, where a scale of 0.015625 turns the units of letters into points
    places = re.compile(r' (?:d|x|y)="[^"]*"')
    text = places.sub(lambda p: re.sub(r"-?\d+\.\d\d+", lambda n: f"{float(n[0]):.1f}", p[0]), text)
    text = re.sub(r"M (\S+ \S+) \nL \1 ", r"M \1h0", text)  # the dots of a scatter
    return text.encode()

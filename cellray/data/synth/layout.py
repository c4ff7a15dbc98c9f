"""Where the cells of a drawn image lie and what outlines they have; no intensities yet.

The numbers come from the published annotation of 283 FNC yellow images (CC BY-SA 4.0; Morelli, Clissa et al.
2021, https://doi.org/10.1038/s41598-021-01929-5): counts, areas, and the fact that images with few cells show
larger ones. Lengths are in pixels of the native 1600 x 1200 field unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellray.data.synth.fields import Reals

NATIVE_AREA = 1600 * 1200
MIN_FIELD = 0.5  # a field smaller than half the native one still gets the cells of half of it,
MIN_AREA_PER_CELL = 12_000  # but never more than one cell in this area, so that small fields don't fill up
MARGIN = 2.2  # the published areas include a rim of about 2 px outside the outline drawn here

TOUCHING_SHARE = 0.10  # share of cells drawn against another; the published counts take both for one component

COUNT_SHARES = (
    0,
    0.1837,
    0.27,
    0.35,
    0.44,
    0.52,
    0.60,
    0.68,
    0.76,
    0.82,
    0.85,
    0.88,
    0.90,
    0.92,
    0.94,
    0.95,
    0.97,
    1.0,
)
FNC_COUNTS = (0, 0.5, 1, 2, 3, 4, 5, 6, 7.5, 10, 13, 15, 20, 24, 33, 41, 53, 69)
"""Share of images with at most so many components (52 of 283 have none, hence 0.5 there)."""

AREA_AT_COUNT = ((1, 5, 8, 14, 22, 50, 69), (2050, 1950, 1700, 1220, 920, 710, 680))
"""Median published cell area by the number of cells in the image."""
AREA_SIGMA_IMAGES, AREA_SIGMA_CELLS = 0.30, 0.52
SLIVERS = 0.07  # share of cells of which only a part lies in the focal plane, about a third as large


@dataclass(frozen=True)
class Cell:
    """One cell: the corner of its patch in the image, its outline there, what it is made of."""

    top: int
    left: int
    mask: NDArray[np.bool_]  # the whole cell, whatever of it lies in the image or under another cell
    centre: tuple[float, float]  # y, x in the image
    radius: float  # of the disk of equal area, drawn pixels
    dotted: bool  # granules on a soft base, rather than a smooth plateau
    processes: list[Reals]  # each (points, 3): y, x, width in drawn pixels


@dataclass(frozen=True)
class Layout:
    """The true cells of one image and where there is tissue at all."""

    labels: NDArray[np.int32]
    cells: list[Cell]
    hotspots: Reals  # (n, 2) y, x: cells and look-alikes gather here
    void: tuple[float, float, float] | None  # direction y, x and offset of the half plane without tissue


def draw_layout(rng: np.random.Generator, *, width_px: int, height_px: int, scale: float) -> Layout:
    """Draw how many cells there are, their outlines and their places; labels are numbered 1 to n."""
    count = draw_count(rng, field_area=width_px * height_px / scale**2)
    void = _draw_void(rng, width_px, height_px) if rng.random() < 0.08 else None
    hotspots = _draw_hotspots(rng, count, width_px, height_px)
    labels = np.zeros((height_px, width_px), np.int32)
    centres = np.column_stack(AREA_AT_COUNT)
    image_area = np.exp(np.interp(np.log(max(count, 1)), np.log(centres[:, 0]), np.log(centres[:, 1])))
    image_area *= np.exp(rng.normal(0, AREA_SIGMA_IMAGES))
    cells: list[Cell] = []
    areas = image_area * np.exp(rng.normal(0, AREA_SIGMA_CELLS, count)) * np.where(rng.random(count) < SLIVERS, 0.3, 1)
    for area in np.clip(areas, 140, 9360):
        cell = _place(rng, labels, cells, hotspots, void, area, scale)
        if cell is not None:
            cells.append(cell)
    return Layout(labels, cells, hotspots, void)


def draw_count(rng: np.random.Generator, *, field_area: float) -> int:
    """Number of cells in a field of this many native pixels; 18 % of fields are empty whatever their size."""
    native = float(np.interp(rng.random(), COUNT_SHARES, FNC_COUNTS))
    share = max(field_area / NATIVE_AREA, MIN_FIELD)
    if native < 0.5:
        return 0
    most = max(int(field_area / MIN_AREA_PER_CELL), 1)
    return int(np.clip(np.floor(native * share * (1 + TOUCHING_SHARE) + rng.random()), 1, most))


def in_void(void: tuple[float, float, float] | None, y: float, x: float) -> bool:
    """Whether a place lies in the part of the field without tissue."""
    return void is not None and void[0] * y + void[1] * x > void[2]


def draw_place(
    rng: np.random.Generator, hotspots: Reals, shape: tuple[int, int], *, clustered: float
) -> tuple[float, float]:
    """A place in the field: with probability `clustered` near a hotspot, else denser in the middle."""
    height, width = shape
    for _ in range(20):
        if rng.random() < clustered and len(hotspots):
            y, x = hotspots[rng.integers(len(hotspots))] + rng.normal(0, 0.085, 2) * (height, width)
        else:
            y, x = (0.5 + rng.normal(0, 0.3, 2)) * (height, width)
        if 3 < y < height - 3 and 3 < x < width - 3:
            break
    return float(np.clip(y, 3, height - 4)), float(np.clip(x, 3, width - 4))


def _draw_void(rng: np.random.Generator, width: int, height: int) -> tuple[float, float, float]:
    """A half plane that takes a tenth to a third of the field."""
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = np.sin(angle), np.cos(angle)
    reach = abs(dy) * height / 2 + abs(dx) * width / 2
    return dy, dx, dy * height / 2 + dx * width / 2 + reach * rng.uniform(0.35, 0.75)


def _draw_hotspots(rng: np.random.Generator, count: int, width: int, height: int) -> Reals:
    n = 1 + int(rng.poisson(count / 9))
    return ((0.5 + rng.normal(0, 0.19, (n, 2))).clip(0.08, 0.92) * (height, width)).astype(np.float32)


def _place(
    rng: np.random.Generator,
    labels: NDArray[np.int32],
    cells: list[Cell],
    hotspots: Reals,
    void: tuple[float, float, float] | None,
    area: float,
    scale: float,
) -> Cell | None:
    """Draw one cell of this published area and write it into `labels`; None where no room was found."""
    radius = max(np.sqrt(area / np.pi) - MARGIN, 3.5) * scale
    dotted = bool(rng.random() < 0.5)
    mask, processes = _draw_outline(rng, radius, scale, roughness=0.25 if dotted else 0.11)
    touching = bool(cells) and rng.random() < TOUCHING_SHARE
    for _ in range(40):
        if touching:
            other = cells[rng.integers(len(cells))]
            angle = rng.uniform(0, 2 * np.pi)
            reach = (other.radius + radius) * rng.uniform(0.8, 1.0)
            y, x = other.centre[0] + reach * np.sin(angle), other.centre[1] + reach * np.cos(angle)
        else:
            y, x = draw_place(rng, hotspots, labels.shape, clustered=0.6)
        inside = 3 < y < labels.shape[0] - 3 and 3 < x < labels.shape[1] - 3
        if not inside or in_void(void, y, x):
            continue
        corner = _write(labels, mask, (y, x), len(cells) + 1, touching, scale)
        if corner is not None:
            moved = [p + np.array([y, x, 0], np.float32) for p in processes]
            return Cell(*corner, mask, (y, x), radius, dotted, moved)
    return None


def _write(
    labels: NDArray[np.int32],
    mask: NDArray[np.bool_],
    centre: tuple[float, float],
    label: int,
    touching: bool,
    scale: float,
) -> tuple[int, int] | None:
    """Put an outline at a place if it fits there: clear of all others, or touching one without hiding it.

    Returns the patch's top left corner.
    """
    half = mask.shape[0] // 2
    top, left = round(centre[0]) - half, round(centre[1]) - half
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + mask.shape[0], labels.shape[0]), min(left + mask.shape[1], labels.shape[1])
    window = labels[y0:y1, x0:x1]
    part = mask[y0 - top : y1 - top, x0 - left : x1 - left]
    hidden = (part & (window > 0)).sum() / max(part.sum(), 1)
    if touching and not 0 < hidden < 0.25:
        return None
    if not touching:
        gap = max(round(6 * scale), 1)
        if (ndimage.maximum_filter(window, 2 * gap + 1)[part] > 0).any():
            return None
    free = part & (window == 0)
    pieces, n = ndimage.label(free, np.ones((3, 3)))
    if n == 0:
        return None
    free = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    window[free] = label
    return top, left


def _draw_outline(
    rng: np.random.Generator, radius: float, scale: float, *, roughness: float
) -> tuple[NDArray[np.bool_], list[Reals]]:
    """Mask of one cell in a square patch, and its processes relative to the centre.

    The contour is an ellipse times a smooth random Fourier series, with the thick root of each process.
    """
    aspect = min(1 + rng.gamma(2.0, 0.27), 2.6)
    # tissue is cut so that more cells lie along the rows than across
    axis = rng.normal(0, 0.75) if rng.random() < 0.6 else rng.uniform(0, np.pi)
    orders = np.arange(2, 8)
    waves = rng.normal(0, roughness, orders.size) / orders**0.9
    phases = rng.uniform(0, 2 * np.pi, orders.size)
    theta = np.linspace(-np.pi, np.pi, 181)
    a, b = np.sqrt(aspect), 1 / np.sqrt(aspect)
    rim = 1 / np.hypot(np.cos(theta - axis) / a, np.sin(theta - axis) / b)
    rim *= np.exp((waves * np.cos(np.outer(theta, orders) + phases)).sum(1))
    rim[-1] = rim[0]
    rim *= radius / np.sqrt((rim[:-1] ** 2).mean())
    processes = [
        _draw_process(rng, axis + np.pi * k + rng.normal(0, 0.35), theta, rim, radius, scale)
        for k in rng.permutation(2)[: rng.choice(3, p=[0.4, 0.38, 0.22])]
    ]
    half = int(rim.max() + 36 * scale) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    mask = np.hypot(y, x) <= np.interp(np.arctan2(y, x), theta, rim)
    for points in processes:
        for py, px, width in points[points[:, 2] > 4.5 * scale]:
            mask |= np.hypot(y - py, x - px) <= width / 2
    pieces, n = ndimage.label(mask, np.ones((3, 3)))
    if n > 1:  # a pinched contour falls apart on the grid
        mask = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return mask, processes


def _draw_process(
    rng: np.random.Generator, angle: float, theta: Reals, rim: Reals, radius: float, scale: float
) -> Reals:
    """A tapering, gently bent line that starts inside the rim and runs 20-80 px outwards."""
    length = rng.uniform(20, 80) * scale
    n = max(int(length / 1.5), 6)
    heading = angle + np.cumsum(ndimage.gaussian_filter1d(rng.normal(0, 0.16, n), 2))
    step = length / n
    start = 0.75 * np.interp((angle + np.pi) % (2 * np.pi) - np.pi, theta, rim)
    y = start * np.sin(angle) + np.cumsum(np.sin(heading)) * step
    x = start * np.cos(angle) + np.cumsum(np.cos(heading)) * step
    thick = min(rng.uniform(6, 14) * scale, 0.9 * radius)
    width = np.maximum(thick * np.exp(-np.linspace(0, rng.uniform(1.3, 3.0), n)), 1.8 * scale)
    return np.column_stack([y, x, width]).astype(np.float32)

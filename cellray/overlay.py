"""A picture that shows at a glance which cells a model found, missed and made up."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cellray.arrays import Labels, Mask, Pixels, brightest
from cellray.errors import ShapeError
from cellray.metrics import contingency, match_by_iou

OVERLAY_COLOURS: dict[str, str] = {"hit": "#56B4E9", "missed": "#E69F00", "spurious": "#CC79A7"}
"""From the palette of Okabe and Ito, told apart with every kind of colour blindness."""


def draw_overlay(
    image: Pixels, true: Labels, pred: Labels, *, iou_threshold: float = 0.4, max_side_px: int = 640
) -> Pixels:
    """Draw the outlines of hits, missed and spurious cells over a contrast-stretched image.

    A hit and a spurious cell show the predicted outline, a missed cell the true one. Large images are
    reduced, small ones enlarged by a whole factor: the longer side comes near `max_side_px`, never above it.

    Args:
        image: Shape (H, W, C) or (H, W). Three channels are shown in colour, otherwise the brightest counts.
        true: Labels of the true cells, shape (H, W), 0 = background.
        pred: Labels of the predicted cells, same shape.
        iou_threshold: Cells are matched one-to-one if their IoU is above this.
        max_side_px: Longest side of the picture.

    Returns:
        RGB picture, shape (h, w, 3). Lines are 2 px wide, between black ones so as to be seen on any cell.

    Raises:
        ShapeError: If image and labels differ in height or width.
    """
    if image.ndim not in (2, 3) or image.shape[:2] != true.shape or true.size == 0 or max_side_px < 1:
        raise ShapeError(f"overlay: expected image and labels of one size, got {image.shape}, {true.shape}")
    matches = match_by_iou(true, pred, threshold=iou_threshold)
    table = contingency(true, pred)
    missed = np.setdiff1d(table.true_ids, matches.true_ids)
    spurious = np.setdiff1d(table.pred_ids, matches.pred_ids)
    # errors are drawn last, so that a hit next to them doesn't hide them
    outlines = [("hit", pred, matches.pred_ids), ("spurious", pred, spurious), ("missed", true, missed)]
    return draw_outlines(image, outlines, max_side_px=max_side_px)


def draw_outlines(
    image: Pixels,
    outlines: Sequence[tuple[str, Labels, NDArray[np.integer]]],
    *,
    max_side_px: int,
    thin: bool = False,
) -> Pixels:
    """Draw the outlines of cells over a contrast-stretched image; arguments and picture as for `draw_overlay`.

    Args:
        image: As there.
        outlines: A key of `OVERLAY_COLOURS`, labels, and the ids of cells among them; later ones cover earlier ones.
        max_side_px: As there.
        thin: Draw only the last pixel inside a cell, as suits small pictures.
    """
    scale = _scale(image.shape[:2], max_side_px)
    picture = _resized(_stretched(image), scale)
    edges = []
    for kind, labels, ids in outlines:
        small = _resized_labels(labels, picture.shape[:2], scale)
        cells = np.where(np.isin(small, ids), small, 0)
        edge = _outlines(cells)
        edges.append((kind, edge & (cells > 0) if thin else edge))
        if not thin:
            picture[ndimage.maximum_filter(edge, size=3)] = 0
    for kind, edge in edges:
        picture[edge] = _rgb(OVERLAY_COLOURS[kind])
    return picture


def encode_png(picture: Pixels) -> bytes:
    """The PNG file of an 8-bit picture, shape (h, w, 3) or (h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.lstrip("#"))
    return red, green, blue


def _scale(shape: tuple[int, ...], max_side_px: int) -> float:
    scale = max_side_px / max(shape)
    return float(math.floor(scale)) if scale >= 1 else scale


def _stretched(image: Pixels) -> Pixels:
    """Spread the range between the 1 % and the 99.8 % quantile of brightness over black to white."""
    colour = image.ndim == 3 and image.shape[2] == 3
    brightness = brightest(image)
    shown = image if colour else np.repeat(brightness[:, :, None], 3, axis=2)
    low, high = np.percentile(brightness, (1, 99.8))
    steps = np.clip((np.arange(256) - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)
    return steps[shown]


def _resized(picture: Pixels, scale: float) -> Pixels:
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return np.array(Image.fromarray(picture).resize((width, height), method))


def _resized_labels(labels: Labels, shape: tuple[int, ...], scale: float) -> Labels:
    if scale >= 1:
        return np.kron(labels, np.ones((int(scale), int(scale)), dtype=labels.dtype))
    out = np.zeros(shape, dtype=labels.dtype)
    y, x = np.nonzero(labels)
    # every cell pixel lands somewhere, so that no cell is too small to be seen
    out[y * shape[0] // labels.shape[0], x * shape[1] // labels.shape[1]] = labels[y, x]
    return out


def _outlines(cells: Labels) -> Mask:
    """Two pixels wide: the last of a cell and the first outside it."""
    padded = np.pad(cells, 1)  # a cell cut off by the image border is outlined there as well
    edge = ndimage.maximum_filter(padded, size=3) != ndimage.minimum_filter(padded, size=3)
    return edge[1:-1, 1:-1]

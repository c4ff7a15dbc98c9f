"""Connected components of what passes the threshold, after opening, closing and filling of holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellray.arrays import Ints, Labels, Mask
from cellray.errors import ShapeError
from cellray.postprocess.morphology import close_mask, count_holes, fill_holes, open_mask
from cellray.postprocess.points import PixelSizes
from cellray.postprocess.sheet import Sheet, lay_out

TOUCHING = np.ones((3, 3), dtype=bool)
"""Pixels touch at a side or a corner."""


@dataclass(frozen=True)
class Components:
    """The connected components of one image, numbered 1..n in the order of their first pixels, row by row."""

    sheet: Sheet
    labels: Labels
    """On the sheet."""
    pixels: Ints
    """Flat indices of all their pixels on the sheet, rising."""
    areas: Ints
    """Pixels of each component, shape (n,)."""

    def at_least(self, min_area: float) -> Components:
        """Those of `min_area` pixels and more, numbered anew without gaps."""
        keep = self.areas >= min_area
        if keep.all():
            return self
        labels = self.renumbered(np.cumsum(keep, dtype=np.int64) * keep)
        kept = keep[self.labels.ravel()[self.pixels] - 1]
        return Components(self.sheet, labels, self.pixels[kept], self.areas[keep])

    def renumbered(self, numbers: Ints) -> Labels:
        """Labels on the sheet with these numbers, shape (n,), in the place of 1..n."""
        out = np.zeros_like(self.labels)
        out.ravel()[self.pixels] = numbers[self.labels.ravel()[self.pixels] - 1]
        return out


def find_components(probs: NDArray[np.floating], threshold: float, sizes: PixelSizes) -> Components:
    """Threshold and clean a probability map and number what is connected, whatever its size.

    Args:
        probs: Cell probabilities, shape (H, W), in [0, 1]. NaN counts as background.
        threshold: A pixel is cell if its probability is at least this.
        sizes: Of the operating point, in pixels; only `opening_radius` and `hole_area` play a part.

    Raises:
        ShapeError: If `probs` is not two-dimensional.
    """
    if probs.ndim != 2:
        raise ShapeError(f"probs: expected shape (H, W), got {probs.shape}")
    mask, radius = probs >= threshold, sizes.opening_radius
    if not mask.any():
        none = np.zeros(0, dtype=np.int64)
        return Components(Sheet(mask.shape, mask), np.zeros(mask.shape, dtype=np.int32), none, none)
    sheet = lay_out(mask, radius)
    mask = sheet.mask
    if radius > 0:
        mask = close_mask(open_mask(mask, radius, sheet.inside), radius, sheet.inside)
    mask, labels, n = _filled_and_labelled(mask, sizes.hole_area, expect_holes=sheet.inside is None)
    pixels = np.flatnonzero(mask)
    numbers = labels.ravel()[pixels]
    areas = np.bincount(numbers, minlength=n + 1)[1:]
    if sheet.slots:
        first = np.empty(n + 1, dtype=np.int64)
        first[numbers[::-1]] = pixels[::-1]  # of equal numbers the last one stays
        order = np.argsort(sheet.to_image_pixels(first[1:]))
        place = np.zeros(n + 1, dtype=np.int64)
        place[order + 1] = np.arange(1, n + 1)
        labels.ravel()[pixels], areas = place[numbers], areas[order]
    return Components(sheet, labels, pixels, areas)


def _filled_and_labelled(mask: Mask, hole_area: int, *, expect_holes: bool) -> tuple[Mask, Labels, int]:
    """The mask with its small holes filled, its components and their number."""
    if not expect_holes:
        # to count holes is much faster than to find them, and on a sheet there are often none
        labels, n = ndimage.label(mask, structure=TOUCHING, output=np.int32)
        if count_holes(mask, n) == 0:
            return mask, labels, n
    mask = fill_holes(mask, hole_area)
    return mask, *ndimage.label(mask, structure=TOUCHING, output=np.int32)

"""From cell probabilities to labelled cells: threshold, clean, split what touches.

The chain is the published one (threshold, opening and closing, holes, small objects, watershed), but its
lengths are in mean cell diameters, so that one operating point means the same at every magnification.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from skimage.segmentation import watershed

from cellray.errors import CellrayError, ShapeError

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

_TOUCHING = np.ones((3, 3), dtype=bool)


class PixelSizes(NamedTuple):
    """The lengths and areas of an operating point in the pixels of one dataset."""

    opening_radius: int
    hole_area: int
    min_area: int
    smoothing: int
    peak_window: int


class OperatingPoint(BaseModel):
    """How probabilities become cells. The defaults are the published sizes at a usual threshold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(default=0.5, ge=0, le=1)
    """A pixel is cell if its probability is at least this."""
    opening: float = Field(default=0.075, ge=0)
    """Radius of the disk of the opening and of the closing, in mean cell diameters; 0 switches both off."""
    hole_area: float = Field(default=0.04, ge=0)
    """Holes smaller than this are filled; in mean cell areas (pi/4 d^2)."""
    min_area: float = Field(default=0.159, ge=0)
    """Objects smaller than this are dropped, before the watershed; in mean cell areas."""
    watershed: bool = True
    """Split touching cells along the valleys of the distance transform."""
    smoothing: float = Field(default=0.75, ge=0)
    """Window of the maximum filter that smooths the distance transform, in mean cell diameters."""
    peak_distance: float = Field(default=1.0, ge=0)
    """Window in which a peak of the smoothed distance must be the highest, in mean cell diameters."""

    def in_pixels(self, diameter_px: float) -> PixelSizes:
        """The same sizes in whole pixels, for cells of a mean diameter of `diameter_px`."""
        if not (math.isfinite(diameter_px) and diameter_px > 0):
            raise CellrayError(f"diameter_px: expected a finite number > 0, got {diameter_px}")
        cell_area = math.pi / 4 * diameter_px**2
        return PixelSizes(
            opening_radius=_rounded(self.opening * diameter_px),
            hole_area=_rounded(self.hole_area * cell_area),
            min_area=_rounded(self.min_area * cell_area),
            smoothing=max(1, _rounded(self.smoothing * diameter_px)),
            peak_window=max(1, _rounded(self.peak_distance * diameter_px)),
        )


PUBLISHED_POINT = OperatingPoint(threshold=0.875)
"""Clissa et al. 2023, for cells of 40 px: disk 3, holes 50, objects 200, filter 30, peaks 40 px."""


def postprocess(probs: NDArray[np.floating], point: OperatingPoint, *, diameter_px: float) -> Labels:
    """Label the cells of one probability map.

    Pixels belong together if they touch at a side or a corner. What lies outside the image is neither cell
    nor background: a cell cut off by the border is not eaten from there, and its centre may lie on the border.
    The watershed looks at each connected component alone, so every component keeps at least one object.

    Args:
        probs: Cell probabilities, shape (H, W), in [0, 1]. NaN counts as background.
        point: The operating point.
        diameter_px: Mean cell diameter of the dataset, in pixels of `probs`.

    Returns:
        Labels, shape (H, W), 0 = background, cells 1..n without gaps. All zero if nothing passes.

    Raises:
        ShapeError: If `probs` is not two-dimensional.
        CellrayError: If `diameter_px` is not a finite number above 0.
    """
    if probs.ndim != 2:
        raise ShapeError(f"probs: expected shape (H, W), got {probs.shape}")
    sizes = point.in_pixels(diameter_px)
    mask = probs >= point.threshold
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    if sizes.opening_radius > 0:
        mask = close_mask(open_mask(mask, sizes.opening_radius), sizes.opening_radius)
    labels = _components(fill_holes(mask, sizes.hole_area), min_area=sizes.min_area)
    if point.watershed:
        labels = _split(labels, smoothing=sizes.smoothing, peak_window=sizes.peak_window)
    return labels


def open_mask(mask: Mask, radius: int) -> Mask:
    """Keep the places that a disk of this radius in pixels fits into; the image border does not count."""
    return _dilated(~_dilated(~mask, radius), radius)


def close_mask(mask: Mask, radius: int) -> Mask:
    """Add the places that a disk of this radius in pixels, kept off the mask, can't reach."""
    return ~_dilated(~_dilated(mask, radius), radius)


def fill_holes(mask: Mask, max_area: int) -> Mask:
    """Fill background regions of fewer than `max_area` pixels that don't reach the image border."""
    background, n = ndimage.label(~mask)
    outside = np.unique(np.concatenate([background[0], background[-1], background[:, 0], background[:, -1]]))
    if np.count_nonzero(outside) == n:
        return mask
    fill = np.bincount(background.ravel()) < max_area
    fill[0] = False
    fill[outside] = False
    return mask | fill[background] if fill.any() else mask


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def _dilated(mask: Mask, radius: int) -> Mask:
    """Dilation by a disk as shifted ORs of whole rows, which for masks beats any general filter tenfold."""
    height = mask.shape[0]
    out, run, width = mask.copy(), mask.copy(), 0
    for dy in range(radius, -1, -1):
        while width < math.isqrt(radius**2 - dy**2):
            width += 1
            run[:, width:] |= mask[:, :-width]
            run[:, :-width] |= mask[:, width:]
        rest = max(height - dy, 0)
        out[dy:] |= run[:rest]
        out[:rest] |= run[dy:]
    return out


def _components(mask: Mask, *, min_area: int) -> Labels:
    labels, n = ndimage.label(mask, structure=_TOUCHING, output=np.int32)
    cells = np.flatnonzero(mask)
    numbers = labels.ravel()[cells]
    keep = np.bincount(numbers, minlength=n + 1) >= min_area
    keep[0] = False
    if not keep[1:].all():
        labels.ravel()[cells] = (np.cumsum(keep) * keep)[numbers]
    return labels


def _split(labels: Labels, *, smoothing: int, peak_window: int) -> Labels:
    """Cut each component into the basins of its distance peaks, and number all pieces anew in order."""
    if labels.all():
        return labels  # nothing but one component: no distance to measure
    out, n_cells = np.zeros_like(labels), 0
    for number, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
        # with the background next to it, but at the image border, where there is none
        box = (slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(cols.start - 1, 0), cols.stop + 1))
        component = labels[box] == number
        distance = ndimage.distance_transform_edt(component)
        peaks, n_peaks = ndimage.label(_peaks(distance, component, smoothing, peak_window), _TOUCHING)
        if n_peaks > 1:
            pieces = watershed(-distance, peaks, connectivity=2, mask=component)
            out[box][component] = pieces[component] + n_cells
        else:
            out[box][component] = n_cells + 1
        n_cells += n_peaks
    return out


def _peaks(distance: NDArray[np.float64], component: Mask, smoothing: int, peak_window: int) -> Mask:
    """Where the smoothed distance is the highest of its window; at least at the overall maximum.

    The maximum of a maximum is the maximum over the sum of both windows: no smoothed value from outside the
    box is needed. Even windows reach one pixel further up and left, as SciPy has them.
    """
    back, ahead = smoothing // 2, (smoothing - 1) // 2
    before, after = back + peak_window // 2, ahead + (peak_window - 1) // 2
    height, width = distance.shape
    summit = int(distance.argmax())
    y, x = divmod(summit, width)
    tops = np.flatnonzero(distance == distance.flat[summit])
    if len(tops) <= 16 and max(y, x) <= after and max(height - 1 - y, width - 1 - x) <= before:
        # every window sees the summit, as with most single cells: no filter is needed to find what is near it
        near = np.zeros_like(component)
        for y, x in zip(*(axis.tolist() for axis in np.divmod(tops, width)), strict=True):
            near[max(y - ahead, 0) : y + back + 1, max(x - ahead, 0) : x + back + 1] = True
        return near & component
    smoothed = ndimage.maximum_filter(distance, size=smoothing, mode="constant")
    size = before + after + 1
    highest = ndimage.maximum_filter(distance, size=size, mode="constant", origin=before - size // 2)
    return component & (smoothed == highest)

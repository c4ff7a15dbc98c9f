"""Watershed: cut components along the valleys of their distance transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from cellray.arrays import Ints, Labels, Mask
from cellray.postprocess.components import TOUCHING, Components

Box = tuple[slice, slice]
Distance = NDArray[np.float64]
"""Of the pixels of one component to its nearest background, 0 outside it; shape of its box."""


class Pieces(NamedTuple):
    """What a watershed makes of the components of an image."""

    labels: Labels
    """On the components' sheet: 1..n, component by component."""
    owners: Ints
    """Number of the component that each piece belongs to, shape (n,)."""


def split(components: Components, windows: Sequence[tuple[int, int]]) -> list[Pieces]:
    """Cut each component into the basins of its distance peaks, once for each pair of windows.

    Args:
        components: Each is looked at alone.
        windows: Pairs of smoothing and peak window in pixels, as in `PixelSizes`.
    """
    labels, n = components.labels, len(components.areas)
    height, width = components.sheet.image_shape
    if n == 0 or components.areas.sum() == height * width:
        # nothing, or nothing but one component: no distance to measure
        return [Pieces(labels, np.arange(1, n + 1))] * len(windows)
    boxes = [_with_rim(box, components) for box in ndimage.find_objects(labels)]
    distances = [ndimage.distance_transform_edt(labels[box] == number) for number, box in enumerate(boxes, start=1)]
    return [_split_at(components, boxes, distances, window) for window in windows]


def _split_at(components: Components, boxes: list[Box], distances: list[Distance], window: tuple[int, int]) -> Pieces:
    labels, n = components.labels, len(components.areas)
    at_peak = np.zeros(labels.shape, dtype=bool)
    for box, distance in zip(boxes, distances, strict=True):
        at_peak[box] |= _peaks(distance, *window)
    # peaks of different components never touch, so one look at all of them says who has several
    peaks, n_peaks = ndimage.label(at_peak, TOUCHING)
    owners = np.zeros(n_peaks + 1, dtype=np.int64)
    pixels = np.flatnonzero(at_peak)
    owners[peaks.ravel()[pixels]] = labels.ravel()[pixels]
    counts = np.bincount(owners[1:], minlength=n + 1)[1:]
    if (counts == 1).all():
        return Pieces(labels, np.arange(1, n + 1))
    before = np.cumsum(counts) - counts
    out = components.renumbered(before + 1)
    for k in np.flatnonzero(counts > 1).tolist():
        component = distances[k] > 0
        markers, _ = ndimage.label(at_peak[boxes[k]] & component, TOUCHING)
        pieces = watershed(-distances[k], markers, connectivity=2, mask=component)
        out[boxes[k]][component] = pieces[component] + before[k]
    return Pieces(out, np.repeat(np.arange(1, n + 1), counts))


def _with_rim(box: Box, components: Components) -> Box:
    """With the background next to it, but at the image border, where there is none."""
    rows, cols = box
    inside = components.sheet.inside
    if inside is None:
        return slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(cols.start - 1, 0), cols.stop + 1)
    y, x = rows.start, cols.start
    up, down = int(inside[y - 1, x]), int(inside[rows.stop, x])
    left, right = int(inside[y, x - 1]), int(inside[y, cols.stop])
    return slice(y - up, rows.stop + down), slice(x - left, cols.stop + right)


def _peaks(distance: Distance, smoothing: int, peak_window: int) -> Mask:
    """Where the smoothed distance is the highest of its window; at least at the overall maximum.

    The maximum of a maximum is the maximum over the sum of both windows: no smoothed value from outside the
    box is needed. Even windows reach one pixel further up and left, as SciPy has them.
    """
    component = distance > 0
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

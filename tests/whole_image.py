"""Post-processing that works on whole images, without boxes: the slow version that `cellray.postprocess` must equal.

Tests compare bit for bit, the benchmark compares times.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from cellray.postprocess import OperatingPoint

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

TOUCHING = np.ones((3, 3), dtype=bool)


def whole_image_postprocess(probs: NDArray[np.floating], point: OperatingPoint, *, diameter_px: float) -> Labels:
    """As `cellray.postprocess.postprocess`."""
    sizes = point.in_pixels(diameter_px)
    mask = probs >= point.threshold
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    if sizes.opening_radius > 0:
        r = sizes.opening_radius
        opened = dilated(~dilated(~mask, r), r)
        mask = ~dilated(~dilated(opened, r), r)
    labels = components(filled(mask, sizes.hole_area), sizes.min_area)
    return pieces(labels, sizes.smoothing, sizes.peak_window) if point.watershed else labels


def filled(mask: Mask, max_area: int) -> Mask:
    """Without background regions of fewer than `max_area` pixels that don't reach the image border."""
    background, n = ndimage.label(~mask)
    outside = np.unique(np.concatenate([background[0], background[-1], background[:, 0], background[:, -1]]))
    if np.count_nonzero(outside) == n:
        return mask
    fill = np.bincount(background.ravel()) < max_area
    fill[0] = False
    fill[outside] = False
    return mask | fill[background] if fill.any() else mask


def dilated(mask: Mask, radius: int) -> Mask:
    """Dilation by a disk as shifted ORs of whole rows."""
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


def components(mask: Mask, min_area: int) -> Labels:
    """Connected components of at least `min_area` pixels."""
    labels, n = ndimage.label(mask, structure=TOUCHING, output=np.int32)
    cells = np.flatnonzero(mask)
    numbers = labels.ravel()[cells]
    keep = np.bincount(numbers, minlength=n + 1) >= min_area
    keep[0] = False
    if not keep[1:].all():
        labels.ravel()[cells] = (np.cumsum(keep) * keep)[numbers]
    return labels


def pieces(labels: Labels, smoothing: int, peak_window: int) -> Labels:
    """Each component cut into the basins of its distance peaks."""
    if labels.all():
        return labels
    out, n_cells = np.zeros_like(labels), 0
    for number, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
        box = (slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(cols.start - 1, 0), cols.stop + 1))
        component = labels[box] == number
        distance = ndimage.distance_transform_edt(component)
        markers, n_markers = ndimage.label(peaks(distance, component, smoothing, peak_window), TOUCHING)
        if n_markers > 1:
            cut = watershed(-distance, markers, connectivity=2, mask=component)
            out[box][component] = cut[component] + n_cells
        else:
            out[box][component] = n_cells + 1
        n_cells += n_markers
    return out


def peaks(distance: NDArray[np.float64], component: Mask, smoothing: int, peak_window: int) -> Mask:
    """Where the smoothed distance is the highest of its window."""
    back, ahead = smoothing // 2, (smoothing - 1) // 2
    before, after = back + peak_window // 2, ahead + (peak_window - 1) // 2
    height, width = distance.shape
    summit = int(distance.argmax())
    y, x = divmod(summit, width)
    tops = np.flatnonzero(distance == distance.flat[summit])
    if len(tops) <= 16 and max(y, x) <= after and max(height - 1 - y, width - 1 - x) <= before:
        near = np.zeros_like(component)
        for y, x in zip(*(axis.tolist() for axis in np.divmod(tops, width)), strict=True):
            near[max(y - ahead, 0) : y + back + 1, max(x - ahead, 0) : x + back + 1] = True
        return near & component
    smoothed = ndimage.maximum_filter(distance, size=smoothing, mode="constant")
    size = before + after + 1
    highest = ndimage.maximum_filter(distance, size=size, mode="constant", origin=before - size // 2)
    return component & (smoothed == highest)

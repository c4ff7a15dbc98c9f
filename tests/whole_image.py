"""The oracle of `cellray.postprocess`: each step by its definition, on the whole image, in the libraries' own calls.

It shares nothing with the checked code but the sizes in pixels. Tests compare bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from cellray.postprocess import OperatingPoint

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


def whole_image_postprocess(probs: NDArray[np.floating], point: OperatingPoint, *, diameter_px: float) -> Labels:
    """As `cellray.postprocess.postprocess`."""
    sizes = point.in_pixels(diameter_px)
    mask = probs >= point.threshold
    if sizes.opening_radius > 0:
        opened = within(~within(~mask, sizes.opening_radius), sizes.opening_radius)
        mask = ~within(~within(opened, sizes.opening_radius), sizes.opening_radius)
    solid = ndimage.binary_fill_holes(mask)
    mask = solid & ~remove_small_objects(solid & ~mask, max_size=sizes.hole_area - 1, connectivity=1)
    kept = remove_small_objects(mask, max_size=sizes.min_area - 1, connectivity=2)
    components = label(kept, connectivity=2)
    if not point.watershed or kept.all():
        return components.astype(np.int32)
    cells = np.zeros(mask.shape, dtype=np.int32)
    distance = ndimage.distance_transform_edt(kept)
    for component in regionprops(components):
        alone = np.where(component.image, distance[component.slice], 0)
        # A window holds its own pixel, so what lies beyond the component's box is never the highest in one.
        smoothed = ndimage.maximum_filter(alone, size=sizes.smoothing, mode="constant")
        highest = ndimage.maximum_filter(smoothed, size=sizes.peak_window, mode="constant")
        peaks = label(component.image & (smoothed == highest), connectivity=2)
        pieces = watershed(-alone, peaks, connectivity=2, mask=component.image)
        cells[component.slice][component.image] = cells.max() + pieces[component.image]
    return cells


def within(mask: Mask, radius: int) -> Mask:
    """The pixels at most `radius` away from the mask: its dilation by a disk."""
    return ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask

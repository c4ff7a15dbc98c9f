"""From cell probabilities to labelled cells: threshold, clean, split what touches.

The chain is the published one (threshold, opening and closing, holes, small objects, watershed), but its
lengths are in mean cell diameters, so that one operating point means the same at every magnification.
Its stages are `find_components`, `Components.at_least` and `split`; whoever tries many operating points on one
image calls them apart, so that what two points have in common is done once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellray.arrays import Labels
from cellray.postprocess.components import Components, find_components
from cellray.postprocess.morphology import close_mask, fill_holes, open_mask
from cellray.postprocess.points import PUBLISHED_POINT, OperatingPoint, PixelSizes
from cellray.postprocess.splitting import Pieces, split

__all__ = [
    "PUBLISHED_POINT",
    "Components",
    "OperatingPoint",
    "Pieces",
    "PixelSizes",
    "close_mask",
    "fill_holes",
    "find_components",
    "open_mask",
    "postprocess",
    "split",
]


def postprocess(probs: NDArray[np.floating], point: OperatingPoint, *, diameter_px: float) -> Labels:
    """Label the cells of one probability map.

    Pixels belong together if they touch at a side or a corner. What lies outside the image is neither cell
    nor background: a cell cut off by the border is not eaten from there, and its centre may lie on the border.
    The watershed looks at each connected component alone, so every component keeps at least one object.
    Components are numbered in the order of their first pixels, row by row, and the pieces of one component
    follow each other.

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
    sizes = point.in_pixels(diameter_px)
    components = find_components(probs, point.threshold, sizes).at_least(sizes.min_area)
    if point.watershed:
        (pieces,) = split(components, [(sizes.smoothing, sizes.peak_window)])
        return components.sheet.to_image(pieces.labels)
    return components.sheet.to_image(components.labels)

"""The kinds of arrays that images and scores come in, and what an image is in gray."""

from __future__ import annotations

from functools import reduce
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Labels = NDArray[np.integer]
"""Shape (H, W): 0 is background, every other number one cell."""
Probs = NDArray[np.floating]
"""In [0, 1]."""
Numbers = NDArray[np.number]
"""Of any kind and size."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def brightest(pixels: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """The brightest channel of each pixel, shape (H, W), of an image (H, W) or (H, W, C)."""
    # NumPy's own maximum over so short an axis takes 15 times as long.
    return pixels if pixels.ndim == 2 else reduce(np.maximum, np.moveaxis(pixels, 2, 0))

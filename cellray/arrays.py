"""The kinds of arrays that images and scores come in."""

from __future__ import annotations

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

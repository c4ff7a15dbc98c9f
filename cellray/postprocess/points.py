"""Operating points: the threshold and the sizes of the chain, in mean cell diameters and areas."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cellray.errors import CellrayError


class PixelSizes(NamedTuple):
    """The lengths and areas of an operating point in the pixels of one dataset."""

    opening_radius: int
    hole_area: int
    min_area: int
    smoothing: int
    peak_window: int


class OperatingPoint(BaseModel):
    """How probabilities become cells. The defaults are the published sizes at a usual threshold."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

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


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)

"""Decoded images to what a model is fed: resampled, 8 bits, one or three channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cellray.arrays import Mask, Numbers, brightest
from cellray.data.decode import consecutive
from cellray.data.image_file import PIXEL_LIMIT
from cellray.errors import DataError

LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8


def convert_image(pixels: Numbers, *, channels: int, normalise: str, max_value: float | None) -> NDArray[np.uint8]:
    """An image as uint8, shape (H, W, channels).

    Args:
        pixels: uint8, uint16 or (resampled) float32 in the same units, shape (H, W) or (H, W, 3).
        channels: 1 takes the brightest channel of each pixel, 3 repeats a gray one.
        normalise: `none` maps 0..`max_value` to 0..255; `percentile` the image's own 1st..99.8th percentile.
        max_value: Full-scale intensity of the file.
    """
    if channels == 1:
        pixels = brightest(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    low, high = 0.0, float(max_value or 255)
    if normalise == "percentile":
        low, high = (float(v) for v in np.percentile(pixels, [LOW_PERCENTILE, HIGH_PERCENTILE]))
        high = max(high, low + 1)  # a constant image stays dark instead of dividing by zero
    if low == 0 and high == 255 and pixels.dtype == np.uint8:
        scaled = pixels.astype(np.uint8, copy=False)
    else:
        scaled = np.clip((pixels.astype(np.float32) - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(scaled, channels, axis=2) if scaled.shape[2] != channels else scaled


def resample_image(pixels: Numbers, factor: float) -> NDArray[np.float32]:
    """The image at `factor` times its size; shrinking averages over the area that a new pixel covers."""
    height, width = resampled_shape(pixels.shape, factor)
    channels = [pixels] if pixels.ndim == 2 else [pixels[..., c] for c in range(pixels.shape[2])]
    resized = [
        np.asarray(Image.fromarray(c.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
        for c in channels
    ]
    return resized[0] if pixels.ndim == 2 else np.stack(resized, axis=2)


def resample_labels(labels: NDArray[np.int32], factor: float) -> tuple[NDArray[np.int32], int]:
    """Labels at `factor` times their size by nearest neighbour, numbered anew, and how many vanished."""
    resized = consecutive(labels[_nearest(labels.shape, factor)])
    return resized, int(labels.max(initial=0) - resized.max(initial=0))


def resample_void(void: Mask, factor: float) -> Mask:
    """Pixels to leave out at `factor` times their size by nearest neighbour."""
    return void[_nearest(void.shape, factor)]


def _nearest(shape: tuple[int, ...], factor: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column that each pixel of the resampled image is taken from."""
    height, width = resampled_shape(shape, factor)
    rows = ((np.arange(height) + 0.5) * shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * shape[1] / width).astype(np.intp)
    return rows[:, None], columns


def resampled_shape(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    """Height and width after resampling.

    Raises:
        DataError: If the image would become larger than `PIXEL_LIMIT`.
    """
    height, width = max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))
    if height * width > PIXEL_LIMIT:
        raise DataError(f"resampling by {factor:.3g} makes {width}x{height} pixels, expected at most {PIXEL_LIMIT}")
    return height, width

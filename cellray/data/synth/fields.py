"""Random fields, small bright dots, and the camera: the parts of a drawn image that know nothing of cells.

Everything here is elementwise NumPy or SciPy's C loops, never a matrix product: a threaded BLAS rounds
differently with another number of threads, and the same seed has to give the same file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Reals = NDArray[np.floating]

SPLINE_SD = 0.48  # s.d. of white noise of s.d. 1 after cubic B-spline interpolation
FIXED_HOT_PIXELS = 11  # in the native frame


def upsample(grid: Reals, shape: tuple[int, int], ratio: float) -> Reals:
    """Cubic B-spline through a coarse grid, `ratio` output pixels to one step of the grid."""
    for axis, size in enumerate(shape):
        at = np.arange(size) / ratio
        i = at.astype(int)
        t = (at - i).astype(np.float32)
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        side = (slice(None), None) if axis == 0 else (None, slice(None))
        last = grid.shape[axis] - 1
        parts = [np.take(grid, np.minimum(i + k, last), axis) * (w[side] / 6) for k, w in enumerate(weights)]
        parts[0] += parts[1]
        parts[0] += parts[2]
        parts[0] += parts[3]
        grid = parts[0]
    return grid


def octave_texture(rng: np.random.Generator, shape: tuple[int, int], octaves: list[tuple[float, float]]) -> Reals:
    """Sum of smooth noises, each (grid step in pixels, s.d.), coarse ones first."""
    field: Reals | None = None
    before = 0.0
    for step, sd in octaves:
        n_y, n_x = (int(np.ceil(size / step)) + 4 for size in shape)
        noise = rng.standard_normal((n_y, n_x), dtype=np.float32) * np.float32(sd / SPLINE_SD)
        field = noise if field is None else upsample(field, (n_y, n_x), before / step) + noise
        before = step
    assert field is not None
    return upsample(field, shape, before)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Reals:
    """Gaussian noise of s.d. 1 blurred with this sigma (pixels)."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=3)
    # the s.d. that a blur leaves over, from the discrete kernel's own sum of squares
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return noise * np.float32(kernel.sum() ** 2 / (kernel**2).sum())


class Dots:
    """Gaussian dots collected by width and added to an image in one blur per width."""

    def __init__(self, shape: tuple[int, int], sigmas: tuple[float, ...]) -> None:
        self.shape = shape
        self.sigmas = np.array(sigmas)
        self.found: list[NDArray[np.float64]] = []

    def add(
        self,
        y: Reals | float,
        x: Reals | float,
        peak: Reals | float,
        sigma: Reals | float,
        *,
        step: float = 0,
    ) -> None:
        """Add dots of this peak height; with `step`, dots so far apart along a line of that height."""
        y, x, peak, sigma = np.broadcast_arrays(*np.atleast_1d(y, x, peak, sigma))
        layer = np.abs(np.log(self.sigmas[:, None] / np.maximum(sigma, 1e-3))).argmin(0)
        width = self.sigmas[layer]
        weight = peak * width * (np.sqrt(2 * np.pi) * step if step else 2 * np.pi * width)
        self.found.append(np.stack([layer, y, x, weight]))

    def render(self) -> Reals:
        """All dots as one image."""
        image = np.zeros(self.shape, np.float32)
        if not self.found:
            return image
        layer, y, x, weight = np.concatenate(self.found, axis=1)
        height, width = self.shape
        for k, sigma in enumerate(self.sigmas):
            keep = (layer == k) & (y >= 0) & (y < height - 1) & (x >= 0) & (x < width - 1)
            if not keep.any():
                continue
            iy, ix, w = y[keep].astype(int), x[keep].astype(int), weight[keep]
            ty, tx = y[keep] - iy, x[keep] - ix
            at = np.concatenate([(iy + dy) * width + ix + dx for dy in (0, 1) for dx in (0, 1)])
            share = np.concatenate([wy * wx * w for wy in (1 - ty, ty) for wx in (1 - tx, tx)])
            plane = np.bincount(at, share, minlength=height * width).reshape(height, width)
            image += ndimage.gaussian_filter(plane.astype(np.float32), sigma, truncate=3.5)
        return image


def expose(rng: np.random.Generator, light: Reals, hue: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Photograph a field of red light: colour of this image, correlated noise that grows with light, 8 bits.

    `hue` is (share of green, its growth with brightness, green lost in the dark).
    """
    share, growth, lost = hue
    image = np.empty((*light.shape, 3), np.uint8)
    shared = smooth_noise(rng, light.shape, 0.9) * np.float32(0.84)
    planes = (light, light * (share + growth * np.minimum(light, 255)) - lost, 0.075 * light - 0.7)
    for channel, plane in enumerate(planes):
        own = smooth_noise(rng, light.shape, 0.9) if channel < 2 else np.float32(0)
        grain = shared * np.float32(0.5 if channel == 2 else 1) + np.float32(0.54) * own
        noisy = plane + grain * (np.float32(0.29) * np.sqrt(np.maximum(light, 0) + np.float32(0.3)))
        np.clip(noisy + np.float32(0.5), 0, 255, out=noisy)
        image[..., channel] = noisy
    _add_hot_pixels(rng, image)
    return image


def _add_hot_pixels(rng: np.random.Generator, image: NDArray[np.uint8]) -> None:
    """A few pixels glow in one colour at the same places of every frame."""
    height, width, _ = image.shape
    sensor = np.random.default_rng(2021)
    for _ in range(max(round(FIXED_HOT_PIXELS * height * width / (1600 * 1200)), 1)):
        y, x = int(sensor.random() * height), int(sensor.random() * width)
        image[y, x, sensor.choice(3, p=[0.2, 0.2, 0.6])] = sensor.integers(60, 200) + rng.integers(0, 30)


def add_patch(light: Reals, patch: Reals, top: int, left: int) -> None:
    """Add a patch to the image where it lies inside."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + patch.shape[0], light.shape[0]), min(left + patch.shape[1], light.shape[1])
    if y1 > y0 and x1 > x0:
        light[y0:y1, x0:x1] += patch[y0 - top : y1 - top, x0 - left : x1 - left]

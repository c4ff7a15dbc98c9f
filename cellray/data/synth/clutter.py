"""What an annotator leaves unmarked: look-alikes, fibres, dust and specks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cellray.data.synth.fields import Dots, Reals, add_patch, smooth_noise
from cellray.data.synth.layout import NATIVE_AREA, Layout, draw_place, in_void

BLOBS_PER_IMAGE = 42  # of which about 34 stand out from the background


def add_blobs(rng: np.random.Generator, light: Reals, dots: Dots, layout: Layout, scale: float) -> None:
    """Unmarked look-alikes: dim or out-of-focus cells, and scraps of granules."""
    share = layout.labels.size / scale**2 / NATIVE_AREA
    for _ in range(rng.poisson(BLOBS_PER_IMAGE * share * rng.gamma(4, 0.25))):
        y, x = draw_place(rng, layout.hotspots, layout.labels.shape, clustered=0.35)
        if layout.labels[int(y), int(x)] or in_void(layout.void, y, x):
            continue
        peak = np.clip(rng.lognormal(np.log(43), 0.6), 8, 170)
        area = np.clip(rng.lognormal(np.log(430), 0.85), 60, 5000)
        sigma = np.sqrt(area / 8.2) * scale  # of a Gaussian cut at about a quarter of its peak
        if rng.random() < 0.25:
            n = rng.integers(5, 22)
            ys, xs = rng.normal(0, 0.8 * sigma, (2, n)) + np.array([[y], [x]])
            dots.add(ys, xs, peak * rng.uniform(0.3, 1.0, n), rng.uniform(1.0, 1.8, n) * scale)
            peak *= 0.4
        _soft_ellipse(rng, light, (y, x), sigma, peak)


def _soft_ellipse(
    rng: np.random.Generator, light: Reals, centre: tuple[float, float], sigma: float, peak: float
) -> None:
    stretch, angle = np.exp(rng.normal(0.15, 0.2)), rng.uniform(0, np.pi)
    half = int(3.4 * sigma * max(stretch, 1 / stretch)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    u = (x * np.cos(angle) + y * np.sin(angle)) / (sigma * stretch)
    v = (y * np.cos(angle) - x * np.sin(angle)) / (sigma / stretch)
    spread = (u**2 + v**2) * np.exp(0.22 * smooth_noise(rng, u.shape, max(0.5 * sigma, 0.5)))
    blob = peak * np.exp(-0.5 * spread ** rng.uniform(0.9, 1.5))
    blob *= 1 + 0.07 * smooth_noise(rng, u.shape, max(0.18 * sigma, 0.5))
    add_patch(light, blob, round(centre[0]) - half, round(centre[1]) - half)


def add_filaments(rng: np.random.Generator, dots: Dots, layout: Layout, scale: float) -> None:
    """Beaded fibres, 50-300 px long."""
    share = layout.labels.size / scale**2 / NATIVE_AREA
    for _ in range(rng.poisson(9 * share * rng.gamma(1.5, 0.67))):
        y, x = draw_place(rng, layout.hotspots, layout.labels.shape, clustered=0.4)
        if in_void(layout.void, y, x):
            continue
        step = 0.8 * scale
        n = int(rng.uniform(50, 300) / 0.8)
        turns = ndimage.gaussian_filter1d(rng.normal(0, 0.04, n), 12)
        jitter = ndimage.gaussian_filter1d(rng.normal(0, 0.88, n), 5)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns) + jitter
        ys, xs = y + np.cumsum(np.sin(heading)) * step, x + np.cumsum(np.cos(heading)) * step
        beads = ndimage.gaussian_filter1d(rng.normal(0, 1.7, n), 3)
        beads = np.exp(beads + ndimage.gaussian_filter1d(rng.normal(0, 3.0, n), 12))
        ends = np.sin(np.linspace(0.15, np.pi - 0.05, n)) ** 0.5
        peak = rng.uniform(4, 16) * np.minimum(beads, 5) * ends
        dots.add(ys, xs, peak, rng.uniform(0.9, 1.9) * scale, step=step)
        dots.add(ys, xs, peak.mean() * 0.15 * ends, 3.5 * scale, step=step)
        for _ in range(rng.poisson(n / 45)):
            k = rng.integers(n)
            dots.add(ys[k], xs[k], rng.uniform(10, 60), rng.uniform(0.9, 1.6) * scale)


def add_neuropil(rng: np.random.Generator, dots: Dots, layout: Layout, scale: float) -> None:
    """Faint scraps of fibre and dust that fill the tissue, most of it near cells."""
    share = layout.labels.size / scale**2 / NATIVE_AREA
    richness = rng.gamma(3, 1 / 3)
    for _ in range(rng.poisson(130 * share * richness)):
        y, x = draw_place(rng, layout.hotspots, layout.labels.shape, clustered=0.35)
        n = int(rng.uniform(15, 90))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.09, n))
        ys, xs = y + np.cumsum(np.sin(heading)) * scale, x + np.cumsum(np.cos(heading)) * scale
        patchy = np.exp(ndimage.gaussian_filter1d(rng.normal(0, 1.5, n), 2))
        patchy *= np.sin(np.linspace(0.1, 3.1, n))
        peak = np.clip(rng.lognormal(1.6, 0.6), 1, 20) * patchy
        dots.add(ys, xs, peak * (not in_void(layout.void, y, x)), rng.uniform(0.9, 2.4) * scale, step=scale)
    n = rng.poisson(700 * share * richness)
    for _ in range(n):
        y, x = draw_place(rng, layout.hotspots, layout.labels.shape, clustered=0.4)
        peak = float(np.clip(rng.lognormal(1.9, 0.75), 1, 70))
        if not in_void(layout.void, y, x):
            dots.add(y, x, peak, rng.uniform(0.8, 1.6) * scale)


def add_specks(rng: np.random.Generator, dots: Dots, shape: tuple[int, int]) -> None:
    """Points of one or two bright pixels; like the noise they don't shrink with the scale."""
    n = rng.poisson(12 * max(shape[0] * shape[1] / NATIVE_AREA, 0.1))
    dots.add(rng.random(n) * shape[0], rng.random(n) * shape[1], rng.lognormal(3.8, 0.6, n), dots.sigmas[0])

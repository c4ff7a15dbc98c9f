"""From a layout to light: the tissue, and all that lies in it, in grey levels of the red channel."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, special

from cellray.data.synth.cell_light import add_cell
from cellray.data.synth.clutter import add_blobs, add_filaments, add_neuropil, add_specks
from cellray.data.synth.fields import Dots, Reals, octave_texture, smooth_noise, upsample
from cellray.data.synth.layout import Layout

DOT_SIGMAS = (0.75, 1.15, 1.7, 2.8, 4.5)  # native pixels
COARSE = 8  # masks of void and vessels are drawn on a grid this many native pixels wide


def paint(rng: np.random.Generator, layout: Layout, scale: float) -> tuple[Reals, tuple[float, float, float]]:
    """The light of one image (before the camera) and its hue."""
    shape = layout.labels.shape
    brown = rng.random() < 0.31
    if brown:
        level = float(np.clip(rng.lognormal(np.log(17), 0.5), 9, 60))
        hue = (rng.uniform(0.28, 0.42) + 0.002 * level, rng.uniform(0.0017, 0.0023), 2.1)
    else:
        level = float(np.clip(rng.lognormal(1.6, 0.4), 1, 8))
        hue = (rng.normal(0.55, 0.03), rng.uniform(0.0012, 0.0017), 1.5)
    light = _tissue(rng, layout, level, scale)
    dots = Dots(shape, tuple(max(s * scale, 0.45) for s in DOT_SIGMAS))
    add_blobs(rng, light, dots, layout, scale)
    add_filaments(rng, dots, layout, scale)
    add_neuropil(rng, dots, layout, scale)
    add_specks(rng, dots, shape)
    for cell in layout.cells:
        add_cell(rng, light, dots, cell, scale)
    light += dots.render()
    _saturate(light)
    if rng.random() < 0.04:
        _stripe(rng, light, scale)
    return light, hue


def _tissue(rng: np.random.Generator, layout: Layout, level: float, scale: float) -> Reals:
    """Background: a level, shading that fades to one side, texture in all octaves, vessels and void."""
    shape = layout.labels.shape
    strength = (level / 7) ** 0.5
    sds = ((256, 2.0), (128, 1.3), (64, 0.8), (32, 0.65), (16, 0.55), (8, 0.5), (4, 0.65))
    octaves = [(step * scale, sd * strength) for step, sd in sds if step * scale >= 2]
    light = octave_texture(rng, shape, octaves)
    grid = tuple(int(np.ceil(size / (COARSE * scale))) + 4 for size in shape)
    y = np.linspace(-1, 1, grid[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, grid[1], dtype=np.float32)[None, :]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.75)
    shading = 1.08 + slope * (np.sin(angle) * y + np.cos(angle) * x) - rng.uniform(0, 0.25) * (x**2 + y**2)
    shading = np.maximum(shading, 0.03) * _shadows(rng, layout, grid, scale)
    shading = upsample(shading.astype(np.float32), shape, COARSE * scale)
    light += np.float32(level)
    light += upsample(_haze(layout, grid, scale), shape, COARSE * scale)
    light *= shading
    return light


def _haze(layout: Layout, grid: tuple[int, ...], scale: float) -> Reals:
    """Light scattered around cells: tissue between them is brighter than tissue without any."""
    haze = np.zeros((grid[0], grid[1]), np.float32)
    for cell in layout.cells:
        y, x = (int(c / (COARSE * scale)) + 1 for c in cell.centre)
        haze[y, x] += 3.2 * (cell.radius / (19 * scale)) ** 1.5
    sigma = 36 / COARSE
    haze = ndimage.gaussian_filter(haze, sigma) * np.float32(2 * np.pi * sigma**2)
    # small fields are drawn denser than real ones, which mustn't brighten their tissue
    return haze * np.float32(min(1.0, 2.0 / max(float(haze.mean()), 1e-6)))


def _shadows(rng: np.random.Generator, layout: Layout, grid: tuple[int, ...], scale: float) -> Reals:
    """Factor in [0, 1] on the coarse grid: 0 in the void, less than 1 over vessels."""
    y, x = np.mgrid[: grid[0], : grid[1]].astype(np.float32) * COARSE * scale
    bent = smooth_noise(rng, (grid[0], grid[1]), 9) * 14 * scale
    factor = np.ones((grid[0], grid[1]), np.float32)
    for _ in range(rng.poisson(0.9)):
        angle, width = rng.uniform(0, np.pi), rng.uniform(8, 28) * scale
        cy, cx = rng.random(2) * layout.labels.shape
        across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle) + bent
        along = (y - cy) * np.sin(angle) + (x - cx) * np.cos(angle)
        fade = np.exp(-0.5 * (along / (rng.uniform(60, 300) * scale)) ** 2)
        factor *= 1 - rng.uniform(0.3, 0.75) * np.exp(-0.5 * (across / width) ** 2) * fade
    if layout.void is not None:
        dy, dx, offset = layout.void
        edge = bent + 80 * scale * smooth_noise(rng, bent.shape, 20) + 40 * scale
        factor *= special.expit((offset - dy * y - dx * x + edge) / (rng.uniform(8, 40) * scale))
    return factor


def _stripe(rng: np.random.Generator, light: Reals, scale: float) -> None:
    """A granular band of scattered light across one corner, black beyond its outer edge."""
    height, width = light.shape
    corner = rng.integers(0, 2, 2)
    y = np.abs(np.arange(height, dtype=np.float32) - corner[0] * height)[:, None]
    x = np.abs(np.arange(width, dtype=np.float32) - corner[1] * width)[None, :]
    angle = rng.uniform(0.25, 1.3)
    wavy = octave_texture(rng, light.shape, [(128 * scale, 9 * scale), (24 * scale, 4 * scale)])
    inner = np.sin(angle) * y + np.cos(angle) * x + wavy
    size = np.sqrt(2 * rng.uniform(0.015, 0.045) * light.size * np.sin(angle) * np.cos(angle))
    outer = size - rng.uniform(70, 140) * scale
    glow = special.expit((size - inner) / (7 * scale)).astype(np.float32) * rng.uniform(165, 215)
    glow *= 1 + octave_texture(rng, light.shape, [(64 * scale, 0.08), (8 * scale, 0.07), (max(4 * scale, 1), 0.06)])
    light += glow
    light *= special.expit((inner - outer) / (1.2 * scale))


def _saturate(light: Reals) -> None:
    """Bend the brightest light towards the top of the scale, since exposures left hardly any pixel full."""
    knee, room = 172.0, 76.0
    at = np.nonzero(light > knee)
    light[at] = knee + room * (1 - np.exp((knee - light[at]) / room))

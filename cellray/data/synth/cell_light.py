"""The light of one labelled cell."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, special

from cellray.data.synth.fields import Dots, Reals, add_patch, smooth_noise
from cellray.data.synth.layout import Cell


def add_cell(
    rng: np.random.Generator,
    light: Reals,
    dots: Dots,
    cell: Cell,
    scale: float,
) -> None:
    """Add one labelled cell: a soft body whose mean is set, granules on it, a nucleus, tapering processes."""
    shape = cell.mask.shape
    outside = ndimage.distance_transform_edt(~cell.mask)
    distance = ((outside - ndimage.distance_transform_edt(cell.mask)) / scale).astype(np.float32)
    dotted = cell.dotted
    target = float(np.clip(rng.lognormal(np.log(87), 0.27), 45, 150)) * (1 if rng.random() < 0.9 else 0.75)
    y, x = (int(np.clip(c, 0, n - 1)) for c, n in zip(cell.centre, light.shape, strict=True))
    target = max(target - 0.5 * float(light[y, x]), 25.0)
    softness = rng.uniform(6.0, 9.0) if dotted else rng.uniform(6.0, 10.0)
    depth = cell.radius / scale
    softness *= np.clip(depth / 17, 0.5, 1.8)
    grain, mottle = (rng.uniform(0.06, 0.22), 0.25) if dotted else (rng.uniform(0.02, 0.08), 0.12)
    # the drawn contour isn't an exact isoline of the light, as no annotator's is
    edge = distance + smooth_noise(rng, shape, 6 * scale) + np.float32(rng.normal(0.82, 0.15) * softness)
    body = special.ndtr(-edge / softness).astype(np.float32)
    body += np.float32(0.07) * np.exp(-np.maximum(edge, 0) / 9)
    body **= np.float32(rng.uniform(1.1, 1.7))
    body *= np.exp(mottle * smooth_noise(rng, shape, 5 * scale))
    body *= np.exp(grain * smooth_noise(rng, shape, 1.4 * scale))
    half = shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    tilt = rng.uniform(0, 2 * np.pi)
    body *= np.exp(rng.uniform(0, 0.45) * (np.sin(tilt) * y + np.cos(tilt) * x) / cell.radius)
    if rng.random() < 0.22 and depth > 11:
        ny, nx = rng.normal(0, 0.18, 2) * cell.radius
        spread = ((y - ny) ** 2 + (x - nx) ** 2) / (rng.uniform(0.26, 0.42) * cell.radius) ** 2
        body *= 1 - rng.uniform(0.35, 0.75) * np.exp(-(spread**1.5))
    granules = 0.0
    if dotted:
        granules = _granules(rng, dots, cell, distance, scale, rng.uniform(0.15, 0.5) * target)
    body *= (target - granules) / body[cell.mask].mean()
    add_patch(light, body, cell.top, cell.left)
    for points in cell.processes:
        beads = np.exp(1.6 * ndimage.gaussian_filter1d(rng.normal(0, 1, len(points)), 1.2))
        fade = np.linspace(1, 0.1, len(points)) ** 1.5 * beads
        step = float(np.hypot(*np.diff(points[:2, :2], axis=0)[0]))
        peak = rng.uniform(0.15, 0.45) * target * fade
        dots.add(points[:, 0], points[:, 1], peak, points[:, 2] / 2.6, step=step)


def _granules(rng: np.random.Generator, dots: Dots, cell: Cell, distance: Reals, scale: float, budget: float) -> float:
    """Strew granules over a cell; returns the mean light they add to it."""
    depth = np.maximum(-distance, 0)
    gather = np.exp(0.9 * smooth_noise(rng, depth.shape, 3.5 * scale))
    odds = np.cumsum((np.minimum(depth + 0.6 * (depth > 0), 9) * gather).ravel())
    area = (depth > 0).sum() / scale**2
    n = int(np.clip(rng.uniform(20, 75) * (area / 1000) ** 0.7, 6, 160))
    at = np.searchsorted(odds, rng.random(n) * odds[-1])
    y, x = np.unravel_index(at, distance.shape)
    sigma = rng.uniform(0.8, 1.6, n)
    peak = np.clip(rng.lognormal(np.log(55), 0.65, n), 12, 170)
    mean = float((peak * 2 * np.pi * sigma**2).sum() / max(area, 1))
    peak *= min(budget / mean, 1.0)
    dots.add(y + cell.top + rng.random(n), x + cell.left + rng.random(n), peak, sigma * scale)
    return min(mean, budget)

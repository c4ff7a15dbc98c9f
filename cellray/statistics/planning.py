"""How many seeds and images a difference takes."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaincinv

from cellray.arrays import Floats
from cellray.statistics.crossed import ALPHA, CrossedMean, weighted_t

POWER = 0.8
MOST_SEEDS, MOST_IMAGES = 1000, 100_000
"""More than this would be no plan."""


def more_needed(differences: CrossedMean, level: float) -> list[tuple[float, float]]:
    """Further seeds, or else further images, with which each difference as it is would have p < `level`.

    The variances are taken as estimated and the difference as seen: a guide for planning, not a promise.

    Args:
        differences: One a pair, shape (n_pairs,).
        level: Two-sided.

    Returns:
        Seeds and images of each pair, images to within 3 %; infinite if no number up to 1,000 (100,000) would do.
    """
    seeds = np.arange(differences.n_seeds + 1, MOST_SEEDS + 1, dtype=float)
    images = np.unique(np.geomspace(differences.n_images + 1, MOST_IMAGES, 400).round())
    now_seeds, now_images = np.array([float(differences.n_seeds)]), np.array([float(differences.n_images)])
    by_seeds = np.abs(differences.mean)[:, None] > _half(differences, seeds, now_images, level)
    by_images = np.abs(differences.mean)[:, None] > _half(differences, now_seeds, images, level)
    return [
        (
            float(seeds[s.argmax()] - now_seeds[0]) if s.any() else math.inf,
            float(images[i.argmax()] - now_images[0]) if i.any() else math.inf,
        )
        for s, i in zip(by_seeds, by_images, strict=True)
    ]


def detectable(differences: CrossedMean) -> float:
    """Smallest true difference of one pair that as many seeds and images show at p < 0.05 with 80 % power.

    The sum of the critical values of 0.05 (two-sided) and 0.2 (one-sided) times the standard error (Lehr 1992), for
    the pair in the middle; NaN without an error.
    """
    sizes = (differences.critical(ALPHA) + differences.critical(2 * (1 - POWER))) * differences.se
    return float(np.median(sizes)) if sizes.size else math.nan


def rate_interval(n_events: int, n: int) -> tuple[float, float]:
    """95 % interval of the probability of an event that n trials showed n_events times (Clopper and Pearson 1934).

    One-sided where none or all of them showed it: after n trials without, 1 - 0.05^(1/n), about 3 / n (Hanley and
    Lippman-Hand 1983).
    """
    tail = ALPHA if n_events in (0, n) else ALPHA / 2
    low = float(betaincinv(n_events, n - n_events + 1, tail)) if n_events else 0.0
    high = float(betaincinv(n_events + 1, n - n_events, 1 - tail)) if n_events < n else 1.0
    return low, high


def _half(d: CrossedMean, n_seeds: Floats, n_images: Floats, level: float) -> Floats:
    """Half-width of each interval with other numbers of seeds and images; shape (n_pairs, n_sizes)."""
    rest = d.rest[:, None]
    seed = np.maximum(d.by_seed[:, None] * d.n_seeds - rest / d.n_images, 0)
    by_seed = (seed + rest / n_images) / n_seeds
    by_image = d.by_image[:, None] * d.n_images / n_images + 0 * n_seeds
    return weighted_t(level, by_seed, by_image, n_seeds, n_images) * np.sqrt(by_seed + by_image)

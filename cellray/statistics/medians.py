"""Intervals of a median over images, for which the bootstrap and the jackknife fail."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy
from scipy.special import ndtr, ndtri, stdtrit

from cellray.arrays import Floats
from cellray.statistics.crossed import LEVEL

MeanMedian = tuple[float, float, float]
"""Mean over seeds of the medians over images, and the ends of its interval."""


@lru_cache
def order_ranks(n: int, level: float = LEVEL) -> tuple[int, int]:
    """Places (from 1, inclusive) of the sorted values between which the median lies with at least that confidence.

    The places are l and n + 1 - l with the largest l whose binomial tail P(X < l), X ~ B(n, 1/2), is at most
    (1 - level) / 2; with too few values for any, the least and the greatest one (Hahn and Meeker 1991).
    """
    low = max(int(scipy.stats.binom.ppf((1 - level) / 2, n, 0.5)), 1)
    return low, n + 1 - low


def mean_median(values: Floats) -> MeanMedian:
    """Mean over seeds of the median over images, with a 95 % interval.

    The ends of the order-statistic interval, averaged over seeds, bound the chance of images; Student's interval of
    the medians bounds that of seeds. Their squared half-widths add up (MOVER, Zou and Donner 2008), apart below and
    above. With one seed the interval is that of the images alone.

    Args:
        values: Shape (n_seeds, n_images).

    Returns:
        Mean, low and high.
    """
    n_seeds, n_images = values.shape
    ordered = np.sort(values, axis=1)
    medians = np.median(ordered, axis=1)
    mean = float(medians.mean())
    first, last = order_ranks(n_images)
    low, high = float(ordered[:, first - 1].mean()), float(ordered[:, last - 1].mean())
    by_seed = 0.0
    if n_seeds > 1:
        by_seed = float(stdtrit(n_seeds - 1, (1 + LEVEL) / 2) * medians.std(ddof=1) / math.sqrt(n_seeds))
    return mean, mean - math.hypot(mean - low, by_seed), mean + math.hypot(high - mean, by_seed)


def median_difference(a: MeanMedian, b: MeanMedian) -> tuple[float, float, float, float]:
    """Difference a - b of two `mean_median`, with a 95 % interval and a p-value.

    By MOVER, as if the two were independent; images and seeds that they share make it wider than need be. The p-value
    is the normal one of the half-width on the side of zero.

    Returns:
        Difference, low, high, p.
    """
    difference = a[0] - b[0]
    low = difference - math.hypot(a[0] - a[1], b[2] - b[0])
    high = difference + math.hypot(a[2] - a[0], b[0] - b[1])
    half = difference - low if difference > 0 else high - difference
    z = abs(difference) / (half / ndtri((1 + LEVEL) / 2)) if half > 0 else math.inf * abs(difference)
    return difference, low, high, float(2 * ndtr(-z)) if difference else 1.0

"""What one may expect of the best of several trainings, chosen by its score on validation images."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from cellray.arrays import Floats
from cellray.statistics.crossed import LEVEL

N_KEPT_OF = 3
"""Trainings of which one would keep the best: as many as a lab easily spends."""


def best_of_k(values: Floats, validation: Floats, k: int = N_KEPT_OF) -> tuple[float, float, float]:
    """Expected test score of the training that validation prefers among k, with a 95 % interval.

    The mean over all choices of k of the n trainings at hand, which is unbiased (the expected maximum of Dodge et al.
    2019, drawn without replacement as in Tang et al. 2020). The jackknife over trainings gives the scatter of seeds,
    the weighted images that of images; their squared half-widths add up (MOVER).

    Args:
        values: What each image adds to each training's test score, shape (n, n_images).
        validation: Higher is better, shape (n,); equal ones are kept in equal shares. -inf: never, unless there is no
            other; NaN: unknown, and then nothing is.
        k: Trainings, >= 1.

    Returns:
        Mean, low and high: NaN with fewer than k trainings; the ends are NaN with fewer than k + 1.

    References:
        Dodge et al. 2019, https://arxiv.org/abs/1909.03004; Tang et al. 2020, https://aclanthology.org/2020.acl-main.246
    """
    n = len(values)
    if n < k or np.isnan(validation).any():
        return math.nan, math.nan, math.nan
    weights = _weights(validation, k)
    mean = float(weights @ values.mean(1))
    if n == k:
        return mean, math.nan, math.nan
    without = [_weights(np.delete(validation, i), k) @ np.delete(values, i, axis=0).mean(1) for i in range(n)]
    by_seed = stdtrit(n - 1, (1 + LEVEL) / 2) * math.sqrt((n - 1) * np.var(without))
    n_images = values.shape[1]
    by_image = 0.0
    if n_images > 1:
        se = np.std(weights @ values, ddof=1) / math.sqrt(n_images)
        by_image = stdtrit(n_images - 1, (1 + LEVEL) / 2) * se
    half = math.hypot(by_seed, by_image)
    return mean, mean - half, mean + half


def _weights(validation: Floats, k: int) -> Floats:
    """Probability of each training to be the one kept of k that are drawn without replacement."""
    n = len(validation)
    share = np.array([math.comb(i, k - 1) for i in range(n)]) / math.comb(n, k)
    place = np.argsort(np.argsort(validation, kind="stable"), kind="stable")
    by_rank = share[place]
    return np.array([by_rank[validation == value].mean() for value in validation])

"""Ranks of configurations: under several schemes, with intervals, and how stable they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from cellray.arrays import Floats
from cellray.statistics.crossed import ALPHA

N_RESAMPLES = 2000


def rank_table(means: Floats, by_image: Floats, pairs: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Ranks by three schemes, and the interval of the first.

    - ``rank``: of the means (mean, then rank). Equal means share the better rank.
    - ``rank_low rank_high``: one more than the number of configurations decided to be better, and the number of all
      less those decided to be worse. As all pairs are decided together, all intervals hold together with 95 %
      confidence (Al Mohamad, Goeman and van Zwet 2022).
    - ``mean_rank``, ``rank_then_mean``: ranks within each image, their mean over images, and the rank of that (as in
      challengeR, Wiesenfarth et al. 2021).
    - ``by_tests``: rank of (decided wins - decided losses).

    Args:
        means: Higher is better, NaN without a result; shape (n_configurations,).
        by_image: The same, image by image, averaged over seeds; shape (n_configurations, n_images).
        pairs: Of `paired_tests`; empty: the intervals and ``by_tests`` are NaN.
        labels: Of the configurations.
    """
    table = pd.DataFrame({"label": list(labels), "rank": _rank(means)})
    known = ~np.isnan(means)
    better = pairs[pairs.decided.astype(bool)] if len(pairs) else pairs
    wins, losses = (better[side].value_counts().reindex(list(labels), fill_value=0).to_numpy() for side in ("a", "b"))
    every = len(pairs) == math.comb(int(known.sum()), 2) and len(pairs) > 0
    ok = known & every
    table["rank_low"] = np.where(ok, 1 + losses, np.nan)
    table["rank_high"] = np.where(ok, known.sum() - wins, np.nan)
    table["mean_rank"] = mean_ranks(by_image)
    table["rank_then_mean"] = _rank(-table.mean_rank.to_numpy())
    table["by_tests"] = np.where(ok, _rank(np.where(known, (wins - losses).astype(float), np.nan)), np.nan)
    return table


def mean_ranks(by_image: Floats) -> Floats:
    """Mean over images of the ranks within an image, 1 is best; ties share the mean of their ranks.

    Args:
        by_image: Higher is better, shape (n_configurations, n_images); NaN in a whole row: not ranked; without images
            nobody is.
    """
    known = ~np.isnan(by_image).any(1)
    ranks = np.full(len(by_image), np.nan)
    if known.any() and by_image.size:
        # rounded, so that the order of a sum's terms can't break a tie
        ranks[known] = scipy.stats.rankdata(-by_image[known].round(9), axis=0).mean(1)
    return ranks


@dataclass(frozen=True)
class Friedman:
    """Whether configurations differ at all, image by image, as these seeds went."""

    n_images: int
    statistic: float
    p: float
    critical_difference: float
    """Nemenyi's, of mean ranks, at 5 %."""


def friedman(by_image: Floats) -> Friedman | None:
    """Friedman's test over images, and Nemenyi's critical difference (Demšar 2006); None if there is too little.

    Args:
        by_image: As for `mean_ranks`.
    """
    known = by_image[~np.isnan(by_image).any(1)]
    k, n = known.shape
    if k < 3 or n < 2:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic, p = scipy.stats.friedmanchisquare(*known.round(9))
    return Friedman(n, float(statistic), float(p), nemenyi(k, n))


def nemenyi(k: int, n: int, level: float = ALPHA) -> float:
    """Critical difference of the mean ranks of k configurations over n images."""
    return float(
        scipy.stats.studentized_range.ppf(1 - level, k, np.inf) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    )


def resampled_means(
    values: Floats, *, n_resamples: int = N_RESAMPLES, seed: int = 0, is_median: bool = False
) -> Floats:
    """Means of resampled studies: seeds and images, both drawn with replacement, the same for all configurations.

    Too rough for intervals with few seeds (see `crossed`), but a fair picture of how ranks jump.

    Args:
        values: Shape (n_configurations, n_seeds, n_images); a missing trial is NaN throughout.
        n_resamples: Rows of the result.
        seed: Of the drawing.
        is_median: A trial's score is the median over images, not the mean.

    Returns:
        Shape (n_resamples, n_configurations); NaN where none of a configuration's seeds was drawn.
    """
    n_configurations, n_seeds, n_images = values.shape
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_resamples).astype(float)
    by_image = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=n_resamples).astype(float)
    flat = values.reshape(-1, n_images)
    there = ~np.isnan(flat).any(1)
    scores = np.full((n_resamples, len(flat)), np.nan)
    scores[:, there] = _medians(flat[there], by_image) if is_median else by_image @ flat[there].T / n_images
    by_trial = scores.reshape(n_resamples, n_configurations, n_seeds)
    weights = by_seed[:, None, :] * ~np.isnan(by_trial)
    total = weights.sum(-1)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, (weights * np.nan_to_num(by_trial)).sum(-1) / total, np.nan)


def rank_shares(means: Floats) -> Floats:
    """Share of resamples in which each configuration had each rank.

    Args:
        means: Of `resampled_means`, turned so that higher is better.

    Returns:
        Shape (n_configurations, n_configurations): row a configuration, column rank - 1. Ties share the better rank;
        a configuration without a result in a resample has no rank there.
    """
    n = means.shape[1]
    ranks = scipy.stats.rankdata(-means.round(9), method="min", axis=1, nan_policy="omit")
    return np.stack([(ranks == place).mean(0) for place in range(1, n + 1)], axis=1)


def _rank(scores: Floats) -> Floats:
    """Rank 1 for the highest; ties share the better rank; NaN stays NaN."""
    ranks = np.full(len(scores), np.nan)
    known = ~np.isnan(scores)
    if known.any():
        ranks[known] = scipy.stats.rankdata(-scores[known].round(9), method="min")
    return ranks


def _medians(values: Floats, counts: Floats) -> Floats:
    """Median of each row of values under each row of counts (n_images draws); shape (n_resamples, n_rows)."""
    n = counts.shape[1]
    out = np.empty((len(counts), len(values)))
    for i, row in enumerate(values):
        order = np.argsort(row, kind="stable")
        reached = np.cumsum(counts[:, order], axis=1)
        low = (reached >= (n + 1) // 2).argmax(1)
        high = (reached >= n // 2 + 1).argmax(1)
        out[:, i] = (row[order][low] + row[order][high]) / 2
    return out

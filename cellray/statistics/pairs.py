"""Every configuration against every other, paired by seed and by image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import scipy
from scipy.special import ndtr, ndtri

from cellray.arrays import Floats
from cellray.statistics.best import LEAST_SEEDS, Bootstrap, moments
from cellray.statistics.crossed import ALPHA, CrossedMean, crossed_mean
from cellray.statistics.medians import MeanMedian, median_difference
from cellray.statistics.planning import more_needed

PAIR_COLUMNS = (
    "a", "b", "n_seeds", "n_images", "difference", "low", "high", "p", "p_adjusted", "decided", "p_wilcoxon",
    "p_wilcoxon_holm", "superiority", "superiority_low", "superiority_high", "p_false", "more_seeds", "more_images",
)  # fmt: skip


NO_PAIRS = pd.DataFrame(columns=list(PAIR_COLUMNS), dtype=float).astype({"a": str, "b": str, "decided": bool})


def paired_tests(
    values: Floats, labels: Sequence[str], *, detail: bool = True, leader_only: bool = False, alpha: float = ALPHA
) -> pd.DataFrame:
    """Paired differences of all configurations, with the test that decides and the ones that don't.

    - ``difference low high``: mean(a) - mean(b) over the seeds that both have, with its 95 % interval over new seeds
      and new images (`crossed_mean`). ``a`` is the one with the higher mean.
    - ``p``, ``p_adjusted``: of Student's test alone, and of all pairs together (Romano and Wolf 2005, see
      `best.Bootstrap`; Holm 1979 for the leader's pairs only).
    - ``decided``: p_adjusted < alpha, with three common seeds or more. Whether one is the best, or may be, is another
      question: see `best.find_best`.
    - ``p_wilcoxon``, ``p_wilcoxon_holm``: signed-rank test over images of the means over seeds. It takes these seeds
      for all there are, so it speaks of these trained networks, not of the loss, and decides nothing here.
    - ``superiority``, with interval: P(A > B), the chance that with a new seed and as many new images a scores above
      b (Bouthillier et al. 2021), under normal errors; the interval after Hedges and Olkin 1985.
    - ``p_false``: probability that the claim that a is better is false (Christodoulou et al. 2025).
    - ``more_seeds``, ``more_images``: how many more would decide the pair if the difference stayed as it is; 0 for a
      decided one, infinite if none would.

    Args:
        values: What each image adds to each trial's score, higher is better; shape (n_configurations, n_seeds,
            n_images). A trial that is missing is NaN throughout.
        labels: Of the configurations.
        detail: False leaves the columns after ``p`` NaN and decides nothing, for speed.
        leader_only: Compare the best configuration with each other one only.
        alpha: Probability of any wrong decision.

    Returns:
        One row a pair, with `PAIR_COLUMNS`; pairs without a common seed are left out.
    """
    there = np.array([[not np.isnan(trial).any() for trial in seeds] for seeds in values])
    means = np.array([rows[has].mean() if has.any() else np.nan for rows, has in zip(values, there, strict=True)])
    order = [int(c) for c in np.argsort(-means, kind="stable") if there[c].any()]
    chosen = [(order[0], c) for c in order[1:]] if leader_only else list(combinations(order, 2))
    alike: dict[tuple[bool, ...], list[tuple[int, int]]] = {}  # pairs by the seeds that they have in common
    for a, b in chosen:
        if (there[a] & there[b]).any():
            alike.setdefault(tuple(there[a] & there[b]), []).append((a, b))
    if not alike:
        return NO_PAIRS.copy()
    parts = [_differences(values[:, np.array(common)], pairs, detail=detail) for common, pairs in alike.items()]
    table = {name: np.concatenate([columns[name] for columns, _ in parts]) for name in parts[0][0]}
    n_seeds, first, second = table["n_seeds"], table["a"], table["b"]
    table["decided"] = np.zeros(len(first), dtype=bool)
    if detail:
        table["p_adjusted"] = holm(table["p"]) if leader_only else Bootstrap(moments(values)).pair_p()[first, second]
        table["decided"] = (n_seeds >= LEAST_SEEDS) & (table["p_adjusted"] < alpha)
        table["p_wilcoxon_holm"] = holm(table["p_wilcoxon"])
        table["p_false"] = table["p"] / 2
        level = ALPHA / max(int((~table["decided"]).sum()), 1)  # what Holm would ask of the next pair
        more = np.array([more for _, means in parts for more in more_needed(means, level)])
        more[table["decided"]] = 0.0
        lacking = LEAST_SEEDS - n_seeds
        table["more_seeds"] = np.maximum(more[:, 0], lacking)
        table["more_images"] = np.where(lacking > 0, np.inf, more[:, 1])
    place = np.zeros(len(labels), dtype=int)
    place[order] = np.arange(len(order))
    rows = np.lexsort((place[second], place[first]))
    names = np.array(labels, dtype=object)
    table |= {"a": names[first], "b": names[second]}
    nothing = np.full(len(rows), np.nan)
    # a frame is made once: this is done for every metric of every set
    return pd.DataFrame({name: table.get(name, nothing)[rows] for name in PAIR_COLUMNS})


def _differences(
    values: Floats, pairs: Sequence[tuple[int, int]], *, detail: bool
) -> tuple[dict[str, np.ndarray], CrossedMean]:
    """Pairs that have all these seeds in common: what each says by itself, ``a`` and ``b`` by their numbers."""
    a, b = np.array(pairs).T
    # over the common seeds the order of the means may turn
    turned = values[a].mean((1, 2)) < values[b].mean((1, 2))
    a, b = np.where(turned, b, a), np.where(turned, a, b)
    differences = values[a] - values[b]
    means = crossed_mean(differences)
    low, high = means.interval()
    table = {
        "a": a, "b": b, "n_seeds": np.full(len(a), means.n_seeds), "n_images": np.full(len(a), means.n_images),
        "difference": means.mean, "low": low, "high": high, "p": means.p,
    }  # fmt: skip
    if detail:
        table["p_wilcoxon"] = np.array([wilcoxon(by_image) for by_image in differences.mean(1)])
        table |= zip(("superiority", "superiority_low", "superiority_high"), superiority(means), strict=True)
    return table, means


def holm(p: Floats) -> Floats:
    """Holm's step-down adjusted p-values; NaN stays NaN and counts as no test."""
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def median_pairs(
    medians: Sequence[MeanMedian], labels: Sequence[str], n_seeds: int, *, leader_only: bool = False
) -> pd.DataFrame:
    """The same table for a metric that is a median, lower is better: differences and tests alone, the rest is NaN.

    Args:
        medians: Of `mean_median`, one a configuration.
        labels: Of the configurations.
        n_seeds: Of the configuration that has fewest.
        leader_only: As for `paired_tests`.
    """
    if len(medians) < 2:
        return NO_PAIRS.copy()
    order = np.argsort([m[0] for m in medians], kind="stable")
    rows = []
    for a, b in [(order[0], c) for c in order[1:]] if leader_only else combinations(order, 2):
        difference, low, high, p = median_difference(medians[b], medians[a])  # b is the larger error
        rows.append({"a": labels[a], "b": labels[b], "difference": difference, "low": low, "high": high, "p": p})
    table = pd.DataFrame(rows, columns=["a", "b", "difference", "low", "high", "p"])
    table["n_seeds"] = n_seeds
    table["p_adjusted"] = holm(table.p.to_numpy(dtype=float))
    table["decided"] = (table.n_seeds >= LEAST_SEEDS) & (table.p_adjusted < ALPHA)
    return table.reindex(columns=list(PAIR_COLUMNS))


def superiority(differences: CrossedMean) -> Floats:
    """P(A > B) of one new run of each, judged on as many new images, with the ends of its interval; shape (3, n_pairs).

    With normal errors it is the normal probability of the difference in units of a run's standard deviation; that
    effect size has about the variance of Hedges and Olkin (1985) in standard errors, 1 + t² / (2 df).
    """
    mean, run = differences.mean, np.sqrt(differences.run_variance)
    unit = np.divide(differences.se, run, out=np.ones_like(run), where=run != 0)
    # without any scatter the better one always wins
    effect = np.divide(mean, run, out=np.where(mean == 0, 0.0, np.inf), where=run != 0)
    finite = np.where(np.isinf(effect), 0.0, effect)
    wide = ndtri(1 - ALPHA / 2) * np.sqrt(unit**2 + finite**2 / (2 * differences.df))
    return np.stack([ndtr(effect + side * wide) for side in (0, -1, 1)])


def wilcoxon(differences: Floats) -> float:
    """Two-sided p of the signed-rank test; 1 if no difference is other than 0.

    Exact up to 50 differences, normal above and where some are 0 or equal in size.
    """
    sizes = np.abs(differences)
    if not sizes.any():
        return 1.0
    tied = len(np.unique(sizes)) < len(sizes) or not sizes.all()
    # SciPy's own choice would try every sign of up to 13 tied differences, seconds for each pair
    return float(scipy.stats.wilcoxon(differences, method="asymptotic" if tied else "auto").pvalue)

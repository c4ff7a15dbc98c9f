"""Intervals, paired comparisons and ranks over seeds × images: pure functions of arrays, each with its source."""

from cellray.statistics.best import (
    LEAST_SEEDS,
    SEED_LOOKS,
    Bootstrap,
    Outlook,
    Statement,
    find_best,
    look_ahead,
    moments,
    winner,
)
from cellray.statistics.contributions import contributions
from cellray.statistics.crossed import ALPHA, CrossedMean, crossed_mean, difference_from
from cellray.statistics.kept import N_KEPT_OF, best_of_k
from cellray.statistics.medians import mean_median
from cellray.statistics.pairs import PAIR_COLUMNS, holm, median_pairs, paired_tests
from cellray.statistics.planning import detectable, more_needed, rate_interval
from cellray.statistics.ranks import (
    N_RESAMPLES,
    Friedman,
    friedman,
    mean_ranks,
    nemenyi,
    rank_shares,
    rank_table,
    resampled_means,
)

__all__ = [
    "ALPHA",
    "LEAST_SEEDS",
    "N_KEPT_OF",
    "N_RESAMPLES",
    "PAIR_COLUMNS",
    "SEED_LOOKS",
    "Bootstrap",
    "CrossedMean",
    "Friedman",
    "Outlook",
    "Statement",
    "best_of_k",
    "contributions",
    "crossed_mean",
    "detectable",
    "difference_from",
    "find_best",
    "friedman",
    "holm",
    "look_ahead",
    "mean_median",
    "mean_ranks",
    "median_pairs",
    "moments",
    "more_needed",
    "nemenyi",
    "paired_tests",
    "rank_shares",
    "rank_table",
    "rate_interval",
    "resampled_means",
    "winner",
]

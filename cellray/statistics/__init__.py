"""Intervals, paired comparisons and ranks over seeds × images: pure functions of arrays, each with its source."""

from cellray.statistics.contributions import contributions
from cellray.statistics.crossed import ALPHA, CrossedMean, crossed_mean
from cellray.statistics.medians import mean_median
from cellray.statistics.pairs import LEAST_SEEDS, PAIR_COLUMNS, contenders, holm, median_pairs, paired_tests
from cellray.statistics.planning import detectable, more_needed, unseen_rate
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
    "N_RESAMPLES",
    "PAIR_COLUMNS",
    "CrossedMean",
    "Friedman",
    "contenders",
    "contributions",
    "crossed_mean",
    "detectable",
    "friedman",
    "holm",
    "mean_median",
    "mean_ranks",
    "median_pairs",
    "more_needed",
    "nemenyi",
    "paired_tests",
    "rank_shares",
    "rank_table",
    "resampled_means",
    "unseen_rate",
]

"""Ranks, their stability, and medians: against numbers worked by hand, Demšar 2006 and slow obvious versions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cellray.statistics import (
    friedman,
    mean_median,
    mean_ranks,
    nemenyi,
    rank_shares,
    rank_table,
    resampled_means,
)
from cellray.statistics.medians import median_difference, order_ranks

# Demšar 2006, table 6: AUC of C4.5 with default settings, tuned m, tuned cf, and both, on 14 sets of data. The
# paper ranks the two 0.975 of the thirteenth set as 2 and 3, so they differ in a digit that it doesn't print.
DEMSAR = np.array(
    [
        [.763, .599, .954, .628, .882, .936, .661, .583, .775, 1.0, .940, .619, .972, .957],
        [.768, .591, .971, .661, .888, .931, .668, .583, .838, 1.0, .962, .666, .981, .978],
        [.771, .590, .968, .654, .886, .916, .609, .563, .866, 1.0, .965, .614, .9751, .946],
        [.798, .569, .967, .657, .898, .931, .685, .625, .875, 1.0, .962, .669, .975, .970],
    ]
)  # fmt: skip
DEMSAR_RANKS = [3.143, 2.000, 2.893, 1.964]


def decided(*pairs: tuple[str, str], of: str) -> pd.DataFrame:
    """A table of all pairs of these labels, of which these are decided (winner, loser)."""
    others = [(a, b) for i, a in enumerate(of) for b in of[i + 1 :] if (a, b) not in pairs and (b, a) not in pairs]
    rows = [(*pair, True) for pair in pairs] + [(*pair, False) for pair in others]
    return pd.DataFrame(rows, columns=["a", "b", "decided"])


def flat(*scores: float) -> np.ndarray:
    """As if each configuration had one image."""
    return np.array(scores)[:, None]


# Medians.


@pytest.mark.parametrize("n", [1, 2, 5, 6, 8, 9, 10, 25, 70, 71, 200])
def test_the_places_are_the_closest_that_hold_the_median_with_95_percent(n):
    def tail(low: int) -> float:
        return sum(math.comb(n, k) for k in range(low)) / 2**n

    fitting = [low for low in range(1, n // 2 + 1) if tail(low) <= 0.025]
    low = max(fitting, default=1)
    assert order_ranks(n) == (low, n + 1 - low)


@pytest.mark.parametrize(("n", "places"), [(5, (1, 5)), (6, (1, 6)), (10, (2, 9)), (70, (27, 44))])
def test_the_places_are_those_of_published_tables(n, places):
    # 6: 1/64 on either side; 10: 11/1024; 5: 1/32 is too much, so all that there is
    assert order_ranks(n) == places


def test_the_places_follow_the_level():
    assert order_ranks(5, level=0.9) == (1, 5)  # 1/32 on either side
    assert order_ranks(10, level=0.99) == (1, 10)  # 11/1024 > 0.005


def test_the_median_of_one_seed_lies_between_order_statistics():
    values = np.array([[7.0, 1.0, 3.0, 2.0, 9.0, 4.0]])
    assert mean_median(values) == (3.5, 1.0, 9.0)


def test_the_chances_of_images_and_of_seeds_add_up():
    first = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
    mean, low, high = mean_median(np.stack([first, first + 2]))
    # medians 3.5 and 5.5, whose standard error is 1; images: mean of the least 2, of the greatest 8
    student = 12.7062
    assert mean == 4.5
    assert low == pytest.approx(4.5 - math.hypot(2.5, student), rel=1e-5)
    assert high == pytest.approx(4.5 + math.hypot(3.5, student), rel=1e-5)


def test_seeds_that_are_alike_add_nothing_to_a_median():
    values = np.tile(np.arange(10.0), (4, 1))
    assert mean_median(values) == (4.5, 1.0, 8.0)


def test_half_of_skewed_intervals_miss_no_more_than_they_may():
    rng = np.random.default_rng(0)
    values = rng.geometric(0.3, (2000, 1, 30)).astype(float)
    ends = np.array([mean_median(v)[1:] for v in values])
    # P(X <= 2) = 0.51: the median is 2
    assert ((ends[:, 0] <= 2) & (ends[:, 1] >= 2)).mean() >= 0.95


def test_a_difference_of_medians_by_hand():
    difference, low, high, p = median_difference((5.0, 3.0, 8.0), (2.0, 1.0, 6.0))
    assert difference == 3
    assert low == pytest.approx(3 - math.hypot(5 - 3, 6 - 2))
    assert high == pytest.approx(3 + math.hypot(8 - 5, 2 - 1))
    # the half-width toward 0 is 1.96 standard errors
    assert p == pytest.approx(2 * stats.norm.sf(3 / (math.sqrt(20) / 1.959964)), rel=1e-5)


def test_a_difference_of_medians_turned_around_is_the_same():
    a, b = (5.0, 3.0, 8.0), (2.0, 1.0, 6.0)
    difference, low, high, p = median_difference(a, b)
    assert median_difference(b, a) == (-difference, -high, -low, p)


def test_medians_without_scatter_differ_surely_or_not_at_all():
    assert median_difference((2.0, 2.0, 2.0), (1.0, 1.0, 1.0)) == (1.0, 1.0, 1.0, 0.0)
    assert median_difference((2.0, 2.0, 2.0), (2.0, 2.0, 2.0)) == (0.0, 0.0, 0.0, 1.0)
    assert median_difference((2.0, 1.0, 3.0), (2.0, 1.0, 3.0))[3] == 1


def test_p_of_medians_is_below_5_percent_where_the_interval_leaves_out_0():
    for high in (5.9, 6.1):
        _, low, _, p = median_difference((9.0, 9.0, 9.0), (5.0, 4.0, high + 3.0))
        assert (low > 0) == (p < 0.05) == (high < 6)


# Ranks.


def test_rank_intervals_count_decided_pairs():
    pairs = decided(("A", "C"), ("A", "D"), ("B", "D"), of="ABCD")
    table = rank_table(np.array([0.9, 0.8, 0.7, 0.6]), flat(0.9, 0.8, 0.7, 0.6), pairs, list("ABCD"))
    assert list(table.label) == list("ABCD")
    assert list(table["rank"]) == [1, 2, 3, 4]
    assert list(table.rank_low) == [1, 1, 2, 3]
    assert list(table.rank_high) == [2, 3, 4, 4]
    assert list(table.by_tests) == [1, 2, 3, 4]  # wins less losses: 2, 1, -1, -2


def test_ranks_by_tests_may_differ_from_those_by_means():
    table = rank_table(np.array([3.0, 2.0, 1.0]), flat(3, 2, 1), decided(("B", "C"), of="ABC"), list("ABC"))
    assert list(table.by_tests) == [2, 1, 3]


def test_equal_means_share_the_better_rank():
    table = rank_table(np.array([0.5, 0.7, 0.7, 0.1 + 0.2]), flat(1, 2, 3, 4), decided(of="ABCD"), list("ABCD"))
    assert list(table["rank"]) == [3, 1, 1, 4]
    table = rank_table(np.array([0.3, 0.1 + 0.2, 0.2]), flat(1, 2, 3), decided(of="ABC"), list("ABC"))
    assert list(table["rank"]) == [1, 1, 3]  # 0.1 + 0.2 is a last digit more than 0.3


def test_a_configuration_without_a_result_has_no_rank_and_takes_none():
    nan = math.nan
    table = rank_table(np.array([nan, 0.8, 0.7]), flat(nan, 0.8, 0.7), decided(("B", "C"), of="BC"), list("ABC"))
    columns = ["rank", "rank_low", "rank_high", "mean_rank", "rank_then_mean", "by_tests"]
    assert table.loc[0, columns].isna().all()
    assert table.loc[1:, columns].to_numpy() == pytest.approx(np.array([[1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]]))


@pytest.mark.parametrize(
    "pairs", [decided(of=""), decided(("A", "B"), ("A", "C"), of="ABC").iloc[:2]], ids=["no pairs", "the leader's only"]
)
def test_without_all_pairs_ranks_have_no_intervals(pairs):
    table = rank_table(np.array([3.0, 2.0, 1.0]), flat(3, 2, 1), pairs, list("ABC"))
    assert list(table["rank"]) == [1, 2, 3]
    assert table[["rank_low", "rank_high", "by_tests"]].isna().all(axis=None)


def test_rank_then_mean_may_differ_from_mean_then_rank():
    # B is the best on three images and lost on the fourth
    by_image = np.array([[0.8, 0.8, 0.8, 0.8], [0.9, 0.9, 0.9, 0.0]])
    table = rank_table(by_image.mean(1), by_image, decided(of="AB"), list("AB"))
    assert list(table["rank"]) == [1, 2]
    assert list(table.mean_rank) == [1.75, 1.25]
    assert list(table.rank_then_mean) == [2, 1]


def test_mean_ranks_share_ties():
    by_image = np.array([[0.9, 0.5, 0.3], [0.9, 0.7, 0.1 + 0.2], [0.1, 0.7, 0.2]])
    # ranks in each image: 1.5 1.5 3; 3 1.5 1.5; 1.5 1.5 3
    assert mean_ranks(by_image) == pytest.approx([6 / 3, 4.5 / 3, 7.5 / 3])


def test_mean_ranks_leave_out_who_was_not_judged():
    found = mean_ranks(np.array([[0.9, 0.5], [np.nan, np.nan], [0.8, 0.6]]))
    assert found == pytest.approx([1.5, np.nan, 1.5], nan_ok=True)
    assert np.isnan(mean_ranks(np.full((2, 3), np.nan))).all()


def test_mean_ranks_are_those_of_demsar():
    assert mean_ranks(DEMSAR).round(3) == pytest.approx(DEMSAR_RANKS)


# Friedman and Nemenyi.


def test_the_critical_difference_is_that_of_demsar():
    assert nemenyi(4, 14) == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=0.001)
    assert round(nemenyi(4, 14), 2) == 1.25
    assert friedman(DEMSAR).critical_difference == nemenyi(4, 14)


def test_the_critical_difference_of_the_reference_study_over_seeds_and_over_images():
    assert round(nemenyi(12, 5), 2) == 7.45
    assert round(nemenyi(12, 70), 2) == 1.99


def test_friedmans_test_is_that_of_demsar_corrected_for_ties():
    # 9.28 without correction; three pairs and once all four are tied
    assert friedman(DEMSAR).statistic == pytest.approx(9.28 / (1 - (3 * 6 + 60) / (14 * 4 * 15)), abs=0.01)


def test_friedmans_test_equals_its_formula_in_loops():
    by_image = np.random.default_rng(1).random((5, 9)) + 0.1 * np.arange(5)[:, None]
    k, n = by_image.shape
    sums = [sum(1 + sum(by_image[j, i] > by_image[c, i] for j in range(k)) for i in range(n)) for c in range(k)]
    statistic = 12 / (n * k * (k + 1)) * sum(r**2 for r in sums) - 3 * n * (k + 1)
    found = friedman(by_image)
    assert (found.n_images, found.statistic) == (9, pytest.approx(statistic))
    assert found.p == pytest.approx(stats.chi2.sf(statistic, k - 1))


def test_friedmans_test_with_ties_divides_by_what_ties_leave():
    by_image = np.array([[3.0, 3.0, 1.0, 2.0], [2.0, 3.0, 1.0, 4.0], [1.0, 1.0, 1.0, 9.0]])
    # ranks 3 2 1; 2.5 2.5 1; 2 2 2; 1 2 3: sums 8.5, 8.5, 7; one pair and one triple tied of four images
    raw = 12 / (4 * 3 * 4) * (8.5**2 + 8.5**2 + 7**2) - 3 * 4 * 4
    assert friedman(by_image).statistic == pytest.approx(raw / (1 - (6 + 24) / (4 * 3 * 8)))


def test_friedmans_test_needs_three_configurations_and_two_images():
    assert friedman(DEMSAR[:2]) is None
    assert friedman(DEMSAR[:, :1]) is None
    assert friedman(np.vstack([DEMSAR[:2], np.full((2, 14), np.nan)])) is None


def test_friedmans_test_knows_nothing_of_images_on_which_all_are_alike():
    found = friedman(np.ones((3, 4)))
    assert math.isnan(found.statistic) and math.isnan(found.p)


# Resampling.


def counts_of(n_images: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each image was drawn: the mean of an image's indicator is its share."""
    one_hot = np.eye(n_images)[:, None, :]
    return (resampled_means(one_hot, n_resamples=n_resamples, seed=seed) * n_images).round().astype(int)


def test_resampling_repeats_itself_from_its_seed():
    values = np.random.default_rng(2).random((3, 4, 10))
    again, other = (resampled_means(values, n_resamples=50, seed=seed) for seed in (0, 1))
    assert (resampled_means(values, n_resamples=50) == again).all()
    assert (again != other).any()
    assert again.shape == (50, 3)


def test_images_are_drawn_with_replacement_as_many_as_there_are():
    counts = counts_of(7, 300, 0)
    assert (counts.sum(1) == 7).all()
    assert counts.max() > 1 and counts.min() == 0
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.2)


@pytest.mark.parametrize("n_images", [1, 6, 7])
def test_resampled_means_and_medians_are_those_of_the_repeated_values(n_images):
    values = np.random.default_rng(3).integers(0, 5, (4, 1, n_images)).astype(float)
    counts = counts_of(n_images, 60, 5)
    means = resampled_means(values, n_resamples=60, seed=5)
    medians = resampled_means(values, n_resamples=60, seed=5, is_median=True)
    for i, count in enumerate(counts):
        repeated = [np.repeat(row[0], count) for row in values]
        assert means[i] == pytest.approx([r.mean() for r in repeated])
        assert medians[i] == pytest.approx([np.median(r) for r in repeated])


def test_seeds_are_drawn_with_replacement_the_same_for_all():
    values = np.array([[[1.0], [3.0]], [[10.0], [30.0]]])
    drawn = resampled_means(values, n_resamples=2000)
    assert set(drawn[:, 0]) == {1.0, 2.0, 3.0}
    assert (drawn[:, 1] == 10 * drawn[:, 0]).all()
    assert (drawn[:, 0] == 2).mean() == pytest.approx(0.5, abs=0.05)


def test_resampled_means_scatter_about_the_mean():
    values = np.random.default_rng(4).random((2, 5, 20))
    drawn = resampled_means(values, n_resamples=4000)
    assert drawn.mean(0) == pytest.approx(values.mean((1, 2)), abs=4 * float(drawn.std(0).max()) / math.sqrt(4000))


def test_a_missing_trial_counts_as_nothing():
    values = np.array([[[1.0], [5.0]], [[2.0], [np.nan]]])
    drawn = resampled_means(values, n_resamples=2000)
    known = ~np.isnan(drawn[:, 1])
    assert (drawn[known, 1] == 2).all()
    assert (drawn[~known, 0] == 5).all()  # only the second seed was drawn
    assert (~known).mean() == pytest.approx(0.25, abs=0.04)


def test_rank_shares_by_hand():
    nan = math.nan
    means = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 2.0, 1.0], [nan, 1.0, 2.0]])
    expected = [[0.5, 0.0, 0.25], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]
    assert rank_shares(means) == pytest.approx(np.array(expected))


def test_rank_shares_of_everyone_sum_to_1():
    means = np.random.default_rng(5).random((200, 6))
    assert rank_shares(means).sum(0) == pytest.approx(np.ones(6))
    assert rank_shares(means).sum(1) == pytest.approx(np.ones(6))

"""Paired comparisons, against classical tests and numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cellray.statistics import PAIR_COLUMNS, CrossedMean, crossed_mean, holm, median_pairs, paired_tests
from cellray.statistics.pairs import superiority

STEPS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])  # of mean 0
OTHER_STEPS = STEPS[[0, 2, 4, 1, 3]]


def scores(seed: int = 0, n: int = 4, n_seeds: int = 3, n_images: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    skill = 0.3 * np.arange(n)[::-1, None, None]
    return skill + rng.standard_normal((1, 1, n_images)) + 0.7 * rng.standard_normal((n, n_seeds, n_images))


def with_p(p: float, steps: np.ndarray) -> np.ndarray:
    """Five differences, scattered as these steps, whose mean Student's test gives this p."""
    return stats.t.isf(p / 2, 4) * steps.std(ddof=1) / math.sqrt(5) + steps


def behind(*differences: np.ndarray) -> np.ndarray:
    """Scores of a leader and of configurations that lie behind it by so much in each seed, without images."""
    return np.stack([np.zeros(5), *(-d for d in differences)])[:, :, None]


def pair(table, a, b):
    (row,) = table[(table.a == a) & (table.b == b)].itertuples()
    return row


def test_holm_by_hand():
    # four tests: 0.01 x 4, 0.03 x 3, then 0.04 x 2 = 0.08 raised to 0.09, 0.2 x 1; the NaN is none
    adjusted = holm(np.array([0.01, 0.04, 0.03, np.nan, 0.2]))
    assert adjusted == pytest.approx([0.04, 0.09, 0.09, np.nan, 0.2], nan_ok=True)


def test_holm_stays_a_probability_and_counts_equal_ones_alike():
    assert holm(np.array([0.6, 0.5])) == pytest.approx([1.0, 1.0])
    assert holm(np.full(3, 0.02)) == pytest.approx([0.06] * 3)
    assert len(holm(np.array([]))) == 0


def test_pairs_stand_best_first_and_every_difference_is_above_0():
    values = scores()[[2, 0, 3, 1]]
    table = paired_tests(values, list("CADB"))
    order = [label for _, label in sorted(zip(-values.mean((1, 2)), "CADB", strict=True))]
    expected = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    assert list(table.columns) == list(PAIR_COLUMNS)
    assert list(zip(table.a, table.b, strict=True)) == expected
    assert (table.difference > 0).all()


def test_a_pair_is_the_crossed_mean_of_its_differences():
    values = scores()
    row = pair(paired_tests(values, list("ABCD")), "A", "C")
    found = crossed_mean(values[0] - values[2])
    assert (row.n_seeds, row.n_images) == (3, 12)
    assert row.difference == pytest.approx(values[0].mean() - values[2].mean())
    assert (row.low, row.high) == pytest.approx(found.interval())
    assert row.p == pytest.approx(found.p)
    assert row.p_wilcoxon == pytest.approx(stats.wilcoxon((values[0] - values[2]).mean(0)).pvalue)


def test_p_values_are_adjusted_over_all_pairs():
    table = paired_tests(scores(), list("ABCD"))
    assert len(table) == 6
    assert (table.p_adjusted >= table.p - 0.02).all()  # of the draws, and of means that share their correlations
    assert table.decided.equals(table.p_adjusted < 0.05)
    assert table.p_wilcoxon_holm.to_numpy() == pytest.approx(holm(table.p_wilcoxon.to_numpy()))


def test_a_pair_that_is_decided_needs_not_be_one_of_the_leader():
    table = paired_tests(behind(with_p(0.06, STEPS), with_p(0.0001, OTHER_STEPS)), list("ABC"))
    assert pair(table, "A", "C").decided
    assert not pair(table, "A", "B").decided


def test_missing_trials_leave_the_seeds_that_both_have():
    values = scores(1)
    values[1, 2] = np.nan
    table = paired_tests(values, list("ABCD"))
    kept = values[:, :2]
    both = [pair(table, a, b) for a, b in zip(table.a, table.b, strict=True) if "B" in (a, b)]
    assert {row.n_seeds for row in both} == {2}
    assert {int(n) for n in table.n_seeds} == {2, 3}
    for row in both:
        a, b = "ABCD".index(row.a), "ABCD".index(row.b)
        assert row.difference == pytest.approx(kept[a].mean() - kept[b].mean())
        assert (row.low, row.high) == pytest.approx(crossed_mean(kept[a] - kept[b]).interval())


def test_over_the_common_seeds_the_better_one_may_be_the_other():
    values = np.array([[1.0, 1.0, 7.0], [2.0, 2.0, np.nan]])[:, :, None] + np.array([0.0, 0.5])
    table = paired_tests(values, ["A", "B"])  # means 3.25 and 2.25, but B is better by 1 where both are known
    assert (table.a[0], table.b[0], table.difference[0]) == ("B", "A", 1.0)


def test_pairs_without_a_common_seed_are_left_out():
    values = scores(2, n=3, n_seeds=2)
    values[0, 0] = values[1, 1] = np.nan
    pairs = paired_tests(values, list("ABC"))
    assert {frozenset(p) for p in zip(pairs.a, pairs.b, strict=True)} == {frozenset("AC"), frozenset("BC")}


def test_the_leader_alone_is_compared_where_wanted():
    values = scores(3)
    everything, leaders = paired_tests(values, list("ABCD")), paired_tests(values, list("ABCD"), leader_only=True)
    assert list(leaders.a) == ["A"] * 3
    assert list(leaders.b) == ["B", "C", "D"]
    assert leaders.p.to_numpy() == pytest.approx(everything.p.to_numpy()[:3])
    assert leaders.p_adjusted.to_numpy() == pytest.approx(holm(leaders.p.to_numpy()))


def test_without_detail_nothing_is_decided():
    values = scores(4)
    values[0] += 10
    full, short = paired_tests(values, list("ABCD")), paired_tests(values, list("ABCD"), detail=False)
    first = PAIR_COLUMNS.index("p") + 1
    assert list(short.columns) == list(PAIR_COLUMNS)
    assert short[list(PAIR_COLUMNS[:first])].equals(full[list(PAIR_COLUMNS[:first])])
    assert short[list(PAIR_COLUMNS[first:])].drop(columns="decided").isna().all(axis=None)
    assert full.decided.any() and not short.decided.any()


def test_identical_configurations_are_undecided():
    row = pair(paired_tests(np.stack([scores()[0]] * 2), ["A", "B"]), "A", "B")
    assert (row.difference, row.low, row.high) == (0, 0, 0)
    assert (row.p, row.p_adjusted, row.p_wilcoxon, row.superiority, row.p_false) == (1, 1, 1, 0.5, 0.5)
    assert not row.decided
    assert (row.more_seeds, row.more_images) == (math.inf, math.inf)


def test_a_lost_seed_takes_part_as_the_worst_value():
    values = np.full((2, 5, 8), 0.8) + 0.01 * np.random.default_rng(5).standard_normal((2, 5, 8))
    values[1, 3] = 0.0
    row = pair(paired_tests(values, ["A", "B"]), "A", "B")
    by_seed = (values[0] - values[1]).mean(1)
    classical = stats.ttest_1samp(by_seed, 0)
    assert row.n_seeds == 5
    assert row.difference == pytest.approx(by_seed.mean())
    assert row.p == pytest.approx(classical.pvalue, rel=0.01)  # one seed in five: 0.37, and images can't help
    assert not row.decided
    assert (row.low, row.high) == pytest.approx(classical.confidence_interval(0.95), rel=0.01)


def test_a_difference_without_scatter_is_decided():
    row = pair(paired_tests(np.array([[[0.9, 0.7]] * 3, [[0.8, 0.6]] * 3]).round(1), ["A", "B"]), "A", "B")
    assert row.decided
    assert (row.more_seeds, row.more_images) == (0, 0)
    assert row.superiority == pytest.approx(1)


@pytest.mark.parametrize("leader_only", [False, True])
@pytest.mark.parametrize("n", [0, 1], ids=["none known", "one known"])
def test_a_configuration_alone_has_no_pairs(n, leader_only):
    values = scores(n=2)
    values[n:] = np.nan
    table = paired_tests(values, ["A", "B"], leader_only=leader_only)
    assert list(table.columns) == list(PAIR_COLUMNS)
    assert len(table) == 0


def test_one_seed_on_one_image_decides_nothing():
    row = pair(paired_tests(np.array([[[0.9]], [[0.2]]]), ["A", "B"]), "A", "B")
    assert row.difference == pytest.approx(0.7)
    assert np.isnan([row.low, row.high, row.p, row.p_adjusted]).all()
    assert not row.decided


def test_the_probability_of_a_false_claim_is_that_of_christodoulou():
    a, b = np.array([0.71, 0.74, 0.73, 0.78, 0.75]), np.array([0.70, 0.72, 0.74, 0.74, 0.71])
    row = pair(paired_tests(np.stack([a, b])[:, :, None], ["A", "B"]), "A", "B")
    r = np.corrcoef(a, b)[0, 1]
    error = math.sqrt(a.var(ddof=1) + b.var(ddof=1) - 2 * a.std(ddof=1) * b.std(ddof=1) * r)
    assert row.p_false == pytest.approx(stats.t.cdf(math.sqrt(5) * (b.mean() - a.mean()) / error, 4))


def test_superiority_over_seeds_is_the_normal_probability_of_the_effect_size():
    differences = np.array([0.3, -0.1, 0.5, 0.4, 0.2, 0.1])
    effect = differences.mean() / differences.std(ddof=1)
    # Hedges and Olkin 1985: variance 1/n + effect² / (2 df)
    wide = 1.959964 * math.sqrt(1 / 6 + effect**2 / 10)
    value, low, high = superiority(crossed_mean(differences[:, None]))
    assert value == pytest.approx(stats.norm.cdf(effect))
    assert (low, high) == pytest.approx((stats.norm.cdf(effect - wide), stats.norm.cdf(effect + wide)))


def test_superiority_is_how_often_a_new_run_wins():
    mean, seed, image, rest = 0.4, 0.5, 1.5, 1.0  # standard deviations; of 4 seeds on 30 images
    means = np.array([mean]), np.array([(seed**2 + rest**2 / 30) / 4]), np.array([image**2 / 30])
    known = CrossedMean(*means, np.array([rest**2]), 4, 30)
    rng = np.random.default_rng(6)
    runs = mean + seed * rng.standard_normal(20_000)
    runs += (image * rng.standard_normal((20_000, 30)) + rest * rng.standard_normal((20_000, 30))).mean(1)
    assert superiority(known)[0] == pytest.approx((runs > 0).mean(), abs=0.01)


def test_superiority_lies_in_its_interval_and_that_within_0_and_1():
    table = paired_tests(scores(7, n=6), list("ABCDEF"))
    assert (table.superiority_low >= 0).all() and (table.superiority_high <= 1).all()
    assert (table.superiority_low <= table.superiority).all() and (table.superiority <= table.superiority_high).all()
    assert (table.superiority >= 0.5).all()


# Seeds with equal means, images with equal means, and still scatter: 0 x infinity.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_superiority_is_known_where_seeds_and_images_agree_by_chance():
    found = crossed_mean(np.array([[2.0, 1.0], [1.0, 2.0]]))
    # a new run has the variance of the rest, 1, over two images
    assert superiority(found)[0] == pytest.approx(stats.norm.cdf(1.5 / math.sqrt(0.5)))


# An empty table of pairs must not turn the numbers of those that it is put together with into objects.
def test_a_table_without_pairs_has_the_same_types():
    empty, full = paired_tests(scores(n=1), ["A"]), paired_tests(scores(n=3), list("ABC"))
    assert empty.dtypes[["difference", "p", "decided"]].equals(full.dtypes[["difference", "p", "decided"]])


def test_more_seeds_are_asked_at_the_level_of_the_next_pair():
    # A-C is decided, and 0.05 / 2 asked of the two left
    far = with_p(0.06, 3 * STEPS)
    table = paired_tests(behind(far, with_p(0.001, OTHER_STEPS)), list("ABC"))
    mean, sd = far.mean(), far.std(ddof=1)
    fewest = next(n for n in range(6, 100) if stats.t.isf(0.025 / 2, n - 1) * sd / math.sqrt(n) < mean)
    assert (~table.decided).sum() == 2
    assert pair(table, "A", "B").more_seeds == fewest - 5
    assert pair(table, "A", "C").more_seeds == 0


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_two_seeds_decide_nothing_however_far_apart(n_seeds):
    values = scores(8, n=2, n_seeds=n_seeds, n_images=30)
    values[0] += 10
    row = pair(paired_tests(values, ["A", "B"]), "A", "B")
    assert row.p < 0.01
    assert not row.decided


# They say so of a pair that only a third seed can decide.
@pytest.mark.parametrize("n_seeds", [1, 2])
def test_images_are_not_said_to_decide_what_takes_a_third_seed(n_seeds):
    values = scores(8, n=2, n_seeds=n_seeds, n_images=30)
    values[0] += 10
    row = pair(paired_tests(values, ["A", "B"]), "A", "B")
    assert (row.more_seeds, row.more_images) == (3 - n_seeds, math.inf)


def test_medians_are_compared_with_the_lower_error_first():
    # half-widths 2, 1 and 1 on either side
    table = median_pairs([(9.0, 7.0, 11.0), (2.0, 1.0, 3.0), (3.0, 2.0, 4.0)], list("ABC"), 5)
    assert list(table.columns) == list(PAIR_COLUMNS)
    assert list(zip(table.a, table.b, strict=True)) == [("B", "C"), ("B", "A"), ("C", "A")]
    assert list(table.difference) == [1, 7, 6]
    halves = [math.sqrt(2), math.sqrt(5), math.sqrt(5)]
    assert table.low.to_numpy() == pytest.approx([1 - halves[0], 7 - halves[1], 6 - halves[2]])
    p = [2 * stats.norm.sf(d / h * stats.norm.isf(0.025)) for d, h in zip((1, 7, 6), halves, strict=True)]
    assert table.p.to_numpy() == pytest.approx(p)
    assert list(table.decided) == [False, True, True]
    assert table[list(PAIR_COLUMNS[PAIR_COLUMNS.index("decided") + 1 :])].isna().all(axis=None)


def test_medians_of_two_seeds_decide_nothing():
    assert not median_pairs([(9.0, 8.9, 9.1), (2.0, 1.9, 2.1)], list("AB"), 2).decided.any()


@pytest.mark.parametrize("n", [0, 1])
def test_a_median_alone_has_no_pairs(n):
    table = median_pairs([(9.0, 7.0, 11.0)][:n], ["A"][:n], 5)
    assert list(table.columns) == list(PAIR_COLUMNS)
    assert len(table) == 0

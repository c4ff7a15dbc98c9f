"""Means over seeds × images, what each image adds, and sample sizes: against loops, classical tests and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from label_images import random_pair, row_of
from scipy import stats

from cellray.metrics import image_terms, metrics_of, summarise
from cellray.statistics import CrossedMean, contributions, crossed_mean, detectable, more_needed, rate_interval
from cellray.statistics.crossed import LEAST_P


def drawn(seed: int, n_seeds: int, n_images: int, *, mean=0.0, of_seed=0.5, of_image=1.0, rest=1.0, n=None):
    """Values with effects of these standard deviations; shape ([n,] n_seeds, n_images)."""
    rng = np.random.default_rng(seed)
    many = () if n is None else (n,)
    seeds = of_seed * rng.standard_normal((*many, n_seeds, 1))
    images = of_image * rng.standard_normal((*many, 1, n_images))
    return mean + seeds + images + rest * rng.standard_normal((*many, n_seeds, n_images))


def slow_parts(values: np.ndarray) -> dict[str, float]:
    """Two-way analysis of variance without repeats, sum by sum; the variances of seed, image and rest."""
    n_seeds, n_images = values.shape
    mean = sum(values[s, i] for s in range(n_seeds) for i in range(n_images)) / (n_seeds * n_images)
    of_seed = [sum(values[s, i] for i in range(n_images)) / n_images for s in range(n_seeds)]
    of_image = [sum(values[s, i] for s in range(n_seeds)) / n_seeds for i in range(n_images)]
    ms_seed = sum(n_images * (m - mean) ** 2 for m in of_seed) / (n_seeds - 1)
    ms_image = sum(n_seeds * (m - mean) ** 2 for m in of_image) / (n_images - 1)
    left = [values[s, i] - of_seed[s] - of_image[i] + mean for s in range(n_seeds) for i in range(n_images)]
    ms_rest = sum(x**2 for x in left) / ((n_seeds - 1) * (n_images - 1))
    image = max(ms_image - ms_rest, 0) / n_seeds
    return {"mean": mean, "ms_seed": ms_seed, "seed": (ms_seed - ms_rest) / n_images, "image": image, "rest": ms_rest}


def slow_half(seed: float, image: float, rest: float, n_seeds: int, n_images: int, p: float) -> float:
    """Half-width from the variances of the three sources, none of the numbers below 2."""
    by_seed, by_image = (seed + rest / n_images) / n_seeds, image / n_images
    t_seed, t_image = (stats.t.isf(p / 2, n - 1) for n in (n_seeds, n_images))
    return math.sqrt(by_seed * t_seed**2 + by_image * t_image**2)


@pytest.mark.parametrize("seed", range(5))
def test_a_crossed_mean_equals_an_analysis_of_variance_in_loops(seed):
    values = drawn(seed, 4, 7, mean=0.8)
    slow, found = slow_parts(values), crossed_mean(values)
    half = slow_half(slow["seed"], slow["image"], slow["rest"], 4, 7, 0.05)
    low, high = found.interval()
    assert found.mean == pytest.approx(slow["mean"])
    assert found.rest == pytest.approx(slow["rest"])
    assert found.se == pytest.approx(math.sqrt(slow["ms_seed"] / 28 + slow["image"] / 7))
    assert (low, high) == (pytest.approx(slow["mean"] - half), pytest.approx(slow["mean"] + half))


def test_many_means_at_once_are_each_by_itself():
    values = drawn(0, 3, 6, n=4)
    low, high = crossed_mean(values).interval()
    for i, one in enumerate(values):
        assert crossed_mean(one).interval() == (pytest.approx(low[i]), pytest.approx(high[i]))
        assert crossed_mean(one).p == pytest.approx(crossed_mean(values).p[i])


@pytest.mark.parametrize("shape", [(5, 1), (1, 30), (2, 1), (1, 2)], ids=str)
def test_with_one_image_or_one_seed_it_is_students_test(shape):
    values = drawn(3, *shape, mean=0.7)
    found = crossed_mean(values)
    classical = stats.ttest_1samp(values.ravel(), 0)
    ends = classical.confidence_interval(0.95)
    assert found.p == pytest.approx(classical.pvalue)
    assert found.t == pytest.approx(abs(classical.statistic))
    assert found.interval() == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert found.df == pytest.approx(values.size - 1)


def test_images_that_all_seeds_agree_on_count_as_so_many_images():
    by_image = drawn(4, 1, 12, mean=0.4)
    found = crossed_mean(np.repeat(by_image, 5, axis=0))
    classical = stats.ttest_1samp(by_image.ravel(), 0)
    assert found.p == pytest.approx(classical.pvalue)  # and not as 60


def test_seeds_that_are_alike_on_all_images_count_as_so_many_seeds():
    by_seed = drawn(5, 5, 1, mean=0.4)
    found = crossed_mean(np.repeat(by_seed, 30, axis=1))
    classical = stats.ttest_1samp(by_seed.ravel(), 0)
    assert found.p == pytest.approx(classical.pvalue)  # and not as 150


def test_a_change_of_unit_changes_the_interval_alike_and_p_not_at_all():
    values = drawn(6, 5, 9, mean=0.5)
    found, turned, moved = crossed_mean(values), crossed_mean(-3 * values), crossed_mean(values + 2)
    low, high = found.interval()
    assert turned.interval() == (pytest.approx(-3 * high), pytest.approx(-3 * low))
    assert turned.p == pytest.approx(found.p)
    assert moved.interval() == (pytest.approx(low + 2), pytest.approx(high + 2))
    assert moved.run_variance == pytest.approx(found.run_variance)


def test_the_order_of_seeds_and_images_says_nothing():
    values = drawn(7, 4, 8)
    shuffled = values[[2, 0, 3, 1]][:, [7, 1, 0, 3, 2, 6, 5, 4]]
    assert crossed_mean(shuffled).p == pytest.approx(crossed_mean(values).p)
    assert crossed_mean(shuffled).se == pytest.approx(crossed_mean(values).se)


def test_a_difference_without_any_scatter_is_sure_and_no_difference_is_none():
    sure, none = crossed_mean(np.full((3, 4), 0.25)), crossed_mean(np.zeros((3, 4)))
    assert (sure.t, sure.p) == (math.inf, pytest.approx(LEAST_P))
    assert sure.interval() == (0.25, 0.25)
    assert (none.t, none.p) == (0, 1)


def test_one_seed_on_one_image_has_no_interval():
    found = crossed_mean(np.array([[0.7]]))
    assert found.mean == 0.7
    assert all(np.isnan(x) for x in (found.se, found.p, found.t, *found.interval()))


def test_p_is_the_probability_whose_critical_value_is_t():
    found = crossed_mean(drawn(8, 5, 20, mean=1.0, n=50))
    np.testing.assert_allclose(found.critical(found.p), found.t, rtol=1e-9)
    falling = np.stack([found.critical(p) for p in (1e-12, 1e-6, 1e-3, 0.05, 0.3, 0.9)])
    assert (np.diff(falling, axis=0) < 0).all()


def test_the_critical_value_lies_between_students_of_seeds_and_of_images():
    crossed = crossed_mean(drawn(9, 5, 20, n=50))
    assert (crossed.critical(0.01) <= stats.t.isf(0.005, 4)).all()
    assert (crossed.critical(0.01) >= stats.t.isf(0.005, 19)).all()


def test_the_variance_of_a_run_is_that_of_one_seed_on_as_many_images():
    slow = slow_parts(values := drawn(10, 4, 6, of_seed=2))
    expected = slow["seed"] + slow["image"] / 6 + slow["rest"] / 6
    assert slow["seed"] > 0
    assert crossed_mean(values).run_variance == pytest.approx(expected)


def test_the_variance_of_a_run_without_images_is_that_of_the_seeds():
    values = drawn(11, 6, 1)
    assert crossed_mean(values).run_variance == pytest.approx(np.var(values, ddof=1))


@pytest.mark.parametrize(
    "sources",
    [(1.0, 0.5, 0.5), (0.1, 1.0, 1.0), (0.0, 1.0, 0.2), (0.2, 0.0, 1.0)],
    ids=["seeds matter most", "as seen", "images alone", "no effect of images"],
)
def test_intervals_hold_and_the_far_tail_is_not_too_light(sources):
    of_seed, of_image, rest = sources
    found = crossed_mean(drawn(12, 5, 30, of_seed=of_seed, of_image=of_image, rest=rest, n=20_000))
    # 4,000 studies would show 3 cases beyond 0.05 / 66, too few to count
    covered = (found.t <= found.critical(0.05)).mean()
    beyond = (found.t > found.critical(0.05 / 66)).mean()
    assert 0.94 <= covered <= 0.98
    assert beyond * 66 <= 0.06


# Two or three seeds that agree by chance pull the weighted critical value from their own Student's to that of images.
@pytest.mark.parametrize("n_seeds", [2, 3])
def test_the_far_tail_is_not_too_light_with_few_seeds(n_seeds):
    found = crossed_mean(drawn(5, n_seeds, 30, of_seed=1.0, of_image=0.5, rest=0.5, n=20_000))
    assert (found.t > found.critical(0.05 / 66)).mean() * 66 <= 0.06


def test_an_interval_for_new_seeds_and_images_is_wider_than_one_for_new_images_alone():
    values = drawn(13, 5, 30, of_seed=1.0)
    low, high = crossed_mean(values).interval()
    ends = stats.ttest_1samp(values.mean(0), 0).confidence_interval(0.95)
    assert high - low > ends.high - ends.low


# What each image adds.


def f1_of(sums):
    return {"f1": 2 * sums["tp"] / (2 * sums["tp"] + sums["wrong"])}


def test_what_an_image_adds_to_f1_is_its_jackknife_pseudo_value():
    terms = {"tp": np.array([3.0, 1.0, 2.0]), "wrong": np.array([2.0, 2.0, 2.0])}
    # F1 of all 12/18; without each: 6/10, 10/14 and 8/12
    whole, without = Fraction(12, 18), [Fraction(6, 10), Fraction(10, 14), Fraction(8, 12)]
    pseudo = [3 * whole - 2 * w for w in without]
    expected = [float(p + whole - sum(pseudo) / 3) for p in pseudo]
    assert contributions(terms, np.arange(3), f1_of)["f1"] == pytest.approx(expected)


def test_what_an_image_adds_to_a_mean_is_its_value():
    values = np.array([0.2, 0.9, 0.4, 0.4])
    found = contributions({"x": values, "n": np.ones(4)}, np.arange(4), lambda s: {"mean": s["x"] / s["n"]})
    assert found["mean"] == pytest.approx(values)


def test_images_of_a_cluster_are_one_unit():
    terms = {"x": np.array([1.0, 2.0, 6.0]), "n": np.ones(3)}
    found = contributions(terms, np.array([0, 0, 1]), lambda s: {"mean": s["x"] / s["n"]})
    # mean 3; without the first cluster 6, without the second 1.5; pseudo-values 0 and 4.5, moved by 0.75
    assert found["mean"] == pytest.approx([0.75, 5.25])


def test_clusters_are_numbered_not_sorted_by_image():
    terms = {"tp": np.array([3.0, 1.0, 2.0, 4.0]), "wrong": np.array([1.0, 5.0, 2.0, 0.0])}
    mixed = contributions(terms, np.array([1, 0, 1, 0]), f1_of)
    summed = contributions({"tp": np.array([5.0, 5.0]), "wrong": np.array([5.0, 3.0])}, np.arange(2), f1_of)
    assert mixed["f1"] == pytest.approx(summed["f1"])


def test_a_single_unit_is_the_metric_itself():
    found = contributions({"tp": np.array([3.0, 1.0]), "wrong": np.array([1.0, 1.0])}, np.array([0, 0]), f1_of)
    assert found["f1"] == pytest.approx([0.8])


def test_the_mean_over_units_is_the_metric_and_their_scatter_that_of_new_images():
    rng = np.random.default_rng(14)
    tp = rng.poisson(6, (3000, 40)).astype(float)
    wrong = rng.poisson(1 + 0.3 * tp)
    metric, variance = [], []
    for a, b in zip(tp, wrong, strict=True):
        found = contributions({"tp": a, "wrong": b}, np.arange(40), f1_of)["f1"]
        metric.append(2 * a.sum() / (2 * a.sum() + b.sum()))
        assert found.mean() == pytest.approx(metric[-1])
        variance.append(found.var(ddof=1) / 40)
    # the standard deviation of an estimated variance is sqrt(2 / 3000) = 2.6 % of it
    assert np.mean(variance) == pytest.approx(np.var(metric), rel=0.1)


def image_rows() -> pd.DataFrame:
    """Rows of random images with every part; the first and the fifth are empty."""
    rng = np.random.default_rng(15)
    pairs = [random_pair(seed) for seed in range(12)]
    nothing = np.zeros((5, 5), dtype=np.int32)
    pairs[0] = pairs[4] = (nothing, nothing)
    return pd.DataFrame([row_of(true, pred, probs=rng.random(true.shape)) for true, pred in pairs])


def terms_of(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    return image_terms({str(name): rows[name].to_numpy(dtype=float) for name in rows})


def test_metrics_of_many_sums_are_those_of_summarising_one_set_after_the_other():
    rows = image_rows()
    rng = np.random.default_rng(16)
    sets = [
        np.array([0]),
        np.array([0, 4]),
        np.arange(12),
        *(rng.integers(0, 12, rng.integers(1, 9)) for _ in range(40)),
    ]
    terms = terms_of(rows)
    found = metrics_of({name: np.array([values[s].sum() for s in sets]) for name, values in terms.items()})
    for i, chosen in enumerate(sets):
        one = summarise(rows.iloc[chosen])
        assert {key: value[i] for key, value in found.items()} == pytest.approx({key: one[key] for key in found})
        assert not any(np.isnan(value[i]) for value in found.values())
    assert set(one) - set(found) == {"medae", "medae_released", "n_images", "n_true", "n_pred"}


def test_metrics_without_one_image_are_those_of_the_others():
    rows = image_rows()
    terms = terms_of(rows)
    found = metrics_of({name: values.sum() - values for name, values in terms.items()})
    for i in range(len(rows)):
        one = summarise(rows.drop(index=i))
        assert {key: value[i] for key, value in found.items()} == pytest.approx({key: one[key] for key in found})


# How many it takes.


@pytest.mark.parametrize("mean", [1.0, 1.6, 2.2])
def test_more_seeds_are_the_fewest_whose_interval_is_narrow_enough(mean):
    values = drawn(17, 4, 10, of_seed=1.2)
    values = values + mean - values.mean()
    slow = slow_parts(values)
    level = 0.05 / 3

    def is_enough(n_seeds: int, n_images: int) -> bool:
        return mean > slow_half(slow["seed"], slow["image"], slow["rest"], n_seeds, n_images, level)

    seeds = next((n - 4 for n in range(5, 301) if is_enough(n, 10)), math.inf)
    ((more_seeds, more_images),) = more_needed(crossed_mean(values[None]), level)
    assert slow["seed"] > 0 and not is_enough(4, 10)
    assert more_seeds == seeds
    assert math.isinf(seeds) == (mean == 1.0) == (not is_enough(1000, 10))
    # four seeds that differ so much leave the interval wide on any number of images
    assert more_images == math.inf and not is_enough(4, 100_000)


def test_more_images_are_the_fewest_within_some_percent():
    values = drawn(18, 5, 10, of_seed=0.0, of_image=0.6, rest=1.0)
    values = values + 0.35 - values.mean()
    slow = slow_parts(values)
    seed = max(slow["seed"], 0.0)
    fewest = next(n - 10 for n in range(11, 2000) if slow_half(seed, slow["image"], slow["rest"], 5, n, 0.05) < 0.35)
    ((_, more_images),) = more_needed(crossed_mean(values[None]), 0.05)
    assert fewest <= more_images <= 1.03 * (fewest + 10)


def test_no_number_decides_no_difference():
    values = drawn(19, 3, 6)
    alike, same = values - values.mean(), np.zeros((3, 6))
    found = more_needed(crossed_mean(np.stack([same, alike])), 0.05)
    assert found[0] == (math.inf, math.inf)
    assert found[1] == (math.inf, math.inf)


def test_without_images_only_seeds_can_decide():
    by_seed = np.array([1.0, 3.0, 2.0, -1.0, 0.5])[:, None]
    mean, sd = by_seed.mean(), by_seed.std(ddof=1)
    fewest = next(n for n in range(6, 100) if stats.t.isf(0.025, n - 1) * sd / math.sqrt(n) < mean)
    assert more_needed(crossed_mean(by_seed[None]), 0.05) == [(fewest - 5, math.inf)]


def test_the_detectable_difference_is_the_middle_pairs_two_critical_values():
    by_seed = drawn(20, 5, 1, n=3)
    sizes = [(stats.t.isf(0.025, 4) + stats.t.isf(0.2, 4)) * np.std(v, ddof=1) / math.sqrt(5) for v in by_seed]
    assert detectable(crossed_mean(by_seed)) == pytest.approx(sorted(sizes)[1])


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five():
    known = CrossedMean(np.zeros(1), np.full(1, 0.5**2 / 5 + 1 / 200), np.full(1, 1 / 40), np.ones(1), 5, 40)
    found = crossed_mean(drawn(22, 5, 40, mean=detectable(known), of_seed=0.5, of_image=1.0, rest=1.0, n=20_000))
    assert (found.t > found.critical(0.05)).mean() == pytest.approx(0.8, abs=0.05)


def test_without_an_error_nothing_is_detectable():
    assert math.isnan(detectable(crossed_mean(np.array([[[0.3]]]))))


def test_what_no_trial_showed_may_still_happen():
    assert rate_interval(0, 5) == pytest.approx((0, 0.4507), abs=1e-4)  # 0.5493 to the fifth is 0.05
    assert rate_interval(5, 5) == pytest.approx((0.5493, 1), abs=1e-4)
    assert rate_interval(0, 300)[1] == pytest.approx(3 / 300, rel=0.01)


def test_a_rate_has_the_interval_of_clopper_and_pearson():
    exact = stats.binomtest(2, 5).proportion_ci(0.95, method="exact")
    assert rate_interval(2, 5) == pytest.approx((exact.low, exact.high))

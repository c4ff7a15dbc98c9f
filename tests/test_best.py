"""Which to take, what may be best and what it costs: against slow versions, classical tests and simulated truths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cellray.statistics import Bootstrap, best_of_k, find_best, look_ahead, moments, paired_tests, winner
from cellray.statistics.best import SEED_LOOKS


def study(means, sd=0.02, n_seeds=5, n_images=20, image=0.03, rest=0.04, seed=0):
    rng = np.random.default_rng(seed)
    k = len(means)
    values = np.asarray(means, dtype=float)[:, None, None] + 0.1 * rng.standard_normal((1, 1, n_images))
    values = values + np.broadcast_to(sd, k)[:, None, None] * rng.standard_normal((k, n_seeds, 1))
    return values + image * rng.standard_normal((k, 1, n_images)) + rest * rng.standard_normal((k, n_seeds, n_images))


def test_errors_are_those_of_the_crossed_analysis():
    """A slow version of se_ij² = (s_i² + s_j² - 2 C_ij s_i s_j) / n + b_ij."""
    values = study([0.8, 0.7, 0.75, 0.6], seed=3)
    k, n, n_images = values.shape
    of_seed = values.mean(2)
    s = of_seed.std(1, ddof=1)
    r = np.corrcoef(of_seed)
    middle = max(0.0, np.mean([r[i, j] for i, j in itertools.permutations(range(k), 2)]))
    rest = [np.var(v - v.mean(1, keepdims=True) - v.mean(0) + v.mean(), ddof=0) * n * n_images for v in values]
    rest = [x / ((n - 1) * (n_images - 1)) for x in rest]
    found = Bootstrap(moments(values))._errors(new_images=True) ** 2
    here = Bootstrap(moments(values))._errors(new_images=False) ** 2
    for i, j in itertools.permutations(range(k), 2):
        c = (r[i, j] + middle) / 2
        seeds = (s[i] ** 2 + s[j] ** 2 - 2 * c * s[i] * s[j]) / n
        between = np.var(values[i].mean(0) - values[j].mean(0), ddof=1)
        images = max(between - (rest[i] + rest[j]) / n, 0) / n_images
        assert here[i, j] == pytest.approx(seeds)
        assert found[i, j] == pytest.approx(seeds + images)


def test_two_independent_configurations_are_compared_by_about_welch():
    rng = np.random.default_rng(2)
    values = np.stack([0.8 + 0.02 * rng.standard_normal(15), 0.79 + 0.02 * rng.standard_normal(15)])[:, :, None]
    p = Bootstrap(moments(values), n_draws=20_000).pair_p()
    welch = stats.ttest_ind(values[0, :, 0], values[1, :, 0], equal_var=False).pvalue
    assert p[0, 1] == pytest.approx(welch, rel=0.35)
    assert p[1, 0] > 0.9


def test_the_statement_names_the_best_and_what_may_be():
    said = find_best(study([0.9, 0.9, 0.6, 0.5], sd=0.005, image=0.005, rest=0.005))
    assert list(said.may_be_best) == [True, True, False, False]
    assert said.take in (0, 1) and 0 < said.loss < 0.03
    assert said.ahead[said.take] == 0 and list(said.ahead[2:]) == [0, 0]
    assert said.losses[said.take] == said.loss == pytest.approx(max(said.ahead))
    alone = find_best(study([0.9, 0.6, 0.5], sd=0.005))
    assert alone.is_best and alone.loss == 0


def test_the_leader_is_named_where_every_comparison_alone_is_clear():
    steps = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    other = steps[[0, 2, 4, 1, 3]]

    def with_p(p, x):
        return stats.t.isf(p / 2, 4) * x.std(ddof=1) / math.sqrt(5) + x

    values = np.stack([np.zeros(5), -with_p(0.04, steps), -with_p(0.03, other)])[:, :, None]
    assert winner(values) == 0 and winner(values, 0.035) is None
    values[1] = -with_p(0.06, steps)[:, None]
    assert winner(values) is None


def test_fewer_than_three_runs_promise_nothing():
    values = study([0.9, 0.5], n_seeds=2)
    assert find_best(values) is None and winner(values) is None
    values = study([0.9, 0.8, 0.5])
    values[0, :3] = np.nan
    said = find_best(values)
    assert not said.may_be_best[0] and math.isnan(said.losses[0]) and said.take == 1


def test_one_that_lost_a_run_is_passed_over_but_bounds_the_loss():
    values = study([0.9, 0.85, 0.5], sd=0.005, image=0.005, rest=0.005)
    values[0, 2] = np.nan
    said = find_best(values, preferred=~np.isnan(values).any((1, 2)))
    assert said.take == 1 and said.may_be_best[0]
    assert 0.03 < said.ahead[0] == said.loss < 0.08


def test_a_very_wide_one_is_no_rival_unless_it_leads():
    sd = [0.004, 0.004, 0.004, 0.2]
    said = find_best(study([0.8, 0.79, 0.78, 0.6], sd=sd, image=0, rest=0.001, seed=1))
    assert math.isnan(said.losses[3]) and said.take != 3
    leading = find_best(study([0.6, 0.59, 0.58, 0.9], sd=sd, image=0, rest=0.001, seed=1))
    assert not np.isnan(leading.losses).any()


def test_configurations_without_scatter_are_told_apart():
    values = np.full((3, 4, 2), 0.5) + np.array([0.0, 0.1, 0.2])[:, None, None]
    said = find_best(values)
    assert said.take == 2 and said.is_best
    assert not find_best(np.full((2, 4, 2), 0.5)).is_best


def test_the_same_trials_give_the_same_statement():
    values = study([0.8, 0.79, 0.7])
    a, b = find_best(values), find_best(values.copy())
    assert a.loss == b.loss and (a.ahead == b.ahead).all()


def test_more_seeds_narrow_the_bound_down_to_what_images_leave():
    values = study([0.8, 0.8, 0.8], sd=0.03, n_images=8, image=0.08, seed=5)
    of = moments(values)
    on_new, here = (
        [Bootstrap(of.with_seeds(n)).statement(new_images=new).loss for n in (5, 14, 40)] for new in (True, False)
    )
    assert on_new[0] > on_new[1] > on_new[2] > 2 * here[2]
    assert here[2] < here[0] / 2


@pytest.mark.parametrize(("margin", "n_images"), [(0.12, 8), (0.03, 8), (0.03, 80), (0.01, 80)])
def test_what_more_seeds_would_do(margin, n_images):
    values = study([0.8, 0.8, 0.8], sd=0.05, n_images=n_images, image=0.08, seed=5)
    of, said = moments(values), find_best(values)

    def left(n, new):
        only = np.arange(3) == said.take
        return Bootstrap(of.with_seeds(n)).statement(new_images=new, preferred=only).losses[said.take]

    enough = [n for n in (7, 10, 14, 20, 28, 40) if left(n, True) <= margin]
    view = look_ahead(said, of, margin, new_images=True)
    assert view.n_seeds == (min(enough) if enough else None)
    assert view.loss == left(view.n_seeds or 40, True)
    if not enough:
        assert view.of_images == pytest.approx(left(2000, True), rel=0.2)
        assert view.lacks_images == (view.of_images > margin >= left(40, False))
    assert look_ahead(said, of.with_seeds(40), margin, new_images=True) is None


def test_unequal_numbers_of_seeds_count_as_they_are():
    values = study([0.8, 0.79, 0.6], n_seeds=14)
    values[2, 5:] = np.nan
    found = Bootstrap(moments(values))._errors(new_images=False)
    assert found[0, 1] < found[0, 2]
    assert find_best(values).take in (0, 1)


@pytest.mark.slow
def test_the_best_is_seldom_missed_and_the_bound_seldom_wrong():
    n, missed, wrong = 300, 0, 0
    for i in range(n):  # the first two are alike and best
        said = find_best(study([0.8, 0.8, 0.78, 0.75], sd=[0.02, 0.03, 0.01, 0.03], n_images=12, seed=i))
        missed += not said.may_be_best[0]
        wrong += max(0.8 - [0.8, 0.8, 0.78, 0.75][said.take], 0) > said.loss
    assert missed / n <= 0.06 and wrong / n <= 0.05


@pytest.mark.slow
def test_pairs_hold_together_where_none_differs():
    n, wrong = 200, 0
    for i in range(n):
        values = study([0.8] * 4, n_images=12, seed=1000 + i)
        wrong += bool(paired_tests(values, list("ABCD")).decided.any())
    assert wrong / n <= 0.09  # 0.05, and what 200 studies scatter


def test_looks_rise():
    assert list(SEED_LOOKS) == sorted(SEED_LOOKS) and SEED_LOOKS[0] == 5


# The best of several trainings.


def test_the_best_of_k_is_the_mean_over_all_choices():
    rng = np.random.default_rng(4)
    test, validation = rng.random((6, 1)), rng.random(6)
    picked = [test[max(chosen, key=lambda i: validation[i]), 0] for chosen in itertools.combinations(range(6), 3)]
    mean, low, high = best_of_k(test, validation, 3)
    assert mean == pytest.approx(np.mean(picked))
    assert low < mean < high


def test_the_best_of_one_is_the_mean_with_students_interval():
    test = np.random.default_rng(5).random((5, 1))
    interval = stats.ttest_1samp(test[:, 0], 0).confidence_interval(0.95)
    assert best_of_k(test, np.arange(5.0), 1) == pytest.approx((test.mean(), interval.low, interval.high))


def test_the_best_of_three_of_three_has_no_interval_and_of_two_no_value():
    test = np.array([[0.5], [0.9], [0.7]])
    assert best_of_k(test, np.array([0.1, 0.3, 0.2]), 3) == pytest.approx((0.9, math.nan, math.nan), nan_ok=True)
    assert np.isnan(best_of_k(test[:2], np.array([0.1, 0.3]), 3)).all()


def test_equal_validation_scores_are_kept_in_equal_shares():
    test = np.array([[0.0], [1.0], [0.4], [0.6]])
    assert best_of_k(test, np.zeros(4), 3)[0] == pytest.approx(0.5)


def test_a_lost_training_is_kept_only_where_all_are_lost():
    test, validation = np.array([[0.0], [0.0], [0.8], [0.6]]), np.array([-np.inf, -np.inf, 0.2, 0.1])
    # of four choices of three, the last but one is in three
    assert best_of_k(test, validation)[0] == pytest.approx((3 * 0.8 + 0.6) / 4)
    assert np.isnan(best_of_k(test, np.array([0.1, np.nan, 0.2, 0.3]))).all()


@pytest.mark.parametrize("n_images", [1, 3])
def test_of_equals_each_may_be_best_and_loses_nothing(n_images):
    one = np.array([1.0, 0.88, 1.0, 0.94, 0.89, 1.0])[:, None] * np.linspace(0.8, 1.0, n_images)
    found = find_best(np.stack([one, one]))
    assert found.may_be_best.tolist() == [True, True]
    assert found.losses == pytest.approx(0.0, abs=1e-4)
    third = find_best(np.stack([one, one, one - 0.5]))
    assert third.may_be_best.tolist() == [True, True, False]

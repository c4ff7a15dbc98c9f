"""The surface over three weights, against surfaces that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellray.errors import DataError
from cellray.statistics.simplex import fit_simplex, simplex_grid

TERMS = np.array([0.6, 0.7, 0.5, 0.8, 0.2, -0.3])


def surface(weights):
    """The true surface, term by term."""
    a, b, c = np.asarray(weights, dtype=float).T
    p = TERMS
    return p[0] * a + p[1] * b + p[2] * c + p[3] * a * b + p[4] * a * c + p[5] * b * c


def points(grid, *, se=0.01, noise=0.0, scale=1.0):
    """Rows of a study on that surface, with weights that needn't sum to 1."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame(scale * np.asarray(grid), columns=["a", "b", "c"])
    return table.assign(mean=surface(grid) + noise * rng.standard_normal(len(table)), se=se)


def test_a_known_surface_is_found_exactly_and_so_is_its_best_point():
    fit = fit_simplex(points(simplex_grid(4)))
    assert fit.coefficients == pytest.approx(TERMS)
    fresh = np.array([[0.15, 0.35, 0.5], [1, 0, 0], [0.2, 0.7, 0.1]])
    mean, _ = fit.predict(fresh)
    assert mean == pytest.approx(surface(fresh))
    # along c = 0: 0.6 a + 0.7 (1 - a) + 0.8 a (1 - a) is highest where -0.1 + 0.8 - 1.6 a = 0
    assert fit.best == pytest.approx([0.44, 0.56, 0.0])


def test_only_proportions_matter():
    assert fit_simplex(points(simplex_grid(4), scale=1.3)).coefficients == pytest.approx(TERMS)
    mean, error = fit_simplex(points(simplex_grid(4))).predict([[2, 2, 4], [0.25, 0.25, 0.5]])
    assert mean[0] == pytest.approx(mean[1])
    assert error[0] == pytest.approx(error[1])


def test_the_lowest_point_is_best_where_lower_is_better():
    # every edge from c = 1 begins upwards but the one to b: 0.5 c + 0.7 b - 0.3 b c is lowest at b = 0.1 / 0.6
    fit = fit_simplex(points(simplex_grid(4)), higher_is_better=False)
    assert fit.best == pytest.approx([0.0, 0.17, 0.83])


def test_standard_errors_are_those_of_weighted_least_squares():
    # six points for six terms: the surface goes through all of them, so its error there is theirs
    grid = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    errors = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    fit = fit_simplex(points(grid).assign(se=errors))
    mean, error = fit.predict(grid)
    assert mean == pytest.approx(surface(grid))
    assert error == pytest.approx(errors)


def test_scatter_beyond_the_standard_errors_widens_them():
    grid = simplex_grid(6)
    calm, rough = fit_simplex(points(grid, se=0.01)), fit_simplex(points(grid, se=0.01, noise=0.1))
    assert np.diag(rough.covariance).sum() > 20 * np.diag(calm.covariance).sum()


def test_without_standard_errors_the_scatter_gives_them():
    grid = simplex_grid(6)
    assert fit_simplex(points(grid).assign(se=np.nan)).covariance == pytest.approx(np.zeros((6, 6)), abs=1e-12)
    free = fit_simplex(points(grid, noise=0.1).assign(se=np.nan))
    # points that weigh alike, whatever the number: only the scatter counts
    assert free.covariance == pytest.approx(fit_simplex(points(grid, se=1e-6, noise=0.1)).covariance)


def test_the_region_grows_with_the_errors_and_holds_the_best_point():
    sharp, blurred = (fit_simplex(points(simplex_grid(6), se=se)) for se in (1e-4, 0.05))
    assert len(sharp.region) <= 2
    assert len(blurred.region) > 3 * len(sharp.region)
    for fit in (sharp, blurred):
        assert fit.region.sum(axis=1) == pytest.approx(np.ones(len(fit.region)))
        assert np.abs(fit.region - fit.best).max(axis=1).min() <= 0.025 + 1e-9


def test_the_same_points_give_the_same_region():
    first, second = (fit_simplex(points(simplex_grid(6), se=0.05)) for _ in range(2))
    assert np.array_equal(first.region, second.region)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda table: table.head(5), "don't determine"),
        (lambda table: table[table.c == 0], "don't determine"),
        (lambda table: table.drop(columns="se"), "se are missing"),
        (lambda table: table.assign(mean=np.nan), "not a number"),
        (lambda table: table.assign(a=-1.0), ">= 0"),
    ],
)
def test_points_that_give_no_surface_are_named(spoil, says):
    with pytest.raises(DataError, match=says):
        fit_simplex(spoil(points(simplex_grid(4))))


def test_nothing_is_claimed_beyond_the_measured_mixtures():
    inner = [(i, j, 6 - i - j) for i in range(1, 5) for j in range(1, 6 - i)]  # no weight below 1/6 or above 4/6
    points = pd.DataFrame(inner, columns=["a", "b", "c"], dtype=float) / 6
    points["mean"], points["se"] = points.a, 0.01  # rises towards the corner, which wasn't measured
    fit = fit_simplex(points)
    assert fit.best == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert fit.region.max() <= 4 / 6 + 1e-9
    assert fit.region.min() >= 1 / 6 - 1e-9

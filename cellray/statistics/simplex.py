"""A response over three weights that sum to 1: the surface of a mixture experiment, and where it is best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.spatial import Delaunay

from cellray.arrays import Floats
from cellray.errors import DataError

N_TERMS = 6
N_DRAWS = 2000


@dataclass(frozen=True)
class SimplexFit:
    """A quadratic surface over the weights (a, b, c), and its best point."""

    coefficients: Floats
    """Of a, b, c, ab, ac and bc; shape (6,)."""
    covariance: Floats
    """Of the coefficients; shape (6, 6)."""
    best: Floats
    """The best weights among the measured mixtures and those between them, to 0.01; shape (3,)."""
    region: Floats
    """Weights on a grid of 0.05, again between measured mixtures, that hold the best point with 95 % probability;
    shape (k, 3)."""

    def predict(self, weights: ArrayLike) -> tuple[Floats, Floats]:
        """The surface and its standard error.

        Args:
            weights: Three numbers >= 0 in each row; only their proportions matter. Shape (n, 3).

        Returns:
            Mean and standard error of the mean, shape (n,) each.
        """
        terms = mixture_terms(proportions(weights))
        variance = np.einsum("ij,jk,ik->i", terms, self.covariance, terms)
        return terms @ self.coefficients, np.sqrt(np.maximum(variance, 0.0))


def fit_simplex(points: pd.DataFrame, *, higher_is_better: bool = True) -> SimplexFit:
    """Fit Scheffé's quadratic mixture model by weighted least squares.

    y = p1 a + p2 b + p3 c + p12 ab + p13 ac + p23 bc, with weights 1/se². The covariance is that of the given
    standard errors, times how much the points scatter about the surface beyond these (never less than once; one
    point more than terms is needed to see it). Where a standard error is missing or 0, all points weigh alike and the
    scatter alone gives the covariance. The region of the best point comes from 2,000 surfaces drawn from the fit's
    normal distribution: the fewest grid points that hold the best point in 95 % of them. Nothing is claimed outside of
    the measured mixtures.

    Args:
        points: One row a configuration with the columns a, b, c (weights >= 0, of which only the proportions matter),
            mean and se.
        higher_is_better: Whether the best point is the highest.

    Raises:
        DataError: If a column or number is missing, or the points don't determine the six terms.

    References:
        Scheffé 1958, Experiments with mixtures, https://doi.org/10.1111/j.2517-6161.1958.tb00299.x
    """
    missing = {"a", "b", "c", "mean", "se"} - set(points)
    if missing:
        raise DataError(f"points of a simplex: columns {', '.join(sorted(missing))} are missing")
    measured = proportions(points[["a", "b", "c"]].to_numpy(dtype=float))
    terms = mixture_terms(measured)
    mean, se = (points[name].to_numpy(dtype=np.float64) for name in ("mean", "se"))
    if not np.isfinite(mean).all():
        raise DataError("points of a simplex: a mean is not a number")
    if np.linalg.matrix_rank(terms) < N_TERMS:
        raise DataError(f"{len(points)} points of a simplex don't determine the {N_TERMS} terms of its surface")
    has_errors = bool((np.isfinite(se) & (se > 0)).all())
    scale = se if has_errors else np.ones(len(se))
    scaled = terms / scale[:, None]
    covariance: Floats = np.linalg.inv(scaled.T @ scaled).astype(np.float64)
    coefficients = covariance @ scaled.T @ (mean / scale)
    n_spare = len(mean) - N_TERMS
    scatter = float((((mean - terms @ coefficients) / scale) ** 2).sum() / n_spare) if n_spare else 0.0
    covariance = covariance * (max(scatter, 1.0) if has_errors else scatter)
    sign = 1.0 if higher_is_better else -1.0
    fine = between(measured, simplex_grid(100))
    best = fine[int(np.argmax(sign * mixture_terms(fine) @ coefficients))]
    coarse = between(measured, simplex_grid(20))
    return SimplexFit(coefficients, covariance, best, best_region(coarse, coefficients, covariance, sign))


def between(measured: Floats, grid: Floats) -> Floats:
    """The grid points in the convex hull of the measured mixtures, and the mixtures themselves; shape (n, 3)."""
    inside = Delaunay(measured[:, :2]).find_simplex(grid[:, :2], tol=1e-9) >= 0
    return np.unique(np.concatenate([grid[inside], measured]).round(12), axis=0)


def best_region(grid: Floats, coefficients: Floats, covariance: Floats, sign: float) -> Floats:
    """The fewest grid points that hold the best point of 95 % of drawn surfaces."""
    # the square root of a matrix that may be singular, where a Cholesky factor would not exist
    values, vectors = np.linalg.eigh(covariance)
    normal = np.random.default_rng(0).standard_normal((N_DRAWS, N_TERMS))
    drawn = coefficients + (normal * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    winners = np.argmax(sign * drawn @ mixture_terms(grid).T, axis=1)
    share = np.bincount(winners, minlength=len(grid)) / N_DRAWS
    order = np.argsort(-share, kind="stable")
    n_needed = int(np.searchsorted(np.cumsum(share[order]), 0.95 - 1e-9)) + 1
    return grid[np.sort(order[:n_needed])]


def mixture_terms(weights: Floats) -> Floats:
    """a, b, c, ab, ac and bc of each row; shape (n, 6)."""
    a, b, c = weights.T
    return np.stack([a, b, c, a * b, a * c, b * c], axis=1)


def proportions(weights: ArrayLike) -> Floats:
    """Each row divided by its sum.

    Raises:
        DataError: If a weight is negative or a row sums to 0.
    """
    rows = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    total = rows.sum(axis=1, keepdims=True)
    if not ((rows >= 0).all() and (total > 0).all()):
        raise DataError("weights of a simplex: expected numbers >= 0 of which one at least is above 0")
    return rows / total


def simplex_grid(n: int) -> Floats:
    """Every point of the simplex whose weights are multiples of 1/n; shape ((n + 1)(n + 2)/2, 3)."""
    rows = [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]
    return np.array(rows, dtype=np.float64) / n

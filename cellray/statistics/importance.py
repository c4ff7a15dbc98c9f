"""How much of the variation of a search's score each parameter explains, and how much of that may be chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # optuna takes a second to import, and few reports need it
    from optuna.distributions import BaseDistribution

ENOUGH_CONFIGURATIONS = 8
"""Configurations below which a forest says nothing."""
N_REFITS = 20
N_TREES, N_TREES_RESAMPLED = 64, 16
DECADES = 2
"""A positive number that spans as many may have been searched on a logarithmic scale; see `_is_log`."""
NOISE = "random numbers"
"""A made-up parameter that explains nothing: what it gets, chance gives."""


@dataclass(frozen=True)
class ParameterShare:
    """One parameter's part of the variation of the score."""

    name: str
    """Dotted path."""
    value: float
    """In [0, 1]: the share of the forest's variance that the parameter alone explains."""
    low: float
    """The 5 % quantile of resamples of the configurations, or the value if that is lower."""
    high: float
    """The 95 % quantile, or the value if that is higher."""
    noise: float
    """What random numbers in the place of a parameter stay below in 95 % of the resamples."""
    n: int
    """Configurations that have the parameter, and from which all this comes."""

    @property
    def is_clear(self) -> bool:
        """Whether chance is an unlikely explanation: the low end lies above what random numbers get."""
        return self.low > self.noise


@dataclass(frozen=True)
class Importance:
    """Of every parameter that varies."""

    shares: list[ParameterShare] = field(default_factory=list)
    """Largest first."""
    missing: str = ""
    """Why there are none; empty if there are some."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Parameter -> the configurations that have it, where these are too few, or alike in all else."""


def importance_of(parameters: Sequence[Mapping[str, object]], values: Sequence[float]) -> Importance:
    """Functional analysis of variance of a random forest over the configurations (fANOVA), with its uncertainty.

    The forest learns the score from the parameters; a parameter's importance is the share of the forest's variance
    over the searched box that is left when all others are averaged out. The box is the range of the values tried. A
    parameter that only some configurations have (the exponent of one loss, say) is judged among those. Each of 20
    resamples of the configurations gets a further parameter of random numbers: its share is what chance gives.

    Args:
        parameters: One mapping a configuration: dotted path -> number, flag or word.
        values: Its score; finite.

    References:
        Hutter, Hoos and Leyton-Brown 2014, An efficient approach for assessing hyperparameter importance,
        https://proceedings.mlr.press/v32/hutter14.html
    """
    names = list(dict.fromkeys(name for mine in parameters for name in mine))
    having = {name: tuple(i for i, mine in enumerate(parameters) if name in mine) for name in names}
    varying = {name: rows for name, rows in having.items() if len({_word(parameters[i][name]) for i in rows}) > 1}
    if len(values) < ENOUGH_CONFIGURATIONS:
        few = f"{len(values)} finished configurations with parameters; it takes {ENOUGH_CONFIGURATIONS}."
        return Importance(missing=few)
    if np.ptp(values) < 1e-9:
        return Importance(missing="all configurations have the same score.")
    if not varying:
        return Importance(missing="no parameter took two values.")
    shares: list[ParameterShare] = []
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, rows in varying.items():
        groups.setdefault(rows, []).append(name)
    for rows, asked in groups.items():
        score = np.array([values[i] for i in rows])
        if len(rows) < ENOUGH_CONFIGURATIONS or np.ptp(score) < 1e-9:
            continue
        # what all of them have, and what varies among them: the asked ones and those that more configurations have
        common = {
            name: [parameters[i][name] for i in rows]
            for name, have in having.items()
            if set(rows) <= set(have) and len({_word(parameters[i][name]) for i in rows}) > 1
        }
        if len(common) > 1:  # alone, a parameter would have all of it whatever it does
            shares += _shares(common, score, asked)
    left_out = {name: len(rows) for name, rows in varying.items() if name not in {share.name for share in shares}}
    shares.sort(key=lambda share: (-share.value, share.name))
    return Importance(shares, "" if shares else "no two parameters vary among enough configurations.", left_out)


def _shares(columns: Mapping[str, list[object]], score: np.ndarray, asked: Sequence[str]) -> list[ParameterShare]:
    """The shares of the asked parameters, given columns for all that the same configurations have."""
    rng = np.random.default_rng(0)
    whole = _fanova(columns, score, N_TREES, seed=0)
    draws: dict[str, list[float]] = {name: [] for name in (*asked, NOISE)}
    for seed in range(N_REFITS):
        rows = rng.integers(len(score), size=len(score))
        widened = {**columns, NOISE: list(rng.random(len(score)))}
        found = _fanova({k: [v[i] for i in rows] for k, v in widened.items()}, score[rows], N_TREES_RESAMPLED, seed)
        for name, drawn in draws.items():
            drawn.append(found.get(name, 0.0))
    noise = float(np.quantile(draws[NOISE], 0.95))
    shares = []
    for name in asked:
        # the whole has no configuration twice, and so explains a little more
        low, high = np.quantile(draws[name], (0.05, 0.95))
        low, high = min(float(low), whole[name]), max(float(high), whole[name])
        shares.append(ParameterShare(name, whole[name], low, high, noise, len(score)))
    return shares


def _fanova(columns: Mapping[str, list[object]], score: np.ndarray, n_trees: int, seed: int) -> dict[str, float]:
    """Importance of each column in one forest; 0 throughout where the score or the columns don't vary."""
    import optuna

    spaces, made = {}, {}
    for name, column in columns.items():
        spaces[name], made[name] = _scaled(column)
    if np.ptp(score) < 1e-12:
        return dict.fromkeys(columns, 0.0)
    with _quiet():
        study = optuna.create_study()
        for i, value in enumerate(score):
            mine = {name: column[i] for name, column in made.items()}
            study.add_trial(optuna.trial.create_trial(params=mine, distributions=spaces, value=float(value)))
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=n_trees, seed=seed)
        return {name: float(share) for name, share in evaluator.evaluate(study).items()}


def _scaled(column: list[Any]) -> tuple[BaseDistribution, list[Any]]:
    """The box of one parameter and its values in it: the range tried, or the words tried."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in column):
        words = [_word(value) for value in column]
        known = sorted(set(words))
        if len(known) == 2:  # as 0 and 1: with a column for each word, half of the box would be both or none
            return IntDistribution(0, 1), [known.index(word) for word in words]
        return CategoricalDistribution(known), words
    if _is_log(column):
        logs = [math.log10(value) for value in column]
        return FloatDistribution(min(logs), max(logs)), logs
    low, high = min(column), max(column)
    if all(isinstance(value, int) for value in column):
        return IntDistribution(low, high), column
    return FloatDistribution(float(low), float(high)), [float(value) for value in column]


def _is_log(column: list[float]) -> bool:
    """Whether numbers were tried by their logarithm: over decades, with the median nearer the middle on that scale.

    A weight between 0 and 1 may span decades too, by a value that happens to lie near 0.
    """
    low, high = min(column), max(column)
    if low <= 0 or high / low < 10**DECADES:
        return False
    median = float(np.median(column))
    place = (median - low) / (high - low)
    place_of_log = math.log(median / low) / math.log(high / low)
    return abs(place_of_log - 0.5) < abs(place - 0.5)


def _word(value: object) -> str:
    """A value as text, to compare and to choose among."""
    return str(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna would announce each study that it makes."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

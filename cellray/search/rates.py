"""Which learning rate a configuration is trained at: a few are tried, the same for every loss, on seeds of their own.

Each decision is a function of results that are there by then in any case, as in `rules`. Test images have no say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from cellray.ledger import Ledger
from cellray.record import TrialRecord, TriedRate
from cellray.study import Study, Trial, TuneConfig
from cellray.trial import Sets

FIRST_SEED = 1000
"""Seeds of the tries are the first from here that the study doesn't have."""
MOST_BEYOND = 2
"""Rates that are tried beyond the ladder's ends, in all."""


class Ladder(NamedTuple):
    """What is known of one configuration's learning rate."""

    tried: tuple[TriedRate, ...]
    """Rising."""
    missing: list[Trial]
    """Those to be run before more can be said."""
    lr: float | None
    """The chosen rate, once nothing is missing."""


class Rates:
    """The learning rates that were tried for the configurations of a study.

    Args:
        study: Whose rates.
        sets: Its data.
        ledger: Its ledger; the tries lie in the folder `rates` of it.
    """

    def __init__(self, study: Study, sets: Sets, ledger: Ledger) -> None:
        self._sets, self._ledger, self._seeds = sets, ledger.within("rates"), study.seeds
        self._dice: dict[str, float] = {}

    @cached_property
    def _stored(self) -> dict[str, TrialRecord]:
        return {record.key: record for record in self._ledger.records()}

    def ended(self, attempt: Trial) -> str:
        """A try doesn't run any more: read what came of it. Returns its key."""
        key = self._sets.keys(attempt)[0]
        record = self._ledger.record(key)
        if record is not None:
            self._stored[key] = record
        return key

    def now(self, trial: Trial) -> Ladder:
        """How far a configuration is, of which this is a trial."""
        config = trial.training.tune
        tried: dict[float, list[float | None]] = {}
        missing: list[Trial] = []
        while not missing:
            new = [rate for rate in rates_to_try(config, _means(tried)) if rate not in tried]
            if not new:
                break
            for rate in new:
                attempts = attempts_at(rate, trial, self._seeds)
                tried[rate] = [self._result(attempt) for attempt in attempts]
                missing += [a for a, dice in zip(attempts, tried[rate], strict=True) if dice is None]
        found = tuple(TriedRate(lr=rate, dice=tuple(tried[rate])) for rate in sorted(tried))
        return Ladder(found, missing, None if missing else best_rate(_means(tried)))

    def _result(self, attempt: Trial) -> float | None:
        """The best validation Dice of a training, 0 if it was lost; None if it isn't done."""
        key = self._sets.keys(attempt)[0]
        if key not in self._stored:
            return None
        if key not in self._dice:
            found = [] if self._stored[key].is_lost else [row["val_dice"] for row in self._ledger.history(key)]
            self._dice[key] = max((dice for dice in found if math.isfinite(dice)), default=0.0)
        return self._dice[key]


def attempts_at(rate: float, trial: Trial, seeds: Sequence[int]) -> list[Trial]:
    """The trainings that try a rate: shorter ones, with seeds that aren't among these.

    Args:
        rate: To be tried.
        trial: One of the configuration.
        seeds: Of the study.
    """
    training, config = trial.training, trial.training.tune
    length = {
        name: math.ceil(config.share * whole)
        for name, whole in (("epochs", training.epochs), ("steps", training.steps))
        if whole is not None
    }
    shorter = training.model_copy(update={"lr": rate, **length})
    own = itertools.islice((seed for seed in itertools.count(FIRST_SEED) if seed not in seeds), config.seeds)
    return [trial.model_copy(update={"seed": seed, "training": shorter, "tries_rate": True}) for seed in own]


def rates_to_try(config: TuneConfig, means: Mapping[float, float]) -> list[float]:
    """The rates that must be tried, rising, by what is known of some.

    Args:
        config: The ladder.
        means: Rate -> mean validation Dice, of those that are done.
    """
    rates = list(config.rates)
    while len(rates) < len(config.rates) + MOST_BEYOND and all(rate in means for rate in rates):
        best = best_rate({rate: means[rate] for rate in rates})
        if best == rates[0]:
            rates.insert(0, _beyond(rates[0], rates[1]))
        elif best == rates[-1]:
            rates.append(_beyond(rates[-1], rates[-2]))
        else:
            break
    return rates


def best_rate(means: Mapping[float, float]) -> float:
    """The rate with the highest mean; of equal ones the lowest."""
    return min(means, key=lambda rate: (-means[rate], rate))


def _beyond(edge: float, neighbour: float) -> float:
    """The next rate in the direction from the neighbour to the edge."""
    return float(f"{edge * edge / neighbour:.2g}")


def _means(tried: Mapping[float, Sequence[float | None]]) -> dict[float, float]:
    """The mean of each rate that is done."""
    known = {rate: [d for d in dice if d is not None] for rate, dice in tried.items()}
    return {rate: sum(found) / len(found) for rate, found in known.items() if len(found) == len(tried[rate])}

"""Which configurations are ended early, and which get no more seeds: rules over numbers, in a fixed order.

Each decision is a function of results that are there by then in any case, so it is the same however many trials run at
once and whichever ends first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cellray.statistics import ALPHA, SEED_LOOKS, Statement, find_best, look_ahead, moments
from cellray.study import StoppingConfig


def goes_on(config: StoppingConfig, value: float, earlier: Sequence[float]) -> bool:
    """Whether a configuration goes on beyond a rung.

    Args:
        config: The rule.
        value: Its mean over seeds of the validation Dice there; a seed that collapsed or failed counts 0.
        earlier: The values of the configurations before it that came to this rung.

    References:
        Li et al. 2020 (ASHA), https://arxiv.org/abs/1810.05934; Golovin et al. 2017 (median rule)
    """
    if len(earlier) < config.grace:
        return True
    if config.rule == "median":
        return value >= float(np.median(earlier))
    n_best = math.ceil((len(earlier) + 1) / config.eta)
    return sum(other > value for other in earlier) < n_best


def rung_epochs(config: StoppingConfig, n_epochs: int, validate_every: int) -> list[int]:
    """The epochs at which a training is looked at: the first validation at or after each share of it.

    Args:
        config: The rule.
        n_epochs: Of the training.
        validate_every: Epochs from validation to validation.
    """
    epochs = {math.ceil(share * n_epochs / validate_every - 1e-9) * validate_every for share in config.shares}
    return sorted(epoch for epoch in epochs if epoch < n_epochs)


ENOUGH_TO_TELL = 10
"""Seeds from which it can be told whether more of them, or images, are what is lacking."""
CLEARLY = 1.5
"""Times the margin that images alone must leave with fewer seeds."""


@dataclass(frozen=True)
class SeedLook:
    """What is known when all trials given so far have ended, and who needs further seeds."""

    said: Statement | None
    """None: too few runs ended for any statement."""
    alpha: float
    """Its probability of being wrong."""
    margin: float
    """A difference that doesn't matter."""
    needs: tuple[int, ...] = ()
    """Those that keep the answer open, by number; the recommended one among them. Empty: nothing is to be run."""
    n_seeds: int = 0
    """Up to which they need seeds."""
    note: str = ""
    """Why nothing more is to be run."""

    def words(self, i: int, labels: Sequence[str]) -> str:
        """What is known of one configuration."""
        if self.said is None or math.isnan(self.said.losses[self.said.take]):
            return ""
        best = labels[self.said.take]
        if i == self.said.take:
            return f"recommended: loses at most {self.said.loss:.3f}"
        if self.said.ahead[i] > self.margin:
            return f"may be better than {best} by up to {self.said.ahead[i]:.3f}"
        return f"not better than {best} by more than {self.margin:.3g}"


def looks(first: int, n_configurations: int, most_trials: int | None) -> tuple[int, ...]:
    """Numbers of seeds at which a study looks: the first, and those of `SEED_LOOKS` that its trials allow for two."""
    spare = math.inf if most_trials is None else most_trials - first * n_configurations
    return (first, *(n for n in SEED_LOOKS if n > first and 2 * (n - first) <= spare))


def alpha_of(look: int, n_looks: int) -> float:
    """The share of a look in the 5 %: the shares add up to that, and later ones, with more seeds, have more."""
    shares = [4 + i for i in range(n_looks)]
    return ALPHA * shares[look] / sum(shares)


def look_at(
    values: np.ndarray,
    given: Sequence[int],
    planned: Sequence[int],
    margin: Callable[[float], float],
    preferred: np.ndarray | None = None,
    *,
    given_before: int = 0,
) -> SeedLook:
    """Who needs further seeds: the recommended one, and those that may be better than it by more than the margin.

    Args:
        values: Of the runs that ended, as for `statistics.find_best`; shape (k, n_seeds, n_units).
        given: Seeds given to each so far; the most is one of `planned`.
        planned: Of `looks`.
        margin: A difference that doesn't matter, for a score.
        preferred: As for `find_best`.
        given_before: Seeds that one has been given already, by a sweep before this one: no look before that ends it.
    """
    place = planned.index(max(given))
    alpha = alpha_of(place, len(planned))
    said = find_best(values, alpha=alpha, preferred=preferred)
    if said is None:
        return SeedLook(None, alpha, math.nan, note="too few runs ended to compare")
    within = margin(float(np.nanmean(values[said.take])))
    if said.loss <= within:
        return SeedLook(said, alpha, within, note=f"decided within {within:.3g}")
    if place + 1 == len(planned):
        why = "no configuration is given more" if planned[-1] >= SEED_LOOKS[-1] else "the budget allows no more of two"
        return SeedLook(said, alpha, within, note=f"after {planned[-1]} seeds {why}")
    view = look_ahead(said, moments(values), within, new_images=values.shape[2] > 1)  # even at 5 %
    clearly = within if max(given) >= ENOUGH_TO_TELL else CLEARLY * within
    if view is not None and view.lacks_images and view.of_images > clearly and max(given) >= given_before:
        note = f"test images are lacking, not seeds: any number of these would leave {view.of_images:.3f}, above "
        return SeedLook(said, alpha, within, note=f"{note}{within:.3g}")
    return SeedLook(said, alpha, within, tuple(said.open_within(within)), planned[place + 1])


def by_old_rule(within: float) -> str:
    """How older studies ended that lacked images, by a rule that asked for 40 seeds of each and not for any number."""
    return f"test images are lacking, not seeds: with 40 of each it would still not be decided within {within:.3g}"

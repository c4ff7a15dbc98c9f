"""Which configurations are ended early, and which get no more seeds: rules over numbers, in a fixed order.

Each decision is a function of results that are there by then in any case, so it is the same however many trials run at
once and whichever ends first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cellray.statistics import ALPHA, paired_tests
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


def outclassed(values: np.ndarray, labels: Sequence[str], n_rivals: int) -> dict[str, tuple[str, float, float]]:
    """Configurations whose paired interval against the leader lies below 0, also when all rivals are counted.

    Args:
        values: Higher is better, as for `paired_tests`: shape (n_configurations, n_seeds, n_units), with the same
            seeds for all.
        labels: Of the configurations.
        n_rivals: Of each configuration at the race's start, also of those that are dropped by now: as in
            `statistics.contenders`, the one-sided p must be below 0.05 / `n_rivals`. That a race looks again and again
            isn't counted.

    Returns:
        Label -> the leader, and the 95 % interval of the leader's lead.
    """
    pairs = paired_tests(values, labels, detail=False, leader_only=True)
    rows = zip(pairs.a, pairs.b, pairs.low.astype(float), pairs.high.astype(float), pairs.p, strict=True)
    return {b: (a, low, high) for a, b, low, high, p in rows if low > 0 and p / 2 * n_rivals < ALPHA}

"""Is a loss what its name and its settings say? Tiny drawn images, no data, no GPU, some 30 ms.

Each check looks at values and gradients alone, so it serves a user's own loss as well as the registered ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from cellray.losses.bound import Loss
from cellray.losses.check.activation import (
    check_activation,
    check_double_activation,
    check_floor,
    check_probabilities,
)
from cellray.losses.check.inputs import check_maps, check_precision, check_words
from cellray.losses.check.looking import LossError, Status, Verdict
from cellray.losses.check.numerics import check_finite, check_gradient, check_invariance, check_reduction
from cellray.losses.check.weights import check_weights
from cellray.losses.check.whole_cells import (
    check_masks,
    check_missed_or_spurious,
    check_object_size,
    check_wrong_class,
)

__all__ = ["CHECKS", "Finding", "Status", "check_loss"]

CHECKS: dict[str, Callable[[Loss], Iterator[Verdict]]] = {
    "probabilities": check_probabilities,
    "double_activation": check_double_activation,
    "activation": check_activation,
    "floor": check_floor,
    "weights": check_weights,
    "words": check_words,
    "maps": check_maps,
    "wrong_class": check_wrong_class,
    "missed_or_spurious": check_missed_or_spurious,
    "object_size": check_object_size,
    "masks": check_masks,
    "finite": check_finite,
    "precision": check_precision,
    "reduction": check_reduction,
    "invariance": check_invariance,
    "gradient": check_gradient,
}
"""What is checked, in order; a study's `allow:` lists these names."""


@dataclass(frozen=True)
class Finding:
    """What one check says of a loss."""

    check: str
    """A key of `CHECKS`."""
    status: Status
    """`failure` is a fault, `warning` is worth knowing."""
    figure: str
    """What was measured, short."""
    reason: str
    """A sentence; empty for a pass."""


def check_loss(loss: Loss) -> list[Finding]:
    """Look at a loss on tiny images.

    Args:
        loss: With its settings. Weights and activations are judged term by term too, the rest on the sum.

    Returns:
        At least one finding for each of `CHECKS`, in that order. A loss that raises an error fails; nothing is raised.
    """
    findings = []
    # A loss may draw random numbers: leave the caller's generator alone.
    with torch.random.fork_rng(devices=[]):
        for name, check in CHECKS.items():
            torch.default_generator.manual_seed(0)  # of the CPU alone
            try:
                findings += [Finding(name, *verdict) for verdict in check(loss)]
            except LossError as error:
                findings.append(Finding(name, "failure", "error", str(error)))
    return findings

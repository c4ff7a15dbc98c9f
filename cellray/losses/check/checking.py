"""Is a loss what its name and its settings say? Tiny drawn images, no data, no GPU, some 30 ms.

Each check looks at values and gradients alone, so it serves a user's own loss as well as the registered ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name

import torch

from cellray.losses.bound import Loss
from cellray.losses.check.looking import LossError, Status
from cellray.losses.check.names import CHECKS


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
        for name, place in CHECKS.items():
            torch.default_generator.manual_seed(0)  # of the CPU alone
            try:
                findings += [Finding(name, *verdict) for verdict in resolve_name(f"cellray.losses.check.{place}")(loss)]
            except LossError as error:
                findings.append(Finding(name, "failure", "error", str(error)))
    return findings

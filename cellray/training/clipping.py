"""Gradients that are far longer than a training's usual ones, made shorter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Clipping:
    """Shortens a step's gradient to some multiple of the median norm of the steps before it; a GPU is not waited for.

    Losses differ in size by orders of magnitude, so that no fixed length fits them all. Steps without any gradient
    have no say in what is usual.

    Args:
        factor: The multiple.
        parameters: Whose gradients.
        steps: Of the whole training.
        device: Where it runs.

    References:
        Seetharaman et al. 2020 (AutoClip), https://arxiv.org/abs/2007.14469
    """

    def __init__(self, factor: float, parameters: Iterable[nn.Parameter], steps: int, device: torch.device) -> None:
        self.factor, self.parameters = factor, list(parameters)
        self.norms = torch.full((steps,), torch.nan, device=device)
        """Of each step's gradient, before it was shortened; NaN where it was 0 or the step is to come."""

    def shorten(self, step: int) -> None:
        """Shorten the gradient of a step, from 0, if it is too long."""
        gradients: list[Tensor] = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.norms[step] = torch.where(norm > 0, norm, torch.nan)
        if step:
            longest = self.factor * self.norms[:step].nanmedian()
            torch._foreach_mul_(gradients, (longest / norm).nan_to_num(nan=1.0).clamp(max=1.0))

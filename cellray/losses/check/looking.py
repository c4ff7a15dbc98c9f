"""Value and gradient of a loss on a scene, and what the checks share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from cellray.losses.bound import Loss, Term
from cellray.losses.check.scenes import Scene

Status = Literal["pass", "warning", "failure"]
Verdict = tuple[Status, str, str]
"""Status, figure, reason."""

NEAR = 1e-3
"""Two values are the same within this part of what knowing nothing (z = 0) costs."""

FAINT = 1e-4
"""A gradient below this part of an ordinary one teaches nothing."""


class LossError(Exception):
    """The checked loss raised an error, or what it returned is no loss."""


def value_of(loss: Loss, logits: Tensor, scene: Scene) -> float:
    """What a prediction costs.

    Raises:
        LossError: If the loss raises an error or returns no single number.
    """
    with torch.no_grad():
        return _compute(loss, logits, scene).item()


def gradient_of(loss: Loss, logits: Tensor, scene: Scene) -> tuple[float, Tensor]:
    """Value, and gradient with respect to the logits.

    Raises:
        LossError: As `value_of`, or if there is no gradient.
    """
    leaf = logits.clone().requires_grad_()
    value = _compute(loss, leaf, scene)
    if not value.requires_grad:
        raise LossError("It has no gradient: something on the way from the logits can't be differentiated.")
    try:
        value.backward()
    except Exception as error:
        raise LossError(_first_line(error)) from error
    return value.item(), torch.zeros_like(logits) if leaf.grad is None else leaf.grad


def what_is_not_finite(loss: Loss, logits: Tensor, scene: Scene) -> str:
    """Such as `value is nan`; empty if value and gradient are finite."""
    value, gradient = gradient_of(loss, logits, scene)
    if not math.isfinite(value):
        return f"value is {value}"
    bad = gradient[~gradient.isfinite()]
    return f"gradient is {bad[0].item()}" if bad.numel() else ""


def floor_of(loss: Loss) -> float:
    """What the functions state that a perfect prediction costs."""
    return sum(term.weight * float(getattr(term.function, "floor", 0.0)) for term in loss.terms)


def only(loss: Loss, term: Term) -> Loss:
    """The loss of one term, with weight 1."""
    return replace(loss, terms=(replace(term, weight=1.0),))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compute(loss: Loss, logits: Tensor, scene: Scene) -> Tensor:
    try:
        # A copy, since a loss that writes into its target would spoil the scene for the others.
        value = loss(logits, scene.target.clone(), scene.maps)
    except Exception as error:
        raise LossError(_first_line(error)) from error
    if value.shape != ():
        raise LossError(f"It returns a tensor of {value.ndim} dimensions; a loss is one number.")
    return value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"It raises {type(error).__name__}: {lines[0]}" if lines else f"It raises {type(error).__name__}."

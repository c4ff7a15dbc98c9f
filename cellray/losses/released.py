"""Losses as the code released with the reference study computes them, faults included.

Kept so that a study can train with them and show what the faults do; `cellray.losses.LOSSES` has the sound ones. Two
things differ. The network's output has been through a sigmoid already when these losses apply a softmax to
``[1 - p, p]``, and the Tversky index counts both channels of that together.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cellray.losses.contract import Positive
from cellray.losses.overlap import dice_loss, tversky
from cellray.losses.pixel import bce_loss, focal_loss
from cellray.losses.sums import soft_counts
from cellray.torch_later import Tensor


def activated_twice(logits: Tensor) -> Tensor:
    """Logits after a second activation: those of softmax([1 - p, p]), ``2 * sigmoid(logits) - 1`` in [-1, 1].

    The probability that a loss sees is confined to [0.269, 0.731] by that.
    """
    return 2 * logits.float().sigmoid() - 1


def flattened_tversky_loss(
    logits: Tensor, target: Tensor, *, fp_weight: float = 0.3, fn_weight: float = 0.7, smooth: Positive = 1e-6
) -> Tensor:
    """Tversky loss of cells and background in one: the counts run over both classes and the whole batch.

    A false positive of one class is a false negative of the other, so FP = FN and the weights cancel: where they add up
    to 1, this is the mean probability of the wrong class, without protection against imbalance.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        fp_weight: Only its sum with fn_weight has an effect.
        fn_weight: Only its sum with fp_weight has an effect.
        smooth: In pixels, > 0.

    Returns:
        Scalar in [0, 1]; 0 at a perfect prediction.

    Raises:
        ShapeError: If the shapes differ.
    """
    _, fp, fn = soft_counts(logits, target, "batch")
    wrong = fp + fn
    return tversky(target.numel() - wrong, wrong, wrong, fp_weight, fn_weight, smooth).mean()


def flattened_focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    exponent: Annotated[float, Field(ge=1)] = 4 / 3,
    smooth: Positive = 1e-6,
) -> Tensor:
    """``flattened_tversky_loss ^ exponent``.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        fp_weight: Only its sum with fn_weight has an effect.
        fn_weight: Only its sum with fp_weight has an effect.
        exponent: >= 1.
        smooth: In pixels, > 0.

    Returns:
        Scalar in [0, 1]; 0 at a perfect prediction.

    Raises:
        ShapeError: If the shapes differ.
    """
    return flattened_tversky_loss(logits, target, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth).pow(exponent)


def released_bce_loss(
    logits: Tensor, target: Tensor, *, cell_weight: float = 1.0, background_weight: float = 1.0
) -> Tensor:
    """`bce_loss` after a second activation: at least 0.313 where both weights are 1.

    Arguments, result and errors are those of `bce_loss`.
    """
    return bce_loss(activated_twice(logits), target, cell_weight=cell_weight, background_weight=background_weight)


def released_dice_loss(logits: Tensor, target: Tensor, *, smooth: Positive = 1e-6) -> Tensor:
    """`dice_loss` after a second activation: an image without cells always costs 1.

    Arguments, result and errors are those of `dice_loss`.
    """
    return dice_loss(activated_twice(logits), target, smooth=smooth)


def released_focal_loss(logits: Tensor, target: Tensor, *, exponent: float = 2.0) -> Tensor:
    """`focal_loss` after a second activation.

    Arguments, result and errors are those of `focal_loss`.
    """
    return focal_loss(activated_twice(logits), target, exponent=exponent)


def released_focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    exponent: Annotated[float, Field(ge=1)] = 4 / 3,
    smooth: Positive = 1e-6,
) -> Tensor:
    """`flattened_focal_tversky_loss` after a second activation: what the reference study trained as Focal Tversky.

    Arguments and errors are those of `flattened_focal_tversky_loss`.

    Returns:
        Scalar in [0.174, 0.659] at the default settings, the lower end being a perfect prediction.
    """
    return flattened_focal_tversky_loss(
        activated_twice(logits), target, fp_weight=fp_weight, fn_weight=fn_weight, exponent=exponent, smooth=smooth
    )

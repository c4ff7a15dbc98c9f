"""Training losses: pure functions of raw logits and a binary mask.

Every loss takes ``(logits, target, *, settings...)`` and returns a scalar. Logits are raw scores: the activation
happens here and only here. Sums over pixels run per image, in float32, and are then averaged over the batch, so that
an image costs the same whatever its neighbours in the batch are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from cellray.errors import ShapeError

Positive = Annotated[float, Field(gt=0)]
"""What a study may give for this keyword; a plain float may be 0 too."""


def bce_loss(logits: Tensor, target: Tensor, *, cell_weight: float = 1.0, background_weight: float = 1.0) -> Tensor:
    """Weighted binary cross-entropy, averaged over all pixels of all images.

    A pixel costs ``-(cell_weight * y * log p + background_weight * (1 - y) * log(1 - p))``. The weights are not
    normalised, so a larger one also means a larger loss.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        cell_weight: Cost of a cell pixel, >= 0; beta or w_cell in the reference study.
        background_weight: Cost of a background pixel, >= 0; w_bkgd there.

    Returns:
        Scalar >= 0; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.
    """
    check_shapes(logits, target)
    z, y = logits.float(), target.float()
    # -log p = softplus(-z), -log(1 - p) = softplus(z): finite at any logit.
    cost = background_weight * functional.softplus(z)
    if cell_weight == background_weight:
        return (cost - background_weight * y * z).mean()
    return torch.where(y > 0.5, cell_weight * functional.softplus(-z), cost).mean()


def dice_loss(logits: Tensor, target: Tensor, *, smooth: Positive = 1e-6) -> Tensor:
    """Soft Dice loss of the cell class, averaged over the images of a batch.

    Each image costs ``1 - (2 TP + smooth) / (sum y + sum p + smooth)`` with soft pixel counts.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        smooth: In pixels, > 0. Makes an image without cells cost 0 if nothing is predicted there; a small value makes
            it cost almost 1 as soon as anything is.

    Returns:
        Scalar in [0, 1].

    Raises:
        ShapeError: If the shapes differ.

    References:
        Milletari et al. 2016, https://arxiv.org/abs/1606.04797 (which squares the terms of the denominator).
    """
    check_shapes(logits, target)
    tp, fp, fn = soft_counts(logits, target)
    return (1 - (2 * tp + smooth) / (2 * tp + fp + fn + smooth)).mean()


def focal_loss(
    logits: Tensor, target: Tensor, *, exponent: float = 2.0, cell_weight: float = 1.0, background_weight: float = 1.0
) -> Tensor:
    """Focal loss: cross-entropy in which pixels that are already right count little, averaged over all pixels.

    A pixel costs ``-weight * (1 - p_t)^exponent * log p_t`` with p_t the probability of its true class.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        exponent: gamma in the paper, >= 0; at 0 this is `bce_loss`.
        cell_weight: alpha of cell pixels in the paper, >= 0; the reference study leaves both weights at 1.
        background_weight: 1 - alpha in the paper, >= 0.

    Returns:
        Scalar >= 0; 0 at a perfect prediction.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """
    check_shapes(logits, target)
    z, y = logits.float(), target.float()
    signed = torch.where(y > 0.5, z, -z)  # logit of the true class
    # (1 - p_t)^exponent through the logarithm: its gradient stays finite where p_t rounds to 1.
    cost = torch.exp(exponent * functional.logsigmoid(-signed)) * functional.softplus(-signed)
    return (torch.where(y > 0.5, cell_weight, background_weight) * cost).mean()


def tversky_loss(
    logits: Tensor, target: Tensor, *, fp_weight: float = 0.5, fn_weight: float = 0.5, smooth: Positive = 1.0
) -> Tensor:
    """Soft Tversky loss of the cell class, averaged over the images of a batch.

    Each image costs ``1 - (TP + smooth) / (TP + fp_weight * FP + fn_weight * FN + smooth)`` with soft pixel counts.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        fp_weight: Cost of a false-positive pixel, >= 0; alpha in the paper.
        fn_weight: Cost of a false-negative pixel, >= 0; beta in the paper.
        smooth: In pixels, > 0. Makes an empty image predicted empty cost 0, not NaN.

    Returns:
        Scalar in [0, 1].

    Raises:
        ShapeError: If the shapes differ.

    References:
        Salehi et al. 2017, https://arxiv.org/abs/1706.05721
    """
    return (1 - tversky_index(logits, target, fp_weight, fn_weight, smooth)).mean()


def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    exponent: Positive = 0.75,
    smooth: Positive = 1.0,
) -> Tensor:
    """Focal Tversky loss of the cell class, averaged over the images of a batch.

    Each image costs ``(1 - TI)^exponent`` with TI the soft Tversky index of `tversky_loss`. Below 1 the gradient
    grows as TI approaches 1, above 1 it fades.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        fp_weight: Cost of a false-positive pixel, >= 0; beta in the reference study (0.3), beta in the paper.
        fn_weight: Cost of a false-negative pixel, >= 0; 1 - beta in the reference study, alpha in the paper.
        exponent: > 0. The paper has 1/gamma = 0.75, the reference study 2 on its slides and 4/3 in its code.
        smooth: In pixels, > 0.

    Returns:
        Scalar in [0, 1].

    Raises:
        ShapeError: If the shapes differ.

    References:
        Abraham & Khan 2018, https://arxiv.org/abs/1810.07842
    """
    missing = 1 - tversky_index(logits, target, fp_weight, fn_weight, smooth)
    # Below 1 the power's gradient is infinite at 0: bound it where an image is perfect to float32's resolution.
    return missing.clamp_min(1e-6).pow(exponent).mean() if exponent < 1 else missing.pow(exponent).mean()


def combined_loss(
    logits: Tensor, target: Tensor, terms: Sequence[tuple[float, LossFunction, Mapping[str, Any]]]
) -> Tensor:
    """Weighted sum of losses: ``sum_i weight_i * loss_i(logits, target, **settings_i)``.

    With BCE, Dice and Focal (or Focal Tversky) this is the reference study's CombinedLoss (CombinedFTLoss).

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        terms: Weight (lambda), function and settings of each term.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    for weight, function, settings in terms:
        if weight:
            total = total + weight * function(logits, target, **settings)
    return total


def tversky_index(logits: Tensor, target: Tensor, fp_weight: float, fn_weight: float, smooth: float) -> Tensor:
    """Soft Tversky index of each image, shape (N,)."""
    check_shapes(logits, target)
    tp, fp, fn = soft_counts(logits, target)
    return (tp + smooth) / (tp + fp_weight * fp + fn_weight * fn + smooth)


def soft_counts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true-positive, false-positive and false-negative pixels of each image, each of shape (N,)."""
    p, y = logits.float().sigmoid(), target.float()
    dims = tuple(range(1, p.ndim))
    hit = p * y
    # Differences pixel by pixel, since differences of sums can round below 0.
    return hit.sum(dims), (p - hit).sum(dims), (y - hit).sum(dims)


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Raise `ShapeError` unless both have one shape."""
    if logits.shape != target.shape:
        raise ShapeError(f"logits have shape {tuple(logits.shape)}, target {tuple(target.shape)}; they must agree")


LossFunction = Callable[..., Tensor]

LOSSES: dict[str, LossFunction] = {
    "bce": bce_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "tversky": tversky_loss,
    "focal_tversky": focal_tversky_loss,
}

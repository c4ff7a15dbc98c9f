"""Losses of the overlap between prediction and mask: functions of soft pixel counts."""

from __future__ import annotations

from cellray.losses.contract import Positive, Reduction
from cellray.losses.sums import soft_counts
from cellray.torch_later import Tensor, torch


def dice_loss(logits: Tensor, target: Tensor, *, smooth: Positive = 1e-6, reduction: Reduction = "image") -> Tensor:
    """Soft Dice loss of the cell class.

    ``1 - (2 TP + smooth) / (sum y + sum p + smooth)`` with soft pixel counts.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        smooth: In pixels, > 0. Makes an image without cells cost 0 if nothing is predicted there; a small value makes
            it cost almost 1 as soon as anything is.
        reduction: ``image`` averages the loss of each image; ``batch`` counts over the whole batch first, where an
            image without cells is no case of its own.

    Returns:
        Scalar in [0, 1]; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Milletari et al. 2016, https://arxiv.org/abs/1606.04797 (which squares the terms of the denominator).
    """
    tp, fp, fn = soft_counts(logits, target, reduction)
    return dice(tp, fp, fn, smooth).mean()


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    fp_weight: float = 0.5,
    fn_weight: float = 0.5,
    smooth: Positive = 1.0,
    reduction: Reduction = "image",
) -> Tensor:
    """Soft Tversky loss of the cell class.

    ``1 - (TP + smooth) / (TP + fp_weight * FP + fn_weight * FN + smooth)`` with soft pixel counts.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        fp_weight: Cost of a false-positive pixel, >= 0; alpha in the paper.
        fn_weight: Cost of a false-negative pixel, >= 0; beta in the paper.
        smooth: In pixels, > 0. Makes an empty image predicted empty cost 0, not NaN.
        reduction: ``image`` averages the loss of each image; ``batch`` counts over the whole batch first.

    Returns:
        Scalar in [0, 1]; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Salehi et al. 2017, https://arxiv.org/abs/1706.05721
    """
    tp, fp, fn = soft_counts(logits, target, reduction)
    return tversky(tp, fp, fn, fp_weight, fn_weight, smooth).mean()


def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    exponent: Positive = 0.75,
    smooth: Positive = 1.0,
    reduction: Reduction = "image",
) -> Tensor:
    """Focal Tversky loss of the cell class.

    ``(1 - TI)^exponent`` with TI the soft Tversky index of `tversky_loss`. Below 1 the gradient grows as TI
    approaches 1, above 1 it fades.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        fp_weight: Cost of a false-positive pixel, >= 0; beta in the reference study (0.3), beta in the paper.
        fn_weight: Cost of a false-negative pixel, >= 0; 1 - beta in the reference study, alpha in the paper.
        exponent: > 0. The paper has 1/gamma = 0.75, the reference study 2 on its slides and 4/3 in its code.
        smooth: In pixels, > 0.
        reduction: ``image`` averages the loss of each image; ``batch`` counts over the whole batch first.

    Returns:
        Scalar in [0, 1]; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Abraham & Khan 2018, https://arxiv.org/abs/1810.07842
    """
    tp, fp, fn = soft_counts(logits, target, reduction)
    return power(tversky(tp, fp, fn, fp_weight, fn_weight, smooth), exponent).mean()


def mcc_loss(
    logits: Tensor,
    target: Tensor,
    void: Tensor | None = None,
    *,
    smooth: Positive = 1.0,
    reduction: Reduction = "image",
) -> Tensor:
    """One minus the soft Matthews correlation of prediction and mask.

    ``1 - (TP * TN - FP * FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))`` with soft pixel counts; unlike Dice it
    also counts background that was recognised.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        smooth: In pixels, > 0: added to TP and to TN, as if so many pixels of each class had been recognised. Makes
            an image without cells cost 0 if nothing is predicted there, and more with every spurious pixel.
        reduction: ``image`` averages the loss of each image; ``batch`` counts over the whole batch first.

    Returns:
        Scalar in [0, 2]; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Abhishek & Hamarneh 2021, https://arxiv.org/abs/2010.13454 (without smoothing).
    """
    tp, fp, fn = soft_counts(logits, target, reduction)
    tn = background_pixels(target, reduction, void) - fp
    tp, tn = tp + smooth, tn + smooth
    # Two roots, since the product of four counts can exceed float32.
    scale = ((tp + fp) * (tp + fn)).sqrt() * ((tn + fp) * (tn + fn)).sqrt()
    return (1 - (tp * tn - fp * fn) / scale).mean()


def dice(tp: Tensor, fp: Tensor, fn: Tensor, smooth: float) -> Tensor:
    """One minus Dice's coefficient, from pixel counts."""
    return 1 - (2 * tp + smooth) / (2 * tp + fp + fn + smooth)


def tversky(tp: Tensor, fp: Tensor, fn: Tensor, fp_weight: float, fn_weight: float, smooth: float) -> Tensor:
    """One minus the Tversky index, from pixel counts."""
    return 1 - (tp + smooth) / (tp + fp_weight * fp + fn_weight * fn + smooth)


def power(missing: Tensor, exponent: float) -> Tensor:
    """``missing^exponent`` with missing in [0, 1]."""
    if exponent >= 1:
        return missing.pow(exponent)
    # Below 1 the power's gradient is infinite at 0: there it is the one at float32's resolution. The value is exact.
    fixed = missing.detach()
    return fixed.pow(exponent) + exponent * fixed.clamp_min(1e-6).pow(exponent - 1) * (missing - fixed)


def background_pixels(target: Tensor, reduction: Reduction, void: Tensor | None = None) -> Tensor:
    """Number of background pixels that aren't void, shape (N,), or (1,) over the batch."""
    others = target if void is None else target + void  # void pixels are 0 in the target
    rows = others.flatten(1) if reduction == "image" else others.reshape(1, -1)
    return rows.shape[1] - rows.sum(1, dtype=torch.float32)

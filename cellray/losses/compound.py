"""Losses that add one of pixels to one of overlap."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cellray.losses.contract import Positive, Reduction, Share, check_shapes, n_counting, wrong_logit
from cellray.losses.order import hardest_pixels
from cellray.losses.overlap import background_pixels, dice, power, tversky
from cellray.losses.sums import pixel_sums, soft_counts
from cellray.torch_later import Tensor, functional, torch


def dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    void: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    cell_weight: float = 1.0,
    background_weight: float = 1.0,
    smooth: Positive = 1e-5,
    reduction: Reduction = "image",
) -> Tensor:
    """Dice loss plus binary cross-entropy: ``dice_weight * dice_loss + ce_weight * bce_loss``.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        dice_weight: Weight of the Dice loss, >= 0.
        ce_weight: Weight of the cross-entropy, which is averaged over all pixels, >= 0.
        cell_weight: Cost of a cell pixel in the cross-entropy, >= 0.
        background_weight: Cost of a background pixel there, >= 0.
        smooth: Of the Dice loss, in pixels, > 0.
        reduction: Of the Dice loss: counts in each ``image``, or over the ``batch``.

    Returns:
        Scalar >= 0; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z
    """
    tp, fp, fn, cells, background = pixel_sums(logits, target, reduction)
    cross_entropy = (cell_weight * cells.sum() + background_weight * background.sum()) / n_counting(logits, void)
    return dice_weight * dice(tp, fp, fn, smooth).mean() + ce_weight * cross_entropy


def dice_topk_loss(
    logits: Tensor,
    target: Tensor,
    void: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.1,
    smooth: Positive = 1e-5,
    reduction: Reduction = "image",
) -> Tensor:
    """Dice loss plus the cross-entropy of each image's hardest pixels.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        dice_weight: Weight of the Dice loss, >= 0.
        ce_weight: Weight of the cross-entropy, the mean over the hardest pixels of each image, >= 0.
        fraction: Of an image's pixels, those with the largest cross-entropy, in (0, 1]; rounded to whole pixels, at
            least 1. nnU-Net takes them from the whole batch. Where equally hard pixels are too many, each gets the
            same part of the gradient.
        smooth: Of the Dice loss, in pixels, > 0.
        reduction: Of the Dice loss: counts in each ``image``, or over the ``batch``.

    Returns:
        Scalar >= 0; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z (Dice and TopK loss of nnU-Net, k = 10 %).
    """
    tp, fp, fn = soft_counts(logits, target, reduction)
    return dice_weight * dice(tp, fp, fn, smooth).mean() + ce_weight * hardest_ce(logits, target, fraction, void)


def unified_focal_loss(
    logits: Tensor,
    target: Tensor,
    void: Tensor | None = None,
    *,
    pixel_share: Share = 0.5,
    cell_share: Share = 0.6,
    exponent: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    smooth: Positive = 1e-6,
    reduction: Reduction = "image",
) -> Tensor:
    """Asymmetric Unified Focal loss: focal cross-entropy for the background, focal Tversky for the cells.

    ``pixel_share * F + (1 - pixel_share) * T`` with F the mean over pixels of ``cell_share * -log p`` on cells and
    ``(1 - cell_share) * p^exponent * -log(1 - p)`` on background, and T the mean of ``1 - TI`` of the background class
    and ``(1 - TI)^(1 - exponent)`` of the cell class. TI is the soft Tversky index of a class, in which what it misses
    weighs cell_share and what it claims wrongly 1 - cell_share.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        pixel_share: Weight of F against T, in [0, 1]; lambda in the paper.
        cell_share: Weight of cells against background in F, and of missed against spurious in T, in [0, 1]; delta in
            the paper.
        exponent: How far easy background is discounted in F and the last errors are stressed in T, in [0, 1); gamma in
            the paper.
        smooth: Of both Tversky indices, in pixels, > 0.
        reduction: Of T: counts in each ``image``, or over the ``batch``.

    Returns:
        Scalar >= 0; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Yeung et al. 2022, https://doi.org/10.1016/j.compmedimag.2021.102026; T is the mean of the two classes as in the
        authors' code, where the formula has their sum.
    """
    tp, fp, fn, cells, background = pixel_sums(logits, target, reduction, exponent=exponent, focal_cells=False)
    tn = background_pixels(target, reduction, void) - fp
    focal = (cell_share * cells.sum() + (1 - cell_share) * background.sum()) / n_counting(logits, void)
    # What the background class misses is what the cell class claims wrongly.
    of_background = tversky(tn, fn, fp, 1 - cell_share, cell_share, smooth)
    of_cells = power(tversky(tp, fp, fn, 1 - cell_share, cell_share, smooth), 1 - exponent)
    return pixel_share * focal + (1 - pixel_share) * (of_background.mean() + of_cells.mean()) / 2


def hardest_ce(logits: Tensor, target: Tensor, fraction: float, void: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the hardest `fraction` of each image's pixels, averaged over the images."""
    check_shapes(logits, target)
    costs = []
    left_out = [None] * len(logits) if void is None else void.flatten(1)
    for z, y, out in zip(logits.float().flatten(1), target.float().flatten(1), left_out, strict=True):
        k = max(1, round(fraction * int(n_counting(z, out))))
        # Cross-entropy is softplus of the logit of the wrong class, so the order of these is theirs.
        level, pixels = hardest_pixels(wrong_logit(z.detach(), y), k)
        wrong = wrong_logit(z.index_select(0, pixels), y[pixels])
        n_above = (wrong > level).sum()
        at_level = wrong == level
        share = at_level * (k - n_above) / at_level.sum()
        costs.append((torch.where(wrong > level, 1, share) * functional.softplus(wrong)).sum() / k)
    return torch.stack(costs).mean()

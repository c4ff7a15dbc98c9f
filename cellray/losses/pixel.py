"""Losses that are averages over pixels; per image or over the batch is the same for them."""

from __future__ import annotations

from cellray.losses.contract import Positive, check_shapes, n_counting, pixel_mean, wrong_logit
from cellray.losses.sums import pixel_costs
from cellray.torch_later import Tensor, functional


def bce_loss(
    logits: Tensor,
    target: Tensor,
    void: Tensor | None = None,
    *,
    cell_weight: float = 1.0,
    background_weight: float = 1.0,
) -> Tensor:
    """Weighted binary cross-entropy, averaged over all pixels of all images.

    A pixel costs ``-(cell_weight * y * log p + background_weight * (1 - y) * log(1 - p))``. The weights are not
    normalised, so a larger one also means a larger loss.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        cell_weight: Cost of a cell pixel, >= 0; beta or w_cell in the reference study.
        background_weight: Cost of a background pixel, >= 0; w_bkgd there.

    Returns:
        Scalar >= 0; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.
    """
    cells, background = pixel_costs(logits, target)
    return (cell_weight * cells.sum() + background_weight * background.sum()) / n_counting(logits, void)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    void: Tensor | None = None,
    *,
    exponent: float = 2.0,
    cell_weight: float = 1.0,
    background_weight: float = 1.0,
) -> Tensor:
    """Focal loss: cross-entropy in which pixels that are already right count little, averaged over all pixels.

    A pixel costs ``-weight * (1 - p_t)^exponent * log p_t`` with p_t the probability of its true class.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        exponent: gamma in the paper, >= 0; at 0 this is `bce_loss`.
        cell_weight: alpha of cell pixels in the paper, >= 0; the reference study leaves both weights at 1.
        background_weight: 1 - alpha in the paper, >= 0.

    Returns:
        Scalar >= 0; 0 at a perfect prediction, with or without cells.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """
    cells, background = pixel_costs(logits, target, exponent)
    return (cell_weight * cells.sum() + background_weight * background.sum()) / n_counting(logits, void)


def border_ce_loss(
    logits: Tensor,
    target: Tensor,
    two_nearest: Tensor,
    void: Tensor | None = None,
    *,
    cell_weight: float = 1.0,
    background_weight: float = 1.0,
    border_weight: float = 10.0,
    sigma_px: Positive = 5.0,
) -> Tensor:
    """Cross-entropy in which the seams between close cells weigh more, averaged over all pixels of all images.

    A pixel weighs ``w_class + border_weight * exp(-(d1 + d2)^2 / (2 * sigma_px^2))``, with d1 and d2 its distances to
    the two nearest cells. Weights are not normalised.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        two_nearest: d1 + d2 of each pixel in px, >= 0, same shape; far from cells it may be clipped.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.
        cell_weight: w_class of cell pixels, >= 0; w_c in the paper.
        background_weight: w_class of background pixels, >= 0.
        border_weight: What a pixel on a seam weighs in addition, >= 0; w_0 in the paper.
        sigma_px: How fast that fades with distance, > 0; sigma in the paper.

    Returns:
        Scalar >= 0; 0 at a perfect prediction, with or without cells. Without cells it is `bce_loss`.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597
    """
    check_shapes(logits, target, two_nearest=two_nearest)
    seam = two_nearest.float().square().mul_(-0.5 / sigma_px**2).exp_().mul_(border_weight)
    weights = seam.add_(target.float(), alpha=cell_weight - background_weight).add_(background_weight)
    wrong = wrong_logit(logits.float(), target.float())
    return pixel_mean(weights * functional.softplus(wrong), void)


def boundary_loss(logits: Tensor, target: Tensor, distance: Tensor, void: Tensor | None = None) -> Tensor:
    """Distance to the border of the mask that each wrongly claimed or missed pixel has, averaged over all pixels.

    A pixel costs ``|distance| * (p * (1 - y) + (1 - p) * y)``: the paper's ``distance * p`` plus the constant that
    makes a perfect prediction cost 0. Border pixels count almost nothing, so it is meant to be combined with an
    overlap loss.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        distance: Distance of each pixel to the border of the mask in px, of either sign, same shape.
        void: Pixels that count as neither, bool, same shape, where the logits say background for certain and the target
            is 0; None: there are none.

    Returns:
        Scalar >= 0 in px; 0 at a perfect prediction. Without cells the map decides, which `cellray.losses.maps` sets
        to its largest distance there.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Kervadec et al. 2019, https://arxiv.org/abs/1812.07032
    """
    check_shapes(logits, target, distance=distance)
    wrong = wrong_logit(logits.float(), target.float()).sigmoid()
    return pixel_mean(distance.float().abs() * wrong, void)

"""The Lovász hinge: the piecewise linear extension of the Jaccard loss of a mask."""

from __future__ import annotations

from cellray.losses.contract import Reduction, check_shapes, on_cpu, wrong_logit
from cellray.losses.order import descending
from cellray.torch_later import Tensor, torch


def lovasz_hinge_loss(logits: Tensor, target: Tensor, *, reduction: Reduction = "image") -> Tensor:
    """Lovász hinge of the cell class.

    A pixel errs by ``max(0, 1 - z)`` on cells and ``max(0, 1 + z)`` on background. From the largest error to the
    smallest, each weighs what the Jaccard loss grows by when its pixel joins those that are wrong.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        reduction: ``image`` averages the hinge of each image; ``batch`` takes all pixels of the batch as one image.

    Returns:
        Scalar >= 0, unbounded; 0 where every logit is beyond its margin of 1, with or without cells. An image without
        cells costs the error of its worst pixel, since a single wrong pixel already makes its Jaccard index 0.

    Raises:
        ShapeError: If the shapes differ.

    References:
        Berman et al. 2018, https://arxiv.org/abs/1705.08790
    """
    check_shapes(logits, target)
    costs = []
    rows = (len(logits) if reduction == "image" else 1, -1)
    for z, y in zip(logits.float().reshape(rows), target.float().reshape(rows), strict=True):
        errors = 1 + wrong_logit(z.detach(), y)
        counts = ~(errors <= 0)  # the others cost nothing; NaN is not left out
        if on_cpu(z):  # sorting fewer is faster; a GPU would have to be waited for, to know how many they are
            pixels = counts.nonzero().flatten()
            pixels = pixels[descending(errors[pixels])]
        else:
            pixels = descending(errors)
        in_cell = y[pixels]
        missed = in_cell.cumsum(0)
        spurious = torch.arange(1, len(pixels) + 1, device=z.device) - missed
        n_cells = y.sum()
        jaccard = 1 - (n_cells - missed) / (n_cells + spurious)
        growth = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        cost = (1 + wrong_logit(z.index_select(0, pixels), in_cell)) * growth
        costs.append(cost.masked_fill(~counts[pixels], 0).sum())
    return torch.stack(costs).mean()

"""The five sums over the pixels of an image that most losses are made of."""

from __future__ import annotations

from typing import NamedTuple

from cellray.losses.contract import Asked, Reduction, check_shapes
from cellray.torch_later import Tensor


class PixelSums(NamedTuple):
    """Sums over the pixels of each image, each of shape (N,); of shape (1,) if they run over the whole batch."""

    tp: Tensor
    """Soft true-positive pixels, sum of ``p * y``."""
    fp: Tensor
    """Soft false-positive pixels, sum of ``p * (1 - y)``."""
    fn: Tensor
    """Soft false-negative pixels, sum of ``(1 - p) * y``."""
    cell_cost: Tensor
    """(Focal) cross-entropy of cell pixels, sum of ``-(1 - p)^exponent * log(p) * y``."""
    background_cost: Tensor
    """(Focal) cross-entropy of background pixels, sum of ``-p^exponent * log(1 - p) * (1 - y)``."""


def soft_counts(logits: Tensor, target: Tensor, reduction: Reduction = "image") -> tuple[Tensor, Tensor, Tensor]:
    """The first three of `PixelSums`: soft true-positive, false-positive and false-negative pixels.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        reduction: Whether pixels are counted in each image or over all images of the batch.

    Raises:
        ShapeError: If the shapes differ.
    """
    sums = _sums(logits, target, reduction, Asked(counts=True, costs=False))
    return sums.tp, sums.fp, sums.fn


def pixel_costs(logits: Tensor, target: Tensor, exponent: float = 0.0) -> tuple[Tensor, Tensor]:
    """The last two of `PixelSums` over the images: (focal) cross-entropy of cell and of background pixels, shape (N,).

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        exponent: Focal exponent, >= 0; 0 is plain cross-entropy.

    Raises:
        ShapeError: If the shapes differ.
    """
    sums = _sums(logits, target, "image", Asked(counts=False, costs=True, exponent=exponent))
    return sums.cell_cost, sums.background_cost


def pixel_sums(
    logits: Tensor,
    target: Tensor,
    reduction: Reduction = "image",
    *,
    exponent: float = 0.0,
    focal_cells: bool = True,
) -> PixelSums:
    """All five sums at once.

    Args:
        logits: Raw scores, shape (N, 1, H, W).
        target: Cell mask of 0 and 1, same shape.
        reduction: Whether sums run over each image or over all images of the batch.
        exponent: Focal exponent, >= 0; 0 is plain cross-entropy.
        focal_cells: Whether it is for cell pixels too; else they have plain cross-entropy.

    Raises:
        ShapeError: If the shapes differ.
    """
    return _sums(logits, target, reduction, Asked(True, True, exponent, focal_cells))


def _sums(logits: Tensor, target: Tensor, reduction: Reduction, asked: Asked) -> PixelSums:
    from cellray.losses.one_pass import SumsOverPixels  # a class of torch's

    check_shapes(logits, target)
    sums = SumsOverPixels.apply(logits.float().flatten(1), target.float().flatten(1), asked)
    return PixelSums(*(value.sum(0, keepdim=True) if reduction == "batch" else value for value in sums))

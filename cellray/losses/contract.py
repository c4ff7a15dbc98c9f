"""What losses use: the kinds of their settings, what they ask for, and the check of their tensors' shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cellray.errors import ShapeError
from cellray.torch_later import Tensor, torch

LossFunction = Callable[..., Tensor]

Positive = Annotated[float, Field(gt=0)]
"""What a study may give for this keyword; a plain float may be 0 too."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A setting between 0 and 1, both allowed."""

Reduction = Literal["image", "batch"]
"""Where soft pixel counts are summed up before a loss is made of them: in each image, or in the whole batch."""


class Asked(NamedTuple):
    """Which sums over pixels a loss is made of, and of what kind the costs are."""

    counts: bool
    costs: bool
    exponent: float = 0.0
    """Focal exponent, >= 0; 0 is plain cross-entropy."""
    focal_cells: bool = True
    """Whether the exponent is for cell pixels too; else they have plain cross-entropy."""


def check_shapes(logits: Tensor, target: Tensor, **maps: Tensor) -> None:
    """Raise `ShapeError` unless all have one shape."""
    for name, tensor in {"target": target, **maps}.items():
        if logits.shape != tensor.shape:
            raise ShapeError(f"logits have shape {tuple(logits.shape)}, {name} {tuple(tensor.shape)}; they must agree")


def n_counting(pixels: Tensor, void: Tensor | None) -> Tensor | int:
    """Number of pixels that aren't void, at least 1; where some are, a tensor, for which no GPU is waited for.

    Args:
        pixels: Any tensor with one value a pixel.
        void: True at pixels that count as neither cell nor background, same shape; None: there are none.
    """
    return pixels.numel() if void is None else (~void).sum().clamp_min(1)


def pixel_mean(cost: Tensor, void: Tensor | None) -> Tensor:
    """Mean over the pixels that aren't void, where cost is 0; arguments as for `n_counting`."""
    return cost.mean() if void is None else cost.sum() / n_counting(cost, void)


def on_cpu(tensor: Tensor) -> bool:
    """Whether NumPy can look at it, and work image by image is faster than all at once."""
    return tensor.device.type == "cpu"


def wrong_logit(z: Tensor, y: Tensor) -> Tensor:
    """Logit of the wrong class: z on background, -z on cells."""
    return torch.mul(y, -2).add_(1).mul_(z)

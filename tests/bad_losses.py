"""Losses that are wrong, each in one way: what `cellray.losses.check` has to find."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cellray.losses import dice_loss, tversky_loss


def per_image(values: Tensor) -> Tensor:
    return values.sum((1, 2, 3))


def swapped_tversky(logits: Tensor, target: Tensor, *, fp_weight: float = 0.3, fn_weight: float = 0.7) -> Tensor:
    """Alpha and beta of another paper: each weight multiplies the other error."""
    return tversky_loss(logits, target, fp_weight=fn_weight, fn_weight=fp_weight)


def swapped_bce(logits: Tensor, target: Tensor, *, cell_weight: float = 1.0, background_weight: float = 1.0) -> Tensor:
    """The weight of a cell pixel is given to the background."""
    weight = torch.where(target > 0.5, background_weight, cell_weight)
    return functional.binary_cross_entropy_with_logits(logits.float(), target, weight)


def flattened_tversky(logits: Tensor, target: Tensor, *, fp_weight: float = 0.3, fn_weight: float = 0.7) -> Tensor:
    """Both channels of a softmax in one sum: what is a false positive of one class is a false negative of the other."""
    p = logits.float().sigmoid()
    probs, truth = torch.cat([1 - p, p], dim=1).flatten(), torch.cat([1 - target, target], dim=1).flatten()
    tp, fp, fn = (probs * truth).sum(), (probs * (1 - truth)).sum(), ((1 - probs) * truth).sum()
    return 1 - tp / (tp + fp_weight * fp + fn_weight * fn)


def deaf_bce(logits: Tensor, target: Tensor, *, cell_weight: float = 50.0, exponent: float = 2.0) -> Tensor:
    """Takes a weight and an exponent, and uses neither."""
    return functional.binary_cross_entropy_with_logits(logits.float(), target)


def sigmoid_twice_dice(logits: Tensor, target: Tensor) -> Tensor:
    """The network's probability is taken for a logit."""
    return dice_loss(logits.float().sigmoid(), target)


def sigmoid_twice_bce(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits.float().sigmoid(), target)


def softmax_twice_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, which has a softmax inside, of channels that are probabilities."""
    p = logits.float().sigmoid()
    return functional.cross_entropy(torch.cat([1 - p, p], dim=1), target[:, 0].long())


def dice_of_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """Right if it were fed probabilities."""
    probs = logits.float()
    hit = per_image(probs * target)
    return (1 - (2 * hit + 1e-6) / (per_image(probs) + per_image(target) + 1e-6)).mean()


def clamped_bce_of_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """Right for probabilities, and silent about logits, since it clamps."""
    return functional.binary_cross_entropy(logits.float().clamp(1e-7, 1 - 1e-7), target)


def strict_bce_of_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """Right for probabilities; torch refuses anything else."""
    return functional.binary_cross_entropy(logits.float(), target)


def recall_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Divides by the true cells: 0 / 0 without any. Spurious cells cost nothing."""
    return (1 - per_image(logits.float().sigmoid() * target) / per_image(target)).mean()


def nan_on_empty_masks(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus the mean over the cell pixels, of which there may be none."""
    cost = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return cost.mean() + cost[target > 0.5].mean()


def never_free_on_empty_masks(logits: Tensor, target: Tensor) -> Tensor:
    """Dice that guards against 0 / 0 below alone: an image without cells costs 1 whatever is predicted."""
    p = logits.float().sigmoid()
    return (1 - 2 * per_image(p * target) / (per_image(p) + per_image(target) + 1e-6)).mean()


def infinite_bce(logits: Tensor, target: Tensor) -> Tensor:
    """The logarithm of 1 - p, which rounds to 0."""
    p = logits.float().sigmoid()
    return -torch.where(target > 0.5, p.log(), (1 - p).log()).mean()


def shifted_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Activated once, but never free."""
    return 0.3 + dice_loss(logits, target)


def upside_down_dice(logits: Tensor, target: Tensor) -> Tensor:
    """The score, not the loss."""
    return 1 - dice_loss(logits, target)


def detached_dice(logits: Tensor, target: Tensor) -> Tensor:
    """The sum of probabilities is taken for a constant."""
    p = logits.float().sigmoid()
    return (1 - (2 * per_image(p * target) + 1) / (per_image(p).detach() + per_image(target) + 1)).mean()


def hard_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Counts thresholded pixels, through which no gradient passes."""
    return dice_loss(((logits > 0).float() - 0.5) * 100, target)


def place_dependent_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Pixels further right count more."""
    weight = torch.linspace(0.5, 1.5, logits.shape[-1])
    return functional.binary_cross_entropy_with_logits(logits.float(), target, weight)


def numbering_bce(logits: Tensor, target: Tensor, components: Tensor) -> Tensor:
    """Cells with a higher number count more."""
    cost = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return (cost * (1 + components)).mean()


def summed_bce(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")


def batch_dice(logits: Tensor, target: Tensor) -> Tensor:
    return dice_loss(logits.flatten()[None], target.flatten()[None])


def coarse_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Sums in the precision of its logits."""
    p, y = logits.sigmoid(), target.to(logits.dtype)
    return (1 - (2 * per_image(p * y) + 1) / (per_image(p) + per_image(y) + 1)).mean().float()


def squared_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Sound, but small errors fade: its square."""
    p = logits.float().sigmoid()
    return (1 - (2 * per_image(p * target) + 1) / (per_image(p) + per_image(target) + 1)).square().mean()


def failing_loss(logits: Tensor, target: Tensor) -> Tensor:
    raise RuntimeError("the first line\nand a second")


def loss_of_each_pixel(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")


def noisy_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Draws random numbers and changes its target, both of which the check has to survive."""
    torch.rand(1)
    target.mul_(0.5).mul_(2)
    return functional.binary_cross_entropy_with_logits(logits.float(), target)

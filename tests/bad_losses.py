"""Losses that are wrong, each in one way: what `cellray.losses.check` has to find."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cellray.losses import bce_loss, blob_loss, dice_loss, focal_loss, focal_tversky_loss, tversky_loss


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


def deaf_bce(
    logits: Tensor, target: Tensor, *, cell_weight: float = 50.0, exponent: float = 2.0, margin: float = 0.5
) -> Tensor:
    """Takes a weight, an exponent and a number, and uses none."""
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


def dice_of(p: Tensor, y: Tensor) -> Tensor:
    return (1 - (2 * per_image(p * y) + 1) / (per_image(p) + per_image(y) + 1)).mean()


def background_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Channel 0 of a softmax over background and cells."""
    return dice_of(1 - logits.float().sigmoid(), 1 - target)


def background_jaccard(logits: Tensor, target: Tensor) -> Tensor:
    p, y = 1 - logits.float().sigmoid(), 1 - target
    hit = per_image(p * y)
    return (1 - (hit + 1) / (per_image(p) + per_image(y) - hit + 1)).mean()


def background_tversky(logits: Tensor, target: Tensor) -> Tensor:
    return tversky_loss(-logits, 1 - target)


def tanh_dice(logits: Tensor, target: Tensor) -> Tensor:
    """tanh, moved to [0, 1]."""
    return dice_of((1 + logits.float().tanh()) / 2, target)


def tanh_bce(logits: Tensor, target: Tensor) -> Tensor:
    p = ((1 + logits.float().tanh()) / 2).clamp(1e-7, 1 - 1e-7)
    return functional.binary_cross_entropy(p, target)


def tanh_mse(logits: Tensor, target: Tensor) -> Tensor:
    """Against a mask of -1 and 1."""
    return (logits.float().tanh() - (2 * target - 1)).square().mean()


def cut_tanh_dice(logits: Tensor, target: Tensor) -> Tensor:
    """tanh, cut to [0, 1]: nothing is learnt below 0."""
    return dice_of(logits.float().tanh().clamp(0, 1), target)


def relu_dice(logits: Tensor, target: Tensor) -> Tensor:
    return dice_of(1 - (-logits.float().relu()).exp(), target)


def easy_focal(logits: Tensor, target: Tensor, *, exponent: float = 2.0) -> Tensor:
    """Discounts what is wrong, not what is right: p^exponent where (1 - p)^exponent should be."""
    z = torch.where(target > 0.5, logits.float(), -logits.float())
    return (z.sigmoid().pow(exponent) * functional.softplus(-z)).mean()


def deaf_boundary(logits: Tensor, target: Tensor, distance: Tensor) -> Tensor:
    """Asks for distances and takes the mask."""
    return dice_loss(logits, target)


def deaf_seams(logits: Tensor, target: Tensor, two_nearest: Tensor, *, sigma_px: float = 5.0) -> Tensor:
    """Divides its weights by themselves."""
    weight = torch.exp(-two_nearest / sigma_px)
    cost = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return (weight / weight * cost).mean()


def deaf_blobs(logits: Tensor, target: Tensor, components: Tensor) -> Tensor:
    """Every cell's part is the mask's."""
    return dice_loss(logits, (components > -1) * target)


def swapped_sum(logits: Tensor, target: Tensor, *, dice_weight: float = 1.0, ce_weight: float = 0.5) -> Tensor:
    return ce_weight * dice_loss(logits, target) + dice_weight * bce_loss(logits, target)


def swapped_sum_of_three(
    logits: Tensor, target: Tensor, *, bce_weight: float = 0.3, dice_weight: float = 0.3, focal_weight: float = 0.4
) -> Tensor:
    """The second and the third."""
    first = bce_weight * bce_loss(logits, target)
    return first + focal_weight * dice_loss(logits, target) + dice_weight * focal_loss(logits, target)


def swapped_blobs(
    logits: Tensor, target: Tensor, components: Tensor, *, global_weight: float = 2.0, blob_weight: float = 1.0
) -> Tensor:
    return blob_loss(logits, target, components, global_weight=blob_weight, blob_weight=global_weight)


def right_sum(
    logits: Tensor, target: Tensor, *, dice_weight: float = 1.0, ce_weight: float = 0.5, focal_weight: float = 1.0
) -> Tensor:
    """No fault."""
    first = dice_weight * dice_loss(logits, target) + ce_weight * bce_loss(logits, target)
    return first + focal_weight * focal_loss(logits, target)


def index_power(
    logits: Tensor, target: Tensor, *, exponent: float = 0.75, fp_weight: float = 0.3, fn_weight: float = 0.7
) -> Tensor:
    """1 - TI^exponent in the place of (1 - TI)^exponent."""
    index = 1 - tversky_loss(logits, target, fp_weight=fp_weight, fn_weight=fn_weight)
    return 1 - index.pow(exponent)


def index_power_in_a_sum(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    return bce_loss(logits, target) + 1 - (1 - dice_loss(logits, target, smooth=1.0)).pow(gamma)


def gamma_as_a_weight(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """No fault: the third Greek letter of a sum."""
    return bce_loss(logits, target) + gamma * dice_loss(logits, target)


def inverse_gamma(logits: Tensor, target: Tensor, *, gamma: float = 4 / 3) -> Tensor:
    """No fault: the exponent is 1 / gamma, as in the paper of the focal Tversky loss."""
    return focal_tversky_loss(logits, target, exponent=1 / gamma)


def double_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Right, and slow."""
    return dice_of(logits.double().sigmoid(), target.double()).float()


def wordy_bce(logits: Tensor, target: Tensor, *, mode: str = "balanced", weights_file: str = "") -> Tensor:
    """Falls through to plain cross-entropy where it doesn't know the word."""
    weight = 1 + target if mode == "cells" else None
    return functional.binary_cross_entropy_with_logits(logits.float(), target, weight)

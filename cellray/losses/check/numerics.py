"""Is a loss computed as it should be: finite, reduced per image, blind to order, with the right gradient?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from cellray.losses.bound import Loss
from cellray.losses.check import scenes
from cellray.losses.check.looking import Verdict, dtype_name, gradient_of, value_of, what_is_not_finite

COARSE_ERROR = 2e-4
"""bfloat16 rounds to 1 part in 256 to 512; float32 sums of the same logits agree far better than this part."""

SAME = 1e-4
"""Sums in another order differ by less than this part."""

STEPS = (0.005, 0.0005)
"""Of the finite differences, in logits. The first loses less to float32's rounding, the second crosses fewer kinks of
losses that sort or pick pixels: a gradient is wrong if it is wrong for both."""

WRONG_SLOPE = 0.03


def check_finite(loss: Loss) -> Iterator[Verdict]:
    """Are value and gradient finite at |z| = 50, and as good from bfloat16 logits as from float32?"""
    scene = scenes.ordinary()
    sure = scene.surely()
    predictions = {
        "a perfect prediction": sure,
        "a wrong prediction": -sure,
        "no cell anywhere": torch.full_like(sure, -50.0),
        "cell everywhere": torch.full_like(sure, 50.0),
    }
    for (name, logits), dtype in product(predictions.items(), (torch.float32, torch.bfloat16)):
        broken = what_is_not_finite(loss, logits.to(dtype), scene)
        if broken:
            yield "failure", broken, f"Its {broken} at |z| = 50 in {dtype_name(dtype)}, for {name}."
            return
    half = scenes.ordinary_logits().bfloat16()
    coarse, fine = value_of(loss, half, scene), value_of(loss, half.float(), scene)
    error = abs(coarse - fine) / max(abs(fine), 1e-12)
    figure = f"bfloat16 off by {error:.1g}"
    if error > COARSE_ERROR:
        yield (
            "warning",
            figure,
            f"The same logits cost {coarse:.4g} as bfloat16 and {fine:.4g} as float32: it computes in the 8 bits of "
            "bfloat16.",
        )
    else:
        yield "pass", figure, ""


def check_reduction(loss: Loss) -> Iterator[Verdict]:
    """Is the loss of a batch the mean over its images, each computed alone?"""
    scene = scenes.ordinary()
    # One image right, one wrong, one unsure: among images that cost alike, a mean of powers is nearly a power of means.
    logits = scenes.ordinary_logits() * torch.tensor([1.0, -1.0, 0.2]).view(3, 1, 1, 1)
    n = len(logits)
    whole = value_of(loss, logits, scene)
    alone = [value_of(loss, logits[k : k + 1], scene.image(k)) for k in range(n)]
    mean = sum(alone) / n
    figure = f"batch {whole:.4g}, mean of images {mean:.4g}"
    if math.isclose(whole, mean, rel_tol=SAME):
        yield "pass", "per image", ""
    elif math.isclose(whole, sum(alone), rel_tol=SAME):
        yield "warning", figure, "It sums over the images: loss and gradient grow with the batch size."
    else:
        yield (
            "warning",
            figure,
            f"Reduced over the batch: three images cost {whole:.4g} together and {mean:.4g} on average alone, so what "
            "an image costs depends on its neighbours.",
        )


def check_invariance(loss: Loss) -> Iterator[Verdict]:
    """Do flips, a transposition, the order of the images and the numbering of the cells change nothing?"""
    scene, logits = scenes.ordinary(), scenes.ordinary_logits()
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "Flipping the rows": lambda x: x.flip(2),
        "Flipping the columns": lambda x: x.flip(3),
        "Transposing the images": lambda x: x.transpose(2, 3).contiguous(),
        "Another order of the images": lambda x: x[[2, 0, 1]],
    }
    before = value_of(loss, logits, scene)
    after = {name: value_of(loss, change(logits), scene.changed(change)) for name, change in changes.items()}
    after["Numbering the cells anew"] = value_of(loss, logits, scene.relabelled())
    # Written so that NaN fails.
    culprits = [name for name, value in after.items() if not abs(value - before) <= SAME * abs(before)]
    if culprits:
        value = after[culprits[0]]
        told = f"{culprits[0]} changes the loss from {before:.6g} to {value:.6g}."
        yield "failure", f"moves by {abs(value - before):.1g}", told
    else:
        yield "pass", f"moves by {max(abs(value - before) for value in after.values()):.1g}", ""


def check_gradient(loss: Loss) -> Iterator[Verdict]:
    """Does the gradient agree with finite differences: along all cells, along all background, along random signs?"""
    scene, logits = scenes.ordinary(), scenes.ordinary_logits()
    broken = what_is_not_finite(loss, logits, scene)
    if broken:
        yield "failure", broken, f"Its {broken} on an ordinary prediction."
        return
    gradient = gradient_of(loss, logits, scene)[1]
    if not gradient.abs().max() > 0:
        yield "failure", "0", "The gradient is 0 at every pixel of an ordinary prediction: nothing can be learnt."
        return
    generator = torch.Generator().manual_seed(1)
    directions = {"the cell pixels": scene.target, "the background pixels": 1 - scene.target}
    for _ in range(4):
        directions[f"random signs {len(directions) - 1}"] = (
            2.0 * torch.randint(0, 2, logits.shape, generator=generator) - 1
        )
    # Random signs nearly cancel: judge by the size such a sum usually has, not by the one it happens to have.
    usual = gradient.norm().item()

    def slope_error(direction: Tensor, step: float) -> tuple[float, float, float]:
        rise = value_of(loss, logits + step * direction, scene) - value_of(loss, logits - step * direction, scene)
        said, expected = (gradient * direction).sum().item(), rise / (2 * step)
        return abs(said - expected) / max(abs(said), abs(expected), usual), said, expected

    errors = {name: slope_error(direction, STEPS[0]) for name, direction in directions.items()}
    if not max(errors.values())[0] <= WRONG_SLOPE:
        errors = {name: min(errors[name], slope_error(direction, STEPS[1])) for name, direction in directions.items()}
    worst = max(errors, key=lambda name: errors[name])
    error, said, expected = errors[worst]
    figure = f"off by {error:.1g}"
    # Written so that NaN fails.
    if not error <= WRONG_SLOPE:
        told = f"Along {worst} the gradient says {said:.3g} per logit, finite differences {expected:.3g}."
        yield "failure", figure, told
    else:
        yield "pass", figure, ""

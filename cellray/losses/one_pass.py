"""The sums of `PixelSums` with their gradient, in one pass.

Written out because a loss should cost little beside a network on a CPU: automatic differentiation would keep, and walk
through again, a dozen arrays as large as the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cellray.losses.contract import Asked, on_cpu, wrong_logit


class SumsOverPixels(torch.autograd.Function):
    """(z, y) of shape (N, pixels) -> the fields of `PixelSums`, each of shape (N,); those not asked for are 0.

    The way forward already leaves the derivative of each pixel in an array, which the way back turns into the gradient
    in place: fresh memory costs more than arithmetic here. Who goes back once more has it computed again.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor, asked: Asked) -> tuple[Tensor, ...]:
        ctx.save_for_backward(z, y)
        ctx.asked = asked
        ctx.slope = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        return tuple(_forward(z, y, asked, ctx.slope))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, y = ctx.saved_tensors
        slope, ctx.slope = ctx.slope, None
        if slope is None:
            slope = torch.empty_like(z)
            _forward(z, y, ctx.asked, slope)
        _backward(z, y, ctx.asked, slope, grads)
        return slope, None, None


def _forward(z: Tensor, y: Tensor, asked: Asked, slope: Tensor | None) -> Tensor:
    """The sums, shape (5, N). Fills `slope` with the derivative of a pixel's cost by its wrong logit.

    All is a function of the logit of the wrong class, ``s = z`` on background and ``-z`` on cells: ``q = sigmoid(s)``
    is the probability of being wrong and the derivative of the cross-entropy ``softplus(s) = -log(1 - q)``; all three
    are exact at any logit.
    """
    focal = asked.costs and asked.exponent > 0
    tp, fp, fn, cell_cost, background_cost = sums = z.new_zeros(5, len(z))
    for part in _parts(z):
        s = wrong_logit(z[part], y[part])
        q = s.sigmoid() if slope is None or focal else torch.sigmoid(s, out=slope[part])
        if asked.counts:
            # Differences pixel by pixel, since differences of sums can round below 0.
            missed = y[part] * q
            fn[part] = missed.sum(1)
            fp[part] = (q - missed).sum(1)
            tp[part] = torch.sub(y[part], missed, out=missed).sum(1)
        if asked.costs:
            entropy = functional.softplus(s)
            of_cells = torch.mul(entropy, y[part], out=s)
            if focal:
                if not asked.focal_cells:
                    cell_cost[part] = of_cells.sum(1)
                focus = q.pow(asked.exponent)
                if slope is not None:
                    # of q^g * softplus(s): q^g * (g * (1 - q) * softplus(s) + q)
                    torch.mul(q, entropy, out=slope[part]).sub_(entropy).mul_(-asked.exponent).add_(q).mul_(focus)
                entropy.mul_(focus)
                of_cells.mul_(focus)
            if asked.focal_cells or not focal:
                cell_cost[part] = of_cells.sum(1)
            background_cost[part] = entropy.sub_(of_cells).sum(1)
    return sums


def _backward(z: Tensor, y: Tensor, asked: Asked, slope: Tensor, grads: tuple[Tensor, ...]) -> None:
    """Turn `slope` into the gradient by z; ds/dz is 1 on background and -1 on cells."""
    focal = asked.costs and asked.exponent > 0
    for part in _parts(z):
        tp, fp, fn, cell_cost, background_cost = (grad[part, None] for grad in grads)
        out = slope[part]
        q = wrong_logit(z[part], y[part]).sigmoid_() if focal and (asked.counts or not asked.focal_cells) else out
        change = None
        if asked.counts:
            # On background FP changes, with p = q; on cells TP and FN do, with p = 1 - q. dp/dz is q (1 - q) on both.
            change = torch.mul(y[part], tp - fn - fp).add_(fp).mul_(torch.addcmul(q, q, q, value=-1))
        if focal and not asked.focal_cells:
            out.mul_(background_cost)
            out.sub_(q.mul_(cell_cost).add_(out).mul_(y[part]))
        elif asked.costs:
            out.mul_(torch.mul(y[part], -(cell_cost + background_cost)).add_(background_cost))
        else:
            out.zero_()
        if change is not None:
            out.add_(change)


def _parts(z: Tensor) -> list[slice]:
    """Images to work on at once: on a CPU one by one, so that what lies between stays in its cache."""
    n_images = 1 if on_cpu(z) else len(z)
    return [slice(first, first + n_images) for first in range(0, len(z), n_images)]

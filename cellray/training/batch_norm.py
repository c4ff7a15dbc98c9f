"""Batch norm whose statistics are a whole batch's, and statistics that a short training can be judged with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from cellray.device import autocast
from cellray.errors import StudyError


def estimate_batch_norm(model: nn.Module, batches: Iterable[Tensor], *, device: torch.device, precision: str) -> None:
    """Set the running statistics of batch norm to their plain average over some batches of images (N, C, H, W).

    With c-ResUnet's momentum of 0.01 the running averages of a short training are still close to their initial
    values, and evaluation mode is nonsense while the training loss looks fine. A network without batch norm stays as it
    is.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
    model.train()
    for images in batches:
        with autocast(device, precision):
            model(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let every batch norm below `model` normalise by the statistics of all members' rows, in place.

    Weights, statistics and their names stay, so that a checkpoint fits both forms. On a GPU this is torch's own
    synchronised batch norm; torch has none for the CPU.

    Raises:
        StudyError: If there is a batch norm of another library, which would see the rows of its own process alone.
    """
    for name, layer in model.named_modules():
        is_known = type(layer) in (nn.BatchNorm2d, nn.SyncBatchNorm) and layer.affine
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not is_known:
            raise StudyError(
                f"several workers can't train this network together: {name} is a {type(layer).__name__} of "
                f"{type(layer).__module__}, and only torch's BatchNorm2d can be shared; set resources.workers: 1"
            )
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SharedBatchNorm  # has the same fields


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the rows of all processes, for tensors on the CPU; each may have another number of rows.

    What is normalised, the gradients and the running statistics are those of `nn.BatchNorm2d` on the whole batch, up
    to the order of sums. Gradients of weight and bias are this process's part, to be added up as those of any other
    layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        mean, variance, count = _statistics(x.detach())
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / (count - 1)), share)  # unbiased, as torch keeps it
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance (C,) of each channel over all processes, and how many values each comes from."""
    variance, mean = (part.double() for part in torch.var_mean(x.float(), dim=(0, 2, 3), correction=0))
    own = x.numel() / x.shape[1]
    # In double precision, where the difference of squares below loses nothing that matters.
    sums = torch.cat([own * mean, own * (variance + mean.square()), mean.new_tensor([own])])
    distributed.all_reduce(sums)
    count = sums[-1].item()
    mean, squares = (sums[:-1] / count).chunk(2)
    return mean.float(), (squares - mean.square()).clamp_(min=0).float(), count


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, whose gradient knows that the statistics come from all x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: float, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.count = count
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        grad, (mean, scale, factor) = grads[0].float(), (v.view(1, -1, 1, 1) for v in (mean, scale, weight * scale))
        normal = (x.float() - mean) * scale
        of_bias, of_weight = grad.sum(dim=(0, 2, 3)), (grad * normal).sum(dim=(0, 2, 3))
        sums = torch.stack([of_bias, of_weight])
        distributed.all_reduce(sums)
        along_one, along_normal = (sums / ctx.count).view(2, 1, -1, 1, 1)
        of_x = (grad - along_one - normal * along_normal) * factor
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None

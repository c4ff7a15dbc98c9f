"""c-ResUnet, the network of the reference study."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CResUnet(nn.Module):
    """c-ResUnet: a residual U-Net behind a learnt 1x1 colour transform.

    Input (N, in_channels, H, W) in [0, 1] with H and W multiples of 8; output logits (N, 1, H, W). 1.71 M parameters at
    16 base features.

    Args:
        base_features: Width n of the first level; levels are n, 2n, 4n, 8n.
        in_channels: Channels of the image.

    References:
        Morelli et al. 2021, https://doi.org/10.1038/s41598-021-01929-5
    """

    size_multiple = 8

    def __init__(self, base_features: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        n = base_features
        self.colour = nn.Conv2d(in_channels, 1, 1)
        self.encoder1 = _ConvBlock(1, n)
        self.encoder2 = _ResidualBlock(n, 2 * n)
        self.encoder3 = _ResidualBlock(2 * n, 4 * n)
        self.bottleneck = nn.Sequential(
            _ResidualBlock(4 * n, 8 * n, kernel_size=5), _ResidualBlock(8 * n, 8 * n, kernel_size=5)
        )
        self.decoder3 = _UpBlock(8 * n, 4 * n)
        self.decoder2 = _UpBlock(4 * n, 2 * n)
        self.decoder1 = _UpBlock(2 * n, n)
        self.head = nn.Conv2d(n, 1, 1)
        self.pool = nn.MaxPool2d(2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        out1, skip1 = _Twice.apply(self.encoder1(self.colour(images)))
        out2, skip2 = _Twice.apply(self.encoder2(self.pool(out1)))
        out3, skip3 = _Twice.apply(self.encoder3(self.pool(out2)))
        deep = self.bottleneck(self.pool(out3))
        up3 = self.decoder3(deep, skip3)
        up2 = self.decoder2(up3, skip2)
        return self.head(self.decoder1(up2, skip1))


class _ConvBlock(nn.Sequential):
    """BN, ELU, convolution, twice (pre-activation)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels, momentum=0.01, eps=1e-3),
            nn.ELU(inplace=True),
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.BatchNorm2d(out_channels, momentum=0.01, eps=1e-3),
            nn.ELU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size, padding=kernel_size // 2),
        )


class _ResidualBlock(nn.Module):
    """A conv block plus its input, through a 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.block = _ConvBlock(in_channels, out_channels, kernel_size)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, same = _Twice.apply(x)
        return self.block(x) + self.shortcut(same)


class _UpBlock(nn.Module):
    """Upsample, concatenate the skip, conv block, plus the upsampled tensor."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = _Upsample(in_channels, out_channels, 2, stride=2)
        self.block = _ConvBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x, same = _Twice.apply(self.up(x))
        return self.block(_Concatenate.apply(x, skip)) + same


class _Twice(torch.autograd.Function):
    """A tensor for two uses, whose gradients are summed into a third tensor.

    Autograd sums them in place, which takes a CPU up to three times as long where tensors are larger than its cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class _Concatenate(torch.autograd.Function):
    """Channels of two tensors behind each other; on a CPU each gets a gradient in one piece.

    Slices of the whole's gradient, a few channels of each pixel, are summed with other gradients eight times as slowly.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.n_channels = first.shape[1]
        return torch.cat([first, second], dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        parts = gradient.tensor_split([ctx.n_channels], dim=1)
        return parts if gradient.is_cuda else tuple(part.clone() for part in parts)


class _Upsample(nn.ConvTranspose2d):
    """A transposed convolution of 2x2 pixels without overlap, as the 1x1 convolution that it is.

    What it returns is the same, in bfloat16 to the bit. On CPUs the gradient of a transposed convolution's bias takes
    three times as long as all the rest of its backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        n, _, height, width = x.shape
        c = self.out_channels
        as_1x1 = self.weight.permute(2, 3, 1, 0).reshape(4 * c, self.in_channels, 1, 1)
        assert self.bias is not None
        pixels = nn.functional.conv2d(x, as_1x1, self.bias.repeat(4)).permute(0, 2, 3, 1)
        pixels = pixels.reshape(n, height, width, 2, 2, c).transpose(2, 3)
        return pixels.reshape(n, 2 * height, 2 * width, c).permute(0, 3, 1, 2)

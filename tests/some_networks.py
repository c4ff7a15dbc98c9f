"""Networks of a user's own: one that is right, and some that are wrong, each in one way."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from cellray.model import CResUnet

CALLS = itertools.count()


class Plain(nn.Module):
    """Two convolutions; right."""

    def __init__(self, in_channels: int, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images).relu())


class Halving(Plain):
    """Right; sides are multiples of 4."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.Upsample(scale_factor=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.up(nn.functional.max_pool2d(self.norm(self.first(images)), 4)))


class ShallowCResUnet(CResUnet):
    """One of each block of c-ResUnet, its upper two levels."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(4, in_channels)
        del self.encoder3, self.bottleneck, self.decoder3, self.decoder2

    def forward(self, images: Tensor) -> Tensor:
        skip = self.encoder1(self.colour(images))
        return self.head(self.decoder1(self.encoder2(self.pool(skip)), skip))


class Squeezing(Plain):
    """Right for two images and more: normalises the mean of each image over the images."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images).relu()
        return self.last(features + self.norm(features.mean((2, 3), keepdim=True)))


class TwoChannels(Plain):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.cat([-logits, logits], dim=1)


class Several(Plain):
    """As with deep supervision: a list in training, a tensor in evaluation."""

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        logits = super().forward(images)
        return [logits, logits] if self.training else logits


class Half(Plain):
    """Of half the size, which is no use at any."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[..., ::2, ::2]


class Sigmoid(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).sigmoid()


class Tanh(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).tanh()


class Relu(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).relu()


class Unused(Plain):
    """A layer that is never called."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.forgotten = nn.Conv2d(4, 4, 3)


class Detached(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images).detach().relu())


class Frozen(Plain):
    """Not a fault, but worth knowing."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.first.requires_grad_(False)


class OwnNorm(nn.BatchNorm2d):
    """Another library's batch norm with an activation in it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class WithOwnNorm(Plain):
    """Worth knowing: several workers can't share it."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.norm = OwnNorm(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.first(images)))


class DropsAlways(Plain):
    """Dropout in evaluation, too."""

    def forward(self, images: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(self.first(images), 0.5))


class LooksAround(Plain):
    """What it says of an image depends on its neighbours."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean((0, 2, 3), keepdim=True))


class Unseeded(Plain):
    """Its weights follow from no seed."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        nn.init.constant_(self.first.bias, next(CALLS))


class Forgetful(Plain):
    """What it has learnt of the images' brightness is in no checkpoint."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.mean: Tensor | float = 0.0

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.mean = images.detach().mean()
        return super().forward(images - self.mean)


class Counting(Plain):
    """Looks at a number while it is built, which torch's device meta has none of; right."""

    def __init__(self, in_channels: int) -> None:
        width = int(torch.linspace(1, 4, 4)[-1].item())
        super().__init__(in_channels, width)


class Fixed(Plain):
    """Takes images of 48 x 48 alone."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (48, 48):
            raise ValueError("expected 48 x 48")
        return super().forward(images)


class NoNetwork:
    def __init__(self, in_channels: int) -> None:
        pass


def no_factory(width: int) -> Plain:
    return Plain(1, width)

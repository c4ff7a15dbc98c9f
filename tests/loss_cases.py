"""Small images for the tests of losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cellray.losses import LOSSES, LossFunction
from cellray.losses.bound import map_names
from cellray.losses.maps import maps_of

SURE = 20.0  # sigmoid(20) is 1 to float32's resolution


def image(*values: float) -> Tensor:
    """One image of one row."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def some_batch(n: int = 3, side: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits and a random mask, of which 30 % are cell pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, 1, side, side), generator=generator)
    return logits, (torch.rand((n, 1, side, side), generator=generator) < 0.3).float()


def some_cells() -> tuple[Tensor, np.ndarray]:
    """Random logits (4, 1, 12, 14), and labels: three cells, two of which touch; one; none; two at the borders."""
    labels = np.zeros((4, 12, 14), dtype=np.int64)
    labels[0, 1:4, 1:6], labels[0, 4:7, 2:5], labels[0, 8:11, 9:13] = 1, 2, 7
    labels[1, 3:9, 4:8] = 3
    labels[3, 0:3, 0:2], labels[3, 9:12, 8:14] = 5, 2
    logits = torch.randn((4, 1, 12, 14), generator=torch.Generator().manual_seed(1)) * 2
    return logits, labels


def mask_of(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels > 0)[:, None].float()


def labels_of(target: Tensor) -> np.ndarray:
    """Each image's 8-connected components, numbered from 1."""
    return np.stack([ndimage.label(mask, np.ones((3, 3)))[0] for mask in target[:, 0].numpy() > 0.5]).astype(np.int64)


def maps_for(function: LossFunction, target: Tensor) -> tuple[Tensor, ...]:
    """The maps that a loss takes after the target, in its order."""
    names = map_names(function)
    return tuple(maps_of(names, labels_of(target))[name] for name in names)


def sound(name: str, target: Tensor) -> Callable[..., Tensor]:
    """A registered loss that brings the maps of `target` along."""
    maps = maps_for(LOSSES[name], target)
    return lambda logits, target, **settings: LOSSES[name](logits, target, *maps, **settings)


def gradient(loss: Callable[..., Tensor], logits: Tensor, target: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    assert leaf.grad is not None
    return leaf.grad


def as_arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """(N, 1, H, W) -> (N, H, W), in double precision."""
    return tuple(tensor[:, 0].double().numpy() for tensor in tensors)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))

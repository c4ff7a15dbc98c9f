"""Tiny drawn images on which a loss is checked: discs, and predictions of them that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cellray.losses.maps import MAPS, maps_of

SIDE_PX = 24
SMALL, MIDDLE, LARGE = 2, 3, 5
"""Radii in px of the discs; their areas are 13, 29 and 81 px."""

Disc = tuple[int, int, int]
"""Centre row, centre column, radius."""

ORDINARY: tuple[tuple[Disc, ...], ...] = (
    ((7, 7, LARGE), (17, 16, SMALL)),
    ((8, 6, MIDDLE), (8, 13, MIDDLE)),
    ((5, 5, SMALL), (5, 17, SMALL), (17, 8, SMALL)),
)
"""Three images: different sizes, two cells that touch, small ones only. Each has another share of cell pixels."""

EQUAL: tuple[Disc, ...] = ((5, 5, MIDDLE), (5, 18, MIDDLE), (18, 5, MIDDLE))
SPURIOUS: Disc = (18, 18, MIDDLE)
UNEQUAL: tuple[Disc, ...] = ((8, 8, LARGE), (18, 18, SMALL))

MISSED: Disc = (3, 3, MIDDLE)
FEW: tuple[Disc, ...] = ((3, 11, MIDDLE),)
MANY: tuple[Disc, ...] = (*FEW, (17, 7, LARGE), (17, 18, LARGE))
"""Further cells lie farther from the missed one than its neighbour, and leave what is near it alone."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A batch of true masks with their maps, all of shape (N, 1, H, W)."""

    target: Tensor
    maps: dict[str, Tensor]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Scene:
        """The same scene with `change` done to the mask and to every map."""
        return Scene(change(self.target), {name: change(values) for name, values in self.maps.items()})

    def image(self, k: int) -> Scene:
        """One image of the batch."""
        return self.changed(lambda values: values[k : k + 1])

    def relabelled(self) -> Scene:
        """The same scene with other ids for the cells."""
        ids = {name: torch.where(self.maps[name] > 0, 7 * self.maps[name] + 3, 0) for name in ("components", "voronoi")}
        return Scene(self.target, self.maps | ids)

    def surely(self, size: float = 50.0) -> Tensor:
        """Logits that are right everywhere, `size` away from 0."""
        return (2 * self.target - 1) * size


@lru_cache
def ordinary() -> Scene:
    return _scene([_draw(discs) for discs in ORDINARY])


@lru_cache
def equal_cells() -> Scene:
    return _scene([_draw(EQUAL)])


@lru_cache
def unequal_cells() -> Scene:
    return _scene([_draw(UNEQUAL)])


@lru_cache
def few_cells() -> Scene:
    return _scene([_draw((*FEW, MISSED))])


@lru_cache
def many_cells() -> Scene:
    return _scene([_draw((*MANY, MISSED))])


@lru_cache
def empty() -> Scene:
    return _scene([_draw([])])


@lru_cache
def full() -> Scene:
    return _scene([np.ones((SIDE_PX, SIDE_PX), np.int32)])


@lru_cache
def empty_and_full() -> Scene:
    return _scene([_draw([]), np.ones((SIDE_PX, SIDE_PX), np.int32)])


@lru_cache
def ordinary_logits() -> Tensor:
    """What a half-trained network might say of `ordinary`: moved by a pixel, one cell missed, one spurious.

    Every |z| is between 1.1 and 1.9, off the kinks at 0 (who is cell) and 1 (the margin of a hinge), and no two are
    alike, so that a small step changes little of their order.
    """
    seen = [*ORDINARY[:2], ORDINARY[2][:2]]
    masks = np.stack([np.roll(_draw(discs), 1, axis=1) > 0 for discs in seen])
    masks[1] |= mask_of([(18, 18, SMALL)])
    generator = torch.Generator().manual_seed(0)
    noise = 0.8 * torch.rand((len(masks), 1, SIDE_PX, SIDE_PX), generator=generator) - 0.4
    return (2 * torch.from_numpy(masks)[:, None].float() - 1) * 1.5 + noise


def mask_of(discs: Iterable[Disc]) -> np.ndarray:
    """Mask (H, W) of the pixels that some disc covers."""
    return _draw(discs) > 0


def prediction(discs: Iterable[Disc], size: float) -> Tensor:
    """Logits (1, 1, H, W): `size` in the discs, -`size` elsewhere."""
    return (2 * torch.from_numpy(mask_of(discs))[None, None].float() - 1) * size


def _draw(discs: Iterable[Disc]) -> np.ndarray:
    """Label image (H, W); the disc named first is cell 1."""
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    labels = np.zeros((SIDE_PX, SIDE_PX), np.int32)
    for number, (row, column, radius) in enumerate(discs, start=1):
        labels[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = number
    return labels


def _scene(images: list[np.ndarray]) -> Scene:
    labels = np.stack(images)
    return Scene(torch.from_numpy(labels > 0)[:, None].float(), maps_of(MAPS, labels))

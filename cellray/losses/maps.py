"""Maps of the true cells that some losses need besides the mask: computed once for each image, never in a step.

A loss asks for them by the names of its parameters after ``target``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellray.arrays import Labels, Numbers
from cellray.torch_later import Tensor, torch

LIMIT_PX = 64.0
"""Distances are clipped to this: no loss looks further, and two bytes can then hold them."""

MAPS_VERSION = 1
"""Raised when a change of code changes a map, so that cached ones are computed again."""


def voronoi_map(labels: Labels) -> Labels:
    """The id of the nearest cell at every pixel, shape (H, W); in a cell its own. All 0 in an image without cells."""
    if not labels.any():
        return labels
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def distance_map(labels: Labels) -> NDArray[np.float16]:
    """Signed distance in px to the border of the mask, shape (H, W): negative in cells, within +-`LIMIT_PX`.

    The pixels on both sides of the border have -0.5 and +0.5. Without a cell it is `LIMIT_PX` everywhere, and its
    negative where there is nothing but cell. Touching cells count as one: this map is about the mask.
    """
    mask = labels > 0
    if mask.all() or not mask.any():
        return np.full(labels.shape, -LIMIT_PX if mask.any() else LIMIT_PX, np.float16)
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    signed = np.where(mask, 0.5 - inside, outside - 0.5)
    return np.clip(signed, -LIMIT_PX, LIMIT_PX).astype(np.float16)


def two_nearest_map(labels: Labels) -> NDArray[np.float16]:
    """Sum of the distances in px to the two nearest cells, shape (H, W); each is at most `LIMIT_PX`, 0 in the cell."""
    first = np.full(labels.shape, LIMIT_PX, np.float32)
    second = first.copy()
    reach = int(LIMIT_PX)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        near = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(labels[near] != number).astype(np.float32)
        second[near] = np.minimum(second[near], np.maximum(first[near], distance))
        first[near] = np.minimum(first[near], distance)
    return (first + second).astype(np.float16)


STORED: dict[str, Callable[[Labels], Numbers]] = {
    "voronoi": voronoi_map,
    "distance": distance_map,
    "two_nearest": two_nearest_map,
}
"""The maps that are kept beside the decoded images, each a function of a label image (H, W)."""

MAPS = ("components", *STORED)
"""Every map a loss can ask for. `components` needs no file: it is `voronoi` where the mask is."""


def stored_maps(names: Iterable[str]) -> tuple[str, ...]:
    """The maps to keep so that `names` can be had, in a fixed order."""
    wanted = {"voronoi" if name == "components" else name for name in names}
    return tuple(name for name in STORED if name in wanted)


def complete_maps(names: Iterable[str], stored: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    """The maps called `names` from the stored ones, for targets of the same shape.

    Taking the components from the Voronoi map makes them agree with the target pixel by pixel, also where a
    resampled mask has moved a border.
    """
    return {name: stored["voronoi"] * target.long() if name == "components" else stored[name] for name in names}


def maps_of(names: Iterable[str], labels: NDArray[np.integer]) -> dict[str, Tensor]:
    """Maps of label images (N, H, W), each a tensor (N, 1, H, W): int64 ids, float32 distances."""
    names = tuple(names)
    stored = {name: as_tensor(np.stack([STORED[name](image) for image in labels])) for name in stored_maps(names)}
    return complete_maps(names, stored, torch.from_numpy(labels > 0)[:, None])


def as_tensor(values: Numbers) -> Tensor:
    """A stored map (N, H, W) as a loss takes it: (N, 1, H, W), int64 or float32."""
    kind = np.float32 if values.dtype == np.float16 else np.int64
    return torch.from_numpy(values.astype(kind))[:, None]

"""Training batches: random crops of the cached images, changed at random in one step on the training device.

Every random number comes from (seed, purpose, position), never from a running state: a resumed training sees the very
crops the undisturbed one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cellray.data import Dataset
from cellray.errors import DataError
from cellray.losses.maps import as_tensor, complete_maps, stored_maps
from cellray.study import AugmentConfig


def check_crop(dataset: Dataset, indices: list[int], crop_px: int) -> None:
    """Make sure that some training image holds a whole crop; smaller ones beside it are continued by reflection.

    Raises:
        DataError: Naming the largest image and the crop.
    """
    shapes = {index: dataset.labels(index).shape for index in indices}
    largest = max(indices, key=lambda index: (min(shapes[index]), max(shapes[index])))
    height, width = shapes[largest]
    if min(height, width) < crop_px:
        raise DataError(
            f"dataset {dataset.name!r}: training.crop_px is {crop_px}, but no training image is that large; "
            f"the largest, {dataset.names[largest]!r}, has {width}x{height} px, so crop_px can be at most "
            f"{min(height, width) // 8 * 8}"
        )


class Batch(NamedTuple):
    """What one training step sees."""

    images: Tensor
    """Shape (N, C, H, W), in [0, 1]."""
    target: Tensor
    """Cell mask of 0 and 1, shape (N, 1, H, W)."""
    maps: dict[str, Tensor]
    """Maps of the true cells that the loss asks for, each of the target's shape."""
    void: Tensor | None
    """Pixels that count in no loss, of the target's shape; None where the dataset has none. The target is 0 there."""


class CropSampler:
    """Draws batch number `step` of a training run.

    Images are visited in a fresh random order each epoch; a crop is uniform over its image, and an image smaller than
    the crop is continued by reflection.

    Args:
        dataset: Images and labels.
        indices: The training images.
        crop_px: Side of a crop.
        batch_size: Crops a batch.
        augment: Ranges of the random changes.
        seed: Of this training run.
        device: Where batches are wanted; the changes are computed there.
        maps: Maps of the true cells that go with each batch, cropped and changed as its images; they must have been
            stored (`add_maps`).
        rows: The rows of each batch that are wanted; they are what they are in a whole batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: list[int],
        *,
        crop_px: int,
        batch_size: int,
        augment: AugmentConfig,
        seed: int,
        device: torch.device,
        maps: Sequence[str] = (),
        rows: slice = slice(None),
    ) -> None:
        self.dataset, self.indices, self.rows = dataset, indices, rows
        self.maps, self.stored = tuple(maps), stored_maps(maps)
        self.crop_px, self.batch_size, self.augment = crop_px, batch_size, augment
        self.seed, self.device = seed, device
        # The widest window that a turned and shrunk crop can look at.
        angle = math.radians(min(augment.rotation_deg, 45.0))
        reach = (math.cos(angle) + math.sin(angle)) / (1 - augment.zoom)
        self.window_px = crop_px if self._is_plain() else 2 * math.ceil(crop_px * reach / 2 + 1)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def batch(self, step: int, purpose: int = 0) -> Batch:
        """Batch `step` (from 0); another `purpose` draws other crops of the same images."""
        rng = np.random.default_rng([self.seed, 1, purpose, step])
        # Numbers are drawn for the whole batch, whatever rows are wanted.
        visits, places = self._visits(step, purpose)[self.rows], rng.random((self.batch_size, 2))[self.rows]
        n, side, channels = len(visits), self.window_px, self.dataset.image(self.indices[0]).shape[2]
        windows = np.zeros((n, side, side, channels + 1 + self.dataset.has_void), np.uint8)
        drawn = {name: np.empty((n, side, side), self.dataset.map(name, 0).dtype) for name in self.stored}
        for k, (index, place) in enumerate(zip(visits, places, strict=True)):
            self._cut(index, place, windows[k], {name: windows_of[k] for name, windows_of in drawn.items()})
        pixels = torch.from_numpy(windows).to(self.device).permute(0, 3, 1, 2).float()
        maps = {name: as_tensor(values).to(self.device) for name, values in drawn.items()}
        if not self._is_plain():
            grid, scale = self._grid(rng)
            pixels = _sample(pixels, grid, "bilinear")
            maps = {name: _moved(values, grid, scale) for name, values in maps.items()}
        images, targets = pixels[:, :channels] / 255, (pixels[:, channels : channels + 1] > 0.5).float()
        void = pixels[:, channels + 1 :] > 0 if self.dataset.has_void else None
        if void is not None:
            targets = targets.masked_fill(void, 0)
        images = self._relight(images, rng)
        return Batch(
            images.contiguous(memory_format=torch.channels_last),
            targets,
            complete_maps(self.maps, maps, targets),
            void,
        )

    def _is_plain(self) -> bool:
        augment = self.augment
        return not augment.flips and augment.rotation_deg == 0 and augment.zoom == 0

    def _visits(self, step: int, purpose: int) -> list[int]:
        """Image numbers of batch `step`: consecutive places in an endless row of shuffled epochs."""
        n, order = len(self.indices), {}
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        for epoch in {place // n for place in places}:
            order[epoch] = np.random.default_rng([self.seed, 2, purpose, epoch]).permutation(n)
        return [self.indices[order[place // n][place % n]] for place in places]

    def _cut(self, index: int, place: np.ndarray, out: np.ndarray, maps: dict[str, np.ndarray]) -> None:
        """Fill `out` (window, window, C + 1) with a window of the image and its mask, and `maps` with theirs.

        A dataset with void pixels has one channel more for them.

        `place` says where, down and across, each in [0, 1).
        """
        image, labels, void = self.dataset.image(index), self.dataset.labels(index), self.dataset.void(index)
        channels = image.shape[2]
        rows = self._place(image.shape[0], place[0])
        columns = self._place(image.shape[1], place[1])
        if isinstance(rows, slice) and isinstance(columns, slice):
            out[..., :channels] = image[rows, columns]
            np.greater(labels[rows, columns], 0, out=out[..., channels].view(bool))
            if void is not None:
                out[..., -1] = void[rows, columns]
            for name, window in maps.items():
                window[:] = self.dataset.map(name, index)[rows, columns]
        else:
            rows = np.arange(image.shape[0])[rows] if isinstance(rows, slice) else rows
            columns = np.arange(image.shape[1])[columns] if isinstance(columns, slice) else columns
            picked = np.ix_(rows, columns)
            out[..., :channels] = image[picked]
            out[..., channels] = labels[picked] > 0
            if void is not None:
                out[..., -1] = void[picked]
            for name, window in maps.items():
                window[:] = self.dataset.map(name, index)[picked]

    def _place(self, length: int, where: float) -> slice | np.ndarray:
        """Positions along one axis: a slice, or reflected positions where the window passes an edge."""
        room = max(length - self.crop_px, 0)
        start = round(where * room) - (self.window_px - self.crop_px) // 2
        if length < self.crop_px:
            start -= (self.crop_px - length) // 2
        if start >= 0 and start + self.window_px <= length:
            return slice(start, start + self.window_px)
        position = np.abs(np.arange(start, start + self.window_px)) % max(2 * length - 2, 1)
        return np.minimum(position, max(2 * length - 2, 0) - position) if length > 1 else np.zeros_like(position)

    def _grid(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Flip, turn and zoom of each window: where each pixel of its crop looks, and how much larger things become."""
        n, limit = self.batch_size, self.augment.rotation_deg
        angle = np.radians(rng.uniform(-limit, limit, n))
        scale = rng.uniform(1 - self.augment.zoom, 1 + self.augment.zoom, n)
        flips = rng.choice([-1.0, 1.0], (2, n)) if self.augment.flips else np.ones((2, n))
        # Output pixel -> window position, both in [-1, 1]: the crop fills crop/window of the window.
        ratio = self.crop_px / self.window_px / scale
        matrix = np.zeros((n, 2, 3), np.float32)
        matrix[:, 0, 0], matrix[:, 0, 1] = ratio * np.cos(angle) * flips[0], -ratio * np.sin(angle) * flips[1]
        matrix[:, 1, 0], matrix[:, 1, 1] = ratio * np.sin(angle) * flips[0], ratio * np.cos(angle) * flips[1]
        matrix, scale = matrix[self.rows], scale[self.rows].astype(np.float32)
        size = [len(matrix), 1, self.crop_px, self.crop_px]
        grid = functional.affine_grid(torch.from_numpy(matrix).to(self.device), size, align_corners=False)
        return grid, torch.from_numpy(scale).to(self.device).view(-1, 1, 1, 1)

    def _relight(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Scale the contrast about each crop's mean and shift the brightness, within [0, 1]."""
        n = self.batch_size
        contrast = rng.uniform(1 - self.augment.contrast, 1 + self.augment.contrast, n)[self.rows]
        shift = rng.uniform(-self.augment.brightness, self.augment.brightness, n)[self.rows]
        if self.augment.contrast == 0 and self.augment.brightness == 0:
            return images
        factor = torch.tensor(contrast, dtype=torch.float32, device=self.device).view(-1, 1, 1, 1)
        offset = torch.tensor(shift, dtype=torch.float32, device=self.device).view(-1, 1, 1, 1)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        # Relative to the mean, since a background near 0 would otherwise be lifted far above its own level.
        return ((images - mean) * factor + mean * (1 + offset)).clamp_(0, 1)


def _moved(values: Tensor, grid: Tensor, scale: Tensor) -> Tensor:
    """A map (N, 1, H, W) seen through the grid: ids of the nearest pixel, distances in the crop's own pixels."""
    if values.is_floating_point():
        return _sample(values, grid, "bilinear") * scale
    return _sample(values.float(), grid, "nearest").long()  # ids below 2^24 survive this


def _sample(pixels: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(pixels, grid, mode=mode, padding_mode="reflection", align_corners=False)

"""Training batches: random crops of the cached images, changed at random in one step on the training device.

Every random number comes from (seed, purpose, position), never from a running state: a resumed training sees the very
crops the undisturbed one would have seen.

What is cut and drawn for a batch lies in one piece of memory, which goes to a GPU in one transfer; there a thread cuts
the next batch meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cellray.data import Dataset
from cellray.errors import DataError
from cellray.losses.maps import complete_maps, stored_maps
from cellray.study import AugmentConfig
from cellray.torch_later import Tensor, functional, torch


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


class _Part(NamedTuple):
    """One array in a batch's piece of memory."""

    kind: np.dtype
    shape: tuple[int, ...]
    start: int
    """First byte."""
    stop: int


class CropSampler:
    """Draws batch number `step` of a training run.

    Images are visited in a fresh random order each epoch; a crop is uniform over its image or around one of its cells,
    and an image smaller than the crop is continued by reflection.

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
        foreground: Share of a batch's crops that are around a cell, each cell of the image being as likely; in images
            without cells they are uniform too.
        ahead: Cut the next batch of a training in a thread; None: on a GPU.
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
        foreground: float = 0.0,
        ahead: bool | None = None,
    ) -> None:
        self.dataset, self.indices, self.rows = dataset, indices, rows
        self.n_around_cells = round(foreground * batch_size)
        self._centres: dict[int, np.ndarray] = {}
        self.maps, self.stored = tuple(maps), stored_maps(maps)
        self.crop_px, self.batch_size, self.augment = crop_px, batch_size, augment
        self.seed, self.device = seed, device
        # The widest window that a turned and shrunk crop can look at.
        angle = math.radians(min(augment.rotation_deg, 45.0))
        reach = (math.cos(angle) + math.sin(angle)) / (1 - augment.zoom)
        self.window_px = crop_px if self._is_plain() else 2 * math.ceil(crop_px * reach / 2 + 1)
        self._is_pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1) if (self._is_pinned if ahead is None else ahead) else None
        self._next: tuple[tuple[int, int], Future[Tensor]] | None = None
        self._parts = self._laid_out()

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def batch(self, step: int, purpose: int = 0) -> Batch:
        """Batch `step` (from 0); another `purpose` draws other crops of the same images."""
        expected, self._next = self._next, None
        if expected is not None and expected[0] == (step, purpose):
            drawn = expected[1].result()
        else:
            drawn = self._draw(step, purpose)
        if self._thread is not None:
            self._next = (step + 1, purpose), self._thread.submit(self._draw, step + 1, purpose)
        return self._changed(drawn)

    def _laid_out(self) -> dict[str, _Part]:
        """Where in a batch's memory each array lies, those of wide numbers first."""
        n, side = len(range(*self.rows.indices(self.batch_size))), self.window_px
        channels = self.dataset.image(self.indices[0]).shape[2] + 1 + self.dataset.has_void
        kinds = {name: self.dataset.map(name, 0).dtype for name in self.stored}
        wanted: list[tuple[str, str, tuple[int, ...]]] = [
            ("matrix", "float32", (n, 2, 3)),
            *((name, "float32", (n, 1, 1, 1)) for name in ("scale", "contrast", "shift")),
            *((name, "int32", (n, side, side)) for name, kind in kinds.items() if kind.kind != "f"),
            *((name, "float16", (n, side, side)) for name, kind in kinds.items() if kind.kind == "f"),
            ("windows", "uint8", (n, side, side, channels)),
        ]
        parts: dict[str, _Part] = {}
        start = 0
        for name, word, shape in wanted:
            kind = np.dtype(word)
            stop = start + kind.itemsize * math.prod(shape)
            parts[name] = _Part(kind, shape, start, stop)
            start = stop
        return parts

    def _draw(self, step: int, purpose: int) -> Tensor:
        """The memory of a batch: windows of its images and maps, and how they are to be changed."""
        drawn = torch.empty(self._parts["windows"].stop, dtype=torch.uint8, pin_memory=self._is_pinned)
        memory = drawn.numpy()
        arrays = {
            name: memory[part.start : part.stop].view(part.kind).reshape(part.shape)
            for name, part in self._parts.items()
        }
        rng = np.random.default_rng([self.seed, 1, purpose, step])
        # Numbers are drawn for the whole batch, whatever rows are wanted.
        visits, places = self._visits(step, purpose), rng.random((self.batch_size, 2))
        self._move_to_cells(visits, places, step, purpose)
        for k, (index, place) in enumerate(zip(visits[self.rows], places[self.rows], strict=True)):
            self._cut(index, place, arrays["windows"][k], {name: arrays[name][k] for name in self.stored})
        if not self._is_plain():
            self._draw_moves(rng, arrays)
        n, augment = self.batch_size, self.augment
        for name, limit, middle in (("contrast", augment.contrast, 1), ("shift", augment.brightness, 0)):
            arrays[name][:, 0, 0, 0] = rng.uniform(middle - limit, middle + limit, n)[self.rows]
        return drawn

    def _changed(self, drawn: Tensor) -> Batch:
        """A batch on its device from what was drawn for it."""
        there = drawn.to(self.device, non_blocking=True)
        arrays = {
            name: there[part.start : part.stop].view(getattr(torch, part.kind.name)).view(part.shape)
            for name, part in self._parts.items()
        }
        pixels = arrays["windows"].permute(0, 3, 1, 2).float()
        stored = {name: arrays[name][:, None] for name in self.stored}
        maps = {
            name: values.float() if values.is_floating_point() else values.long() for name, values in stored.items()
        }
        if not self._is_plain():
            size = [len(pixels), 1, self.crop_px, self.crop_px]
            grid = functional.affine_grid(arrays["matrix"], size, align_corners=False)
            pixels = _sample(pixels, grid, "bilinear")
            maps = {name: _moved(values, grid, arrays["scale"]) for name, values in maps.items()}
        channels = pixels.shape[1] - 1 - self.dataset.has_void
        images, targets = pixels[:, :channels] / 255, (pixels[:, channels : channels + 1] > 0.5).float()
        void = pixels[:, channels + 1 :] > 0 if self.dataset.has_void else None
        if void is not None:
            targets = targets.masked_fill(void, 0)
        if self.augment.contrast or self.augment.brightness:
            images = _relit(images, arrays["contrast"], arrays["shift"])
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

    def _move_to_cells(self, visits: list[int], places: np.ndarray, step: int, purpose: int) -> None:
        """Put the first crops' places where each has a cell in its inner half, as far as the image's edges allow."""
        rng = np.random.default_rng([self.seed, 3, purpose, step])
        picks, offsets = rng.random(self.n_around_cells), rng.uniform(0.25, 0.75, (self.n_around_cells, 2))
        for k, (pick, offset) in enumerate(zip(picks, offsets, strict=True)):
            centres = self._cell_centres(visits[k])
            if len(centres):
                room = np.maximum(np.array(self.dataset.labels(visits[k]).shape) - self.crop_px, 0)
                start = centres[int(pick * len(centres))] - offset * self.crop_px
                places[k] = np.clip(start, 0, room) / np.maximum(room, 1)

    def _cell_centres(self, index: int) -> np.ndarray:
        """Middle of each cell's bounding box, shape (n_cells, 2), in pixels down and across."""
        if index not in self._centres:
            boxes = [box for box in ndimage.find_objects(self.dataset.labels(index)) if box is not None]
            middles = [[(side.start + side.stop - 1) / 2 for side in box] for box in boxes]
            self._centres[index] = np.array(middles, dtype=float).reshape(-1, 2)
        return self._centres[index]

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
            if self.dataset.has_void:
                out[..., -1] = 0 if void is None else void[rows, columns]
            for name, window in maps.items():
                window[:] = self.dataset.map(name, index)[rows, columns]
        else:
            rows = np.arange(image.shape[0])[rows] if isinstance(rows, slice) else rows
            columns = np.arange(image.shape[1])[columns] if isinstance(columns, slice) else columns
            picked = np.ix_(rows, columns)
            out[..., :channels] = image[picked]
            out[..., channels] = labels[picked] > 0
            if self.dataset.has_void:
                out[..., -1] = 0 if void is None else void[picked]
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

    def _draw_moves(self, rng: np.random.Generator, arrays: dict[str, np.ndarray]) -> None:
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
        arrays["matrix"][:], arrays["scale"][:, 0, 0, 0] = matrix[self.rows], scale[self.rows]


def _relit(images: Tensor, contrast: Tensor, shift: Tensor) -> Tensor:
    """Images with their contrast scaled about each one's mean and their brightness shifted, within [0, 1]."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    # Relative to the mean, since a background near 0 would otherwise be lifted far above its own level.
    return ((images - mean) * contrast + mean * (1 + shift)).clamp_(0, 1)


def _moved(values: Tensor, grid: Tensor, scale: Tensor) -> Tensor:
    """A map (N, 1, H, W) seen through the grid: ids of the nearest pixel, distances in the crop's own pixels."""
    if values.is_floating_point():
        return _sample(values, grid, "bilinear") * scale
    return _sample(values.float(), grid, "nearest").long()  # ids below 2^24 survive this


def _sample(pixels: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(pixels, grid, mode=mode, padding_mode="reflection", align_corners=False)

"""Cut the places with signal out of a mask and lay them side by side, so that the empty rest costs nothing.

Cells cover about 0.5 % of a fluorescence image. Boxes around the signal are put on one small sheet, which goes
through the morphology in one pass. The boxes are drawn so that no result depends on them: each has so much background
around its signal that nothing of what a disk can reach or a contour encloses lies in another box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cellray.arrays import Ints, Labels, Mask

_LEAST_BLOCK_PX = 8
_MOST_SIGNAL = 0.06  # share of pixels; with more the boxes would hardly save anything
_SHEET_COST_PX, _BOX_COST_PX = 40_000, 1_500  # cutting costs as much time as so many pixels of the chain


class Slot(NamedTuple):
    """One box: where it lies in the image, and where on the sheet, in pixels."""

    y: int
    """May be negative: boxes keep their margin beyond the border of the image."""
    x: int
    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class Sheet:
    """Boxes of an image laid side by side, or the image as it is."""

    image_shape: tuple[int, int]
    mask: Mask
    """Shape (rows, columns) of the sheet; empty between the boxes."""
    inside: Mask | None = None
    """False on those parts of boxes that lie beyond the border of the image. None: the sheet is the image."""
    slots: tuple[Slot, ...] = ()

    def to_image(self, labels: Labels) -> Labels:
        """Labels on the sheet as labels of the image, shape (H, W)."""
        if self.inside is None:
            return labels
        height, width = self.image_shape
        out = np.zeros(self.image_shape, dtype=np.int32)
        for s in self.slots:
            top, left = max(-s.y, 0), max(-s.x, 0)
            bottom, right = min(s.height, height - s.y), min(s.width, width - s.x)
            part = labels[s.row + top : s.row + bottom, s.col + left : s.col + right]
            out[s.y + top : s.y + bottom, s.x + left : s.x + right] = part
        return out

    def to_image_pixels(self, pixels: Ints) -> Ints:
        """Flat indices of pixels on the sheet, each inside a box, as flat indices of the image."""
        if self.inside is None:
            return pixels
        rows, cols = np.divmod(pixels, self.mask.shape[1])
        y, x, row, col, height, width = (np.array(values)[:, None] for values in zip(*self.slots, strict=True))
        within = (rows >= row) & (rows < row + height) & (cols >= col) & (cols < col + width)
        slot = within.argmax(axis=0)
        image_y, image_x = rows + (y - row)[slot, 0], cols + (x - col)[slot, 0]
        return image_y * self.image_shape[1] + image_x


def lay_out(mask: Mask, radius: int) -> Sheet:
    """The sheet of a mask that will be opened and closed by a disk of `radius` pixels (0: neither).

    Signal that the opening would remove anyway may be missing from it. Where boxes would save nothing, because
    the image is small or full of signal, the sheet is the image.
    """
    cut = None
    if mask.size > _SHEET_COST_PX and np.count_nonzero(mask) <= _MOST_SIGNAL * mask.size:
        cut = cut_out(mask, radius, most_px=mask.size // 2 - _SHEET_COST_PX)
    return cut or Sheet(mask.shape, mask)


def cut_out(mask: Mask, radius: int, most_px: float = math.inf) -> Sheet | None:
    """As `lay_out`, in boxes whatever it costs; None if that is more than the time of `most_px` pixels."""
    block_px = max(_LEAST_BLOCK_PX, 2 * radius)
    pixels = np.flatnonzero(mask)
    y, x = np.divmod(pixels, max(mask.shape[1], 1))
    row, col = y // block_px, x // block_px
    n_rows, n_cols = (-(-length // block_px) for length in mask.shape)
    counts = np.bincount(row * n_cols + col, minlength=n_rows * n_cols).reshape(n_rows, n_cols)
    occupied = _can_hold_disk(counts, radius, mask.shape) & (counts > 0)
    groups, n_groups = ndimage.label(occupied, np.ones((3, 3)))
    if n_groups * _BOX_COST_PX > most_px:
        return None
    group = groups[row, col]
    boxes = _with_margin(_bounds(group, n_groups, y, x), radius + 1, mask.shape)
    slots, shape = _shelves(_merged(boxes))
    if shape[0] * shape[1] + len(slots) * _BOX_COST_PX > most_px:
        return None
    stray = pixels[group == 0]
    if len(stray):
        mask = mask.copy()
        mask.ravel()[stray] = False
    return _copied(mask, slots, shape)


def _can_hold_disk(counts: Ints, radius: int, shape: tuple[int, int]) -> Mask:
    """The blocks that a disk can lie in, as far as the pixels in each two by two blocks suffice for one."""
    quarter_px = sum(math.isqrt(radius**2 - dy**2) + 1 for dy in range(radius + 1))
    disk_px = 4 * (quarter_px - radius - 1) + 1
    padded = np.pad(counts, 1)
    rows = padded[1:] + padded[:-1]
    windows = rows[:, 1:] + rows[:, :-1]
    fits = windows >= disk_px
    # the border may have cut off all but a quarter, and in an image smaller than the disk even more
    for edge in (np.s_[0], np.s_[-2:], np.s_[:, 0], np.s_[:, -2:]):
        fits[edge] = windows[edge] >= (quarter_px if min(shape) > 2 * radius else 1)
    fits = fits[1:] | fits[:-1]
    return fits[:, 1:] | fits[:, :-1]


def _bounds(group: Ints, n_groups: int, y: Ints, x: Ints) -> Ints:
    """First y, first x, end of y and of x of the pixels of each group from 1, shape (n_groups, 4)."""
    far = np.iinfo(np.int64).max
    bounds = np.full((4, n_groups + 1), [[far], [far], [-1], [-1]])
    for k, axis in enumerate((y, x)):
        np.minimum.at(bounds[k], group, axis)
        np.maximum.at(bounds[k + 2], group, axis + 1)
    return bounds.T[1:]


def _with_margin(boxes: Ints, margin: int, shape: tuple[int, int]) -> Ints:
    boxes = boxes + np.array([-margin, -margin, margin, margin])
    # what reaches beyond the image reaches so far that no disk at the border sees the next box on the sheet
    for axis, length in enumerate(shape):
        starts, ends = boxes[:, axis], boxes[:, axis + 2]
        starts[starts < 0] = -margin
        ends[ends > length] = length + margin
    return boxes


def _merged(boxes: Ints) -> Ints:
    """Boxes that overlap, united until none do."""
    while True:
        starts, ends = boxes[:, None, :2], boxes[:, None, 2:]
        starts_before_end = np.all(starts < boxes[:, 2:], axis=2)
        overlap: Mask = starts_before_end & starts_before_end.T
        if np.count_nonzero(overlap) == len(boxes):
            return boxes
        # each becomes the union of all that it overlaps with; boxes that are one then are equal sooner or later
        lowest = np.where(overlap[..., None], starts, boxes.max()).min(axis=0)
        highest = np.where(overlap[..., None], ends, boxes.min()).max(axis=0)
        boxes = np.unique(np.concatenate([lowest, highest], axis=1), axis=0)


def _shelves(boxes: Ints) -> tuple[tuple[Slot, ...], tuple[int, int]]:
    """A place for each box, in rows with the highest boxes first, and the shape of the sheet."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    width_px = max(int(sizes[:, 1].max(initial=1)), math.isqrt(int(sizes.prod(axis=1).sum())))
    slots, row, col, shelf = [], 0, 0, 0
    for k in np.argsort(-sizes[:, 0], kind="stable").tolist():
        height, width = sizes[k].tolist()
        if col + width > width_px:
            row, col, shelf = row + shelf, 0, 0
        slots.append(Slot(int(boxes[k, 0]), int(boxes[k, 1]), row, col, height, width))
        col, shelf = col + width, max(shelf, height)
    return tuple(slots), (max(row + shelf, 1), width_px)


def _copied(mask: Mask, slots: tuple[Slot, ...], shape: tuple[int, int]) -> Sheet:
    height, width = mask.shape
    sheet, inside = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    for s in slots:
        top, left = max(-s.y, 0), max(-s.x, 0)
        bottom, right = min(s.height, height - s.y), min(s.width, width - s.x)
        rows, cols = slice(s.row + top, s.row + bottom), slice(s.col + left, s.col + right)
        sheet[rows, cols] = mask[s.y + top : s.y + bottom, s.x + left : s.x + right]
        if (bottom - top, right - left) != (s.height, s.width):
            inside[s.row : s.row + s.height, s.col : s.col + s.width] = False
            inside[rows, cols] = True
    return Sheet(mask.shape, sheet, inside, slots)

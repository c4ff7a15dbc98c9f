"""The contingency table of two label images of one scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cellray.arrays import Floats, Ints, Labels, Mask
from cellray.errors import DataError, ShapeError

_LARGEST_LOOKUP = 1 << 22


@dataclass(frozen=True)
class Contingency:
    """What two label images of one scene share: rows are true cells, columns predicted ones, ordered by id."""

    true_ids: Ints
    pred_ids: Ints
    overlap: Ints
    """Shared pixels, shape (n_true, n_pred)."""
    true_area: Ints
    pred_area: Ints
    true_centres: Floats
    """Centroids (y, x) in pixels, shape (n_true, 2)."""
    pred_centres: Floats
    n_pixels: int

    @cached_property
    def iou(self) -> Floats:
        """Intersection over union of every pair, shape (n_true, n_pred)."""
        return self.overlap / (self.true_area[:, None] + self.pred_area[None, :] - self.overlap)

    @cached_property
    def distance(self) -> Floats:
        """Distance in pixels between the centroids of every pair, shape (n_true, n_pred)."""
        return lengths(self.true_centres[:, None] - self.pred_centres[None])

    def keep_predicted(self, keep: NDArray[np.bool_]) -> Contingency:
        """The table without some predicted cells, as if they were background.

        Args:
            keep: Shape (n_pred,), in the order of `pred_ids`.
        """
        return replace(
            self,
            pred_ids=self.pred_ids[keep],
            overlap=self.overlap[:, keep],
            pred_area=self.pred_area[keep],
            pred_centres=self.pred_centres[keep],
        )


def without_void(true: Labels, pred: Labels, void: Mask) -> Labels:
    """Predicted cells without the pixels that count for nothing.

    A predicted cell is left out whole if more than half of it is void and it meets no true cell.

    Args:
        true: Labels of the true cells, shape (H, W).
        pred: Labels of the predicted cells, same shape.
        void: Pixels that count as neither cell nor background, same shape.
    """
    areas = np.bincount(pred.ravel())
    lost = np.bincount(pred[void], minlength=len(areas))
    meeting = np.bincount(pred[(true != 0) & ~void], minlength=len(areas))
    gone = (2 * lost > areas) & (meeting == 0)
    return np.where(void | gone[pred], 0, pred)


def contingency(true: Labels, pred: Labels, void: Mask | None = None) -> Contingency:
    """Count the pixels that each true cell shares with each predicted one, and place the centroids.

    Args:
        true: Labels of the true cells, shape (H, W), integers >= 0, 0 = background; ids may have gaps.
        pred: Labels of the predicted cells, same shape.
        void: Pixels that count for nothing, same shape, see `without_void`.

    Raises:
        ShapeError: If the shapes differ or are not two-dimensional.
        DataError: If the values are no labels: not integers, or negative.
    """
    _check_labels(true, pred)
    if void is not None:
        true, pred = np.where(void, 0, true), without_void(true, pred, void)
    pixels = np.flatnonzero((true != 0) | (pred != 0))
    true_ids, true_rank = _ranked("true", true.ravel()[pixels])
    pred_ids, pred_rank = _ranked("pred", pred.ravel()[pixels])
    shape = (len(true_ids) + 1, len(pred_ids) + 1)
    pair = true_rank * shape[1] + pred_rank
    table = np.bincount(pair, minlength=shape[0] * shape[1]).reshape(shape)
    y = pixels // max(true.shape[1], 1)
    # sums of whole numbers, so exact: the cells' centroids follow from those of their shared pieces
    sums = [np.bincount(pair, axis, table.size).reshape(shape) for axis in (y, pixels - y * true.shape[1])]
    true_area, pred_area = table.sum(axis=1)[1:], table.sum(axis=0)[1:]
    return Contingency(
        true_ids=true_ids,
        pred_ids=pred_ids,
        overlap=table[1:, 1:],
        true_area=true_area,
        pred_area=pred_area,
        true_centres=np.stack([part.sum(axis=1)[1:] for part in sums], axis=1) / true_area[:, None],
        pred_centres=np.stack([part.sum(axis=0)[1:] for part in sums], axis=1) / pred_area[:, None],
        n_pixels=true.size - (0 if void is None else int(np.count_nonzero(void))),
    )


def lengths(offsets: Floats) -> Floats:
    """Lengths of vectors that lie along the last axis."""
    return np.sqrt((offsets**2).sum(axis=-1))


def _check_labels(true: Labels, pred: Labels) -> None:
    if true.ndim != 2 or true.shape != pred.shape:
        raise ShapeError(f"labels: expected two images of one (H, W), got {true.shape} and {pred.shape}")
    for name, labels in (("true", true), ("pred", pred)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{name} labels: expected integers, 0 = background, got {labels.dtype}")


def _ranked(name: str, values: Labels) -> tuple[Ints, Ints]:
    """The ids > 0 in use, and for each value its place among them from 1, 0 for background."""
    numbers = values.astype(np.int64)
    if numbers.min(initial=0) < 0:
        raise DataError(f"{name} labels: expected ids >= 0, 0 = background, got {numbers.min()}")
    if numbers.max(initial=0) > _LARGEST_LOOKUP:
        ids, rank = np.unique(np.append(numbers, 0), return_inverse=True)
        return ids[1:], rank[:-1].astype(np.int64)
    used = np.bincount(numbers, minlength=1) > 0
    used[0] = False
    places: Ints = np.cumsum(used, dtype=np.int64)
    return np.flatnonzero(used).astype(np.int64), places[numbers]

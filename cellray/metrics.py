"""How well predicted cells agree with true ones: by object, by count and by pixel.

One contingency table an image answers everything: it holds how many pixels each true cell shares with each
predicted one, and where the centres are. Nothing here looks at the pixels a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from cellray.errors import DataError, ShapeError, one_of

Labels = NDArray[np.integer]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Matching = Literal["one_to_one", "many_to_one"]

OBJECT_COLUMNS = ("true_id", "pred_id", "iou", "distance_px", "area_true", "area_pred", "cy", "cx", "kind")
"""The columns of `object_rows`, for a table that stays empty."""

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

    @property
    def iou(self) -> Floats:
        """Intersection over union of every pair, shape (n_true, n_pred)."""
        return self.overlap / (self.true_area[:, None] + self.pred_area[None, :] - self.overlap)


@dataclass(frozen=True)
class Matches:
    """Which true cell is which predicted one: pairs of ids, and the IoU or the distance of each pair."""

    true_ids: Ints
    pred_ids: Ints
    values: Floats
    n_true: int
    n_pred: int

    @property
    def tp(self) -> int:
        """True cells that were found."""
        return len(self.true_ids)

    @property
    def fp(self) -> int:
        """Predicted cells that are no true cell's partner."""
        return self.n_pred - len(np.unique(self.pred_ids))

    @property
    def fn(self) -> int:
        """True cells that were missed."""
        return self.n_true - self.tp


def contingency(true: Labels, pred: Labels) -> Contingency:
    """Count the pixels that each true cell shares with each predicted one, and place the centroids.

    Args:
        true: Labels of the true cells, shape (H, W), integers >= 0, 0 = background; ids may have gaps.
        pred: Labels of the predicted cells, same shape.

    Raises:
        ShapeError: If the shapes differ or are not two-dimensional.
        DataError: If the values are no labels: not integers, or negative.
    """
    _check_labels(true, pred)
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
        n_pixels=true.size,
    )


def match_by_iou(true: Labels, pred: Labels, *, threshold: float = 0.4, matching: Matching = "one_to_one") -> Matches:
    """Pair cells whose IoU is above `threshold`.

    ``one_to_one`` finds as many pairs as can be had together and among those the largest total IoU.
    ``many_to_one`` is the reference study's released rule: each true cell takes its best partner alone, so
    that one blob over two cells can count twice.

    Args:
        true: Labels of the true cells, shape (H, W).
        pred: Labels of the predicted cells, same shape.
        threshold: In [0, 1); a pair needs an IoU above it.
        matching: Whether a predicted cell may be the partner of several true ones.
    """
    return _match_table_by_iou(contingency(true, pred), threshold, matching)


def match_by_distance(
    true: Labels, pred: Labels, *, max_distance_px: float, matching: Matching = "one_to_one"
) -> Matches:
    """Pair cells whose centroids are at most `max_distance_px` apart: most pairs, then least total distance.

    Args:
        true: Labels of the true cells, shape (H, W).
        pred: Labels of the predicted cells, same shape.
        max_distance_px: In pixels, >= 0; a pair exactly this far apart counts.
        matching: As in `match_by_iou`, the best partner being the nearest.
    """
    return _match_table_by_distance(contingency(true, pred), max_distance_px, matching)


def image_row(true: Labels, pred: Labels, *, iou_threshold: float, max_distance_px: float) -> dict[str, int]:
    """Everything about one image that the metrics of a set are summed from.

    Columns: ``n_true n_pred``, ``tp fp fn`` with ``_iou`` and with ``_distance``, and ``px_`` with ``tp fp fn
    tn``, which count pixels of any cell. Without cells and predictions all are 0 but ``px_tn``.
    """
    table = contingency(true, pred)
    by_iou = _match_table_by_iou(table, iou_threshold, "one_to_one")
    by_distance = _match_table_by_distance(table, max_distance_px, "one_to_one")
    px_tp, px_true, px_pred = (int(part.sum()) for part in (table.overlap, table.true_area, table.pred_area))
    return {
        "n_true": len(table.true_ids),
        "n_pred": len(table.pred_ids),
        "tp_iou": by_iou.tp,
        "fp_iou": by_iou.fp,
        "fn_iou": by_iou.fn,
        "tp_distance": by_distance.tp,
        "fp_distance": by_distance.fp,
        "fn_distance": by_distance.fn,
        "px_tp": px_tp,
        "px_fp": px_pred - px_tp,
        "px_fn": px_true - px_tp,
        "px_tn": table.n_pixels - px_true - px_pred + px_tp,
    }


def object_rows(true: Labels, pred: Labels, *, iou_threshold: float = 0.4) -> list[dict[str, Any]]:
    """One row a cell: the true ones in order of their id, then the predictions that are no one's partner.

    Columns: ``true_id pred_id`` (0 = none); ``iou`` and ``distance_px`` of the pair or, without a partner, the
    best IoU and the distance of the nearest centroid of the other kind (0 and NaN if there is none);
    ``area_true area_pred`` in pixels (0 = none); ``cy cx``, the centroid of the true cell if there is one, else
    of the predicted one; and ``kind``.

    Two cells belong together if they share more than half of the smaller one. The kinds, first that holds:

    - ``hit``: a one-to-one pair by IoU.
    - ``merged``: an unmatched true cell of a prediction that two or more true cells belong to, or that
      prediction, if it is unmatched.
    - ``split``: an unmatched true cell that two or more predictions belong to, or an unmatched one of these.
    - ``missed`` (true) or ``spurious`` (predicted): everything else.
    """
    table = contingency(true, pred)
    iou, distance = table.iou, _distances(table)
    matches = _match_table_by_iou(table, iou_threshold, "one_to_one")
    rows_hit = np.searchsorted(table.true_ids, matches.true_ids)
    cols_hit = np.searchsorted(table.pred_ids, matches.pred_ids)
    partner = dict(zip(rows_hit.tolist(), cols_hit.tolist(), strict=True))
    true_kinds, pred_kinds = _kinds(table)
    rows: list[dict[str, Any]] = []
    for i in range(len(table.true_ids)):
        j = partner.get(i)
        pair = (float(iou[i, j]), float(distance[i, j])) if j is not None else _best(iou[i], distance[i])
        rows.append(_object_row(table, i, j, pair, "hit" if j is not None else true_kinds[i]))
    for j in sorted(set(range(len(table.pred_ids))) - set(partner.values())):
        rows.append(_object_row(table, None, j, _best(iou[:, j], distance[:, j]), pred_kinds[j]))
    return rows


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


def _distances(table: Contingency) -> Floats:
    return _lengths(table.true_centres[:, None] - table.pred_centres[None])


def _lengths(offsets: Floats) -> Floats:
    return np.sqrt((offsets**2).sum(axis=-1))


def _match_table_by_iou(table: Contingency, threshold: float, matching: str) -> Matches:
    if not 0 <= threshold < 1:
        raise DataError(f"IoU threshold: expected 0 <= threshold < 1, got {threshold}")
    iou = table.iou
    rows, cols = np.nonzero(iou > threshold)
    return _matches(table, rows, cols, iou[rows, cols], iou[rows, cols], matching)


def _match_table_by_distance(table: Contingency, max_distance_px: float, matching: str) -> Matches:
    if not max_distance_px >= 0:
        raise DataError(f"max_distance_px: expected a number >= 0, got {max_distance_px}")
    rows, cols, distance = _close_pairs(table, max_distance_px)
    merit = 1 - distance / max_distance_px if max_distance_px > 0 else np.ones_like(distance)
    return _matches(table, rows, cols, distance, merit, matching)


def _close_pairs(table: Contingency, max_distance_px: float) -> tuple[Ints, Ints, Floats]:
    if not len(table.true_ids) or not len(table.pred_ids):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    # a hair wider than asked, so that the comparison below and not the tree decides what "at most" means
    near = cKDTree(table.pred_centres).query_ball_point(table.true_centres, max_distance_px * (1 + 1e-9))
    counts = [len(some) for some in near]
    rows = np.repeat(np.arange(len(counts)), counts)
    cols = np.concatenate([np.asarray(some, dtype=np.int64) for some in near])
    distance = _lengths(table.true_centres[rows] - table.pred_centres[cols])
    close = distance <= max_distance_px
    return rows[close], cols[close], distance[close]


def _matches(table: Contingency, rows: Ints, cols: Ints, values: Floats, merit: Floats, matching: str) -> Matches:
    pick = MATCHINGS[one_of("matching", matching, MATCHINGS)](rows, cols, merit)
    pick = pick[np.argsort(rows[pick], kind="stable")]
    return Matches(
        true_ids=table.true_ids[rows[pick]],
        pred_ids=table.pred_ids[cols[pick]],
        values=values[pick],
        n_true=len(table.true_ids),
        n_pred=len(table.pred_ids),
    )


def _one_to_one(rows: Ints, cols: Ints, merit: Floats) -> Ints:
    """Which candidate pairs to keep: most pairs first, then most total merit; merit lies in [0, 1]."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    lonely = (np.bincount(rows)[rows] == 1) & (np.bincount(cols)[cols] == 1)
    contested = np.flatnonzero(~lonely)
    if not len(contested):
        return np.flatnonzero(lonely)
    row_ids, row = np.unique(rows[contested], return_inverse=True)
    col_ids, col = np.unique(cols[contested], return_inverse=True)
    # one more pair outweighs any gain of merit, since all merits together are at most the number of pairs
    bonus = 1 + min(len(row_ids), len(col_ids))
    worth = np.zeros((len(row_ids), len(col_ids)))
    pair = np.full(worth.shape, -1, dtype=np.int64)
    worth[row, col] = bonus + merit[contested]
    pair[row, col] = contested
    chosen = pair[linear_sum_assignment(worth, maximize=True)]
    return np.concatenate([np.flatnonzero(lonely), chosen[chosen >= 0]])


def _many_to_one(rows: Ints, cols: Ints, merit: Floats) -> Ints:
    """For each row its best candidate, whoever else takes it."""
    order = np.lexsort((-merit, rows))
    return order[np.unique(rows[order], return_index=True)[1]]


MATCHINGS: dict[str, Callable[[Ints, Ints, Floats], Ints]] = {
    "one_to_one": _one_to_one,
    "many_to_one": _many_to_one,
}


def _kinds(table: Contingency) -> tuple[list[str], list[str]]:
    """The kind of error of each true and of each predicted cell, should it be unmatched."""
    smaller = np.minimum(table.true_area[:, None], table.pred_area[None, :])
    together = table.overlap > 0.5 * smaller
    merging = together.sum(axis=0) >= 2
    divided = together.sum(axis=1) >= 2
    in_merged, of_split = (together & merging).any(axis=1), (together & divided[:, None]).any(axis=0)
    true_kinds = np.select([in_merged, divided], ["merged", "split"], "missed")
    pred_kinds = np.select([merging, of_split], ["merged", "split"], "spurious")
    return true_kinds.tolist(), pred_kinds.tolist()


def _best(iou: Floats, distance: Floats) -> tuple[float, float]:
    return (float(iou.max()), float(distance.min())) if len(iou) else (0.0, float("nan"))


def _object_row(
    table: Contingency, i: int | None, j: int | None, pair: tuple[float, float], kind: str
) -> dict[str, Any]:
    centre = table.true_centres[i] if i is not None else table.pred_centres[j]
    return {
        "true_id": int(table.true_ids[i]) if i is not None else 0,
        "pred_id": int(table.pred_ids[j]) if j is not None else 0,
        "iou": pair[0],
        "distance_px": pair[1],
        "area_true": int(table.true_area[i]) if i is not None else 0,
        "area_pred": int(table.pred_area[j]) if j is not None else 0,
        "cy": float(centre[0]),
        "cx": float(centre[1]),
        "kind": kind,
    }


@dataclass(frozen=True)
class Metric:
    """What a number of `summarise` means and which way is better."""

    title: str
    higher_is_better: bool
    best: float
    worst: float | None
    """None = unbounded."""
    unit: str
    description: str

    def shortfall(self, value: float) -> float:
        """How far a value is from the best one, >= 0; ranks every metric, the signed one too."""
        return abs(value - self.best)


def summarise(rows: pd.DataFrame) -> dict[str, float]:
    """The metrics of one set of images from its rows of `image_row`: every key of `METRICS` and the counts.

    F1, precision and recall are micro-averages: counts are summed over the images first, so an image without
    cells and predictions adds nothing. Dice and mean IoU are of the summed pixels. If the whole set has no cell
    and no prediction, these ratios are 1; any other 0/0 (precision without predictions, recall without cells)
    is 0. Count errors are means or medians over the images, of true minus predicted count.

    Raises:
        DataError: If there are no rows.
    """
    if len(rows) == 0:
        raise DataError("image rows: expected at least one image to summarise, got none")
    total = rows.select_dtypes("number").sum()
    summary: dict[str, float] = {}
    for rule in ("iou", "distance"):
        tp, fp, fn = (float(total[f"{part}_{rule}"]) for part in ("tp", "fp", "fn"))
        nothing = tp + fp + fn == 0
        summary[f"f1_{rule}"] = _ratio(2 * tp, 2 * tp + fp + fn, nothing)
        summary[f"precision_{rule}"] = _ratio(tp, tp + fp, nothing)
        summary[f"recall_{rule}"] = _ratio(tp, tp + fn, nothing)
    tp, fp, fn, tn = (float(total[f"px_{part}"]) for part in ("tp", "fp", "fn", "tn"))
    summary["miou"] = (_ratio(tp, tp + fp + fn, True) + _ratio(tn, tn + fp + fn, True)) / 2
    summary["dice"] = _ratio(2 * tp, 2 * tp + fp + fn, True)
    n_true, n_pred = rows["n_true"].to_numpy(dtype=float), rows["n_pred"].to_numpy(dtype=float)
    summary["mae"] = float(np.abs(n_true - n_pred).mean())
    summary["medae"] = float(np.median(np.abs(n_true - n_pred)))
    summary["mpe"] = float(((n_true - n_pred) / np.maximum(n_true, 1) * 100).mean())
    counts = {"n_images": float(len(rows)), "n_true": float(n_true.sum()), "n_pred": float(n_pred.sum())}
    return {name: summary[name] for name in METRICS} | counts


def _ratio(part: float, whole: float, nothing: bool) -> float:
    return part / whole if whole > 0 else float(nothing)


def _share(title: str, description: str) -> Metric:
    return Metric(title, higher_is_better=True, best=1.0, worst=0.0, unit="", description=description)


def _error(title: str, unit: str, description: str) -> Metric:
    return Metric(title, higher_is_better=False, best=0.0, worst=None, unit=unit, description=description)


METRICS: dict[str, Metric] = {
    "f1_iou": _share("F1 (IoU)", "F1 of cells matched one-to-one by IoU"),
    "precision_iou": _share("Precision (IoU)", "Share of predicted cells that are hits by IoU"),
    "recall_iou": _share("Recall (IoU)", "Share of true cells found by IoU"),
    "f1_distance": _share("F1 (distance)", "F1 of cells matched one-to-one by distance of centres"),
    "precision_distance": _share(
        "Precision (distance)", "Share of predicted cells that are hits by distance of centres"
    ),
    "recall_distance": _share("Recall (distance)", "Share of true cells found by distance of centres"),
    "miou": _share("mIoU", "Mean of the IoU of cell and of background, over all pixels of the set"),
    "dice": _share("Dice", "Dice of cell, over all pixels of the set"),
    "mae": _error("MAE", "cells", "Mean over images of |true - predicted count|"),
    "medae": _error("MedAE", "cells", "Median over images of |true - predicted count|"),
    "mpe": _error(
        "MPE", "%", "Mean over images of (true - predicted count) / max(true count, 1); above 0 = too few found"
    ),
}

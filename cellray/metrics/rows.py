"""One row an image: everything that the metrics of a set are summed from."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy.spatial import cKDTree

from cellray.arrays import Labels, Mask, Probs
from cellray.errors import DataError, ShapeError, one_of
from cellray.metrics.catalogue import METRICS
from cellray.metrics.matching import Matches, close_pairs, n_one_to_one, table_by_distance, table_by_iou
from cellray.metrics.objects import count_errors
from cellray.metrics.table import Contingency, contingency

PARTS = ("iou", "distance", "grid", "jaccard", "errors", "released", "crowding", "calibration")
"""What `only` can choose from. Counts of cells and pixels are always there."""

TENTHS = range(1, 10)
N_BINS = 10
COLUMNS: dict[str, tuple[str, ...]] = {
    "": ("n_true", "n_pred", "px_tp", "px_fp", "px_fn", "px_tn"),
    "iou": ("tp_iou", "fp_iou", "fn_iou"),
    "distance": ("tp_distance", "fp_distance", "fn_distance", "distance_sum", "reach_px"),
    "grid": (*(f"tp_iou_{tenth}0" for tenth in TENTHS), "iou_sum"),
    "jaccard": ("aji_intersection", "aji_union"),
    "errors": ("merged", "split", "missed", "spurious"),
    "released": ("tp_iou_many", "fp_iou_many", "tp_distance_many", "fp_distance_many"),
    "crowding": ("crowded",),
    "calibration": ("brier_sum", *(f"gap_{k}" for k in range(N_BINS))),
}
"""The columns of `image_row`, by the part that they belong to; those of "" are always there."""
CROWDED_WITHIN = 1.5
"""In mean cell diameters."""

Row = dict[str, float]


def image_row(
    true: Labels,
    pred: Labels,
    *,
    iou_threshold: float,
    max_distance_px: float,
    diameter_px: float | None = None,
    probs: Probs | None = None,
    void: Mask | None = None,
    only: Collection[str] | None = None,
) -> Row:
    """Everything about one image that the metrics of a set are summed from; sums and counts, never NaN.

    Columns, with the part of `PARTS` that they belong to:

    - always: ``n_true n_pred``, and ``px_tp px_fp px_fn px_tn``, which count pixels of any cell;
    - iou: ``tp_iou fp_iou fn_iou``, one-to-one above `iou_threshold`;
    - distance: ``tp_distance fp_distance fn_distance``, one-to-one up to `max_distance_px`; ``distance_sum`` in pixels
      over these pairs; ``reach_px``, which is `max_distance_px`;
    - grid: ``tp_iou_10`` to ``tp_iou_90``, one-to-one above IoU 0.1 to 0.9; ``iou_sum`` over the pairs above 0.5;
    - jaccard: ``aji_intersection aji_union``, pixels of the aggregated Jaccard index (Kumar et al. 2017): each true
      cell with the prediction of the largest IoU, also if another one has it too, then the predictions that no one
      has. Equal IoU: the larger overlap, then the lower id;
    - errors: ``merged split missed spurious``, the cells that `object_rows` calls so;
    - released: ``tp_iou_many fp_iou_many tp_distance_many fp_distance_many``, by the rule ``many_to_one``;
    - crowding: ``crowded``, true cells that have the centre of another one within 1.5 mean diameters;
    - calibration: ``brier_sum``, the sum of (p - y)² over the pixels, and ``gap_0`` to ``gap_9``, the sum of p - y over
      the pixels whose p lies in that tenth of [0, 1].

    Without cells and predictions all are 0 but ``px_tn``, ``reach_px`` and the calibration's.

    Args:
        true: Labels of the true cells, shape (H, W).
        pred: Labels of the predicted cells, same shape.
        iou_threshold: In [0, 1), exclusive.
        max_distance_px: In pixels, >= 0, inclusive.
        diameter_px: Mean cell diameter of the set; without it the part crowding is left out.
        probs: Predicted probabilities, same shape, in [0, 1]; without them the part calibration is left out. A NaN
            counts as the worst prediction for its pixel.
        void: Pixels that count for nothing, same shape, see `without_void`.
        only: Parts that are wanted, for speed; all by default. `Metric.parts` says what a metric needs.

    Raises:
        ShapeError: If the shapes differ.
        DataError: If labels are no labels or probabilities lie outside [0, 1].
    """
    row = table_row(
        contingency(true, pred, void),
        iou_threshold=iou_threshold,
        max_distance_px=max_distance_px,
        diameter_px=diameter_px,
        only=only,
    )
    if probs is not None and (only is None or "calibration" in only):
        row |= _calibration(true != 0, probs, void)
    return row


def columns_of(metric: str) -> tuple[str, ...]:
    """The columns of `image_row` that a metric of ``METRICS`` is made from."""
    return tuple(column for part in ("", *METRICS[metric].parts) for column in COLUMNS[part])


def table_row(
    table: Contingency,
    *,
    iou_threshold: float,
    max_distance_px: float,
    diameter_px: float | None = None,
    only: Collection[str] | None = None,
) -> Row:
    """`image_row` of a contingency table, so without the part calibration."""
    parts = {one_of("part of a row", part, PARTS) for part in (PARTS if only is None else only)}
    px_tp, px_true, px_pred = (int(part.sum()) for part in (table.overlap, table.true_area, table.pred_area))
    row: Row = {
        "n_true": len(table.true_ids),
        "n_pred": len(table.pred_ids),
        "px_tp": px_tp,
        "px_fp": px_pred - px_tp,
        "px_fn": px_true - px_tp,
        "px_tn": table.n_pixels - px_true - px_pred + px_tp,
    }
    if parts & {"iou", "errors"}:
        by_iou = table_by_iou(table, iou_threshold)
        row |= _counts("iou", by_iou) if "iou" in parts else {}
        row |= count_errors(table, by_iou) if "errors" in parts else {}
    if "distance" in parts:
        by_distance = table_by_distance(table, max_distance_px)
        row |= _counts("distance", by_distance)
        row |= {"distance_sum": float(by_distance.values.sum()), "reach_px": float(max_distance_px)}
    if "grid" in parts:
        row |= _grid(table)
    if "jaccard" in parts:
        row |= _jaccard(table)
    if "released" in parts:
        row |= _many_to_one(table, iou_threshold, max_distance_px)
    if "crowding" in parts and diameter_px is not None:
        row["crowded"] = _n_crowded(table, CROWDED_WITHIN * diameter_px)
    return row


def _counts(rule: str, matches: Matches) -> Row:
    return {f"tp_{rule}": matches.tp, f"fp_{rule}": matches.fp, f"fn_{rule}": matches.fn}


def _grid(table: Contingency) -> Row:
    rows, cols = np.nonzero(table.iou > TENTHS[0] / 10)
    iou = table.iou[rows, cols]
    row: Row = {}
    for tenth in TENTHS:
        good = iou > tenth / 10
        # above one half no cell has two candidates, so there is nothing to assign
        row[f"tp_iou_{tenth}0"] = int(good.sum()) if tenth >= 5 else n_one_to_one(rows[good], cols[good])
    return row | {"iou_sum": float(iou[iou > 0.5].sum())}


def _jaccard(table: Contingency) -> Row:
    spare = np.ones(len(table.pred_ids), dtype=bool)
    intersection, union = 0, int(table.true_area.sum())
    if len(table.true_ids) and len(table.pred_ids):
        is_best = table.iou == table.iou.max(axis=1, keepdims=True)
        best = np.where(is_best, table.overlap, -1).argmax(axis=1)
        shared = table.overlap[np.arange(len(best)), best]
        best, shared = best[shared > 0], shared[shared > 0]
        spare[best] = False
        intersection = int(shared.sum())
        union += int((table.pred_area[best] - shared).sum())
    return {"aji_intersection": intersection, "aji_union": union + int(table.pred_area[spare].sum())}


def _many_to_one(table: Contingency, iou_threshold: float, max_distance_px: float) -> Row:
    good = table.iou > iou_threshold
    rows, cols, _ = close_pairs(table, max_distance_px)
    tp_distance = len(np.unique(rows))
    return {
        "tp_iou_many": int(good.any(axis=1).sum()),
        "fp_iou_many": int((~good.any(axis=0)).sum()),
        "tp_distance_many": tp_distance,
        "fp_distance_many": len(table.pred_ids) - len(np.unique(cols)),
    }


def _n_crowded(table: Contingency, within_px: float) -> int:
    if len(table.true_ids) < 2:
        return 0
    # the nearest centre is the cell's own
    nearest = cKDTree(table.true_centres).query(table.true_centres, k=2)[0][:, 1]
    return int((nearest <= within_px).sum())


def _calibration(cells: Mask, probs: Probs, void: Mask | None) -> Row:
    if probs.shape != cells.shape:
        raise ShapeError(f"probs: expected shape {cells.shape} as the labels, got {probs.shape}")
    if void is not None:
        cells, probs = cells[~void], probs[~void]
    lowest = probs.min(initial=0)
    if np.isnan(lowest):
        probs = np.where(np.isnan(probs), ~cells, probs)
        lowest = probs.min(initial=0)
    if lowest < 0 or probs.max(initial=0) > 1:
        raise DataError(f"probs: expected values in [0, 1], got {lowest:g} to {probs.max(initial=0):g}")
    gap = (probs - cells).ravel()
    tenths = (probs * N_BINS).ravel()
    # nearly all pixels are sure to be background: only the others are sorted into their bins
    unsure = np.flatnonzero(tenths >= 1)
    bins = np.minimum(tenths[unsure].astype(np.int64), N_BINS - 1)
    sums = np.bincount(bins, gap[unsure], N_BINS).astype(np.float64)  # of nothing, bincount gives integers
    sums[0] = gap.sum(dtype=np.float64) - sums.sum()
    row = {f"gap_{k}": float(value) for k, value in enumerate(sums)}
    return {"brier_sum": float(np.square(gap).sum(dtype=np.float64)), **row}

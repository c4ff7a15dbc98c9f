"""The metrics of a set of images, from one row an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from cellray.errors import DataError
from cellray.metrics.catalogue import METRICS
from cellray.metrics.objects import ERRORS
from cellray.metrics.released import released_counts
from cellray.metrics.rows import N_BINS, TENTHS
from cellray.metrics.table import Floats

Columns = Mapping[str, Floats]

_LIMITS = 1.96
"""Standard deviations on either side of the mean that hold 95 % of normal errors."""


def summarise(rows: pd.DataFrame) -> dict[str, float]:
    """The metrics of one set of images from its rows of `image_row`, and the counts.

    Every key of `METRICS` whose columns are there, in that order, then ``n_images n_true n_pred``; a metric is left
    out if the rows lack the part that it needs. No value is NaN.

    Sums over the images come before any division (micro-averages), so an image without cells and predictions adds
    nothing; the exceptions are the metrics that end in ``_mean``, where each image counts alike and such an image has
    the value 1, and the counting metrics, which are about images. Undefined values:

    - shares, Dice, mean IoU, AP, PQ, SQ, RQ and AJI of a set without any cell and prediction are 1; any other 0/0
      (precision without predictions, recall without cells, SQ without pairs) is 0;
    - ``localisation`` without a pair is the largest distance that would have counted, or 0 if there was no cell and
      no prediction to pair;
    - ``r2`` is 1 - (sum of squared count errors) / (sum of squares of the true counts about their mean), not below
      0; with equal true counts it is 1 if all predicted counts are right, else 0;
    - the limits of agreement of a single image are its own error (SD 0);
    - error rates of a set without a true cell are per one cell.

    Count errors are true minus predicted count, so above 0 means too few found, also for the bias and its limits.
    The released errors keep their own sign: TP by distance minus TP by IoU.

    Raises:
        DataError: If there are no rows.
    """
    if len(rows) == 0:
        raise DataError("image rows: expected at least one image to summarise, got none")
    numbers = rows.select_dtypes("number")
    columns = {str(name): numbers[name].to_numpy(dtype=np.float64) for name in numbers}
    summary: dict[str, float] = {}
    for column, family in _FAMILIES:
        if column in columns:
            summary |= family(columns)
    n_true, n_pred = float(columns["n_true"].sum()), float(columns["n_pred"].sum())
    counts = {"n_images": float(len(rows)), "n_true": n_true, "n_pred": n_pred}
    return {name: summary[name] for name in METRICS if name in summary} | counts


def iou_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """F1, precision and recall of a set over a grid of IoU thresholds.

    Columns: ``threshold`` (0.1 to 0.9, exclusive), ``f1 precision recall`` as in `summarise`, for one-to-one pairs.

    Raises:
        DataError: If there are no rows, or none with the part grid.
    """
    if len(rows) == 0 or "tp_iou_10" not in rows:
        raise DataError("image rows: an IoU curve needs at least one image with the part 'grid'")
    n_true, n_pred = float(rows["n_true"].sum()), float(rows["n_pred"].sum())
    curve = []
    for tenth in TENTHS:
        tp = float(rows[f"tp_iou_{tenth}0"].sum())
        curve.append({"threshold": tenth / 10, **_detection(tp, n_pred - tp, n_true - tp)})
    return pd.DataFrame(curve)


def _ratio(part: float, whole: float, nothing: bool) -> float:
    return part / whole if whole > 0 else float(nothing)


def _detection(tp: float, fp: float, fn: float) -> dict[str, float]:
    nothing = tp + fp + fn == 0
    return {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, nothing),
        "precision": _ratio(tp, tp + fp, nothing),
        "recall": _ratio(tp, tp + fn, nothing),
    }


def _mean_f1(tp: Floats, fp: Floats, fn: Floats) -> float:
    """Mean over the images of the F1 (or Dice) of each; 1 for an image with nothing in it."""
    whole = 2 * tp + fp + fn
    return float(np.where(whole > 0, 2 * tp / np.maximum(whole, 1), 1.0).mean())


def _by_cell(rule: str) -> Callable[[Columns], dict[str, float]]:
    def family(columns: Columns) -> dict[str, float]:
        tp, fp, fn = (columns[f"{part}_{rule}"] for part in ("tp", "fp", "fn"))
        shares = _detection(float(tp.sum()), float(fp.sum()), float(fn.sum()))
        return {f"{name}_{rule}": value for name, value in shares.items()} | {f"f1_{rule}_mean": _mean_f1(tp, fp, fn)}

    return family


def _by_pixel(columns: Columns) -> dict[str, float]:
    tp, fp, fn, tn = (columns[f"px_{part}"] for part in ("tp", "fp", "fn", "tn"))
    n_tp, n_fp, n_fn, n_tn = (float(part.sum()) for part in (tp, fp, fn, tn))
    return {
        "miou": (_ratio(n_tp, n_tp + n_fp + n_fn, True) + _ratio(n_tn, n_tn + n_fp + n_fn, True)) / 2,
        "dice": _ratio(2 * n_tp, 2 * n_tp + n_fp + n_fn, True),
        "dice_mean": _mean_f1(tp, fp, fn),
    }


def _counting(columns: Columns) -> dict[str, float]:
    # rows of the released protocol bring their own count errors
    error = columns.get("count_error", columns["n_true"] - columns["n_pred"])
    true = columns.get("count_true", columns["n_true"])
    bias = float(error.mean())
    spread = _LIMITS * float(error.std(ddof=1)) if len(error) > 1 else 0.0
    squares, scatter = float((error**2).sum()), float(((true - true.mean()) ** 2).sum())
    return {
        **_errors(error, true),
        "r2": max(0.0, 1 - squares / scatter) if scatter > 0 else float(squares == 0),
        "count_bias": bias,
        "count_low": bias - spread,
        "count_high": bias + spread,
    }


def _errors(error: Floats, true: Floats) -> dict[str, float]:
    return {
        "mae": float(np.abs(error).mean()),
        "medae": float(np.median(np.abs(error))),
        "mpe": float((error / np.maximum(true, 1) * 100).mean()),
    }


def _released(columns: Columns) -> dict[str, float]:
    return {f"{name}_released": value for name, value in _errors(*released_counts(columns)).items()}


def _panoptic(columns: Columns) -> dict[str, float]:
    n_cells = float(columns["n_true"].sum() + columns["n_pred"].sum())
    iou_sum = float(columns["iou_sum"].sum())
    found = {tenth: float(columns[f"tp_iou_{tenth}0"].sum()) for tenth in TENTHS}
    # TP / (TP + FP + FN), where TP + FP + FN is all cells, true and predicted, less the pairs
    precisions = [_ratio(found[tenth], n_cells - found[tenth], n_cells == 0) for tenth in TENTHS if tenth >= 5]
    return {
        "pq": _ratio(2 * iou_sum, n_cells, True),
        "sq": _ratio(iou_sum, found[5], n_cells == 0),
        "rq": _ratio(2 * found[5], n_cells, True),
        "ap_50": precisions[0],
        "ap_50_90": float(np.mean(precisions)),
    }


def _jaccard(columns: Columns) -> dict[str, float]:
    return {"aji": _ratio(float(columns["aji_intersection"].sum()), float(columns["aji_union"].sum()), True)}


def _localisation(columns: Columns) -> dict[str, float]:
    pairs, cells = float(columns["tp_distance"].sum()), float(columns["n_true"].sum() + columns["n_pred"].sum())
    without_pairs = float(columns["reach_px"].max()) if cells else 0.0
    return {"localisation": float(columns["distance_sum"].sum()) / pairs if pairs else without_pairs}


def _error_rates(columns: Columns) -> dict[str, float]:
    n_true = max(float(columns["n_true"].sum()), 1.0)
    return {kind: float(columns[kind].sum()) / n_true for kind in ERRORS}


def _calibration(columns: Columns) -> dict[str, float]:
    n_pixels = float(sum(columns[f"px_{part}"].sum() for part in ("tp", "fp", "fn", "tn")))
    gaps = sum(abs(float(columns[f"gap_{k}"].sum())) for k in range(N_BINS))
    return {"ece": gaps / n_pixels, "brier": float(columns["brier_sum"].sum()) / n_pixels}


_FAMILIES: tuple[tuple[str, Callable[[Columns], dict[str, float]]], ...] = (
    ("tp_iou", _by_cell("iou")),
    ("tp_distance", _by_cell("distance")),
    ("px_tp", _by_pixel),
    ("n_true", _counting),
    ("iou_sum", _panoptic),
    ("aji_union", _jaccard),
    ("distance_sum", _localisation),
    ("merged", _error_rates),
    ("brier_sum", _calibration),
    ("tp_iou_many", _released),
)
"""A column whose presence tells that the family's columns are there, and the family."""

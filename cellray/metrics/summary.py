"""The metrics of a set of images, from one row an image.

All metrics but the medians are functions of sums over images: `image_terms` gives what is summed, `metrics_of` the
metrics of any sums. So a resampled set, or one without an image, costs a sum and no second formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from cellray.arrays import Floats
from cellray.errors import DataError
from cellray.metrics.catalogue import METRICS
from cellray.metrics.objects import ERRORS
from cellray.metrics.released_rules import released_counts
from cellray.metrics.rows import N_BINS, TENTHS

Sums = Mapping[str, Floats]
"""By name, arrays of one common shape."""

MEDIANS = {"medae": "error_abs", "medae_released": "released_abs"}
"""Metrics that are a median over images, and the term that it is taken of."""

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
    return {key: float(values[0]) for key, values in summarise_sets(rows, 1).items()}


def summarise_sets(rows: pd.DataFrame, n_sets: int) -> dict[str, Floats]:
    """`summarise` of several sets of as many images each, at once.

    Args:
        rows: Of `image_row`: those of all sets for their first image, in the order of the sets, then for the second.
        n_sets: So many sets.

    Returns:
        By metric and count, arrays of shape (n_sets,).
    """
    numbers = rows.select_dtypes("number")
    columns = {str(name): numbers[name].to_numpy(dtype=np.float64) for name in numbers}
    terms = image_terms({name: np.ascontiguousarray(of.reshape(-1, n_sets).T) for name, of in columns.items()})
    sums = {name: values.sum(axis=-1) for name, values in terms.items()}
    medians = {key: np.median(terms[term], axis=-1) for key, term in MEDIANS.items() if term in terms}
    found = metrics_of(sums) | medians
    summary = {key: found[key] for key in METRICS if key in found}
    return summary | {name: sums[name] for name in ("n_images", "n_true", "n_pred")}


def image_terms(columns: Mapping[str, Floats]) -> dict[str, Floats]:
    """What a set's metrics are sums of: the columns of `image_row`, and terms made of them.

    Args:
        columns: The number columns by name, each of shape (…, n_images).

    Returns:
        By name, one value an image, of that shape; ``n_images`` is 1 for each.
    """
    terms = dict(columns)
    terms["n_images"] = np.ones(np.shape(terms["n_true"]))
    # rows of the released protocol bring their own count errors
    error = terms.get("count_error", terms["n_true"] - terms["n_pred"])
    true = terms.get("count_true", terms["n_true"])
    terms |= _error_terms("error", error, true)
    terms |= {"error_square": error**2, "true": true, "true_square": true**2}
    if "tp_iou_many" in terms:
        terms |= _error_terms("released", *released_counts(terms))
    for name, found in (("iou", "tp_iou"), ("distance", "tp_distance"), ("px", "px_tp")):
        if found in terms:
            wrong = terms[found.replace("tp", "fp")] + terms[found.replace("tp", "fn")]
            terms[f"f1_{name}_image"] = _ratio(2 * terms[found], 2 * terms[found] + wrong, 1.0)
    return terms


def metrics_of(sums: Sums) -> dict[str, Floats]:
    """The metrics of sets of images from the sums of their `image_terms`; the medians aren't among them.

    Args:
        sums: By name, arrays of one shape: one sum for each set. Every set has at least one image.

    Returns:
        By metric, arrays of that shape. Undefined values are those of `summarise`.
    """
    metrics: dict[str, Floats] = {}
    for term, family in _FAMILIES:
        if term in sums:
            metrics |= family(sums)
    return metrics


def iou_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """F1, precision and recall of a set over a grid of IoU thresholds.

    Columns: ``threshold`` (0.1 to 0.9, exclusive), ``f1 precision recall`` as in `summarise`, for one-to-one pairs.

    Raises:
        DataError: If there are no rows, or none with the part grid.
    """
    if len(rows) == 0 or "tp_iou_10" not in rows:
        raise DataError("image rows: an IoU curve needs at least one image with the part 'grid'")
    sums = np.array([float(rows[name].sum()) for name in CURVE_SOURCES])
    return pd.DataFrame({"threshold": CURVE_THRESHOLDS, **detected(sums)})


def detected(sums: Floats) -> dict[str, Floats]:
    """F1, precision and recall at each IoU threshold, shape (…, 9), from sums of `CURVE_SOURCES`, shape (…, 11)."""
    n_true, n_pred, tp = sums[..., :1], sums[..., 1:2], sums[..., 2:]
    return _detection(tp, n_pred - tp, n_true - tp)


CURVE_SOURCES = ("n_true", "n_pred", *(f"tp_iou_{tenth}0" for tenth in TENTHS))
"""Columns of `image_row` that `iou_curve` is made from."""
CURVE_THRESHOLDS = np.array(TENTHS) / 10
"""Of IoU."""


def _error_terms(name: str, error: Floats, true: Floats) -> dict[str, Floats]:
    return {name: error, f"{name}_abs": np.abs(error), f"{name}_share": error / np.maximum(true, 1) * 100}


def _ratio(part: Floats, whole: Floats, nothing: Floats | float) -> Floats:
    """part / whole, or `nothing` where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), nothing)


def _detection(tp: Floats, fp: Floats, fn: Floats) -> dict[str, Floats]:
    nothing = np.where(tp + fp + fn == 0, 1.0, 0.0)
    return {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, nothing),
        "precision": _ratio(tp, tp + fp, nothing),
        "recall": _ratio(tp, tp + fn, nothing),
    }


def _by_cell(rule: str) -> Callable[[Sums], dict[str, Floats]]:
    def family(sums: Sums) -> dict[str, Floats]:
        shares = _detection(*(sums[f"{part}_{rule}"] for part in ("tp", "fp", "fn")))
        mean = sums[f"f1_{rule}_image"] / sums["n_images"]
        return {f"{name}_{rule}": value for name, value in shares.items()} | {f"f1_{rule}_mean": mean}

    return family


def _by_pixel(sums: Sums) -> dict[str, Floats]:
    tp, fp, fn, tn = (sums[f"px_{part}"] for part in ("tp", "fp", "fn", "tn"))
    return {
        "miou": (_ratio(tp, tp + fp + fn, 1.0) + _ratio(tn, tn + fp + fn, 1.0)) / 2,
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, 1.0),
        "dice_mean": sums["f1_px_image"] / sums["n_images"],
    }


def _counting(sums: Sums) -> dict[str, Floats]:
    n, error, squares = sums["n_images"], sums["error"], sums["error_square"]
    bias = error / n
    variance = np.maximum(squares - error * bias, 0) / np.maximum(n - 1, 1)
    spread = np.where(n > 1, _LIMITS * np.sqrt(variance), 0.0)
    scatter = sums["true_square"] - sums["true"] ** 2 / n
    return {
        "mae": sums["error_abs"] / n,
        "mpe": sums["error_share"] / n,
        "r2": np.maximum(1 - _ratio(squares, scatter, np.where(squares == 0, 0.0, 1.0)), 0.0),
        "count_bias": bias,
        "count_low": bias - spread,
        "count_high": bias + spread,
    }


def _released(sums: Sums) -> dict[str, Floats]:
    n = sums["n_images"]
    return {"mae_released": sums["released_abs"] / n, "mpe_released": sums["released_share"] / n}


def _panoptic(sums: Sums) -> dict[str, Floats]:
    n_cells, iou_sum = sums["n_true"] + sums["n_pred"], sums["iou_sum"]
    found = {tenth: sums[f"tp_iou_{tenth}0"] for tenth in TENTHS}
    nothing = np.where(n_cells == 0, 1.0, 0.0)
    # TP / (TP + FP + FN), where TP + FP + FN is all cells, true and predicted, less the pairs
    precisions = [_ratio(found[tenth], n_cells - found[tenth], nothing) for tenth in TENTHS if tenth >= 5]
    return {
        "pq": _ratio(2 * iou_sum, n_cells, 1.0),
        "sq": _ratio(iou_sum, found[5], nothing),
        "rq": _ratio(2 * found[5], n_cells, 1.0),
        "ap_50": precisions[0],
        "ap_50_90": np.mean(precisions, axis=0),
    }


def _jaccard(sums: Sums) -> dict[str, Floats]:
    return {"aji": _ratio(sums["aji_intersection"], sums["aji_union"], 1.0)}


def _localisation(sums: Sums) -> dict[str, Floats]:
    # the reach is the same for every image of a set
    without_pairs = np.where(sums["n_true"] + sums["n_pred"] > 0, sums["reach_px"] / sums["n_images"], 0.0)
    return {"localisation": _ratio(sums["distance_sum"], sums["tp_distance"], without_pairs)}


def _error_rates(sums: Sums) -> dict[str, Floats]:
    return {kind: sums[kind] / np.maximum(sums["n_true"], 1) for kind in ERRORS}


def _calibration(sums: Sums) -> dict[str, Floats]:
    n_pixels = sums["px_tp"] + sums["px_fp"] + sums["px_fn"] + sums["px_tn"]
    gaps = np.sum([np.abs(sums[f"gap_{k}"]) for k in range(N_BINS)], axis=0)
    return {"ece": gaps / n_pixels, "brier": sums["brier_sum"] / n_pixels}


_FAMILIES: tuple[tuple[str, Callable[[Sums], dict[str, Floats]]], ...] = (
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
"""A term whose presence tells that the family's terms are there, and the family."""

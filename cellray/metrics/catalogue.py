"""What the metrics are called, what they mean, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


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
    parts: tuple[str, ...] = ()
    """What it needs of `cellray.metrics.PARTS`, beyond the counts that every row has."""
    is_signed: bool = False
    """Whether it may lie on either side of its best value."""

    def shortfall(self, value: float) -> float:
        """How far a value is from the best one, >= 0; ranks every metric, the signed ones too."""
        return abs(value - self.best)


def _share(title: str, description: str, *parts: str) -> Metric:
    return Metric(title, higher_is_better=True, best=1.0, worst=0.0, unit="", description=description, parts=parts)


def _error(
    title: str, unit: str, description: str, *parts: str, worst: float | None = None, is_signed: bool = False
) -> Metric:
    return Metric(
        title,
        higher_is_better=False,
        best=0.0,
        worst=worst,
        unit=unit,
        description=description,
        parts=parts,
        is_signed=is_signed,
    )


_BELONG = "two cells belong together if they share more than half of the smaller one"

METRICS: dict[str, Metric] = {
    "f1_iou": _share("F1 (IoU)", "F1 of cells matched one-to-one by IoU", "iou"),
    "precision_iou": _share("Precision (IoU)", "Share of predicted cells that are hits by IoU", "iou"),
    "recall_iou": _share("Recall (IoU)", "Share of true cells found by IoU", "iou"),
    "f1_distance": _share("F1 (distance)", "F1 of cells matched one-to-one by distance of centres", "distance"),
    "precision_distance": _share(
        "Precision (distance)", "Share of predicted cells that are hits by distance of centres", "distance"
    ),
    "recall_distance": _share("Recall (distance)", "Share of true cells found by distance of centres", "distance"),
    "miou": _share("mIoU", "Mean of the IoU of cell and of background, over all pixels of the set"),
    "dice": _share("Dice", "Dice of cell, over all pixels of the set"),
    "mae": _error("MAE", "cells", "Mean over images of |true - predicted count|"),
    "medae": _error("MedAE", "cells", "Median over images of |true - predicted count|"),
    "mpe": _error(
        "MPE",
        "%",
        "Mean over images of (true - predicted count) / max(true count, 1); above 0 = too few found",
        is_signed=True,
    ),
    "pq": _share("PQ", "Panoptic quality: sum of the IoU of pairs above 0.5 / (TP + FP/2 + FN/2)", "grid"),
    "sq": _share("SQ", "Segmentation quality: mean IoU of the pairs above 0.5", "grid"),
    "rq": _share("RQ", "Recognition quality: F1 at IoU > 0.5", "grid"),
    "ap_50": _share("AP 0.5", "TP / (TP + FP + FN) at IoU > 0.5, as in the Data Science Bowl 2018", "grid"),
    "ap_50_90": _share("AP 0.5–0.9", "Mean of TP / (TP + FP + FN) at IoU > 0.5, 0.6, 0.7, 0.8 and 0.9", "grid"),
    "aji": _share("AJI", "Aggregated Jaccard index over all cells of the set", "jaccard"),
    "f1_iou_mean": _share("F1 (IoU), image mean", "Mean over images of F1 by IoU; an empty image has 1", "iou"),
    "f1_distance_mean": _share(
        "F1 (distance), image mean", "Mean over images of F1 by distance; an empty image has 1", "distance"
    ),
    "dice_mean": _share("Dice, image mean", "Mean over images of the Dice of cell; an empty image has 1"),
    "localisation": _error(
        "Localisation", "px", "Mean distance of the centres of cells paired by distance", "distance"
    ),
    "r2": _share("R²", "Share of the variance of true counts that predicted counts explain; below 0 is given as 0"),
    "count_bias": _error("Count bias", "cells", "Mean over images of true - predicted count", is_signed=True),
    "count_low": _error(
        "Count limit, low", "cells", "Bland–Altman: count bias - 1.96 SD of the count errors", is_signed=True
    ),
    "count_high": _error(
        "Count limit, high", "cells", "Bland–Altman: count bias + 1.96 SD of the count errors", is_signed=True
    ),
    "merged": _error(
        "Merged", "per cell", f"Unmatched cells of a blob over several, per true cell; {_BELONG}", "errors"
    ),
    "split": _error("Split", "per cell", f"Unmatched cells of one in pieces, per true cell; {_BELONG}", "errors"),
    "missed": _error("Missed", "per cell", "True cells neither found, merged nor split, per true cell", "errors"),
    "spurious": _error("Spurious", "per cell", "Other predictions that are no one's partner, per true cell", "errors"),
    "ece": _error(
        "ECE", "", "Expected calibration error of pixels in ten bins of probability", "calibration", worst=1.0
    ),
    "brier": _error("Brier", "", "Mean squared error of the pixels' probabilities", "calibration", worst=1.0),
    "mae_released": _error(
        "MAE (as released)", "cells", "Mean over images of |TP by distance - TP by IoU|, many-to-one", "released"
    ),
    "medae_released": _error(
        "MedAE (as released)", "cells", "Median over images of |TP by distance - TP by IoU|, many-to-one", "released"
    ),
    "mpe_released": _error(
        "MPE (as released)",
        "%",
        "Mean over images of (TP by distance - TP by IoU) / max(TP by IoU + FN by distance, 1), many-to-one",
        "released",
        is_signed=True,
    ),
}

"""The reference study's published table beside what its public runs give, under two rules for collapsed runs.

Two tables are shipped with the package. ``published_slides.csv`` holds the table of the study's slides: mean and SD of
each configuration. ``published_order_statistics.csv`` holds the five sorted values, one a seed, that the quartiles in
the stored output of the public notebook ``05-results-and-visualizations.ipynb`` reveal; a blank is a run whose value is
NaN there.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.arrays import Floats

PUBLISHED_METRICS = {
    "f1_iou": ("F1_score_iou", "F1 (IoU > 0.4)", True),
    "precision_iou": ("precision_iou", "Precision (IoU > 0.4)", True),
    "recall_iou": ("recall_iou", "Recall (IoU > 0.4)", True),
    "mae": ("MAE", "MAE (as released)", False),
    "medae": ("MedAE", "MedAE (as released)", False),
    "mpe": ("MPE", "MPE (as released), %", False),
}
"""By key: the name in the order statistics, a title, and whether higher is better."""

RUNS = ["v1", "v2", "v3", "v4", "v5"]

_ROUNDING = 0.0006
"""The slides give three decimals and the runs four: half a unit of each, and a little for the SD."""


def slides() -> pd.DataFrame:
    """The slides' table: ``configuration``, then mean and SD of each metric (``f1_iou_mean``, ``f1_iou_sd``, …)."""
    return _read("published_slides.csv")


def order_statistics() -> pd.DataFrame:
    """The runs: ``configuration metric valid_runs mean_of_valid std_of_valid``, and ``v1`` to ``v5``, sorted."""
    return _read("published_order_statistics.csv")


def recount() -> pd.DataFrame:
    """The published figures, the same from the runs, and what they become when a collapse counts.

    A run collapsed if its F1 is NaN: it predicts nothing. Two rules turn five runs into one number:

    - *survivors only*, as published: the mean of the values that aren't NaN. A collapsed run's F1 is left out, but its
      count errors of 0 are in, since the released formula sees no error in predicting nothing.
    - *collapse as worst*, cellray's default: a collapsed run counts as the worst value, 0 for a share. A count error
      has no worst value: there it is the largest error of any run of the table, which is less than it would deserve.

    Columns, one row a configuration and metric:

    - ``configuration metric``;
    - ``slides_mean slides_sd``, NaN for metrics that the slides don't have;
    - ``valid_mean valid_sd n_valid valid_rank``: survivors only, with the sample SD (n - 1);
    - ``n_runs n_collapsed all_mean all_sd all_rank``: collapse as worst;
    - ``mean_differs sd_differs``: whether slides and runs disagree by more than rounding; ``differs``: either.

    Ranks start at 1; equal means share the better rank.
    """
    shown = slides().set_index("configuration")
    by_metric = {key: _runs_of(column, shown.index) for key, (column, _, _) in PUBLISHED_METRICS.items()}
    n_collapsed = np.isnan(by_metric["f1_iou"]).sum(axis=1)
    unknown = pd.Series(np.nan, index=shown.index)
    parts = []
    for key, (_, _, higher_is_better) in PUBLISHED_METRICS.items():
        values = by_metric[key]
        counted = _with_worst(values, n_collapsed, 0.0 if higher_is_better else float(np.nanmax(values)))
        part = pd.DataFrame(
            {
                "metric": key,
                "slides_mean": shown.get(f"{key}_mean", unknown),
                "slides_sd": shown.get(f"{key}_sd", unknown),
                "valid_mean": np.nanmean(values, axis=1),
                "valid_sd": np.nanstd(values, axis=1, ddof=1),
                "n_valid": np.isfinite(values).sum(axis=1),
                "n_runs": len(RUNS),
                "n_collapsed": n_collapsed,
                "all_mean": counted.mean(axis=1),
                "all_sd": counted.std(axis=1, ddof=1),
            },
            index=shown.index,
        )
        for rule in ("valid", "all"):
            # rounded, so that equal means share a rank whatever the order of their runs
            means = part[f"{rule}_mean"].round(9)
            part[f"{rule}_rank"] = means.rank(ascending=not higher_is_better, method="min").astype(int)
        parts.append(part.reset_index())
    table = pd.concat(parts, ignore_index=True)
    for name in ("mean", "sd"):
        table[f"{name}_differs"] = (table[f"slides_{name}"] - table[f"valid_{name}"]).abs() > _ROUNDING
    table["differs"] = table["mean_differs"] | table["sd_differs"]
    return table


def _runs_of(metric: str, configurations: pd.Index) -> Floats:
    """The five sorted values of each configuration, shape (n_configurations, 5)."""
    table = order_statistics()
    return table[table["metric"] == metric].set_index("configuration").loc[configurations, RUNS].to_numpy(np.float64)


def _with_worst(values: Floats, n_collapsed: NDArray[np.integer], worst: float) -> Floats:
    """The runs, with the values of the collapsed ones, which are NaN or the lowest there is, 0, replaced by `worst`."""
    ordered = np.sort(np.nan_to_num(values, nan=0.0), axis=1)
    return np.where(np.arange(len(RUNS)) < n_collapsed[:, None], worst, ordered)


def _read(name: str) -> pd.DataFrame:
    with (files("cellray") / "reference" / name).open(encoding="utf-8") as file:
        return pd.read_csv(file)

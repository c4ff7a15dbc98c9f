"""What a trial counts as where trials are averaged and ranked: the default rule, for the report and for MLflow alike.

A trial that failed or collapsed counts as the worst value of a metric, and so does a metric that is not a number.
An unbounded counting error has no worst value: there the largest error of any trial in that set, or that of
predicting nothing, stands in for it, whichever is worse. A trial that was stopped early counts as nothing: it is
ranked as stopped, never beside trials that had their whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from cellray.metrics import METRICS, Metric, summarise

POINTS = ("own", "shared")
"""Operating points: chosen on each trial's validation images, and the published one shared by all."""

Record = Mapping[str, Any]
"""The contents of one trial.json."""


class ImageTables(Protocol):
    """What is needed of a ledger."""

    def exists(self, path: str) -> bool: ...

    def table(self, key: str, name: str) -> pd.DataFrame: ...


def is_finite(value: object) -> bool:
    """Whether a stored value is a real number (None, NaN and infinities aren't)."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def magnitude(metric: Metric, value: float) -> float:
    """The size by which a value is ranked: |value| for an unbounded error, else the value.

    A signed error (MPE) of +50 in one seed and -50 in another is no good count, so its size is what is averaged.
    """
    return abs(value) if metric.worst is None else value


def score(
    metric: Metric, key: str, outcome: str, values: Mapping[str, Any] | None, worst: float
) -> tuple[str, float, float, str]:
    """Outcome in this set, value as stored, value that counts, and a note.

    The note is "", "nan", "worst", "stopped" or "not evaluated".

    Args:
        metric: The entry of `METRICS`.
        key: Its key.
        outcome: Of the trial: finished, collapsed, failed, stopped or missing.
        values: The trial's metrics in the set; None if it has none.
        worst: What a lost trial counts as, see `worst_values`.
    """
    nan = float("nan")
    stored = None if values is None else values.get(key)
    value = float(stored) if is_finite(stored) else nan  # type: ignore[arg-type]
    if outcome in ("failed", "collapsed"):
        return outcome, value, worst, "worst"
    if outcome == "missing":
        return outcome, nan, nan, ""
    if outcome == "stopped":
        return outcome, value, nan, "stopped"
    if values is None:
        return "missing", nan, nan, "not evaluated"
    if math.isnan(value):
        return outcome, nan, worst, "nan"
    return outcome, value, magnitude(metric, value), ""


def worst_values(
    records: Iterable[Record],
    sets: Sequence[str],
    nothing: Mapping[str, Mapping[str, float]],
    metrics: Iterable[str],
) -> dict[tuple[str, str], float]:
    """The value that a failed or collapsed trial counts as, for each set and metric.

    A bounded metric has its own worst value. An unbounded counting error (MAE, MedAE, |MPE|) has none, so it gets
    the largest error of any trial in that set, at either operating point, or that of predicting nothing,
    whichever is worse: a collapse never beats a trial that ended. Where neither is known it is NaN. Trials that were
    stopped early have no say.
    """
    worst = {}
    stored = [record for record in records if record["outcome"] != "stopped"]
    for name in sets:
        rows = [(r.get("metrics") or {}).get(point, {}).get(name, {}) for r in stored for point in POINTS]
        for key in metrics:
            metric = METRICS[key]
            if metric.worst is not None:
                worst[name, key] = metric.worst
                continue
            seen = [abs(row[key]) for row in rows if is_finite(row.get(key))]
            if key in nothing.get(name, {}):
                seen.append(nothing[name][key])
            worst[name, key] = max(seen, default=float("nan"))
    return worst


def errors_of_nothing(n_true: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Counting errors of a model that predicts no cell at all, from the true counts of a set's images."""
    counts = pd.DataFrame({"n_true": np.asarray(n_true), "n_pred": 0})
    if counts.empty:
        return {}
    errors = {key: abs(value) for key, value in summarise(counts).items() if key in METRICS}
    return {key: value for key, value in errors.items() if METRICS[key].worst is None}


def nothing_by_set(
    ledger: ImageTables, records: Sequence[Record], known: dict[str, dict[str, dict[str, float]]] | None = None
) -> dict[str, dict[str, float]]:
    """Worst counting errors of predicting nothing, per set.

    The images of a set are the same in every trial except on validation, so one image table for each split is read.

    Args:
        ledger: Where image tables are.
        records: Planned records.
        known: Filled with what was read, by split; pass it again to read only new splits.
    """
    known = {} if known is None else known
    for record in sorted(records, key=lambda r: str(r["key"])):
        split = str((record.get("data") or {}).get("split_hash", ""))
        if split in known or not record.get("metrics") or not ledger.exists(f"trials/{record['key']}/images.parquet"):
            continue
        images = ledger.table(record["key"], "images")
        images = images[images.point == "own"] if "point" in images else images
        known[split] = {str(name): errors_of_nothing(rows.n_true.to_numpy()) for name, rows in images.groupby("set")}
    merged: dict[str, dict[str, float]] = {}
    for sets in known.values():
        for name, errors in sets.items():
            into = merged.setdefault(name, {})
            for key, value in errors.items():
                into[key] = max(value, into.get(key, -math.inf))
    return merged


def best_record(records: Iterable[Mapping[str, Any]], rank_by: str) -> Mapping[str, Any] | None:
    """The finished trial with the best score on its validation images; test images have no say.

    Args:
        records: Of a study.
        rank_by: The metric of `operating_point_score`.

    Returns:
        Of equals, the first by label and seed; None if no trial has finished.
    """
    finished = [r for r in records if r["outcome"] == "finished" and r.get("operating_point_score") is not None]
    metric = METRICS[rank_by]
    return min(
        finished, key=lambda r: (metric.shortfall(r["operating_point_score"]), r["label"], r["seed"]), default=None
    )

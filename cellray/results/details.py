"""What figures draw beyond the records: each trial's tables, read once and summed at once.

A study may have 500 trials of tens of thousands of objects, so the objects of one trial at a time are in memory. All
image and object rows are those of each trial's own operating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellray.metrics import CURVE_SOURCES, CURVE_THRESHOLDS, detected
from cellray.metrics.strata import STRATUM_COLUMNS
from cellray.results.core import Results
from cellray.results.tables import Columns

COUNT_COLUMNS = ["set", "label", "seed", "image", "n_true", "n_pred"]
CURVE_COLUMNS = ["set", "label", "seed", "outcome", "threshold", "f1", "precision", "recall"]
LEVEL_COLUMNS = ["set", "label", "seed", "outcome", *STRATUM_COLUMNS]


@dataclass(frozen=True)
class Details:
    """Tables of all trials together, with failed and collapsed ones counted as the ranking counts them."""

    histories: dict[tuple[str, int], pd.DataFrame]
    """(label, seed) -> one row an epoch, as stored; of trials that trained at least one."""
    counts: pd.DataFrame
    """One row a trial, set and image, with `COUNT_COLUMNS`: as predicted, so only trials that were judged."""
    iou: pd.DataFrame
    """One row a trial, set and IoU threshold (0.1 to 0.9), with `CURVE_COLUMNS`; lost trials are 0 throughout."""
    strata: pd.DataFrame
    """One row a trial, set and level, with `LEVEL_COLUMNS`; see `stratify`. A lost trial has F1, precision and recall 0
    and misses every cell; what else a level counts is NaN there."""

    def counts_of(self, set_name: str) -> dict[str, pd.DataFrame]:
        """Rows of `counts` of one set, by label."""
        rows = self.counts[self.counts["set"] == set_name]
        return {str(label): part for label, part in rows.groupby("label", sort=False)}

    @property
    def speeds(self) -> dict[tuple[str, int], float]:
        """Mean training images a second over the epochs of a trial, by label and seed."""
        known = {key: history for key, history in self.histories.items() if "images_per_s" in history}
        return {key: float(history.images_per_s.mean()) for key, history in known.items()}


NO_DETAILS = Details({}, *(pd.DataFrame(columns=c) for c in (COUNT_COLUMNS, CURVE_COLUMNS, LEVEL_COLUMNS)))
"""Of a study of which nothing but records was read."""


def read_details(results: Results) -> Details:
    """Read every planned trial's tables, each file once and only the columns that figures need.

    A trial is lost if it failed or collapsed. As in the ranking, a lost trial counts as the worst value in every set;
    under the quirk skip_collapsed it is left out. A trial without a record, or without images of a set, counts as
    nothing there, and so does one with a damaged table, which `results` drops. Of a configuration that was stopped
    early only the histories are read. Validation images are left out, and so is what a record of an older version
    lacks.

    Args:
        results: The planned trials.
    """
    plan, records = results.plan, results.records
    histories: dict[tuple[str, int], pd.DataFrame] = {}
    counts, curves = Rows(COUNT_COLUMNS), Rows(CURVE_COLUMNS)
    levels: list[dict[str, object]] = []
    lost: list[tuple[str, int, str]] = []
    by_key: dict[str, list[tuple[str, int]]] = {}
    for trial in plan.trials:  # two labels with the same settings share a trial
        if trial.key in records:
            by_key.setdefault(trial.key, []).append((trial.label, trial.seed))
    stopped = {t.label for t in plan.trials if t.key in records and records[t.key].outcome == "stopped"}
    for record, (history, images, level) in results.tables():
        outcome = record.outcome
        course = pd.DataFrame(history)
        if len(course):
            histories |= dict.fromkeys(by_key[record.key], course)
        for label, seed in by_key[record.key]:
            if label in stopped:
                continue
            who: dict[str, object] = {"label": label, "seed": seed}
            if images and outcome != "failed":
                counts.add(**{name: images[name] for name in COUNT_COLUMNS if name in images}, **who)
            if record.is_lost:
                lost.append((label, seed, outcome))
                continue
            for name, curve in curves_of(images).items():
                curves.add(**curve, **who, set=name, outcome=outcome)
            levels += [row | who | {"outcome": outcome} for row in level]
    if plan.skip_collapsed:
        lost = []
    iou, strata = curves.table(), pd.DataFrame(levels, columns=LEVEL_COLUMNS)
    return Details(
        histories=histories,
        counts=counts.table(),
        iou=stack([iou, worst_curves(iou, lost)], CURVE_COLUMNS),
        strata=stack([strata, worst_levels(strata, lost)], LEVEL_COLUMNS),
    )


class Rows:
    """A table in the making, column by column: a frame for each trial would take most of the time."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}

    def add(self, **columns: object) -> None:
        """Some rows: arrays, and values that are the same in all of them."""
        n = next(len(values) for values in columns.values() if isinstance(values, np.ndarray))
        for name, values in columns.items():
            kind = object if isinstance(values, str) else None
            self._parts[name].append(values if isinstance(values, np.ndarray) else np.full(n, values, dtype=kind))

    def table(self) -> pd.DataFrame:
        """All of them."""
        return pd.DataFrame({name: np.concatenate(parts) if parts else [] for name, parts in self._parts.items()})


def curves_of(images: Columns) -> dict[str, dict[str, np.ndarray]]:
    """The IoU curve of each set of one trial, if its images have what that takes."""
    if not set(CURVE_SOURCES) <= set(images):
        return {}
    found = {}
    for name in dict.fromkeys(images["set"]):
        mine = images["set"] == name
        sums = np.array([images[column][mine].sum() for column in CURVE_SOURCES], dtype=float)
        found[name] = {"threshold": CURVE_THRESHOLDS, **detected(sums)}
    return found


def worst_curves(iou: pd.DataFrame, lost: Sequence[tuple[str, int, str]]) -> pd.DataFrame:
    """A row of zeros for each lost trial, set and threshold."""
    points = iou[["set", "threshold"]].drop_duplicates()
    zeros = points.assign(f1=0.0, precision=0.0, recall=0.0)
    return stack([zeros.assign(label=label, seed=seed, outcome=outcome) for label, seed, outcome in lost])


def worst_levels(strata: pd.DataFrame, lost: Sequence[tuple[str, int, str]]) -> pd.DataFrame:
    """The worst row for each lost trial, set and level; the levels are those of the others, as truth makes them."""
    rows = strata[["set", "stratum", "level"]].drop_duplicates()
    rows = rows.assign(f1_iou=0.0, precision_iou=0.0, recall_iou=0.0, hit=0.0, merged=0.0, split=0.0, missed=1.0)
    of_images = rows["stratum"] == "crowding"
    rows.loc[of_images, ["hit", "merged", "split", "missed"]] = float("nan")
    rows.loc[~of_images, ["f1_iou", "precision_iou"]] = float("nan")
    return stack([rows.assign(label=label, seed=seed, outcome=outcome) for label, seed, outcome in lost])


def stack(parts: Sequence[pd.DataFrame], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The parts that have rows, one below the other."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return pd.DataFrame(columns=list(columns or []))
    whole = pd.concat(filled, ignore_index=True)
    for name in ("set", "image"):
        if name in whole:
            whole[name] = whole[name].astype(str)
    return whole[list(columns)] if columns else whole

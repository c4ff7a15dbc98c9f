"""What figures draw beyond the records: each trial's tables, read once and summed at once.

A study may have 500 trials of tens of thousands of objects, so the objects of one trial at a time are in memory. All
image and object rows are those of each trial's own operating point.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow.parquet as pq

from cellray.errors import LedgerError
from cellray.ledger import TABLES
from cellray.metrics import iou_curve, stratify
from cellray.metrics.strata import STRATUM_COLUMNS
from cellray.results.core import Results

COUNT_COLUMNS = ["set", "label", "seed", "image", "n_true", "n_pred"]
CURVE_COLUMNS = ["set", "label", "seed", "outcome", "threshold", "f1", "precision", "recall"]
LEVEL_COLUMNS = ["set", "label", "seed", "outcome", *STRATUM_COLUMNS]

IOU_COLUMNS = [f"tp_iou_{tenth}0" for tenth in range(1, 10)]
STRATUM_SOURCES = ["tp_iou", "fp_iou", "fn_iou", "crowded"]
IMAGES = ["set", "point", "image", "n_true", "n_pred", *STRATUM_SOURCES, *IOU_COLUMNS]
OBJECTS = ["set", "image", "true_id", "pred_id", "area_true", "area_pred", "kind"]


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
    counts, curves, levels = [], [], []
    lost: list[tuple[str, int, str]] = []
    by_key: dict[str, list[tuple[str, int]]] = {}
    for trial in plan.trials:  # two labels with the same settings share a trial
        if trial.key in records:
            by_key.setdefault(trial.key, []).append((trial.label, trial.seed))
    stopped = {t.label for t in plan.trials if t.key in records and records[t.key].outcome == "stopped"}
    for record, (history, rows, objects) in results.tables(*TABLES):
        is_lost, key = record.is_lost, record.key
        names = [name for name in by_key[key] if name[0] not in stopped]
        try:
            with results.ledger.reading(key, "history"):
                course = read_columns(history)
            with results.ledger.reading(key, "images"):
                images = read_columns(rows, IMAGES)
                images = images[(images["point"] == "own") & (images["set"] != "val")] if len(images) else images
            with results.ledger.reading(key, "objects"):
                summed = not is_lost and names
                curve, level = sum_up(images, objects) if summed else (pd.DataFrame(), pd.DataFrame())
        except LedgerError as error:
            results.drop(key, str(error))
            continue
        if len(course):
            histories |= dict.fromkeys(by_key[key], course)
        for label, seed in names:
            who: dict[str, object] = {"label": label, "seed": seed}
            if len(images) and record.outcome != "failed":
                counts.append(images[["set", "image", "n_true", "n_pred"]].assign(**who))
            if is_lost:
                lost.append((label, seed, record.outcome))
                continue
            curves.append(curve.assign(**who, outcome=record.outcome))
            levels.append(level.assign(**who, outcome=record.outcome))
    if plan.skip_collapsed:
        lost = []
    iou, strata = stack(curves, CURVE_COLUMNS), stack(levels, LEVEL_COLUMNS)
    return Details(
        histories=histories,
        counts=stack(counts, COUNT_COLUMNS),
        iou=stack([iou, worst_curves(iou, lost)], CURVE_COLUMNS),
        strata=stack([strata, worst_levels(strata, lost)], LEVEL_COLUMNS),
    )


def read_columns(file: bytes | None, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A stored table, with those of the wanted columns that it has; without a row if there is no such file."""
    if file is None:
        return pd.DataFrame()
    data = io.BytesIO(file)
    stored = pq.read_schema(data).names
    wanted = [name for name in columns or stored if name in stored]
    # words repeat themselves: as a dictionary they are read several times as fast
    words = [name for name in ("set", "image", "point", "kind") if name in wanted]
    return pq.read_table(data, columns=wanted, read_dictionary=words).to_pandas()


def sum_up(images: pd.DataFrame, file: bytes | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The IoU curve and the strata of each set of one trial, with a column `set`; `file` holds its table of objects."""
    curves, levels = [pd.DataFrame()], [pd.DataFrame()]
    has_strata = set(STRATUM_SOURCES) <= set(images)
    objects = read_columns(file if has_strata else None, OBJECTS)
    cells = {str(name): rows for name, rows in objects.groupby("set", observed=True)} if len(objects) else {}
    by_set = images.groupby("set", observed=True) if len(images) else ()
    for name, rows in by_set:
        if set(IOU_COLUMNS) <= set(rows):
            curves.append(iou_curve(rows).assign(set=str(name)))
        if len(objects):
            found = cells.get(str(name), objects.iloc[:0])
            levels.append(stratify(rows[["image", "n_true", "n_pred", *STRATUM_SOURCES]], found).assign(set=str(name)))
    return stack(curves), stack(levels)


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

"""A trial with `data.folds`: one training for each part of the images, and one record of them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pandas as pd

from cellray.evaluation import as_judged
from cellray.ledger import TABLES, Ledger
from cellray.record import Compilation, EpochRow, OverlayFile, Scores, Seconds, TrialRecord
from cellray.study import Trial
from cellray.trial.recording import data_facts
from cellray.trial.sets import Sets


class RunsOne(Protocol):
    """Trains and judges one part; None where it waits to be judged, or another process of the same team writes."""

    def __call__(
        self, trial: Trial, sets: Sets, ledger: Ledger, *, on_epoch: Callable[[EpochRow], None]
    ) -> TrialRecord | None: ...


def run_folds(
    trial: Trial, sets: Sets, ledger: Ledger, run: RunsOne, *, on_epoch: Callable[[EpochRow], None], leads: bool
) -> TrialRecord | None:
    """Train every part of a trial, one after the other, and store one record: each image is tested once.

    The parts' own records lie in the ledger's folder `folds`, so that a trial that was interrupted goes on. The first
    training is the one that is handed out, so operating point, validation score, weights and external sets are its. A
    trial is lost if one of its trainings is.

    Args:
        trial: The whole one.
        sets: The study's data.
        ledger: The study's.
        run: Runs a part.
        on_epoch: Told each epoch's row, counted on from part to part.
        leads: Whether this process writes.

    Returns:
        The whole trial's record, or None if a part waits to be judged, or another process writes.
    """
    planned = sets.planned(trial, ledger)
    if planned.done:
        return planned.record
    parts = ledger.within("folds")
    records: list[TrialRecord] = []
    before, told, waits = (0, 0), (0, 0), not leads
    for one in trial.trainings:

        def tell(row: EpochRow, before: tuple[int, int] = before) -> None:
            nonlocal told
            told = row["epoch"] + before[0], row["step"] + before[1]
            on_epoch({**row, "epoch": told[0], "step": told[1]})

        record = run(one, sets, ledger, on_epoch=tell)
        if record is None:
            before, waits = told, True
            continue
        records.append(record)
        before = before[0] + (record.epochs or 0), before[1] + (record.steps or 0)
        if record.outcome == "failed":
            break
    if waits:
        return None
    tables = {name: _table(name, parts, records) for name in TABLES}
    whole = _together(trial, sets, records, tables["images"])
    if not whole.metrics:
        tables |= {name: pd.DataFrame() for name in ("images", "objects")}
    files = {
        picture.file: parts.read(f"trials/{records[fold].key}/{picture.file}")
        for fold, picture in _pictures(records)
        if whole.metrics
    }
    if (weights := parts.load_checkpoint(records[0].key, "best")) is not None:
        ledger.save_checkpoint(whole.key, "best", weights)
    ledger.write_record(whole, tables, files)
    if whole.outcome == "failed":  # so that it is tried again when the trial is
        parts.delete(f"trials/{records[-1].key}/trial.json")
    return whole


def _together(trial: Trial, sets: Sets, records: list[TrialRecord], images: pd.DataFrame) -> TrialRecord:
    """The record of a whole trial from those of its trainings so far, and the image rows of all."""
    first, last = records[0], records[-1]
    key, evaluation_key = sets.keys(trial)
    lost = next((i for i, record in enumerate(records) if record.outcome == "failed"), None)
    if lost is None:
        lost = next((i for i, record in enumerate(records) if record.is_lost), None)
    reason = None if lost is None else f"training {lost + 1} of {len(trial.trainings)}: {records[lost].reason}"
    judged = all(record.metrics for record in records) and last.outcome != "failed"
    pictures = tuple(picture for _, picture in _pictures(records)) if judged else ()
    return first.model_copy(
        update={
            "key": key,
            "evaluation_key": evaluation_key,
            "data": data_facts(sets, sets.split(trial)),
            "outcome": "finished" if lost is None else records[lost].outcome,
            "reason": reason,
            "seconds": Seconds(
                waiting=_waiting_s(records),
                training=sum(record.seconds.training or 0 for record in records),
                evaluation=sum(record.seconds.evaluation or 0 for record in records),
                compilation=sum(r.seconds.compilation or 0 for r in records) if _compiled(records) else None,
            ),
            "peak_memory_mb": max(record.peak_memory_mb or 0.0 for record in records),
            "provenance": first.provenance.model_copy(update={"ended": last.provenance.ended}),
            "epochs": sum(record.epochs or 0 for record in records),
            "steps": sum(record.steps or 0 for record in records),
            "compiled": _compiled(records),
            "metrics": _metrics(trial, first, images) if judged else {},
            "overlays": pictures,
        }
    )


def _waiting_s(records: list[TrialRecord]) -> float | None:
    """Seconds between the first training and the last judgement in which nothing was done; None if none waited."""
    if all(record.seconds.waiting is None for record in records):
        return None
    busy_s = sum(record.provenance.elapsed_s - (record.seconds.waiting or 0.0) for record in records)
    whole = records[0].provenance.model_copy(update={"ended": records[-1].provenance.ended})
    return max(whole.elapsed_s - busy_s, 0.0)


def _compiled(records: list[TrialRecord]) -> Compilation | None:
    """What was compiled of all trainings; None if nothing was."""
    parts = [record.compiled for record in records if record.compiled is not None]
    return Compilation(compiler=parts[0].compiler, steps=sum(part.steps for part in parts)) if parts else None


def _metrics(trial: Trial, first: TrialRecord, images: pd.DataFrame) -> dict[str, dict[str, Scores]]:
    """The scores of all test and validation images together, and the first training's on external sets."""
    return {
        point: {
            name: as_judged(images[(images["set"] == name) & (images["point"] == point)], trial.evaluation)
            if name in ("val", "test")
            else scores
            for name, scores in of_point.items()
        }
        for point, of_point in first.metrics.items()
    }


def _table(name: str, parts: Ledger, records: list[TrialRecord]) -> pd.DataFrame:
    """A table of all trainings; epochs are counted on from one to the next."""
    tables = [parts.table(record.key, name) for record in records]
    if name == "history":
        before = np.cumsum([[0, 0], *([record.epochs or 0, record.steps or 0] for record in records)], axis=0)
        tables = [
            table.assign(epoch=table["epoch"] + epochs, step=table["step"] + steps) if len(table) else table
            for table, (epochs, steps) in zip(tables, before, strict=False)
        ]
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def _pictures(records: list[TrialRecord]) -> list[tuple[int, OverlayFile]]:
    """Of each set and role the picture that is most so over all trainings, and which one it is of."""
    by_role: dict[tuple[str, str], list[tuple[int, OverlayFile]]] = {}
    for i, record in enumerate(records):
        for picture in record.overlays:
            by_role.setdefault((picture.set, picture.role), []).append((i, picture))
    chosen = []
    for (_, role), found in by_role.items():
        ranked = sorted(found, key=lambda entry: entry[1].n_true or 0 if role == "crowded" else entry[1].f1_iou or 0.0)
        chosen.append(ranked[{"worst": 0, "median": len(ranked) // 2}.get(role, -1)])
    return chosen

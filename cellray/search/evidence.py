"""What a sweep's decisions are made from: the records and checkpoints of its ledger, read as they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cellray.errors import CheckpointError, LedgerError
from cellray.ledger import Ledger
from cellray.metrics import METRICS
from cellray.record import EpochRow, PlannedTrial, TrialRecord
from cellray.results import Results, ended_runs, plan_of
from cellray.scores import POINTS, is_finite, score_table, worst_values
from cellray.study import Study
from cellray.training import training_run


class Evidence:
    """The results of one study so far.

    Args:
        study: Whose metric ranks.
        ledger: Its ledger, held by this process.
    """

    def __init__(self, study: Study, ledger: Ledger) -> None:
        self._study, self._ledger = study, ledger
        self._stored = {record.key: record for record in ledger.records()}
        self._courses: dict[str, list[EpochRow]] = {}
        self._results: Results | None = None
        self.running: set[str] = set()
        """Keys of the trials that run: their checkpoints say nothing yet."""

    def ended(self, key: str, record: TrialRecord | None) -> None:
        """A trial doesn't run any more, and has this record, if any."""
        self.running.discard(key)
        self._courses.pop(key, None)
        if record is not None:
            self._stored[key] = record

    def now(self, planned: PlannedTrial) -> PlannedTrial:
        """A planned trial with what the ledger has of it now."""
        return replace(planned, record=self._stored.get(planned.key))

    def course(self, planned: PlannedTrial, epoch: int) -> list[EpochRow]:
        """A trial's epochs if it came to `epoch` or ended, else nothing."""
        key = planned.key
        if key not in self._courses:
            if planned.record is not None:
                self._courses[key] = self._ledger.history(key)
            else:
                data = self._ledger.load_checkpoint(key, "last") if key not in self.running else None
                self._courses[key] = _course(data) if data else []
        rows = self._courses[key]
        return rows if planned.done or len(rows) >= epoch else []

    def aggregate(self, trials: list[PlannedTrial], metric: str) -> float:
        """A configuration's mean over seeds on validation images; a lost trial counts as the worst value."""
        worst = METRICS[metric].worst
        assert worst is not None  # the study checks it
        found = []
        for planned in trials:
            stored = planned.record
            value = stored.score(metric, "val") if stored is not None and stored.outcome == "finished" else None
            found.append(float(value) if is_finite(value) else float(worst))
        return sum(found) / len(found)

    def ended_runs(
        self, labels: Sequence[str], given: Sequence[Sequence[PlannedTrial]], seeds: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The given trials on the test images, as `results.ended_runs` has them.

        Raises:
            LedgerError: If an image table is damaged.
        """
        metric = self._study.evaluation.rank_by
        trials = [planned for mine in given for planned in mine]
        plan, records = plan_of(self._study, trials), [t.record for t in trials if t.record is not None]
        if self._results is None:
            self._results = Results(self._ledger, plan, records, metric=metric)
        self._results.update(plan, records)
        self._results.drop_damaged()
        for sentence in self._results.damaged.values():  # nothing is decided from a part of what was trained
            raise LedgerError(sentence)
        worst = worst_values(records, ["test"], self._results.nothing, [metric])
        scores = score_table(trials, self._results.records, ["test"], [metric], worst, points=POINTS[:1])
        return ended_runs(scores, self._results.samples, labels, seeds)


def _course(last: bytes) -> list[EpochRow]:
    """The epochs in a checkpoint `last`; none if it is damaged, since its trial then starts again."""
    try:
        return training_run(last).history
    except CheckpointError:
        return []


def dice_at(course: list[EpochRow], epoch: int) -> float:
    """Validation Dice after an epoch; 0 where a training had ended before it, or had none."""
    dice = next((row["val_dice"] for row in course if row["epoch"] == epoch), math.nan)
    return dice if math.isfinite(dice) else 0.0

"""How far a sweep is, kept as its news come in: each costs the same, however many there were before."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cellray.record import EpochRow, PlannedTrial, TrialRecord, TrialSettings
from cellray.results import Plan
from cellray.scores import as_float


def slim(record: TrialRecord, metrics: Collection[str]) -> TrialRecord:
    """What a live table reads of a record: a tenth of it. All settings, and the curve of a range test, stay behind.

    Args:
        record: Of any trial.
        metrics: Of the table.
    """
    tried = record.range_test
    return record.model_copy(
        update={
            "metrics": {
                point: {name: {key: values[key] for key in metrics if key in values} for name, values in sets.items()}
                for point, sets in record.metrics.items()
            },
            "range_test": tried.model_copy(update={"lr": (min(tried.lr),), "loss": ()}) if tried and tried.lr else None,
            "settings": TrialSettings(training=record.settings.training.only_budget),
            "data": record.data.model_copy(update={"fingerprint": ""}),
            "overlays": (),
        }
    )


class Progress:
    """Counts, running trials and the time left.

    Args:
        plan: The planned trials.
        clock: Seconds from any start.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.running: dict[tuple[str, int], dict[str, Any]] = {}
        self.records: dict[str, TrialRecord] = {}
        """By key; also those that the plan doesn't name, since a plan may grow."""
        self.replan(plan)

    def replan(self, plan: Plan) -> None:
        """Another plan; what ended and what runs stays known."""
        self.plan = plan
        self._order = {(trial.label, trial.seed): i for i, trial in enumerate(plan.trials)}
        self._planned: dict[str, list[PlannedTrial]] = {}  # two labels with the same settings share a trial
        for trial in plan.trials:
            self._planned.setdefault(trial.key, []).append(trial)
        self.done: Counter[str] = Counter()
        """Planned trials by outcome."""
        self._keys_done: set[str] = set()
        self._lost: set[str] = set()
        self._took = [0.0, 0]  # seconds and number of the trials that took any
        self._judged = [0.0, 0]
        self._epochs: Counter[int] = Counter()  # of finished trials
        for record in self.records.values():
            self._count(record, 1)

    def started(self, label: str, seed: int, key: str) -> None:
        """A trial begins; a resumed one may begin again."""
        self.running[label, seed] = {"key": key, "epoch": 0, "since": self._clock()}

    def epoch(self, label: str, seed: int, row: EpochRow) -> None:
        """A trial ended an epoch. One that nobody announced (after a restart) counts as running from here."""
        at = self._order.get((label, seed))
        key = "" if at is None else self.plan.trials[at].key
        state = self.running.setdefault((label, seed), {"key": key, "since": self._clock()})
        state["epoch"] = int(row.get("epoch", 0))
        state["val_dice"] = as_float(row.get("val_dice", state.get("val_dice")))
        state["epoch_s"] = as_float(row.get("seconds"))

    def ended(self, record: TrialRecord) -> None:
        """A trial that ran has its record."""
        for who in [who for who, state in self.running.items() if state["key"] == record.key]:
            del self.running[who]
        self.learn(record)

    def learn(self, record: TrialRecord) -> None:
        """A trial has a record, perhaps another one than before."""
        if record.key in self.records:
            self._count(self.records[record.key], -1)
        self.records[record.key] = record
        self._count(record, 1)

    def _count(self, record: TrialRecord, sign: int) -> None:
        key, outcome = record.key, record.outcome
        trials = self._planned.get(key, [])
        if not trials or trials[0].find({key: record}) is None:
            return
        self.done[outcome] += sign * len(trials)
        (self._keys_done.add if sign > 0 else self._keys_done.discard)(key)
        (self._lost.add if sign > 0 and record.is_lost else self._lost.discard)(key)
        took, judged = record.seconds.total, as_float(record.seconds.evaluation)
        if math.isfinite(took) and took > 0:
            self._took = [self._took[0] + sign * took, self._took[1] + sign]
        if math.isfinite(judged):
            self._judged = [self._judged[0] + sign * judged, self._judged[1] + sign]
        if outcome == "finished":
            self._epochs[record.epochs or 0] += sign

    @property
    def n_done(self) -> int:
        """Planned trials that have a record."""
        return self.done.total()

    def troubles(self, limit: int) -> list[dict[str, Any]]:
        """The first failed and collapsed trials in the order of the plan."""
        trials = (trial for key in self._lost for trial in self._planned[key])
        first = heapq.nsmallest(limit, trials, key=lambda trial: self._order[trial.label, trial.seed])
        return [
            {
                "label": trial.label,
                "seed": trial.seed,
                "outcome": self.records[trial.key].outcome,
                "reason": self.records[trial.key].reason or "",
                "key": trial.key,
            }
            for trial in first
        ]

    def running_rows(self) -> list[dict[str, Any]]:
        """The running trials: epoch, validation Dice, seconds so far and seconds left."""
        return [self._running_row(*who, self.running[who]) for who in sorted(self.running)]

    def _running_row(self, label: str, seed: int, state: Mapping[str, Any]) -> dict[str, Any]:
        dice = state.get("val_dice", math.nan)
        return {
            "label": label,
            "seed": seed,
            "epoch": state["epoch"],
            "epochs": self._n_epochs(),
            "val_dice": dice if math.isfinite(dice) else None,
            "running_s": round(self._clock() - state["since"], 1),
            "eta_s": self._trial_eta(state),
        }

    def _n_epochs(self) -> int | None:
        """Epochs of every trial: as planned, or, where the plan counts steps, as in the trials that ended."""
        seen = [n for n, times in self._epochs.items() if times]
        return self.plan.epochs or (seen[0] if len(seen) == 1 else None)

    def _trial_eta(self, state: Mapping[str, Any]) -> float | None:
        """Seconds until a running trial ends: its epochs at the pace of the last one, and an evaluation as usual."""
        epoch_s = state.get("epoch_s", math.nan)
        epochs = self._n_epochs()
        if not (epochs and math.isfinite(epoch_s)):
            return None
        judging, n = self._judged
        return round(max(epochs - state["epoch"], 0) * epoch_s + (judging / n if n else 0.0), 1)

    def eta_s(self) -> float | None:
        """Seconds until the last trial ends, from the mean of those that ended; None before the first."""
        left = len(self._planned) - len(self._keys_done)
        if left == 0:
            return 0.0
        seconds, n = self._took
        if not n or not self.running:
            return None
        each = seconds / n
        spent = sum(min(self._clock() - state["since"], each) for state in self.running.values())
        return round(max(left * each - spent, 0.0) / len(self.running), 1)

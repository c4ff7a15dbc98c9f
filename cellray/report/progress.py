"""How far a sweep is, kept as its news come in: each costs the same, however many there were before."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypedDict

from cellray.observers import Tries
from cellray.record import EpochRow, PlannedTrial, TrialRecord, TrialSettings
from cellray.results import Plan
from cellray.scores import as_float
from cellray.times import duration


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


class LostRow(TypedDict):
    """A trial that failed or collapsed, in `report/status.json`."""

    label: str
    seed: int
    outcome: str
    reason: str
    key: str


class TriesRow(TypedDict):
    """The trainings that choose learning rates, in `report/status.json`."""

    done: int
    planned: int
    eta_s: float | None
    said: str
    """All of it in a sentence's words."""


class RunningRow(TypedDict):
    """A running trial, in `report/status.json`."""

    label: str
    seed: int
    epoch: int
    epochs: int | None
    val_dice: float | None
    running_s: float
    eta_s: float | None


class LiveTable(TypedDict):
    """The ranked table so far."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


class SweepStatus(TypedDict):
    """How far a sweep is: `report/status.json`."""

    study: str
    planned: int
    done: dict[str, int]
    """Trials by outcome."""
    missing: int
    tries: TriesRow | None
    """None where none is to be done any more."""
    running: list[RunningRow]
    eta_s: float | None
    table_of: int
    """Results that are in the table; where making one takes long, the last ones may be missing."""
    table: LiveTable
    verdict: list[str]
    troubles: list[LostRow]


@dataclass
class _Running:
    """What is known of a running trial; times by the clock."""

    key: str
    since: float
    epoch: int = 0
    step: int = 0
    epoch_s: float = math.nan
    at: float = math.nan
    """When its last epoch ended."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Epoch and validation Dice."""


class SweepProgress:
    """Counts, running trials and the time left.

    Args:
        plan: The planned trials.
        clock: Seconds from any start.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tries: list[tuple[float, Tries]] = []  # when they were first and last heard of, and how far they were
        self.running: dict[tuple[str, int], _Running] = {}
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

    def tried(self, tries: Tries) -> None:
        """How far the trainings are that choose learning rates."""
        self._tries = [*self._tries[:1], (self._clock(), tries)]

    def tries_row(self) -> TriesRow | None:
        """How far they are, and when at this pace the last one ends; None where none is to be done."""
        if not self._tries:
            return None
        (began, first), (at, last) = self._tries[0], self._tries[-1]
        left, done = last.planned - last.done, last.done - first.done
        if left == 0:
            return None
        eta_s = round(max((at - began) / done * left - (self._clock() - at), 0.0), 1) if done else None
        said = f"choosing learning rates: {last.done} of {last.planned} shorter trainings done"
        if eta_s is not None:
            said += f", about {duration(eta_s)} left of them"
        return {"done": last.done, "planned": last.planned, "eta_s": eta_s, "said": said}

    def started(self, label: str, seed: int, key: str = "") -> None:
        """A trial begins; a resumed one may begin again. Its key is the plan's, unless that is older than it."""
        self.running[label, seed] = _Running(key or self._key(label, seed), self._clock())

    def epoch(self, label: str, seed: int, row: EpochRow) -> None:
        """A trial ended an epoch. One that nobody announced (after a restart) counts as running from here."""
        trial = self.running.setdefault((label, seed), _Running(self._key(label, seed), self._clock()))
        trial.epoch, trial.step = int(row.get("epoch", 0)), int(row.get("step", 0))
        if math.isfinite(dice := as_float(row.get("val_dice"))):  # not every epoch is validated
            trial.curve.append((trial.epoch, dice))
        trial.epoch_s, trial.at = as_float(row.get("seconds")), self._clock()

    def _key(self, label: str, seed: int) -> str:
        at = self._order.get((label, seed))
        return "" if at is None else self.plan.trials[at].key

    def ended(self, record: TrialRecord) -> None:
        """A trial that ran has its record."""
        for who in [who for who, trial in self.running.items() if trial.key == record.key]:
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

    def troubles(self, limit: int) -> list[LostRow]:
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

    @property
    def curves(self) -> dict[tuple[str, int], list[tuple[int, float]]]:
        """Epoch and validation Dice of the running trials, by label and seed, as far as they were watched."""
        return {who: list(trial.curve) for who, trial in self.running.items()}

    def running_rows(self) -> list[RunningRow]:
        """The running trials: epoch, validation Dice, seconds so far and seconds left."""
        return [self._running_row(*who, self.running[who]) for who in sorted(self.running)]

    def _running_row(self, label: str, seed: int, trial: _Running) -> RunningRow:
        return {
            "label": label,
            "seed": seed,
            "epoch": trial.epoch,
            "epochs": self._n_epochs(trial),
            "val_dice": trial.curve[-1][1] if trial.curve else None,
            "running_s": round(self._clock() - trial.since, 1),
            "eta_s": self._trial_eta(trial),
        }

    def _n_epochs(self, trial: _Running) -> int | None:
        """Epochs of a running trial: as planned, or, where the plan counts steps, as in the trials that ended or by the
        steps that it has made."""
        seen = [n for n, times in self._epochs.items() if times]
        if self.plan.epochs or len(seen) == 1:
            return self.plan.epochs or seen[0]
        return round(trial.epoch * self.plan.steps / trial.step) if self.plan.steps and trial.step else None

    def _trial_eta(self, trial: _Running) -> float | None:
        """Seconds until a running trial ends: its epochs at the pace of the last one, and an evaluation as usual."""
        epochs = self._n_epochs(trial)
        if not (epochs and math.isfinite(trial.epoch_s)):
            return None
        since = self._clock() - trial.at  # seconds of the next epoch that are over
        left = max(max(epochs - trial.epoch, 0) * trial.epoch_s - since, 0.0)
        return round(left + self._judging_s, 1)

    @property
    def _judging_s(self) -> float:
        """What evaluating a trial takes."""
        judging, n = self._judged
        return judging / n if n else 0.0

    def trial_eta_s(self, label: str, seed: int) -> float | None:
        """Seconds until a running trial ends; None before its first epoch has."""
        trial = self.running.get((label, seed))
        return None if trial is None else self._trial_eta(trial)

    def eta_s(self) -> float | None:
        """Seconds until the last trial ends: what is left of those that run, and as much for each further one as those
        that ended took, or before the first has as those that run will. None before anything can be said."""
        waiting = len(self._planned) - len(self._keys_done) - len(self.running)
        if waiting + len(self.running) == 0:
            return 0.0
        each = self._each_s()
        if each is None or not self.running:
            return None
        left = [self._left_s(trial, each) for trial in self.running.values()]
        return round(max(max(left), (sum(left) + max(waiting, 0) * each) / len(self.running)), 1)

    def _each_s(self) -> float | None:
        """What a whole trial takes."""
        seconds, n = self._took
        if n:
            return seconds / n
        known = [
            epochs * trial.epoch_s
            for trial in self.running.values()
            if (epochs := self._n_epochs(trial)) and math.isfinite(trial.epoch_s)
        ]
        return sum(known) / len(known) + self._judging_s if known else None

    def _left_s(self, trial: _Running, each: float) -> float:
        eta = self._trial_eta(trial)
        return max(each - (self._clock() - trial.since), 0.0) if eta is None else eta

"""What a sweep does next: which trials of which configurations, how far, and when there is nothing more to do.

One agenda serves every kind of study: a grid, where all is known from the start; a search, where suggestions wait for
results; early stopping, where trials pause until their configuration is judged; racing, where seeds come in rounds.
Its state is the ledger's: a sweep that was killed makes the same decisions again from the same records.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cellray.ledger import Ledger
from cellray.metrics import METRICS
from cellray.samples import read_samples
from cellray.scores import POINTS, is_finite, magnitude, nothing_by_set, worst_values
from cellray.search.rules import goes_on, outclassed, rung_epochs
from cellray.study import ConfigurationConfig, Study, Trial
from cellray.training import training_run
from cellray.trial import Planned, Sets, record_stopped

if TYPE_CHECKING:
    from cellray.search.suggest import Suggester

FILE = "search.json"
"""In the ledger, of studies that adapt: every configuration so far, how it came about and what became of it."""


class Task(NamedTuple):
    """A trial to run, to its end or until it pauses after an epoch."""

    trial: Trial
    until: int | None


@dataclass
class Entry:
    """A configuration on the agenda."""

    number: int
    configuration: ConfigurationConfig
    source: str
    """`given` in the study file, or `suggested`."""
    parameters: dict[str, Any]
    rungs: list[int]
    """Epochs at which it is judged while it trains."""
    trials: list[Planned] = field(default_factory=list)
    """Those given to it so far."""
    rung: int = 0
    """The next of the rungs."""
    at_rungs: list[float] = field(default_factory=list)
    """Mean over seeds of the validation Dice at each rung that it has passed or been stopped at."""
    state: str = "running"
    """`running`, `finished`, `stopped` (ended early) or `dropped` (out of the race)."""
    reason: str = ""
    values: list[float] | None = None
    """What a search goes by, once it has finished."""
    excess: dict[str, float] = field(default_factory=dict)
    """Of each metric with a bound: by how much it is missed; at most 0 where it is kept."""
    n_epochs: int | None = None
    same_as: int | None = None
    """Number of an earlier configuration with the same settings: nothing is trained twice."""

    @property
    def label(self) -> str:
        return self.configuration.label


class Agenda:
    """The trials of one sweep, in the order in which they are to be run.

    Args:
        study: What to run.
        sets: Its data, opened.
        ledger: Its ledger, held by this process.
        chosen: Run only these labels and seeds; only for a study that doesn't adapt.
    """

    def __init__(
        self, study: Study, sets: Sets, ledger: Ledger, *, chosen: Collection[tuple[str, int]] | None = None
    ) -> None:
        self._study, self._sets, self._ledger, self._chosen = study, sets, ledger, chosen
        self._stored = {record["key"]: record for record in ledger.records()}
        self._suggester: Suggester | None = None
        if study.search is not None:
            from cellray.search.suggest import Suggester  # needs Optuna, which a grid doesn't

            self._suggester = Suggester(study, ledger, sets.train.fingerprint)
        self._ready: list[tuple[int, int, int, Task]] = []
        self._running: set[str] = set()
        self._courses: dict[str, list[dict[str, float]]] = {}
        self.entries: list[Entry] = []
        self._contents: dict[str, int] = {}
        self.stopped: list[dict[str, Any]] = []
        """Records of trials that were stopped since somebody last emptied this list."""
        self._samples: dict[str, Any] = {}
        n_seeds = len(study.seeds) if study.racing is None else study.racing.start
        for configuration in study.configurations:
            self._add(configuration, n_seeds)
        if study.search is not None:  # what will be suggested must fit the images too
            sets.check(study.with_configurations(study.examples()).trials())
        self._advance()

    @property
    def study(self) -> Study:
        """The study with every configuration so far, suggested ones too."""
        return self._study.with_configurations(e.configuration for e in self.entries if e.same_as is None)

    @property
    def plan(self) -> list[Planned]:
        """Every trial so far, all configurations of a seed before the next seed."""
        order = {seed: place for place, seed in enumerate(self._study.seeds)}
        trials = [planned for entry in self.entries for planned in entry.trials]
        return [self._now(planned) for planned in sorted(trials, key=lambda planned: order[planned.seed])]

    @property
    def is_finished(self) -> bool:
        """Whether nothing runs and nothing is to be run."""
        return not self._ready and not self._running

    def next(self) -> Task | None:
        """The next trial to run, or None if there is none now; it counts as running until `ended`."""
        if not self._ready:
            return None
        *_, task = heapq.heappop(self._ready)
        self._running.add(self._sets.keys(task.trial)[0])
        return task

    def ended(self, trial: Trial) -> dict[str, Any] | None:
        """A trial that ran doesn't run any more: read what came of it, and decide what follows.

        Returns:
            Its record, or None if it paused or was interrupted.
        """
        key, evaluation_key = self._sets.keys(trial)
        self._running.discard(key)
        self._courses.pop(key, None)
        record = self._ledger.record(key)
        if record is not None:
            self._stored[key] = record
        self._advance()
        done = record is not None and Planned(trial, key, evaluation_key, record).done
        return record if done else None

    # How configurations go through their states.

    def _add(
        self, configuration: ConfigurationConfig, n_seeds: int, suggested: Mapping[str, Any] | None = None
    ) -> None:
        number = len(self.entries)
        parameters = dict(suggested or {})
        if suggested is None and self._suggester is not None:
            parameters = self._suggester.given(number, configuration)
        source = "given" if suggested is None else "suggested"
        trials = self._trials(configuration)
        self._sets.check(trials)
        n_epochs = _n_epochs(trials[0], self._sets)
        stopping = self._study.stopping
        rungs = rung_epochs(stopping, n_epochs, trials[0].training.validate_every) if stopping else []
        entry = Entry(number, configuration, source, parameters, rungs, n_epochs=n_epochs)
        content = self._study.content(configuration)
        self.entries.append(entry)
        if content in self._contents:
            entry.same_as = self._contents[content]
            entry.reason = f"the same settings as {self.entries[entry.same_as].label}"
            return
        self._contents[content] = number
        self._give(entry, trials[:n_seeds])

    def _trials(self, configuration: ConfigurationConfig) -> list[Trial]:
        """A configuration with each of the study's seeds."""
        return self._study.with_configurations([configuration]).trials()

    def _give(self, entry: Entry, trials: list[Trial]) -> None:
        """Give a configuration trials; those that aren't done are run as far as its next rung."""
        for trial in trials:
            planned = Planned(trial, *self._sets.keys(trial), None)
            entry.trials.append(planned)
        self._enqueue(entry)

    def _enqueue(self, entry: Entry) -> None:
        until = entry.rungs[entry.rung] if entry.rung < len(entry.rungs) else None
        for place, planned in enumerate(entry.trials):
            now = self._now(planned)
            wanted = self._chosen is None or (now.label, now.seed) in self._chosen
            if wanted and not now.done and not (until is not None and self._course_of(now, until)):
                in_line = (entry.number, place) if self._study.search or self._study.stopping else (place, entry.number)
                heapq.heappush(self._ready, (*in_line, entry.rung, Task(now.trial, until)))

    def _now(self, planned: Planned) -> Planned:
        """A planned trial with what the ledger has of it now."""
        return Planned(planned.trial, planned.key, planned.evaluation_key, self._stored.get(planned.key))

    def _advance(self) -> None:
        """Draw every conclusion that can be drawn by now."""
        if not self._study.adapts:
            return  # all was given at the start
        while self._judge() or self._suggest() or self._race():
            pass

    def _judge(self) -> bool:
        """Move configurations on, earlier ones first; True if one moved."""
        moved = False
        for entry in self.entries:
            while entry.state == "running" and self._judge_one(entry):
                moved = True
        return moved

    def _judge_one(self, entry: Entry) -> bool:
        if entry.same_as is not None:
            other = self.entries[entry.same_as]
            if other.state == "running":
                return False
            entry.state, entry.values, entry.excess = other.state, other.values, other.excess
            self._tell(entry)
            return True
        trials = [self._now(planned) for planned in entry.trials]
        if entry.rung < len(entry.rungs):
            return self._judge_at_rung(entry, trials)
        if self._study.racing is not None or not all(planned.done for planned in trials):
            return False
        entry.state = "finished"
        entry.values = [self._aggregate(trials, metric) for metric in self._study.searched_by]
        bounds = self._study.search.constraints if self._study.search else {}
        entry.excess = {metric: bound.excess(self._aggregate(trials, metric)) for metric, bound in bounds.items()}
        self._tell(entry)
        return True

    def _judge_at_rung(self, entry: Entry, trials: list[Planned]) -> bool:
        """Let a configuration pass its next rung, or stop it, once all its seeds and all before it are that far."""
        stopping, epoch = self._study.stopping, entry.rungs[entry.rung]
        before = [other for other in self.entries[: entry.number] if other.same_as is None]
        assert stopping is not None
        if any(other.state == "running" and len(other.at_rungs) <= entry.rung < len(other.rungs) for other in before):
            return False
        at_rung = [self._course_of(planned, epoch) for planned in trials]
        if not all(planned.done or course for planned, course in zip(trials, at_rung, strict=True)):
            return False
        value = sum(_dice_at(course, epoch) for course in at_rung) / len(at_rung)
        earlier = [other.at_rungs[entry.rung] for other in before if len(other.at_rungs) > entry.rung]
        entry.at_rungs.append(value)
        if all(planned.done for planned in trials) or goes_on(stopping, value, earlier):
            entry.rung += 1
            self._enqueue(entry)
            return True
        entry.state = "stopped"
        fails = "below the median" if stopping.rule == "median" else f"not among the best 1/{stopping.eta:g}"
        entry.reason = (
            f"stopped at epoch {epoch} of {entry.n_epochs}: validation Dice {value:.3f} over {len(trials)} seeds, "
            f"{fails} of the {len(earlier)} configurations before it"
        )
        for planned in trials:
            stored = planned.stored
            if planned.done or (stored is not None and planned.is_stopped and stored["epochs"] == epoch):
                continue
            record = record_stopped(planned.trial, self._sets, self._ledger, entry.reason)
            self._stored[planned.key] = record
            self.stopped.append(record)
        self._tell(entry)
        return True

    def _suggest(self) -> bool:
        """Ask for the next configuration of a search, once it may know enough; True if there is a new one."""
        search, number = self._study.search, len(self.entries)
        if search is None or self._suggester is None or number >= search.budget:
            return False
        if any(entry.state == "running" for entry in self.entries[: max(number - search.at_once + 1, 0)]):
            return False
        configuration, parameters = self._suggester.suggestion(number)
        self._add(configuration, len(self._study.seeds), suggested=parameters)
        return True

    def _race(self) -> bool:
        """When a round of a race is over: drop who is outclassed, give the others another seed; True if it was."""
        racing = self._study.racing
        alive = [entry for entry in self.entries if entry.state == "running"]
        if racing is None or not alive:
            return False
        rounds = [[self._now(planned) for planned in entry.trials] for entry in alive]
        if not all(planned.done for trials in rounds for planned in trials):
            return False
        n_seeds = len(rounds[0])
        values = self._values_for_race(rounds)
        n_rivals = len(self.entries) - 1
        for label, (leader, low, high) in outclassed(values, [entry.label for entry in alive], n_rivals).items():
            entry = next(entry for entry in alive if entry.label == label)
            entry.state = "dropped"
            entry.reason = (
                f"dropped after {n_seeds} seeds: {leader} is better by {low:.3f} to {high:.3f} "
                f"{METRICS[self._study.evaluation.rank_by].title}"
            )
        alive = [entry for entry in alive if entry.state == "running"]
        spent = sum(len(entry.trials) for entry in self.entries)
        budget = math.inf if racing.budget is None else racing.budget
        if len(alive) == 1 or n_seeds == len(self._study.seeds) or spent + len(alive) > budget:
            for entry in alive:
                entry.state = "finished"
            return True
        for entry in alive:
            self._give(entry, [self._trials(entry.configuration)[n_seeds]])
        return True

    # What the decisions are made from.

    def _course_of(self, planned: Planned, epoch: int) -> list[dict[str, float]]:
        """A trial's epochs if it came to `epoch` or ended, else nothing."""
        key = planned.key
        if key not in self._courses:
            if planned.stored is not None:
                table = self._ledger.table(key, "history")
                self._courses[key] = table.to_dict("records")
            else:
                data = self._ledger.load_checkpoint(key, "last") if key not in self._running else None
                self._courses[key] = training_run(data).history if data else []
        rows = self._courses[key]
        return rows if planned.done or len(rows) >= epoch else []

    def _aggregate(self, trials: list[Planned], metric: str) -> float:
        """A configuration's mean over seeds on validation images; a lost trial counts as the worst value."""
        worst = METRICS[metric].worst
        assert worst is not None  # the study checks it
        found = []
        for planned in trials:
            stored = planned.stored or {}
            value = ((stored.get("metrics") or {}).get("own") or {}).get("val", {}).get(metric)
            found.append(float(value) if stored["outcome"] == "finished" and is_finite(value) else float(worst))
        return sum(found) / len(found)

    def _values_for_race(self, rounds: list[list[Planned]]) -> np.ndarray:
        """What each test image adds to each trial's score, higher is better; a lost trial is worst on every image."""
        metric = self._study.evaluation.rank_by
        records = [planned.stored for trials in rounds for planned in trials if planned.stored is not None]
        samples = read_samples(self._ledger, records, known=self._samples, metric=metric)
        nothing = nothing_by_set(self._ledger, records)
        worst = worst_values(records, ["test"], nothing, [metric])["test", metric]
        sign = 1.0 if METRICS[metric].higher_is_better else -1.0
        found = {
            key: sample.values[metric]
            for key, sets in samples.items()
            if (sample := sets.get(("test", POINTS[0]))) is not None and metric in sample.values
        }
        size = len(next(iter(found.values()), [0.0]))
        values = np.full((len(rounds), len(rounds[0]), size), sign * worst)
        for i, trials in enumerate(rounds):
            for j, planned in enumerate(trials):
                stored = planned.stored or {}
                if stored.get("outcome") == "finished" and planned.key in found:
                    score = stored["metrics"]["own"]["test"][metric]
                    flip = -1.0 if magnitude(METRICS[metric], score) != score else 1.0
                    values[i, j] = sign * flip * found[planned.key]
        return values

    def _tell(self, entry: Entry) -> None:
        """Tell the sampler what became of a configuration."""
        if self._suggester is None:
            return
        if entry.values is not None:
            self._suggester.tell(entry.number, entry.values, entry.excess)
            return
        stopped = entry if entry.same_as is None else self.entries[entry.same_as]
        self._suggester.tell_stopped(entry.number, stopped.rungs[stopped.rung], stopped.at_rungs[-1])

    def write(self) -> None:
        """Put the plan into the ledger, and, of a study that adapts, how each configuration came about."""
        self._ledger.write_plan([(p.label, p.seed, p.key, p.evaluation_key) for p in self.plan])
        if self._study.adapts:
            self._ledger.write(FILE, json.dumps(self._facts(), indent=1, ensure_ascii=False).encode())

    def _facts(self) -> dict[str, Any]:
        search, stopping, racing = self._study.search, self._study.stopping, self._study.racing
        return {
            "method": search.method if search else "racing" if racing else "grid",
            "metrics": list(self._study.searched_by),
            "stopping": stopping.rule if stopping else None,
            "budget": search.budget if search else None,
            "configurations": [
                {
                    "label": entry.label,
                    "number": entry.number,
                    "source": entry.source,
                    "parameters": entry.parameters,
                    "values": entry.values,
                    "acceptable": all(excess <= 0 for excess in entry.excess.values()),
                    "seeds": len(entry.trials),
                    "state": entry.state,
                    "reason": entry.reason,
                    "epoch": entry.rungs[entry.rung] if entry.state == "stopped" and entry.same_as is None else None,
                    "epochs": entry.n_epochs,
                    "settings": entry.configuration.model_dump(mode="json", exclude={"label"}),
                }
                for entry in self.entries
            ],
        }


def known_study(study: Study, ledger: Ledger) -> Study:
    """A study with the configurations that its sweeps have suggested so far."""
    if study.search is None or not ledger.exists(FILE):
        return study
    entries = json.loads(ledger.read(FILE))["configurations"]
    suggested = [
        ConfigurationConfig.model_validate({"label": entry["label"], **entry["settings"]})
        for entry in entries
        if entry["source"] == "suggested" and entry["seeds"]
    ]
    return study.with_configurations([*study.configurations, *suggested])


def _n_epochs(trial: Trial, sets: Sets) -> int:
    settings = trial.training
    steps_per_epoch = math.ceil(len(sets.split(trial).train) / settings.batch_size)
    return settings.epochs or math.ceil((settings.steps or 0) / steps_per_epoch)


def _dice_at(course: list[dict[str, float]], epoch: int) -> float:
    """Validation Dice after an epoch; 0 where a training had ended before it, or had none."""
    dice = next((row["val_dice"] for row in course if row["epoch"] == epoch), math.nan)
    return dice if math.isfinite(dice) else 0.0

"""What a sweep does next: which trials of which configurations, how far, and when there is nothing more to do.

One agenda serves every kind of study: a grid, where all is known from the start; a search, where suggestions wait for
results; early stopping, where trials pause until their configuration is judged; seeds that go where they decide.
Its state is the ledger's: a sweep that was killed makes the same decisions again from the same records.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cellray.ledger import Ledger
from cellray.observers import Tries
from cellray.record import Plain, PlannedTrial, SearchLog, TrialRecord
from cellray.results import plan_of
from cellray.search.entries import Entry, Task
from cellray.search.evidence import Evidence, dice_at
from cellray.search.rates import Rates
from cellray.search.rules import SeedLook, by_old_rule, goes_on, look_at, looks, rung_epochs
from cellray.study import ConfigurationConfig, Study, Trial
from cellray.trial import Sets

if TYPE_CHECKING:
    from cellray.search.suggest import Suggester


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
        self._seen = Evidence(study, ledger)
        self._rates = Rates(study, sets, ledger)
        self._tries: set[str] = set()
        self._suggester: Suggester | None = None
        if study.search is not None:
            from cellray.search.suggest import Suggester  # needs Optuna, which a grid doesn't

            self._suggester = Suggester(study, ledger, sets.train.fingerprint)
        self._ready: list[tuple[int, int, int, Task]] = []
        self.entries: list[Entry] = []
        self._contents: dict[str, int] = {}
        self.stopped: list[TrialRecord] = []
        """Records of trials that were stopped since somebody last emptied this list."""
        self.notes: list[str] = []
        """What else came to pass, in words, since somebody last emptied it."""
        self._look: SeedLook | None = None
        self._before = ledger.search() if study.gives_seeds else None
        """What the sweep before this one had come to."""
        for configuration in study.configurations:
            self._add(configuration)
        if study.search is not None:  # what will be suggested must fit the images too
            sets.check(study.with_configurations(study.examples()).trials())
        self._advance()

    @property
    def study(self) -> Study:
        """The study with every configuration so far, suggested ones too."""
        return self._study.with_configurations(e.configuration for e in self.entries if e.same_as is None)

    @property
    def plan(self) -> list[PlannedTrial]:
        """Every trial so far, all configurations of a seed before the next seed."""
        most = max((len(entry.trials) for entry in self.entries), default=0)
        order = {seed: place for place, seed in enumerate(self._study.more_seeds(most))}
        trials = [planned for entry in self.entries for planned in entry.trials]
        return [self._seen.now(planned) for planned in sorted(trials, key=lambda planned: order[planned.seed])]

    @property
    def keys(self) -> list[list[str]]:
        """The keys of the trials so far, of each configuration so far."""
        return [[planned.key for planned in entry.trials] for entry in self.entries]

    @property
    def tries(self) -> Tries:
        """The trainings that try a learning rate."""
        dice = [found for entry in self.entries for rate in entry.rates for found in rate.dice]
        return Tries(sum(found is not None for found in dice), len(dice))

    @property
    def is_finished(self) -> bool:
        """Whether nothing is to be run any more, whatever comes of what runs."""
        may_grow = self._study.adapts or any(entry.waits_for_rate for entry in self.entries)
        return not self._ready and not (may_grow and self._seen.running)

    def next(self) -> Task | None:
        """The next trial to run, or None if there is none now; it counts as running until `ended`."""
        while self._ready:
            *_, task = heapq.heappop(self._ready)
            planned = self._sets.planned(task.trial)
            # Two configurations may have become the same by the learning rate that was chosen for one.
            if planned.key not in self._seen.running and not self._seen.now(planned).done:
                self._seen.running.add(planned.key)
                return task
        return None

    def ended(self, trial: Trial) -> TrialRecord | None:
        """A trial that ran doesn't run any more: read what came of it, and decide what follows.

        Returns:
            Its record, or None if it paused or was interrupted, or only tried a learning rate.
        """
        if trial.tries_rate:
            self._seen.running.discard(self._rates.ended(trial))
            self._advance()
            return None
        ended = self._sets.planned(trial, self._ledger)
        self._seen.ended(ended.key, ended.record)
        self._advance()
        return ended.record if ended.done else None

    # How configurations go through their states.

    def _add(self, configuration: ConfigurationConfig, suggested: Mapping[str, Plain] | None = None) -> None:
        number = len(self.entries)
        parameters = dict(suggested or {})
        if suggested is None and self._suggester is not None:
            parameters = self._suggester.given(number, configuration)
        source = "given" if suggested is None else "suggested"
        trials = self._trials(configuration, len(self._study.first_seeds))
        self._sets.check(trials)
        n_epochs = _n_epochs(trials[0], self._sets)
        stopping = self._study.stopping
        rungs = rung_epochs(stopping, n_epochs, trials[0].training.validate_every) if stopping else []
        content = self._study.content_hash(configuration)
        entry = Entry(number, configuration, source, parameters, rungs, n_epochs=n_epochs, content=content)
        self.entries.append(entry)
        if content in self._contents:
            entry.same_as = self._contents[content]
            entry.reason = f"the same settings as {self.entries[entry.same_as].label}"
            return
        self._contents[content] = number
        self._give(entry, trials)

    def _trials(self, configuration: ConfigurationConfig, n_seeds: int) -> list[Trial]:
        """A configuration with the first seeds."""
        return self._study.with_configurations([configuration]).with_seeds(n_seeds).trials()

    def _give(self, entry: Entry, trials: list[Trial]) -> None:
        """Give a configuration trials; those that aren't done are run as far as its next rung."""
        entry.trials += map(self._sets.planned, trials)
        if not entry.waits_for_rate:
            self._enqueue(entry)

    def _enqueue(self, entry: Entry) -> None:
        until = entry.rungs[entry.rung] if entry.rung < len(entry.rungs) else None
        for place, planned in enumerate(entry.trials):
            now = self._seen.now(planned)
            wanted = self._chosen is None or (now.label, now.seed) in self._chosen
            if wanted and not now.done and not (until is not None and self._seen.course(now, until)):
                in_line = (entry.number, place) if self._study.search or self._study.stopping else (place, entry.number)
                heapq.heappush(self._ready, (*in_line, entry.rung, Task(now.trial, until)))

    def _advance(self) -> None:
        """Draw every conclusion that can be drawn by now."""
        if not self._study.keeps_log:
            return  # all was given at the start
        while self._choose_rates() or (self._study.adapts and (self._judge() or self._suggest() or self._give_seeds())):
            pass
        for entry in self.entries:
            if not self._study.adapts and all(self._seen.now(planned).done for planned in entry.trials):
                entry.state = "finished"

    def _choose_rates(self) -> bool:
        """Have learning rates tried where that is wanted, and give a configuration its trials once its rate is known.

        Returns:
            Whether a rate was chosen.
        """
        chosen = False
        for entry in self.entries:
            wanted = self._chosen is None or any(label == entry.label for label, _ in self._chosen)
            if not entry.waits_for_rate or not wanted:
                continue
            entry.rates, missing, entry.lr = self._rates.now(entry.trials[0].trial)
            for trial in missing:
                key = self._sets.keys(trial)[0]
                if key not in self._tries:
                    self._tries.add(key)
                    in_line = (entry.number, -1) if self._study.search or self._study.stopping else (-1, entry.number)
                    heapq.heappush(self._ready, (*in_line, len(self._tries), Task(trial, None)))
            if entry.lr is not None:
                chosen = True
                entry.configuration = entry.configuration.with_rate(entry.lr)
                trials, entry.trials = self._trials(entry.configuration, len(entry.trials)), []
                self._give(entry, trials)
                means = ", ".join(
                    f"{rate.lr:g}: {sum(d or 0 for d in rate.dice) / len(rate.dice):.3f}" for rate in entry.rates
                )
                self.notes.append(
                    f"{entry.label} is trained at a learning rate of {entry.lr:g} (validation Dice at {means})"
                )
        return chosen

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
        trials = [self._seen.now(planned) for planned in entry.trials]
        if entry.rung < len(entry.rungs):
            return self._judge_at_rung(entry, trials)
        if self._study.gives_seeds or not all(planned.done for planned in trials):
            return False
        entry.state = "finished"
        entry.values = [self._seen.aggregate(trials, metric) for metric in self._study.searched_by]
        bounds = self._study.search.constraints if self._study.search else {}
        entry.excess = {metric: bound.excess(self._seen.aggregate(trials, metric)) for metric, bound in bounds.items()}
        self._tell(entry)
        return True

    def _judge_at_rung(self, entry: Entry, trials: list[PlannedTrial]) -> bool:
        """Let a configuration pass its next rung, or stop it, once all its seeds and all before it are that far."""
        stopping, epoch = self._study.stopping, entry.rungs[entry.rung]
        before = [other for other in self.entries[: entry.number] if other.same_as is None]
        assert stopping is not None
        if any(other.state == "running" and len(other.at_rungs) <= entry.rung < len(other.rungs) for other in before):
            return False
        at_rung = [self._seen.course(planned, epoch) for planned in trials]
        if not all(planned.done or course for planned, course in zip(trials, at_rung, strict=True)):
            return False
        value = sum(dice_at(course, epoch) for course in at_rung) / len(at_rung)
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
        from cellray.trial import record_stopped  # where trials are trained, too

        for planned in trials:
            stored = planned.record
            if planned.done or (stored is not None and planned.is_stopped and stored.epochs == epoch):
                continue
            record = record_stopped(planned.trial, self._sets, self._ledger, entry.reason)
            self._seen.ended(planned.key, record)
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
        self._add(configuration, suggested=parameters)
        return True

    def _give_seeds(self) -> bool:
        """When every trial given so far is done: look who needs further seeds; True if something followed."""
        decide = self._study.decide
        running = [entry for entry in self.entries if entry.state == "running"]
        if not self._study.gives_seeds or decide is None or not running:
            return False
        trials = [[self._seen.now(planned) for planned in entry.trials] for entry in self.entries]
        if not all(planned.done for mine in trials for planned in mine):
            return False
        labels, counts = [entry.label for entry in self.entries], [len(mine) for mine in trials]
        seen, whole = self._seen.ended_runs(labels, trials, self._study.more_seeds(max(counts)))
        planned = looks(len(self._study.first_seeds), len(labels), decide.most_trials)
        log = self._before
        before = {} if log is None else {tried.label: tried.seeds for tried in log.configurations}
        given_before = max(before.values(), default=0)
        look = look_at(seen, counts, planned, plan_of(self._study, ()).margin, whole, given_before=given_before)
        if log and log.note == by_old_rule(look.margin) and before == dict(zip(labels, counts, strict=True)):
            look = replace(look, needs=(), note=log.note)  # it had ended, and isn't opened again
        elif not look.needs and (spare := (decide.most_trials or 0) - sum(counts)) > 0:
            look = replace(look, note=f"{look.note}; {spare} of {decide.at_most} are left")
        n_more = sum(look.n_seeds - counts[i] for i in look.needs)
        spent_s = sum(done.record.seconds.total for mine in trials for done in mine if done.record is not None)
        would_s = spent_s * (1 + n_more / sum(counts))
        allowed_s = math.inf if decide.most_hours is None else 3600 * decide.most_hours
        if look.needs and (sum(counts) + n_more > (decide.most_trials or math.inf) or would_s > allowed_s):
            look = replace(
                look, needs=(), note=f"{decide.at_most} don't allow {n_more} more trials, to {look.n_seeds} seeds"
            )
        self._look = look
        for i, entry in enumerate(self.entries):
            entry.reason = look.words(i, labels)
        if not look.needs:
            for entry in running:
                entry.state = "finished"
            return True
        for i in look.needs:
            self._give(self.entries[i], self._trials(self.entries[i].configuration, look.n_seeds)[counts[i] :])
        return True

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
        self._ledger.write_plan(self.plan)
        if self._study.keeps_log:
            self._ledger.write_search(self._log())

    def _log(self) -> SearchLog:
        search, stopping = self._study.search, self._study.stopping
        return SearchLog(
            method=search.method if search else "decide" if self._study.gives_seeds else "grid",
            metrics=self._study.searched_by,
            stopping=stopping.rule if stopping else None,
            budget=search.budget if search else None,
            alpha=None if self._look is None else self._look.alpha,
            note="" if self._look is None else self._look.note,
            configurations=tuple(entry.tried for entry in self.entries),
        )


def _n_epochs(trial: Trial, sets: Sets) -> int:
    settings = trial.training
    steps_per_epoch = math.ceil(len(sets.split(trial).train) / settings.batch_size)
    return settings.epochs or math.ceil((settings.steps or 0) / steps_per_epoch)

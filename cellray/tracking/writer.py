"""What an MLflow store still lacks of a sweep, and the attempts to write it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from cellray.ledger import Ledger
from cellray.record import EpochRow, PlannedTrial, TrialRecord
from cellray.results import Results, plan_of
from cellray.storage import is_remote, public
from cellray.study import Study, Trial
from cellray.tracking.known_run import EndedEpoch
from cellray.tracking.projection import Projection
from cellray.tracking.seed_means import outcome_counts, seed_summaries, worst_compared
from cellray.tracking.stores import public_uri, scrub


class Writer:
    """Remembers what is to be shown until the store has it; used from one thread.

    Args:
        ledger: Of the study.
        study: Shown.
        trials: Planned.
        tracking_uri: Any that MLflow takes.
        progress: Called with records done and records in all.
    """

    def __init__(
        self,
        ledger: Ledger,
        study: Study,
        trials: Iterable[PlannedTrial],
        tracking_uri: str,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._ledger, self._study, self._uri, self._progress = ledger, study, tracking_uri, progress
        self._projection = Projection(ledger, study, tracking_uri)
        self.records: dict[str, TrialRecord] = {}
        """Every record that the ledger is known to have, by key."""
        self._read = False
        self._due: dict[str, TrialRecord] = {}
        self._epochs: dict[PlannedTrial, list[EndedEpoch]] = {}
        self._labels: set[str] = set()  # of records; some of them aren't planned any more
        self._report_missing = False
        self._summary_time = 0.0
        self.n_errors = self.n_written = 0
        self._error = ""
        self.add_plan(study, trials)
        self._results = Results(ledger, self._plan, metric=study.evaluation.rank_by)

    # What is to be shown.

    def add_plan(self, study: Study, trials: Iterable[PlannedTrial]) -> None:
        """The plan, or the one that it has grown to."""
        # A record that was judged otherwise is shown until it is judged anew: no key, so that none is out of date.
        self._plan = plan_of(study, (replace(trial, evaluation_key="") for trial in trials))
        self._planned = {(trial.label, trial.seed): trial for trial in self._plan.trials}
        self._label_now = {trial.key: trial.label for trial in self._plan.trials}
        self._summary_due = True

    def add_epoch(self, trial: Trial, row: EpochRow, ms: int) -> None:
        """An epoch of a trial that is running, and when it ended, in milliseconds since 1970."""
        planned = self._planned.get((trial.label, trial.seed))
        if planned is not None:
            self._epochs.setdefault(planned, []).append(EndedEpoch(row, ms))

    def add_record(self, record: TrialRecord) -> None:
        """A record that the ledger has."""
        self.records[record.key] = self._due[record.key] = record
        self._labels.add(record.label)
        self._summary_due = True
        self._epochs = {trial: rows for trial, rows in self._epochs.items() if trial.key != record.key}

    def hasten(self) -> None:
        """Let the next round write the means over seeds, however short ago that was done."""
        self._summary_time = 0.0

    @property
    def is_urgent(self) -> bool:
        """Whether a record waits, which is not held back to save requests."""
        return bool(self._due) or not self._read

    # Attempts.

    def round(self, *, everything: bool = False) -> bool:
        """Try once to write all that waits; with `everything` also what is written only now and then.

        Returns:
            Whether nothing failed.
        """
        try:
            self._read_ledger()
            if self._summary_due and not self._projection.has_study():
                self._projection.study(self._counts())  # the tree from the top, so that a reader finds it at once
        except Exception as error:
            return self._failed(error)
        good = self._write_records() and self._write_epochs()
        return good and self._write_summaries(everything)

    def is_shown(self) -> bool:
        """Whether the store is seen to have everything of a complete study, without asking MLflow."""
        try:
            self._read_ledger()
            labels = dict.fromkeys([*self._plan.labels, *sorted(self._labels)])
            return self._is_complete() and self._projection.is_shown(labels, self.records, self._label_now)
        except Exception:  # whatever it is, the rounds come to it
            return False

    def _read_ledger(self) -> None:
        """Learn, once, every record of the ledger that no news were of."""
        if not self._read:
            live = set(self.records)
            for record in self._ledger.records():
                if record.key not in live:
                    self.add_record(record)
            self._read = True

    def _write_records(self) -> bool:
        """Each waiting record; one that fails waits at the end, and a second failure means the store is away."""
        failures = 0
        n_all = len(self._due)
        for key, record in list(self._due.items()):
            # the label that the study gives it now; it is no part of the key and may have changed
            label = self._label_now.get(key, record.label)
            try:
                self.n_written += self._projection.record(record, label)
                del self._due[key]
                if self._progress:
                    self._progress(n_all - len(self._due), n_all)
            except Exception as error:
                self._failed(error)
                self._due[key] = self._due.pop(key)
                failures += 1
                if failures == 2:
                    break
        return failures == 0

    def _write_epochs(self) -> bool:
        for trial, epochs in list(self._epochs.items()):
            try:
                self._projection.epochs(trial, epochs)
                del self._epochs[trial]
            except Exception as error:
                return self._failed(error)
        return True

    def _write_summaries(self, everything: bool) -> bool:
        """Means over seeds and counts of outcomes; not after every one of many short trials."""
        if not self._summary_due or (not everything and time.monotonic() < self._summary_time + 3.0):
            return True
        labels = dict.fromkeys([*self._plan.labels, *sorted(self._labels)])
        ended = [trial for trial in self._plan.trials if trial.key in self.records]
        settings = {trial.label: self.records[trial.key].settings for trial in ended}
        try:
            self._results.update(self._plan, self.records.values())
            worst = worst_compared(self._results)
            for label, metrics in seed_summaries(self._results, worst, labels).items():
                complete = metrics["outcome/n_missing"] == 0
                self._projection.configuration(label, metrics, settings.get(label), complete=complete)
            self._projection.study(self._counts(), list(dict.fromkeys(name for name, _ in worst)))
        except Exception as error:
            return self._failed(error)
        self._labels.clear()
        self._summary_due, self._summary_time = False, time.monotonic()
        return True

    def report(self) -> bool:
        """Put the report's files into the study's run, and close it if every trial has its record."""
        try:
            self._projection.report()
            if self._is_complete():
                self._projection.end(complete=True)
        except Exception as error:
            return self._failed(error)
        return True

    def close(self, deadline: float) -> None:
        """The last rounds: at most three, and none begins after the deadline."""
        self._report_missing = True
        for pause_s in (0.0, 0.5, 1.5):
            if time.monotonic() + pause_s >= deadline:
                return
            time.sleep(pause_s)
            if self.round(everything=True) and self.report():
                self._report_missing = False
                break
        if not self._report_missing and not self._is_complete():
            try:
                self._projection.end(complete=False)
            except Exception as error:
                self._failed(error)

    def _counts(self) -> dict[str, float]:
        return outcome_counts(self._plan.trials, self.records)

    def _is_complete(self) -> bool:
        return self._counts()["outcome/n_missing"] == 0

    # What failed.

    def trouble(self, *, unfinished: bool) -> str | None:
        """One sentence on what the store lacks and how to bring it, or None."""
        if not (unfinished or self._due or self._epochs or self._summary_due or self._report_missing):
            return None
        lacking = f"{len(self._due)} of {len(self.records)} records" if self._due else "the end of the study"
        why = f" ({self._error})" if self._error else ""
        storage = self._ledger.storage
        where = f" --storage {public(storage)}, on a machine that reads this bucket" if is_remote(storage) else ""
        return (
            f"MLflow at {public_uri(self._uri)} lacks {lacking}{why}; the ledger has everything, "
            f"repair it with: cellray track sync {self._study.name}{where}"
        )

    def away(self) -> str:
        """One sentence for the time of an outage."""
        return (
            f"MLflow at {public_uri(self._uri)} does not answer ({self._error}); "
            "the sweep goes on, and MLflow gets the rest when it is back"
        )

    def _failed(self, error: Exception) -> bool:
        self.n_errors += 1
        self._error = scrub(error, self._uri) or type(error).__name__
        self._projection.forget()
        return False

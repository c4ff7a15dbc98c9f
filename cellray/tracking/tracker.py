"""The observer that shows a sweep in MLflow from a thread of its own, and the command that repairs what it missed."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cellray.errors import LedgerError
from cellray.metrics import METRICS
from cellray.scores import nothing_by_set, worst_values
from cellray.tracking import values
from cellray.tracking.runs import Epoch, Projection
from cellray.tracking.stores import public_uri, scrub

if TYPE_CHECKING:
    from cellray.ledger import Ledger

LONGEST_WAIT_S = 60.0
"""Between two attempts while the store is away."""

Pair = tuple[str, int]
"""A label and a seed."""


class MLflowTracker:
    """Observer of a sweep: study › configuration › seed in MLflow, without delaying or failing the sweep.

    Each call leaves a note and returns. A thread writes to the store: epochs every few seconds, a record as soon as
    it can, and first of all the records that the ledger had before. What the store refuses is tried again with
    growing pauses; what it never took is named by `close`, and `sync` brings it later.

    Args:
        ledger: Of the study.
        tracking_uri: Any that MLflow takes; see `default_store`.
        models: Log the best checkpoint of each trial as a model.
        interval_s: Between two writings of epochs and of the means over seeds.
        say: Called with one sentence when the store goes away, and by `close` with one if something is missing there.
    """

    def __init__(
        self,
        ledger: Ledger,
        tracking_uri: str,
        *,
        models: bool = True,
        interval_s: float = 3.0,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self._ledger, self._uri, self._models, self._interval_s, self._say = (
            ledger,
            tracking_uri,
            models,
            interval_s,
            say,
        )
        self._notes: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._writer: _Writer | None = None
        self._thread: threading.Thread | None = None
        self._deadline = float("inf")

    @property
    def n_errors(self) -> int:
        """Errors of the store so far, mended or not."""
        return self._writer.n_errors if self._writer else 0

    @property
    def n_written(self) -> int:
        """Records that the store lacked and now has."""
        return self._writer.n_written if self._writer else 0

    def on_start(self, study: Any, plan: Any) -> None:
        """Begin to show a study.

        Args:
            study: Its `name`, `question`, `protocol` and `trials()` are used.
            plan: The trials of this sweep, or an object with them as `trials`; each has a text `key` and, itself or
                in its `trial`, `label` and `seed`.
        """
        self._writer = _Writer(self._ledger, study, plan, self._uri, models=self._models)
        self._thread = threading.Thread(target=self._work, daemon=True, name="cellray-mlflow")
        self._thread.start()

    def on_plan(self, study: Any, plan: Any) -> None:
        """Note that the plan has grown."""
        self._notes.put(("plan", study, plan))

    def on_epoch(self, trial: Any, row: Mapping[str, Any]) -> None:
        """Note an epoch of a trial that is running."""
        self._notes.put(("epoch", trial, dict(row), int(time.time() * 1000)))

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Note a record that the ledger now has."""
        self._notes.put(("record", record))

    def on_finish(self) -> None:
        """Note that the sweep went through its plan."""
        self._notes.put(("finish",))

    def close(self, timeout: float = 120.0) -> str | None:
        """Write what is left, wait for it no longer than `timeout` seconds, and say what is missing.

        The report must have been written before: its files go into the study's run now.

        Returns:
            The sentence that was said, or None if the store has everything.
        """
        if self._thread is None or self._writer is None:
            return None
        self._deadline = time.monotonic() + timeout
        self._notes.put(("close",))
        self._thread.join(timeout)
        trouble = self._writer.trouble(unfinished=self._thread.is_alive())
        self._thread = None
        if trouble:
            self._say(trouble)
        return trouble

    def _work(self) -> None:
        """The thread: collect notes, write when it is time, pause longer after each failure."""
        writer, wait_s = self._writer, self._interval_s
        assert writer is not None
        n_failures, next_round, closing = 0, 0.0, False
        while not closing:
            try:
                note = self._notes.get(timeout=max(0.0, min(next_round, self._deadline) - time.monotonic()))
                closing = note[0] == "close"
                if not closing:
                    writer.take(note)
                if n_failures == 0 and writer.is_urgent:
                    next_round = 0.0
                if time.monotonic() < next_round:
                    continue
            except queue.Empty:
                pass
            if not self._notes.empty() or closing:
                continue  # first everything that is known, then one round for all of it
            n_failures = 0 if writer.round() else n_failures + 1
            if n_failures == 2:  # one alone is mended before anybody could look
                self._say(writer.away())
            wait_s = min(LONGEST_WAIT_S, 2.0 ** min(n_failures, 10)) if n_failures else self._interval_s
            next_round = time.monotonic() + wait_s
        writer.close(self._deadline)


@dataclass(frozen=True)
class Synced:
    """What `sync` found and did."""

    n_records: int
    n_written: int
    """Records that the store lacked, or had otherwise."""


def sync(
    ledger: Ledger,
    study: Any,
    tracking_uri: str,
    *,
    models: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Synced:
    """Bring a store up to date from the ledger alone; a second call changes nothing.

    Args:
        ledger: Of the study.
        study: Its `name`, `question`, `protocol` and `trials()` are used.
        tracking_uri: Any that MLflow takes.
        models: Log the best checkpoint of each trial as a model.
        progress: Called with records done and records in all.

    Raises:
        LedgerError: If the store didn't take everything.
    """
    writer = _Writer(ledger, study, (), tracking_uri, models=models, progress=progress)
    for pause_s in (0.0, 1.0, 3.0):
        time.sleep(pause_s)
        if writer.round(everything=True) and writer.report():
            return Synced(len(writer.records), writer.n_written)
    raise LedgerError(writer.trouble(unfinished=True) or "the MLflow store did not take everything")


class _Writer:
    """What the store still lacks, and the attempts to write it; used from one thread."""

    def __init__(
        self,
        ledger: Ledger,
        study: Any,
        plan: Any,
        tracking_uri: str,
        *,
        models: bool,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._ledger, self._study, self._uri, self._progress = ledger, study, tracking_uri, progress
        self._projection = Projection(ledger, study, tracking_uri, models=models)
        self._planned = _plan_keys(plan) or {(t["label"], int(t["seed"])): t["key"] for t in ledger.plan()}
        self._labelled = {key: label for (label, _), key in self._planned.items()}
        self.records: dict[str, Mapping[str, Any]] = {}
        self._read = False
        self._due: dict[str, Mapping[str, Any]] = {}
        self._epochs: dict[tuple[str, str, int], list[Epoch]] = {}
        self._labels: set[str] = set()
        self._nothing: dict[str, dict[str, dict[str, float]]] = {}
        self._report_missing = False
        self._summary_due = True
        self._summary_time = 0.0
        self.n_errors = self.n_written = 0
        self._error = ""

    @property
    def is_urgent(self) -> bool:
        """Whether a record waits, which is not held back to save requests."""
        return bool(self._due) or not self._read

    def take(self, note: tuple[Any, ...]) -> None:
        """Remember what an observer call left."""
        if note[0] == "epoch":
            _, trial, row, ms = note
            pair = (trial.label, int(trial.seed))
            key = trial.key if isinstance(getattr(trial, "key", None), str) else self._planned.get(pair)
            if key is not None:
                self._epochs.setdefault((key, *pair), []).append((row, ms))
        elif note[0] == "record":
            self._add(note[1])
        elif note[0] == "plan":
            self._planned = _plan_keys(note[2])
            self._labelled = {key: label for (label, _), key in self._planned.items()}
            self._summary_due = True
        elif note[0] == "finish":
            self._summary_time = 0.0

    def _add(self, record: Mapping[str, Any]) -> None:
        self.records[record["key"]] = self._due[record["key"]] = record
        self._labels.add(record["label"])
        self._summary_due = True
        self._epochs = {who: rows for who, rows in self._epochs.items() if who[0] != record["key"]}

    def round(self, *, everything: bool = False) -> bool:
        """Try once to write all that waits; with `everything` also what is written only now and then.

        Returns:
            Whether nothing failed.
        """
        try:
            if not self._read:
                live = dict(self.records)
                for record in self._ledger.records():
                    if record["key"] not in live:
                        self._add(record)
                self._read = True
            if self._summary_due and not self._projection.has_study():
                self._projection.study(self._counts())  # the tree from the top, so that a reader finds it at once
        except Exception as error:
            return self._failed(error)
        good = self._write_records() and self._write_epochs()
        return good and self._write_summaries(everything)

    def _write_records(self) -> bool:
        """Each waiting record; one that fails waits at the end, and a second failure means the store is away."""
        failures = 0
        n_all = len(self._due)
        for key, record in list(self._due.items()):
            try:
                self.n_written += self._projection.record(record, self._label(record))
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
        for who, epochs in list(self._epochs.items()):
            try:
                self._projection.epochs(*who, epochs)
                del self._epochs[who]
            except Exception as error:
                return self._failed(error)
        return True

    def _write_summaries(self, everything: bool) -> bool:
        """Means over seeds and counts of outcomes; not after every one of many short trials."""
        if not self._summary_due or (not everything and time.monotonic() < self._summary_time + 3.0):
            return True
        by_label: dict[str, list[Mapping[str, Any]]] = {label: [] for label in self._labels}
        n_planned = dict.fromkeys(self._labels, 0)
        for (label, _), key in self._planned.items():
            n_planned[label] = n_planned.get(label, 0) + 1
            if key in self.records:
                by_label.setdefault(label, []).append(self.records[key])
        try:
            worst = self._worst([record for records in by_label.values() for record in records])
            for label, records in by_label.items():
                metrics = values.seed_summary(
                    records,
                    n_planned[label],
                    worst,
                    rank_by=self._study.evaluation.rank_by,
                    skip_collapsed="skip_collapsed" in self._study.all_quirks,
                )
                settings = records[-1]["settings"] if records else None
                complete = len(records) >= n_planned[label]
                self._projection.configuration(label, metrics, settings, complete=complete)
            self._projection.study(self._counts(), list(dict.fromkeys(name for name, _ in worst)))
        except Exception as error:
            return self._failed(error)
        self._labels.clear()
        self._summary_due, self._summary_time = False, time.monotonic()
        return True

    def _worst(self, records: list[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
        """What a lost trial counts as in each set, `test` first, and each metric that is compared."""
        scored = [record["metrics"]["own"] for record in records if record.get("metrics")]
        found = {name for sets in scored for name in sets}
        sets = [name for name in ("test", *sorted(found - {"test", "val"}), "val") if name in found]
        metrics = [
            key
            for key in dict.fromkeys((self._study.evaluation.rank_by, *values.HEADLINE))
            if any(key in values_of for sets_of in scored for values_of in sets_of.values())
        ]
        unbounded = any(METRICS[key].worst is None for key in metrics)
        nothing = nothing_by_set(self._ledger, records, self._nothing) if unbounded else {}
        return worst_values(records, sets, nothing, metrics)

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

    def trouble(self, *, unfinished: bool) -> str | None:
        """One sentence on what the store lacks and how to bring it, or None."""
        if not (unfinished or self._due or self._epochs or self._summary_due or self._report_missing):
            return None
        lacking = f"{len(self._due)} of {len(self.records)} records" if self._due else "the end of the study"
        why = f" ({self._error})" if self._error else ""
        return (
            f"MLflow at {public_uri(self._uri)} lacks {lacking}{why}; the ledger has everything, "
            f"repair it with: cellray track sync {self._study.name}"
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

    # What belongs to the study now.

    def _label(self, record: Mapping[str, Any]) -> str:
        """The label that the study gives a record now; it is no part of the key and may have changed."""
        label = self._labelled.get(record["key"], record["label"])
        self._labels.add(label)
        return label

    def _counts(self) -> dict[str, float]:
        outcomes = [self.records[key]["outcome"] for key in self._planned.values() if key in self.records]
        return values.outcome_counts(outcomes, len(self._planned))

    def _is_complete(self) -> bool:
        return all(key in self.records for key in self._planned.values())


def _plan_keys(plan: Any) -> dict[Pair, str]:
    """Keys of the trials of a plan, by label and seed."""
    entries: Iterable[Any] = getattr(plan, "trials", plan) or ()
    keys = {}
    for entry in entries:
        trial = getattr(entry, "trial", entry)
        if isinstance(entry.key, str):
            keys[trial.label, int(trial.seed)] = entry.key
    return keys

"""The observer that shows a sweep in MLflow, from a thread of its own."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable

from cellray.ledger import Ledger
from cellray.observers import Observer
from cellray.record import EpochRow, PlannedTrial, TrialRecord
from cellray.study import Study, Trial
from cellray.tracking.writer import Writer

LONGEST_WAIT_S = 60.0
"""Between two attempts while the store is away."""


class MLflowTracker(Observer):
    """Observer of a sweep: study › configuration › seed in MLflow, without delaying or failing the sweep.

    Each call leaves a note and returns. A thread writes to the store: epochs every few seconds, a record as soon as
    it can, and first of all the records that the ledger had before. What the store refuses is tried again with
    growing pauses; what it never took is named by `close`, and `sync` brings it later.

    Args:
        ledger: Of the study.
        tracking_uri: Any that MLflow takes; see `default_store`.
        interval_s: Between two writings of epochs and of the means over seeds.
        say: Called with one sentence when the store goes away, and by `close` with one if something is missing there.
    """

    def __init__(
        self,
        ledger: Ledger,
        tracking_uri: str,
        *,
        interval_s: float = 3.0,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self._ledger, self._uri = ledger, tracking_uri
        self._interval_s, self._say = interval_s, say
        self._notes: queue.SimpleQueue[Callable[[Writer], None] | None] = queue.SimpleQueue()  # None: the last one
        self._writer: Writer | None = None
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

    def on_start(self, study: Study, plan: Iterable[PlannedTrial]) -> None:
        """Begin to show a study."""
        self._writer = Writer(self._ledger, study, plan, self._uri)

    def on_ready(self) -> None:
        """Let the thread begin: MLflow takes seconds to come, as long as a trial's process does."""
        if self._thread is None and self._writer is not None:
            self._thread = threading.Thread(target=self._work, args=[self._writer], daemon=True, name="cellray-mlflow")
            self._thread.start()

    def on_plan(self, study: Study, plan: Iterable[PlannedTrial]) -> None:
        """Note that the plan has grown."""
        trials = list(plan)
        self._notes.put(lambda writer: writer.add_plan(study, trials))

    def on_epoch(self, trial: Trial, row: EpochRow) -> None:
        """Note an epoch of a trial that is running."""
        ended = row.copy(), int(time.time() * 1000)
        self._notes.put(lambda writer: writer.add_epoch(trial, *ended))

    def on_end(self, record: TrialRecord) -> None:
        """Note a record that the ledger now has."""
        self._notes.put(lambda writer: writer.add_record(record))

    def on_finish(self) -> None:
        """Note that the sweep went through its plan."""
        self._notes.put(Writer.hasten)

    def close(self, timeout: float = 120.0) -> str | None:
        """Write what is left, wait for it no longer than `timeout` seconds, and say what is missing.

        The report must have been written before: its files go into the study's run now.

        Returns:
            The sentence that was said, or None if the store has everything.
        """
        if self._writer is None or (self._thread is None and self._writer.is_shown()):
            return None
        self.on_ready()  # nothing was run, but something is missing there
        assert self._thread is not None
        self._deadline = time.monotonic() + timeout
        self._notes.put(None)
        self._thread.join(timeout)
        trouble = self._writer.trouble(unfinished=self._thread.is_alive())
        if trouble:
            self._say(trouble)
        return trouble

    def _work(self, writer: Writer) -> None:
        """The thread: collect notes, write when it is time, pause longer after each failure."""
        wait_s, n_failures, next_round, closing = self._interval_s, 0, 0.0, False
        while not closing:
            try:
                note = self._notes.get(timeout=max(0.0, min(next_round, self._deadline) - time.monotonic()))
            except queue.Empty:
                pass
            else:
                closing = note is None
                if note is not None:
                    note(writer)
                if n_failures == 0 and writer.is_urgent:
                    next_round = 0.0
                if time.monotonic() < next_round:
                    continue
            if not self._notes.empty() or closing:
                continue  # first everything that is known, then one round for all of it
            n_failures = 0 if writer.round() else n_failures + 1
            if n_failures == 2:  # one alone is mended before anybody could look
                self._say(writer.away())
            wait_s = min(LONGEST_WAIT_S, 2.0 ** min(n_failures, 10)) if n_failures else self._interval_s
            next_round = time.monotonic() + wait_s
        writer.close(self._deadline)

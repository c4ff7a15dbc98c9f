"""The reporting actor: keeps the ranked table of a running sweep current and builds the report when it ends.

Its state is the ledger: a restarted actor reads plan and records again and goes on. The class itself is plain Python;
Ray only carries it (`start_report_actor`).

Counts, running trials and the time left are exact at any moment. The ranked table takes longer the more results there
are, so that a thread makes it, and writes it to the ledger, at a pace that adapts to what it costs: a question is
answered at once from the last one, and says of how many results that is.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.observers import Tries
from cellray.record import EpochRow, TrialRecord
from cellray.report.answer import write_answer
from cellray.report.build import build_report, is_built, is_exported, live_metrics, load_tables, table_files
from cellray.report.findings import Findings
from cellray.report.gallery import Picture, pictures_of
from cellray.report.page.live import GIVES_WAY, LIVE, render_live
from cellray.report.progress import SweepProgress, SweepStatus, slim
from cellray.report.ranking import Tables
from cellray.report.study_facts import StudyFacts
from cellray.report.text import TextTable, format_table
from cellray.results import Plan, Results

_log = logging.getLogger(__name__)

CHEAP_S = 0.5
"""A table that takes no longer to make is made whenever somebody asks and results have come in."""
WAIT_S = 0.05
"""Who asks waits for it so long; then the last one has to do."""
SHARE = 0.1
"""Of one core, at most so much goes into other tables, and into files."""
ROWS = 100
"""Rows of the table, and troubles, that a status has unless asked for more."""


class ReportActor:
    """Watches one sweep.

    Args:
        ledger: Where records are and where the report goes.
        plan: The planned trials.
        study_facts: As for `build_report`.
        flush_s: At least so long between two writings of the current tables.
        clock: Seconds from any start, for pauses and costs; a test supplies its own.
        background: Whether a thread of its own reads, makes tables and writes. False: whoever brings news or asks
            waits for that, and meets the ledger's errors.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        *,
        study_facts: StudyFacts | None = None,
        flush_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        background: bool = False,
    ) -> None:
        self._ledger, self._facts = ledger, study_facts or StudyFacts()
        self._flush_s, self._clock, self._background = flush_s, clock, background
        self._metrics = live_metrics(plan)
        self._results = Results(ledger, plan, metric=plan.rank_by)
        self._progress = SweepProgress(plan, clock)
        self._table: TextTable | None = None
        self._answer: list[str] = []
        self._table_of = 0  # results
        self._version, self._table_version = 1, 0  # of what tables are made of: results and plan
        self._cost_s, self._made = 0.0, -math.inf  # of the last table, and when
        self._unwritten: Tables | None = None
        self._flushed, self._pause_s = -math.inf, flush_s
        self._has_news = True
        self._is_replanned = False  # told of a newer plan than it was made with
        self._told: set[str] = set()  # keys of the trials whose end was news
        self._last: TrialRecord | None = None  # that ended
        self._pictures: tuple[str, list[Picture]] = "", []  # of the trial with that key
        self._state = threading.Condition()  # held for moments only: whoever brings news or asks waits for it
        self._work = threading.Lock()  # held by the one who reads, makes tables or writes
        self._asked = False  # for a newer table
        self._wake = threading.Event()
        if background:
            loaded = threading.Event()
            threading.Thread(target=self._keep, args=(loaded,), daemon=True, name="cellray-report").start()
            loaded.wait(2.0)  # a small ledger is known from the start
        else:
            self._read_records()

    def tried(self, tries: Tries) -> None:
        """How far the trainings are that choose learning rates."""
        with self._state:
            self._progress.tried(tries)
            self._has_news = True
        self._flush_when_due()

    def trial_started(self, label: str, seed: int, key: str) -> None:
        """A trial begins; a resumed one may begin again."""
        with self._state:
            self._progress.started(label, seed, key)
            self._has_news = True

    def epoch(self, label: str, seed: int, row: EpochRow) -> None:
        """A trial ended an epoch."""
        with self._state:
            self._progress.epoch(label, seed, row)
            self._has_news = True
        self._flush_when_due()

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial's record is in the ledger; nothing else is read again."""
        with self._state:
            self._progress.ended(slim(record, self._metrics))
            self._told.add(record.key)
            self._last = record
            self._version += 1
            self._has_news = True
        self._flush_when_due()

    def replan(self, plan: Plan, study_facts: StudyFacts | None = None) -> None:
        """The plan has grown. What is known stays; the facts too, unless there are new ones."""
        with self._state:
            self._is_replanned = True
            self._progress.replan(plan)
            self._facts = study_facts or self._facts
            self._version += 1
            self._has_news = True

    def status(self, limit: int | None = None) -> SweepStatus:
        """How far the sweep is.

        Args:
            limit: Rows of the ranked table; None: 100, and as many troubles.
        """
        if not self._background:
            with self._work:
                self._make()
        else:
            with self._state:
                self._asked = self._table_version != self._version
                if self._asked and self._is_cheap():
                    self._wake.set()
                    self._state.wait_for(lambda: self._table_version == self._version, WAIT_S)
        return self._status(limit or ROWS)

    def flush(self) -> None:
        """Write ``report/status.json`` and, where they changed, the current tables now."""
        with self._work:
            self._flush()

    def finish(self) -> list[str]:
        """Build the whole report from the ledger; the paths written, none if it is there already."""
        with self._work:
            with self._state:
                self._progress.running.clear()
            if not self._told and is_built(Results.now(self._ledger, self._progress.plan), self._facts):
                return []
            self._read_records()
            self._make()
            self._write_status()
            paths = build_report(Results.now(self._ledger, self._progress.plan), self._facts)
            self._ledger.write(f"report/{LIVE}", GIVES_WAY)
            return paths

    def _status(self, limit: int) -> SweepStatus:
        with self._state:
            progress, table = self._progress, self._table or TextTable([], [], [])
            done = {name: n for name, n in sorted(progress.done.items()) if n}
            troubles = progress.troubles(ROWS)
            notes = list(table.notes)
            if len(table.rows) > limit:
                notes.append(f"The first {limit} of {len(table.rows)} configurations; report/ranking.csv has all.")
            if more := done.get("failed", 0) + done.get("collapsed", 0) - len(troubles):
                notes.append(f"{more} more failed and collapsed trials are named in report/trials.csv.")
            notes += self._results.damaged.values()
            return {
                "study": progress.plan.study,
                "planned": len(progress.plan.trials),
                "done": done,
                "missing": len(progress.plan.trials) - progress.n_done,
                "tries": progress.tries_row(),
                "running": progress.running_rows(),
                "eta_s": progress.eta_s(),
                "table_of": self._table_of,
                "table": {"columns": table.columns, "rows": table.rows[:limit], "notes": notes},
                "verdict": self._answer,
                "troubles": troubles,
            }

    # What takes long: only while holding `_work`.

    def _read_plan(self) -> None:
        """Take the ledger's plan: a restarted actor was made with that of the sweep's start."""
        try:
            trials = tuple(self._ledger.plan())
        except LedgerError:  # it has none
            return
        with self._state:
            if not self._is_replanned:
                self._progress.replan(replace(self._progress.plan, trials=trials))

    def _read_records(self) -> None:
        """Learn every record of the ledger that no news were of: those may be newer than what was read just now."""
        damaged: dict[str, str] = {}
        records = [slim(record, self._metrics) for record in self._ledger.records(damaged=damaged)]
        with self._state:
            for record in records:
                if record.key not in self._told:
                    self._progress.learn(record)
            self._results.damaged |= damaged
            self._version += 1

    def _make(self) -> None:
        """Make the table anew, if anything came in since."""
        with self._state:
            version, plan, of = self._version, self._progress.plan, self._progress.n_done
            records = list(self._progress.records.values())
        if version == self._table_version:
            return
        begun = self._clock()
        self._results.update(plan.with_dropped(self._ledger.search()), records)
        tables = load_tables(self._results, external_order=self._facts.sets, only_ranking=True)
        table = format_table(tables, metric=plan.rank_by)
        answer = write_answer(Findings(self._results, tables))
        with self._state:
            self._made = self._clock()
            self._cost_s, self._asked = self._made - begun, False
            self._table, self._answer, self._table_of, self._table_version = table, answer, of, version
            self._unwritten = tables
            self._state.notify_all()

    def _flush(self) -> None:
        self._flushed, self._has_news = self._clock(), False
        begun = self._clock()
        self._make()
        self._write_status()
        self._write_page()
        if (tables := self._unwritten) is not None:
            plan = self._progress.plan
            found = table_files(tables, plan, self._answer, export=is_exported(self._ledger))
            self._ledger.write_all({f"report/{name}": data for name, data in found.items()})
            self._unwritten = None
        self._pause_s = max(self._flush_s, (self._clock() - begun) / SHARE)

    def _is_cheap(self) -> bool:
        """Whether the next table will be there in a moment: the last one was, and few results are to be read."""
        return self._cost_s + 0.002 * (self._progress.n_done - self._table_of) <= CHEAP_S

    def _write_status(self) -> None:
        status = json.dumps(self._status(ROWS), indent=1, ensure_ascii=False)
        self._ledger.write("report/status.json", status.encode())

    def _write_page(self) -> None:
        """The page of a sweep that runs."""
        with self._state:
            last, curves = self._last, self._progress.curves
        if last is not None and last.key != self._pictures[0]:
            self._pictures = last.key, pictures_of(self._ledger, last)
        page = render_live(self._progress.plan.question, self._status(ROWS), curves, self._pictures[1])
        self._ledger.write(f"report/{LIVE}", page)

    def _is_due(self) -> bool:
        return self._has_news and self._clock() - self._flushed >= self._pause_s

    def _flush_when_due(self) -> None:
        if not self._background and self._is_due():
            self.flush()

    def _keep(self, loaded: threading.Event) -> None:
        """Keep tables and files current for ever; a ledger that is away is tried again."""
        trouble = ""
        while True:
            try:
                with self._work:
                    if not loaded.is_set():
                        self._read_plan()
                        self._read_records()
                        loaded.set()
                    rested = self._clock() - self._made >= self._cost_s / SHARE
                    if self._asked and (rested or self._is_cheap()):
                        self._make()
                    if self._is_due():
                        self._flush()
                trouble = ""
            except Exception as error:
                if str(error) != trouble:  # once, not every few seconds
                    _log.warning("the live report can't be kept current (%s); it is tried again", error)
                trouble = str(error)
                self._has_news = True
                time.sleep(self._flush_s)
            self._wake.wait(min(self._flush_s, 0.5))
            self._wake.clear()


class LedgerReportActor(ReportActor):
    """Opens its ledger where it runs, so that a restart needs nothing but names."""

    def __init__(self, ledger_args: tuple[str, str], plan: Plan, study_facts: StudyFacts) -> None:
        # A question takes a few turns of the interpreter, and each waits so long for the thread that makes tables.
        sys.setswitchinterval(0.0005)
        # Looking through all of ten thousand records for garbage stops every thread, for a second each time.
        gc.set_threshold(2000, 20, 1_000_000)
        super().__init__(_open(ledger_args), plan, study_facts=study_facts, background=True)


def _open(ledger_args: tuple[str, str]) -> Ledger:
    """The ledger, as soon as its storage answers: an actor that Ray restarts must not fail where it is made."""
    while True:
        try:
            return Ledger(*ledger_args)
        except LedgerError as error:
            _log.warning("%s; it is tried again", error)
            time.sleep(5.0)


def start_report_actor(
    study: str, ledger_args: tuple[str, str], plan: Plan, *, study_facts: StudyFacts | None = None
) -> Any:
    """A `ReportActor` as a Ray actor named ``cellray-report-<study>`` here, restarted by Ray if its process dies.

    Args:
        study: Names the actor, so that `cellray status` finds it.
        ledger_args: Arguments of `Ledger`: storage and study. The actor opens it itself.
        plan: The planned trials. A restarted actor finds those in the ledger.
        study_facts: As for `build_report`. A restarted actor must be told them again, before `finish`.

    Returns:
        The actor's handle. It lives as long as the Ray job that started it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # In a thread of its own: a question doesn't wait behind the news that came before it.
    apart: Any = ray.method(concurrency_group="questions")

    class LiveReportActor(LedgerReportActor):
        status = apart(LedgerReportActor.status)

    how: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 3, "concurrency_groups": {"questions": 1}}
    # Beside the sweep: on another node it would keep an autoscaler from taking that back. Ray lets the node of an
    # actor's owner choose where it goes if the actor needs anything, were it a byte; else any node does, even one that
    # has just come and knows of no other.
    how["scheduling_strategy"] = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    remote = ray.remote(num_cpus=0, memory=1, **how)(LiveReportActor)
    # Ray keeps what an actor is made with for its restarts, but only while it is small.
    head, facts = replace(plan, trials=(), dropped={}), study_facts or StudyFacts()
    actor: Any = remote.options(name=actor_name(study)).remote(ledger_args, head, StudyFacts(sets=facts.sets))
    actor.replan.remote(plan, facts)
    return actor


def actor_name(study: str) -> str:
    """The name under which Ray knows the actor of a study."""
    return f"cellray-report-{study}"

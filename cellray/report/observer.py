"""What a sweep talks to: passes its news on to the reporting actor."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from cellray.ledger import Ledger
from cellray.observers import Observer, Tries
from cellray.record import EpochRow, PlannedTrial, TrialRecord
from cellray.report.actor import ReportActor, start_report_actor
from cellray.report.build import build_report
from cellray.report.progress import SweepStatus
from cellray.report.study_facts import StudyFacts, facts_of
from cellray.results import Plan, Results, plan_of
from cellray.study import Study, Trial

LONGEST_S = 1800.0
"""For a report. Ray starts an actor that it killed for memory again and again: it is given up then."""

_log = logging.getLogger(__name__)


class ReportObserver(Observer):
    """Passes a sweep's news to a `ReportActor`: in Ray where Ray runs, else in this process.

    Args:
        ledger: The study's.
        actor: A `ReportActor` or a handle of one; None: started when the sweep's first trial is.
    """

    def __init__(self, ledger: Ledger, actor: Any = None) -> None:
        self._ledger, self._actor = ledger, actor
        self._owns_actor = actor is None
        self._plan: Plan | None = None
        self._keys: dict[tuple[str, int], str] = {}
        self._facts = StudyFacts()
        self._tries: Tries | None = None
        self._grown: Study | None = None  # the study, once it has more configurations than the facts know
        self.paths: list[str] = []
        """What was written, once the sweep has finished."""

    def on_start(self, study: Study, plan: Iterable[PlannedTrial]) -> None:
        """The sweep begins with a `Study` and its planned trials."""
        self._facts = facts_of(study)
        self._take(plan_of(study, plan))

    def on_ready(self) -> None:
        """Start the actor, whose process takes seconds to come."""
        if self._actor is None and self._plan is not None:
            args = (self._ledger.storage, self._ledger.study)
            self._actor = (
                start_report_actor(self._ledger.study, args, self._plan, study_facts=self._facts)
                if _ray_runs()
                else ReportActor(self._ledger, self._plan, study_facts=self._facts)
            )
            if self._tries is not None:
                self._tell("tried", self._tries)

    def on_plan(self, study: Study, plan: Iterable[PlannedTrial]) -> None:
        """The plan has grown, and is in the ledger; told on without waiting."""
        self._grown = study  # its facts are wanted at the end only, and take long to put together
        self._tell("replan", self._take(plan_of(study, plan)))

    def _take(self, plan: Plan) -> Plan:
        self._plan = plan
        self._keys = {(trial.label, trial.seed): trial.key for trial in plan.trials}
        return plan

    def on_tries(self, tries: Tries) -> None:
        """Told on without waiting, once there is whom to tell."""
        self._tries = tries
        if self._actor is not None:
            self._tell("tried", tries)

    def on_trial_start(self, trial: Trial) -> None:
        """Told on without waiting."""
        self._tell("trial_started", trial.label, trial.seed, self._keys[trial.label, trial.seed])

    def on_epoch(self, trial: Trial, row: EpochRow) -> None:
        """Told on without waiting."""
        self._tell("epoch", trial.label, trial.seed, row)

    def on_end(self, record: TrialRecord) -> None:
        """Told on without waiting."""
        self._tell("trial_ended", record)

    def on_finish(self) -> None:
        """Wait for the report; where the actor is lost, build it here, since the ledger has everything."""
        if self._grown is not None:
            self._facts = facts_of(self._grown)
        try:
            if self._plan is not None:  # an actor that was restarted doesn't know the facts
                self._tell("replan", self._plan, self._facts)
            self.paths = self._tell("finish", wait=True)
            self._stop()
        except Exception as error:
            if self._plan is None:
                raise
            _log.warning("the reporting actor is lost (%s); the report is built here", error)
            self.paths = build_report(Results.now(self._ledger, self._plan), self._facts)

    def _stop(self) -> None:
        """End an actor started here, so that its name is free for the next sweep of the same Ray job."""
        if self._owns_actor and not isinstance(self._actor, ReportActor):
            import ray

            ray.kill(self._actor)
            self._actor = None

    def status(self) -> SweepStatus:
        """`ReportActor.status`, waited for."""
        status: SweepStatus = self._tell("status", wait=True)
        return status

    def _tell(self, what: str, *news: Any, wait: bool = False) -> Any:
        self.on_ready()
        method = getattr(self._actor, what)
        if not hasattr(method, "remote"):
            return method(*news)
        reference = method.remote(*news)
        if not wait:
            return None
        import ray

        return ray.get(reference, timeout=LONGEST_S)


def _ray_runs() -> bool:
    """Whether this process is connected to Ray; without importing it, if nobody has."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())

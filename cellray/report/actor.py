"""The reporting actor: keeps the ranked table of a running sweep current and builds the report when it ends.

Its state is the ledger: a restarted actor reads the records again and goes on. The class itself is plain Python; Ray
only carries it (`start_report_actor`). `ReportObserver` is what a sweep talks to.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cellray.ledger import Ledger
from cellray.report.answer import write_answer
from cellray.report.build import Known, Store, build_report, load_tables, table_files
from cellray.report.tables import Plan, PlannedTrial, Tables, format_table, number, rows_of
from cellray.study import QUIRKS

_log = logging.getLogger(__name__)


class ReportActor:
    """Watches one sweep.

    Args:
        ledger: Where records are and where the report goes.
        plan: The planned trials.
        study_facts: As for `build_report`.
        flush_s: At least so long between two writings of the current tables.
        clock: Seconds from any start; a test supplies its own.
    """

    def __init__(
        self,
        ledger: Store,
        plan: Plan,
        *,
        study_facts: Mapping[str, Any] | None = None,
        flush_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._plan, self._facts = ledger, plan, dict(study_facts or {})
        self._flush_s, self._clock = flush_s, clock
        self._keys = {(trial.label, trial.seed): trial.key for trial in plan.trials}
        self._known = Known()
        self._records = plan.planned(ledger.records())
        self._running: dict[tuple[str, int], dict[str, Any]] = {}
        self._tables: Tables | None = None
        self._flushed = -math.inf

    def trial_started(self, label: str, seed: int, key: str) -> None:
        """A trial begins; a resumed one may begin again."""
        self._keys[label, seed] = key
        self._running[label, seed] = {"epoch": 0, "since": self._clock()}

    def epoch(self, label: str, seed: int, row: Mapping[str, Any]) -> None:
        """A trial ended an epoch. One that nobody announced (after a restart) counts as running from here."""
        state = self._running.setdefault((label, seed), {"since": self._clock()})
        state["epoch"] = int(row.get("epoch", 0))
        state["val_dice"] = number(row.get("val_dice", state.get("val_dice")))
        state["epoch_s"] = number(row.get("seconds"))
        self._flush_when_due()

    def trial_ended(self, record: Mapping[str, Any]) -> None:
        """A trial's record is in the ledger; nothing else is read again."""
        key = str(record["key"])
        for who in [who for who in self._running if self._keys.get(who) == key]:
            del self._running[who]
        self._records.update(self._plan.planned([dict(record)]))
        self._tables = None  # made anew when somebody asks
        self._flush_when_due()

    def status(self, limit: int | None = None) -> dict[str, Any]:
        """How far the sweep is: counts by outcome, running trials, ETA, the ranked table.

        Args:
            limit: Rows of the ranked table; None: all.
        """
        tables = self._current()
        outcomes = tables.trials.outcome.value_counts()
        table = format_table(tables, metric=self._plan.rank_by, limit=limit)
        return {
            "study": self._plan.study,
            "planned": len(self._plan.trials),
            "done": {str(name): int(n) for name, n in sorted(outcomes.items()) if name != "missing"},
            "missing": int(outcomes.get("missing", 0)),
            "running": [self._running_row(label, seed) for label, seed in sorted(self._running)],
            "eta_s": self._eta(),
            "table": {"columns": table.columns, "rows": table.rows, "notes": table.notes},
            "troubles": [
                {
                    "label": row.label,
                    "seed": row.seed,
                    "outcome": row.outcome,
                    "reason": row.reason,
                    "key": row.key,
                }
                for row in rows_of(tables.trials)
                if row.outcome in ("failed", "collapsed")
            ],
        }

    def flush(self) -> None:
        """Write ``report/status.json`` and the current tables now."""
        self._flushed = self._clock()
        tables = self._current()
        status = json.dumps(self.status(), indent=1, ensure_ascii=False)
        self._ledger.write("report/status.json", status.encode())
        for name, data in table_files(tables, self._plan, write_answer(tables, self._plan)).items():
            self._ledger.write(f"report/{name}", data)

    def finish(self) -> list[str]:
        """Build the whole report from the ledger; the paths written."""
        self._running.clear()
        self._records = self._plan.planned(self._ledger.records())
        self._tables = None
        self.flush()
        return build_report(self._ledger, self._plan, study_facts=self._facts)

    def _current(self) -> Tables:
        if self._tables is None:
            self._tables = load_tables(
                self._ledger,
                list(self._records.values()),
                self._plan,
                external_order=self._facts.get("sets", ()),
                known=self._known,
                only_ranking=True,
            )
        return self._tables

    def _flush_when_due(self) -> None:
        if self._clock() - self._flushed >= self._flush_s:
            self.flush()

    def _running_row(self, label: str, seed: int) -> dict[str, Any]:
        state = self._running[label, seed]
        dice = state.get("val_dice", math.nan)
        return {
            "label": label,
            "seed": seed,
            "epoch": state["epoch"],
            "epochs": self._epochs(),
            "val_dice": dice if math.isfinite(dice) else None,
            "running_s": round(self._clock() - state["since"], 1),
            "eta_s": self._trial_eta(state),
        }

    def _epochs(self) -> int | None:
        """Epochs of every trial: as planned, or, where the plan counts steps, as in the trials that ended."""
        seen = {r.get("epochs") for r in self._records.values() if r["outcome"] == "finished"}
        return self._plan.epochs or (seen.pop() if len(seen) == 1 else None)

    def _trial_eta(self, state: Mapping[str, Any]) -> float | None:
        """Seconds until a running trial ends: its epochs at the pace of the last one, and an evaluation as usual."""
        epoch_s = state.get("epoch_s", math.nan)
        epochs = self._epochs()
        if not (epochs and math.isfinite(epoch_s)):
            return None
        judged = [number((r.get("seconds") or {}).get("evaluation")) for r in self._records.values()]
        judged = [seconds for seconds in judged if math.isfinite(seconds)]
        left = max(epochs - state["epoch"], 0) * epoch_s
        return round(left + (sum(judged) / len(judged) if judged else 0.0), 1)

    def _eta(self) -> float | None:
        """Seconds until the last trial ends, from the mean of those that ended; None before the first."""
        left = len({t.key for t in self._plan.trials} - set(self._records))
        if left == 0:
            return 0.0
        took = [sum(number(v) for v in (r.get("seconds") or {}).values()) for r in self._records.values()]
        took = [seconds for seconds in took if math.isfinite(seconds) and seconds > 0]
        if not took or not self._running:
            return None
        each = sum(took) / len(took)
        spent = sum(min(self._clock() - state["since"], each) for state in self._running.values())
        return round(max(left * each - spent, 0.0) / len(self._running), 1)


def start_report_actor(
    study: str,
    ledger_args: tuple[str, str],
    plan: Plan,
    *,
    study_facts: Mapping[str, Any] | None = None,
) -> Any:
    """A `ReportActor` as a Ray actor named ``cellray-report-<study>``, restarted by Ray if its process dies.

    Args:
        study: Names the actor, so that `cellray status` finds it.
        ledger_args: Arguments of `Ledger`: storage and study. The actor opens it itself.
        plan: The planned trials.
        study_facts: As for `build_report`.

    Returns:
        The actor's handle. It lives as long as the Ray job that started it.
    """
    import ray

    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)(_LedgerReportActor)
    return remote.options(name=actor_name(study)).remote(ledger_args, plan, dict(study_facts or {}))


def actor_name(study: str) -> str:
    """The name under which Ray knows the actor of a study."""
    return f"cellray-report-{study}"


class _LedgerReportActor(ReportActor):
    """Opens its ledger where it runs, so that a restart needs nothing but names."""

    def __init__(self, ledger_args: tuple[str, str], plan: Plan, study_facts: Mapping[str, Any]) -> None:
        super().__init__(Ledger(*ledger_args), plan, study_facts=study_facts)


class ReportObserver:
    """Passes a sweep's news to a `ReportActor`: in Ray where Ray runs, else in this process.

    Args:
        ledger: The study's.
        actor: A `ReportActor` or a handle of one; None: started when the sweep starts.
    """

    def __init__(self, ledger: Ledger, actor: Any = None) -> None:
        self._ledger, self._actor = ledger, actor
        self._owns_actor = actor is None
        self._plan: Plan | None = None
        self._facts: dict[str, Any] = {}
        self.paths: list[str] = []
        """What was written, once the sweep has finished."""

    def on_start(self, study: Any, plan: Iterable[Any]) -> None:
        """The sweep begins with a `Study` and its planned trials."""
        self._plan, self._facts = plan_of(study, plan), facts_of(study)
        if self._actor is None:
            args = (self._ledger.storage, self._ledger.study)
            self._actor = (
                start_report_actor(study.name, args, self._plan, study_facts=self._facts)
                if _ray_runs()
                else ReportActor(self._ledger, self._plan, study_facts=self._facts)
            )

    def on_trial_start(self, trial: Any) -> None:
        """Told on without waiting."""
        assert self._plan is not None
        key = next(t.key for t in self._plan.trials if (t.label, t.seed) == (trial.label, trial.seed))
        self._tell("trial_started", trial.label, trial.seed, key)

    def on_epoch(self, trial: Any, row: Mapping[str, Any]) -> None:
        """Told on without waiting."""
        self._tell("epoch", trial.label, trial.seed, dict(row))

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Told on without waiting."""
        self._tell("trial_ended", dict(record))

    def on_finish(self) -> None:
        """Wait for the report; where the actor is lost, build it here, since the ledger has everything."""
        try:
            self.paths = self._tell("finish", wait=True)
            self._stop()
        except Exception as error:
            if self._plan is None:
                raise
            _log.warning("the reporting actor is lost (%s); the report is built here", error)
            self.paths = build_report(self._ledger, self._plan, study_facts=self._facts)

    def _stop(self) -> None:
        """End an actor started here, so that its name is free for the next sweep of the same Ray job."""
        if self._owns_actor and not isinstance(self._actor, ReportActor):
            import ray

            ray.kill(self._actor)
            self._actor = None

    def status(self) -> dict[str, Any]:
        """`ReportActor.status`, waited for."""
        return dict(self._tell("status", wait=True))

    def _tell(self, what: str, *news: Any, wait: bool = False) -> Any:
        method = getattr(self._actor, what)
        if not hasattr(method, "remote"):
            return method(*news)
        reference = method.remote(*news)
        if not wait:
            return None
        import ray

        return ray.get(reference)


def _ray_runs() -> bool:
    """Whether this process is connected to Ray; without importing it, if nobody has."""
    import sys

    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def plan_of(study: Any, planned: Iterable[Any]) -> Plan:
    """The plan of a report.

    Args:
        study: A `Study`.
        planned: What `Sets.plan` gives: objects with `trial` (label, seed), `key` and `evaluation_key`.
    """
    return _plan(study, (PlannedTrial(p.trial.label, p.trial.seed, p.key, p.evaluation_key) for p in planned))


def stored_plan(ledger: Ledger, study: Any) -> Plan:
    """The plan that the last sweep of a `Study` left in its ledger: a report needs no data to know the keys.

    Raises:
        LedgerError: If no sweep has been there.
    """
    return _plan(study, (PlannedTrial(t["label"], t["seed"], t["key"], t["evaluation_key"]) for t in ledger.plan()))


def _plan(study: Any, trials: Iterable[PlannedTrial]) -> Plan:
    return Plan(
        study.name,
        study.question,
        study.evaluation.rank_by,
        tuple(trials),
        skip_collapsed="skip_collapsed" in study.all_quirks,
        epochs=study.training.epochs,
    )


def facts_of(study: Any) -> dict[str, Any]:
    """What a report states about a `Study` besides its records, as plain data that Ray can send."""
    return {
        "roles": [{"parameter": r.parameter, "role": r.role, "value": r.value} for r in study.roles()],
        "evaluation": study.judged_by.model_dump(mode="json"),
        "notes": list(_quirk_notes(study)),
        "sets": [external.name for external in study.data.external],
        "agreement": {"test": study.data.train.agreement, **{e.name: e.agreement for e in study.data.external}},
        "study_yaml": study.dump_yaml(),
    }


def _quirk_notes(study: Any) -> Iterable[str]:
    """A sentence for each quirk that a configuration has."""
    labels = [c.label for c in study.configurations]
    for name, quirk in QUIRKS.items():
        who = [c.label for c in study.configurations if name in study.quirks_of(c)]
        if who:
            yield f"Quirk {name} of {'every configuration' if who == labels else '; '.join(who)}: {quirk.description}."

"""One study on Ray Tune: which trials are still to do, what each is given, and news of them to the observers."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Protocol

from cellray.device import release_memory
from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.scratch import scratch_folder
from cellray.search import Agenda
from cellray.study import DataConfig, ResourcesConfig, Study, Trial
from cellray.sweep.cluster import check_feasible, room_for
from cellray.sweep.nodes import check_nodes
from cellray.sweep.quota import keep_within
from cellray.sweep.tuning import (
    cause_of_death,
    first_interrupt,
    is_starting,
    out_of_memory_is_a_death,
    quiet_tune,
)
from cellray.sweep.workers import run_with_workers
from cellray.trial import Planned, Row, Sets, record_failure, run_trial

WORKER_DEATHS = 2
"""A trial whose process dies (out of memory, lost node) goes on from its checkpoint so often; then it has failed. The
loss of a node that its cluster took back (preemption) doesn't count."""

WAITING_S = 30.0
"""Without any running trial before the sweep says that it waits for resources."""

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Somebody who watches a sweep. News of one sweep come one at a time, in the driver's process.

    A method that an observer doesn't have is not called.
    """

    def on_start(self, study: Study, plan: list[Planned]) -> None:
        """The sweep begins; `plan` tells what the ledger has already."""

    def on_plan(self, study: Study, plan: list[Planned]) -> None:
        """The plan has grown: a search suggested a configuration, or a race gave another seed."""

    def on_trial_start(self, trial: Trial) -> None:
        """A trial was given its resources; it may be one that goes on after its process died."""

    def on_epoch(self, trial: Trial, row: Row) -> None:
        """A running trial ended an epoch."""

    def on_end(self, record: dict[str, Any]) -> None:
        """A trial's record is in the ledger."""

    def on_note(self, sentence: str) -> None:
        """Something that a reader must hear of, such as files that were removed."""

    def on_finish(self) -> None:
        """No trial runs any more, because all are done or because the sweep was interrupted."""


def run_sweep(
    study: Study,
    sets: Sets,
    ledger: Ledger,
    *,
    observers: Sequence[Observer] = (),
    chosen: Collection[tuple[str, int]] | None = None,
    max_concurrent: int | None = None,
    retry_failed: bool = False,
    cluster: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[dict[str, Any]]:
    """Run every trial the ledger doesn't have, and return the records of the whole plan so far.

    Ctrl+C (SIGINT) lets the trials that are running come to the end of their epoch, starts no others, and then raises
    KeyboardInterrupt; a second one doesn't wait. At most the work since a trial's last checkpoint is done again by the
    next run, which ends in the same records.

    Args:
        study: What to run.
        sets: Its data, opened.
        ledger: Where records are and go.
        observers: Told what happens.
        chosen: Run only these labels and seeds; the plan, and so the report, stays that of the whole study. Not for a
            study that adapts, where results decide what is run.
        max_concurrent: At most so many trials at once; None: as many as fit.
        retry_failed: Run trials again whose outcome was `failed`.
        cluster: Connects to Ray (`connect`) if anything is to be run; not needed where that has been done.

    Raises:
        DataError: If the data can't be split or cropped as a trial wants it.
        KeyboardInterrupt: If the sweep was interrupted, after the observers' `on_finish`.
        LedgerError: If another sweep holds the ledger, or it can't be written.
        StudyError: If no node can hold a trial, or one doesn't see the data or the ledger.
    """
    ledger.prepare()
    with ledger.lease(on_wait=lambda words: _tell(observers, "on_note", words)):
        ledger.write("study.yaml", study.dump_yaml().encode())
        if retry_failed:
            _forget_failures(study, sets, ledger, chosen)
        agenda = Agenda(study, sets, ledger, chosen=chosen)
        with nullcontext() if agenda.is_finished else cluster():
            if not agenda.is_finished:
                check_feasible(study)
                check_nodes(study.data, sets, ledger)
            agenda.write()
            agenda.stopped.clear()  # the plan has them
            _tell(observers, "on_start", agenda.study, agenda.plan)
            try:
                if not agenda.is_finished:
                    _run(agenda, study, sets, ledger, observers, max_concurrent or study.resources.max_concurrent)
            finally:
                _tell(observers, "on_finish")
        return ledger.records(planned.key for planned in agenda.plan)


def _forget_failures(study: Study, sets: Sets, ledger: Ledger, chosen: Collection[tuple[str, int]] | None) -> None:
    """Remove the records of failed trials: a trial without one is run."""
    keys = None
    if chosen is not None:
        keys = {sets.keys(trial)[0] for trial in study.trials() if (trial.label, trial.seed) in chosen}
    for record in ledger.records():
        if record["outcome"] == "failed" and (keys is None or record["key"] in keys):
            ledger.delete(f"trials/{record['key']}/trial.json")


def _run(
    agenda: Agenda,
    study: Study,
    sets: Sets,
    ledger: Ledger,
    observers: Sequence[Observer],
    max_concurrent: int | None,
) -> None:
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.search import Searcher

    resources = study.resources
    interrupted = threading.Event()
    tasks: dict[str, Trial] = {}

    class Feed(Searcher):
        """Hands the agenda's tasks to Tune."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return Searcher, ()  # Tune stores what it is given

        def suggest(self, trial_id: str) -> Any:
            if interrupted.is_set() or agenda.is_finished:
                return Searcher.FINISHED
            task = agenda.next()
            if task is None:
                return None
            tasks[trial_id] = task.trial
            return {"trial": task.trial.model_dump_json(), "until": task.until, "keys": sets.keys(task.trial)}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass  # `News` hears of it

        def save(self, checkpoint_path: str) -> None:
            pass  # the ledger has everything

        restore = save

    class News(TrialProgressCallback):
        """Passes what Tune hears from trials on to the agenda and the observers, and books those that died.

        Takes the place of Tune's own progress lines, which it would print whatever its verbosity.
        """

        idle_since = time.monotonic()

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return tune.Callback, ()  # Tune stores what it is given, and observers hold threads and bars

        def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
            """Say so when nothing runs for a while because resources are missing."""
            states = [trial.status for trial in trials]
            if "RUNNING" in states or "PENDING" not in states:
                self.idle_since = time.monotonic()
            elif time.monotonic() - self.idle_since > WAITING_S:
                self.idle_since = time.monotonic()
                each = f"{resources.cpus:g} CPUs and {resources.gpus:g} GPUs each"
                words = f"waiting for resources: {states.count('PENDING')} trials are pending, {each}"
                _tell(observers, "on_note", words)

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            _tell(observers, "on_trial_start", tasks[trial.trial_id])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            if "row" in result:
                _tell(observers, "on_epoch", tasks[trial.trial_id], result["row"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self.go_on(tasks.pop(trial.trial_id))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            failed = tasks.pop(trial.trial_id)
            key, evaluation_key = sets.keys(failed)
            if not Planned(failed, key, evaluation_key, ledger.record(key)).done:  # else it died after its last word
                reason = f"given up after {WORKER_DEATHS + 1} attempts: {cause_of_death(trial.error_file)}"
                try:
                    record_failure(failed, sets, ledger, reason)
                except (OSError, LedgerError) as error:
                    words = f"{failed.label}, seed {failed.seed}: no record, since the storage takes none ({error})"
                    _tell(observers, "on_note", words)
            self.go_on(failed)

        def go_on(self, ended: Trial) -> None:
            """Let the agenda draw its conclusions, and tell of them."""
            n_planned = len(agenda.entries), sum(len(entry.trials) for entry in agenda.entries)
            record = agenda.ended(ended)
            if study.adapts:
                agenda.write()
            if n_planned != (len(agenda.entries), sum(len(entry.trials) for entry in agenda.entries)):
                _tell(observers, "on_plan", agenda.study, agenda.plan)
            for news in [*([record] if record else []), *agenda.stopped]:
                _tell(observers, "on_end", news)
            agenda.stopped.clear()
            if resources.checkpoints_gb is not None:
                done = {planned.key for planned in agenda.plan if planned.stored is not None}
                if (note := keep_within(ledger, resources.checkpoints_gb, done)) is not None:
                    _tell(observers, "on_note", note)

    class Stoppable(tune.schedulers.FIFOScheduler):
        """Trials in their order; once interrupted, none is started, and each that runs ends with its epoch."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return tune.schedulers.FIFOScheduler, ()

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return self.STOP if interrupted.is_set() else self.CONTINUE

        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            """The first trial that waits; one whose new process is starting gets that, not another's that is free.

            Else each process that ends a trial would take the next one away from a machine that has just come, and no
            such machine would get any, as long as trials end faster than processes start.
            """
            if not interrupted.is_set():
                waiting = (trial for trial in tune_controller.get_trials() if trial.status == "PENDING")
                return next((trial for trial in waiting if not is_starting(trial, tune_controller)), None)
            for trial in tune_controller.get_trials():
                if trial.status == "PENDING":
                    tune_controller.stop_trial(trial)
            return None

    # The workers of a trial with several take their resources themselves, all at once; so many trials as fit may wait
    # for them.
    alone = resources.n_workers == 1
    need = {"cpu": float(resources.cpus), "gpu": float(resources.gpus)}
    if not alone:
        need = {"cpu": 0.0, "memory": 1.0}  # Tune wants something to be asked for, and every node has a byte
        max_concurrent = min(max_concurrent or sys.maxsize, room_for(resources))
    work = tune.with_parameters(_work, ledger=ledger, resources=resources)
    # Tune's own state: nothing is read back from there, here or on other nodes, since the ledger has all.
    with (
        scratch_folder("tune") as scratch,
        quiet_tune(),
        out_of_memory_is_a_death(),
        first_interrupt(interrupted),
    ):
        tune.Tuner(
            tune.with_resources(work, need),
            tune_config=tune.TuneConfig(
                search_alg=Feed(),
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=max_concurrent,
                scheduler=Stoppable(),
            ),
            run_config=tune.RunConfig(
                name=study.name,
                storage_path=scratch,
                verbose=0,
                callbacks=[News()],
                failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
            ),
        ).fit()
    if interrupted.is_set():
        raise KeyboardInterrupt


def _work(config: dict[str, Any], ledger: Ledger, resources: ResourcesConfig) -> None:
    """One trial in a Ray worker. Leaves nothing behind but opened data, for the next trial of the process."""
    from ray import tune

    trial, until, keys = Trial.model_validate_json(config["trial"]), config["until"], tuple(config["keys"])

    def report(row: Row) -> None:
        tune.report({"row": row})

    cpus, gpus = float(resources.cpus), float(resources.gpus)
    try:
        if resources.n_workers > 1:
            n = resources.n_workers
            run_with_workers(trial, keys, ledger, workers=n, cpus=cpus, gpus=gpus, until=until, report=report)
        else:
            sets = _open_once(trial.data.model_dump_json())
            sets.expect(trial, keys)
            run_trial(trial, sets, ledger, gpus=gpus, threads=max(int(cpus), 1), on_epoch=report, until=until)
    finally:
        release_memory()


@cache
def _open_once(config: str) -> Sets:
    return Sets.open(DataConfig.model_validate_json(config))


def _tell(observers: Sequence[Observer], what: str, *news: Any) -> None:
    """Tell every observer; one that fails must not cost the sweep anything."""
    for observer in observers:
        try:
            if (method := getattr(observer, what, None)) is not None:
                method(*news)
        except Exception:
            _log.exception("%s.%s failed; the sweep goes on", type(observer).__name__, what)

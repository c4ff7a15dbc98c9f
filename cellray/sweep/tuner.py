"""An agenda's trials on Ray Tune: what each is given, news of them to the observers, and what their workers do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from cellray.errors import StorageError
from cellray.ledger import Ledger
from cellray.observers import Observer, tell
from cellray.places import counted
from cellray.processes import Flag
from cellray.record import EpochRow
from cellray.scratch import scratch_folder
from cellray.search import Agenda, Task
from cellray.study import ResourcesConfig, Study, Trial
from cellray.sweep.capacity import nodes_in_words, room_beside, room_for
from cellray.sweep.judging import Judging
from cellray.sweep.quota import keep_within
from cellray.sweep.tuning import (
    WORKER_DEATHS,
    cause_of_death,
    first_interrupt,
    is_starting,
    out_of_memory_is_a_death,
    quiet_tune,
    stop_pending,
)
from cellray.sweep.workers import run_alone, run_with_workers
from cellray.trial import Sets, forget_other_predictions, home, record_failure

ENDS_SOON = (
    "stopping: the trials that run come to the end of their epoch, then the report is written; a second Ctrl-C doesn't "
    "wait for that; nothing is lost either way"
)
"""The answer to an interruption."""
READY_S = 10.0
"""The observers wait no longer for the first trial's process: one on another machine may take minutes to come."""
LOOK_S = 0.1
"""To wait for a trial that is being judged while no other runs."""
WAITING_S = 30.0
"""Without any running trial before the sweep says that it waits for resources."""


def run_agenda(
    agenda: Agenda,
    study: Study,
    sets: Sets,
    ledger: Ledger,
    observers: Sequence[Observer],
    max_concurrent: int | None,
) -> None:
    """Run an agenda to its end, in a process that is connected to Ray; arguments as for `run_sweep`.

    Raises:
        KeyboardInterrupt: If it was interrupted.
        StorageError: If the storage took or gave no files: no trial was started after that, and none counts as failed.
    """
    forget_other_predictions(agenda.plan, sets, ledger)
    resources, interrupted, judging = study.resources, Flag(), Judging(ledger, study.resources)
    most = max_concurrent or resources.max_concurrent or sys.maxsize
    feed, scheduler = Feed(agenda, sets, resources, most, judging, interrupted), Stoppable(interrupted)
    need = {"cpu": float(resources.cpus), "gpu": float(resources.n_gpus)}
    if resources.n_workers > 1:  # they take theirs themselves, all at once
        need = {"cpu": 0.0, "memory": 1.0}  # Tune wants something to be asked for, and every node has a byte
    news = News(feed, study, ledger, observers, scheduler)
    work = tune.with_parameters(_work, ledger=ledger, resources=resources)
    # Tune's own state: nothing is read back from there, here or on other nodes, since the ledger has all.
    with scratch_folder("tune") as scratch, quiet_tune(), out_of_memory_is_a_death(), first_interrupt(interrupted):
        tune.Tuner(
            tune.with_resources(work, need),
            tune_config=tune.TuneConfig(
                search_alg=feed,
                num_samples=-1,
                reuse_actors=True,
                scheduler=scheduler,
            ),
            run_config=tune.RunConfig(
                name=study.name,
                storage_path=scratch,
                verbose=0,
                callbacks=[news],
                failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
            ),
        ).fit()
        while judging and not interrupted.is_set():
            news.hear_of_judged(LOOK_S)
    if news.trouble is not None:
        raise StorageError(news.trouble)
    if interrupted.is_set():
        raise KeyboardInterrupt


class Feed(Searcher):
    """Hands an agenda's tasks to Tune; to the agenda a trial runs until it is judged."""

    def __init__(
        self,
        agenda: Agenda,
        sets: Sets,
        resources: ResourcesConfig,
        most: int,
        judging: Judging,
        interrupted: Flag,
    ) -> None:
        super().__init__()
        self.agenda, self.sets, self.judging = agenda, sets, judging
        self.tasks: dict[str, Task] = {}
        """What Tune's trials are, by their ids."""
        self._most, self._interrupted = most, interrupted
        at_once = min(room_for(resources), most)
        # Of trials with several workers no more wait for these than fit at once.
        self._most_training = at_once if resources.n_workers > 1 else most
        self._may_wait = min(room_beside(resources, at_once), most - at_once)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Searcher, ()  # Tune stores what it is given

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:  # type: ignore[override]
        if self._interrupted.is_set() or self.agenda.is_finished:
            return Searcher.FINISHED  # also while some are still judged, so that Tune lets go of what it holds
        if len(self.tasks) >= self._most_training or len(self.tasks) + len(self.judging) >= self._most:
            return None
        if (task := self.agenda.next()) is None:
            return None
        self.tasks[trial_id] = task
        keys = self.sets.keys(task.trial)
        return {"trial": task.trial.model_dump_json(), "until": task.until, "keys": keys, "may_wait": self._may_wait}

    def waits(self, task: Task, ledger: Ledger) -> bool:
        """Whether a task that ended is trained and not yet judged."""
        if not self._may_wait or task.until is not None or task.trial.tries_rate:
            return False
        return not self.sets.planned(task.trial, ledger).done

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
        pass  # `News` hears of it

    def save(self, checkpoint_path: str) -> None:
        pass  # the ledger has everything

    restore = save


class News(TrialProgressCallback):
    """Passes what Tune hears from trials on to the agenda and the observers, and books those that died.

    Takes the place of Tune's own progress lines, which it would print whatever its verbosity.
    """

    def __init__(
        self, feed: Feed, study: Study, ledger: Ledger, observers: Sequence[Observer], scheduler: Stoppable
    ) -> None:
        super().__init__()
        self._feed, self._study, self._ledger, self._observers = feed, study, ledger, observers
        self._scheduler = scheduler
        self.trouble: str | None = None
        """What the storage refused, in words; the sweep ends with it as if it was interrupted."""
        self._began = self._idle_since = time.monotonic()
        self._is_ready = False
        self._said = ""
        self._notes: set[str] = set()
        self._is_ending = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return tune.Callback, ()  # Tune stores what it is given, and observers hold threads and bars

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **_: object) -> None:
        """Answer an interruption, hear of trials that were judged, and say so when nothing runs for a while because
        resources are missing, again only when the nodes change."""
        if self._scheduler.interrupted.is_set() and not self._is_ending:
            self._is_ending = True
            if self.trouble is None:
                tell(self._observers, "on_note", ENDS_SOON)
        states = [trial.status for trial in trials]
        self.hear_of_judged(0 if {"RUNNING", "PENDING"} & set(states) else LOOK_S)
        if not self._is_ready and ("RUNNING" in states or time.monotonic() - self._began > READY_S):
            self._is_ready = True
            tell(self._observers, "on_ready")
        if "RUNNING" in states or "PENDING" not in states or self._scheduler.is_any_starting:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > WAITING_S:
            self._idle_since = time.monotonic()
            resources = self._study.resources
            words = (
                f"waiting for resources: each trial needs {counted(resources.cpus * resources.n_workers, 'CPU')} and "
                f"{counted(resources.n_gpus, 'GPU')}; {nodes_in_words()}"
            )
            if words != self._said:
                tell(self._observers, "on_note", words)
            self._said = words

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        started = self._feed.tasks[trial.trial_id].trial
        if not started.tries_rate:
            tell(self._observers, "on_trial_start", started)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, object], **_: object
    ) -> None:
        running = self._feed.tasks[trial.trial_id].trial
        if "note" in result and result["note"] not in self._notes:
            self._notes.add(str(result["note"]))
            tell(self._observers, "on_note", result["note"])
        if "trouble" in result:
            self._end_with(str(result["trouble"]))
        if "row" in result and not running.tries_rate:
            tell(self._observers, "on_epoch", running, result["row"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        task = self._feed.tasks.pop(trial.trial_id)
        with self._storage_may_fail():
            if self._feed.waits(task, self._ledger) and not self._scheduler.interrupted.is_set():
                self._feed.judging.begin(task.trial, self._feed.sets.keys(task.trial))
            else:
                self._conclude(task.trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        reason = f"given up after {WORKER_DEATHS + 1} attempts: {cause_of_death(trial.error_file)}"
        self._give_up(self._feed.tasks.pop(trial.trial_id).trial, reason)

    def hear_of_judged(self, wait_s: float) -> None:
        """Book the trials that were judged since the last time, or are within these seconds."""
        with self._storage_may_fail():
            for trial, trouble in self._feed.judging.ended(wait_s):
                if trouble is None:
                    self._conclude(trial)
                else:
                    self._give_up(trial, trouble)

    def _give_up(self, failed: Trial, reason: str) -> None:
        """Book a trial whose processes died."""
        sets = self._feed.sets
        with self._storage_may_fail():
            if not sets.planned(failed, home(failed, self._ledger)).done:  # else it died after its last word
                record_failure(failed, sets, self._ledger, reason)
        with self._storage_may_fail():
            self._conclude(failed)

    @contextmanager
    def _storage_may_fail(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self._end_with(str(error))

    def _end_with(self, trouble: str) -> None:
        """End the sweep after the epochs that run, as the storage can't be used."""
        if self.trouble is None:
            self.trouble = trouble
            tell(self._observers, "on_note", f"{trouble}; no further trial is started")
        self._scheduler.interrupted.set()

    def _conclude(self, ended: Trial) -> None:
        """Let the agenda draw its conclusions, and tell of them."""
        agenda, observers = self._feed.agenda, self._observers
        before = agenda.keys
        record = agenda.ended(ended)
        if ended.tries_rate:
            tell(observers, "on_tries", agenda.tries)
        if self._study.keeps_log:
            agenda.write()
        for words in agenda.notes:
            tell(observers, "on_note", words)
        agenda.notes.clear()
        if before != agenda.keys:
            tell(observers, "on_plan", agenda.study, agenda.plan)
        for news in [*([record] if record else []), *agenda.stopped]:
            tell(observers, "on_end", news)
        agenda.stopped.clear()
        if (quota_gb := self._study.resources.checkpoints_gb) is not None:
            done = {planned.key for planned in agenda.plan if planned.record is not None}
            if (note := keep_within(self._ledger, quota_gb, done)) is not None:
                tell(observers, "on_note", note)


class Stoppable(FIFOScheduler):
    """Trials in their order; once interrupted, none is started, and each that runs ends with its epoch."""

    def __init__(self, interrupted: Flag) -> None:
        super().__init__()
        self.interrupted = interrupted
        self.is_any_starting = False
        """Whether a process of a trial was starting when one was last looked for."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FIFOScheduler, ()

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, object]) -> str:
        return self.STOP if self.interrupted.is_set() else self.CONTINUE

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:
        """The first trial that waits; one whose new process is starting gets that, not another's that is free.

        Else each process that ends a trial would take the next one away from a machine that has just come, and no
        such machine would get any, as long as trials end faster than processes start.
        """
        if not self.interrupted.is_set():
            pending = [trial for trial in tune_controller.get_trials() if trial.status == "PENDING"]
            waiting = [trial for trial in pending if not is_starting(trial, tune_controller)]
            self.is_any_starting = len(waiting) < len(pending)
            return waiting[0] if waiting else None
        for trial in tune_controller.get_trials():
            if trial.status == "PENDING":
                stop_pending(trial, tune_controller)
        return None


def _work(config: dict[str, Any], ledger: Ledger, resources: ResourcesConfig) -> None:
    """One trial in a Ray worker."""
    trial, keys = Trial.model_validate_json(config["trial"]), tuple(config["keys"])

    def report(row: EpochRow) -> None:
        tune.report({"row": row})

    def note(words: str) -> None:
        tune.report({"note": words})

    run = partial(run_with_workers, workers=resources.n_workers) if resources.n_workers > 1 else run_alone
    try:
        run(
            trial,
            keys,
            ledger,
            cpus=float(resources.cpus),
            gpus=float(resources.n_gpus),
            until=config["until"],
            may_wait=config["may_wait"],
            on_epoch=report,
            on_note=note,
        )
    except StorageError as error:
        tune.report({"trouble": str(error)})

"""An agenda's trials on Ray Tune: what each is given, news of them to the observers, and what their workers do."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from cellray.device import release_memory
from cellray.errors import StorageError
from cellray.ledger import Ledger
from cellray.observers import Observer, tell
from cellray.places import counted
from cellray.record import EpochRow
from cellray.scratch import scratch_folder
from cellray.search import Agenda
from cellray.study import DataConfig, ResourcesConfig, Study, Trial
from cellray.sweep.capacity import nodes_in_words, room_for
from cellray.sweep.quota import keep_within
from cellray.sweep.tuning import (
    cause_of_death,
    first_interrupt,
    is_starting,
    out_of_memory_is_a_death,
    quiet_tune,
    stop_pending,
)
from cellray.sweep.workers import run_with_workers
from cellray.trial import Sets, home, record_failure, run_trial

WORKER_DEATHS = 2
"""A trial whose process dies (out of memory, lost node) goes on from its checkpoint so often; then it has failed. The
loss of a node that its cluster took back (preemption) doesn't count."""

ENDS_SOON = (
    "stopping: the trials that run come to the end of their epoch, then the report is written; a second Ctrl-C doesn't "
    "wait for that; nothing is lost either way"
)
"""The answer to an interruption."""
READY_S = 10.0
"""The observers wait no longer for the first trial's process: one on another machine may take minutes to come."""
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
    resources, interrupted = study.resources, threading.Event()
    feed, scheduler = Feed(agenda, sets, resources, interrupted), Stoppable(interrupted)
    news = News(feed, study, ledger, observers, scheduler)
    work = tune.with_parameters(_work, ledger=ledger, resources=resources, may_wait=room_for(resources))
    # Tune's own state: nothing is read back from there, here or on other nodes, since the ledger has all.
    with scratch_folder("tune") as scratch, quiet_tune(), out_of_memory_is_a_death(), first_interrupt(interrupted):
        tune.Tuner(
            tune.with_resources(work, partial(_need, resources)),
            tune_config=tune.TuneConfig(
                search_alg=feed,
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=max_concurrent or resources.max_concurrent,
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
    if news.trouble is not None:
        raise StorageError(news.trouble)
    if interrupted.is_set():
        raise KeyboardInterrupt


class Job(NamedTuple):
    """What one of Tune's trials does: a trial whole, or as much of it as needs a GPU or workers, or the rest."""

    trial: Trial
    until: int | None
    part: Literal["whole", "training", "judging"]


class Feed(Searcher):
    """Hands an agenda's tasks to Tune; to the agenda a trial runs until it is judged."""

    def __init__(self, agenda: Agenda, sets: Sets, resources: ResourcesConfig, interrupted: threading.Event) -> None:
        super().__init__()
        self.agenda, self.sets = agenda, sets
        self.jobs: dict[str, Job] = {}
        """What Tune's trials are, by their ids."""
        self.to_judge: deque[Trial] = deque()
        """Trained, and to be judged by a job of its own."""
        self._interrupted = interrupted
        self._gives_up = resources.n_gpus > 0 or resources.n_workers > 1
        # The workers of a trial with several take their resources themselves, all at once: no more trials than fit may
        # wait for them.
        self._most_training = room_for(resources) if resources.n_workers > 1 else sys.maxsize

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Searcher, ()  # Tune stores what it is given

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:  # type: ignore[override]
        if self._interrupted.is_set():
            return Searcher.FINISHED
        if self.to_judge:
            return self._hand_out(trial_id, Job(self.to_judge.popleft(), None, "judging"))
        training = [job for job in self.jobs.values() if job.part != "judging"]
        if self.agenda.is_finished and not any(job.part == "training" for job in training):
            return Searcher.FINISHED
        task = self.agenda.next() if len(training) < self._most_training else None
        if task is None:
            return None
        is_judged = task.until is None and not task.trial.tries_rate
        return self._hand_out(trial_id, Job(*task, "training" if self._gives_up and is_judged else "whole"))

    def _hand_out(self, trial_id: str, job: Job) -> dict[str, object]:
        self.jobs[trial_id] = job
        keys = self.sets.keys(job.trial)
        return {"trial": job.trial.model_dump_json(), "until": job.until, "part": job.part, "keys": keys}

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
        """Answer an interruption; and say so when nothing runs for a while because resources are missing, again only
        when the nodes change."""
        if self._scheduler.interrupted.is_set() and not self._is_ending:
            self._is_ending = True
            if self.trouble is None:
                tell(self._observers, "on_note", ENDS_SOON)
        states = [trial.status for trial in trials]
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
        job = self._feed.jobs[trial.trial_id]
        if not job.trial.tries_rate and job.part != "judging":
            tell(self._observers, "on_trial_start", job.trial)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, object], **_: object
    ) -> None:
        running = self._feed.jobs[trial.trial_id].trial
        if "note" in result and result["note"] not in self._notes:
            self._notes.add(str(result["note"]))
            tell(self._observers, "on_note", result["note"])
        if "trouble" in result:
            self._end_with(str(result["trouble"]))
        if "row" in result and not running.tries_rate:
            tell(self._observers, "on_epoch", running, result["row"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        self._go_on(self._feed.jobs.pop(trial.trial_id))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        job, sets = self._feed.jobs.pop(trial.trial_id), self._feed.sets
        failed = job.trial
        if not sets.planned(failed, home(failed, self._ledger)).done:  # else it died after its last word
            reason = f"given up after {WORKER_DEATHS + 1} attempts: {cause_of_death(trial.error_file)}"
            try:
                record_failure(failed, sets, self._ledger, reason)
            except StorageError as error:
                self._end_with(str(error))
        self._go_on(job)

    def _end_with(self, trouble: str) -> None:
        """End the sweep after the epochs that run, as the storage can't be used."""
        if self.trouble is None:
            self.trouble = trouble
            tell(self._observers, "on_note", f"{trouble}; no further trial is started")
        self._scheduler.interrupted.set()

    def _go_on(self, ended: Job) -> None:
        """Have a trained trial judged, or let the agenda draw its conclusions, and tell of them."""
        try:
            if ended.part == "training" and not self._feed.sets.planned(ended.trial, self._ledger).done:
                self._feed.to_judge.append(ended.trial)
            if ended.trial not in self._feed.to_judge or self._scheduler.interrupted.is_set():
                self._conclude(ended.trial)
        except StorageError as error:
            self._end_with(str(error))

    def _conclude(self, ended: Trial) -> None:
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

    def __init__(self, interrupted: threading.Event) -> None:
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


def _need(resources: ResourcesConfig, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a job takes. The workers of a trial with several take theirs themselves."""
    bundle = {"CPU": float(resources.cpus), "GPU": float(resources.n_gpus)}
    if config["part"] == "judging":
        bundle = {"CPU": float(resources.cpus)}
    elif resources.n_workers > 1:
        bundle = {"memory": 1.0}  # Tune wants something to be asked for, and every node has a byte
    return tune.PlacementGroupFactory([bundle])


def _work(config: dict[str, Any], ledger: Ledger, resources: ResourcesConfig, may_wait: int) -> None:
    """One job in a Ray worker. Leaves nothing behind but opened data, for the next job of the process."""
    trial, until, keys = Trial.model_validate_json(config["trial"]), config["until"], tuple(config["keys"])

    def report(row: EpochRow) -> None:
        tune.report({"row": row})

    def note(words: str) -> None:
        tune.report({"note": words})

    cpus, gpus, n_workers = float(resources.cpus), float(resources.n_gpus), resources.n_workers
    if config["part"] == "judging":
        gpus, n_workers = 0.0, 1
    if config["part"] != "training":
        may_wait = 0
    how = {"until": until, "may_wait": may_wait, "on_epoch": report, "on_note": note}
    try:
        if n_workers > 1:
            run_with_workers(trial, keys, ledger, workers=n_workers, cpus=cpus, gpus=gpus, **how)
        else:
            sets = _open_once(trial.data.model_dump_json())
            sets.expect(trial, keys)
            run_trial(trial, sets, ledger, gpus=gpus, threads=max(int(cpus), 1), **how)
    except StorageError as error:
        tune.report({"trouble": str(error)})
    finally:
        release_memory()


@cache
def _open_once(config: str) -> Sets:
    return Sets.open(DataConfig.model_validate_json(config))

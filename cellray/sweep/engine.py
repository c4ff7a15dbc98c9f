"""One study on Ray Tune: which trials are still to do, what each is given, and news of them to the observers."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, Protocol

from cellray.device import release_memory
from cellray.ledger import Ledger
from cellray.study import DataConfig, Study, Trial
from cellray.sweep.cluster import check_feasible
from cellray.trial import Planned, Row, Sets, record_failure, run_trial

WORKER_DEATHS = 2
"""A trial whose process dies (out of memory, lost node) goes on from its checkpoint so often; then it has failed."""

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Somebody who watches a sweep. News of one sweep come one at a time, in the driver's process.

    A method that an observer doesn't have is not called.
    """

    def on_start(self, study: Study, plan: list[Planned]) -> None:
        """The sweep begins; `plan` tells what the ledger has already."""

    def on_trial_start(self, trial: Trial) -> None:
        """A trial was given its resources; it may be one that goes on after its process died."""

    def on_epoch(self, trial: Trial, row: Row) -> None:
        """A running trial ended an epoch."""

    def on_end(self, record: dict[str, Any]) -> None:
        """A trial's record is in the ledger."""

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
) -> list[dict[str, Any]]:
    """Run every trial the ledger doesn't have, and return the records of the whole plan so far.

    Ray must have been started (`connect`), unless nothing is to do. Ctrl+C (SIGINT) lets the trials that are running
    come to the end of their epoch, starts no others, and then raises KeyboardInterrupt; a second one doesn't wait. At
    most the work since a trial's last checkpoint is done again by the next run, which ends in the same records.

    Args:
        study: What to run.
        sets: Its data, opened.
        ledger: Where records are and go.
        observers: Told what happens.
        chosen: Run only these labels and seeds; the plan, and so the report, stays that of the whole study.
        max_concurrent: At most so many trials at once; None: as many as fit.
        retry_failed: Run trials again whose outcome was `failed`.

    Raises:
        DataError: If the data can't be split or cropped as a trial wants it.
        KeyboardInterrupt: If the sweep was interrupted, after the observers' `on_finish`.
        LedgerError: If another sweep holds the ledger, or it can't be written.
        StudyError: If no node can hold a trial.
    """
    ledger.prepare()
    with ledger.lease():
        ledger.write("study.yaml", study.dump_yaml().encode())
        plan = sets.plan(study.trials(), ledger)
        wanted = {p.key for p in plan if chosen is None or (p.label, p.seed) in chosen}
        if retry_failed:
            for planned in plan:
                if planned.key in wanted and planned.stored is not None and planned.stored["outcome"] == "failed":
                    ledger.delete(f"trials/{planned.key}/trial.json")
            plan = sets.plan(study.trials(), ledger)
        todo = [planned.trial for planned in plan if not planned.done and planned.key in wanted]
        if todo:
            check_feasible(study)
        ledger.write_plan([(p.label, p.seed, p.key, p.evaluation_key) for p in plan])
        _tell(observers, "on_start", study, plan)
        try:
            if todo:
                _run(todo, study, sets, ledger, observers, max_concurrent or study.resources.max_concurrent)
        finally:
            _tell(observers, "on_finish")
        return [record for planned in plan if (record := ledger.record(planned.key)) is not None]


def _run(
    todo: list[Trial],
    study: Study,
    sets: Sets,
    ledger: Ledger,
    observers: Sequence[Observer],
    max_concurrent: int | None,
) -> None:
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback

    cpus, gpus = float(study.resources.cpus), float(study.resources.gpus)

    def trial_of(tuned: Any) -> Trial:
        return todo[tuned.config["index"]]

    class News(TrialProgressCallback):
        """Passes what Tune hears from trials on to the observers, and books those that died.

        Takes the place of Tune's own progress lines, which it would print whatever its verbosity.
        """

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return tune.Callback, ()  # Tune stores what it is given, and observers hold threads and bars

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            _tell(observers, "on_trial_start", trial_of(trial))

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            if "row" in result:
                _tell(observers, "on_epoch", trial_of(trial), result["row"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            key, evaluation_key = sets.keys(trial_of(trial))
            record = ledger.record(key)
            if record is not None and record["evaluation_key"] == evaluation_key:  # else it was interrupted
                _tell(observers, "on_end", record)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            reason = f"given up after {WORKER_DEATHS + 1} attempts: {_last_line(trial)}"
            _tell(observers, "on_end", record_failure(trial_of(trial), sets, ledger, reason))

    interrupted = threading.Event()

    class Stoppable(tune.schedulers.FIFOScheduler):
        """Trials in their order; once interrupted, none is started, and each that runs ends with its epoch."""

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return tune.schedulers.FIFOScheduler, ()

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return self.STOP if interrupted.is_set() else self.CONTINUE

        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            if not interrupted.is_set():
                return super().choose_trial_to_run(tune_controller)
            for trial in tune_controller.get_trials():
                if trial.status == "PENDING":
                    tune_controller.stop_trial(trial)
            return None

    # Tune insists on a folder for its own state. Nothing is read back from it, here or on other nodes: resume goes by
    # the ledger.
    scratch = tempfile.mkdtemp(prefix="cellray-tune-")
    work = tune.with_parameters(_work, trials=todo, ledger=ledger, gpus=gpus, threads=max(int(cpus), 1))
    try:
        with _quiet_tune(), _first_interrupt(interrupted):
            tune.Tuner(
                tune.with_resources(work, {"cpu": cpus, "gpu": gpus}),
                param_space={"index": tune.grid_search(list(range(len(todo))))},
                tune_config=tune.TuneConfig(
                    reuse_actors=True, max_concurrent_trials=max_concurrent, scheduler=Stoppable()
                ),
                run_config=tune.RunConfig(
                    name=study.name,
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[News()],
                    failure_config=tune.FailureConfig(max_failures=WORKER_DEATHS),
                ),
            ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def _first_interrupt(interrupted: threading.Event) -> Iterator[None]:
    """The first SIGINT only sets the event; the next does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune without its banner, tables, tracebacks (a record has its reason) and its SIGINT handler."""
    switches = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    before = {name: os.environ.get(name) for name in switches}
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("ray.tune", "ray.train", "ray.air")}
    os.environ.update(switches)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\b")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(config: dict[str, Any], trials: list[Trial], ledger: Ledger, gpus: float, threads: int) -> None:
    """One trial in a Ray worker. Leaves nothing behind but opened data, for the next trial of the process."""
    from ray import tune

    trial = trials[config["index"]]
    sets = _open_once(trial.data.model_dump_json())
    try:
        run_trial(trial, sets, ledger, gpus=gpus, threads=threads, on_epoch=lambda row: tune.report({"row": row}))
    finally:
        release_memory()


@cache
def _open_once(config: str) -> Sets:
    return Sets.open(DataConfig.model_validate_json(config))


def _last_line(trial: Any) -> str:
    """The last line of what Tune knows of a trial's error."""
    try:
        with open(trial.error_file) as stream:
            return stream.read().strip().splitlines()[-1][:300]
    except (OSError, TypeError, IndexError):
        return "no more is known"


def _tell(observers: Sequence[Observer], what: str, *news: Any) -> None:
    """Tell every observer; one that fails must not cost the sweep anything."""
    for observer in observers:
        try:
            if (method := getattr(observer, what, None)) is not None:
                method(*news)
        except Exception:
            _log.exception("%s.%s failed; the sweep goes on", type(observer).__name__, what)

"""One trial in one process of Ray, or with several workers: Ray Train starts them beside each other, and the first one
writes the record."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from threading import Thread
from typing import Any

from cellray.device import pick_device, reason_of, release_memory
from cellray.errors import StorageError
from cellray.ledger import Ledger
from cellray.record import EpochRow
from cellray.scratch import scratch_folder
from cellray.study import DataConfig, Trial
from cellray.training import Team
from cellray.trial import Sets, record_failure, run_trial

RAY_TRAIN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process of its own; Tune starts the trial again anyway
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 otherwise: how late the end of a trial, or of a worker, is noticed
}
"""Set for Ray Train: each costs time in every trial and gives nothing here."""


def run_alone(
    trial: Trial, keys: tuple[str, str], ledger: Ledger, *, cpus: float, gpus: float = 0.0, **how: Any
) -> None:
    """Run one trial in this process, which keeps nothing but opened data for the next one.

    Args:
        trial: What to run.
        keys: Of the trial by the sweep's own images, which are compared with what is opened here.
        ledger: Where records go.
        cpus: For its threads.
        gpus: What it has of GPUs.
        how: As for `run_trial`.

    Raises:
        StorageError: If the storage gives or takes no files.
    """
    try:
        sets = _open_once(trial.data.model_dump_json())
        sets.expect(trial, keys)
        run_trial(trial, sets, ledger, gpus=gpus, threads=max(int(cpus), 1), **how)
    finally:
        release_memory()


@cache
def _open_once(config: str) -> Sets:
    return Sets.open(DataConfig.model_validate_json(config))


class WorkerError(Exception):
    """What one worker of a trial raised.

    Args:
        reason: In words, for the record.
        trace: Its traceback.
        is_echo: Whether it only lost touch with another worker.
        is_storage: Whether the storage gave or took no files.
    """

    def __init__(self, reason: str, trace: str, is_echo: bool, is_storage: bool = False) -> None:
        super().__init__(reason, trace, is_echo, is_storage)
        self.reason, self.trace, self.is_echo, self.is_storage = reason, trace, is_echo, is_storage


def run_with_workers(
    trial: Trial,
    keys: tuple[str, str],
    ledger: Ledger,
    *,
    workers: int,
    cpus: float,
    gpus: float,
    until: int | None = None,
    may_wait: int = 0,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    on_note: Callable[[str], None] = lambda words: None,
) -> None:
    """Train one trial with several workers; return when its record is there, or it paused or waits to be judged.

    Called in a process of a running Ray cluster that holds no resources itself: the workers take theirs all at once,
    and wait until they can. An error in a worker ends them all and becomes the trial's outcome `failed`; if the cluster
    takes a node back, the workers start again by themselves.

    Args:
        trial: What to run.
        keys: Of the trial by the sweep's own images; each worker compares them with what it opens.
        ledger: Where records go.
        workers: How many, at least 2.
        cpus: For each worker.
        gpus: For all workers together.
        until: Pause after this epoch; None: to the end.
        may_wait: So many trials may wait to be judged, see `run_trial`; beyond that the first worker judges.
        on_epoch: Told each epoch's row, in this thread. If it raises, the workers end with their next epoch.
        on_note: Told what else came to pass, in a sentence, in this thread.

    Raises:
        StorageError: If the storage gives or takes no files.
        TrainingFailedError: Ray's, if a worker's process died: run again, the trial goes on from its last checkpoint.
    """
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    os.environ.update(RAY_TRAIN)
    threads, share = max(int(cpus), 1), gpus / workers
    rows: Any = Queue(actor_options={"num_cpus": 0})

    def work() -> None:
        _work(trial, keys, ledger, share, threads, until, may_wait, lambda news: rows.put(news))

    scratch = scratch_folder("train")
    trainer = TorchTrainer(
        work,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": cpus} | ({"GPU": share} if gpus else {})
        ),
        # Nothing is written there. Tune tries again, not Train, unless the cluster took a node back.
        run_config=RunConfig(storage_path=scratch.name, failure_config=FailureConfig(max_failures=0)),
    )
    ended: Future[None] = Future()

    def train() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except Exception as error:
            ended.set_exception(error)
        with suppress(RayActorError):  # nobody listens any more
            rows.put(None)

    try:
        Thread(target=train, daemon=True).start()
        for news in iter(rows.get, None):
            if isinstance(news, str):
                on_note(news)
            else:
                on_epoch(news)
        ended.result()
    except WorkerGroupError as error:
        own = own_error(error.worker_failures)
        if own is None:
            raise
        if own.is_storage:
            raise StorageError(own.reason) from None
        record_failure(trial, Sets.open(trial.data), ledger, own.reason, own.trace)
    finally:
        rows.shutdown(force=True)
        scratch.cleanup()


def own_error(failures: dict[int, Exception]) -> WorkerError | None:
    """The error of the trial itself among its workers' by rank; None if a process died, or its end was all they saw."""
    if not all(isinstance(error, WorkerError) for error in failures.values()):
        return None
    errors = [error for _, error in sorted(failures.items()) if isinstance(error, WorkerError)]
    return next((error for error in errors if not error.is_echo), None)


def _work(
    trial: Trial,
    keys: tuple[str, str],
    ledger: Ledger,
    gpus: float,
    threads: int,
    until: int | None,
    may_wait: int,
    tell: Callable[[EpochRow | str], None],
) -> None:
    """One worker's part."""
    from torch import distributed

    sets = Sets.open(trial.data)
    sets.expect(trial, keys)
    try:
        run_trial(
            trial,
            sets,
            ledger,
            gpus=gpus,
            threads=threads,
            on_epoch=tell,
            on_note=tell,
            until=until,
            may_wait=may_wait,
            team=Team.joined(),
        )
    except StorageError as error:
        raise WorkerError(str(error), traceback.format_exc(), is_echo=False, is_storage=True) from None
    except Exception as error:
        # Gloo's errors have no type of their own.
        is_echo = isinstance(error, distributed.DistError) or "gloo" in str(error)
        raise WorkerError(reason_of(error, pick_device(gpus)), traceback.format_exc(), is_echo) from None

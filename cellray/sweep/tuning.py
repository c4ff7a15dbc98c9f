"""What Ray Tune needs to be quiet, to be interruptible, and to take every death of a worker for one."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cellray.processes import Flag, answer_ending

WORKER_DEATHS = 2
"""A trial whose process dies (out of memory, lost node) goes on from its checkpoint so often; then it has failed. While
it trains, the loss of a node that its cluster took back (preemption) doesn't count."""
PENDING = 32
"""Trials that Tune asks resources for at once: they tell an autoscaling cluster how far it may grow."""


@contextmanager
def first_interrupt(interrupted: Flag) -> Iterator[None]:
    """The first signal that asks this process to end only sets the flag; the next does what it did before."""

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        restore()

    restore = answer_ending(note)
    try:
        yield
    finally:
        restore()


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Tune without its banner, tables, tracebacks (a record has its reason) and its SIGINT handler."""
    switches = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # of its state, which nobody reads
        "TUNE_MAX_PENDING_TRIALS_PG": str(PENDING),
    }
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


@contextmanager
def out_of_memory_is_a_death() -> Iterator[None]:
    """Ray's memory monitor kills a worker with an error that Tune doesn't know, and at which it would end the sweep.

    In here it counts as what it is: the death of that worker, whose trial is tried again.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    plain = RayActorManager._actor_task_failed

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception).strip().splitlines()[0])
        plain(self, tracked_actor_task=tracked_actor_task, exception=exception)

    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign]
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = plain  # type: ignore[method-assign]


def is_starting(trial: Any, tune_controller: Any) -> bool:
    """Whether a pending trial has its resources and a process of its own is starting on them."""
    try:
        controller = tune_controller._tune_controller
        actor = controller._trial_to_actor.get(trial)
        return actor is not None and bool(controller._actor_manager.is_actor_started(actor))
    except AttributeError:  # private, so it may change
        return False


def stop_pending(trial: Any, tune_controller: Any) -> None:
    """Stop a trial that hasn't begun, and kill a process that is starting for it: Tune would wait up to 10 s."""
    try:
        controller = tune_controller._tune_controller
        actor, actors = controller._trial_to_actor.get(trial), controller._actor_manager
    except AttributeError:  # private, so it may change
        actor = None
    tune_controller.stop_trial(trial)
    if actor is not None and actors.is_actor_started(actor):
        actors.remove_actor(actor, kill=True)


def cause_of_death(error_file: str | None) -> str:
    """What Tune knows of a trial's error, in a line."""
    try:
        return last_words(Path(error_file or "").read_text())
    except OSError:
        return last_words("")


def last_words(error: str) -> str:
    """The line of an error's text that says what a process died of."""
    lines = error.strip().splitlines()
    memory = [line for line in lines if "running low on memory" in line]
    return ([*memory, *lines[-1:]] or ["no more is known"])[0].strip()[:300]

"""Which processes live, how this one is asked to end, and how often it looks for garbage."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end: of Ctrl-C, of whoever manages it, of a terminal that is closed."""


class Flag:
    """What a signal may set, whatever the code does that it interrupts. A `threading.Event` has a lock: held by that
    code, it is waited for for ever; and an interrupt in the moment in which it is taken leaves it locked."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is."""
        return self._is_set

    def set(self) -> None:
        """Set it."""
        self._is_set = True

    def clear(self) -> None:
        """As it was in the beginning."""
        self._is_set = False


asked_to_end = Flag()
"""Set by such a signal, while `answer_ending` holds."""


def is_running(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def answer_ending(act: Callable[[int, FrameType | None], object]) -> Callable[[], None]:
    """Have a function answer the signals that ask this process to end, but not one that is ignored (`nohup`).

    Args:
        act: A handler of signals.

    Returns:
        What lets them be answered as before. Outside of the main thread, whose signals are, nothing changes.
    """
    before = {number: signal.getsignal(number) for number in ENDING}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in reversed(before.items()):  # Ctrl-C at last, which may end this very loop
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: one of C

    def answer(number: int, frame: FrameType | None) -> None:
        asked_to_end.set()
        act(number, frame)

    asked_to_end.clear()
    for number in before:
        signal.signal(number, answer)
    return restore


@contextmanager
def unbroken() -> Iterator[None]:
    """What asks this process to end waits for the end of a block, as one that starts a process."""
    came: list[int] = []
    restore = answer_ending(lambda number, _: came.append(number))
    try:
        yield
    finally:
        restore()
        for number in came[:1]:
            signal.raise_signal(number)


def collect_seldom() -> None:
    """Look for garbage after 50,000 new objects, not after 700, in a process that is cellray's alone.

    Imports leave some 500,000 objects and no garbage: to look for it all the while takes a third of a command's start.
    """
    gc.set_threshold(50_000, 10, 10)


@contextmanager
def no_garbage_search() -> Iterator[None]:
    """While Ray is shut down: a handle of it that another thread finds among garbage then ends the process."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

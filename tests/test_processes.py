"""How a process is asked to end, in whichever moment that is."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from cellray.processes import ENDING, answer_ending, unbroken


def starts_something() -> None:
    with unbroken():
        pass


def at_step(step: int, act: Callable[[], object], code: Callable[[], object]) -> bool:
    """Do something when some code has come so far; whether it comes so far. Signals are answered as before then."""
    inside, left = False, step

    def look(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        if inside:
            left -= 1
            if left == -1:
                act()

    before = {number: signal.getsignal(number) for number in ENDING}
    sys.setprofile(look)
    try:
        inside = True
        code()
        inside = False
    except KeyboardInterrupt:
        inside = False
    sys.setprofile(None)
    for number, handler in before.items():
        signal.signal(number, handler)
    return left < 0


def interrupt() -> None:
    raise KeyboardInterrupt


def signal_at_every_step() -> None:
    def starts_and_is_asked_to_end() -> None:
        restore = answer_ending(lambda number, frame: None)
        starts_something()
        restore()

    for step in itertools.count():
        if not at_step(step, lambda: signal.raise_signal(signal.SIGINT), starts_and_is_asked_to_end):
            print(step)
            return


def test_an_interrupt_in_no_moment_hangs_what_comes_after_it():
    for step in itertools.count():
        was_there = at_step(step, interrupt, starts_something)
        after = threading.Thread(target=starts_something, daemon=True)
        after.start()
        after.join(5.0)
        assert not after.is_alive(), f"an interrupt at step {step} hangs what comes next"
        if not was_there:
            break
    assert step > 10


def test_a_signal_in_no_moment_hangs_what_answers_it():
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import test_processes as t; "
    code += f"t.{signal_at_every_step.__name__}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert int(done.stdout) > 20


@pytest.mark.slow
def test_no_thread_looks_for_garbage_while_ray_is_shut_down():
    """A handle of Ray that it let go then would end the process with 1 and a line of Ray's."""
    code = """
import gc, ray
from cellray.sweep import connect
searched, shutdown = [], ray.shutdown
def observed():
    searched.append(gc.isenabled())
    shutdown()
with connect():
    ray.shutdown = observed
print(searched, gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[False] True\n"

"""Two processes that wait for work, joined by gloo: what one member of a team can't do alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch


class Pair:
    """Calls a function in both processes at once: ``pair(function, ...)`` is what each returned, by rank."""

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes = pipes

    def __call__(self, function: Callable[..., Any], *args: Any, **settings: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args, settings))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(120), f"no answer to {function.__name__}"
            answers.append(pipe.recv())
        errors = [error for _, error in answers if error]
        assert not errors, "\n".join(errors)
        return [value for value, _ in answers]


def _serve(rank: int, size: int, meeting: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    while (work := pipe.recv()) is not None:
        function, args, settings = work
        try:
            pipe.send((function(*args, **settings), None))
        except Exception:
            pipe.send((None, f"worker {rank}: {traceback.format_exc()}"))
    torch.distributed.destroy_process_group()


@contextmanager
def start_pair(folder: Path, size: int = 2) -> Iterator[Pair]:
    """The processes, which end with the block."""
    context = get_context("spawn")
    ends = [context.Pipe() for _ in range(size)]
    processes = [
        context.Process(target=_serve, args=(rank, size, str(folder / "meeting"), theirs), daemon=True)
        for rank, (_, theirs) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    try:
        yield Pair([ours for ours, _ in ends])
    finally:
        for ours, _ in ends:
            ours.send(None)
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()

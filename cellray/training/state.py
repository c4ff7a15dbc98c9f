"""Where a training stands, as its checkpoint `last` keeps it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cellray.errors import CheckpointError
from cellray.record import EpochRow
from cellray.torch_later import torch

State = dict[str, Any]
"""A checkpoint's content: tensors and plain values."""


@dataclass
class TrainingRun:
    """Where a training stands; what the checkpoint `last` holds."""

    step: int = 0
    lr: float = 0.0
    """Peak learning rate, given or found by the range test."""
    range_test: dict[str, list[float]] | None = None
    term_scales: list[float] | None = None
    """What each term of a balanced loss is multiplied by, besides its weight."""
    history: list[EpochRow] = field(default_factory=list)
    best_dice: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    compiler: str = ""
    """By what the network was compiled for its steps; empty where it began without, and so goes on without."""
    compile_s: float = 0.0
    """That this took, at the start and each time that the training went on."""
    compiled_steps: int = 0
    diverged: str | None = None
    """Why training ended early: where the loss stopped being a number."""


def training_run(last: bytes) -> TrainingRun:
    """Where a training stands, from the bytes of its checkpoint `last`.

    Raises:
        CheckpointError: If it can't be read.
    """
    with read_as("last"):
        return TrainingRun(**from_bytes(last)["run"])


@contextmanager
def read_as(name: str) -> Iterator[None]:
    """What goes wrong while the content of a checkpoint is read and used in here is a `CheckpointError`."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # the device's fault
        raise
    except Exception as error:  # torch and zip files have many names for it
        first = str(error).partition("\n")[0][:200]
        raise CheckpointError(name, first or type(error).__name__) from error


def to_bytes(state: Mapping[str, object]) -> bytes:
    """A checkpoint's content as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, device: torch.device | str = "cpu") -> State:
    """The content of a checkpoint, its tensors on a device."""
    state: State = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state

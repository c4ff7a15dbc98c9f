"""Several processes that train one trial together, each with its own rows of every batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cellray.errors import StudyError
from cellray.training.batch_norm import share_batch_norm

_T = TypeVar("_T")


@dataclass(frozen=True)
class Team:
    """One member's view of the processes that train one trial together.

    Everything here but `share` and `leads` is done by all members at the same point of their work. Each has the same
    network and takes the same decisions; the first one writes. Alone, nothing costs anything.
    """

    rank: int = 0
    """Place of this process among the members, from 0."""
    size: int = 1
    """How many they are."""

    @classmethod
    def joined(cls) -> Team:
        """The members of torch's process group, which must have been started."""
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the one member that writes."""
        return self.rank == 0

    def share(self, n: int, rank: int | None = None) -> slice:
        """This member's part of n things, or another's: parts are contiguous, their lengths differ by 1 at most."""
        rank = self.rank if rank is None else rank
        return slice(n * rank // self.size, n * (rank + 1) // self.size)

    def check_batch(self, batch_size: int) -> None:
        """Raise `StudyError` if a batch has fewer rows than there are members."""
        if batch_size < self.size:
            raise StudyError(
                f"training.batch_size is {batch_size}, but {self.size} workers train the trial together and each needs "
                f"a crop of every batch: take at most {batch_size} for resources.workers"
            )

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network as it is called in a training step: its batch norm sees whole batches, gradients are averaged.

        `model` itself is changed (not its weights, nor their names) and shares them with what is returned.
        """
        if self.size == 1:
            return model
        share_batch_norm(model, device)
        # Buffers are the same everywhere, since all members normalise by the same statistics.
        devices = [torch.cuda.current_device()] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)

    def gather(self, own: Tensor, n: int) -> Tensor:
        """A whole batch of n rows from each member's share of it; gradients flow to this member's own rows alone.

        So the loss of the whole batch, computed by each member, has a gradient in each that is one part of the whole
        gradient: the parts are to be added up, not averaged.
        """
        if self.size == 1:
            return own
        padded = own.new_zeros((math.ceil(n / self.size), *own.shape[1:]))  # gloo takes one length only
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        shares = [self.share(n, rank) for rank in range(self.size)]
        rows = [part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the members."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def merge(self, own: Sequence[_T]) -> list[_T]:
        """All members' items, in the order of their ranks."""
        if self.size == 1:
            return list(own)
        parts: list[Sequence[_T]] = [[]] * self.size
        distributed.all_gather_object(parts, own)
        return [item for part in parts for item in part]

    def first(self, own: _T) -> _T:
        """What the first member has, whatever the others have: so all decide alike."""
        if self.size == 1:
            return own
        said = [own]
        distributed.broadcast_object_list(said, src=0)
        return said[0]


ALONE = Team()
"""One process that trains its trial by itself."""

"""torch, imported when something of it is first used: to check a study's file or to report on it, nothing is computed,
and to import torch takes longer than all else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:
    from importlib import import_module

    class _Later:
        """A module that is imported when something of it is asked for; that costs less than a microsecond each time."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    torch, nn, functional, Tensor = _Later("torch"), _Later("torch.nn"), _Later("torch.nn.functional"), Any

__all__ = ["Tensor", "functional", "nn", "torch"]

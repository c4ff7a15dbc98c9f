"""A loss with its weights and settings, ready for a training step; and where a name leads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cellray.errors import StudyError, unknown
from cellray.losses import (
    LOSSES,
    RELEASED,
    LossFunction,
    activated_twice,
    bce_loss,
    border_ce_loss,
    boundary_loss,
    focal_loss,
)
from cellray.losses.maps import MAPS
from cellray.outside import find_outside, is_dotted

SURE_BACKGROUND = -50.0
"""The logit of a pixel that counts for nothing: it adds 0 to every sum and gets no gradient."""
PIXEL_MEANS = frozenset({bce_loss, focal_loss, border_ce_loss, boundary_loss})
"""Losses that are averages over all pixels of a batch and nothing else."""


@dataclass(frozen=True)
class Term:
    """One loss function with its weight (lambda) in the sum and its settings."""

    weight: float
    name: str
    function: LossFunction
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Loss:
    """What a training minimises: the weighted sum of its terms, as a function of raw logits and a mask."""

    terms: tuple[Term, ...]
    double_activation: bool = False
    """As the reference study's code: the loss sees the probability activated once more."""

    @property
    def maps(self) -> tuple[str, ...]:
        """Maps of the true cells that the terms need, see `cellray.losses.maps`."""
        wanted = {name for term in self.terms for name in map_names(term.function)}
        return tuple(name for name in MAPS if name in wanted)

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        maps: Mapping[str, Tensor] | None = None,
        void: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss of logits (N, 1, H, W), target of 0 and 1 and the maps called `self.maps`, all of one shape.

        Pixels of `void` count for nothing: the terms see them as background that the network is sure of, and a term
        that is an average over pixels is one over the others.
        """
        total = logits.new_zeros((), dtype=torch.float32)
        for term, value in zip(self.terms, self.parts(logits, target, maps, void), strict=True):
            if value is not None:
                total = total + term.weight * value
        return total

    def parts(
        self,
        logits: Tensor,
        target: Tensor,
        maps: Mapping[str, Tensor] | None = None,
        void: Tensor | None = None,
    ) -> list[Tensor | None]:
        """Each term's own value, before its weight; None where the weight is 0."""
        if self.double_activation:
            logits = activated_twice(logits)
        n_counting = logits.numel()
        if void is not None:
            logits, target = logits.masked_fill(void, SURE_BACKGROUND), target.masked_fill(void, 0)
            n_counting -= int(void.sum())

        def value_of(term: Term) -> Tensor:
            extra = ((maps or {})[name] for name in map_names(term.function))
            value = term.function(logits, target, *extra, **term.settings)
            if term.function in PIXEL_MEANS and 0 < n_counting < logits.numel():
                value = value * (logits.numel() / n_counting)
            return value

        return [value_of(term) if term.weight else None for term in self.terms]


def map_names(function: LossFunction) -> tuple[str, ...]:
    """The maps a loss asks for: its parameters after `logits` and `target`.

    Raises:
        StudyError: If the function does not look like a loss, or there is no map of that name.
    """
    name = getattr(function, "__name__", "this object")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise StudyError(f"{name} is no loss: expected a function (logits, target, *, settings...)") from None
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        raise StudyError(
            f"{name} is no loss: expected (logits, target, *, settings...), got {inspect.signature(function)}"
        )
    for extra in positional[2:]:
        if extra not in MAPS:
            words = unknown("map", extra, MAPS)
            raise StudyError(f"loss {name}: {words}; settings come after a `*` in the signature")
    return tuple(positional[2:])


def find_function(name: str) -> LossFunction:
    """The function that a study means by `name`: a key of `LOSSES` or `RELEASED`, or ``package.module:function``.

    A path outside the package runs that module's code.

    Raises:
        StudyError: If nothing is there, or what is there is no loss.
    """
    if not is_dotted(name):
        known = LOSSES | RELEASED
        if name not in known:
            raise StudyError(unknown("loss", name, known))
        return known[name]
    function = find_outside(name, "loss")
    map_names(function)
    return function

"""A loss with its weights and settings, ready for a training step; and where a name leads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from cellray.errors import StudyError, unknown
from cellray.losses import LOSSES, RELEASED, LossFunction, activated_twice
from cellray.losses.maps import MAPS
from cellray.outside import find_outside, is_dotted
from cellray.torch_later import Tensor, torch

SURE_BACKGROUND = -50.0
"""The logit of a pixel that counts for nothing: it adds 0 to every sum and gets no gradient."""
VOID = "void"
"""Parameter of losses that count pixels or background: where those pixels are."""


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

        Pixels of `void` count for nothing: the terms see them as background that the network is sure of, and those that
        count pixels or background get them as `void`.
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
        if void is not None:
            logits, target = logits.masked_fill(void, SURE_BACKGROUND), target.masked_fill(void, 0)

        def value_of(term: Term) -> Tensor:
            extra = ((maps or {})[name] for name in map_names(term.function))
            left_out = {} if void is None or VOID not in _positional(term.function) else {VOID: void}
            return term.function(logits, target, *extra, **left_out, **term.settings)

        return [value_of(term) if term.weight else None for term in self.terms]


def map_names(function: LossFunction) -> tuple[str, ...]:
    """The maps a loss asks for: its parameters after `logits` and `target`, but for `void`.

    Raises:
        StudyError: If the function does not look like a loss, or there is no map of that name.
    """
    names = tuple(name for name in _positional(function)[2:] if name != VOID)
    for extra in names:
        if extra not in MAPS:
            words = f"{unknown('map', extra, MAPS)}; settings come after a `*` in the signature"
            raise StudyError(f"loss {getattr(function, '__name__', 'this object')}: {words}")
    return names


def _positional(function: LossFunction) -> list[str]:
    """The parameters of a loss that aren't settings."""
    name = getattr(function, "__name__", "this object")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise StudyError(f"{name} is no loss: expected a function (logits, target, *, settings...)") from None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in signature.parameters.values() if parameter.kind in kinds]
    if len(names) < 2:
        raise StudyError(f"{name} is no loss: expected (logits, target, *, settings...), got {signature}")
    return names


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

"""Does each setting of a loss do what its name says?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cellray.losses.bound import Loss, Term
from cellray.losses.check import scenes
from cellray.losses.check.looking import NEAR, LossError, Verdict, gradient_of, only

BACKGROUND_HEAVIER = {"fp_weight": True, "background_weight": True, "fn_weight": False, "cell_weight": False}
"""Settings whose name promises a direction: whether raising them strengthens the pull on background pixels."""

PARTNER = {
    "fp_weight": "fn_weight",
    "fn_weight": "fp_weight",
    "background_weight": "cell_weight",
    "cell_weight": "background_weight",
}


def check_weights(loss: Loss) -> Iterator[Verdict]:
    """Does each weight move the gradient the way its name says, and has every other number an effect at all?"""
    moves, all_pass = [], True
    for term in loss.terms:
        for status, figure, reason in _judge_term(loss, term):
            name = f"{term.name}: " if len(loss.terms) > 1 else ""
            if status == "pass":
                moves.append(name + figure)
            else:
                all_pass = False
                yield status, name + figure, name + reason
    if all_pass:
        yield "pass", ", ".join(moves) or "no weights", ""


def _judge_term(loss: Loss, term: Term) -> Iterator[Verdict]:
    if not term.weight:
        yield "warning", "weight 0", "its weight in the sum is 0, so it does nothing."
        return
    alone = only(loss, term)
    for setting, value in _numbers(term).items():
        if setting in BACKGROUND_HEAVIER:
            yield _direction(alone, setting, value)
        else:
            yield _effect(alone, setting, value)


def _numbers(term: Term) -> dict[str, float]:
    """The settings of a term that are numbers, as they stand."""
    parameters = inspect.signature(term.function).parameters.values()
    settings: dict[str, object] = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings |= term.settings
    return {name: v for name, v in settings.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _direction(loss: Loss, setting: str, value: float) -> Verdict:
    """Does a larger weight shift the gradient towards the pixels that it names?"""
    raised = 2 * value or 1.0
    before, after = _balance(loss), _balance(_with(loss, setting, raised))
    if before == after and before in (0, math.inf):  # its partner is 0: there is nothing to shift
        return _effect(loss, setting, value)
    factor = after / before if before else math.inf
    figure, partner = f"{setting} {factor:.2g}", PARTNER[setting]
    moved = f"Raising {setting} from {value:g} to {raised:g}"
    if not abs(factor - 1) > NEAR:
        if _cancels(loss, setting, raised, value):
            return (
                "failure",
                figure,
                f"{moved} does exactly what raising {partner} does: only their sum counts, the two weights cancel. "
                "Flattening both classes into one does this, since it makes false positives equal false negatives.",
            )
        return "failure", figure, f"{moved} leaves the gradient on background against cell pixels as it was: no effect."
    if (factor > 1) != BACKGROUND_HEAVIER[setting]:
        return (
            "failure",
            figure,
            f"{moved} multiplies the gradient on background against cell pixels by {factor:.2g}: it acts the wrong "
            f"way, as {partner} should.",
        )
    return "pass", figure, ""


def _balance(loss: Loss) -> float:
    """Gradient on background pixels over that on cell pixels."""
    scene = scenes.ordinary()
    size = _ordinary_gradient(loss).abs()
    cells = (size * scene.target).sum().item()
    return (size * (1 - scene.target)).sum().item() / cells if cells else math.inf


def _cancels(loss: Loss, setting: str, raised: float, value: float) -> bool:
    """Whether raising a weight changes the gradient, but just as raising its partner by as much does."""
    (term,) = loss.terms
    rival = _numbers(term).get(PARTNER[setting])
    if rival is None:
        return False
    old, one, other = (
        _ordinary_gradient(changed)
        for changed in (loss, _with(loss, setting, raised), _with(loss, PARTNER[setting], rival + raised - value))
    )
    near = NEAR * one.abs().max()
    return bool((one - other).abs().max() < near < (one - old).abs().max())


def _effect(loss: Loss, setting: str, value: float) -> Verdict:
    """Does another value of a number change anything, with or without cells?"""
    before = _samples(loss)
    tried = [2 * value, value + 1, value / 2] if isinstance(value, float) else [2 * value, value + 1, value - 1]
    for other in tried:
        try:
            after = _samples(_with(loss, setting, other))
        except LossError:
            continue  # outside its range
        if any((new - old).abs().max() > 1e-5 * old.abs().max() for new, old in zip(after, before, strict=True)):
            return "pass", f"{setting} matters", ""
    values = ", ".join(f"{other:g}" for other in tried)
    return (
        "warning",
        f"{setting} 1",
        f"{setting} has no effect here: with {value:g}, {values}, value and gradient stay the same.",
    )


def _samples(loss: Loss) -> list[Tensor]:
    """Values and gradients with and without cells."""
    logits = scenes.ordinary_logits()
    seen = [gradient_of(loss, logits, scenes.ordinary()), gradient_of(loss, logits[:1], scenes.empty())]
    return [part for value, gradient in seen for part in (torch.tensor(value), gradient)]


def _ordinary_gradient(loss: Loss) -> Tensor:
    return gradient_of(loss, scenes.ordinary_logits(), scenes.ordinary())[1]


def _with(loss: Loss, setting: str, value: float) -> Loss:
    """A loss of one term, with one of its settings changed."""
    (term,) = loss.terms
    return replace(loss, terms=(replace(term, settings={**term.settings, setting: value}),))

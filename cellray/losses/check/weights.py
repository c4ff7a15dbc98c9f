"""Does each setting of a loss do what its name says?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise

import torch
from torch import Tensor

from cellray.losses import LOSSES
from cellray.losses.bound import Loss, Term
from cellray.losses.check import scenes
from cellray.losses.check.looking import NEAR, LossError, Verdict, gradient_of, only, value_of

BACKGROUND_HEAVIER = {"fp_weight": True, "background_weight": True, "fn_weight": False, "cell_weight": False}
"""Settings whose name promises a direction: whether raising them strengthens the pull on background pixels."""

PARTNER = {
    "fp_weight": "fn_weight",
    "fn_weight": "fp_weight",
    "background_weight": "cell_weight",
    "cell_weight": "background_weight",
}

PROMISED: dict[str, tuple[str, dict[str, float]]] = {
    **{name: (name, {}) for name in LOSSES},
    "ce": ("bce", {}),
    "cross_entropy": ("bce", {}),
    "overlap": ("dice", {}),
    "iou": ("dice", {}),
    "jaccard": ("dice", {}),
    "lovasz": ("lovasz_hinge", {}),
    "topk": ("dice_topk", {"dice_weight": 0.0}),
    "border": ("border_ce", {}),
    "global": ("dice_ce", {}),
    "blob": ("blob", {"global_weight": 0.0}),
    "region": ("cc_dice_ce", {"global_weight": 0.0}),
}
"""What `<part>_weight` of a sum promises to weigh: a registered loss with some settings."""

EXPONENTS = ("exponent", "gamma", "power")
"""Settings whose name promises an exponent. A gamma may also be a weight; then the loss is a straight line in it."""

UNLIKE = 0.02
"""Of two weights that are swapped, each has a gradient that is by more than this more like the other's part."""

TRIED = (0.6, 1.7, 2.8)
"""Exponents, equally far apart. None is 1 or another's inverse, at which a power and its complement look alike."""


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
            yield _power_of_the_index(alone, setting) or _effect(alone, setting, value)
    yield from _swapped(alone)


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
            f"{moved} lowers {'precision' if BACKGROUND_HEAVIER[setting] else 'recall'}: it multiplies the gradient on "
            f"background against cell pixels by {factor:.2g}, which is the wrong way, as {partner} should.",
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


def _power_of_the_index(loss: Loss, setting: str) -> Verdict | None:
    """A failure if an exponent bends a score instead of what is missing from it: `1 - S^g` in the place of `(1 - S)^g`.

    Near perfection that shows: `1 - S^g` is g times as much as is missing, so it rises with g in a straight line, and
    falls in proportion to the errors. `(1 - S)^g` does neither.
    """
    if setting not in EXPONENTS:
        return None
    scene = scenes.ordinary()
    unsure = [scenes.ordinary_logits(), *(scene.surely(size) for size in (5.0, 7.0))]
    try:
        costs = [[value_of(_with(loss, setting, tried), z, scene) for z in unsure] for tried in TRIED]
    except LossError:
        return None
    wrong, near, nearer = ([b - a for a, b in pairwise(cost)] for cost in zip(*costs, strict=True))
    straight = abs(wrong[0] - wrong[1]) < NEAR * abs(wrong[0])
    if straight or not (near[0] > 0 and nearer[0] > 0):
        return None
    rises_evenly = abs(near[0] - near[1]) < 0.1 * near[0]
    # From |z| = 5 to 7 the probability of the wrong class falls by this factor.
    factor = (1 + math.exp(7)) / (1 + math.exp(5))
    falls_evenly = abs(math.log(near[0] / nearer[0]) / math.log(factor) - 1) < 0.05
    if not (rises_evenly and falls_evenly):
        return None
    return (
        "failure",
        f"{setting} of the score",
        f"Raising {setting} raises the cost of a nearly perfect prediction in proportion: it is an exponent of the "
        "score, 1 - score^exponent, where what is missing should have it, (1 - score)^exponent.",
    )


def _swapped(loss: Loss) -> Iterator[Verdict]:
    """A failure for each two weights of a sum of which each weighs the part that the other names."""
    (term,) = loss.terms
    settings = _numbers(term)
    parts = {s: PROMISED[s.removesuffix("_weight")] for s in settings if s.removesuffix("_weight") in PROMISED}
    parts = {s: part for s, part in parts.items() if s.endswith("_weight")}
    if len(parts) < 2:
        return
    base = _ordinary_gradient(loss)
    does = {s: _ordinary_gradient(_with(loss, s, settings[s] + 1)) - base for s in parts}
    says = {s: _ordinary_gradient(_registered(*part)) for s, part in parts.items()}
    for one, other in combinations(parts, 2):
        if all(
            _likeness(does[mine], says[its]) > _likeness(does[mine], says[mine]) + UNLIKE
            for mine, its in ((one, other), (other, one))
        ):
            yield (
                "failure",
                f"{one} and {other} swapped",
                f"Raising {one} adds what {other} should add, and the other way round: the two weights are swapped.",
            )


def _registered(name: str, settings: dict[str, float]) -> Loss:
    return Loss((Term(1.0, name, LOSSES[name], settings),))


def _likeness(one: Tensor, other: Tensor) -> float:
    """Cosine between two gradients, image by image, their mean."""
    return torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1)).mean().item()


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
    # What weighs nothing is asleep; and a limit may be out of reach here, while an exponent always bends something.
    asleep = any(other == 0 for name, other in _numbers(loss.terms[0]).items() if name != setting)
    return (
        "failure" if setting in EXPONENTS and not asleep else "warning",
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

"""Does a loss take logits and activate them once, by a sigmoid, and does being right cost nothing?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from cellray.losses.bound import Loss
from cellray.losses.check import scenes
from cellray.losses.check.looking import FAINT, NEAR, Verdict, floor_of, gradient_of, only, value_of

UNSURE, SURE = 1.0, 6.0
"""Logits of a cell or of background that is just taken for the other, and clearly."""

TAIL, END = (2.0, 3.0, 4.0), 6.5
"""Logits at which a wrong pixel is ever surer, and one that is as good as the end, before anything is clamped. A
sigmoid goes there as exp(-|z|), tanh as exp(-2 |z|)."""

TOO_STEEP = 1.9
"""Power of exp(-|z|), close to the 2 of tanh: focal losses of some exponents come to 1.8."""

SAME_POWER = 0.06
"""Powers between other logits differ by less where the way is exponential."""


def check_probabilities(loss: Loss) -> Iterator[Verdict]:
    """Does it take logits? One that takes probabilities is at its floor when it is fed the mask itself."""
    scene = scenes.ordinary()
    fed_mask = value_of(loss, scene.target, scene)
    unsure = value_of(loss, torch.full_like(scene.target, 0.5), scene)
    figure = f"{fed_mask:.3g} at z = mask"
    if abs(fed_mask - floor_of(loss)) <= NEAR * abs(unsure):
        yield (
            "failure",
            figure,
            f"Fed the mask itself (0 and 1) it costs {fed_mask:.3g}, as if that were perfect: it takes probabilities, "
            "not logits.",
        )
    else:
        yield "pass", figure, ""


def check_double_activation(loss: Loss) -> Iterator[Verdict]:
    """Is a sigmoid or softmax applied to what already is a probability?"""
    found = _second_activation(loss)
    terms = [] if found or len(loss.terms) == 1 else [term for term in loss.terms if term.weight]
    for term in terms:
        guilty = _second_activation(only(loss, term))
        if guilty:
            found = guilty[0], f"{term.name}: {guilty[1]}"
            break
    if found:
        yield "failure", *found
    else:
        yield "pass", "one activation", ""


def check_activation(loss: Loss) -> Iterator[Verdict]:
    """Is the activation a sigmoid: does it learn from what is only just wrong, and as fast as cellray reads logits?"""
    for term in [term for term in loss.terms if term.weight]:
        alone, name = only(loss, term), f"{term.name}: " if len(loss.terms) > 1 else ""
        dead = _dead_side(alone)
        if dead:
            yield "failure", name + "not learnt", name + dead
            return
        power = _tail_power(alone)
        if power > TOO_STEEP:
            told = (
                f"Wrong pixels approach their highest cost as exp(-{power:.1f} |z|), a sigmoid's as exp(-|z|): it "
                "takes logits for larger than they are, as with tanh in the place of a sigmoid."
            )
            yield "failure", f"{name}exp(-{power:.1f} |z|)", name + told
            return
    yield "pass", "a sigmoid's", ""


def check_floor(loss: Loss) -> Iterator[Verdict]:
    """Does a perfect prediction cost what it should, 0 or the stated floor, and nothing else less?"""
    scene, floor = scenes.ordinary(), floor_of(loss)
    sure = scene.surely()
    perfect = value_of(loss, sure, scene)
    others = {
        "z = 0 everywhere": torch.zeros_like(sure),
        "no cell anywhere": torch.full_like(sure, -50.0),
        "cell everywhere": torch.full_like(sure, 50.0),
        "the inverted mask": -sure,
    }
    costs = {name: value_of(loss, logits, scene) for name, logits in others.items()}
    near = NEAR * abs(costs["z = 0 everywhere"])
    cheapest = min(costs, key=lambda name: costs[name])
    figure = f"{perfect:.3g} (z = 0: {costs['z = 0 everywhere']:.3g})"
    # Written so that NaN fails.
    if not abs(perfect - floor) <= near:
        told = f"its stated floor {floor:.3g}" if floor else "0, and it states no other floor"
        yield "failure", figure, f"A perfect prediction at |z| = 50 costs {perfect:.3g}, expected {told}."
    elif costs[cheapest] < perfect - near:
        yield "failure", figure, f"Predicting {cheapest} costs {costs[cheapest]:.3g}, less than a perfect prediction."
    elif floor > near:
        yield "warning", figure, f"A perfect prediction costs {perfect:.3g}, as stated, not 0."
    else:
        yield "pass", figure, ""


def _second_activation(loss: Loss) -> tuple[str, str] | None:
    """Figure and reason if the loss sees a probability that was activated twice, else None.

    Three signs together. Stuck: a perfect prediction isn't free, yet has no gradient left. Confined: a wrong one costs
    no more at |z| = 50 than at 12. And not merely shifted: one pixel's cost isn't linear in its probability, as it
    is in an overlap of probabilities that were activated once, whatever is added to it.
    """
    scene, logits = scenes.ordinary(), scenes.ordinary_logits()
    perfect, gradient = gradient_of(loss, scene.surely(), scene)
    unsure = value_of(loss, torch.zeros_like(logits), scene)
    usual = gradient_of(loss, logits, scene)[1].abs().max().item()
    wrong, less_wrong = (value_of(loss, scene.surely(-size), scene) for size in (50.0, 12.0))
    stuck = perfect > NEAR * abs(unsure) and gradient.abs().max().item() < FAINT * usual
    confined = abs(wrong - less_wrong) < NEAR * abs(wrong)
    if not stuck or not confined or _is_linear_in_one_probability(loss):
        return None
    return f"{perfect:.3g} to {wrong:.3g}", (
        f"However sure the logits, it stays between {perfect:.3g} (all right) and {wrong:.3g} (all wrong), and its "
        "gradient dies there: a second activation is applied to what already is a probability."
    )


def _is_linear_in_one_probability(loss: Loss) -> bool:
    """Whether a quarter of the way from p = 0 to p = 1 at one cell pixel is a quarter of the way in the loss.

    After a second activation it is 0.235 (softmax of p and 1 - p) or 0.269 (sigmoid of p) of the way, or further off.
    """
    scene = scenes.ordinary()
    row, column, _ = scenes.ORDINARY[0][0]

    def cost(z: float) -> float:
        logits = torch.zeros_like(scene.target)
        logits[0, 0, row, column] = z
        return value_of(loss, logits, scene)

    none, quarter, whole = cost(-50.0), cost(math.log(0.25 / 0.75)), cost(50.0)
    return whole == none or abs((quarter - none) / (whole - none) - 0.25) < 0.005


def _dead_side(loss: Loss) -> str:
    """Which error is the same however near it is to being right, or costs less the surer it is; empty if none is."""
    scene = scenes.equal_cells()
    missed = scenes.mask_of(scenes.EQUAL) & ~scenes.mask_of(scenes.EQUAL[:-1])
    perfect = value_of(loss, scene.surely(SURE), scene)
    nothing = 1e-6 * abs(value_of(loss, torch.zeros_like(scene.target), scene))
    for error, disc, sign in (("A missed", missed, -1.0), ("A spurious", scenes.mask_of([scenes.SPURIOUS]), 1.0)):
        place = torch.from_numpy(disc)[None, None]
        nearly, unsure, surely = (
            value_of(loss, torch.where(place, sign * size, scene.surely(SURE)), scene) - perfect
            for size in (UNSURE / 2, UNSURE, SURE)
        )
        if surely < unsure / 2 and unsure > nothing:
            return (
                f"{error} cell costs {surely:.2g} at z = {sign * SURE:g}, less than half of the {unsure:.2g} at "
                f"z = {sign * UNSURE:g}: the surer that error is, the less it matters."
            )
        # An error that is free is `check_missed_or_spurious`'s to name.
        if surely > nothing and abs(unsure - nearly) < FAINT * surely:
            return (
                f"{error} cell costs the same at z = {sign * UNSURE:g} and {sign * UNSURE / 2:g}, as if logits were "
                "cut off on one side of 0, by tanh or relu: that error is never mended."
            )
    return ""


def _tail_power(loss: Loss) -> float:
    """The k of exp(-k |z|) with which a pixel that is ever surer and wrong comes to its highest cost, or slope.

    The lowest of what a cell pixel and a background pixel say, each between three logits; 0 where they differ, since
    the way there isn't exponential, as of a hinge or a focal loss.
    """
    scene = scenes.ordinary()
    row, column, _ = scenes.ORDINARY[0][0]
    powers = []
    for place, sign in (((0, 0, row, column), -1.0), ((0, 0, 0, scenes.SIDE_PX - 1), 1.0)):

        def slope(size: float, place: tuple[int, ...] = place, sign: float = sign) -> float:
            logits = scenes.ordinary_logits().clone()
            logits[place] = sign * size
            return gradient_of(loss, logits, scene)[1][place].item()

        end = slope(END)
        left = [abs(slope(size) - end) for size in TAIL]
        if min(left) <= 1e-5 * abs(slope(UNSURE)):  # float32 can't tell
            return 0.0
        powers += [math.log(left[i] / left[i + 1]) / (TAIL[i + 1] - TAIL[i]) for i in range(len(TAIL) - 1)]
    return min(powers) if max(powers) - min(powers) < SAME_POWER else 0.0

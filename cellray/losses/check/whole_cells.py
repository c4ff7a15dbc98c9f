"""What does a loss say of whole cells: missed, spurious, small, none at all?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch

from cellray.losses.bound import Loss
from cellray.losses.check import scenes
from cellray.losses.check.looking import (
    FAINT,
    NEAR,
    Verdict,
    dtype_name,
    floor_of,
    gradient_of,
    value_of,
    what_is_not_finite,
)
from cellray.losses.check.scenes import Disc

LOPSIDED = 3.0
"""Missed against spurious cells: a ratio above this, or below its inverse, is worth knowing."""

RISES = 1.05
"""A missed cell costs more beside other cells that are found, if by more than this."""

CONFIDENT = 6.0
"""Logit of a clear but not extreme prediction: p = 0.9975."""


def check_missed_or_spurious(loss: Loss) -> Iterator[Verdict]:
    """What does missing a cell cost against predicting one that isn't there, both of the same size?"""
    scene = scenes.equal_cells()

    def cost(discs: tuple[Disc, ...]) -> float:
        return value_of(loss, scenes.prediction(discs, CONFIDENT), scene)

    perfect = cost(scenes.EQUAL)
    missed, spurious = cost(scenes.EQUAL[:-1]) - perfect, cost((*scenes.EQUAL, scenes.SPURIOUS)) - perfect
    nothing = 1e-6 * abs(value_of(loss, torch.zeros_like(scene.target), scene))
    for name, extra in (("Missing a cell", missed), ("A spurious cell", spurious)):
        # Written so that NaN fails.
        if not extra > nothing:
            yield (
                "failure",
                f"{missed:.3g} : {spurious:.3g}",
                f"{name} costs {extra:.3g} more than a perfect prediction: that error is free.",
            )
            return
    ratio = missed / spurious
    if ratio > LOPSIDED:
        times = _short(ratio)
        told = f"Missing a cell costs {times} times as much as a spurious one of the same size: expect too many cells."
        yield "warning", f"{times}:1", told
    elif ratio < 1 / LOPSIDED:
        times = _short(1 / ratio)
        told = f"A spurious cell costs {times} times as much as missing one of the same size: expect too few cells."
        yield "warning", f"1:{times}", told
    else:
        yield "pass", f"{ratio:.3g}:1", ""


def check_wrong_class(loss: Loss) -> Iterator[Verdict]:
    """Is it about cells? A loss of the background's overlap has more to say the less background there is."""
    few, many = scenes.few_cells(), scenes.many_cells()

    def cost(scene: scenes.Scene, discs: tuple[Disc, ...]) -> float:
        return value_of(loss, scenes.prediction(discs, CONFIDENT), scene) - value_of(
            loss, scenes.prediction((*discs, scenes.MISSED), CONFIDENT), scene
        )

    # In both, one cell of the same size is missed beside the same neighbour.
    before, after = cost(few, scenes.FEW), cost(many, scenes.MANY)
    figure = f"{after / before:.3g} beside more cells" if before else "free"
    if before > 0 and after > RISES * before:
        told = (
            f"Missing the same cell costs {_short(after / before)} times as much once {len(scenes.MANY) - 1} others "
            "are found in the place of background: it measures how well the background is covered, not the cells."
        )
        yield "failure", figure, told
    else:
        yield "pass", figure, ""


def check_object_size(loss: Loss) -> Iterator[Verdict]:
    """What does missing a small cell cost against a large one? In proportion to their areas is the usual answer."""
    scene = scenes.unequal_cells()
    large, small = scenes.UNEQUAL
    large_px, small_px = (int(scenes.mask_of([disc]).sum()) for disc in (large, small))

    def cost(*discs: Disc) -> float:
        return value_of(loss, scenes.prediction(discs, CONFIDENT), scene)

    perfect = cost(large, small)
    without_large, without_small = cost(small) - perfect, cost(large) - perfect
    ratio = without_large / without_small if without_small > 0 else math.inf
    area_ratio = large_px / small_px
    figure = f"{_short(ratio)}:1 at {area_ratio:.2g}:1 area"
    if not ratio <= 2 * area_ratio:
        yield (
            "warning",
            figure,
            f"Missing a cell of {large_px} px costs {_short(ratio)} times as much as one of {small_px} px, which is "
            f"{area_ratio:.2g} times smaller: small cells count little.",
        )
    else:
        yield "pass", figure, ""


def check_masks(loss: Loss) -> Iterator[Verdict]:
    """Is it finite and sensible on an image without cells, on one that is all cell, and on a batch of both?"""
    masks = {
        "an image without cells": scenes.empty(),
        "an image that is all cell": scenes.full(),
        "a batch of an empty and a full image": scenes.empty_and_full(),
    }
    dtypes = (torch.float32, torch.bfloat16)
    for (name, scene), z, dtype in product(masks.items(), (-50.0, -1.0, 0.0, 1.0, 50.0), dtypes):
        broken = what_is_not_finite(loss, torch.full_like(scene.target, z, dtype=dtype), scene)
        if broken:
            yield "failure", broken, f"Its {broken} on {name}, at z = {z:g} in {dtype_name(dtype)}."
            return
    ordinary, logits, floor = scenes.ordinary(), scenes.ordinary_logits(), floor_of(loss)
    near = NEAR * abs(value_of(loss, torch.zeros_like(logits), ordinary))
    # A loss that is never free is `check_floor`'s to name, once.
    if abs(value_of(loss, ordinary.surely(), ordinary) - floor) <= near:
        for name, scene in masks.items():
            perfect = value_of(loss, scene.surely(), scene)
            if perfect > floor + near:
                told = f"A perfect prediction costs {perfect:.3g} on {name}, {floor:.3g} on others."
                yield "failure", f"{perfect:.3g}", told
                return
    pull = gradient_of(loss, logits[:1], scenes.empty())[1].abs().sum().item()
    usual = gradient_of(loss, logits, ordinary)[1].abs().sum().item()
    share = pull / usual if usual else math.inf
    figure = f"empty {share:.2g} of ordinary"
    if share < FAINT:
        yield (
            "warning",
            figure,
            f"On an image without cells, the gradient of spurious ones is {share:.1g} of that on ordinary images: "
            "nothing is learnt from empty images.",
        )
    else:
        yield "pass", figure, ""


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if 100 <= ratio < math.inf else f"{ratio:.3g}"

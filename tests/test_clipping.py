"""Gradients are shortened to a multiple of what is usual in their own training."""

from __future__ import annotations

import math

import pytest
import torch
from pictures import cells, thirds, tiny_trial
from tiny_study import tiny_study

from cellray.training import fit
from cellray.training.clipping import Clipping

CPU = torch.device("cpu")


def lengths_after(lengths: list[float], factor: float = 2.0) -> list[float]:
    """Lengths of gradients along (3, 4) in two weights, after clipping."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    clipping, found = Clipping(factor, weights, len(lengths), CPU), []
    for step, length in enumerate(lengths):
        for weight, share in zip(weights, (0.6, 0.8), strict=True):
            weight.grad = torch.full((1,), length * share)
        clipping.shorten(step)
        found.append(math.hypot(*(weight.grad.item() for weight in weights)))
        if found[-1] > 0:
            assert weights[0].grad.item() / weights[1].grad.item() == pytest.approx(0.75)
    return found


def test_a_gradient_is_shortened_to_twice_the_median_of_those_before():
    # before the third step the median is 1, before the last one that of 1, 1, 3, 3 and 5, as they were before clipping
    assert lengths_after([1, 1, 3, 3, 5, 7]) == pytest.approx([1, 1, 2, 2, 2, 6], rel=1e-6)


def test_a_gradient_of_the_usual_length_stays_to_the_bit():
    weight = torch.nn.Parameter(torch.zeros(3))
    clipping, gradient = Clipping(2.0, [weight], 2, CPU), torch.tensor([0.1, -0.7, 0.3])
    for step in range(2):
        weight.grad = gradient.clone()
        clipping.shorten(step)
        assert torch.equal(weight.grad, gradient)


def test_steps_without_a_gradient_have_no_say():
    assert lengths_after([0, 0, 0, 4, 1, 9]) == pytest.approx([0, 0, 0, 4, 1, 2], rel=1e-6)


def test_a_gradient_that_is_no_number_stays_none():
    found = lengths_after([1, math.nan])
    assert math.isnan(found[1])


@pytest.mark.slow
def test_clipping_changes_a_training_and_none_can_be_had():
    dataset, kept = cells(), []
    for clip in (None, 1e6, 0.5):
        found = fit(
            tiny_trial(epochs=3, clip=clip),
            dataset,
            thirds(dataset),
            device=CPU,
            load=lambda name: None,
            save=lambda name, data: None,
        )
        kept.append([row["train_loss"] for row in found.run.history])
    assert kept[0] == kept[1] != kept[2]


def test_the_reference_protocol_clips_nothing():
    strict, released = (tiny_study("somewhere", protocol=protocol) for protocol in ("strict", "fluocells-2023"))
    assert [study.trials()[0].training.clip for study in (strict, released)] == [2.0, None]

"""Nothing in a training step makes the processor wait for a GPU, as far as a processor alone can show."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_cases import mask_of, some_cells
from pictures import cells, thirds, tiny_trial
from torch.utils._python_dispatch import TorchDispatchMode

from cellray.evaluation import ahead
from cellray.losses import LOSSES, compound, lovasz, order
from cellray.losses.maps import maps_of
from cellray.study import AugmentConfig, LossConfig
from cellray.training import ALONE
from cellray.training.crops import CropSampler
from cellray.training.fitting import _Fitter

CPU = torch.device("cpu")
WAITING = {"blob", "cc_dice_ce", "soft_panoptic"}
"""Losses that count the cells of a batch before they add up each one's pixels: docs/losses.md names them."""


class NoWaiting(TorchDispatchMode):
    """Raises where a GPU would be waited for: a value is looked at, or the shape of a result depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        picked = args[1] if name in ("index", "index_put_") else ()
        by_mask = any(isinstance(at, torch.Tensor) and at.dtype == torch.bool for at in picked)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"):
            raise AssertionError(f"waits: {name}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The ways of losses that are taken off the processor."""
    for module in (order, lovasz):
        monkeypatch.setattr(module, "on_cpu", lambda tensor: False)


def a_training(loss: str, device: Callable[[], torch.device] = lambda: CPU, **training: Any) -> _Fitter:
    trial, dataset = tiny_trial(loss=LossConfig(name=loss), **training), cells()
    return _Fitter(
        trial,
        dataset,
        thirds(dataset),
        device(),
        lambda name: None,
        lambda name, data: None,
        lambda row: None,
        ALONE,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_no_step_waits(as_on_a_gpu, loss):
    made = a_training(loss)
    made.model.train()
    if loss in WAITING:
        with NoWaiting(), pytest.raises(AssertionError, match="waits: _local_scalar_dense"):
            made._train_step(0, 0.01)
        return
    with NoWaiting():
        for step in range(2):
            made._train_step(step, 0.01)


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - WAITING))
def test_no_step_waits_for_void_pixels(as_on_a_gpu, loss):
    logits, labels = some_cells()
    target, void = mask_of(labels), torch.zeros(labels.shape, dtype=torch.bool)[:, None]
    void[:, :, :3] = True
    built = LossConfig(name=loss).build()
    maps = maps_of(built.maps, labels)
    if loss == "dice_topk":  # how many pixels are the hardest tenth depends on how many count
        with NoWaiting(), pytest.raises(AssertionError, match="waits: _local_scalar_dense"):
            built(logits, target.masked_fill(void, 0), maps, void)
        return
    with NoWaiting():
        built(logits.requires_grad_(), target.masked_fill(void, 0), maps, void).backward()


@pytest.mark.parametrize("loss", [lovasz.lovasz_hinge_loss, compound.dice_topk_loss])
def test_losses_that_sort_are_the_same_there(loss, monkeypatch):
    logits, labels = some_cells()
    if loss is compound.dice_topk_loss:
        logits = (logits * 8).round() / 8  # equals share a weight; in the hinge, each order has its own gradient
    found = []
    for there in (False, True):
        if there:
            for module in (order, lovasz):
                monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, mask_of(labels))
        value.backward()
        found.append((value, leaf.grad))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("maps", [(), ("components", "distance")])
def test_a_batch_that_was_cut_ahead_is_the_same(maps):
    dataset = cells(channels=3)
    how: dict[str, Any] = {"crop_px": 32, "batch_size": 4, "augment": AugmentConfig(), "seed": 3, "device": CPU}
    plain, early = (
        CropSampler(dataset, list(range(8)), maps=maps, ahead=ahead_too, **how) for ahead_too in (False, True)
    )
    for step, purpose in ((0, 0), (1, 0), (2, 0), (0, 1), (3, 0), (4, 0), (9, 0)):
        one, other = plain.batch(step, purpose), early.batch(step, purpose)
        assert torch.equal(one.images, other.images) and torch.equal(one.target, other.target)
        assert all(torch.equal(one.maps[name], other.maps[name]) for name in maps)


@pytest.mark.parametrize(("call", "words"), [(3, "step 3 of 8 (epoch 2)"), (4, "step 4 of 8 (epoch 2)")])
def test_divergence_is_named_to_the_step_although_it_is_seen_later(monkeypatch, call, words):
    calls: list[int] = []

    def breaks(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return LOSSES["dice"](logits, target) * (math.nan if len(calls) >= call else 1)

    monkeypatch.setitem(LOSSES, "breaks", breaks)
    made = a_training("breaks", epochs=4, validate_every=4)
    made.look_every = 50
    run = made.fit(None).run
    assert run.diverged == f"the loss became nan at {words}"
    assert (run.step, len(run.history), len(calls)) == (call, 2, 4)


def test_a_step_that_fails_after_a_loss_that_was_no_number_is_no_failure(monkeypatch):
    calls: list[int] = []

    def breaks(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no cells in NaN")
        return LOSSES["dice"](logits, target) * math.nan

    monkeypatch.setitem(LOSSES, "breaks", breaks)
    made = a_training("breaks", epochs=1)
    made.look_every = 50
    assert made.fit(None).run.diverged == "the loss became nan at step 1 of 2 (epoch 1)"


def test_looking_later_changes_no_number():
    runs = []
    for look_every in (1, 3):
        made = a_training("dice_ce", epochs=3)
        made.look_every = look_every
        runs.append(made.fit(None).run)
    told = [[{k: row[k] for k in ("epoch", "step", "train_loss", "val_dice", "lr")} for row in r.history] for r in runs]
    assert told[0] == told[1]


def test_what_is_computed_ahead_comes_in_order_and_stops_where_nobody_looks():
    made: list[int] = []

    def numbers():
        for number in range(100):
            made.append(number)
            yield number

    assert list(ahead(numbers())) == list(range(100))
    made.clear()
    for number in ahead(numbers()):
        if number == 3:
            break
    for thread in threading.enumerate():
        if thread.name == "cellray-ahead":
            thread.join(10)
    assert len(made) <= 8 and not any(thread.name == "cellray-ahead" for thread in threading.enumerate())


def test_an_error_ahead_is_raised_where_it_is_looked_at():
    def numbers():
        yield 1
        raise ValueError("out of numbers")

    found = ahead(numbers())
    assert next(found) == 1
    with pytest.raises(ValueError, match="out of numbers"):
        next(found)

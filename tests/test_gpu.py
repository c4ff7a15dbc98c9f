"""What only an NVIDIA GPU can show: `make gpu` runs these; without one each is built, then skipped."""

from __future__ import annotations

import math
import os
from functools import partial

import numpy as np
import pytest
import torch
from pictures import Pictures, cells, thirds, tiny_trial
from test_waiting import WAITING, a_training
from tiny_study import draw_images, lasting, same, tiny_study

from cellray.device import autocast, has_gpu, prepare, reason_of
from cellray.evaluation import Evaluation, evaluate, predict_set
from cellray.ledger import Ledger
from cellray.losses import LOSSES
from cellray.study import Trial
from cellray.sweep import connect, run_sweep
from cellray.training import Fit, fit
from cellray.trial import Sets, run_trial

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_cache")]
CPU = torch.device("cpu")


def the_gpu(gpus: float = 1) -> torch.device:
    """The device, prepared as for a trial; asked for when all else of a test is there."""
    if not has_gpu():
        pytest.skip("There is no NVIDIA GPU here, or torch is built without CUDA.")
    prepare(torch.device("cuda"), 1, gpus)
    return torch.device("cuda")


def train(trial: Trial, dataset: Pictures, device: torch.device) -> Fit:
    return fit(trial, dataset, thirds(dataset), device=device, load=lambda name: None, save=lambda name, data: None)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_step_waits(loss):
    made = a_training(loss, the_gpu)
    for step in range(3):
        made._train_step(step, 0.01)  # the first ones prepare kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        if loss in WAITING:
            with pytest.raises(RuntimeError, match="synchroniz"):
                made._train_step(3, 0.01)
        else:
            made._train_step(3, 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_loss_is_that_of_the_processor(loss):
    there = a_training(loss, the_gpu)
    here = a_training(loss)
    assert there._train_step(0, 0.0).item() == pytest.approx(here._train_step(0, 0.0).item(), rel=2e-3)


def test_a_training_repeats_to_the_bit_and_is_near_that_of_the_processor():
    dataset, trial = cells(), tiny_trial(epochs=6)
    device = the_gpu()
    expected = train(trial, dataset, CPU).run
    runs = [train(trial, dataset, device).run for _ in range(2)]
    kept = [[(row["train_loss"], row["val_loss"], row["val_dice"]) for row in run.history] for run in runs]
    assert kept[0] == kept[1]
    assert runs[0].history[0]["train_loss"] == pytest.approx(expected.history[0]["train_loss"], rel=0.02)


def test_a_training_goes_on_as_if_nothing_had_been():
    dataset, trial = cells(), tiny_trial(epochs=6)
    device, whole, halves = the_gpu(), {}, {}
    expected = fit(trial, dataset, thirds(dataset), device=device, load=whole.get, save=whole.__setitem__)
    for until in (3, None):
        found = fit(
            trial, dataset, thirds(dataset), device=device, load=halves.get, save=halves.__setitem__, until=until
        )
    losses = [[row["train_loss"] for row in one.run.history] for one in (expected, found)]
    assert losses[0] == losses[1]
    assert all(torch.equal(expected.best_state[name], found.best_state[name]) for name in expected.best_state)


def test_divergence_is_named_to_the_step():
    trial = tiny_trial(loss="bce", lr=1e30, schedule="constant", epochs=3)
    dataset = cells()
    reason = train(trial, dataset, the_gpu()).run.diverged
    assert reason is not None and ("the loss became" in reason or "no numbers after step" in reason)


def test_it_computes_in_bfloat16_where_it_can():
    layer, images = torch.nn.Conv2d(3, 8, 3), torch.rand(2, 3, 64, 64)
    device = the_gpu()
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("This GPU has no bfloat16 in hardware.")
    layer = layer.to(device, memory_format=torch.channels_last)
    with autocast(device, "auto"):
        found = layer(images.to(device, memory_format=torch.channels_last))
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)


def test_a_network_is_judged_alike():
    dataset, trial = cells(n=12, height=96, width=80), tiny_trial(epochs=8)
    sets = {"val": (dataset, [8, 9]), "test": (dataset, [10, 11])}
    model, device = trial.model.build(1, CPU), the_gpu()
    model.load_state_dict(train(trial, dataset, CPU).best_state)

    def judged(where: torch.device) -> Evaluation:
        logits_of = partial(predict_set, model.to(where), sets, trial.evaluation, where, "float32")
        return evaluate(logits_of, sets, trial.evaluation)

    here, there = judged(CPU), judged(device)
    counts = ["n_true", "n_pred", "tp_iou"]
    assert np.abs(here.images[counts].to_numpy() - there.images[counts].to_numpy()).max() <= 1
    assert there.choice.score == pytest.approx(here.choice.score, abs=0.05)


def test_a_part_of_a_gpu_has_that_part_of_its_memory():
    device = the_gpu(0.05)
    try:
        total = torch.cuda.get_device_properties(device).total_memory
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(total // 4, dtype=torch.uint8, device=device)
        assert "the trial may take" in reason_of(caught.value, device)
    finally:
        prepare(device, 1, 1)


@pytest.mark.slow
def test_too_little_memory_fails_the_trial_with_advice(tmp_path):
    images = draw_images(tmp_path / "disks", side_px=512)
    study = tiny_study(images, training={"crop_px": 512, "batch_size": 6}, model={"base_features": 64})
    sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / "studies"), study.name)
    the_gpu()
    part = 1.2e9 / torch.cuda.get_device_properties(0).total_memory
    try:
        record = run_trial(study.trials()[0], sets, ledger, gpus=part)
    finally:
        prepare(torch.device("cuda"), 1, 1)
    assert record.outcome == "failed" and "out of GPU memory" in record.reason and "batch_size" in record.reason


def test_two_trials_share_a_gpu(tmp_path):
    study = tiny_study(draw_images(tmp_path / "disks"), resources={"cpus": 1, "gpus": 0.5}, seeds=[0, 5])
    sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / "studies"), study.name)
    the_gpu()
    with connect():
        run_sweep(study, sets, ledger)
    records = ledger.records()
    assert len(records) == 4 and {record.outcome for record in records} <= {"finished", "collapsed"}
    assert {record.provenance.gpus for record in records} == {0.5}
    assert all("NVIDIA" in record.provenance.device for record in records)
    # two trials take two processors; where there is one more, they are judged without the GPU
    assert any(record.seconds.waiting is not None for record in records) or (os.cpu_count() or 1) < 3


def test_two_gpus_train_one_trial(tmp_path):
    images = draw_images(tmp_path / "disks")
    study = tiny_study(images, resources={"cpus": 1, "gpus": 2, "workers": 2})
    alone = tiny_study(images, resources={"cpus": 1, "gpus": 1})
    the_gpu()
    if torch.cuda.device_count() < 2:
        pytest.skip(f"There are {torch.cuda.device_count()} GPUs; two are needed.")
    found = []
    for one in (study, alone):
        ledger = Ledger(str(tmp_path / str(len(found))), one.name)
        with connect():
            run_sweep(one, Sets.open(one.data), ledger)
        found.append(sorted(ledger.records(), key=lambda record: record.label))
    for together, single in zip(*found, strict=True):
        assert together.validation_dice == pytest.approx(single.validation_dice, abs=0.05)


def test_a_trial_is_the_same_again(tmp_path):
    study = tiny_study(draw_images(tmp_path / "disks"))
    sets = Sets.open(study.data)
    ledgers = [Ledger(str(tmp_path / name), study.name) for name in "ab"]
    the_gpu()
    one, other = (run_trial(study.trials()[0], sets, ledger, gpus=1) for ledger in ledgers)
    assert same(lasting(one), lasting(other)) and not math.isnan(one.validation_dice)

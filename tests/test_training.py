"""Crops, learning rates, and the training loop: repeatable, resumable, honest about divergence."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import Pictures, cells, disks, thirds, tiny_trial
from PIL import Image

from cellray.data import open_dataset, split_dataset
from cellray.device import pick_device, prepare, reason_of
from cellray.errors import DataError, StudyError
from cellray.evaluation import PixelHistogram, predict_logits
from cellray.losses import LOSSES, bce_loss, dice_loss
from cellray.model import build_model
from cellray.study import AugmentConfig, DatasetConfig, LossConfig, TermConfig
from cellray.training import check_crop, fit
from cellray.training.crops import CropSampler
from cellray.training.schedule import SCHEDULES, choose_rate, constant, one_cycle, rate_at, triangular
from cellray.training.state import from_bytes

CPU = torch.device("cpu")
PLAIN = AugmentConfig(flips=False, rotation_deg=0, zoom=0, brightness=0, contrast=0)
TURNED = AugmentConfig(brightness=0, contrast=0)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a trial; also, several threads may add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sampler(
    dataset: Pictures, augment: AugmentConfig = PLAIN, *, crop_px: int = 32, batch_size: int = 4, seed: int = 0
) -> CropSampler:
    return CropSampler(
        dataset,
        list(range(len(dataset))),
        crop_px=crop_px,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
        device=CPU,
    )


def coordinates(height: int, width: int, n: int = 1) -> Pictures:
    """Images whose first two channels are the column and the row of each pixel, at most 255."""
    rows, columns = np.indices((height, width)).astype(np.uint8)
    return Pictures([np.stack([columns, rows, rows], axis=-1)] * n, [np.zeros((height, width), np.uint16)] * n)


def in_levels(images: torch.Tensor) -> np.ndarray:
    return (images * 255).numpy()


class TestCrops:
    def test_a_batch_has_its_shapes_and_ranges(self):
        images, targets, *_ = sampler(cells(channels=3), AugmentConfig()).batch(0)
        assert images.shape == (4, 3, 32, 32)
        assert targets.shape == (4, 1, 32, 32)
        assert images.dtype == targets.dtype == torch.float32
        assert 0 <= images.min() < images.max() <= 1
        assert set(targets.unique().tolist()) == {0.0, 1.0}

    @pytest.mark.parametrize("augment", [PLAIN, TURNED], ids=["plain", "turned"])
    def test_targets_stay_aligned_with_their_images(self, augment):
        rng = np.random.default_rng(0)
        truth = [disks(rng, 60, 70) for _ in range(4)]
        dataset = Pictures([(200 * (t > 0)).astype(np.uint8)[..., None] for t in truth], truth)
        drawn = sampler(dataset, augment)
        for step in range(5):
            images, targets, *_ = drawn.batch(step)
            # Image and mask are resampled alike, so they pass half height at the same pixels.
            agree = (in_levels(images) > 100) == (targets.numpy() == 1)
            assert agree.mean() > 0.999
            assert targets.mean() > 0.02

    def test_plain_crops_are_slices(self):
        dataset = coordinates(70, 90, n=4)
        drawn, starts = sampler(dataset), []
        for step in range(60):
            for crop in in_levels(drawn.batch(step)[0]):
                left, top = round(crop[0, 0, 0]), round(crop[1, 0, 0])
                expected = dataset.images[0][top : top + 32, left : left + 32].transpose(2, 0, 1)
                np.testing.assert_allclose(crop, expected, atol=1e-3)
                starts.append((top, left))
        # Every place can come up, the last included: 240 draws among 39 rows and 59 columns.
        tops, lefts = np.array(starts).T
        assert (tops.min(), tops.max()) == (0, 70 - 32)
        assert (lefts.min(), lefts.max()) == (0, 90 - 32)
        assert len(set(tops)) > 30
        assert abs(np.mean(lefts) - 29) < 4

    @pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (7, 3), (5, 8)])
    def test_each_image_is_visited_once_an_epoch(self, n, batch_size):
        flat = Pictures([np.full((32, 32, 1), 10 * k, np.uint8) for k in range(n)], [np.zeros((32, 32), np.uint16)] * n)
        drawn = sampler(flat, batch_size=batch_size)
        visits = [round(level / 10) for step in range(3 * n) for level in in_levels(drawn.batch(step)[0])[:, 0, 0, 0]]
        epochs = [tuple(visits[k * n : (k + 1) * n]) for k in range(3 * batch_size)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len(set(epochs)) > 1  # in a new order each time

    def test_only_the_given_images_are_visited(self):
        dataset = cells()
        drawn = CropSampler(dataset, [3, 8], crop_px=32, batch_size=4, augment=AugmentConfig(), seed=0, device=CPU)
        for step in range(3):
            drawn.batch(step)
        assert set(dataset.seen) == {3, 8}

    def test_a_batch_depends_on_seed_step_and_purpose_alone(self):
        dataset = cells()
        first = sampler(dataset, AugmentConfig())
        first.batch(7)
        again = sampler(dataset, AugmentConfig())
        for a, b in zip(first.batch(3)[:2], again.batch(3)[:2], strict=True):
            assert torch.equal(a, b)
        images = again.batch(3)[0]
        assert not torch.equal(images, again.batch(4)[0])
        assert not torch.equal(images, again.batch(3, purpose=1)[0])
        assert not torch.equal(images, sampler(dataset, AugmentConfig(), seed=1).batch(3)[0])

    @pytest.mark.parametrize("augment", [PLAIN, TURNED], ids=["plain", "turned"])
    def test_a_share_of_the_crops_is_around_a_cell(self, augment):
        # A disk of 81 pixels in an image of 160,000: a uniform crop of 32 x 32 rarely meets it.
        labels = np.zeros((400, 400), np.uint16)
        labels[np.hypot(*(np.indices((400, 400)) - np.array([[[150]], [[250]]]))) <= 5] = 7
        image = (200 * (labels > 0)).astype(np.uint8)[..., None]
        dataset = Pictures([image, 0 * image], [labels, 0 * labels])
        how: dict[str, Any] = {"crop_px": 32, "batch_size": 5, "augment": augment, "seed": 0, "device": CPU}
        drawn = CropSampler(dataset, [0], foreground=0.4, **how)
        uniform = CropSampler(dataset, [0], **how)
        for step in range(20):
            batch, same = drawn.batch(step), uniform.batch(step)
            pixels = batch.target.sum((1, 2, 3))
            assert (pixels[:2] > 50).all()  # 0.4 of 5 are around the cell, and hold it whole
            assert torch.equal(batch.images[2:], same.images[2:]) and torch.equal(batch.target[2:], same.target[2:])
            assert not torch.equal(batch.target[0], drawn.batch(step + 1).target[0])
            assert torch.equal(batch.target, drawn.batch(step).target)
            part = CropSampler(dataset, [0], foreground=0.4, rows=slice(1, 3), **how).batch(step)
            assert torch.equal(part.images, batch.images[1:3])
        nothing = CropSampler(dataset, [1], foreground=1.0, **how)
        assert torch.equal(nothing.batch(0).images, CropSampler(dataset, [1], **how).batch(0).images)

    def test_crops_around_cells_take_every_cell_and_stay_in_the_image(self):
        labels = np.zeros((90, 90), np.uint16)
        for number, (row, column) in enumerate([(0, 0), (44, 44), (89, 0), (80, 85)], start=1):
            labels[row, column] = number
        dataset = Pictures([labels.astype(np.uint8)[..., None]], [labels])
        drawn = CropSampler(dataset, [0], crop_px=32, batch_size=4, augment=PLAIN, seed=0, device=CPU, foreground=1.0)
        seen = [
            set(in_levels(crop).round().astype(int).ravel()) - {0} for s in range(20) for crop in drawn.batch(s).images
        ]
        assert all(seen) and set().union(*seen) == {1, 2, 3, 4}

    @pytest.mark.parametrize("augment", [PLAIN, AugmentConfig()], ids=["plain", "changed"])
    def test_some_rows_are_what_they_are_in_the_whole_batch(self, augment):
        dataset = cells()
        how: dict[str, Any] = {"crop_px": 32, "batch_size": 5, "augment": augment, "seed": 0, "device": CPU}
        maps = ("components", "distance")
        whole = CropSampler(dataset, list(range(12)), maps=maps, **how).batch(3)
        for rows in (slice(0, 2), slice(2, 5)):
            part = CropSampler(dataset, list(range(12)), maps=maps, rows=rows, **how).batch(3)
            torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-6)
            assert torch.equal(part.target, whole.target[rows])
            for name in maps:
                torch.testing.assert_close(part.maps[name], whole.maps[name][rows], rtol=0, atol=1e-5)

    def test_global_random_state_plays_no_part(self):
        drawn = sampler(cells(), AugmentConfig())
        torch.manual_seed(1)
        np.random.seed(1)
        one = drawn.batch(0)[0]
        torch.manual_seed(2)
        np.random.seed(2)
        assert torch.equal(one, drawn.batch(0)[0])

    def test_a_small_image_is_continued_by_reflection(self):
        dataset = coordinates(20, 40)
        crop = in_levels(sampler(dataset, batch_size=1).batch(0)[0])[0]
        # The image lies in the middle of the crop: 6 of 32 rows above it, 6 below.
        expected = np.pad(np.arange(20), (6, 6), mode="reflect")
        np.testing.assert_allclose(crop[1], np.broadcast_to(expected[:, None], (32, 32)), atol=1e-3)

    @pytest.mark.parametrize("shape", [(32, 32), (9, 100), (3, 3), (1, 5)])
    @pytest.mark.parametrize("augment", [PLAIN, TURNED], ids=["plain", "turned"])
    def test_no_crop_shows_anything_but_the_image(self, shape, augment):
        full = Pictures([np.full((*shape, 1), 200, np.uint8)] * 4, [np.ones(shape, np.uint16)] * 4)
        for step in range(4):
            images, targets, *_ = sampler(full, augment).batch(step)
            np.testing.assert_allclose(in_levels(images), 200, atol=1e-2)
            assert (targets == 1).all()

    def transforms(self, augment: AugmentConfig, n: int = 200) -> np.ndarray:
        """The linear map from crop pixels to image pixels of n crops, (n, 2, 2), from images that show coordinates."""
        dataset = coordinates(250, 250, n=10)
        drawn, found = sampler(dataset, augment, crop_px=48, batch_size=10), []
        rows, columns = np.indices((48, 48)) - 23.5
        design = np.stack([columns.ravel(), rows.ravel(), np.ones(48 * 48)], axis=1)
        for step in range(n // 10):
            for crop in in_levels(drawn.batch(step)[0]):
                places = crop[:2].reshape(2, -1).T
                fitted, *_ = np.linalg.lstsq(design, places, rcond=None)
                if np.abs(design @ fitted - places).max() < 0.1:  # else it was reflected at a border
                    found.append(fitted[:2].T)
        assert len(found) > n / 3
        return np.array(found)

    def test_turns_and_zooms_stay_in_their_ranges_and_fill_them(self):
        maps = self.transforms(AugmentConfig(flips=False, rotation_deg=15, zoom=0.1, brightness=0, contrast=0))
        angle = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
        zoom = 1 / np.sqrt(np.linalg.det(maps))
        np.testing.assert_allclose(maps[:, 0, 0], maps[:, 1, 1], atol=1e-3)  # neither sheared nor stretched
        np.testing.assert_allclose(maps[:, 1, 0], -maps[:, 0, 1], atol=1e-3)
        assert -15 <= angle.min() < -11
        assert 11 < angle.max() <= 15
        assert 0.9 - 1e-4 <= zoom.min() < 0.93
        assert 1.07 < zoom.max() <= 1.1 + 1e-4

    def test_flips_come_in_all_four_kinds(self):
        maps = self.transforms(AugmentConfig(flips=True, rotation_deg=0, zoom=0, brightness=0, contrast=0))
        kinds, counts = np.unique(np.round(maps[:, [0, 1], [0, 1]]), axis=0, return_counts=True)
        assert kinds.tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
        assert counts.min() > len(maps) / 8
        np.testing.assert_allclose(np.abs(maps), np.broadcast_to(np.eye(2), maps.shape), atol=1e-3)

    def test_brightness_and_contrast_stay_in_their_ranges_and_fill_them(self):
        two_tone = np.full((32, 32, 1), 100, np.uint8)
        two_tone[:, 16:] = 150
        dataset = Pictures([two_tone] * 8, [np.zeros((32, 32), np.uint16)] * 8)
        augment = AugmentConfig(flips=False, rotation_deg=0, zoom=0, brightness=0.1, contrast=0.2)
        drawn = sampler(dataset, augment, batch_size=8)
        crops = np.concatenate([in_levels(drawn.batch(step)[0]) for step in range(25)])
        brightness = crops.mean(axis=(1, 2, 3)) / 125
        contrast = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) / 50
        assert 0.9 - 1e-4 <= brightness.min() < 0.92
        assert 1.08 < brightness.max() <= 1.1 + 1e-4
        assert 0.8 - 1e-4 <= contrast.min() < 0.84
        assert 1.16 < contrast.max() <= 1.2 + 1e-4

    def test_light_never_leaves_the_unit_interval(self):
        bright = Pictures([np.full((32, 32, 1), 255, np.uint8)], [np.zeros((32, 32), np.uint16)])
        augment = AugmentConfig(flips=False, rotation_deg=0, zoom=0, brightness=1, contrast=1)
        drawn = sampler(bright, augment)
        for step in range(5):
            images = drawn.batch(step)[0]
            assert images.min() >= 0
            assert images.max() <= 1

    def test_a_crop_that_no_image_can_hold_is_one_clear_error(self):
        mixed = Pictures([], [])
        for height, width in ((40, 300), (100, 90), (200, 60)):
            mixed.images.append(np.zeros((height, width, 1), np.uint8))
            mixed.truth.append(np.zeros((height, width), np.uint16))
        mixed.names = ["wide", "square", "high"]
        check_crop(mixed, [0, 1, 2], 88)
        with pytest.raises(DataError, match=r"crop_px is 128.*'square', has 90x100 px.*at most 88"):
            check_crop(mixed, [0, 1, 2], 128)
        with pytest.raises(DataError, match="'high'"):
            check_crop(mixed, [0, 2], 88)


class TestSchedules:
    def test_one_cycle_rises_for_a_third_and_falls_to_almost_nothing(self):
        rates = [one_cycle(step, 100, 0.5) for step in range(100)]
        assert rates[0] == pytest.approx(0.5 / 25)
        assert rates[15] == pytest.approx((0.5 / 25 + 0.5) / 2)  # half the cosine rise
        assert rates[30] == 0.5 == max(rates)
        assert rates[-1] == pytest.approx(0.5 / 1e4)
        assert np.all(np.diff(rates[:31]) > 0)
        assert np.all(np.diff(rates[30:]) < 0)

    def test_triangular_has_four_linear_peaks(self):
        rates = np.array([triangular(step, 400, 1.0) for step in range(400)])
        low = 1 / 25
        assert rates[[0, 100, 200, 300]] == pytest.approx(low)
        assert rates[[50, 150, 250, 350]] == pytest.approx(1)
        assert rates[25] == pytest.approx((1 + low) / 2)
        assert np.unique(np.round(np.abs(np.diff(rates)), 9)).size == 1

    def test_constant_is_constant(self):
        assert {constant(step, 10, 0.3) for step in range(10)} == {0.3}

    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
    def test_no_schedule_leaves_its_range_however_short(self, name, steps):
        rates = [rate_at(name, step, steps, 0.1) for step in range(steps)]
        assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in rates)

    def test_an_unknown_schedule_is_named(self):
        with pytest.raises(StudyError, match="one_cycle"):
            rate_at("one_cycel", 0, 10, 0.1)


RATES: list[float] = np.geomspace(1e-5, 1.0, 61).tolist()


class TestChooseRate:
    def test_a_tenth_of_where_the_loss_is_lowest(self):
        losses = [1 + (math.log10(rate) + 1) ** 2 for rate in RATES]  # lowest at 0.1
        assert choose_rate(RATES, losses, 6) == pytest.approx(0.01, rel=1e-6)

    def test_one_lucky_step_does_not_decide(self):
        losses = [1 + (math.log10(rate) + 1) ** 2 for rate in RATES]
        losses[10] = 0.9
        assert choose_rate(RATES, losses, 6) == pytest.approx(0.01, rel=1e-6)

    @pytest.mark.parametrize("end", [math.nan, math.inf, 1e6])
    def test_divergence_ends_the_curve(self, end):
        # Falling until it blows up at 0.1.
        losses = [1 - k / 100 for k, rate in enumerate(RATES) if rate < 0.1]
        chosen = choose_rate(RATES[: len(losses) + 1], [*losses, end], 4)
        assert 0.002 < chosen <= 0.01

    def test_never_below_what_was_tried(self):
        assert choose_rate(RATES, list(np.linspace(1, 2, 61)), 6) == RATES[0]
        assert choose_rate(RATES[:1], [math.nan], 1) == RATES[0]


class Store(dict):
    """Checkpoints in memory."""

    def load(self, name: str) -> bytes | None:
        return self.get(name)

    def save(self, name: str, data: bytes) -> None:
        self[name] = data

    def state(self, name: str) -> dict[str, Any]:
        return torch.load(io.BytesIO(self[name]), weights_only=True)


def train(trial, store: Store | None = None, dataset: Pictures | None = None, **changes: Any):
    store, dataset = store if store is not None else Store(), dataset or cells()
    return fit(trial, dataset, thirds(dataset), device=CPU, **({"load": store.load, "save": store.save} | changes))


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows without what depends on the clock and the machine, and None for NaN so that they compare."""
    clock = ("seconds", "images_per_s", "peak_memory_mb")
    return [{k: None if math.isnan(v) else v for k, v in row.items() if k not in clock} for row in history]


class WorkerKilledError(Exception):
    """Stands for the end of a process."""


class TestFit:
    def test_the_history_has_a_row_an_epoch(self):
        told: list[dict[str, float]] = []
        fitted = train(tiny_trial(epochs=5, validate_every=2), on_epoch=told.append)
        run = fitted.run
        assert told == run.history
        assert [row["epoch"] for row in told] == [1, 2, 3, 4, 5]
        assert [row["step"] for row in told] == [2, 4, 6, 8, 10]  # 8 training images in batches of 4
        assert [row["epoch"] for row in told if not math.isnan(row["val_dice"])] == [2, 4, 5]
        assert run.step == 10
        assert run.diverged is None
        assert all(math.isfinite(row["train_loss"]) for row in told)
        assert run.seconds == pytest.approx(sum(row["seconds"] for row in told))
        assert told[-1]["lr"] == pytest.approx(one_cycle(9, 10, 0.01))

    def test_a_run_given_in_steps_takes_so_many(self):
        fitted = train(tiny_trial(steps=5))
        assert [row["step"] for row in fitted.run.history] == [2, 4, 5]
        assert not math.isnan(fitted.run.history[-1]["val_dice"])

    def test_training_learns(self):
        history = train(tiny_trial(epochs=12, validate_every=12, base_features=4)).run.history
        assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]

    def test_the_same_seed_repeats_to_the_bit_and_another_does_not(self):
        one, again, other = (train(tiny_trial(epochs=2, seed=seed)) for seed in (3, 3, 4))
        assert same_weights(one.best_state, again.best_state)
        assert untimed(one.run.history) == untimed(again.run.history)
        assert not same_weights(one.best_state, other.best_state)

    def test_balanced_terms_start_with_gradients_of_one_length(self):
        loss = LossConfig(
            terms=(TermConfig(name="bce", weight=0.3, settings={"cell_weight": 50}), TermConfig(name="dice", weight=2)),
            balance="gradient",
        )
        trial, dataset = tiny_trial(loss=loss, epochs=1), cells()
        scales = train(trial, dataset=dataset).run.term_scales
        torch.manual_seed(trial.seed)
        model = build_model("c_resunet", base_features=2, in_channels=1).train()
        drawn = CropSampler(
            dataset, thirds(dataset).train, crop_px=32, batch_size=4, augment=AugmentConfig(), seed=0, device=CPU
        )
        for scale, function in zip(scales, (lambda z, y: bce_loss(z, y, cell_weight=50.0), dice_loss), strict=True):
            model.zero_grad()
            for step in range(8):
                images, target, *_ = drawn.batch(step, purpose=3)
                function(model(images), target).backward()
            length = math.sqrt(sum((p.grad / 8).square().sum().item() for p in model.parameters()))
            assert scale * length == pytest.approx(1, rel=1e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize("balance", ["none", "gradient"])
    def test_a_loss_with_maps_trains_and_repeats_after_a_kill(self, balance):
        terms = (TermConfig(name="soft_panoptic"), TermConfig(name="boundary"), TermConfig(name="dice"))
        trial = tiny_trial(loss=LossConfig(terms=terms, balance=balance), epochs=4, validate_every=2)
        undisturbed = train(trial)
        assert all(math.isfinite(row["train_loss"]) for row in undisturbed.run.history)
        assert math.isfinite(undisturbed.run.history[-1]["val_loss"])
        store = Store()

        def die(row: dict[str, float]) -> None:
            if row["epoch"] == 3:
                raise WorkerKilledError

        with pytest.raises(WorkerKilledError):
            train(trial, store, on_epoch=die)
        resumed = train(trial, store)
        assert same_weights(resumed.best_state, undisturbed.best_state)
        assert resumed.run.term_scales == undisturbed.run.term_scales

    def test_test_images_are_never_looked_at(self):
        dataset = cells()
        train(tiny_trial(epochs=2), dataset=dataset)
        assert set(dataset.seen) == set(range(10))  # 8 to train on, 2 to select; the last 2 judge

    @pytest.mark.parametrize(
        ("save_s", "epoch_s", "saved"),
        [
            (0.5, 5.0, list(range(1, 21))),
            (2.0, 5.0, [1, 10, 19, 20]),  # more than 40 s go by in nine epochs
            (100.0, 50.0, [1, 14, 20]),  # 2,000 s would be too long; more than 600 in thirteen epochs
        ],
    )
    @pytest.mark.slow
    def test_where_saving_is_slow_it_takes_a_twentieth_of_the_time(self, save_s, epoch_s, saved, monkeypatch):
        now, epochs = [0.0], []
        monkeypatch.setattr("cellray.training.fitting.time", SimpleNamespace(monotonic=lambda: now[0]))

        def save(name: str, data: bytes) -> None:
            if name == "last":
                epochs.append(len(from_bytes(data, torch.device("cpu"))["run"]["history"]))
                now[0] += save_s

        def on_epoch(row: dict[str, float]) -> None:
            now[0] += epoch_s  # the next one takes so long

        train(tiny_trial(epochs=20), on_epoch=on_epoch, save=save)
        assert epochs == saved

    def test_a_pause_is_saved_where_saving_is_slow(self, monkeypatch):
        now, store = [0.0], Store()
        monkeypatch.setattr("cellray.training.fitting.time", SimpleNamespace(monotonic=lambda: now[0]))

        def save(name: str, data: bytes) -> None:
            now[0] += 100.0
            store.save(name, data)

        train(tiny_trial(epochs=6), save=save, until=3)
        assert len(store.state("last")["run"]["history"]) == 3

    @pytest.mark.parametrize("death", ["telling epoch 1", "telling epoch 2", "saving last", "saving best"])
    @pytest.mark.parametrize("save_every_s", [0.0, 1e9], ids=["often", "at validations"])
    @pytest.mark.slow
    def test_a_killed_training_goes_on_to_the_bit(self, death, save_every_s, monkeypatch):
        # Not by its dotted path: there, `fit` is the function.
        monkeypatch.setattr("cellray.training.fitting.SAVE_EVERY_S", save_every_s)
        trial = tiny_trial(epochs=6, validate_every=2)
        straight = Store()
        paused = train(trial, straight, until=4)
        undisturbed = train(trial)

        store, saves = Store(), dict.fromkeys(("last", "best"), 0)

        def on_epoch(row: dict[str, float]) -> None:
            if death == f"telling epoch {row['epoch']:.0f}":
                raise WorkerKilledError

        def save(name: str, data: bytes) -> None:
            saves[name] += 1
            if death == f"saving {name}" and saves[name] == (2 if name == "last" else 1):
                raise WorkerKilledError
            store.save(name, data)

        with pytest.raises(WorkerKilledError):
            train(trial, store, on_epoch=on_epoch, save=save)
        assert not train(trial, store, until=4).is_complete and not paused.is_complete
        assert same_weights(store.state("last")["model"], straight.state("last")["model"])
        for a, b in zip(
            store.state("last")["optimizer"]["state"].values(),
            straight.state("last")["optimizer"]["state"].values(),
            strict=True,
        ):
            assert same_weights(a, b)
        resumed = train(trial, store)
        assert resumed.is_complete and undisturbed.is_complete
        assert untimed(resumed.run.history) == untimed(undisturbed.run.history)
        assert resumed.run.best_dice == undisturbed.run.best_dice
        assert resumed.run.best_epoch == undisturbed.run.best_epoch
        assert same_weights(resumed.best_state, undisturbed.best_state)

    def test_what_a_complete_training_leaves_is_its_best_weights_and_its_course(self):
        store = Store()
        train(tiny_trial(epochs=2), store)
        assert set(store) == {"best", "last"}
        assert set(store.state("last")) == {"run"} and set(store.state("best")) == {"model"}

    def test_a_complete_training_is_not_trained_again(self):
        store, told = Store(), []
        first = train(tiny_trial(epochs=2), store)
        second = train(tiny_trial(epochs=2), store, on_epoch=told.append)
        assert told == []
        assert same_weights(first.best_state, second.best_state)
        assert untimed(first.run.history) == untimed(second.run.history)

    @pytest.mark.slow
    def test_a_resumed_range_test_is_not_repeated(self):
        trial = tiny_trial(epochs=3, lr="range_test", range_test={"steps": 10})
        store = Store()

        def stop(row: dict[str, float]) -> None:
            raise WorkerKilledError

        with pytest.raises(WorkerKilledError):
            train(trial, store, on_epoch=stop)
        resumed, straight = train(trial, store), train(trial)
        assert resumed.run.range_test == straight.run.range_test
        assert same_weights(resumed.best_state, straight.best_state)

    def test_the_best_checkpoint_is_the_one_of_the_highest_validation_dice(self):
        store, dataset, bests = Store(), cells(), []

        def save(name: str, data: bytes) -> None:
            store.save(name, data)
            if name == "best":
                bests.append(data)

        trial = tiny_trial(epochs=8, lr=0.03)
        fitted = train(trial, store, dataset, save=save)
        dice = [row["val_dice"] for row in fitted.run.history]
        assert fitted.run.best_dice == max(dice)
        assert fitted.run.best_epoch == 1 + dice.index(max(dice))
        assert len(bests) == sum(d > max([-1, *dice[:k]]) for k, d in enumerate(dice))
        # The stored weights, statistics included, score what the history says.
        model = build_model("c_resunet", base_features=2, in_channels=1)
        model.load_state_dict(fitted.best_state)
        histogram = PixelHistogram()
        for i, logits in predict_logits(model, dataset, thirds(dataset).val, device=CPU, precision="float32"):
            histogram.add(logits, dataset.truth[i] > 0)
        assert histogram.best_dice()[0] == fitted.run.best_dice

    def test_validation_is_not_fooled_by_young_batch_norm_statistics(self):
        # With a momentum of 0.01, 24 steps leave running statistics 79 % at their initial values.
        dice = {}
        for batches in (0, 5):
            trial = tiny_trial(epochs=12, validate_every=12, base_features=4, batch_norm_batches=batches)
            dice[batches] = train(trial).run.history[-1]["val_dice"]
        assert dice[5] > 0.8
        assert dice[0] < dice[5] - 0.15

    def test_re_estimated_statistics_are_those_of_training_batches(self):
        fitted = train(tiny_trial(epochs=1, batch_norm_batches=4))
        first = fitted.best_state
        # The first layer's input is the colour layer's output: an affine map of the pixels, easy to compute anew.
        drawn = CropSampler(
            cells(), list(range(8)), crop_px=32, batch_size=4, augment=AugmentConfig(), seed=0, device=CPU
        )
        pixels = [drawn.batch(2 + k, purpose=2)[0] * first["colour.weight"] + first["colour.bias"] for k in range(4)]
        mean = torch.stack([p.mean() for p in pixels]).mean()
        variance = torch.stack([p.var() for p in pixels]).mean()
        torch.testing.assert_close(first["encoder1.0.running_mean"][0], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first["encoder1.0.running_var"][0], variance, rtol=1e-4, atol=1e-6)


SHORT: dict[str, Any] = {"epochs": 2, "schedule": "constant"}


class TestRangeTest:
    def test_its_result_is_used_and_it_leaves_the_model_alone(self):
        tested = train(tiny_trial(**SHORT, lr="range_test", range_test={"low": 1e-4, "high": 1.0, "steps": 12}))
        run = tested.run
        assert run.range_test is not None
        assert run.lr == choose_rate(run.range_test["lr"], run.range_test["loss"], 1)
        assert {row["lr"] for row in run.history} == {run.lr}
        # The same rate given by hand trains the same weights: the test left neither weights nor moments behind.
        given = train(tiny_trial(**SHORT, lr=run.lr))
        assert given.run.range_test is None
        assert same_weights(tested.best_state, given.best_state)

    def test_its_rates_rise_geometrically(self):
        run = train(tiny_trial(**SHORT, lr="range_test", range_test={"low": 1e-5, "high": 1e-2, "steps": 10})).run
        assert run.range_test["lr"] == pytest.approx(np.geomspace(1e-5, 1e-2, 10).tolist())

    def test_no_batch_ends_it_at_a_rate_that_changes_nothing(self):
        # 40 steps at rates of nearly 0: whatever the losses do, the batches do, and weighted BCE costs many times more
        # on a batch full of cells than on an empty one.
        dataset = cells()
        for labels in dataset.truth[::2]:
            labels[:] = 0
        weighted = LossConfig(name="bce", settings={"cell_weight": 200.0})
        tests = {}
        for rule in ("same_batches", "premature"):
            test = {"low": 1e-30, "high": 1e-29, "steps": 40, "rule": rule}
            trial = tiny_trial(loss=weighted, epochs=1, lr="range_test", batch_size=1, range_test=test)
            tests[rule] = train(trial, dataset=dataset).run.range_test
        turns = tests["same_batches"]["loss"]
        assert len(turns) == 40
        assert turns == pytest.approx(turns[:4] * 10, rel=1e-5)  # 40 // 9 batches by turns
        assert len(tests["premature"]["loss"]) < 40

    def test_divergence_in_it_is_no_divergence_of_the_training(self):
        run = train(
            tiny_trial(loss="bce", epochs=1, lr="range_test", range_test={"low": 1e-3, "high": 1e6, "steps": 40})
        ).run
        assert len(run.range_test["lr"]) < 40
        assert run.diverged is None
        assert math.isfinite(run.history[-1]["train_loss"])


class TestDivergence:
    def nan_from(self, monkeypatch, call: int) -> None:
        """Register a loss that is NaN from its `call`-th use on."""
        calls = []

        def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return dice_loss(logits, target) * (math.nan if len(calls) >= call else 1)

        monkeypatch.setitem(LOSSES, "breaks", loss)

    def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(self, monkeypatch):
        self.nan_from(monkeypatch, 3)
        store = Store()
        fitted = train(tiny_trial(loss="breaks", epochs=4, validate_every=4), store)
        assert fitted.run.diverged == "the loss became nan at step 3 of 8 (epoch 2)"
        assert fitted.best_state is None
        assert [row["epoch"] for row in fitted.run.history] == [1, 2]
        assert math.isnan(fitted.run.history[-1]["train_loss"])
        # Run again, it isn't trained further.
        assert train(tiny_trial(loss="breaks", epochs=4, validate_every=4), store).run.diverged == fitted.run.diverged

    def test_a_rate_far_too_high_diverges_without_a_crash(self):
        fitted = train(tiny_trial(loss="bce", lr=1e30, schedule="constant", epochs=3))
        assert fitted.run.diverged is not None

    def test_weights_ruined_by_the_last_step_before_validation_count_as_divergence(self, monkeypatch):
        def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (0 * logits).abs().sqrt().sum()  # 0, and its gradient is 0 * inf

        monkeypatch.setitem(LOSSES, "breaks", loss)
        fitted = train(tiny_trial(loss="breaks", steps=1))
        assert fitted.run.history[0]["train_loss"] == 0
        assert "after step 1 of 1 (epoch 1)" in fitted.run.diverged
        assert fitted.best_state is None


def test_a_real_dataset_from_a_folder_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    drawn = cells(n=8)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for name, image, truth in zip(drawn.names, drawn.images, drawn.truth, strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / "data" / "images" / f"{name}.png")
        Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "data" / "labels" / f"{name}.png")
    config = DatasetConfig(name="drawn", path=str(tmp_path / "data"), diameter_px=10)
    dataset = open_dataset(config, channels=1, normalise="percentile")
    split = split_dataset(dataset, val_fraction=0.2, test_fraction=0.2, split_seed=0)
    check_crop(dataset, split.train, 32)
    store = Store()
    fitted = fit(tiny_trial(epochs=2), dataset, split, device=CPU, load=store.load, save=store.save)
    assert len(fitted.run.history) == 2
    assert 0 <= fitted.run.best_dice <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_asked_for_and_absent_is_an_error():
    assert pick_device(0).type == "cpu"
    with pytest.raises(StudyError, match=r"resources\.gpus is 0\.5.*no GPU"):
        pick_device(0.5)


class Gpu:
    """Stands for a GPU with 80 GiB of which a trial has taken 39."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fraction = 1.0
        total = type("Properties", (), {"total_memory": 80 * 2**30})
        for name, does in {
            "reset_peak_memory_stats": lambda: None,
            "set_per_process_memory_fraction": self.limit,
            "get_per_process_memory_fraction": lambda: self.fraction,
            "get_device_properties": lambda device: total,
            "max_memory_allocated": lambda device: 39 * 2**30,
        }.items():
            monkeypatch.setattr(torch.cuda, name, does)
        for name in ("benchmark", "deterministic"):
            monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))

    def limit(self, fraction: float) -> None:
        self.fraction = fraction


@pytest.mark.parametrize(("gpus", "fraction"), [(0.5, 0.5), (1, 1.0), (2, 1.0)])
def test_a_part_of_a_gpu_has_that_part_of_its_memory(monkeypatch, gpus, fraction):
    gpu = Gpu(monkeypatch)
    prepare(torch.device("cuda"), 1, gpus)
    assert gpu.fraction == fraction


def test_a_full_gpu_is_a_reason_that_says_what_there_was_and_what_to_change(monkeypatch):
    gpu = Gpu(monkeypatch)
    gpu.limit(0.5)
    error, cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB"), torch.device("cuda")
    assert reason_of(error, cuda).startswith("out of GPU memory: the trial may take 40.0 of 80.0 GiB")
    assert "the 39.0 GiB" in reason_of(error, cuda) and "resources.gpus" in reason_of(error, cuda)
    assert reason_of(error, CPU) == f"OutOfMemoryError: {error}"
    assert reason_of(ValueError("bad"), cuda) == "ValueError: bad"

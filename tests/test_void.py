"""Pixels that count in no loss and no metric: expected values from hand-worked tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import Pictures, cells
from scenes import mask_saved, save_all, save_png
from tiny_study import tiny_study

from cellray.data import Reading, open_dataset
from cellray.evaluation import PixelHistogram
from cellray.ledger import Ledger
from cellray.losses import LOSSES
from cellray.losses.maps import maps_of
from cellray.metrics import contingency, image_row, without_void
from cellray.operating_point import choose_point
from cellray.postprocess import OperatingPoint
from cellray.study import AugmentConfig, DatasetConfig, EvaluationConfig, LossConfig
from cellray.training.crops import CropSampler
from cellray.trial import Sets, run_trial

LIMITS = {"iou_threshold": 0.4, "max_distance_px": 3.0}


def boxes(**areas: tuple[slice, slice]) -> np.ndarray:
    """Labels 1, 2, ... of boxes in an image of 10 x 10."""
    labels = np.zeros((10, 10), np.int32)
    for number, area in enumerate(areas.values(), start=1):
        labels[area] = number
    return labels


TRUE = boxes(a=np.s_[0:4, 0:4], b=np.s_[6:8, 0:4])
PRED = boxes(
    hit=np.s_[0:4, 0:6],  # 16 px on cell a, 8 px in void: what is left is cell a itself
    in_void=np.s_[0:4, 7:9],  # all void
    half=np.s_[5:6, 4:6],  # one of two pixels is void: not more than half, so it stays
    mostly=np.s_[7:8, 3:9],  # five of six pixels are void, but it meets cell b
)
VOID = np.zeros((10, 10), bool)
VOID[0:4, 4:] = VOID[5, 5] = VOID[7, 4:9] = True


class TestMetrics:
    def test_predictions_lose_their_void_pixels_and_those_that_lie_in_void_vanish(self):
        left = without_void(TRUE, PRED, VOID)
        assert {int(n): int((left == n).sum()) for n in np.unique(left)} == {0: 100 - 18, 1: 16, 3: 1, 4: 1}

    def test_a_row_by_hand(self):
        """True: 16 + 8 px. Predicted outside void: 16 on a, 1 on b, 1 on nothing. Void: 24 + 1 + 5 px."""
        row = image_row(TRUE, PRED, void=VOID, **LIMITS)
        assert (row["n_true"], row["n_pred"]) == (2, 3)
        assert (row["px_tp"], row["px_fp"], row["px_fn"], row["px_tn"]) == (17, 1, 7, 100 - 30 - 25)
        assert (row["tp_iou"], row["fp_iou"], row["fn_iou"]) == (1, 2, 1)

    def test_nothing_within_void_changes_a_score(self):
        rng = np.random.default_rng(0)
        probs = rng.random((10, 10))
        elsewhere = np.where(VOID, rng.random((10, 10)), probs)
        other = np.where(VOID & (PRED == 0), 9, PRED)  # a ninth cell that is all void
        assert image_row(TRUE, PRED, void=VOID, probs=probs, **LIMITS) == image_row(
            TRUE, other, void=VOID, probs=elsewhere, **LIMITS
        )

    def test_calibration_by_hand(self):
        """Ten pixels of which four are void: six background pixels at 0.5 have a Brier sum of 6 / 4."""
        empty, void = np.zeros((2, 5), np.int32), np.zeros((2, 5), bool)
        void[0, :4] = True
        row = image_row(empty, empty, void=void, probs=np.full((2, 5), 0.5), **LIMITS)
        assert row["brier_sum"] == pytest.approx(1.5)
        assert row["px_tn"] == 6

    def test_without_void_pixels_nothing_changes(self):
        none = np.zeros_like(VOID)
        assert image_row(TRUE, PRED, void=none, **LIMITS) == image_row(TRUE, PRED, **LIMITS)
        assert contingency(TRUE, PRED, none).n_pixels == 100

    def test_a_threshold_is_not_chosen_by_void(self):
        """A false blob at 0.7 beside a cell at 0.4: only with the blob in void does a low threshold win."""
        truth = np.zeros((40, 40), np.int32)
        truth[4:14, 4:14] = 1
        probs = np.where(truth, 0.4, 0.02)
        probs[22:36, 22:36] = 0.35
        void = np.zeros((40, 40), bool)
        void[20:38, 20:38] = True
        settings = EvaluationConfig(shared_point=OperatingPoint(threshold=0.3, min_area=0, watershed=False))
        free = choose_point({0: probs}, {0: truth}, 11.0, settings)
        kept = choose_point({0: probs}, {0: truth}, 11.0, settings, {0: void})
        assert free.shared_score == pytest.approx(2 / 3)  # one hit, one spurious
        assert kept.shared_score == pytest.approx(1.0)

    def test_dice_is_counted_outside_void(self):
        histogram = PixelHistogram()
        logits, target = torch.tensor([[2.0, 2.0, -2.0]]), np.array([[True, False, False]])
        histogram.add(logits, target, np.array([[False, True, False]]))
        assert histogram.best_dice()[0] == 1.0
        assert histogram.counts.sum() == 2


class TestLosses:
    @pytest.mark.parametrize("name", LOSSES)
    def test_no_loss_sees_what_the_network_says_in_void(self, name):
        loss = LossConfig(name=name).build()
        truth = np.zeros((1, 24, 24), np.int32)
        truth[0, 3:10, 3:10], truth[0, 14:20, 12:20] = 1, 2
        void = torch.zeros((1, 1, 24, 24), dtype=torch.bool)
        void[..., :, 20:] = True
        target = torch.from_numpy((truth > 0).astype(np.float32))[:, None]
        maps = maps_of(loss.maps, truth)
        torch.manual_seed(0)
        logits = torch.randn((1, 1, 24, 24), requires_grad=True)
        value = loss(logits, target, maps, void)
        value.backward()
        assert torch.isfinite(value)
        assert logits.grad is not None
        assert (logits.grad[void] == 0).all()
        assert (logits.grad[~void] != 0).any()
        other = torch.where(void, 9 * torch.randn_like(logits), logits)
        assert loss(other, target, maps, void).item() == value.item()

    @pytest.mark.parametrize("reduction", ["image", "batch"])
    @pytest.mark.parametrize("name", LOSSES)
    def test_the_loss_is_that_of_the_other_pixels_alone(self, name, reduction):
        """Images of which the right half is void: as the left half by itself, value and gradient."""
        settings = LossConfig(name=name).settings
        changed = {"reduction": reduction} if "reduction" in settings else {}
        loss = LossConfig(name=name, settings=changed).build()
        torch.manual_seed(1)
        truth = np.zeros((2, 16, 24), np.int32)
        truth[0, 2:6, 2:6], truth[0, 8:14, 5:10], truth[1, 3:9, 1:7] = 1, 2, 1
        target, void = (
            torch.from_numpy((truth > 0).astype(np.float32))[:, None],
            torch.zeros((2, 1, 16, 24), dtype=bool),
        )
        void[..., 12:] = True
        logits = torch.randn(void.shape)
        both = []
        for part, hidden in ((np.s_[..., :12], None), (np.s_[...], void)):
            z = logits[part].clone().requires_grad_()
            y, maps = target[part].contiguous(), maps_of(loss.maps, np.ascontiguousarray(truth[part]))
            value = loss(z, y, maps, hidden)
            value.backward()
            both.append((value.item(), z.grad[..., :12]))
        assert both[1][0] == pytest.approx(both[0][0], rel=1e-5)
        torch.testing.assert_close(both[1][1], both[0][1], rtol=1e-4, atol=1e-7)

    def test_an_image_that_is_all_void_costs_nothing(self):
        loss = LossConfig(name="bce").build()
        void = torch.ones((1, 1, 4, 4), dtype=torch.bool)
        assert loss(torch.randn(1, 1, 4, 4), torch.ones(1, 1, 4, 4), None, void).item() < 1e-9


class WithVoid(Pictures):
    """Pictures whose right third is void."""

    has_void = True

    def void(self, i: int) -> np.ndarray:
        mask = np.zeros(self.truth[i].shape, bool)
        mask[:, -13:] = True
        return mask


@pytest.mark.parametrize("augment", [{}, {"flips": False, "rotation_deg": 0.0, "zoom": 0.0}], ids=["turned", "plain"])
def test_crops_bring_their_void_pixels_along(augment):
    """Void is painted white in the image: wherever a crop is white it is void, and its target is 0 there."""
    plain = cells()
    images = [image.copy() for image in plain.images]
    dataset = WithVoid(images, [labels.copy() for labels in plain.truth])
    for i, image in enumerate(images):
        image[:] = np.where(dataset.void(i)[..., None], 255, 0)
        dataset.truth[i][dataset.void(i)] = 0
    settings = AugmentConfig(brightness=0, contrast=0, **augment)
    sampler = CropSampler(
        dataset, list(range(12)), crop_px=32, batch_size=4, augment=settings, seed=0, device=torch.device("cpu")
    )
    for step in range(3):
        batch = sampler.batch(step)
        assert batch.void is not None
        assert batch.void.any() and not batch.void.all()
        assert ((batch.images > 0) == batch.void).all()
        assert (batch.target[batch.void] == 0).all()


def test_a_set_without_void_has_none():
    sampler = CropSampler(
        cells(), [0, 1], crop_px=32, batch_size=2, augment=AugmentConfig(), seed=0, device=torch.device("cpu")
    )
    assert sampler.batch(0).void is None


class TestFiles:
    def opened(self, root, **reading):
        return open_dataset(
            DatasetConfig(name="cells", path=str(root), diameter_px=12.0),
            channels=1,
            normalise="none",
            reading=Reading(**reading),
            cache_dir=root / "cache",
        )

    def test_a_value_of_the_mask(self, tmp_path):
        strip = np.arange(96) < 8
        root = save_all(
            tmp_path,
            mask_saved(lambda p, m: save_png(p, np.where(strip & (m == 0), 255, m > 0).astype(np.uint8))),
        )
        data = self.opened(root, ignore=255)
        assert data.has_void
        assert data.n_objects == [12] * 4
        assert (data.void(0)[:, 8:] == 0).all()
        assert (data.void(0) == (strip & (data.labels(0) == 0))).all()

    @pytest.mark.slow
    def test_a_trial_is_judged_outside_of_them(self, tmp_path):
        """Every pixel of every image is counted but those of a strip of 8 columns, where no cell is above it."""
        strip = np.arange(96) < 8

        def save(p, m):
            save_png(p, np.where(strip & (m == 0), 255, m > 0).astype(np.uint8))

        root = save_all(tmp_path / "data", mask_saved(save), n=6)
        data = {"train": {"name": "disks", "path": str(root)}, "val_fraction": 0.25, "channels": 1, "ignore": 255}
        study = tiny_study(root, data=data)
        sets = Sets.open(study.data)
        ledger = Ledger(str(tmp_path / "studies"), study.name)
        record = run_trial(study.trials()[0], sets, ledger)
        assert record is not None and record.outcome in ("finished", "collapsed")
        rows = ledger.table(record.key, "images")
        assert set(rows["set"]) == {"val", "test"}
        for row in rows.itertuples():
            void = sets.train.void(sets.train.names.index(row.image))
            assert row.px_tp + row.px_fp + row.px_fn + row.px_tn == 96 * 96 - void.sum()
            assert row.n_true == 12

    def test_files_of_their_own(self, tmp_path):
        """Void in masks_ignore/ takes a cell that it mostly covers and cuts the others; label 255 stays a cell."""
        labels = boxes(a=np.s_[0:4, 0:4], b=np.s_[6:8, 0:4], c=np.s_[0:2, 8:10])
        labels[labels == 3] = 255
        void = np.zeros((10, 10), np.uint8)
        void[0:3, 0:4], void[6:8, 0:2] = 255, 255  # 12 of 16 px of a, 4 of 8 px of b
        for k in range(3):
            save_png(tmp_path / "images" / f"a{k}.png", (labels * 3 + k).astype(np.uint8))
            save_png(tmp_path / "labels" / f"a{k}.png", labels.astype(np.uint8))
        save_png(tmp_path / "masks_ignore" / "a1.png", void)
        assert any("masks_ignore/ is not used" in note for note in self.opened(tmp_path).notes)
        data = self.opened(tmp_path, ignore=255)
        assert data.n_objects == [3, 2, 3]
        assert data.void(0) is None
        expected = void > 0
        expected[0:4, 0:4] = True  # the whole of a
        assert (data.void(1) == expected).all()
        assert ((data.labels(1) > 0) == ((labels > 1) & (void == 0))).all()
        assert data.fingerprint != self.opened(tmp_path).fingerprint

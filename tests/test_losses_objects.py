"""Losses of single cells against slow obvious versions that go from cell to cell with a mask of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_cases import SURE, as_arrays, gradient, mask_of, sigmoid, some_cells
from scipy import ndimage

from cellray.losses import blob_loss, cc_dice_ce_loss, soft_panoptic_loss
from cellray.losses.maps import maps_of


def maps(labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    made = maps_of(("components", "voronoi"), labels)
    return made["components"], made["voronoi"]


def slow_dice_ce(z: np.ndarray, y: np.ndarray, weights: np.ndarray, smooth: float) -> float:
    """Dice + cross-entropy of one image whose pixels weigh 0 or 1."""
    p = sigmoid(z)
    tp, fp, fn = (weights * p * y).sum(), (weights * p * (1 - y)).sum(), (weights * (1 - p) * y).sum()
    entropy = np.where(y > 0, -np.log(p), -np.log(1 - p))
    return 1 - (2 * tp + smooth) / (2 * tp + fp + fn + smooth) + (weights * entropy).sum() / weights.sum()


def cells_of(labels: np.ndarray) -> list[int]:
    return np.unique(labels[labels > 0]).tolist()


class TestBlob:
    def test_agrees_with_masking_one_cell_after_the_other(self):
        logits, labels = some_cells()
        costs = []
        for z, ids in zip(logits[:, 0].double().numpy(), labels, strict=True):
            y, everywhere = (ids > 0).astype(float), np.ones(ids.shape)
            whole = slow_dice_ce(z, y, everywhere, 0.5)
            each = [slow_dice_ce(z, y, ((ids == 0) | (ids == i)).astype(float), 0.5) for i in cells_of(ids)]
            costs.append(3 * whole + 0.7 * (np.mean(each) if each else whole))
        loss = blob_loss(logits, mask_of(labels), maps(labels)[0], global_weight=3, blob_weight=0.7, smooth=0.5)
        assert loss.item() == pytest.approx(np.mean(costs), rel=1e-5)

    def test_a_missed_small_cell_costs_as_much_as_a_large_one(self):
        labels = np.zeros((2, 20, 20), dtype=np.int64)
        labels[:, 2:12, 2:12], labels[:, 15:17, 15:17] = 1, 2
        target = mask_of(labels)
        logits = (2 * target - 1) * SURE
        costs = []
        for missed in (1, 2):
            logits_of = logits.clone()
            logits_of[0, 0][torch.from_numpy(labels[0] == missed)] = -SURE
            # Without cross-entropy's part, each missed cell is one of two with Dice loss 1.
            only_blobs = blob_loss(logits_of, target, maps(labels)[0], global_weight=0)
            area = (labels[0] == missed).sum()
            entropy = SURE * area / ((labels[0] == 0).sum() + area)
            costs.append(only_blobs.item() - entropy / 2 / 2)
        assert costs == pytest.approx([0.25, 0.25], rel=1e-4)

    def test_other_cells_do_not_enter_a_cells_loss_through_their_logits(self):
        labels = np.zeros((1, 6, 10), dtype=np.int64)
        labels[0, 1:4, 1:4], labels[0, 1:4, 6:9] = 1, 2
        logits = torch.zeros(1, 1, 6, 10)
        # Cell 1 is perfect; what the logits of its pixels do elsewhere must not matter to cell 2.
        lower, higher = logits.clone(), logits.clone()
        lower[0, 0, 1:4, 1:4], higher[0, 0, 1:4, 1:4] = SURE, 2 * SURE
        costs = [blob_loss(z, mask_of(labels), maps(labels)[0]).item() for z in (lower, higher)]
        assert costs[0] == pytest.approx(costs[1], rel=1e-6)


class TestCCDiceCE:
    def test_agrees_with_going_from_region_to_region(self):
        logits, labels = some_cells()
        components, voronoi = maps(labels)
        costs = []
        for z, ids, regions in zip(logits[:, 0].double().numpy(), labels, voronoi[:, 0].numpy(), strict=True):
            y, everywhere = (ids > 0).astype(float), np.ones(ids.shape)
            whole = slow_dice_ce(z, y, everywhere, 0.5)
            each = [slow_dice_ce(z, y, (regions == i).astype(float), 0.5) for i in cells_of(ids)]
            costs.append(3 * whole + 0.7 * (np.mean(each) if each else whole))
        loss = cc_dice_ce_loss(
            logits, mask_of(labels), components, voronoi, global_weight=3, region_weight=0.7, smooth=0.5
        )
        assert loss.item() == pytest.approx(np.mean(costs), rel=1e-5)

    def test_the_region_of_a_cell_outside_the_crop_is_none(self):
        logits, labels = some_cells()
        components, voronoi = (m[:, :, :7] for m in maps(labels))
        assert 7 in voronoi[0] and 7 not in components[0]
        z, ids, regions = logits[0, 0, :7].double().numpy(), labels[0, :7], voronoi[0, 0].numpy()
        each = [slow_dice_ce(z, (ids > 0).astype(float), (regions == i).astype(float), 1e-5) for i in (1, 2)]
        loss = cc_dice_ce_loss(logits[:1, :, :7], mask_of(labels[:1, :7]), components[:1], voronoi[:1], global_weight=0)
        assert loss.item() == pytest.approx(np.mean(each), rel=1e-5)


def slow_soft_panoptic(
    p: np.ndarray, ids: np.ndarray, regions: np.ndarray, k: float, t: float, smooth: float, cell_area: float
) -> float:
    """Cell by cell and object by object, of one image."""
    found, quality, missed = 0.0, 0.0, 0.0
    for i in cells_of(ids):
        inside, cell = regions == i, ids == i
        u = p[inside & cell].sum() / (cell.sum() + p[inside & ~cell].sum())
        q = (1 + math.exp(-k * (1 - t))) / (1 + math.exp(-k * (u - t)))
        found, quality, missed = found + q, quality + q * u, missed + 1 - q
    area = np.mean([(ids == i).sum() for i in cells_of(ids)]) if cells_of(ids) else cell_area
    objects, n_objects = ndimage.label(p > 0.5, np.ones((3, 3)))
    spurious = sum(p[objects == o].sum() for o in range(1, n_objects + 1) if not ids[objects == o].any())
    return 1 - (quality + smooth) / (found + missed / 2 + spurious / area / 2 + smooth)


class TestSoftPanoptic:
    @pytest.mark.parametrize(("k", "t"), [(10.0, 0.5), (4.0, 0.3)])
    def test_agrees_with_going_from_cell_to_cell(self, k, t):
        logits, labels = some_cells()
        logits = logits - 1.5  # so that there are several predicted objects
        components, voronoi = maps(labels)
        settings = {"steepness": k, "iou_threshold": t, "smooth": 0.2, "cell_area_px": 12.0}
        costs = [
            slow_soft_panoptic(sigmoid(z), ids, regions, k, t, 0.2, 12.0)
            for z, ids, regions in zip(as_arrays(logits)[0], labels, voronoi[:, 0].numpy(), strict=True)
        ]
        loss = soft_panoptic_loss(logits, mask_of(labels), components, voronoi, **settings)
        assert loss.item() == pytest.approx(np.mean(costs), rel=1e-5)

    def test_spurious_objects_in_an_empty_image_are_counted_in_cells(self):
        labels = np.zeros((1, 10, 10), dtype=np.int64)
        logits = torch.full((1, 1, 10, 10), -SURE)
        logits[0, 0, 2:4, 2:7] = SURE  # 10 px are two cells of 5
        loss = soft_panoptic_loss(logits, mask_of(labels), *maps(labels), smooth=0.5, cell_area_px=5.0)
        assert loss.item() == pytest.approx(1 - 0.5 / (2 / 2 + 0.5), rel=1e-5)

    def test_objects_that_touch_a_cell_are_not_spurious(self):
        labels = np.zeros((1, 8, 8), dtype=np.int64)
        labels[0, 2:4, 2:4] = 1
        logits = torch.full((1, 1, 8, 8), -SURE)
        logits[0, 0, 3:6, 3] = SURE  # shares one pixel with the cell, adds two
        logits[0, 0, 6, 4] = SURE  # touches that at a corner
        u = 1 / (4 + 3)
        q = (1 + math.exp(-5)) / (1 + math.exp(-10 * (u - 0.5)))
        loss = soft_panoptic_loss(logits, mask_of(labels), *maps(labels), smooth=1e-6)
        assert loss.item() == pytest.approx(1 - q * u / (q + (1 - q) / 2), rel=1e-4)

    def test_images_of_a_batch_do_not_share_objects(self):
        labels = np.zeros((2, 6, 6), dtype=np.int64)
        labels[0, 2:4, 2:4] = 1
        logits = torch.full((2, 1, 6, 6), -SURE)
        logits[:, 0, 2:4, 2:4] = SURE  # right in the first image, spurious at the same place of the second
        loss = soft_panoptic_loss(logits, mask_of(labels), *maps(labels), smooth=0.5, cell_area_px=4.0)
        assert loss.item() == pytest.approx((0 + 1 - 0.5 / (0.5 + 0.5)) / 2, rel=1e-5)

    def test_a_spurious_object_is_pushed_down(self):
        labels = np.zeros((1, 8, 8), dtype=np.int64)
        logits = torch.full((1, 1, 8, 8), -3.0)
        logits[0, 0, 2:4, 2:4] = 2.0
        grad = gradient(lambda z, y: soft_panoptic_loss(z, y, *maps(labels)), logits, mask_of(labels))
        assert (grad[0, 0, 2:4, 2:4] > 0).all()


@pytest.mark.parametrize("loss", [blob_loss, cc_dice_ce_loss, soft_panoptic_loss])
def test_other_ids_with_other_gaps_change_nothing(loss):
    logits, labels = some_cells()
    renamed = np.where(labels > 0, 1000 - 11 * labels, 0)
    takes = slice(None) if loss is not blob_loss else slice(1)
    values = [loss(logits, mask_of(labels), *maps(ids)[takes]) for ids in (labels, renamed)]
    torch.testing.assert_close(values[0], values[1])

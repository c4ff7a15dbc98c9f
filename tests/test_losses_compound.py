"""Compound losses and the Lovász hinge against slow obvious versions, and against libraries if they are installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import oracle
from loss_cases import SURE, as_arrays, gradient, image, logit, sigmoid, some_batch

from cellray.losses import (
    bce_loss,
    dice_ce_loss,
    dice_loss,
    dice_topk_loss,
    lovasz_hinge_loss,
    unified_focal_loss,
)
from cellray.losses.order import SAMPLE_EVERY, kth_largest


class TestDiceCE:
    def test_is_the_sum_of_both(self):
        logits, target = some_batch()
        loss = dice_ce_loss(
            logits, target, dice_weight=2, ce_weight=3, cell_weight=5, background_weight=0.5, smooth=0.1
        )
        expected = 2 * dice_loss(logits, target, smooth=0.1)
        expected = expected + 3 * bce_loss(logits, target, cell_weight=5, background_weight=0.5)
        torch.testing.assert_close(loss, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("reduction", ["image", "batch"])
    def test_agrees_with_monai(self, reduction):
        losses = oracle("monai.losses")
        logits, target = some_batch()
        theirs = losses.DiceCELoss(sigmoid=True, smooth_nr=0.3, smooth_dr=0.3, batch=reduction == "batch")
        ours = dice_ce_loss(logits, target, smooth=0.3, reduction=reduction)
        torch.testing.assert_close(ours, theirs(logits, target))


class TestDiceTopK:
    def test_adds_the_mean_of_the_hardest_pixels(self):
        # Cross-entropies of the ten pixels: -log of these; the two hardest are 0.1 and 0.2.
        right = [0.9, 0.8, 0.1, 0.7, 0.6, 0.95, 0.5, 0.2, 0.85, 0.75]
        target = image(1, 0, 1, 0, 1, 0, 1, 0, 1, 0)
        logits = image(*(logit(p) if y else -logit(p) for p, y in zip(right, target.flatten().tolist(), strict=True)))
        loss = dice_topk_loss(logits, target, dice_weight=0, ce_weight=3, fraction=0.2)
        assert loss.item() == pytest.approx(-3 * (np.log(0.1) + np.log(0.2)) / 2, rel=1e-5)

    @pytest.mark.parametrize("fraction", [0.01, 0.1, 0.34, 1.0])
    def test_agrees_with_sorting(self, fraction):
        logits, target = some_batch()
        hardest = []
        for z, y in zip(*as_arrays(logits, target), strict=True):
            cost = np.sort(np.where(y > 0, -np.log(sigmoid(z)), -np.log(1 - sigmoid(z))), axis=None)
            hardest.append(cost[-max(1, round(fraction * cost.size)) :].mean())
        loss = dice_topk_loss(logits, target, fraction=fraction)
        expected = dice_loss(logits, target, smooth=1e-5).item() + np.mean(hardest)
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_shares_the_gradient_among_equals(self):
        target = torch.zeros(1, 1, 4, 5)
        logits = torch.zeros_like(target)
        grad = gradient(lambda z, y: dice_topk_loss(z, y, dice_weight=0, fraction=0.1), logits, target)
        # Two pixels of twenty equals, each p / 2: together 0.5, a twentieth for each.
        torch.testing.assert_close(grad, torch.full_like(target, 0.5 / 20))

    def test_leaves_the_easy_ones_to_dice(self):
        logits, target = some_batch()
        grad = gradient(lambda z, y: dice_topk_loss(z, y, dice_weight=0, fraction=0.25), logits, target)
        assert (grad != 0).flatten(1).sum(1).tolist() == [9, 9, 9]

    def test_over_all_pixels_is_dice_ce(self):
        logits, target = some_batch()
        torch.testing.assert_close(dice_topk_loss(logits, target, fraction=1.0), dice_ce_loss(logits, target))


def slow_unified_focal(logits, target, weight, delta, gamma, smooth):
    """The authors' form: both classes as channels of a softmax, reduced image by image."""
    pixel_part, tversky_part = [], []
    for z, y in zip(*as_arrays(logits, target), strict=True):
        p = np.stack([1 - sigmoid(z), sigmoid(z)])
        truth = np.stack([1 - y, y])
        entropy = -truth * np.log(p)
        pixel_part.append((1 - delta) * (1 - p[0]) ** gamma * entropy[0] + delta * entropy[1])
        index = []
        for c in range(2):
            tp, fn, fp = (truth[c] * p[c]).sum(), (truth[c] * (1 - p[c])).sum(), ((1 - truth[c]) * p[c]).sum()
            index.append((tp + smooth) / (tp + delta * fn + (1 - delta) * fp + smooth))
        tversky_part.append(((1 - index[0]) + (1 - index[1]) ** (1 - gamma)) / 2)
    return weight * np.mean(pixel_part) + (1 - weight) * np.mean(tversky_part)


class TestUnifiedFocal:
    @pytest.mark.parametrize(
        ("weight", "delta", "gamma"), [(0.5, 0.6, 0.5), (1, 0.9, 0.3), (0, 0.8, 0.2), (0.3, 0.2, 0.0)]
    )
    def test_agrees_with_two_channels(self, weight, delta, gamma):
        logits, target = some_batch()
        loss = unified_focal_loss(logits, target, pixel_share=weight, cell_share=delta, exponent=gamma, smooth=1e-3)
        assert loss.item() == pytest.approx(slow_unified_focal(logits, target, weight, delta, gamma, 1e-3), rel=1e-5)

    @pytest.mark.parametrize(("pixel_share", "factor"), [(0.0, 1), (1.0, 2)])
    def test_agrees_with_monai_part_by_part(self, pixel_share, factor):
        losses = oracle("monai.losses")
        logits, target = some_batch()
        p = logits.sigmoid()
        # MONAI 1.6.1 documents a sigmoid that it doesn't apply, so it gets probabilities. Of the pixel part it takes
        # the mean of both classes, the authors their sum. Its smoothing is 1e-7.
        theirs = losses.AsymmetricUnifiedFocalLoss(weight=pixel_share, gamma=0.5, delta=0.6)
        expected = factor * theirs(torch.cat([1 - p, p], 1), torch.cat([1 - target, target], 1))
        ours = unified_focal_loss(logits, target, pixel_share=pixel_share, smooth=1e-7)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)

    def test_a_larger_cell_share_pulls_at_cells(self):
        target = image(1, 1, 0, 0)

        def pull(share: float) -> float:
            grad = gradient(lambda z, y: unified_focal_loss(z, y, cell_share=share), torch.zeros_like(target), target)
            return (grad[0, 0, 0, 0] / -grad[0, 0, 0, 2]).item()

        assert pull(0.2) < pull(0.5) < pull(0.8)


def slow_lovasz(logits, target):
    """Sorted errors, each times what the Jaccard loss of the set of wrong pixels grows by, counted as sets."""
    costs = []
    for z, y in zip(*as_arrays(logits, target), strict=True):
        errors = (1 + np.where(y > 0, -z, z)).ravel()
        cells = set(np.flatnonzero(y.ravel() > 0).tolist())
        wrong, before, cost = set(), 0.0, 0.0
        for pixel in np.argsort(-errors).tolist():
            wrong.add(pixel)
            jaccard_loss = 1 - len(cells - wrong) / len(cells | wrong)
            cost += max(errors[pixel], 0) * (jaccard_loss - before)
            before = jaccard_loss
        costs.append(cost)
    return np.mean(costs)


class TestLovaszHinge:
    @pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
    def test_agrees_with_sets(self, scale):
        logits, target = some_batch()
        expected = slow_lovasz(logits * scale, target)
        assert lovasz_hinge_loss(logits * scale, target).item() == pytest.approx(expected, rel=1e-5)

    def test_agrees_with_kornia(self):
        losses = oracle("kornia.losses")
        logits, target = some_batch()
        expected = losses.lovasz_hinge_loss(logits, target[:, 0].long())
        torch.testing.assert_close(lovasz_hinge_loss(logits, target), expected)
        ours = gradient(lovasz_hinge_loss, logits, target)
        torch.testing.assert_close(
            ours, gradient(lambda z, y: losses.lovasz_hinge_loss(z, y[:, 0].long()), logits, target)
        )

    def test_at_logits_of_one_size_is_the_jaccard_loss(self):
        # Errors are 0 or 2: 2 * (1 - 2 / (2 + 1 + 3)), from 2 TP, 1 FN and 3 FP.
        loss = lovasz_hinge_loss(image(1, 1, -1, 1, 1, 1, -1), image(1, 1, 1, 0, 0, 0, 0))
        assert loss.item() == pytest.approx(2 * (1 - 2 / 6), rel=1e-6)

    def test_an_image_without_cells_costs_its_worst_pixel(self):
        target = torch.zeros(1, 1, 1, 4)
        assert lovasz_hinge_loss(image(-3, 0.5, 2, -SURE), target).item() == pytest.approx(1 + 2)
        assert lovasz_hinge_loss(image(-3, -1.5, -2, -SURE), target).item() == 0


class TestOrder:
    @pytest.mark.parametrize("k", [1, 2, 500, 4999, 5000])
    @pytest.mark.parametrize("kind", ["random", "sorted", "equal", "steps", "unlike its sample"])
    def test_the_kth_largest_is_exact(self, kind, k):
        rng = np.random.default_rng(0)
        values = {
            "random": rng.normal(size=5000),
            "sorted": np.arange(5000.0),
            "equal": np.ones(5000),
            "steps": np.arange(5000) // 700 * 1.0,
            "unlike its sample": np.where(np.arange(5000) % SAMPLE_EVERY == 0, 7.0, rng.normal(size=5000)),
        }[kind].astype(np.float32)
        assert kth_largest(values, k) == np.sort(values)[::-1][k - 1]

    def test_a_nan_stays_visible(self):
        logits, target = some_batch()
        logits[1, 0, 2, 3] = torch.nan
        assert lovasz_hinge_loss(logits, target).isnan()
        assert dice_topk_loss(logits, target).isnan()

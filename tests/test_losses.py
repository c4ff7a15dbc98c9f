"""Losses against values worked by hand, and the laws that each registered loss has to keep."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from cellray.errors import ShapeError
from cellray.losses import (
    LOSSES,
    bce_loss,
    combined_loss,
    dice_loss,
    focal_loss,
    focal_tversky_loss,
    tversky_loss,
)
from cellray.study import LossConfig, load_study
from cellray.study.problems import SettingsError
from cellray.training import loss_function

STUDIES = Path(__file__).parents[1] / "search_spaces"

SURE = 20.0  # sigmoid(20) is 1 to float32's resolution

FLOOR = {"focal_tversky": 1e-6**0.75}
"""What a loss costs at a perfect prediction, where that isn't 0: this one is bounded below float32's resolution."""


def image(*values: float) -> torch.Tensor:
    """One image of one row."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def some_batch(n: int = 3, side: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, 1, side, side), generator=generator)
    return logits, (torch.rand((n, 1, side, side), generator=generator) < 0.3).float()


def gradient(loss, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    return leaf.grad


TWO_HITS = image(1, 1, 1, 0, 0, 0, 0)
TWO_HITS_LOGITS = image(SURE, SURE, -SURE, SURE, SURE, SURE, -SURE)
"""2 TP, 1 FN, 3 FP: unequal, so that swapped weights would show."""


class TestHandValues:
    def test_bce_weighs_each_class(self):
        loss = bce_loss(image(logit(0.8), logit(0.4)), image(1, 0), cell_weight=50, background_weight=3)
        assert loss.item() == pytest.approx(-(50 * math.log(0.8) + 3 * math.log(0.6)) / 2, rel=1e-5)

    def test_bce_with_equal_weights_is_the_textbook_one(self):
        loss = bce_loss(image(logit(0.8), logit(0.4)), image(1, 0), cell_weight=2, background_weight=2)
        assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.6)), rel=1e-5)

    def test_dice_of_half_probabilities(self):
        # TP = 0.5, sum y = 1, sum p = 2
        loss = dice_loss(image(0, 0, 0, 0), image(1, 0, 0, 0), smooth=1e-6)
        assert loss.item() == pytest.approx(1 - 2 * 0.5 / (1 + 2), rel=1e-5)

    def test_dice_smooths_above_and_below(self):
        loss = dice_loss(TWO_HITS_LOGITS, TWO_HITS, smooth=2)
        assert loss.item() == pytest.approx(1 - (2 * 2 + 2) / (3 + 5 + 2), rel=1e-5)

    def test_focal_discounts_what_is_right(self):
        loss = focal_loss(image(logit(0.9), logit(0.9)), image(1, 0), exponent=2)
        assert loss.item() == pytest.approx((0.1**2 * -math.log(0.9) + 0.9**2 * -math.log(0.1)) / 2, rel=1e-4)

    def test_focal_weighs_each_class(self):
        loss = focal_loss(image(0, 0), image(1, 0), exponent=2, cell_weight=3, background_weight=5)
        assert loss.item() == pytest.approx((3 + 5) / 2 * 0.25 * math.log(2), rel=1e-5)

    def test_focal_without_exponent_is_cross_entropy(self):
        logits, target = some_batch()
        weights = {"cell_weight": 3.0, "background_weight": 0.5}
        torch.testing.assert_close(
            focal_loss(logits, target, exponent=0.0, **weights), bce_loss(logits, target, **weights)
        )

    def test_tversky_charges_each_kind_of_error_its_own_weight(self):
        loss = tversky_loss(TWO_HITS_LOGITS, TWO_HITS, fp_weight=0.2, fn_weight=0.7, smooth=0.5)
        assert loss.item() == pytest.approx(1 - 2.5 / (2.5 + 0.2 * 3 + 0.7 * 1), rel=1e-5)

    def test_tversky_with_equal_weights_is_dice(self):
        logits, target = some_batch()
        # 1 - (2 TP + 2 s) / (2 TP + FP + FN + 2 s)
        torch.testing.assert_close(
            tversky_loss(logits, target, smooth=1), dice_loss(logits, target, smooth=2), rtol=1e-5, atol=0
        )

    @pytest.mark.parametrize("exponent", [0.75, 1, 4 / 3, 2])
    def test_focal_tversky_raises_what_is_missing(self, exponent):
        loss = focal_tversky_loss(
            TWO_HITS_LOGITS, TWO_HITS, fp_weight=0.3, fn_weight=0.7, exponent=exponent, smooth=1e-6
        )
        assert loss.item() == pytest.approx((1 - 2 / (2 + 0.3 * 3 + 0.7 * 1)) ** exponent, rel=1e-5)

    def test_overlap_losses_average_over_images_not_pixels(self):
        target = torch.cat([image(1, 1, 1, 1), image(1, 0, 0, 0)])
        logits = torch.cat([image(SURE, SURE, SURE, SURE), image(-SURE, -SURE, -SURE, -SURE)])
        # One perfect image and one without a hit; over the pixels of both, Dice would be 8 / 9.
        assert dice_loss(logits, target).item() == pytest.approx(0.5, abs=1e-4)

    def test_combined_is_the_weighted_sum(self):
        logits, target = some_batch()
        terms = [(0.3, bce_loss, {}), (0.2, dice_loss, {"smooth": 1.0}), (0.5, focal_loss, {"exponent": 2.0})]
        expected = (
            0.3 * bce_loss(logits, target)
            + 0.2 * dice_loss(logits, target, smooth=1.0)
            + 0.5 * focal_loss(logits, target)
        )
        torch.testing.assert_close(combined_loss(logits, target, terms), expected)

    def test_combined_does_not_compute_what_weighs_nothing(self):
        def broken(logits, target):
            raise AssertionError

        logits, target = some_batch()
        loss = combined_loss(logits, target, [(0, broken, {}), (2, dice_loss, {})])
        torch.testing.assert_close(loss, 2 * dice_loss(logits, target))


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_costs_nothing_at_a_perfect_prediction(self, name):
        _, target = some_batch()
        # A second sigmoid would keep this far from 0: it confines the probability to [0.5, 0.73].
        loss = LOSSES[name]((2 * target - 1) * 50, target)
        assert loss.item() == pytest.approx(0, abs=max(1e-6, 1.01 * FLOOR.get(name, 0)))

    def test_is_a_scalar_that_a_wrong_prediction_makes_large(self, name):
        _, target = some_batch()
        loss = LOSSES[name]((1 - 2 * target) * 50, target)
        assert loss.shape == ()
        assert loss.item() > 0.5

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("fill", [0, 1], ids=["no cells", "all cells"])
    @pytest.mark.parametrize("z", [-50.0, -1.0, 0.0, 1.0, 50.0])
    def test_stays_finite_on_extreme_masks(self, name, fill, z, dtype):
        logits = torch.full((2, 1, 8, 8), z, dtype=dtype, requires_grad=True)
        loss = LOSSES[name](logits, torch.full_like(logits, fill))
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_stays_finite_where_some_pixels_are_surely_wrong(self, name, dtype):
        _, target = some_batch()
        logits = ((1 - 2 * target) * 50).to(dtype)
        logits[0] = -logits[0]
        logits.requires_grad_()
        loss = LOSSES[name](logits, target)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()

    def test_an_empty_image_left_empty_costs_nothing(self, name):
        logits = torch.full((1, 1, 8, 8), -50.0)
        loss = LOSSES[name](logits, torch.zeros_like(logits))
        assert loss.item() == pytest.approx(0, abs=max(1e-6, 1.01 * FLOOR.get(name, 0)))

    def test_pushes_every_pixel_towards_its_class(self, name):
        logits, target = some_batch()
        grad = gradient(LOSSES[name], logits, target)
        assert (grad[target == 1] < 0).all()
        assert (grad[target == 0] > 0).all()

    def test_gradient_agrees_with_finite_differences(self, name):
        # The loss is computed in float32: differences of 2 * 0.02 with errors of some 1e-6 leave three digits.
        logits, target = some_batch(n=2, side=3)
        grad = gradient(LOSSES[name], logits, target)
        slow, step = torch.zeros_like(logits), 0.02
        for place in range(logits.numel()):
            nudge = torch.zeros_like(logits)
            nudge.view(-1)[place] = step
            rise = LOSSES[name](logits + nudge, target) - LOSSES[name](logits - nudge, target)
            slow.view(-1)[place] = rise / (2 * step)
        torch.testing.assert_close(grad, slow, rtol=2e-3, atol=5e-5)

    def test_does_not_care_about_flips_turns_and_the_order_of_images(self, name):
        logits, target = some_batch()
        loss = LOSSES[name](logits, target)
        for change in (
            lambda x: x.flip(2),
            lambda x: x.flip(3),
            lambda x: x.transpose(2, 3),
            lambda x: x[[2, 0, 1]],
            lambda x: torch.cat([x, x]),
        ):
            torch.testing.assert_close(LOSSES[name](change(logits), change(target)), loss, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("shape", [(3, 6, 6), (3, 1, 6, 5), (1, 1, 6, 6)])
    def test_refuses_shapes_that_differ(self, name, shape):
        logits, _ = some_batch()
        with pytest.raises(ShapeError, match=r"\(3, 1, 6, 6\)"):
            LOSSES[name](logits, torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "setting", "pixels"),
    [
        ("bce", "cell_weight", 1),
        ("bce", "background_weight", 0),
        ("focal", "cell_weight", 1),
        ("focal", "background_weight", 0),
    ],
)
def test_a_class_weight_scales_the_gradient_of_its_class_alone(name, setting, pixels):
    logits, target = some_batch()
    plain = gradient(LOSSES[name], logits, target)
    weighted = gradient(lambda z, y: LOSSES[name](z, y, **{setting: 7.0}), logits, target)
    factor = torch.where(target == pixels, 7.0, 1.0)
    torch.testing.assert_close(weighted, factor * plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["tversky", "focal_tversky"])
def test_the_tversky_weights_trade_missed_cells_for_spurious_ones(name):
    # At equal logits, what a cell pixel gains by rising against what a background pixel gains by falling.
    target = image(1, 1, 0, 0)
    logits = torch.zeros_like(target)

    def pull(fp_weight: float, fn_weight: float) -> float:
        grad = gradient(lambda z, y: LOSSES[name](z, y, fp_weight=fp_weight, fn_weight=fn_weight), logits, target)
        return (grad[0, 0, 0, 0] / -grad[0, 0, 0, 2]).item()

    # d(1 - T/D) is -(D - T (1 - fn)) / D^2 for a cell and T fp / D^2 for a background pixel, T = tp + smooth = 2:
    # D = 2 + fp + fn, so their ratio is (fp + fn + 2 fn) / (2 fp).
    assert pull(0.5, 0.5) == pytest.approx(2.0, rel=1e-4)
    assert pull(0.3, 0.7) == pytest.approx(2.4 / 0.6, rel=1e-4)
    assert pull(0.7, 0.3) == pytest.approx(1.6 / 1.4, rel=1e-4)


def test_focal_exponent_moves_the_gradient_to_the_wrong_pixels():
    logits, target = image(2, -2), image(1, 1)

    def share_of_the_right_pixel(exponent: float) -> float:
        grad = gradient(lambda z, y: focal_loss(z, y, exponent=exponent), logits, target)
        return (grad[0, 0, 0, 0] / grad.sum()).item()

    assert share_of_the_right_pixel(0) > share_of_the_right_pixel(1) > share_of_the_right_pixel(3)


def test_focal_tversky_fades_above_exponent_1_and_grows_below():
    target = image(1, 1, 1, 0)
    nearly = image(4, 4, 4, -4)
    sizes = [
        gradient(lambda z, y, e=e: focal_tversky_loss(z, y, exponent=e), nearly, target).abs().sum().item()
        for e in (0.75, 1.0, 2.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_reference_studys_background_is_no_cheap_way_out():
    # In the released code, all background costs 0.195 where perfect costs 0.174. Here it is the worst value there is.
    target = torch.zeros(1, 1, 20, 20)
    target[..., :4, :5] = 1
    assert focal_tversky_loss(torch.full_like(target, -50), target, exponent=2, smooth=1e-6).item() > 0.99


@pytest.mark.parametrize(
    ("name", "setting"),
    [("dice", "smooth"), ("tversky", "smooth"), ("focal_tversky", "smooth"), ("focal_tversky", "exponent")],
)
def test_a_study_cannot_set_to_0_what_must_be_above(name, setting):
    with pytest.raises((SettingsError, ValueError), match="greater than 0"):
        LossConfig(name=name, settings={setting: 0})


def _ablation(monkeypatch) -> dict[str, LossConfig]:
    monkeypatch.setenv("FNC_ROOT", "/nowhere")
    return {c.label: c.loss for c in load_study(STUDIES / "ablation.yaml").configurations}


def test_all_configurations_of_the_ablation_are_finite(monkeypatch):
    configurations = _ablation(monkeypatch)
    assert len(configurations) == 12
    for label, config in configurations.items():
        loss = loss_function(config)
        for z in (-50.0, 0.0, 50.0):
            for target in (torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), torch.eye(8).repeat(2, 1, 1, 1)):
                logits = torch.full_like(target, z, requires_grad=True)
                value = loss(logits, target)
                value.backward()
                assert torch.isfinite(value), (label, z)
                assert torch.isfinite(logits.grad).all(), (label, z)


def test_the_ablations_combined_losses_have_the_slides_weights(monkeypatch):
    configurations = _ablation(monkeypatch)
    logits, target = some_batch()
    slides = {"balanced": (0.3, 0.3, 0.4), "overcrowd": (0.2, 0.5, 0.3), "CellViT": (0.5, 0.3, 0.5)}
    for name, weights in slides.items():
        third = {
            "Combined": focal_loss(logits, target, exponent=2),
            "CombinedFT": focal_tversky_loss(logits, target, fp_weight=0.3, fn_weight=0.7, exponent=2, smooth=1e-6),
        }
        for kind, term in third.items():
            terms = (bce_loss(logits, target), dice_loss(logits, target), term)
            expected = sum(w * t for w, t in zip(weights, terms, strict=True))
            torch.testing.assert_close(loss_function(configurations[f"{kind}: {name}"])(logits, target), expected)

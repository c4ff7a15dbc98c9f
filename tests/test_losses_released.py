"""What the released code computes, and the published settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loss_cases import gradient, image, some_batch

from cellray.losses import (
    PRESETS,
    RELEASED,
    activated_twice,
    bce_loss,
    dice_loss,
    flattened_focal_tversky_loss,
    flattened_tversky_loss,
    focal_loss,
    focal_tversky_loss,
    released_bce_loss,
    released_dice_loss,
    released_focal_loss,
    released_focal_tversky_loss,
)
from cellray.study import LossConfig, load_study
from cellray.study.problems import SettingsError

STUDIES = Path(__file__).parents[1] / "search_spaces"
SOURCES = {"slides": "ablation.yaml", "code": "ablation_published.yaml"}

BACKGROUND, MASK = -50.0, torch.zeros(1, 1, 20, 20)
MASK[..., :4, :5] = 1
"""20 of 400 pixels, 5 %, are cells."""


def softmax_of_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Probability of the cell class as the released code has it, with both channels."""
    p = logits.sigmoid()
    return torch.cat([1 - p, p], 1).softmax(1)[:, 1:]


class TestActivatedTwice:
    def test_is_the_logit_of_a_softmax_over_probabilities(self):
        logits, _ = some_batch()
        torch.testing.assert_close(activated_twice(logits).sigmoid(), softmax_of_probabilities(logits))

    def test_confines_the_probability(self):
        p = activated_twice(image(-50, 50)).sigmoid().flatten().tolist()
        assert p == pytest.approx([0.269, 0.731], abs=5e-4)

    def test_cross_entropy_cannot_fall_below_its_floor(self):
        assert released_bce_loss((2 * MASK - 1) * 50, MASK).item() == pytest.approx(0.313, abs=5e-4)

    def test_no_gradient_is_left_where_a_prediction_is_surely_wrong(self):
        logits, target = image(-20, 20), image(1, 0)
        assert gradient(released_bce_loss, logits, target).abs().max() < 1e-7
        assert gradient(bce_loss, logits, target).abs().min() > 0.49

    @pytest.mark.parametrize(
        ("released", "plain"),
        [(released_bce_loss, bce_loss), (released_dice_loss, dice_loss), (released_focal_loss, focal_loss)],
    )
    def test_the_rest_of_a_loss_is_the_same(self, released, plain):
        logits, target = some_batch()
        seen = softmax_of_probabilities(logits).logit()
        torch.testing.assert_close(released(logits, target), plain(seen, target), rtol=1e-4, atol=1e-6)


class TestFlattenedTversky:
    def test_counts_both_channels_of_the_whole_batch(self):
        logits, target = some_batch()
        p = logits.sigmoid()
        p, y = torch.cat([1 - p, p], 1).flatten(), torch.cat([1 - target, target], 1).flatten()
        tp, fp, fn = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
        index = (tp + 2) / (tp + 0.4 * fp + 0.9 * fn + 2)
        loss = flattened_tversky_loss(logits, target, fp_weight=0.4, fn_weight=0.9, smooth=2)
        torch.testing.assert_close(loss, 1 - index)
        loss = flattened_focal_tversky_loss(logits, target, fp_weight=0.4, fn_weight=0.9, smooth=2, exponent=1.5)
        torch.testing.assert_close(loss, (1 - index) ** 1.5)

    def test_the_weights_cancel(self):
        logits, target = some_batch()
        grads = [
            gradient(lambda z, y, w=w: flattened_tversky_loss(z, y, fp_weight=w, fn_weight=1 - w), logits, target)
            for w in (0.1, 0.5, 0.9)
        ]
        torch.testing.assert_close(grads[0], grads[1])
        torch.testing.assert_close(grads[2], grads[1])

    def test_is_the_mean_probability_of_the_wrong_class(self):
        logits, target = some_batch()
        mean = torch.where(target > 0, 1 - logits.sigmoid(), logits.sigmoid()).mean()
        torch.testing.assert_close(flattened_tversky_loss(logits, target), mean)

    def test_background_everywhere_is_a_cheap_way_out(self):
        perfect = released_focal_tversky_loss((2 * MASK - 1) * 50, MASK).item()
        nothing = released_focal_tversky_loss(torch.full_like(MASK, BACKGROUND), MASK).item()
        # The probability of the wrong class is 0.269 at best, and 0.731 at the 5 % of pixels that are cells.
        assert perfect == pytest.approx(0.2689414 ** (4 / 3), rel=1e-4)
        assert nothing == pytest.approx((0.95 * 0.2689414 + 0.05 * 0.7310586) ** (4 / 3), rel=1e-4)
        assert perfect == pytest.approx(0.174, abs=5e-4) and nothing == pytest.approx(0.195, abs=2e-3)

    def test_the_sound_one_has_no_such_way_out(self):
        nothing = focal_tversky_loss(torch.full_like(MASK, BACKGROUND), MASK, exponent=2, smooth=1e-6)
        assert nothing.item() > 0.99


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("z", [-50.0, 0.0, 50.0])
def test_released_losses_are_finite(name, dtype, fill, z):
    logits = torch.full((2, 1, 8, 8), z, dtype=dtype, requires_grad=True)
    loss = RELEASED[name](logits, torch.full((2, 1, 8, 8), float(fill)))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def _label(name: str) -> str:
    """Name of a preset -> label of the configuration in the studies."""
    words = {"bce": "BCE: ", "combined": "Combined: ", "combined_ft": "CombinedFT: "}
    names = {"dice": "Dice", "focal": "Focal", "focal_tversky": "Focal Tversky"}
    if name in names:
        return names[name]
    kind, _, variant = name.rpartition("_")
    return words[kind] + variant.replace("cellvit", "CellViT")


def _configurations(source: str, monkeypatch) -> dict[str, LossConfig]:
    monkeypatch.setenv("FNC_ROOT", "/nowhere")
    return {c.label: c.loss for c in load_study(STUDIES / SOURCES[source]).configurations}


@pytest.mark.parametrize("source", SOURCES)
def test_the_presets_are_the_studies_configurations(source, monkeypatch):
    configurations = _configurations(source, monkeypatch)
    presets = {name.split("@")[0]: preset for name, preset in PRESETS.items() if name.endswith(source)}
    assert len(presets) == 12
    assert {_label(name) for name in presets} == set(configurations)
    for name, preset in presets.items():
        assert LossConfig.model_validate(preset) == configurations[_label(name)], name


def test_every_preset_says_its_source():
    assert {name.split("@")[1] for name in PRESETS} == {"slides", "code", "paper"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_trained_with(name):
    loss = LossConfig.model_validate(PRESETS[name]).build()
    for z in (-50.0, 0.0, 50.0):
        for target in (torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), torch.eye(8).repeat(2, 1, 1, 1)):
            logits = torch.full_like(target, z, requires_grad=True)
            value = loss(logits, target)
            value.backward()
            assert torch.isfinite(value), (name, z)
            assert torch.isfinite(logits.grad).all(), (name, z)


def test_the_slides_combined_losses_have_their_weights(monkeypatch):
    configurations = _configurations("slides", monkeypatch)
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
            torch.testing.assert_close(configurations[f"{kind}: {name}"].build()(logits, target), expected)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("dice", "smooth", 0.0),
        ("tversky", "smooth", 0.0),
        ("focal_tversky", "smooth", 0.0),
        ("focal_tversky", "exponent", 0.0),
        ("mcc", "smooth", 0.0),
        ("dice_topk", "fraction", 0.0),
        ("dice_topk", "fraction", 1.1),
        ("unified_focal", "exponent", 1.0),
        ("unified_focal", "cell_share", 1.5),
        ("border_ce", "sigma_px", 0.0),
        ("soft_panoptic", "smooth", 0.0),
        ("dice", "reduction", "pixel"),
        ("bce", "cell_weight", -1.0),
    ],
)
def test_a_study_cannot_set_what_makes_no_sense(name, setting, value):
    with pytest.raises((SettingsError, ValueError), match=setting):
        LossConfig(name=name, settings={setting: value})

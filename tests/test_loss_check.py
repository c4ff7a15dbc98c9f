"""The check of losses: every fault is found by the check that is there for it, and sound losses have none."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path

import bad_losses
import pytest
import torch
from conftest import oracle, skip_or_fail
from library_losses import LibraryLoss, of_kornia, of_monai, of_smp
from rich.console import Console
from typer.testing import CliRunner

from cellray.cli.losses import GROUPED, losses_app
from cellray.errors import StudyError
from cellray.losses import LOSSES, PRESETS, RELEASED, bce_loss, dice_loss, focal_loss, focal_tversky_loss
from cellray.losses.bound import Loss, Term
from cellray.losses.check import CHECKS, Finding, check_loss, scenes
from cellray.model import library
from cellray.study import loss_named

TESTS = Path(__file__).parent


def loss_of(function, weight: float = 1.0, **settings) -> Loss:
    return Loss((Term(weight, function.__name__, function, settings),))


def findings(name: str, **settings) -> dict[str, list[Finding]]:
    """What the checks say of a wrong loss."""
    return by_check(loss_of(getattr(bad_losses, name), **settings))


def by_check(loss: Loss) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in check_loss(loss):
        found.setdefault(finding.check, []).append(finding)
    return found


def failed(found: dict[str, list[Finding]]) -> set[str]:
    return {name for name, group in found.items() if any(f.status == "failure" for f in group)}


def reasons(found: dict[str, list[Finding]], check: str) -> str:
    return " ".join(f.reason for f in found[check])


class TestFaultsOfTheReleasedCode:
    @pytest.mark.parametrize("name", ["released_bce", "released_dice", "released_focal", "released_focal_tversky"])
    def test_double_activation_is_found_and_called_so(self, name):
        found = by_check(loss_named(name))
        assert "double_activation" in failed(found)
        assert "second activation" in reasons(found, "double_activation")

    @pytest.mark.parametrize("name", ["flattened_tversky", "flattened_focal_tversky", "released_focal_tversky"])
    def test_weights_that_cancel_are_found_and_called_so(self, name):
        found = by_check(loss_named(name))
        assert "weights" in failed(found)
        for finding, weight in zip(found["weights"], ("fp_weight", "fn_weight"), strict=False):
            assert f"Raising {weight}" in finding.reason
            assert "cancel" in finding.reason

    # The hinge has no activation of its own, so its first one is harmless: at +-1 it is free.
    @pytest.mark.parametrize("name", [name for name in LOSSES if name != "lovasz_hinge"])
    def test_the_switch_that_activates_every_loss_twice_is_found(self, name):
        assert "double_activation" in failed(by_check(Loss(loss_named(name).terms, double_activation=True)))

    def test_the_floor_it_causes_is_told_with_its_figure(self):
        # softplus(-1) = log(1 + 1/e) = 0.3133 for every pixel, however sure.
        found = by_check(Loss(loss_named("bce").terms, double_activation=True))
        assert f"{math.log(1 + math.exp(-1)):.3g} (all right)" in reasons(found, "double_activation")
        assert "costs 0.313, expected 0" in reasons(found, "floor")


class TestDoubleActivation:
    @pytest.mark.parametrize("name", ["sigmoid_twice_dice", "sigmoid_twice_bce", "softmax_twice_bce"])
    def test_is_found_in_every_form(self, name):
        found = findings(name)
        assert {"double_activation", "floor"} <= failed(found)
        assert "probabilities" not in failed(found)

    def test_is_found_in_one_term_of_a_sum_that_is_unbounded_otherwise(self):
        terms = loss_of(bce_loss).terms + loss_of(bad_losses.sigmoid_twice_dice).terms
        assert "sigmoid_twice_dice: " in reasons(by_check(Loss(terms)), "double_activation")

    def test_is_not_what_a_constant_added_to_the_loss_is(self):
        assert failed(findings("shifted_dice")) == {"floor"}


class TestProbabilities:
    @pytest.mark.parametrize(
        "name", ["dice_of_probabilities", "clamped_bce_of_probabilities", "strict_bce_of_probabilities"]
    )
    def test_a_loss_that_takes_them_is_found(self, name):
        found = findings(name)
        assert "probabilities" in failed(found)
        assert "takes probabilities" in reasons(found, "probabilities")
        assert "double_activation" not in failed(found) or "It raises" in reasons(found, "double_activation")

    def test_what_it_raises_is_told_in_one_line(self):
        assert "It raises RuntimeError: all elements of input" in reasons(
            findings("strict_bce_of_probabilities"), "floor"
        )


class TestWeights:
    def test_swapped_tversky_weights_are_found(self):
        found = findings("swapped_tversky")
        assert failed(found) == {"weights"}
        assert [f.status for f in found["weights"]] == ["failure", "failure"]
        assert "Raising fp_weight from 0.3 to 0.6" in found["weights"][0].reason
        assert "lowers precision" in found["weights"][0].reason
        assert "the wrong way, as fn_weight should" in found["weights"][0].reason
        assert "lowers recall" in found["weights"][1].reason

    def test_swapped_class_weights_are_found_with_their_factor(self):
        # A cell weight of 2 that goes to the background doubles its gradient.
        found = findings("swapped_bce")
        assert failed(found) == {"weights"}
        assert "Raising cell_weight from 1 to 2 lowers recall" in found["weights"][0].reason
        assert found["weights"][0].figure == "cell_weight 2"

    def test_cancelling_weights_are_found(self):
        found = findings("flattened_tversky")
        assert failed(found) == {"weights"}
        assert (
            "Raising fp_weight from 0.3 to 0.6 does exactly what raising fn_weight does" in found["weights"][0].reason
        )

    def test_a_weight_or_exponent_that_is_not_used_fails_and_another_setting_without_effect_is_worth_knowing(self):
        found = findings("deaf_bce")
        assert failed(found) == {"weights"}
        assert [f.status for f in found["weights"]] == ["failure", "failure", "warning"]
        assert "no effect" in found["weights"][0].reason
        assert "exponent has no effect" in found["weights"][1].reason
        assert "margin has no effect" in found["weights"][2].reason

    def test_an_exponent_whose_weight_is_0_is_asleep(self):
        found = by_check(loss_of(bad_losses.deaf_bce, cell_weight=0.0))
        assert "warning" in [f.status for f in found["weights"] if "exponent" in f.reason]

    @pytest.mark.parametrize(
        ("name", "one", "other"),
        [
            ("swapped_sum", "dice_weight", "ce_weight"),
            ("swapped_sum_of_three", "dice_weight", "focal_weight"),
            ("swapped_blobs", "global_weight", "blob_weight"),
        ],
    )
    def test_two_weights_swapped_inside_a_sum_are_found(self, name, one, other):
        (finding,) = findings(name)["weights"]
        assert finding.status == "failure"
        assert f"Raising {one} adds what {other} should add" in finding.reason

    @pytest.mark.parametrize(("name", "setting"), [("index_power", "exponent"), ("index_power_in_a_sum", "gamma")])
    def test_an_exponent_of_the_score_in_the_place_of_its_complement_is_found(self, name, setting):
        found = findings(name)
        assert failed(found) == {"weights"}
        assert f"Raising {setting} raises the cost of a nearly perfect prediction" in reasons(found, "weights")

    @pytest.mark.parametrize("name", ["right_sum", "gamma_as_a_weight", "inverse_gamma"])
    def test_sums_and_exponents_that_are_right_have_no_fault(self, name):
        assert failed(findings(name)) == set()

    def test_a_weight_of_0_is_raised_too(self):
        found = by_check(loss_of(bad_losses.swapped_tversky, fp_weight=0.0, fn_weight=0.5))
        assert "Raising fp_weight from 0 to 1" in reasons(found, "weights")

    def test_a_weight_without_counterweight_is_no_fault_of_its_own(self):
        found = by_check(loss_of(bce_loss, background_weight=0.0))
        assert [f.status for f in found["weights"]] == ["pass"]
        assert failed(found) == {"missed_or_spurious"}  # spurious cells are free

    def test_each_term_of_a_sum_is_judged_alone_and_named(self):
        terms = loss_of(bce_loss, weight=100.0).terms + loss_of(bad_losses.swapped_tversky, weight=0.1).terms
        found = by_check(Loss(terms))
        assert failed(found) == {"weights"}
        assert all(f.reason.startswith("swapped_tversky: ") for f in found["weights"])

    def test_a_term_that_weighs_nothing_is_worth_knowing(self):
        found = by_check(Loss((*loss_of(bce_loss).terms, *loss_of(dice_loss, weight=0.0).terms)))
        assert [(f.status, f.figure) for f in found["weights"]] == [("warning", "dice_loss: weight 0")]


class TestActivation:
    @pytest.mark.parametrize("name", ["tanh_dice", "tanh_bce", "tanh_mse"])
    def test_tanh_in_the_place_of_a_sigmoid_is_found(self, name):
        found = findings(name)
        assert failed(found) == {"activation"}
        assert "as with tanh in the place of a sigmoid" in reasons(found, "activation")

    def test_it_is_found_in_one_term_of_a_sum(self):
        terms = loss_of(bce_loss).terms + loss_of(bad_losses.tanh_dice).terms
        assert "tanh_dice: " in reasons(by_check(Loss(terms)), "activation")

    @pytest.mark.parametrize("name", ["cut_tanh_dice", "relu_dice"])
    def test_one_that_is_cut_off_on_one_side_is_found(self, name):
        found = findings(name)
        assert failed(found) == {"activation"}
        assert "A missed cell costs the same at z = -1 and -0.5" in reasons(found, "activation")

    def test_an_error_that_costs_less_the_surer_it_is_is_found(self):
        assert "the surer that error is, the less it matters" in reasons(findings("easy_focal"), "activation")

    @pytest.mark.parametrize("exponent", [0.1, 0.28, 0.39, 0.4, 0.5, 1.0, 3.0])
    def test_no_focal_exponent_is_taken_for_tanh(self, exponent):
        assert failed(by_check(loss_of(focal_loss, exponent=exponent))) == set()


class TestInputs:
    @pytest.mark.parametrize(
        ("name", "asked"),
        [("deaf_boundary", "distance"), ("deaf_seams", "two_nearest"), ("deaf_blobs", "components")],
    )
    def test_a_map_that_is_asked_for_and_ignored_is_found(self, name, asked):
        found = findings(name)
        assert failed(found) == {"maps"}
        assert f"{name} asks for the map {asked} and ignores it" in reasons(found, "maps")

    def test_a_map_whose_weight_is_0_is_asleep(self):
        assert failed(by_check(Loss((Term(1.0, "border_ce", LOSSES["border_ce"], {"border_weight": 0.0}),)))) == set()

    def test_float64_in_every_pixel_is_worth_knowing(self):
        found = findings("double_dice")
        assert failed(found) == set()
        assert "It computes in float64 pixel by pixel (sigmoid" in reasons(found, "precision")

    def test_a_file_that_is_not_there_is_found(self, tmp_path):
        settings = {"mode": "cells", "weights_file": str(tmp_path / "none.csv")}
        found = findings("wordy_bce", **settings)
        assert failed(found) == {"words"}
        assert f"weights_file names {str(tmp_path / 'none.csv')!r}" in reasons(found, "words")
        (tmp_path / "none.csv").write_text("1")
        assert [f.status for f in findings("wordy_bce", **settings)["words"]] == ["pass"]

    def test_a_word_that_leads_nowhere_is_worth_knowing(self):
        (finding,) = findings("wordy_bce")["words"]
        assert finding.status == "warning"
        assert "mode takes any word for 'balanced'" in finding.reason


class TestCells:
    @pytest.mark.parametrize("name", ["background_dice", "background_jaccard", "background_tversky"])
    def test_an_overlap_of_the_background_is_found(self, name):
        found = findings(name)
        assert failed(found) == {"wrong_class"}
        # 1 - 2 TN / (2 TN + 29) for 29 px missed, with TN = 576 - 29 - 29 or 162 px less, is 1.43 times as much.
        assert "1.4" in found["wrong_class"][0].figure
        assert "how well the background is covered" in reasons(found, "wrong_class")

    def test_spurious_cells_for_free_are_found(self):
        assert "A spurious cell costs" in reasons(findings("recall_loss"), "missed_or_spurious")

    @pytest.mark.parametrize(
        ("settings", "figure", "word"),
        [({"cell_weight": 5000}, "5000:1", "too many"), ({"background_weight": 5}, "1:5", "too few")],
    )
    def test_a_lopsided_loss_is_worth_knowing(self, settings, figure, word):
        # Discs of one size, confidently wrong: each pixel costs its class weight.
        (finding,) = by_check(loss_of(bce_loss, **settings))["missed_or_spurious"]
        assert (finding.status, finding.figure) == ("warning", figure)
        assert word in finding.reason

    def test_the_discs_have_the_areas_that_are_told(self):
        # Points of the square grid within 2, 3 and 5 of one of them (Gauss's circle problem).
        assert [int(scenes.mask_of([(12, 12, radius)]).sum()) for radius in (2, 3, 5)] == [13, 29, 81]

    def test_a_loss_in_proportion_to_area_passes(self):
        (finding,) = by_check(loss_of(bce_loss))["object_size"]
        assert (finding.status, finding.figure) == ("pass", "6.23:1 at 6.2:1 area")  # 81 / 13 = 6.23

    def test_small_cells_that_count_little_are_worth_knowing(self):
        (finding,) = findings("squared_dice")["object_size"]
        assert finding.status == "warning"
        assert "small cells count little" in finding.reason

    @pytest.mark.parametrize("name", ["nan_on_empty_masks", "recall_loss"])
    def test_nan_on_empty_masks_is_found(self, name):
        found = findings(name)
        assert "masks" in failed(found)
        assert "value is nan on an image without cells" in reasons(found, "masks")
        assert failed(found) <= {"masks", "missed_or_spurious"}

    def test_an_empty_image_that_is_never_free_is_found(self):
        found = findings("never_free_on_empty_masks")
        assert failed(found) == {"masks"}
        assert "costs 1 on an image without cells" in reasons(found, "masks")

    def test_empty_images_that_teach_nothing_are_worth_knowing(self):
        # 1 - s / (sum p + s) has the slope s / (sum p)^2, and sum p is some 100 px here.
        (finding,) = by_check(loss_of(dice_loss, smooth=1e-6))["masks"]
        assert finding.status == "warning"
        assert "nothing is learnt from empty images" in finding.reason
        assert by_check(loss_of(dice_loss, smooth=100.0))["masks"][0].status == "pass"


class TestNumerics:
    def test_a_floor_that_is_off_is_found(self):
        assert "costs 0.3, expected 0" in reasons(findings("shifted_dice"), "floor")

    def test_a_stated_floor_is_worth_knowing_and_a_wrong_one_a_fault(self, monkeypatch):
        monkeypatch.setattr(bad_losses.shifted_dice, "floor", 0.3, raising=False)
        assert findings("shifted_dice")["floor"][0].status == "warning"
        monkeypatch.setattr(bad_losses.shifted_dice, "floor", 0.1)
        assert "expected its stated floor 0.1" in reasons(findings("shifted_dice"), "floor")

    def test_a_score_is_no_loss(self):
        assert "floor" in failed(findings("upside_down_dice"))

    def test_infinity_at_50_is_found(self):
        found = findings("infinite_bce")
        assert "finite" in failed(found)
        assert "|z| = 50 in float32" in reasons(found, "finite")

    def test_sums_in_bfloat16_are_worth_knowing(self):
        (finding,) = findings("coarse_dice")["finite"]
        assert finding.status == "warning"

    @pytest.mark.parametrize(
        ("name", "word"), [("batch_dice", "over the batch"), ("summed_bce", "grow with the batch")]
    )
    def test_another_reduction_is_worth_knowing(self, name, word):
        (finding,) = findings(name)["reduction"]
        assert finding.status == "warning"
        assert word in finding.reason

    def test_a_reduction_over_the_batch_shows_in_a_bend_too(self):
        # The power 4/3 of a mean over the batch's pixels; without the power it is the mean of the images' means.
        assert by_check(loss_named("flattened_focal_tversky"))["reduction"][0].status == "warning"
        assert by_check(loss_named("flattened_tversky"))["reduction"][0].status == "pass"

    def test_dependence_on_place_is_found(self):
        found = findings("place_dependent_bce")
        assert "invariance" in failed(found)
        assert "Flipping the columns" in reasons(found, "invariance")

    def test_dependence_on_the_numbering_of_cells_is_found(self):
        assert "Numbering the cells anew" in reasons(findings("numbering_bce"), "invariance")

    def test_a_wrong_gradient_is_found(self):
        found = findings("detached_dice")
        assert failed(found) == {"gradient"}
        assert "the background pixels" in reasons(found, "gradient")

    def test_a_loss_without_gradient_is_found(self):
        assert "It has no gradient" in reasons(findings("hard_dice"), "gradient")

    @pytest.mark.parametrize(
        ("name", "words"),
        [("failing_loss", "It raises RuntimeError: the first line"), ("loss_of_each_pixel", "a loss is one number")],
    )
    def test_what_is_no_loss_fails_every_check_with_one_reason(self, name, words):
        found = findings(name)
        assert failed(found) == set(CHECKS) - {"weights", "words", "maps"}  # it has none
        assert {reasons(found, check) for check in failed(found)} == {found["floor"][0].reason}
        assert words in found["floor"][0].reason
        assert "second" not in reasons(found, "floor")


class TestLibraries:
    """Other packages' losses are sound: nothing is found in them but what is there."""

    def faults(self, losses: dict[str, LibraryLoss]) -> dict[str, set[str]]:
        found = {name: failed(by_check(Loss((Term(1.0, name, loss, {}),)))) for name, loss in losses.items()}
        return {name: checks for name, checks in found.items() if checks}

    @pytest.mark.slow
    def test_of_monai(self):
        assert self.faults(of_monai(oracle("monai.losses"))) == {}

    def test_of_kornia(self):
        assert self.faults(of_kornia(oracle("kornia.losses"))) == {}

    @pytest.mark.slow
    def test_of_segmentation_models_pytorch(self):
        try:
            smp = library("segmentation_models_pytorch")
        except StudyError as error:
            skip_or_fail(str(error))
        # Its MCC of an image without cells, predicted empty, is 0 / 0 + eps / eps: 0.5, not 1.
        assert self.faults(of_smp(smp.losses)) == {"MCC": {"masks"}}


class TestSoundLosses:
    @pytest.mark.parametrize("name", [*LOSSES, *PRESETS])
    def test_have_no_fault(self, name):
        faults = [f for f in check_loss(loss_named(name)) if f.status == "failure"]
        assert faults == []

    def test_every_check_has_its_say_in_order(self):
        assert [f.check for f in check_loss(loss_of(focal_tversky_loss))] == list(CHECKS)

    @pytest.mark.slow
    def test_all_registered_losses_take_seconds(self):
        check_loss(loss_of(bce_loss))
        took = []
        for _ in range(2):  # alone about 1 s; the machine may be shared, so the better of two
            began = time.process_time()
            for name in LOSSES:
                check_loss(loss_named(name))
            took.append(time.process_time() - began)
        assert min(took) < 4

    def test_nothing_of_the_caller_changes(self):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first, second = (check_loss(loss_of(bad_losses.noisy_bce)) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        assert first == second
        assert not [f for f in first if f.status == "failure"]


def cli(*words: str):
    return CliRunner().invoke(losses_app, list(words))


class TestCommand:
    def test_every_check_is_in_one_column(self):
        assert sorted(check for checks in GROUPED.values() for check in checks) == sorted(CHECKS)

    @pytest.mark.slow
    def test_without_names_checks_all_registered(self):
        result = cli("check")
        assert result.exit_code == 0, result.output
        for name in LOSSES:
            assert f"\n{name} " in result.output
        assert f"{len(LOSSES)} checked, 0 failed" in result.output

    def test_is_one_row_a_loss_at_100_columns(self, monkeypatch):
        written = io.StringIO()
        monkeypatch.setattr("cellray.cli.losses.out", Console(width=100, file=written))
        longest = max(PRESETS, key=len)
        assert cli("check", "bce_high@slides", longest).exit_code == 0
        lines = written.getvalue().splitlines()
        assert [line.count("✓") for line in lines if line.startswith(longest + " ")] == [len(GROUPED)]
        assert "! missed_or_spurious" in written.getvalue()
        assert max(map(len, lines)) <= 100

    def test_a_fault_in_a_users_own_loss_is_exit_code_1(self, monkeypatch):
        monkeypatch.chdir(TESTS)
        result = cli("check", "dice", "bad_losses:swapped_tversky")
        assert result.exit_code == 1
        assert "✗ weights" in result.output
        assert "2 checked, 1 failed" in result.output

    def test_json_has_every_finding(self, monkeypatch):
        monkeypatch.chdir(TESTS)
        result = cli("check", "bad_losses:dice_of_probabilities", "--json")
        assert result.exit_code == 1
        (answer,) = json.loads(result.stdout)
        assert answer["loss"] == "bad_losses:dice_of_probabilities"
        told = check_loss(loss_of(bad_losses.dice_of_probabilities))
        assert [(f["check"], f["status"]) for f in answer["findings"]] == [(f.check, f.status) for f in told]
        assert set(answer["findings"][0]) == {"check", "status", "figure", "reason"}

    def test_an_unknown_name_is_named_with_the_nearest(self):
        result = cli("check", "dise")
        assert isinstance(result.exception, StudyError)
        assert "did you mean 'dice'?" in str(result.exception)

    def test_list_names_every_loss_and_preset_with_its_settings(self):
        result = cli("list")
        assert result.exit_code == 0
        for name in (*LOSSES, *RELEASED, *PRESETS):
            assert name in result.output
        assert "smooth=1e-06" in result.output

    def test_list_as_json(self):
        answer = json.loads(cli("list", "--json").stdout)
        assert [row["name"] for row in answer["losses"]] == list(LOSSES)
        assert answer["losses"][0]["settings"] == {"cell_weight": 1.0, "background_weight": 1.0}
        assert answer["presets"] == PRESETS

"""Presets, losses of the user's own, quirks and the loss check, as a study file asks for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from cellray.errors import StudyError
from cellray.losses import dice_loss, focal_tversky_loss
from cellray.losses.bound import find_function
from cellray.losses.released import flattened_focal_tversky_loss
from cellray.outside import code_hash
from cellray.study import QUIRKS, LossConfig, Study, check_losses, load_study, read_study

STUDY = """\
name: small
question: Which loss?
data:
  train: {name: drawn, synthetic: {n_trainval: 10}}
training: {steps: 10, batch_size: 4, crop_px: 96}
configurations:
  - {label: it, loss: LOSS}
seeds: [0]
"""

MY_LOSS = """\
import torch

def my_loss(logits, target, *, cell_weight: float = 2.0):
    cost = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return (torch.where(target > 0.5, cell_weight, 1.0) * cost).mean()

def touching_loss(logits, target, two_nearest, *, sigma: float = 5.0):
    return (my_loss(logits, target) * torch.exp(-two_nearest / sigma)).mean()

def no_loss(probs):
    return probs.mean()
"""


def load(tmp_path: Path, loss: str, more: str = "", **options: Any) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("LOSS", loss) + dedent(more))
    return load_study(file, **options)


def loss_of(study: Study) -> LossConfig:
    return study.trials()[0].loss


def some_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 1, 6, 6), generator=generator)
    return logits, (torch.rand((3, 1, 6, 6), generator=generator) < 0.3).float()


class TestPresets:
    def test_a_preset_is_what_it_stands_for(self, tmp_path):
        short = load(tmp_path, "{name: focal_tversky@paper}")
        long = load(tmp_path, "{name: focal_tversky, settings: {fp_weight: 0.3, fn_weight: 0.7, exponent: 0.75}}")
        assert loss_of(short) == loss_of(long)
        combined = load(tmp_path, "{name: combined_cellvit@code}")
        assert [(t.name, t.weight) for t in loss_of(combined).terms] == [("bce", 0.5), ("dice", 0.2), ("focal", 0.5)]

    def test_settings_beside_it_win(self, tmp_path):
        loss = loss_of(load(tmp_path, "{name: focal_tversky@slides, settings: {exponent: 1}}"))
        assert (loss.settings["exponent"], loss.settings["fp_weight"]) == (1.0, 0.3)

    def test_a_term_can_be_one(self, tmp_path):
        loss = loss_of(load(tmp_path, "{terms: [{name: focal_tversky@code, weight: 0.4}, {name: bce}]}"))
        assert loss.terms[0].name == "focal_tversky"
        assert loss.terms[0].weight == 0.4
        assert loss.terms[0].settings["exponent"] == pytest.approx(4 / 3)

    @pytest.mark.parametrize(
        ("loss", "words"),
        [
            ("{name: focal_tversky@paqer}", r"loss\.name: unknown preset .* \(did you mean 'focal_tversky@paper'\?\)"),
            ("{name: combined_cellvit@code, settings: {smooth: 1}}", r"loss\.settings: .*write its terms out"),
            ("{terms: [{name: combined_cellvit@code}]}", r"terms\[0\]\.name: .* can't be a term of another"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tmp_path, loss, words):
        with pytest.raises(StudyError, match=words):
            load(tmp_path, loss)


def test_a_combined_loss_with_balanced_gradients_is_another_trial(tmp_path):
    terms = "terms: [{name: bce}, {name: dice}]"
    plain, balanced = load(tmp_path, f"{{{terms}}}"), load(tmp_path, f"{{{terms}, balance: gradient}}")
    assert plain.trials()[0].key("f") != balanced.trials()[0].key("f")
    assert loss_of(balanced).describe() == "1 bce + 1 dice (gradients balanced)"
    with pytest.raises(StudyError, match=r"loss\.balance: balances the terms"):
        load(tmp_path, "{name: dice, balance: gradient}")


def test_the_reduction_is_part_of_the_key_only_where_it_is_not_the_first_ledgers(tmp_path):
    plain = load(tmp_path, "{name: dice}").trials()[0].key("f")
    assert load(tmp_path, "{name: dice, settings: {reduction: image}}").trials()[0].key("f") == plain
    assert load(tmp_path, "{name: dice, settings: {reduction: batch}}").trials()[0].key("f") != plain
    with pytest.raises(StudyError, match="reduction: must be 'image' or 'batch'"):
        load(tmp_path, "{name: dice, settings: {reduction: pixel}}")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """A folder with a module of the user's own beside the study file."""
    (tmp_path / "my_lab_losses.py").write_text(MY_LOSS)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("my_lab_losses", None)


class TestOwnLosses:
    NAME = "{name: 'my_lab_losses:my_loss', settings: {cell_weight: 3}}"

    def test_needs_leave_to_run_code(self, lab):
        with pytest.raises(
            StudyError, match=r"loss\.name: 'my_lab_losses:my_loss' is code outside cellray; --allow-code"
        ):
            load(lab, self.NAME)
        assert "my_lab_losses" not in sys.modules

    def test_is_found_beside_the_study_with_its_settings(self, lab):
        loss = loss_of(load(lab, self.NAME, code="allowed"))
        logits, target = some_batch()
        weights = torch.where(target > 0.5, 3.0, 1.0)
        cost = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weight=weights)
        torch.testing.assert_close(loss.build()(logits, target), cost)
        assert loss_of(load(lab, "{name: 'my_lab_losses:my_loss'}", code="allowed")).settings == {"cell_weight": 2.0}

    def test_can_ask_for_maps(self, lab):
        loss = loss_of(load(lab, "{name: 'my_lab_losses:touching_loss'}", code="allowed")).build()
        assert loss.maps == ("two_nearest",)
        logits, target = some_batch()
        value = loss(logits, target, {"two_nearest": torch.zeros_like(target)})
        assert torch.isfinite(value) and value > 0

    def test_passes_the_same_check_as_the_others(self, lab):
        assert check_losses(load(lab, self.NAME, code="allowed")) == []

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("my_lab_losses:my_los", r"unknown function 'my_los' \(did you mean 'my_loss'\?\)"),
            ("my_lab_loses:my_loss", "module 'my_lab_loses' can't be imported: No module named 'my_lab_loses'"),
            (
                "my_lab_losses:no_loss",
                r"no_loss is no loss: expected \(logits, target, \*, settings...\), got \(probs\)",
            ),
        ],
    )
    def test_what_is_no_loss_is_refused(self, lab, name, words):
        with pytest.raises(StudyError, match=words):
            load(lab, f"{{name: '{name}'}}", code="allowed")

    def test_unknown_settings_are_refused(self, lab):
        with pytest.raises(StudyError, match=r"unknown my_lab_losses:my_loss setting 'cell_wait'"):
            load(lab, "{name: 'my_lab_losses:my_loss', settings: {cell_wait: 3}}", code="allowed")

    def test_changed_code_is_another_trial_and_never_runs_as_the_old_one(self, lab):
        before = load(lab, self.NAME, code="allowed")
        (lab / "my_lab_losses.py").write_text(MY_LOSS.replace("mean()", "sum()"))
        sys.modules.pop("my_lab_losses")
        with pytest.raises(StudyError, match="its code here differs"):
            loss_of(before).build()
        after = load(lab, self.NAME, code="allowed")
        assert before.trials()[0].key("f") != after.trials()[0].key("f")

    SEARCH = """
        search:
          budget: 3
          space: {{loss: {loss}, training: {{lr: {{uniform: [0.001, 0.002]}}}}}}
        """

    def test_a_search_runs_none_without_the_flag_and_knows_its_code(self, lab):
        search = self.SEARCH.format(loss="{name: 'my_lab_losses:my_loss'}")
        words = r"search.space.loss.name: 'my_lab_losses:my_loss' is code outside cellray; --allow-code runs it"
        with pytest.raises(StudyError, match=words):
            load(lab, "{name: bce}", search)
        study = load(lab, "{name: bce}", search, code="allowed")
        configuration = study.examples()[-1]
        assert configuration.loss is not None and configuration.loss.code == code_hash(
            find_function("my_lab_losses:my_loss")
        )
        assert read_study(study.dump_yaml(), "copy") == study

    def test_a_search_takes_it_only_in_a_part_of_its_own(self, lab):
        listed = self.SEARCH.format(loss="{name: {choice: [bce, 'my_lab_losses:my_loss']}}")
        with pytest.raises(StudyError, match=r"give it a part of its own, choice: \{mine: \{name: …\}\}"):
            load(lab, "{name: dice}", listed, code="allowed")
        named = self.SEARCH.format(loss="{choice: {plain: {name: bce}, mine: {name: 'my_lab_losses:my_loss'}}}")
        assert {c.loss.name for c in load(lab, "{name: dice}", named, code="allowed").examples() if c.loss} == {
            "dice", "bce", "my_lab_losses:my_loss"
        }  # fmt: skip

    def test_a_stored_copy_is_read_without_the_code(self, lab):
        study = load(lab, self.NAME, code="allowed")
        text = study.dump_yaml()
        (lab / "my_lab_losses.py").unlink()
        sys.modules.pop("my_lab_losses")
        copy = read_study(text, "copy")
        assert copy == study
        assert loss_of(copy).describe() == "my_lab_losses:my_loss(cell_weight=3)"


class TestQuirks:
    def test_the_reference_protocol_is_all_of_them(self, tmp_path):
        study = load(tmp_path, "{name: focal_tversky@code}", "protocol: fluocells-2023")
        assert study.all_quirks == tuple(QUIRKS)
        assert len(QUIRKS) == 7
        trial = study.trials()[0]
        assert trial.loss.double_activation and trial.loss.name == "flattened_focal_tversky"
        assert (trial.training.lr, trial.training.schedule) == (1e-3, "one_cycle")
        assert (trial.evaluation.matching, trial.evaluation.counts) == ("many_to_one", "released")
        assert trial.evaluation.operating_point == trial.evaluation.shared_point

    def test_the_strict_protocol_has_none(self, tmp_path):
        study = load(tmp_path, "{name: dice}")
        trial = study.trials()[0]
        assert study.all_quirks == trial.quirks == ()
        assert (trial.evaluation.matching, trial.evaluation.counts) == ("one_to_one", "correct")
        assert trial.evaluation.operating_point == "validation"

    def test_the_loss_computes_what_the_released_code_did(self, tmp_path):
        logits, target = some_batch()
        loss = loss_of(load(tmp_path, "{name: dice}", "quirks: [double_activation]")).build()
        # softmax of (1 - p, p) is the sigmoid of 2 p - 1
        p = logits.sigmoid()
        again = torch.softmax(torch.cat([1 - p, p], dim=1), dim=1)[:, 1:]
        torch.testing.assert_close(loss(logits, target), dice_loss(torch.logit(again), target), rtol=1e-4, atol=1e-5)
        loss = loss_of(load(tmp_path, "{name: focal_tversky@code}", "quirks: [flattened_tversky]")).build()
        wrong = (logits.sigmoid() - target).abs().mean()  # over both channels: one minus the mean of the right one's
        torch.testing.assert_close(loss(logits, target), wrong ** (4 / 3), rtol=1e-4, atol=1e-5)
        settings = {"fp_weight": 0.3, "fn_weight": 0.7, "exponent": 4 / 3, "smooth": 1e-6}
        torch.testing.assert_close(loss(logits, target), flattened_focal_tversky_loss(logits, target, **settings))
        assert abs(loss(logits, target) - focal_tversky_loss(logits, target, **settings)) > 0.05

    def test_flattening_reaches_the_terms_of_a_combined_loss(self, tmp_path):
        loss = loss_of(load(tmp_path, "{name: combined_ft_balanced@code}", "quirks: [flattened_tversky]"))
        assert [t.name for t in loss.terms] == ["bce", "dice", "flattened_focal_tversky"]
        assert [t.weight for t in loss.terms] == [0.3, 0.3, 0.4]

    def test_settings_that_a_quirk_makes_impossible_are_named(self, tmp_path):
        with pytest.raises(StudyError, match=r"configurations\[0\]\.loss\.settings\.exponent: with the quirks flatt"):
            load(tmp_path, "{name: focal_tversky@paper}", "quirks: [flattened_tversky]")

    def test_a_configuration_can_have_those_that_act_on_training(self, tmp_path):
        file = tmp_path / "study.yaml"
        configurations = (
            "  - {label: it, loss: {name: dice}}\n"
            "  - {label: twice, loss: {name: dice}, quirks: [double_activation]}\n"
            "  - {label: slow, loss: {name: dice}, quirks: [lr_test_ignored]}\n"
        )
        file.write_text(STUDY.replace("  - {label: it, loss: LOSS}\n", configurations))
        it, twice, slow = load_study(file).trials()
        assert (it.quirks, twice.quirks, slow.quirks) == ((), ("double_activation",), ("lr_test_ignored",))
        assert len({t.key("f") for t in (it, twice, slow)}) == 3
        assert it.training.lr == twice.training.lr == "tune" and slow.training.lr == 1e-3

    def test_those_that_act_on_evaluation_train_nothing_anew(self, tmp_path):
        facts = {"test": {"fingerprint": "a", "diameter_px": 20}}
        plain = load(tmp_path, "{name: dice}").trials()[0]
        for name in ("many_to_one", "released_counts", "shared_threshold"):
            trial = load(tmp_path, "{name: dice}", f"quirks: [{name}]").trials()[0]
            assert trial.key("f") == plain.key("f")
            assert trial.evaluation_key(facts) != plain.evaluation_key(facts)
        skips = load(tmp_path, "{name: dice}", "quirks: [skip_collapsed]").trials()[0]
        assert (skips.key("f"), skips.evaluation_key(facts)) == (plain.key("f"), plain.evaluation_key(facts))

    @pytest.mark.parametrize(
        ("quirks", "words"),
        [
            ("quirks: [double_activatoin]", r"quirks: unknown quirk .* \(did you mean 'double_activation'\?\)"),
            ("allow: [flor]", r"allow: unknown loss check 'flor' \(did you mean 'floor'\?\)"),
        ],
    )
    def test_unknown_ones_are_refused(self, tmp_path, quirks, words):
        with pytest.raises(StudyError, match=words):
            load(tmp_path, "{name: dice}", quirks)

    def test_a_configuration_cannot_have_those_that_act_on_evaluation(self, tmp_path):
        with pytest.raises(StudyError, match=r"configurations\[0\]\.quirks: 'many_to_one' acts on evaluation"):
            load(tmp_path, "{name: dice}, quirks: [many_to_one]")


class TestLossCheck:
    def test_a_fault_stops_the_study_and_names_what_would_let_it_through(self, tmp_path):
        study = load(tmp_path, "{name: released_bce}")
        with pytest.raises(StudyError, match=r"allow: \[.*double_activation.*\].*\n  'it': loss check"):
            check_losses(study)

    def test_what_is_allowed_is_said(self, tmp_path):
        study = load(tmp_path, "{name: released_bce}", "allow: [double_activation, floor]")
        notes = check_losses(study)
        assert any("double_activation" in note and "let through by allow" in note for note in notes)

    def test_a_quirk_lets_through_the_fault_it_makes(self, tmp_path):
        study = load(tmp_path, "{name: focal_tversky@code}", "protocol: fluocells-2023")
        notes = check_losses(study)
        assert any("quirk double_activation" in note for note in notes)
        assert any("quirk flattened_tversky" in note for note in notes)

    @pytest.mark.parametrize(
        "file", sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml")), ids=lambda f: f.stem
    )
    @pytest.mark.slow
    def test_every_shipped_study_may_start(self, file, monkeypatch):
        monkeypatch.setenv("FNC_ROOT", "/data/fnc")
        monkeypatch.setenv("CELLRAY_SHARED", "/data/shared")
        check_losses(load_study(file))

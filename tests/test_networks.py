"""Networks beside c-ResUnet: of libraries and of the user's own, checked, started from weights, compared."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import some_networks
import torch
from conftest import skip_or_fail
from pictures import tiny_trial
from tiny_study import draw_images, tiny_study
from torch import nn
from typer.testing import CliRunner

from cellray.cli.model import model_app
from cellray.errors import LedgerError, StudyError
from cellray.evaluation import predict_image
from cellray.ledger import Ledger, read_weights, weights_of
from cellray.model import MODELS, build_model, library, load_weights
from cellray.model.check import NETWORK_CHECKS, NetworkFinding, check_network
from cellray.prediction import TrainedModel
from cellray.study import ModelConfig, Study, check_networks, load_study, model_named
from cellray.training import ALONE
from cellray.training.batch_norm import estimate_batch_norm, share_batch_norm
from cellray.trial import Sets, run_trial

TESTS = Path(__file__).parent
SMALL = {
    "smp": {"architecture": "FPN", "encoder": "resnet18"},
    "monai_unet": {"channels": [4, 8, 16]},
    "monai_dynunet": {"filters": [4, 8, 16]},
    "monai_segresnet": {"filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
}
"""Small networks of other libraries, by name."""


def needs(name: str) -> None:
    """Skip where a network's library isn't installed."""
    try:
        library({"smp": "segmentation_models_pytorch"}.get(name, "monai"))
    except StudyError as error:
        skip_or_fail(str(error))


def checked(name: str, batch: tuple[int, int] | None = None) -> dict[str, NetworkFinding]:
    found = check_network(partial(model_named(name).build, 1), 1, batch)
    return {finding.check: finding for finding in found}


def failed(name: str) -> dict[str, str]:
    """The reasons of the checks that a network of `some_networks` fails."""
    found = checked(f"some_networks:{name}")
    return {check: finding.reason for check, finding in found.items() if finding.status == "failure"}


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield draw_images(tmp_path_factory.mktemp("images") / "disks")


RECORDED = {16: "096c7c073eb53fb4", 2: "6a64a422565a5e3c"}
"""Trial keys by base features, written down before there were other networks."""


class TestTrialKeys:
    def test_are_those_of_older_ledgers(self):
        first = {"checkpoint": "coarse_dice", "clip": None}
        trial = tiny_trial(base_features=16, **first)
        assert ModelConfig().decisive() == {"name": "c_resunet", "base_features": 16}
        assert trial.key("f" * 16) == RECORDED[16]
        assert tiny_trial(base_features=2, **first).key("f" * 16) == RECORDED[2]

    def test_settings_code_and_weights_decide_and_paths_dont(self):
        def key(**model: object) -> str:
            return tiny_trial().model_copy(update={"model": ModelConfig.model_validate(model)}).key("f")

        one = key(name="monai_unet")
        assert one == key(name="monai_unet", settings={"norm": "instance"})
        others = [
            key(name="monai_unet", settings={"norm": "batch"}),
            key(name="monai_unet", weights="a", weights_hash="1"),
            key(name="monai_unet", weights="a", weights_hash="2"),
            key(name="lab:Net", code="1"),
            key(name="lab:Net", code="2"),
        ]
        assert len({one, *others}) == 6
        assert key(weights="a", weights_hash="1") == key(weights="b", weights_hash="1")


class TestSettings:
    def test_are_completed_from_the_signature(self):
        assert ModelConfig(name="monai_unet", settings={"norm": "batch"}).settings == {
            "channels": [16, 32, 64, 128, 256],
            "residual_units": 2,
            "norm": "batch",
            "dropout": 0.0,
        }

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            ("{name: smpp}", r"study.yaml:4: model.name: unknown model 'smpp' \(did you mean 'smp'\?\)"),
            ("{name: smp, base_features: 8}", "model.base_features: belongs to c_resunet; smp has settings"),
            ("{settings: {width: 8}}", "model.settings: c_resunet has none: its width is base_features"),
            ("{name: monai_unet, settings: {norn: batch}}", r"unknown monai_unet setting 'norn' \(did you mean 'norm'"),
            ("{name: monai_unet, settings: {norm: group}}", "model.settings.norm: must be 'instance' or 'batch', got"),
            ("{name: 'lab:Net'}", "model.name: 'lab:Net' is code outside cellray; --allow-code runs it"),
        ],
    )
    def test_a_wrong_one_is_named_with_its_key(self, tmp_path, model, words):
        with pytest.raises(StudyError, match=words):
            load(tmp_path, model)

    def test_a_configuration_with_another_network_takes_none_of_the_studys(self, tmp_path):
        study = load(tmp_path, "{base_features: 8}", "{name: monai_unet, settings: {norm: batch}}")
        one, other = (trial.model for trial in study.trials())
        assert (one.base_features, other.base_features, other.settings["norm"]) == (8, None, "batch")

    def test_a_configuration_changes_single_settings_of_the_same_network(self, tmp_path):
        study = load(tmp_path, "{name: monai_unet, settings: {residual_units: 1}}", "{settings: {norm: batch}}")
        assert [(t.model.settings["norm"], t.model.settings["residual_units"]) for t in study.trials()] == [
            ("instance", 1),
            ("batch", 1),
        ]

    def test_a_search_over_networks_has_no_weights_to_start_from(self, tmp_path):
        file = tmp_path / "study.yaml"
        space = "{model: {name: monai_unet, weights: a.pt}, training: {lr: {uniform: [0.1, 0.2]}}}"
        file.write_text(
            STUDY.format(model="{base_features: 2}", other="{}").lstrip() + f"search: {{budget: 9, space: {space}}}\n"
        )
        with pytest.raises(StudyError, match=r"search\.space\.model: weights to start from are no part of a search"):
            load_study(file)

    def test_a_study_over_networks_says_so(self, tmp_path):
        study = load(tmp_path, "{base_features: 8}", "{name: monai_unet}")
        compared = {role.parameter: role.value for role in study.roles() if role.role == "compared"}
        assert compared["model"] == ["c_resunet(base_features=8)", "monai_unet"]

    def test_the_resolved_copy_is_an_equal_study(self, tmp_path):
        study = load(tmp_path, "{name: monai_dynunet}", "{name: smp, settings: {options: {decoder_dropout: 0.1}}}")
        (tmp_path / "copy.yaml").write_text(study.dump_yaml())
        assert load_study(tmp_path / "copy.yaml") == study


STUDY = """
name: nets
question: Which?
data: {{train: {{name: disks, path: nowhere}}}}
model: {model}
training: {{steps: 4, crop_px: 32}}
loss: {{name: dice}}
configurations:
  - {{label: one, loss: {{name: bce}}}}
  - {{label: other, model: {other}}}
seeds: [0]
"""


def load(folder: Path, model: str, other: str = "{}", **how) -> Study:
    file = folder / "study.yaml"
    file.write_text(STUDY.format(model=model, other=other).lstrip("\n").replace("model: {}", "training: {lr: 1.0}"))
    return load_study(file, **how)


class TestCheck:
    @pytest.mark.parametrize("name", ["Plain", "Halving", "Counting"])
    def test_what_is_right_has_no_finding(self, name):
        assert [f.check for f in checked(f"some_networks:{name}").values() if f.status == "pass"] == list(
            NETWORK_CHECKS
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["c_resunet", *SMALL])
    def test_every_network_of_the_catalogue_is_right(self, name):
        if name in SMALL:
            needs(name)
        config = ModelConfig(name=name, settings=SMALL.get(name, {}), base_features=None if name in SMALL else 2)
        assert [f for f in check_network(partial(config.build, 3), 3, (2, 64)) if f.status == "failure"] == []

    @pytest.mark.parametrize(
        ("name", "check", "words"),
        [
            ("TwoChannels", "output", "it returns 2 x 2 x 64 x 65 for 2 x 1 x 64 x 65; expected 2 x 1 x 64 x 65"),
            ("Several", "output", "In training it returns a list"),
            ("Half", "build", "multiples of 128 or less: images of 128 x 128 become 64 x 64"),
            ("Fixed", "build", "it takes no image whose sides are multiples of 128 or less: expected 48 x 48"),
            ("Sigmoid", "logits", r"stays in [0, 1]: probabilities"),
            ("Tanh", "logits", r"stays in [-1, 1], as after tanh"),
            ("Relu", "logits", "nothing below 0"),
            ("Unused", "trained", "doesn't reach forgotten.weight, forgotten.bias of 6 weights"),
            ("Detached", "trained", "doesn't reach first.weight, first.bias of 4 weights"),
            ("DropsAlways", "repeatable", "two answers to the same images"),
            ("LooksAround", "repeatable", "with the others of the batch"),
            ("Unseeded", "repeatable", "With the same seed it starts with other weights: first.bias"),
            ("Forgetful", "state", "isn't in state_dict()"),
            ("NoNetwork", "build", "expected a torch.nn.Module, got NoNetwork"),
        ],
    )
    def test_each_fault_is_found_by_its_check(self, name, check, words):
        found = failed(name)
        assert words in found[check]

    @pytest.mark.parametrize(
        ("name", "check", "words"),
        [("Frozen", "trained", "first.weight, first.bias"), ("WithOwnNorm", "norm", "norm (OwnNorm)")],
    )
    def test_some_is_only_worth_knowing(self, name, check, words):
        finding = checked(f"some_networks:{name}")[check]
        assert finding.status == "warning" and words in finding.reason

    def test_the_sizes_are_measured(self):
        assert build_model("some_networks:Halving", in_channels=1).size_multiple == 4
        assert build_model("c_resunet", base_features=2, in_channels=1, device="meta").size_multiple == 8
        assert checked("some_networks:Halving", (2, 30))["sizes"].reason == (
            "Sides must be multiples of 4, and training.crop_px is 30."
        )

    def test_a_batch_that_is_too_small_for_its_normalisation_is_found(self):
        found = checked("some_networks:Squeezing", (1, 32))["sizes"]
        assert (
            "It can't be trained on 1 crops of training.crop_px 32 at once: Expected more than 1 value" in found.reason
        )
        assert checked("some_networks:Squeezing", (2, 32))["sizes"].status == "pass"

    def test_nothing_of_the_caller_changes(self):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        checked("some_networks:Counting")
        build_model("some_networks:Counting", in_channels=1, device="meta")
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_study_is_stopped_with_the_configuration_named(self, tmp_path):
        study = load(tmp_path, "{base_features: 2}", "{name: 'some_networks:Unused'}", code="allowed")
        with pytest.raises(
            StudyError, match=r"'other': network check trained: The gradient doesn't reach forgotten.weight"
        ):
            check_networks(study)
        assert (
            check_networks(load(tmp_path, "{base_features: 2}", "{name: 'some_networks:Plain'}", code="allowed")) == []
        )

    def test_the_command_tells_and_ends_with_1(self, monkeypatch):
        monkeypatch.chdir(TESTS)
        result = CliRunner().invoke(model_app, ["check", "some_networks:Plain", "some_networks:Sigmoid", "--json"])
        assert result.exit_code == 1
        told = json.loads(result.stdout)
        assert [row["network"] for row in told] == ["some_networks:Plain", "some_networks:Sigmoid"]
        assert [f["check"] for f in told[1]["findings"] if f["status"] == "failure"] == ["logits"]
        assert "✗ logits" in CliRunner().invoke(model_app, ["check", "some_networks:Sigmoid"]).output

    def test_the_list_names_every_network(self):
        rows = json.loads(CliRunner().invoke(model_app, ["list", "--json"]).stdout)
        assert [row["name"] for row in rows] == list(MODELS)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("some_networks:Plane", r"unknown function 'Plane' \(did you mean 'Plain'\?\)"),
            ("sum_networks:Plain", "module 'sum_networks' can't be imported"),
            ("some_networks:no_factory", r"expected a parameter in_channels, got \(width"),
        ],
    )
    def test_a_path_that_leads_nowhere_is_told(self, name, words):
        with pytest.raises(StudyError, match=words):
            model_named(name)


class TestLibraries:
    def test_one_that_is_missing_is_named_with_what_installs_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "monai", None)
        monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
        with pytest.raises(StudyError, match=r"this network needs monai: pip install 'cellray\[networks\]'"):
            build_model("monai_unet", in_channels=1)

    def test_none_is_imported_before_it_is_used(self):
        code = "import sys, cellray.cli; print([m for m in ('monai', 'timm', 'torchvision') if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"architecture": "Unett"}, r"unknown architecture 'Unett' \(did you mean 'Unet'\?\)"),
            ({"encoder": "resnet19"}, "Unet with the encoder 'resnet19' and depth 5: Wrong encoder name `resnet19`"),
            ({"options": {"classes": 2}}, "options.classes isn't for a study to set"),
        ],
    )
    def test_what_smp_has_not_is_told_in_a_line(self, settings, words):
        needs("smp")
        with pytest.raises(StudyError, match=words) as caught:
            build_model("smp", in_channels=1, **settings)
        assert "\n" not in str(caught.value)

    def test_smp_downloads_nothing_and_has_the_encoder_it_was_asked_for(self):
        needs("smp")
        model = build_model("smp", in_channels=1, architecture="Unet", encoder="resnet18", depth=3)
        assert type(model).__name__ == "Unet" and model.encoder.conv1.in_channels == 1
        assert len(model.decoder.blocks) == 3


class TestSizes:
    def test_an_image_of_any_size_is_continued_to_what_the_network_takes(self):
        class Averaged(nn.Module):
            size_multiple = 32

            def forward(self, images):
                assert images.shape[-2] % 32 == images.shape[-1] % 32 == 0
                return images.mean(1, keepdim=True)

        image = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
        probs = predict_image(Averaged(), image, device=torch.device("cpu"), precision="float32")
        torch.testing.assert_close(torch.from_numpy(probs), torch.from_numpy(image / 255).float().mean(-1).sigmoid())


class TestBatchNorm:
    def test_a_network_without_any_is_left_alone(self):
        model = build_model("some_networks:Plain", in_channels=1)
        estimate_batch_norm(model, iter([None]), device=torch.device("cpu"), precision="float32")
        share_batch_norm(model, torch.device("cpu"))
        assert ALONE.wrap(model, torch.device("cpu")) is model

    def test_one_that_several_workers_cant_share_is_refused(self):
        model = build_model("some_networks:WithOwnNorm", in_channels=1)
        with pytest.raises(StudyError, match=r"norm is a OwnNorm of some_networks, .* set resources.workers: 1"):
            share_batch_norm(model, torch.device("cpu"))


class TestWeights:
    def plain(self) -> nn.Module:
        torch.manual_seed(1)
        return some_networks.Plain(1)

    @pytest.mark.parametrize(
        "wrapped",
        [
            lambda state: state,
            lambda state: {"model": state, "epoch": 3},
            lambda state: {"state_dict": {f"model.{name}": t for name, t in state.items()}},
            lambda state: {f"module.{name}": t for name, t in state.items()},
        ],
    )
    def test_are_read_from_what_people_have(self, wrapped):
        source, target = self.plain(), some_networks.Plain(1)
        load_weights(target, saved(wrapped(source.state_dict())), "a.pt")
        assert all(map(torch.equal, source.state_dict().values(), target.state_dict().values()))

    def test_an_encoder_alone_is_loaded_without_its_classifier(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.head = some_networks.Plain(1), nn.Conv2d(1, 1, 1)

        source, target = self.plain(), Net()
        load_weights(target, saved({**source.state_dict(), "fc.weight": torch.zeros(3)}), "a.pt")
        assert torch.equal(target.encoder.first.weight, source.first.weight)

    def test_what_does_not_fit_is_one_error_that_names_the_layers(self):
        state = some_networks.Plain(3).state_dict()
        del state["last.bias"]
        state["more.weight"] = torch.zeros(1)
        with pytest.raises(StudyError) as caught:
            load_weights(self.plain(), saved(state), "a.pt")
        assert str(caught.value) == (
            "the weights a.pt don't fit this network: first.weight is 4 x 3 x 3 x 3 there and 4 x 1 x 3 x 3 here; "
            "last.bias isn't there; more.weight is there only"
        )

    def test_code_in_a_file_never_runs(self):
        with pytest.raises(StudyError, match="holds more than tensors and plain values"):
            load_weights(self.plain(), saved({"model": self.plain()}), "a.pt")

    @pytest.mark.parametrize("content", [b"", b"no file of torch", saved({"a": 1}), saved([1])])
    def test_what_is_no_file_of_weights_is_told(self, content):
        with pytest.raises(StudyError, match=r"the weights a.pt"):
            load_weights(self.plain(), content, "a.pt")

    def test_a_file_is_found_beside_the_study_and_its_content_is_in_the_key(self, tmp_path):
        def hashed(content: bytes) -> str | None:
            (tmp_path / "start.pt").write_bytes(content)
            read = partial(read_weights, storage=str(tmp_path))
            study = load(tmp_path, "{base_features: 2}", "{weights: start.pt}", read_weights=read)
            one, other = (trial.model for trial in study.trials())
            assert (one.weights, one.weights_hash, other.weights) == (None, None, str(tmp_path / "start.pt"))
            return other.weights_hash

        assert hashed(b"one") != hashed(b"two")

    def test_a_missing_one_is_told_with_its_line(self, tmp_path):
        read = partial(read_weights, storage=str(tmp_path))
        words = r"study.yaml:9: configurations\[1\].model.weights: no weights can be read at .*start.pt: No such file"
        with pytest.raises(StudyError, match=words):
            load(tmp_path, "{base_features: 2}", "{weights: start.pt}", read_weights=read)

    @pytest.mark.slow
    def test_a_trial_starts_from_them_and_a_changed_file_never_does(self, images, tmp_path):
        first, sets, ledger = trained(images, tmp_path)
        (trial,) = [t for t in first.trials() if t.label == "Dice"]
        best = ledger.load_checkpoint(sets.keys(trial)[0], "best")
        assert read_weights("study:tiny/Dice/0", storage=str(tmp_path)) == best
        config = ModelConfig.model_validate(
            {"base_features": 2, "weights": "study:tiny/Dice/0"},
            context={"read_weights": partial(read_weights, storage=str(tmp_path))},
        )
        assert weights_of(config, str(tmp_path)) == best
        # Without a step that changes them, what is judged are the weights that were given.
        onward = trial.model_copy(
            update={"model": config, "training": trial.training.model_copy(update={"steps": 1, "lr": 1e-30})}
        )
        record = run_trial(onward, sets, ledger)
        assert record is not None and record.outcome == "finished" and record.key != sets.keys(trial)[0]
        kept = ledger.load_checkpoint(record.key, "best")
        assert best is not None and kept is not None
        old, new = (torch.load(io.BytesIO(data), weights_only=True)["model"] for data in (best, kept))
        assert torch.equal(old["head.weight"], new["head.weight"])
        stale = onward.model_copy(update={"model": config.model_copy(update={"weights_hash": "0" * 16})})
        failed = run_trial(stale, sets, ledger)
        assert failed is not None and failed.outcome == "failed" and "they differ here" in str(failed.reason)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("address", "words"),
        [
            ("study:tiny/Dise/0", r"unknown trial 'Dise/0' \(did you mean 'Dice/0'\?\)"),
            ("study:other/Dice/0", "no plan.json"),
            ("study:tiny", "expected study:NAME/LABEL/SEED"),
            ("study:tiny/BCE/0", "has no checkpoint `best`"),
        ],
    )
    def test_a_trial_that_is_not_there_is_told(self, images, tmp_path, address, words):
        trained(images, tmp_path)
        with pytest.raises(StudyError, match=words):
            read_weights(address, storage=str(tmp_path))


def trained(images: Path, storage: Path, label: str = "Dice", **changes) -> tuple[Study, Sets, Ledger]:
    """A tiny study of which one trial has been trained."""
    study = tiny_study(images, training={"steps": 2}, **changes)
    sets, ledger = Sets.open(study.data), Ledger(str(storage), study.name)
    ledger.write_plan(sets.plan(study.trials(), ledger))
    for trial in study.trials():
        if trial.label == label:
            run_trial(trial, sets, ledger)
    return study, sets, ledger


class TestOwnNetwork:
    CONFIGURATIONS = ({"label": "Own", "loss": {"name": "dice"}, "model": {"name": "some_networks:Halving"}},)

    def test_is_trained_judged_and_used_again(self, images, tmp_path):
        trained(images, tmp_path, "Own", configurations=self.CONFIGURATIONS)
        ledger = Ledger(str(tmp_path), "tiny")
        with pytest.raises(StudyError, match="some_networks:Halving' is code outside cellray; --allow-code runs it"):
            TrainedModel.load(ledger, "Own")
        (record,) = ledger.records()
        assert record.outcome in ("finished", "collapsed") and record.settings.model.name == "some_networks:Halving"
        if record.operating_point is None:
            with pytest.raises(LedgerError):
                TrainedModel.load(ledger, "Own", allow_code=True)
        else:
            assert isinstance(TrainedModel.load(ledger, "Own", allow_code=True).network, some_networks.Halving)

    def test_changed_code_is_another_trial_and_never_runs_as_the_old_one(self, tmp_path, monkeypatch):
        (tmp_path / "lab_nets.py").write_text((TESTS / "some_networks.py").read_text())
        monkeypatch.syspath_prepend(str(tmp_path))
        before = load(tmp_path, "{base_features: 2}", "{name: 'lab_nets:Plain'}", code="allowed").trials()[1]
        assert before.model.build(1)(torch.rand(1, 1, 8, 8)).shape == (1, 1, 8, 8)
        with (tmp_path / "lab_nets.py").open("a") as file:
            file.write("\nCHANGED = True\n")
        sys.modules.pop("lab_nets")
        with pytest.raises(StudyError, match="network 'lab_nets:Plain': its code here differs from that of the study"):
            before.model.build(1)
        after = load(tmp_path, "{base_features: 2}", "{name: 'lab_nets:Plain'}", code="allowed").trials()[1]
        assert before.key("f") != after.key("f")
        sys.modules.pop("lab_nets")

    def test_a_configuration_that_names_it_again_keeps_the_studys_settings(self, tmp_path):
        own = "{name: 'some_networks:Plain', settings: {width: 3}}"
        study = load(tmp_path, own, "{name: 'some_networks:Plain', weights: a.pt}", code="allowed")
        assert [trial.model.settings for trial in study.trials()] == [{"width": 3}, {"width": 3}]
        with pytest.raises(StudyError, match=r"model\.settings\.wide: unknown some_networks:Plain setting 'wide'"):
            load(tmp_path, own, "{name: 'some_networks:Plain', settings: {wide: 3}}", code="allowed")

    def test_its_settings_are_any_parameters_but_the_channels(self):
        config = model_named("some_networks:Plain")
        assert config.settings == {"width": 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_network_of_a_library_is_trained_and_judged(images, tmp_path, name):
    needs(name)
    model = {"name": name, "settings": SMALL[name]}
    trained(images, tmp_path, "It", configurations=[{"label": "It", "loss": {"name": "bce"}, "model": model}])
    (record,) = Ledger(str(tmp_path), "tiny").records()
    assert record.outcome != "failed", record.reason
    assert record.n_parameters == sum(p.numel() for p in build_model(name, in_channels=3, **SMALL[name]).parameters())


@pytest.mark.slow
def test_dropout_draws_the_same_after_a_resume(images, tmp_path):
    needs("monai_unet")
    model = {"name": "monai_unet", "settings": {**SMALL["monai_unet"], "dropout": 0.3}}
    changes = {"configurations": [{"label": "It", "loss": {"name": "dice"}, "model": model}]}
    histories = []
    for name, until in (("whole", None), ("paused", 2)):
        study = tiny_study(images, **changes)
        sets, ledger = Sets.open(study.data), Ledger(str(tmp_path / name), study.name)
        (trial,) = study.trials()
        if until is not None:
            assert run_trial(trial, sets, ledger, until=until) is None
        record = run_trial(trial, sets, ledger)
        assert record is not None
        histories.append(ledger.table(record.key, "history")["train_loss"].tolist())
    assert histories[0] == histories[1]

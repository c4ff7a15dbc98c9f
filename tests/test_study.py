"""The study file: what loads, what is refused and in which words, and what decides a trial's key."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cellray.errors import StudyError
from cellray.losses import LOSSES, PRESETS, RELEASED
from cellray.study import (
    LossConfig,
    Study,
    SyntheticConfig,
    Trial,
    check_loss_settings,
    load_study,
    short_hash,
    study_schema,
)
from cellray.study.loading import read_study
from cellray.study.yaml_tree import read_tree, write_tree

SEARCH_SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))

GOOD = """\
name: small
question: Which loss?
data:
  train: {name: drawn, synthetic: {n_trainval: 10}}
  external:
    - {name: other, path: sets/other.zip, diameter_px: 20}
model: {base_features: 8}
training:
  steps: 10
  batch_size: 4
  crop_px: 96
  lr: 1e-3
configurations:
  - label: Dice
    loss: {name: dice}
  - label: Focal
    loss:
      name: focal
      settings: {exponent: 2}
seeds: [0, 5]
evaluation:
  rank_by: f1_iou
"""


def load(tmp_path: Path, text: str = GOOD, **options: Any) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return load_study(file, **options)


def changed(**changes: Any) -> dict[str, Any]:
    """The good study with values replaced at dotted paths ("__" for "."), as plain values."""
    values = copy.deepcopy(read_tree(GOOD)[0])
    for path, value in changes.items():
        *above, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place: Any = values
        for part in above:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        place[last] = value
    return values


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FNC_ROOT", "/data/fnc")
    monkeypatch.setenv("CELLRAY_SHARED", "/data/shared")


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(study_schema())


# Loading


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("file", SEARCH_SPACES, ids=lambda file: file.stem)
class TestShippedStudies:
    def test_loads_and_has_its_configurations(self, file: Path) -> None:
        study = load_study(file)
        # five losses with and without quirks; every mixture of quarters; the combined ones; the reference study's, and
        # one of them by batch
        n = {"quirks": 22, "lambda_grid": 15, "lambda_tuning": 6, "real_rare": 13}.get(file.stem, 12)
        assert study.name == file.stem
        assert len(study.configurations) == n
        assert len(study.trials()) == n * len(study.seeds)
        assert len({trial.key("f") for trial in study.trials()}) == len(study.trials())

    def test_resolved_copy_loads_back_equal(self, file: Path, tmp_path: Path) -> None:
        study = load_study(file)
        assert load(tmp_path, study.dump_yaml()) == study

    def test_fits_the_schema_as_written_and_as_resolved(
        self, file: Path, schema: jsonschema.Draft202012Validator
    ) -> None:
        schema.validate(read_tree(file.read_text())[0])
        schema.validate(read_tree(load_study(file).dump_yaml())[0])


@pytest.mark.usefixtures("_environment")
def test_ablation_has_the_values_of_the_slides() -> None:
    slides = {
        "BCE: low": {"name": "bce", "settings": {"cell_weight": 50, "background_weight": 1}},
        "BCE: high": {"name": "bce", "settings": {"cell_weight": 200, "background_weight": 1}},
        "Focal Tversky": {
            "name": "focal_tversky",
            "settings": {"fp_weight": 0.3, "fn_weight": 0.7, "exponent": 2, "smooth": 1e-6},
        },
    }
    losses = {c.label: c.loss for c in load_study(SEARCH_SPACES[0].with_name("ablation.yaml")).configurations}
    for label, settings in slides.items():
        assert losses[label] == LossConfig.model_validate(settings)
    weights = {label: [t.weight for t in loss.terms] for label, loss in losses.items() if loss and loss.terms}
    assert weights["Combined: CellViT"] == weights["CombinedFT: CellViT"] == [0.5, 0.3, 0.5]
    assert weights["Combined: balanced"] == [0.3, 0.3, 0.4]
    assert weights["CombinedFT: overcrowd"] == [0.2, 0.5, 0.3]


def test_paths_start_at_the_study_file_and_take_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE_ARE_IMAGES", "/images")
    assert load(tmp_path).data.external[0].path == str(tmp_path / "sets/other.zip")
    text = GOOD.replace("sets/other.zip", '"${HERE_ARE_IMAGES}/a.zip"').replace("Which loss?", "${HERE_ARE_IMAGES}?")
    study = load(tmp_path, text)
    assert study.data.external[0].path == "/images/a.zip"
    assert study.question == "${HERE_ARE_IMAGES}?"  # paths only


def test_numbers_are_read_as_yaml_1_2_does(tmp_path: Path) -> None:
    study = load(tmp_path, GOOD.replace("steps: 10", "steps: 010").replace("label: Dice", "label: yes"))
    assert study.training.lr == 0.001
    assert study.training.steps == 10
    assert study.configurations[0].label == "yes"


@pytest.mark.parametrize("text", ["yes", "1e-3", "0o7", "null", "12:30", "2024-01-01", "a: b", "-", " x", "é", "1_0"])
def test_written_text_is_read_as_the_same_text(text: str) -> None:
    assert read_tree(write_tree({"a": text}))[0] == {"a": text}


def test_merged_keys_keep_their_own_line_and_value(tmp_path: Path) -> None:
    text = GOOD.replace("model: {base_features: 8}", "model: &m {base_features: 8}")
    text = text.replace(
        "    loss: {name: dice}\n", "    loss: {name: dice}\n    model:\n      <<: *m\n      base_features: 4\n"
    )
    assert load(tmp_path, text).trials()[0].model.base_features == 4
    with pytest.raises(
        StudyError, match=r"study\.yaml:18: configurations\[0\]\.model\.base_features: must be at least 1"
    ):
        load(tmp_path, text.replace("base_features: 4", "base_features: 0"))


# Refusing: (what to replace in the good file, by what, line, key and words)

REFUSED: dict[str, tuple[str, str, int, str]] = {
    "unknown loss": (
        "name: dice",
        "name: dize",
        15,
        "configurations[0].loss.name: unknown loss 'dize' (did you mean 'dice'?)",
    ),
    "unknown setting of a loss": (
        "{exponent: 2}",
        "{exponnent: 2}",
        19,
        "configurations[1].loss.settings.exponnent: unknown focal setting 'exponnent' (did you mean 'exponent'?)",
    ),
    "text for a loss's number": (
        "{exponent: 2}",
        "{exponent: '2'}",
        19,
        "configurations[1].loss.settings.exponent: must be a number, got '2'",
    ),
    "negative loss setting": (
        "{exponent: 2}",
        "{exponent: -2}",
        19,
        "configurations[1].loss.settings.exponent: must be at least 0, got -2",
    ),
    "infinite loss setting": (
        "{exponent: 2}",
        "{exponent: .inf}",
        19,
        "configurations[1].loss.settings.exponent: must be a finite number, got inf",
    ),
    "unknown key": (
        "batch_size: 4",
        "bach_size: 4",
        10,
        "training.bach_size: unknown key 'bach_size' (did you mean 'batch_size'?)",
    ),
    "unknown top key": (
        "seeds: [0, 5]",
        "seeds: [0, 5]\nresource: {}",
        21,
        "resource: unknown key 'resource' (did you mean 'resources'?)",
    ),
    "unknown metric": ("f1_iou", "f1_iuo", 22, "evaluation.rank_by: unknown metric 'f1_iuo' (did you mean 'f1_iou'?)"),
    "unknown model": (
        "{base_features: 8}",
        "{name: c_resnet}",
        7,
        "model.name: unknown model 'c_resnet' (did you mean 'c_resunet'?)",
    ),
    "text for a number": (
        "batch_size: 4",
        "batch_size: '4'",
        10,
        "training.batch_size: must be a whole number, got '4'",
    ),
    "broken number": ("batch_size: 4", "batch_size: 4.5", 10, "training.batch_size: must be a whole number, got 4.5"),
    "truth for a number": (
        "batch_size: 4",
        "batch_size: true",
        10,
        "training.batch_size: must be a whole number, got true",
    ),
    "yes for true": (
        "crop_px: 96",
        "crop_px: 96\n  augment: {flips: yes}",
        12,
        "training.augment.flips: must be true or false, got 'yes'",
    ),
    "rate not positive": (
        "lr: 1e-3",
        "lr: 0.0",
        12,
        "training.lr: must be greater than 0 or 'range_test' or 'tune', got 0.0",
    ),
    "rate misspelt": (
        "lr: 1e-3",
        "lr: rangetest",
        12,
        "training.lr: must be a number or 'range_test' or 'tune', got 'rangetest' (did you mean 'range_test'?)",
    ),
    "crop not a multiple of 8": (
        "crop_px: 96",
        "crop_px: 100",
        11,
        "training.crop_px: must be a multiple of 8, got 100",
    ),
    "mapping expected": ("{base_features: 8}", "8", 7, "model: must be a mapping, got 8"),
    "list expected": ("seeds: [0, 5]", "seeds: 0", 20, "seeds: must be a list, got 0"),
    "no seeds": ("seeds: [0, 5]", "seeds: []", 20, "seeds: must have at least 1 entry, got []"),
    "seed repeated": ("seeds: [0, 5]", "seeds:\n  - 0\n  - 5\n  - 0", 23, "seeds[2]: seed 0 is given twice"),
    "label repeated": (
        "label: Focal",
        "label: Dice",
        16,
        "configurations[1].label: a second configuration is labelled 'Dice'",
    ),
    "same settings twice": (
        "name: focal\n      settings: {exponent: 2}",
        "name: dice",
        16,
        "configurations[1]: 'Focal' has the same settings as 'Dice': nothing is compared",
    ),
    "no loss": (
        "    loss: {name: dice}\n",
        "",
        14,
        "configurations[0]: configuration 'Dice' has no loss, nor has the study",
    ),
    "name and terms": (
        "{name: dice}",
        "{name: dice, terms: [{name: bce}]}",
        15,
        "configurations[0].loss: give either name or terms, not both and not neither",
    ),
    "missing key": ("question: Which loss?\n", "", 1, "question: this key is required"),
    "missing inner key": ("{name: drawn, ", "{", 4, "data.train.name: this key is required"),
    "epochs and steps": ("steps: 10", "steps: 10\n  epochs: 2", 8, "training: give either epochs or steps"),
    "bad change by a configuration": (
        "    loss: {name: dice}",
        "    loss: {name: dice}\n    training:\n      batchsize: 4",
        17,
        "configurations[0].training.batchsize: unknown key 'batchsize' (did you mean 'batch_size'?)",
    ),
    "unset variable": (
        "sets/other.zip",
        "'${CELLRAY_NOT_SET}/x.zip'",
        6,
        "data.external[0].path: environment variable CELLRAY_NOT_SET is not set, got '${CELLRAY_NOT_SET}/x.zip'",
    ),
    "external set without size": (", diameter_px: 20", "", 6, "data.external[0]: an external set needs diameter_px"),
    "external set called test": (
        "name: other",
        "name: test",
        6,
        "data.external[0].name: an external set can't be called 'test'",
    ),
    "two sources": (
        "{name: other, ",
        "{name: other, synthetic: {}, ",
        6,
        "data.external[0]: give either path or synthetic, not both and not neither",
    ),
    "unknown key of an operating point": (
        "rank_by: f1_iou",
        "operating_point: {treshold: 0.5}",
        22,
        "evaluation.operating_point.treshold: unknown key 'treshold' (did you mean 'threshold'?)",
    ),
    "operating point misspelt": (
        "rank_by: f1_iou",
        "operating_point: validaton",
        22,
        "evaluation.operating_point: must be 'validation' or a mapping, got 'validaton' (did you mean 'validation'?)",
    ),
    "unknown protocol": (
        "name: small",
        "name: small\nprotocol: stric",
        2,
        "protocol: must be 'strict' or 'fluocells-2023', got 'stric' (did you mean 'strict'?)",
    ),
    "name that is no folder": ("name: small", "name: ../small", 1, "name: must begin with a letter or digit"),
    "key given twice": ("batch_size: 4", "steps: 4", 10, "steps: this key is given twice, first in line 9"),
    "key that is no text": ("batch_size: 4", "4: 4", 10, "'4': a key must be text"),
    "tag": (
        "batch_size: 4",
        "batch_size: !!python/name:os.system",
        10,
        "the tag 'tag:yaml.org,2002:python/name:os.system'",
    ),
    "tab": ("  batch_size", "\tbatch_size", 10, "not valid YAML: found character '\\t'"),
    "unclosed list": ("seeds: [0, 5]", "seeds: [0, 5", 21, "not valid YAML: expected ',' or ']'"),
}


@pytest.mark.parametrize(("old", "new", "line", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_study_is_refused_with_line_key_value_and_hint(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert old in GOOD
    with pytest.raises(StudyError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path / 'study.yaml'}:{line}: {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "empty": ("", ":1: a study must be a mapping of keys such as name, data and seeds, got an empty file"),
        "comment only": (
            "# later\n",
            ":1: a study must be a mapping of keys such as name, data and seeds, got an empty file",
        ),
        "list": ("- a\n", ":1: a study must be a mapping of keys such as name, data and seeds, got ['a']"),
        "two documents": (GOOD + "---\na: 1\n", ":23: not valid YAML: but found another document"),
        "aliases that multiply": (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
            "more than 100000 values",
        ),
        "alias of itself": ("a: &a [*a]\n", "more than 100000 values"),
        "deep nesting": ("a: " + "[" * 1000, "nested too deeply"),
    }.values(),
)
def test_text_that_is_no_study_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        load(tmp_path, text)
    assert words in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(StudyError, match="not a text file in UTF-8"):
        load_study(tmp_path / "study.yaml")


def test_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    with pytest.raises(StudyError, match=r"quikstart\.yaml: no such study file \(did you mean 'quickstart\.yaml'\?\)"):
        load_study(tmp_path / "quikstart.yaml")


def test_all_problems_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("steps: 10", "stepz: 10").replace("name: dice", "name: dize").replace("[0, 5]", "[0, five]")
    text = text.replace("sets/other", "'${CELLRAY_NOT_SET}/x'")
    with pytest.raises(StudyError) as caught:
        load(tmp_path, text.replace("x'.zip", "x'"))
    lines = str(caught.value).splitlines()
    keys = [line.removeprefix(f"{tmp_path / 'study.yaml'}:").split(": ")[:2] for line in lines]
    assert keys == [
        ["6", "data.external[0].path"],
        ["9", "training.stepz"],
        ["15", "configurations[0].loss.name"],
        ["20", "seeds[1]"],
    ]


# Resolving


def test_loss_settings_are_completed_from_the_signature() -> None:
    for name, function in LOSSES.items():
        defaults = {
            key: p.default for key, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY
        }
        assert LossConfig(name=name).settings == defaults
    assert check_loss_settings("bce", {"cell_weight": 50})["cell_weight"] == 50.0
    combined = LossConfig.model_validate({"terms": [{"name": "bce", "weight": 0.3}, {"name": "dice", "weight": 0.7}]})
    assert combined.terms[0].settings == check_loss_settings("bce", {})
    assert combined.describe() == "0.3 bce + 0.7 dice"


def test_trials_come_seed_by_seed_with_everything_resolved() -> None:
    study = Study.model_validate(changed(configurations__0__training={"augment": {"flips": False}}))
    trials = study.trials()
    assert [(t.seed, t.label) for t in trials] == [(0, "Dice"), (0, "Focal"), (5, "Dice"), (5, "Focal")]
    dice, focal = trials[:2]
    assert dice.training.augment.flips is False
    assert focal.training.augment.flips is True
    assert dice.training.augment.rotation_deg == focal.training.augment.rotation_deg == 15
    assert Trial.model_validate_json(dice.model_dump_json()) == dice


def test_study_loss_serves_configurations_that_name_none() -> None:
    values = changed(loss={"name": "bce"}, configurations__0__model={"base_features": 4})
    del values["configurations"][0]["loss"]
    assert [t.loss.name for t in Study.model_validate(values).trials()[:2]] == ["bce", "focal"]


def test_select_keeps_labels_and_takes_other_seeds(tmp_path: Path) -> None:
    study = load(tmp_path, seeds=[7], only=["Focal"])
    assert [(t.seed, t.label) for t in study.trials()] == [(7, "Focal")]
    with pytest.raises(StudyError, match=r"unknown configuration 'Fokal' \(did you mean 'Focal'\?\)"):
        load(tmp_path, only=["Fokal"])
    with pytest.raises(StudyError, match=r"seeds\[1\]: seed 7 is given twice"):
        load(tmp_path, seeds=[7, 7])


def test_roles(tmp_path: Path) -> None:
    values = changed(training__lr="range_test", configurations__1__training={"batch_size": 8})
    roles = {role.parameter: (role.role, role.value) for role in Study.model_validate(values).roles()}
    assert roles["loss.name"] == ("compared", ["dice", "focal"])
    assert roles["training.batch_size"] == ("compared", [4, 8])
    assert roles["training.lr"] == ("tuned", "range_test")
    assert roles["evaluation.operating_point"] == ("tuned", "validation")
    assert roles["training.crop_px"] == ("fixed", 96)
    assert roles["data.train.synthetic.n_trainval"] == ("fixed", 10)
    assert [p for p, (role, _) in roles.items() if role == "compared"] == ["loss.name", "training.batch_size"]
    roles = {role.parameter: (role.role, role.value) for role in load(tmp_path).roles()}
    assert roles["training.lr"] == ("fixed", 0.001)
    assert not [p for p in roles if "range_test" in p]  # plays no part at a fixed rate


def test_roles_name_how_a_loss_of_overlap_is_averaged() -> None:
    first = {"configurations__0__loss": {"name": "dice"}, "training__checkpoint": "coarse_dice"}
    by_batch = {"name": "dice", "settings": {"reduction": "batch"}}
    summed = {"terms": [{"name": "bce"}, {"name": "dice"}, {"name": "mcc", "settings": {"reduction": "batch"}}]}

    def roles(second: dict[str, Any]) -> dict[str, tuple[str, object]]:
        study = Study.model_validate(changed(**first, configurations__1__loss=second))
        return {role.parameter: (role.role, role.value) for role in study.roles()}

    assert roles(by_batch)["loss.settings.reduction"] == ("compared", ["image", "batch"])
    assert roles(by_batch)["training.checkpoint"] == ("fixed", "coarse_dice")
    assert roles({"name": "focal"})["loss.settings.reduction"] == ("fixed", "image")
    assert roles(summed)["loss.terms"] == ("compared", ["1 bce + 1 dice by image + 1 mcc by batch"])


def test_schema_describes_keys_and_offers_names() -> None:
    schema = study_schema()
    types = schema["$defs"]
    assert (
        types["TermConfig"]["properties"]["weight"]["description"]
        == "What the term is multiplied by, its lambda; weights needn't add up to 1."
    )
    names = types["TermConfig"]["properties"]["name"]["anyOf"][0]["enum"]
    assert set(names) == {*LOSSES, *RELEASED, *PRESETS}
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert validator.is_valid(changed())
    assert not validator.is_valid(changed(training__stepz=3))
    assert not validator.is_valid(changed(configurations__0__loss={"name": "dize"}))
    assert validator.is_valid(changed(quirks=["many_to_one"], configurations__0__quirks=["double_activation"]))
    assert not validator.is_valid(changed(configurations__0__quirks=["many_to_one"]))
    assert not validator.is_valid(changed(allow=["flor"]))
    assert validator.is_valid(changed(configurations__0__loss={"name": "my_lab.losses:mine", "settings": {"x": 1}}))
    assert not validator.is_valid(changed(configurations__0__loss={"name": "dice", "settings": {"smoth": 1}}))


# Keys

CHANGES_KEY: dict[str, dict[str, Any]] = {
    "loss": {"configurations__0__loss": {"name": "tversky"}},
    "loss setting": {"configurations__0__loss": {"name": "dice", "settings": {"smooth": 2}}},
    "width": {"model__base_features": 4},
    "steps": {"training__steps": 11},
    "rate": {"training__lr": 0.002},
    "rate by range test": {"training__lr": "range_test"},
    "schedule": {"training__schedule": "constant"},
    "augmentation": {"training__augment": {"flips": False}},
    "precision": {"training__precision": "float32"},
    "validation": {"training__validate_every": 2},
    "crops around cells": {"training__foreground": 0.5},
    "choice of the checkpoint": {"training__checkpoint": "coarse_dice"},
    "channels": {"data__channels": 1},
    "normalisation": {"data__normalise": "percentile"},
    "validation fraction": {"data__val_fraction": 0.3},
    "split": {"data__split_seed": 1},
    "by the configuration": {"configurations__0__training": {"batch_size": 5}},
}

KEEPS_KEY: dict[str, dict[str, Any]] = {
    "study name": {"name": "renamed"},
    "question": {"question": "Another?"},
    "label": {"configurations__0__label": "Dice loss"},
    "resources": {"resources": {"cpus": 2, "max_concurrent": 3}},
    "other seeds": {"seeds": [0, 1, 2]},
    "names and paths of data": {"data__train__name": "renamed", "data__external__0__path": "/elsewhere"},
    "evaluation": {"evaluation__iou_threshold": 0.5},
    "range test of a fixed rate": {"training__range_test": {"steps": 99}},
    "default written out": {"configurations__0__loss": {"name": "dice", "settings": {"smooth": 1e-6}}},
    "whole number written with a point": {"training__augment": {"rotation_deg": 15}},
    "split seed equal to the trial's own": {"data__split_seed": 0},
    "set by the configuration to the same": {"configurations__0__training": {"batch_size": 4}},
}


def first_trial(**changes: Any) -> Trial:
    return Study.model_validate(changed(**changes)).trials()[0]


@pytest.mark.parametrize("changes", CHANGES_KEY.values(), ids=CHANGES_KEY)
def test_key_changes_with_whatever_decides_the_weights(changes: dict[str, Any]) -> None:
    assert first_trial(**changes).key("f") != first_trial().key("f")


@pytest.mark.parametrize("changes", KEEPS_KEY.values(), ids=KEEPS_KEY)
def test_key_stays_with_whatever_does_not(changes: dict[str, Any]) -> None:
    assert first_trial(**changes).key("f") == first_trial().key("f")


def test_key_changes_with_seed_data_and_the_range_test_in_use() -> None:
    trials = Study.model_validate(changed()).trials()
    assert len({t.key("f") for t in trials}) == 4
    assert trials[0].key("f") != trials[0].key("g")
    tested = {"training__lr": "range_test"}
    tests = ({}, {"steps": 99}, {"rule": "premature"})
    assert len({first_trial(**tested, training__range_test=test).key("f") for test in tests}) == 3


def test_key_is_the_one_that_ledgers_hold() -> None:
    # Ledgers are found again by this value. If it changes on purpose, say so in the changelog: all is trained anew.
    first = {"training__checkpoint": "coarse_dice", "training__clip": None}
    assert first_trial(**first).key("0123456789abcdef") == "b3a58e6f1264352c"
    first |= {"training__lr": "range_test", "training__range_test": {"rule": "premature"}}
    assert first_trial(**first).key("0123456789abcdef") == "c206e353232d85c5"
    assert short_hash({"b": [1, 2.0], "a": None}) == short_hash({"a": None, "b": [1.0, 2]})


FACTS = {"test": {"fingerprint": "a", "diameter_px": 20}, "other": {"fingerprint": "b", "diameter_px": 30}}


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({"evaluation__iou_threshold": 0.5}, False),
        ({"evaluation__operating_point": {"threshold": 0.6}}, False),
        ({"evaluation__rank_by": "dice"}, False),  # the validation images choose the operating point by it
        ({"training__steps": 11}, True),
        ({"resources": {"cpus": 2}}, True),
        ({"configurations__0__label": "Dice loss"}, True),
    ],
)
def test_evaluation_key_changes_with_whatever_decides_the_scores(change: dict[str, Any], stays: bool) -> None:
    assert (first_trial(**change).evaluation_key(FACTS) == first_trial().evaluation_key(FACTS)) is stays


def test_evaluation_key_ignores_order_of_sets_and_ranking_at_a_given_point() -> None:
    key: Callable[[Any], str] = first_trial().evaluation_key
    assert key(dict(reversed(FACTS.items()))) == key(FACTS)
    assert key({**FACTS, "other": {"fingerprint": "c", "diameter_px": 30}}) != key(FACTS)
    given = {"evaluation__operating_point": {"threshold": 0.6}}
    ranked = {**given, "evaluation__rank_by": "dice"}
    assert first_trial(**given).evaluation_key(FACTS) == first_trial(**ranked).evaluation_key(FACTS)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SyntheticConfig().seed = 1  # type: ignore[misc]


def test_a_batch_has_a_row_for_each_worker():
    rest = "training: {steps: 5, batch_size: 2}\nresources: {workers: 3}\n"
    text = f"name: s\nquestion: q\ndata: {{train: {{name: t, synthetic: {{}}}}}}\n{rest}seeds: [0]\n"
    with pytest.raises(StudyError, match=r"'A' has a batch_size of 2, too few for 3 workers"):
        read_study(text + "configurations: [{label: A, loss: {name: dice}}]\n", "s.yaml")

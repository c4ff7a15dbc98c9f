"""Spaces of configurations: ranges, choices, weights that add up to 1, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cellray.errors import StudyError
from cellray.study.space import Fixed, Simplex, Space

MIXED = {
    "loss": {
        "choice": {
            "sum": {
                "terms": [
                    {"name": "bce", "settings": {"cell_weight": {"log_uniform": [1, 100]}}},
                    {"name": "dice"},
                    {"name": "focal_tversky", "settings": {"exponent": {"uniform": [1.0, 3.0]}}},
                ],
                "weights": {"simplex": 1},
            },
            "alone": {"name": {"choice": ["dice", "mcc"]}},
        }
    },
    "training": {"batch_size": {"int": [2, 8]}},
}


def test_a_configuration_has_what_its_choice_needs_and_nothing_else():
    space = Space(MIXED)
    values = {"loss": "sum", "loss[sum].terms.0.settings.cell_weight": 12.3456, "training.batch_size": 4}
    settings, shown = space.draw(Fixed({**values, "loss[sum].weights.0": 0.0, "loss[sum].weights.1": 1.0}))
    terms = settings["loss"]["terms"]
    assert [term["name"] for term in terms] == ["bce", "dice", "focal_tversky"]
    assert [term["weight"] for term in terms] == [0.0, 1.0, 0.0]
    assert terms[0]["settings"] == {"cell_weight": 12.35}  # four digits
    assert settings["training"] == {"batch_size": 4}
    assert shown == {
        "loss": "sum", "loss[sum].terms.0.settings.cell_weight": 12.35, "loss[sum].terms.0.weight": 0.0,
        "loss[sum].terms.1.weight": 1.0, "loss[sum].terms.2.weight": 0.0,
        "loss[sum].terms.2.settings.exponent": 1.0, "training.batch_size": 4,
    }  # fmt: skip
    settings, shown = space.draw(Fixed({"loss": "alone", "loss[alone].name": "mcc"}))
    assert settings == {"loss": {"name": "mcc"}, "training": {"batch_size": 2}}
    assert shown == {"loss": "alone", "loss[alone].name": "mcc", "training.batch_size": 2}


def test_weights_of_a_simplex_are_dirichlet():
    """Against the known marginals: each weight is Beta(a_i, sum of the others)."""
    concentration = (2.0, 1.0, 0.5)
    simplex = Simplex("w", ("a", "b", "c"), concentration)
    rng = np.random.default_rng(0)
    drawn = np.array([simplex.weights(cuts) for cuts in rng.random((4000, 2))])
    assert np.allclose(drawn.sum(1), 1, atol=1e-9) and drawn.min() >= 0
    for i, a in enumerate(concentration):
        known = stats.beta(a, sum(concentration) - a)
        assert stats.kstest(drawn[:, i], known.cdf).pvalue > 0.001
        assert drawn[:, i].mean() == pytest.approx(a / 3.5, abs=0.02)


@pytest.mark.parametrize("weights", [[0.3, 0.2, 0.5], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0.54, 0.46, 0]])
def test_cuts_give_back_the_weights(weights):
    simplex = Simplex("w", ("a", "b", "c"), (1.0, 1.0, 1.0))
    assert simplex.weights(simplex.cut(weights)) == pytest.approx(weights, abs=1e-9)
    assert simplex.cut([0.5, 0.3, 0.5]) is None and simplex.cut([1.5, -0.5, 0]) is None


def test_corners_have_each_choice_and_both_ends():
    drawn = [settings for settings, _ in Space(MIXED).corners()]
    assert {s["loss"].get("name", "sum") for s in drawn} == {"sum", "dice", "mcc"}
    assert {s["training"]["batch_size"] for s in drawn} == {2, 8}
    weights = [t["settings"]["cell_weight"] for s in drawn for t in s["loss"].get("terms", [])[:1]]
    assert {1, 100} == set(weights)


def test_a_space_finds_the_values_of_a_configuration_inside_it():
    terms = [
        {"name": "bce", "weight": 0.25, "settings": {"cell_weight": 50.0}},
        {"name": "dice", "weight": 0.25, "settings": {}},
        {"name": "focal_tversky", "weight": 0.5, "settings": {"exponent": 2.0, "fp_weight": 0.3}},
    ]
    resolved = {"loss": {"name": None, "terms": terms}, "training": {"batch_size": 8}}
    space = Space(MIXED)
    found = [space.draw(Fixed(values))[1] for values in space.locate(resolved)]
    assert found[0]["loss"] == "sum" and found[0]["loss[sum].terms.0.settings.cell_weight"] == 50
    assert [found[0][f"loss[sum].terms.{i}.weight"] for i in range(3)] == [0.25, 0.25, 0.5]
    assert not list(space.locate(resolved | {"training": {"batch_size": 9}}))
    two = list(space.locate(resolved | {"loss": {"name": None, "terms": terms[:2]}}))
    assert all(values["loss"] == "alone" for values in two)  # which whoever asks finds to be another loss


@pytest.mark.parametrize(
    ("tree", "path", "words"),
    [
        ({"loss": {"uniform": [1, 0]}}, ("loss", "uniform"), "low must be below high, got 1 and 0"),
        ({"loss": {"log_uniform": [0, 1]}}, ("loss", "log_uniform"), "greater than 0 on a log scale, got 0"),
        ({"loss": {"int": [1, 2.5]}}, ("loss", "int"), "two whole numbers"),
        ({"loss": {"uniform": "wide"}}, ("loss", "uniform"), "two numbers"),
        ({"loss": {"choice": ["dice"]}}, ("loss", "choice"), "at least two options"),
        ({"loss": {"choice": 3}}, ("loss", "choice"), "a list of values or a mapping of named parts, got 3"),
        ({"loss": {"choice": [{"name": "a"}, {"name": "a"}]}}, ("loss", "choice"), "same name"),
        ({"loss": {"uniform": [0, 1], "int": [0, 1]}}, ("loss", "uniform"), "stands alone"),
        ({"loss": {"name": {"simplex": 1}}}, ("loss", "name"), "goes with the key weights"),
        ({"loss": {"terms": [{"name": "a"}], "weights": {"simplex": 1}}}, ("loss", "weights"), "at least two terms"),
        (
            {"loss": {"terms": [{"name": "a"}] * 2, "weights": {"simplex": [1]}}},
            ("loss", "weights", "simplex"),
            "one for",
        ),
        (
            {"loss": {"terms": [{"name": "a", "weight": 1}, {"name": "b"}], "weights": {"simplex": 1}}},
            ("loss", "terms", 0, "weight"),
            "the simplex gives",
        ),
        ({"loss": {"name": "dice"}}, (), "nothing to search"),
        ({"los": {"uniform": [0, 1]}}, ("los",), "did you mean 'loss'"),
    ],
)
def test_what_is_no_space_is_refused_with_its_place(tree, path, words):
    with pytest.raises(StudyError) as caught:
        Space(tree)
    assert [(p.path, words in p.message) for p in caught.value.problems] == [(path, True)]


@pytest.mark.parametrize("term", ["dice", None, {"choice": ["dice", "bce"]}, {"uniform": [0, 1]}])
def test_a_term_with_a_drawn_weight_is_a_mapping(term):
    tree = {"loss": {"terms": [{"name": "bce"}, term], "weights": {"simplex": 1}}}
    with pytest.raises(StudyError, match=r"loss.terms\[1\]: must be a mapping, got "):
        Space(tree)

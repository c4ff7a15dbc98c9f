"""What a report says of a search: read from its file, drawn, told, and never judged by test images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_data import mixed, plan_for, record, results_of, scores, search_file, tried, write_search

from cellray.ledger import Ledger
from cellray.record import LossSettings
from cellray.report import Findings, StudyFacts, build_report, make_tables, mixtures, write_answer
from cellray.report import searched as searched_module
from cellray.report.answer import TRAIN_THE_TOP
from cellray.report.build import load_tables
from cellray.report.figures import draw_figures
from cellray.report.figures.search_course import importance_bars, pareto, search_history, seeds_given
from cellray.report.gallery import make_gallery
from cellray.report.mixtures import weights_text
from cellray.report.page import PageContents, render_page
from cellray.report.page.search_tables import search_section
from cellray.report.protocol import state_protocol
from cellray.report.search_answer import seeds_sentence
from cellray.report.searched import names_of_parameters, option_of, parameter_name, parameters_text, read_search
from cellray.results import Results
from cellray.results.details import read_details
from cellray.statistics.importance import _is_log, importance_of

pytestmark = pytest.mark.slow  # seconds each


def search_of(tmp_path, configurations, **how):
    """A search as it is read from a ledger."""
    ledger = Ledger(str(tmp_path), "made_up")
    ledger.write("search.json", search_file(configurations, **how))
    return read_search(ledger.search())


def findings_in(ledger, plan):
    """What a report of a ledger is made of."""
    results = Results.now(ledger, plan)
    return Findings(results, load_tables(results), read_details(results))


def report_of(ledger, plan):
    """Answer, drawings and page of a whole report."""
    found = findings_in(ledger, plan)
    answer, drawings = write_answer(found), draw_figures(found)
    contents = PageContents(found, answer, drawings, make_gallery(found), state_protocol(found, StudyFacts()))
    return answer, drawings, render_page(contents)


def test_a_study_without_a_search_has_none(tmp_path):
    assert read_search(Ledger(str(tmp_path), "made_up").search()) is None


def test_the_file_is_read_in_the_order_of_numbers(tmp_path):
    found = search_of(tmp_path, [tried(2, [0.5]), tried(1, None, label="BCE: low", source="given")], stopping="asha")
    assert [(c.label, c.values, c.state) for c in found.configurations] == [
        ("BCE: low", None, "running"),
        ("#2", (0.5,), "finished"),
    ]
    assert (found.stopping, found.suggests, found.gives_seeds) == ("asha", True, False)


def test_the_best_on_validation_is_chosen_in_the_metrics_own_direction(tmp_path):
    both = [tried(1, [0.6, 3.0]), tried(2, [0.8, 5.0]), tried(3, [0.8, 4.0]), tried(4, None)]
    found = search_of(tmp_path, both, method="nsga2", metrics=("f1_iou", "mae"))
    assert [c.label for c in found.best_first()] == ["#2", "#3", "#1"]  # equal ones by number
    assert found.chosen("mae").label == "#1"
    assert found.chosen("dice").label == "#2"  # not searched for: by the first metric


def test_what_breaks_a_constraint_is_not_chosen(tmp_path):
    found = search_of(tmp_path, [tried(1, [0.6]), tried(2, [0.9], acceptable=False)])
    assert [c.label for c in found.best_first()] == ["#1", "#2"]
    assert found.chosen().label == "#1"
    assert search_of(tmp_path, [tried(2, [0.9], acceptable=False)]).chosen() is None


def test_the_front_is_what_no_other_beats_in_both(tmp_path):
    # 1 is beaten by 2, 5 equals 2; 4 is best in the second alone
    points = {1: (0.5, 4.0), 2: (0.8, 3.0), 3: (0.9, 6.0), 4: (0.4, 1.0), 5: (0.8, 3.0)}
    found = search_of(tmp_path, [tried(i, list(v)) for i, v in points.items()], method="nsga2",
                      metrics=("f1_iou", "mae"))  # fmt: skip
    assert [c.label for c in found.front()] == ["#3", "#2", "#5", "#4"]


def test_parameters_are_named_as_people_would():
    loss = LossSettings.model_validate(mixed((0.54, 0.46, 0.0)))
    assert parameter_name("loss.terms.0.weight", loss) == "bce weight"
    assert parameter_name("loss[mix].terms.2.settings.gamma", loss) == "focal gamma"
    assert parameter_name("loss.terms.0.weight") == "term 1 weight"
    assert parameter_name("loss.terms.2", loss) == "term 3"  # its value is the term's name
    assert parameter_name("training.lr") == "lr"
    assert (parameter_name("loss.name"), parameter_name("loss")) == ("loss name", "loss")
    assert option_of("loss[mix].terms.0[x].weight") == "x"
    words = parameters_text({"loss.terms.0.weight": 0.54321, "model.base_features": 16, "training.flip": True}, loss)
    assert words == "bce weight 0.543, base_features 16, flip yes"


def test_a_parameter_that_every_choice_has_is_one(tmp_path):
    configurations = [
        tried(1, [0.5], parameters={"loss": "a", "loss[a].terms.0.weight": 0.1, "loss[a].terms.1.settings.gamma": 1}),
        tried(2, [0.5], parameters={"loss": "b", "loss[b].terms.0.weight": 0.2}),
        tried(3, [0.5], label="outside", source="given"),
        tried(4, None, parameters={"loss": "b", "loss[b].terms.0.weight": 0.2}),
    ]
    found = search_of(tmp_path, configurations)
    assert found.merged(found.configurations[0].parameters) == {
        "loss": "a", "loss.terms.0.weight": 0.1, "loss[a].terms.1.settings.gamma": 1,
    }  # fmt: skip
    weights = {"#1": (0.1, 0.9, 0.0), "#2": (0.2, 0.8, 0.0)}
    names = names_of_parameters(found, {label: LossSettings.model_validate(mixed(w)) for label, w in weights.items()})
    assert names == {
        "loss": "loss", "loss.terms.0.weight": "bce weight", "loss[a].terms.1.settings.gamma": "a: dice gamma",
    }  # fmt: skip


def drawn(n, score, seed=0):
    """Parameters drawn at random and scores computed from them."""
    rng = np.random.default_rng(seed)
    parameters = [
        {"a": float(rng.random()), "b": float(rng.random()), "rate": float(10 ** rng.uniform(-4, -1)),
         "word": str(rng.choice(["x", "y"]))}
        for _ in range(n)
    ]  # fmt: skip
    return parameters, [score(mine, rng) for mine in parameters]


@pytest.mark.slow
def test_importance_finds_the_variance_that_arithmetic_gives():
    # a² has variance 1/5 - 1/9 = 4/45; 0.3 times a fair coin 0.0225: shares 0.80 and 0.20
    found = importance_of(*drawn(80, lambda p, rng: p["a"] ** 2 + 0.3 * (p["word"] == "x")))
    shares = {share.name: share for share in found.shares}
    assert list(shares) == sorted(shares, key=lambda name: -shares[name].value)
    assert shares["a"].value == pytest.approx(0.80, abs=0.1)
    assert shares["word"].value == pytest.approx(0.20, abs=0.1)
    assert {name for name, share in shares.items() if share.is_clear} == {"a", "word"}
    for share in found.shares:
        assert 0 <= share.low <= share.value <= share.high <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_chance_is_not_taken_for_importance(seed):
    found = importance_of(*drawn(30, lambda p, rng: rng.normal(), seed))
    assert len(found.shares) == 4
    assert not any(share.is_clear for share in found.shares)


def test_a_number_over_decades_is_judged_by_its_logarithm():
    # a straight line in log10(rate): on the raw scale almost all of it would lie in the lowest thousandth
    found = importance_of(*drawn(30, lambda p, rng: np.log10(p["rate"]) + 0.01 * rng.normal()))
    assert found.shares[0].name == "rate"
    assert found.shares[0].value > 0.9


def test_a_weight_that_happens_to_be_near_0_is_not_taken_by_its_logarithm():
    weights = [0.001, *np.linspace(0.05, 1, 29)]
    assert not _is_log(weights)
    assert _is_log(list(np.geomspace(1e-4, 1e-1, 30)))
    assert not _is_log([0.0, 0.5, 1.0])
    assert not _is_log([1.0, 2.0, 50.0])  # less than two decades


def test_a_parameter_of_some_is_judged_among_those():
    rng = np.random.default_rng(1)
    parameters, values = [], []
    for i in range(36):
        mine = {"loss": "ab"[i % 2], "x": float(rng.random())}
        if i % 2:
            mine["gamma"] = float(rng.random())
        if i < 4:
            mine["rare"] = float(rng.random())
        parameters.append(mine)
        values.append(mine.get("gamma", 0.5) + 0.01 * rng.normal())
    found = importance_of(parameters, values)
    shares = {share.name: share for share in found.shares}
    assert (shares["gamma"].n, shares["x"].n) == (18, 36)
    assert shares["gamma"].is_clear and shares["gamma"].value > 0.8
    assert found.left_out == {"rare": 4}


def test_importance_says_why_there_is_none():
    few = [{"a": i / 7, "b": i % 3} for i in range(7)]
    many = [*few, {"a": 0.5, "b": 1}]
    assert importance_of(few, list(range(7))).missing == "7 finished configurations with parameters; it takes 8."
    assert importance_of(many, [0.5] * 8).missing == "all configurations have the same score."
    assert importance_of([{"a": 1}] * 8, list(range(8))).missing == "no parameter took two values."
    alone = importance_of([{"a": i} for i in range(8)], list(range(8)))
    assert "no two parameters vary" in alone.missing


def test_the_history_draws_values_the_best_so_far_and_the_stopped_apart(tmp_path):
    values = {0: 0.60, 1: 0.70, 3: 0.65, 4: 0.72, 5: 0.71, 6: 0.69, 7: 0.66, 8: 0.0}
    configurations = [tried(i, [v], source="given" if i < 2 else "suggested") for i, v in values.items()]
    configurations.append(tried(2, None, state="stopped", epoch=4))
    figure = search_history(search_of(tmp_path, configurations, stopping="asha"))
    main, strip = figure.axes
    lines = {line.get_marker(): line for line in main.lines if line.get_linestyle() == "None"}
    assert list(lines["s"].get_xdata()) == [0, 1]
    assert list(lines["o"].get_xdata()) == [3, 4, 5, 6, 7]
    assert list(lines["v"].get_xdata()) == [8]  # a collapse would squeeze all others
    (best,) = [line for line in main.lines if line.get_drawstyle() == "steps-post"]
    assert list(best.get_ydata()) == [0.60, 0.70, 0.70, 0.72, 0.72, 0.72, 0.72, 0.72, 0.72]
    assert [path.vertices[0, 0] for path in strip.collections[0].get_paths()] == [2]
    assert main.get_ylim()[0] > 0.5


def test_the_best_so_far_falls_where_lower_is_better(tmp_path):
    found = search_of(tmp_path, [tried(i, [v]) for i, v in enumerate((3.0, 4.0, 2.0))], metrics=("mae",))
    figure = search_history(found)
    (best,) = [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert list(best.get_ydata()) == [3.0, 3.0, 2.0, 2.0]


def test_nothing_is_drawn_of_nothing(tmp_path):
    running = search_of(tmp_path, [tried(i, None) for i in range(3)])
    assert search_history(running) is None
    assert pareto(running) is None
    assert seeds_given(running) is None
    assert importance_bars([], {}) is None


def test_two_metrics_are_drawn_against_each_other_with_the_front_joined(tmp_path):
    points = {1: (0.5, 0.4), 2: (0.8, 0.3), 3: (0.9, 0.1), 4: (0.7, 0.2)}
    found = search_of(tmp_path, [tried(i, list(v)) for i, v in points.items()], method="nsga2",
                      metrics=("f1_iou", "dice"))  # fmt: skip
    (axis,) = pareto(found).axes
    (front,) = [line for line in axis.lines if line.get_linestyle() == "-"]
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(0.9, 0.1), (0.8, 0.3), (0.5, 0.4)]
    assert [text.get_text() for text in axis.texts] == ["#3", "#2", "#1"]


def test_a_race_shows_who_was_dropped_after_how_many_seeds(tmp_path):
    race = [
        tried(0, [0.7], label="A", seeds=8, source="given"),
        tried(1, [0.4], label="B", seeds=3, source="given", state="dropped", reason="behind"),
        tried(2, [0.5], label="C", seeds=3, source="given", state="dropped", reason="behind"),
        tried(3, [0.6], label="D", seeds=5, source="given", state="dropped", reason="behind"),
        tried(4, [0.69], label="E", seeds=8, source="given"),
    ]
    found = search_of(tmp_path, race, method="racing")
    (axis,) = seeds_given(found).axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["A", "E", "D", "C", "B"]
    crosses = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_marker() == "x"]
    assert crosses == [(5, 2), (3, 3), (3, 4)]
    assert (
        seeds_sentence(found) == "Seeds were given where they decide: A and E 8 seeds, D 5 seeds and B and C 3 seeds."
    )


def mixed_study(grid, response, **settings):
    """Records of one trial for each mixture, whose test F1 is a function of the weights; their plan."""
    labels = [f"#{i}" for i in range(len(grid))]
    records = [
        record(label, 0, {"test": scores(response(*w))},
               settings={"loss": mixed(w, **{k: v[i] for k, v in settings.items()})})
        for i, (label, w) in enumerate(zip(labels, grid, strict=True))
    ]  # fmt: skip
    return records, plan_for(labels, seeds=(0,))


def quadratic(a, b, c):
    """Best at a = 0.2, b = 0.6, c = 0.2."""
    return 0.9 - (a - 0.2) ** 2 - (b - 0.6) ** 2 - (c - 0.2) ** 2


GRID = [(i / 5, j / 5, (5 - i - j) / 5) for i in range(6) for j in range(6 - i)]


def found_in(records, plan, log=None):
    """The families of a made-up study."""
    results = results_of(records, plan, log=log)
    return Findings(results, make_tables(results)).families


def test_the_best_weights_of_a_known_surface_are_found_by_test_and_by_validation(tmp_path):
    records, plan = mixed_study(GRID, quadratic)

    def elsewhere(a, b, c):
        return quadratic(b, a, c)  # on validation, with the first two exchanged

    ledger = Ledger(str(tmp_path), "made_up")
    ledger.write("search.json", search_file([tried(i, [elsewhere(*w)]) for i, w in enumerate(GRID)]))
    (family,) = found_in(records, plan, ledger.search())
    assert family.fit.best == pytest.approx([0.2, 0.6, 0.2])
    assert family.validation_fit.best == pytest.approx([0.6, 0.2, 0.2])
    # without scatter the region is the best point alone
    assert family.sentence == (
        "Best weights of bce, dice, focal for F1 (IoU), from a surface over 21 mixtures: by test images "
        "bce 0.20 [0.20–0.20], dice 0.60 [0.60–0.60], focal 0.20 [0.20–0.20]; by validation images "
        "bce 0.60 [0.60–0.60], dice 0.20 [0.20–0.20], focal 0.20 [0.20–0.20] (in brackets the 95 % region)."
    )
    assert family.caveat == ""


def test_other_settings_go_into_the_scatter_and_widen_the_region():
    rng = np.random.default_rng(0)
    gammas = list(rng.uniform(0, 4, len(GRID)))
    shift = dict(zip(GRID, gammas, strict=True))
    records, plan = mixed_study(GRID, lambda *w: quadratic(*w) + 0.03 * shift[w], gamma=gammas)
    (family,) = found_in(records, plan)
    assert family.varying == ("focal gamma",)
    assert "focal gamma differ too" in family.caveat
    assert np.isnan(family.points.se).all()
    widths = np.ptp(family.fit.region, axis=0)
    assert (widths > 0).all()
    low, high = family.fit.region.min(axis=0), family.fit.region.max(axis=0)
    assert (low <= [0.2, 0.6, 0.2]).all() and (high >= [0.2, 0.6, 0.2]).all()


def test_the_range_of_the_weights_holds_the_best_point_and_the_region():
    records, plan = mixed_study(GRID, quadratic)
    (family,) = found_in(records, plan)
    fit = family.fit
    region = np.array([[0.15, 0.65, 0.2], [0.3, 0.5, 0.2]])
    text = weights_text(family.names, type(fit)(fit.coefficients, fit.covariance, np.array([0.2, 0.56, 0.24]), region))
    assert text == "bce 0.20 [0.15–0.30], dice 0.56 [0.50–0.65], focal 0.24 [0.20–0.24]"


def test_each_family_of_losses_has_a_triangle_of_its_own_if_it_was_mixed_often_enough():
    first, _ = mixed_study(GRID, quadratic)
    other = [
        record(f"T{i}", 0, {"test": scores(0.5 + w[0] / 10)},
               settings={"loss": mixed(w, ("bce", "dice", "focal_tversky"), exponent=1 + i)})
        for i, w in enumerate(GRID[:12])
    ]  # fmt: skip
    for n, families in ((12, 2), (11, 1)):  # an exponent that varies asks for twice as many as terms
        records = [*first, *other[:n]]
        plan = plan_for([r.label for r in records], seeds=(0,))
        assert len(found_in(records, plan)) == families


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of 12 configurations over weights: the last of the 4 given was stopped, the best is number 7."""
    ledger = Ledger(str(tmp_path_factory.mktemp("searched")), "made_up")
    weights = GRID[:12]
    validation = dict(enumerate([0.5, 0.55, 0.52, None, 0.6, 0.62, 0.58, 0.71, 0.64, 0.61, 0.66, 0.57]))
    configurations, f1, losses = [], {}, {}
    for i, value in validation.items():
        label = f"Preset {i}" if i < 4 else f"#{i}"
        stopped = {"state": "stopped", "epoch": 6, "reason": "not among the best third"} if value is None else {}
        configurations.append(
            tried(i, value and [value], label=label, source="given" if i < 4 else "suggested",
                  parameters={f"loss.terms.{k}.weight": w for k, w in enumerate(weights[i])}, **stopped)
        )  # fmt: skip
        losses[label] = mixed(weights[i])
        # on test images number 10 is ahead
        f1[label] = 0.9 if i == 10 else 0.8 if i == 7 else 0.5 + 0.01 * i
    plan = write_search(ledger, configurations, f1, losses=losses, noise=0.0, stopping="asha")
    return ledger, plan


@pytest.fixture(scope="module")
def told(searched):
    """Its report."""
    return report_of(*searched)


def test_the_answer_names_what_was_chosen_on_validation_and_how_it_does_on_test(told):
    first, second, *rest = told[0]
    assert first.startswith(
        "On validation images, TPE chose #7 of 12 configurations tried (F1 (IoU) 0.710, mean over 3 seeds): "
        "bce weight 0.2, dice weight 0.2, focal weight 0.6. On the test images, which had no say in that, it has F1 ("
    )
    assert "is at rank 2" in first
    assert first.endswith("#10 is first there, but to choose it for that would be a choice made on the test images.")
    assert second.startswith("Take #7: ")  # what validation chose is what is judged
    assert any("1 of 12 configurations was ended early by ASHA and ranked as stopped, not compared" in s for s in rest)
    assert any(s.startswith("Best weights of bce, dice, focal for F1 (IoU), from a surface over 11") for s in rest)
    assert rest[-1] == TRAIN_THE_TOP


def test_the_page_of_a_search_has_its_facts_its_best_and_its_stopped(told):
    _, drawings, page = told
    assert {"search-history", "importance", "simplex-bce-dice-focal"} <= set(drawings)
    for text in (
        'id="weights"', "12, of which 4 given by the study and 8 suggested: 11 finished and 1 ended early",
        "3 seeds a configuration", "counts as the worst value, 0.000", "Ended early (1)", "6 of 20",
        "not among the best third", "By ASHA",
    ):  # fmt: skip
        assert text in page, text
    assert "Every trial that did not finish" not in page  # those ended early have a table of their own


def test_a_stopped_configuration_is_in_no_figure_that_compares(told):
    assert "for every seed of 11 configurations" in told[1]["ranking-test"].alt


def test_the_table_of_the_best_is_ordered_by_validation(searched):
    ledger, plan = searched
    section = search_section(findings_in(ledger, plan))
    labels = [row[1].text for row in section.best.rows]
    assert labels[:3] == ["#7", "#10", "#8"]
    assert len(labels) == 10
    assert section.best.notes == ["1 further configuration with a value: all are in the ranking."]
    assert [cell.text for cell in section.stopped.rows[0][:2]] == ["Preset 3", "6 of 20"]
    dice = pd.concat([ledger.table(r.key, "history").val_dice.dropna().tail(1) for r in ledger.records()
                      if r.outcome == "stopped"]).round(3).mean()  # fmt: skip
    assert section.stopped.rows[0][2].text == f"{dice:.3f}"


def test_a_search_of_which_nothing_is_finished_has_a_report(tmp_path):
    configurations = [tried(i, None, state="stopped", epoch=3, reason="too low") for i in range(3)]
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_search(ledger, configurations, {f"#{i}": 0.3 for i in range(3)}, stopping="median")
    answer, drawings, page = report_of(ledger, plan)
    assert answer == [
        "No configuration was trained to its end: 3 of 3 configurations were ended early by the median rule and ranked "
        "as stopped, not compared."
    ]
    assert set(drawings) == {"validation-dice", "training-loss"}
    assert "Ended early (3)" in page
    assert "How much each parameter matters isn&#39;t worked out: 0 finished" in page


def test_a_search_that_has_just_begun_has_a_report(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_search(ledger, [tried(i, None) for i in range(3)], {})
    answer, drawings, page = report_of(ledger, plan)
    assert answer == ["No trial has a result yet (9 of 9 planned trials are missing)."]
    assert drawings == {}
    assert "3, of which 0 given by the study and 3 suggested: 3 running" in page


def test_a_race_has_its_chart_its_sentence_and_its_dropped(tmp_path):
    race = [
        tried(0, [0.7], label="A", seeds=5, source="given"),
        tried(1, [0.4], label="B", seeds=3, source="given", state="dropped", reason="behind A by 0.3 [0.2, 0.4]"),
        tried(2, [0.69], label="C", seeds=5, source="given"),
    ]
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_search(ledger, race, {"A": 0.7, "B": 0.4, "C": 0.69}, method="racing")
    answer, drawings, page = report_of(ledger, plan)
    assert "Seeds were given where they decide: A and C 5 seeds and B 3 seeds." in answer
    assert "seeds-given" in drawings
    assert not {"search-history", "importance"} & set(drawings)
    assert "Dropped from the race (1)" in page
    assert "behind A by 0.3 [0.2, 0.4]" in page
    assert "Of one with fewer seeds even less is known." in page


def test_each_surface_is_fitted_once_and_importance_worked_out_once(searched, monkeypatch):
    fitted, judged = [], []
    fit, judge = mixtures.fit_simplex, searched_module.importance_of
    monkeypatch.setattr(mixtures, "fit_simplex", lambda *args, **how: fitted.append(1) or fit(*args, **how))
    monkeypatch.setattr(searched_module, "importance_of", lambda *args: judged.append(1) or judge(*args))
    build_report(Results.now(*searched))
    assert (len(fitted), len(judged)) == (2, 1)  # by test images and by validation images

"""The page's tables and choices, without a browser: what each cell says, and what is left out when there is nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from report_data import TWELVE, plan_for, record, results_of, scores, write_realistic

from cellray import published
from cellray.ledger import Ledger
from cellray.report import Findings, make_tables
from cellray.report import gallery as gallery_module
from cellray.report import page as page_module
from cellray.report.answer import meaning
from cellray.report.mixtures import ENOUGH_MIXTURES
from cellray.report.page import PAGE_SECTIONS, cost_table, differences, ranking_tables, table_cells
from cellray.report.page.published_table import published_table, spearman
from cellray.report.ranking import select
from cellray.report.text import format_interval, format_p, format_table, interval_cell
from cellray.results import Results
from cellray.results.details import NO_DETAILS

PAGE_FOLDER = Path(page_module.__file__).parent
NAN, INF = math.nan, math.inf


def pair(a, b, difference, *, decided=False, more_seeds=NAN, more_images=NAN, **changed):
    """A row of the paired comparison."""
    return {
        "set": "test", "metric": "f1_iou", "a": a, "b": b, "n_seeds": 5, "n_images": 70, "difference": difference,
        "low": difference - 0.01, "high": difference + 0.01, "p": 0.0004, "p_adjusted": 0.04 if decided else 0.3,
        "decided": decided, "p_wilcoxon": 0.02, "p_wilcoxon_holm": 0.2, "superiority": 0.8, "superiority_low": 0.7,
        "superiority_high": 0.9, "p_false": 0.01, "more_seeds": more_seeds, "more_images": more_images,
    } | changed  # fmt: skip


def inference_of(pairs, ranks=(), friedman=(), detectable=()):
    """Frames like those of a comparison."""
    ranks_columns = [
        "set", "label", "rank", "rank_low", "rank_high", "rank_then_mean", "by_tests", "mean_rank",
    ]  # fmt: skip
    return SimpleNamespace(
        pairs=pd.DataFrame(pairs, columns=list(pair("", "", 0.0))),
        ranks=pd.DataFrame(ranks, columns=ranks_columns),
        friedman=pd.DataFrame(friedman, columns=["set", "n_images", "statistic", "p", "critical_difference"]),
        detectable=pd.DataFrame(detectable, columns=["set", "metric", "difference"]),
    )


def three():
    """Tables of A, B and C, in this order."""
    labels, f1 = ["A", "B", "C"], {"A": 0.9, "B": 0.8, "C": 0.7}
    records = [record(label, 0, {"test": scores(f1[label])}) for label in labels]
    return make_tables(results_of(records, plan_for(labels, seeds=(0,))))


def findings_of(records, plan, **more):
    """What is known of a study from its records."""
    results = results_of(records, plan)
    return Findings(results, make_tables(results), **more)


def with_inference(tables, inference):
    """The same tables with a comparison beside them."""
    return replace(tables, inference=inference)


def texts(table):
    """A table's cells as text."""
    return [[cell.text for cell in row] for row in table.rows]


def test_the_leader_is_compared_with_all_and_other_open_pairs_stand_apart():
    pairs = [pair("A", "B", 0.1, more_seeds=3.0, more_images=40.0), pair("A", "C", 0.2, decided=True),
             pair("B", "C", 0.1, more_seeds=INF, more_images=INF)]  # fmt: skip
    found = differences.find_differences(with_inference(three(), inference_of(pairs)), "f1_iou", "test")
    assert found.leader.columns[0][0] == "A against"
    assert texts(found.leader) == [
        ["B", "+0.100", "0.300", "0.200", "0.80", "0.010", "no", "3 seeds or 40 images"],
        ["C", "+0.200", "0.040", "0.200", "0.80", "0.010", "yes", "–"],
    ]
    assert found.leader.rows[0][1].note == "[0.090, 0.110]"
    assert found.leader.rows[0][2].note == "alone < 0.001"
    assert [row[0] for row in texts(found.undecided)] == ["A over B", "B over C"]
    assert found.undecided.rows[1][-1].text == "no number would"
    assert "Of 3 pairs of configurations, 1 are told apart" in found.sentences[0]


def test_no_list_of_open_pairs_where_the_leaders_table_has_them_all():
    pairs = [pair("A", "B", 0.1), pair("A", "C", 0.2, decided=True), pair("B", "C", 0.1, decided=True)]
    found = differences.find_differences(with_inference(three(), inference_of(pairs)), "f1_iou", "test")
    assert found.undecided is None


def test_nothing_is_said_of_tests_that_were_not_made():
    assert differences.find_differences(three(), "f1_iou", "test").is_empty
    tables = with_inference(three(), inference_of([]))
    assert differences.find_differences(tables, "f1_iou", "test").is_empty
    assert differences.find_differences(
        with_inference(three(), inference_of([pair("A", "B", 0.1)])), "f1_iou", "far"
    ).is_empty


def test_schemes_are_shown_only_where_they_disagree():
    same = pd.DataFrame({"set": "test", "label": ["A", "B"], "rank": [1.0, 2.0], "rank_low": [1.0, 1.0],
                         "rank_high": [2.0, 2.0], "rank_then_mean": [1.0, 2.0], "by_tests": [1.0, 2.0],
                         "mean_rank": [1.25, 1.75]})  # fmt: skip
    assert differences.scheme_table(same) is None
    assert differences.scheme_table(same.assign(by_tests=1.0)) is None  # nothing decided contradicts nothing
    assert differences.scheme_table(same.assign(by_tests=NAN)) is None
    other = differences.scheme_table(same.assign(rank_then_mean=[2.0, 1.0]))
    assert texts(other) == [["A", "1 [1–2]", "2", "1.25", "1"], ["B", "2 [1–2]", "1", "1.75", "2"]]


def test_friedman_and_detectable_sentences_say_what_the_numbers_allow():
    inference = inference_of(
        [],
        friedman=[("test", 70, 12.34, 0.0001, 1.99), ("far", 9, 1.0, 0.4, NAN)],
        detectable=[("test", "f1_iou", 0.021)],
    )
    assert differences.friedman_sentence(inference.friedman, "test") == [
        "Friedman's test over 70 images or groups of images: χ² = 12.3, p < 0.001: as these seeds went, the "
        "configurations differ as a whole; mean ranks closer than 1.99 (Nemenyi, 5\u00a0%) belong together."
    ]
    assert differences.friedman_sentence(inference.friedman, "far") == [
        "Friedman's test over 9 images or groups of images: χ² = 1.0, p = 0.400: as these seeds went, the "
        "configurations can't be told apart as a whole."
    ]
    assert "at least 0.021" in differences.detectable_sentence(inference.detectable, "test", "f1_iou")[0]
    assert differences.detectable_sentence(inference.detectable, "far", "f1_iou") == []


def test_means_carry_their_intervals_where_they_are_known():
    tables = three()
    assert [row[0].text for row in ranking_tables.ranked_table(tables, "f1_iou", "test").rows] == ["1", "2", "3"]
    with_intervals = tables.ranking.assign(low=0.5, high=0.95)
    table = ranking_tables.ranked_table(replace(tables, ranking=with_intervals), "f1_iou", "test")
    assert {row[2].note for row in table.rows} == {"[0.500, 0.950]"}


def test_an_external_set_says_what_became_of_the_test_sets_leader():
    f1 = {"A": (0.9, 0.4), "B": (0.8, 0.6)}
    records = [record(x, 0, {"test": scores(a), "far": scores(b)}) for x, (a, b) in f1.items()]
    tables = make_tables(results_of(records, plan_for(["A", "B"], seeds=(0,))))
    assert ranking_tables.lead_sentence(tables, "f1_iou", "far") == (
        "B leads with F1 (IoU) 0.600; A, first on the test set, is at rank 2 with 0.400."
    )
    assert ranking_tables.lead_sentence(tables, "f1_iou", "test") == "A leads with F1 (IoU) 0.900, as on the test set."


@pytest.mark.parametrize(
    ("p", "text"), [(0.0004, "< 0.001"), (0.001, "0.001"), (0.0449, "0.045"), (1.0, "1.000"), (NAN, "–")]
)
def test_p_values_are_written_as_papers_do(p, text):
    assert format_p(p) == text


def test_an_interval_below_zero_has_real_minus_signs():
    assert format_interval("f1_iou", -0.0021, 0.028) == "[−0.002, 0.028]"
    assert format_interval("f1_iou", NAN, 0.028) == ""


def test_agreement_is_named_for_its_set_alone():
    agreement = {"far": {"f1_iou": 0.8, "unknown": 1.0}}
    assert "Human experts reach F1 (IoU) 0.800 against" in table_cells.agreement_note(agreement, "far")
    assert table_cells.agreement_note(agreement, "test") == ""


def test_the_published_table_stands_beside_an_ablation_of_its_configurations():
    records = [record(label, 0, {"test": scores(0.5 + 0.01 * i)}) for i, label in enumerate(TWELVE)]
    table = published_table(make_tables(results_of(records, plan_for(TWELVE, seeds=(0,)))))
    rows = {row[0]: row for row in texts(table)}
    assert len(rows) == 12
    # published as 0.781 over 3 of 5 runs, 0.469 with the collapses counted
    shown = rows["Focal Tversky"]
    assert (shown[1], shown[2], shown[3][:5], shown[4]) == ("0.781 ± 0.002", "1", "0.469", "12")
    assert rows["CombinedFT: CellViT"][5:] == ["0.610", "1"]  # the last label has the highest made-up F1
    assert "Spearman" in table.notes[-1]


def test_the_published_table_needs_six_of_its_configurations():
    for n, is_there in ((5, False), (6, True)):
        labels = [*TWELVE[:n], "one of our own"]
        records = [record(label, 0, {"test": scores(0.5)}) for label in labels]
        table = published_table(make_tables(results_of(records, plan_for(labels, seeds=(0,)))))
        assert (table is not None) == is_there
    assert set(TWELVE) == set(published.recount().configuration)


def test_spearman_of_known_orders():
    x = pd.Series([1.0, 2.0, 3.0, 4.0]).to_numpy()
    assert spearman(x, x) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, pd.Series([1.0, 2.0, 4.0, 3.0]).to_numpy()) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(spearman(x, 0 * x))


def test_costs_are_means_of_trials_and_hours_of_all():
    plan = plan_for(["A"], seeds=(0, 1))
    spent = [{"training": 1000.0, "evaluation": 200.0}, {"training": 2000.0, "evaluation": 400.0}]
    records = [record("A", seed, {"test": scores(0.5)}, seconds=spent[seed]) for seed in (0, 1)]
    histories = {("A", seed): pd.DataFrame({"images_per_s": [10.0 + 20 * seed]}) for seed in (0, 1)}
    table = cost_table.cost_table(findings_of(records, plan, details=replace(NO_DETAILS, histories=histories)))
    assert texts(table) == [["A", "2", "1500 s", "300 s", "20", "10", "900 MB", "1.00"]]
    assert table.rows[0][2].note == "1000–2000"
    assert table.notes[0].startswith("All trials together: 1.0 h on cpu.")


def test_no_cost_table_without_times():
    plan = plan_for(["A"], seeds=(0,))
    records = [record("A", 0, {"test": scores(0.5)}, seconds={})]
    assert cost_table.cost_table(findings_of(records, plan)) is None


def test_weights_are_a_section_only_where_enough_mixtures_were_tried():
    def mixed(label, weights):
        names = ("bce", "dice", "focal")
        terms = [{"name": n, "weight": w, "code": None} for n, w in zip(names, weights, strict=True)]
        return record(label, 0, {"test": scores(weights[1])}, settings={"loss": {"name": None, "terms": terms}})

    grid = [(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8), (0.4, 0.4, 0.2), (0.4, 0.2, 0.4), (0.2, 0.4, 0.4)]
    labels = [f"mix {i}" for i in range(len(grid))]
    records = [mixed(label, weights) for label, weights in zip(labels, grid, strict=True)]
    for n in (ENOUGH_MIXTURES - 1, ENOUGH_MIXTURES):
        plan = plan_for(labels[:n], seeds=(0,))
        found = findings_of(records[:n], plan).families
        assert [family.names for family in found] == ([("bce", "dice", "focal")] if n == ENOUGH_MIXTURES else [])
    points = found[0].points.set_index("label")
    assert tuple(points.loc["mix 4", ["a", "b", "c", "mean"]]) == (0.4, 0.2, 0.4, 0.2)


def test_sections_have_names_of_their_own_and_a_template_each():
    ids = [section.id for section in PAGE_SECTIONS]
    assert len(set(ids)) == len(ids)
    templates = {file.name.removesuffix(".html.j2") for file in PAGE_FOLDER.glob("*.html.j2")}
    assert set(ids) == templates - {"page", "macros", "live"}


def test_the_gallery_shows_the_best_ranked_and_says_how_many_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_module, "MOST_CONFIGURATIONS", 2)
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_realistic(
        ledger, labels=["A", "B", "C"], seeds=(0,), external=("far",), n_images=3, epochs=2, side_px=64
    )
    results = Results.now(ledger, plan)
    found = Findings(results, make_tables(results))
    first, second, _ = found.everyone
    gallery = gallery_module.make_gallery(found)
    assert list(gallery.by_configuration) == [first, second]
    assert all(set(shots) == {"worst", "median", "best"} for shots in gallery.by_configuration.values())
    same = {name: [picture.label for picture in row] for name, row in gallery.crowded.items()}
    assert same == {"test": [first, second], "far": [first, second]}
    assert gallery.leader == first
    assert set(gallery.leader_abroad) == {"far"}
    assert gallery.left_out.startswith("The 2 best-ranked configurations are shown; the pictures of the other 1")


def test_a_strip_has_no_cross_for_a_seed_that_was_ended_early():
    records = [record("A", 0, None, outcome="stopped"), record("A", 1, {"test": scores(0.0)}, outcome="collapsed")]
    seeds = make_tables(results_of(records, plan_for(["A"], seeds=(0, 1)))).scores
    seeds = select(seeds, set_name="test", metric="f1_iou")
    drawn = str(table_cells.strip(seeds, NAN, 0.0, 1.0, "f1_iou"))
    assert drawn.count("<path") == 1
    assert "seed 0 ended early; seed 1 collapsed" in drawn


def test_an_interval_that_says_nothing_is_not_printed():
    assert format_interval("f1_iou", 0.4, 0.9) == "[0.400, 0.900]"
    assert format_interval("f1_iou", 0.027, 1.0) == ""
    assert interval_cell("f1_iou", 0.027, 1.0) == "too few seeds to tell"
    assert interval_cell("f1_iou", NAN, NAN) == ""
    assert interval_cell("mae", 0.0, 9.0) == "[0.00, 9.00]"  # an error without bound has no width that is too wide


def test_a_table_without_any_telling_interval_says_so_once():
    plan = plan_for(["A", "B"], (0, 1))
    tables = make_tables(results_of([record(t.label, t.seed, {"test": scores(0.5)}) for t in plan.trials], plan))
    for width, has_column in ((0.8, False), (0.2, True)):
        wide = replace(tables, ranking=tables.ranking.assign(low=0.1, high=0.1 + width))
        table = format_table(wide, metric="f1_iou")
        assert ("95 % interval" in table.columns) == has_column
        assert ("No interval is shown: these are too few seeds to tell." in table.notes) != has_column


@pytest.mark.parametrize(("mpe", "words"), [(3.0, "3 % low"), (-4.0, "4 % high")])
def test_the_answer_says_what_scores_mean_in_cells(mpe, words):
    """MPE is of true less predicted cells: above 0, too few are counted."""
    numbers = {"recall_iou": 0.95, "precision_iou": 0.94, "mpe": mpe}
    plan = plan_for(["A"], (0,))
    results = results_of([record("A", 0, {"test": scores(0.9, **numbers)})], plan)
    assert meaning(Findings(results, make_tables(results)), "A") == (
        f"In cells: of 100 it finds 95, of 100 that it draws 6 are none, and its counts are {words}."
    )

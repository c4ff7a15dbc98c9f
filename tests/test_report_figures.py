"""Figures of a report: what they say is what the tables say, and they stay legible and small."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_data import TWELVE, plan_for, record, results_of, scores, write_realistic

from cellray.ledger import Ledger
from cellray.record import Tried, TriedRate
from cellray.report import Findings, make_tables
from cellray.report.figures import FIGURES, draw
from cellray.report.figures.budget import cheapest, costs, term_scales
from cellray.report.figures.counting import count_scatter
from cellray.report.figures.detection import iou_curves, iou_curves_by_set, mean_curves, precision_recall
from cellray.report.figures.drawing import ReportFigure
from cellray.report.figures.error_kinds import error_kinds, strata
from cellray.report.figures.learning import collapse_epoch, curves, range_tests, rate_choices
from cellray.report.figures.rank_tests import critical_difference, joined, pair_matrix, rank_stability
from cellray.report.figures.saving import shorten_svg
from cellray.report.figures.seed_dots import ranking_dots
from cellray.report.figures.transfer import drop, transfer_map
from cellray.report.figures.weight_surface import simplex_response
from cellray.report.mixtures import WeightFamily
from cellray.report.page import PAGE_SECTIONS
from cellray.report.ranking import select
from cellray.results import Results
from cellray.results.details import CURVE_COLUMNS, LEVEL_COLUMNS, NO_DETAILS, read_details

NAN = float("nan")
LONG = "A label of sixty characters with $maths$ and _x_ in it, as it"
SETS = ["test", "far", "val"]
LABELS = (*TWELVE[:11], LONG)
BAD = {("Focal", 0): "collapsed", ("Focal", 5): "collapsed", ("Dice", 79): "failed"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A made-up study: its tables, details, records by (label, seed) and labels in rank order."""
    ledger = Ledger(str(tmp_path_factory.mktemp("ledger")), "made_up")
    plan = write_realistic(ledger, labels=LABELS, bad=BAD, missing=[("BCE: low", 79)], n_images=20, epochs=21)
    results = Results.now(ledger, plan)
    details, tables = read_details(results), make_tables(results)
    by_trial = Findings(results, tables).trials
    labels = list(select(tables.ranking, set_name="test", metric="f1_iou").label)
    return tables, details, by_trial, labels


def made_details(labels):
    """IoU curves and strata of every label on two sets, one of them lost."""
    curves, levels = [], []
    for i, label in enumerate(labels):
        for name in ("test", "far"):
            who = {"set": name, "label": label, "seed": 0, "outcome": "collapsed" if i == 0 else "finished"}
            curves += [{**who, "threshold": t / 10, "f1": 0.0 if i == 0 else 1 - t / 10} for t in range(1, 10)]
            for stratum, level in (("crowding", "sparse"), ("crowding", "empty"), ("size", "small"), ("size", "large")):
                numbers = {"f1_iou": i / 20, "recall_iou": i / 20, "mae": NAN if i == 0 else 0.5}
                levels.append({**who, "stratum": stratum, "level": level, **numbers})
    return pd.DataFrame(curves).reindex(columns=CURVE_COLUMNS), pd.DataFrame(levels).reindex(columns=LEVEL_COLUMNS)


def inference(labels):
    """Tables of tests as a study would give them."""
    n = len(labels)
    pairs = [
        {"set": "test", "metric": "f1_iou", "a": a, "b": b, "difference": 0.01 * (j - i), "decided": j - i > 3}
        for i, a in enumerate(labels)
        for j, b in enumerate(labels)
        if i < j
    ]
    place = np.arange(1, n + 1)
    low, high = np.maximum(place - 2, 1), np.minimum(place + 2, n)
    ranks = pd.DataFrame({"set": "test", "label": labels, "rank": place, "rank_low": low, "rank_high": high})
    ranks["mean_rank"] = np.linspace(3, 9, n)
    shares = [
        {"set": "test", "label": label, "rank": rank, "share": 0.5 if abs(i + 1 - rank) < 1 else 0.5 / (n - 1)}
        for i, label in enumerate(labels)
        for rank in place
    ]
    test = {"set": "test", "n_images": 72, "statistic": 90.0, "p": 1e-9, "critical_difference": 1.96}
    return pd.DataFrame(pairs), ranks, pd.DataFrame(shares), pd.DataFrame([test])


def with_rates(label, dice, lr=None):
    """A configuration for which rates were tried."""
    rates = tuple(TriedRate(lr=rate, dice=found) for rate, found in dice.items())
    return Tried(label=label, number=0, source="given", seeds=1, state="running", rates=rates, lr=lr)


def shown(**known):
    """Findings of which a figure needs no more than these."""
    return SimpleNamespace(**{"metric": "f1_iou", "title": "F1 (IoU)", "ceiling": {}} | known)


def ranked(tables, *, external=("bbbc039", "s_bsst265", "cfos"), **known):
    """Findings of whole tables."""
    return shown(tables=tables, compared=tables, external=list(external), **known)


def every_figure(study):
    """Name -> function, arguments, keywords."""
    tables, details, by_trial, labels = study
    iou, levels = made_details(labels)
    pairs, ranks, shares, test = inference(labels)
    grid = [(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]
    points = pd.DataFrame(grid, columns=["a", "b", "c"]).assign(se=0.01)
    points["mean"] = 0.6 + 0.02 * points.a - 0.01 * points.b**2
    mixed_loss = {"loss": {"terms": [{"name": "bce"}, {"name": "dice"}]}}
    terms = record("A", 0, None, settings=mixed_loss, term_scales=[0.4, 2.0])
    counts = details.counts_of("test")
    found = ranked(tables, labels=labels, everyone=labels, trials=by_trial, details=details)
    made = shown(details=SimpleNamespace(iou=iou, strata=levels), labels=labels, tables=SimpleNamespace(sets=SETS))
    tests = SimpleNamespace(ranks=ranks, friedman=test, stability=shares)
    tried = [with_rates(label, {1e-3: (0.4, 0.5), 3e-3: (0.6, None)}, lr=3e-3) for label in labels]
    return {
        "ranking": (ranking_dots, (ranked(tables, ceiling={"test": 0.9}), "test"), {}),
        "transfer": (transfer_map, (found,), {}),
        "drop": (drop, (ranked(tables, ceiling={"cfos": 0.8}),), {}),
        "iou": (iou_curves, (made,), {}),
        "iou-sets": (iou_curves_by_set, (made,), {}),
        "precision-recall": (precision_recall, (found,), {}),
        "counts": (count_scatter, (counts, labels), {}),
        "strata": (strata, (made,), {}),
        "errors": (error_kinds, (found,), {}),
        "curves": (curves, (found,), {"column": "val_dice", "title": "Dice"}),
        "range-tests": (range_tests, (found,), {}),
        "learning-rates": (rate_choices, (tried, labels), {}),
        "costs": (costs, (found,), {}),
        "term-scales": (term_scales, (shown(trials={("A", 0): terms, ("A", 5): terms}, everyone=["A"]),), {}),
        "critical": (critical_difference, (tests,), {}),
        "pairs": (pair_matrix, (shown(pairs=pairs, labels=labels),), {}),
        "stability": (rank_stability, (tests,), {}),
        "simplex": (simplex_response, (WeightFamily(("bce", "dice", LONG), points, "f1_iou"),), {}),
    }


def saved(name, plot, *args, **how):
    """A figure as the report saves it."""
    kind = ReportFigure(name, "quality", "?", name, name, lambda _: plot(*args, **how))
    nobody = results_of([], plan_for(["A"]))
    (drawing,) = draw(kind, Findings(nobody, make_tables(nobody)))
    return drawing


def texts(figure):
    """Every text of a figure, also outside its axes."""
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    return found + [text.get_text() for text in figure.texts]


@pytest.mark.slow
def test_every_figure_is_small_valid_and_the_same_again(study):
    for name, (plot, args, how) in every_figure(study).items():
        drawing = saved(name, plot, *args, **how)
        assert len(drawing.svg) < 180_000, name
        ElementTree.fromstring(drawing.svg)
        if name in ("ranking", "counts", "simplex"):
            again = saved(name, plot, *args, **how)
            assert (again.svg, again.png) == (drawing.svg, drawing.png), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ranking", "drop", "errors", "strata", "critical", "pairs", "stability"])
def test_labels_of_twelve_configurations_neither_overlap_nor_run_over(study, name):
    plot, args, how = every_figure(study)[name]
    figure = plot(*args, **how)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    for axis in figure.axes:
        labels = [tick for tick in axis.get_yticklabels() if tick.get_visible() and tick.get_text()]
        if name == "critical":
            labels = [text for text in axis.texts if re.search(r"\d\.\d\d", text.get_text())]
        boxes = [label.get_window_extent(renderer) for label in labels]
        for i, box in enumerate(boxes):
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1
            assert not any(box.overlaps(other) for other in boxes[:i]), labels[i].get_text()


def test_nothing_to_draw_is_none(study):
    tables, *_ = study
    none = replace(tables, scores=tables.scores.iloc[:0], ranking=tables.ranking.iloc[:0])
    blank = ranked(none, labels=["A"], everyone=["A"], trials={}, details=NO_DETAILS)
    pairs, ranks, shares, test = (table.iloc[:0] for table in inference(["A", "B"]))
    assert ranking_dots(blank, "test") is None
    assert drop(blank) is None
    assert drop(ranked(tables, external=())) is None
    assert iou_curves(blank) is None
    assert iou_curves_by_set(blank) is None
    assert precision_recall(blank) is None
    assert count_scatter({}, ["A"]) is None
    assert strata(blank) is None
    assert error_kinds(blank) is None
    assert curves(blank, column="val_dice", title="") is None
    assert range_tests(blank) is None
    assert rate_choices((), ["A"]) is None
    assert rate_choices([with_rates("A", {1: (None,)})], ["A"]) is None
    assert term_scales(shown(trials={("A", 0): record("A", 0, None)}, everyone=["A"])) is None
    assert costs(blank) is None
    tests = SimpleNamespace(ranks=ranks, friedman=test, stability=shares)
    assert critical_difference(tests) is None
    assert pair_matrix(shown(pairs=pairs, labels=["A"])) is None
    assert rank_stability(tests) is None
    points = pd.DataFrame({"a": [1.0], "b": [0.0], "c": [0.0], "mean": [0.5], "se": [0.1]})
    assert simplex_response(WeightFamily(("a", "b", "c"), points, "f1_iou")) is None


def test_a_choice_of_rates_shows_each_training_their_means_and_the_rate_used():
    (axis,) = rate_choices([with_rates("A", {1e-3: (0.4, 0.5), 3e-3: (0.6, None)}, lr=1e-3)], ["A"]).axes
    dots, line, ring = ([tuple(map(float, point)) for point in line.get_xydata()] for line in axis.lines)
    assert dots == [(1e-3, 0.4), (1e-3, 0.5), (3e-3, 0.6)]
    assert line == [(1e-3, pytest.approx(0.45)), (3e-3, 0.6)]
    assert ring == [(1e-3, pytest.approx(0.45))]


@pytest.mark.parametrize(
    ("dice", "loss", "epoch"),
    [
        ([NAN, 0.5, NAN, 0.6], [1, 1, 1, 1], None),
        ([NAN, 0.5, NAN, 0.0, NAN, 0.0], [1] * 6, 4),
        ([0.5, 0.0, 0.5, 0.0, 0.0], [1] * 5, 4),  # it came back once
        ([0.0, 0.0, 0.5], [1] * 3, None),  # a slow start is no collapse
        ([0.0, NAN, 0.009], [1] * 3, 1),
        ([NAN, 0.5, NAN, NAN], [1, 1, 1, NAN], 4),
        ([NAN, 0.5, NAN, NAN], [1, 1, 1, 1], 4),  # the last epoch is validated: NaN is what it gave
        ([NAN, NAN, NAN], [NAN, NAN, NAN], 1),
        ([], [], None),
    ],
)
def test_the_epoch_of_a_collapse_is_the_first_sign_of_death_after_the_last_of_life(dice, loss, epoch):
    history = pd.DataFrame({"epoch": range(1, len(dice) + 1), "train_loss": loss, "val_dice": dice})
    assert collapse_epoch(history) == epoch


def watched(history, trials):
    """Findings of one trial with its history."""
    return shown(details=SimpleNamespace(histories={("A", 0): history}), trials=trials, everyone=["A"])


def test_a_cross_marks_the_epoch_of_the_collapse():
    history = pd.DataFrame({"epoch": [1, 2, 3, 4], "train_loss": 1.0, "val_dice": [0.4, 0.0, 0.0, 0.0]})
    trials = {("A", 0): record("A", 0, None, outcome="collapsed")}
    figure = curves(watched(history, trials), column="val_dice", title="Dice")
    (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([2], [0])


def test_rare_validation_points_get_markers_and_dense_ones_none():
    epochs = np.arange(1, 51)
    for every, marker in ((10, "o"), (1, "")):
        history = pd.DataFrame({"epoch": epochs, "train_loss": 1.0, "val_dice": np.where(epochs % every, NAN, 0.5)})
        figure = curves(watched(history, {}), column="val_dice", title="Dice")
        assert figure.axes[0].lines[0].get_marker() == marker


def test_intervals_of_means_are_drawn_where_known(study):
    tables, *_ = study
    ranking = tables.ranking.assign(low=tables.ranking["mean"] - 0.01, high=tables.ranking["mean"] + 0.02)
    figure = ranking_dots(ranked(replace(tables, ranking=ranking)), "test")
    first = select(ranking, set_name="test", metric="f1_iou").iloc[0]
    lines = [line.get_xdata() for axis in figure.axes for line in axis.lines]
    assert any(np.array_equal(line, [first["mean"] - 0.01, first["mean"] + 0.02]) for line in lines)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert [label[-3:] for label in labels[:2]] == ["  1", "  2"]


def test_the_mean_curve_counts_a_collapse_as_0():
    rows = pd.DataFrame({"label": "A", "threshold": [0.5, 0.5, 0.9, 0.9], "f1": [0.8, 0.0, 0.2, 0.0]})
    assert mean_curves(rows).loc["A"].tolist() == [0.4, 0.1]


def test_a_collapsed_trial_missed_every_cell():
    plan = plan_for(["A"], seeds=(0, 1))
    rates = {"missed": 0.2, "merged": 0.1, "split": 0.0, "spurious": 0.5}
    records = [
        record("A", 0, {"test": scores(0.8, **rates)}),
        record("A", 1, {"test": scores(0.0, missed=0.0, spurious=9.0)}, outcome="collapsed"),
    ]
    tables = make_tables(results_of(records, plan))
    figure = error_kinds(ranked(tables, labels=["A"]))
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == pytest.approx([0.6, 0.05, 0.0, 0.25])  # missed, merged, split, spurious


def test_counts_say_bias_and_limits():
    counts = pd.DataFrame({"n_true": [4, 8, 6], "n_pred": [5, 5, 5]})  # errors -1, 3, 1: mean 1, SD 2
    title = count_scatter({"A": counts}, ["A"]).axes[0].get_title(loc="left")
    assert title == "A\nbias +1.0, limits -2.9 to +4.9"


def test_counts_are_not_squeezed_by_one_image():
    wild = pd.DataFrame({"n_true": [4] * 19 + [400], "n_pred": [4] * 18 + [900, 4]})  # 90 % have no more than 4
    axis = count_scatter({"A": wild}, ["A"]).axes[0]
    assert axis.get_xlim()[1] == pytest.approx(15)  # 1.25 x 3 x 4
    assert "(2 beyond)" in axis.get_title(loc="left")


def test_two_configurations_need_no_matrix():
    pairs, *_ = inference(["A", "B"])
    assert pair_matrix(shown(pairs=pairs, labels=["A", "B"])) is None


def test_drop_prints_the_change_from_the_test_set():
    plan = plan_for(["A"], seeds=(0,))
    tables = make_tables(results_of([record("A", 0, {"test": scores(0.8), "far": scores(0.55)})], plan))
    figure = drop(ranked(tables, external=["far"], ceiling={"far": 0.9}))
    assert texts(figure) == ["−0.25", "F1 (IoU)"]
    assert any(list(line.get_xdata()) == [0.9, 0.9] for line in figure.axes[0].lines)


def test_precision_and_recall_leave_the_lost_in_the_corner():
    plan = plan_for(["A"], seeds=(0, 1, 2))
    records = [
        record("A", 0, {"test": scores(0.8, precision_iou=0.9, recall_iou=0.7)}),
        record("A", 1, {"test": scores(0.0)}, outcome="collapsed"),
        record("A", 2, None, outcome="failed"),
    ]
    figure = precision_recall(ranked(make_tables(results_of(records, plan)), labels=["A"]))
    axis = figure.axes[0]
    drawn = [(list(x.get_xdata()), list(x.get_ydata())) for x in axis.lines if x.get_marker() == "o"]
    assert drawn == [([0.7], [0.9])]
    assert "2 at (0, 0)" in texts(figure)
    assert axis.get_xlim()[0] == pytest.approx(0.64)


def test_pairs_above_the_diagonal_are_those_below_with_the_other_sign():
    pairs, *_ = inference(["A", "B", "C", "D", "E"])
    figure = pair_matrix(shown(pairs=pairs, labels=["A", "B", "C", "D", "E"]))
    axis = figure.axes[0]
    by_place = {text.get_position(): text for text in axis.texts}
    assert by_place[4, 0].get_text() == "+.040"
    assert by_place[0, 4].get_text() == "−.040"
    assert by_place[0, 4].get_fontweight() == "bold"
    assert by_place[1, 0].get_fontweight() == "normal"
    assert len(axis.patches) == 2  # A against E alone is decided, and is framed on both sides


def test_runs_of_ranks_within_the_critical_difference():
    assert joined(np.array([1.0, 2.0, 2.5, 4.0, 6.5]), 1.6) == [(0, 2), (2, 3)]
    assert joined(np.array([1.0, 2.0, 3.0]), 5.0) == [(0, 2)]
    assert joined(np.array([1.0, 3.0, 5.0]), 1.0) == []


def test_the_front_of_costs_is_what_no_other_beats():
    cost = pd.Series({"slow": 9.0, "cheap": 1.0, "middle": 4.0, "beaten": 5.0, "twin": 4.0})
    score = pd.Series({"slow": 0.9, "cheap": 0.5, "middle": 0.8, "beaten": 0.7, "twin": 0.6})
    assert cheapest(cost, score, higher_is_better=True) == ["cheap", "middle", "slow"]
    assert cheapest(cost, score, higher_is_better=False) == ["cheap"]


def test_a_study_of_many_configurations_shows_its_best_and_says_so():
    labels = [f"weights {i}" for i in range(66)]
    counts = pd.DataFrame({"n_true": [1, 2], "n_pred": [1, 3]})
    figure = count_scatter(dict.fromkeys(labels, counts), labels)
    assert len(figure.axes) == 24
    assert figure.get_supxlabel() == "true cells in an image (the best 24 of 66 configurations)"


def test_shortening_moves_nothing_by_more_than_a_twentieth_of_a_point():
    svg = """<svg>
     <!-- a comment -->
     <path id="DejaVuSans-41" d="M 12.987654 3 \nL 12.04 -0.06" transform="scale(0.015625)"/>
     <use xlink:href="#DejaVuSans-41" transform="translate(63.62 0)"/>
     <path d="M 1.26 2.31 \nL 1.26 2.31 " clip-path="url(#p12.3456)"/></svg>"""
    short = shorten_svg(svg).decode()
    assert 'd="M 13.0 3 \nL 12.0 -0.1" transform="scale(0.015625)"' in short
    assert '<use xlink:href="#g41" x="63.6"/>' in short
    assert 'd="M 1.3 2.3h0"' in short
    assert "url(#p12.3456)" in short
    assert "comment" not in short


def test_the_triangle_shows_the_best_weights_of_the_surface():
    grid = np.array([(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]) / 4
    points = pd.DataFrame(grid, columns=["a", "b", "c"]).assign(se=0.01)
    points["mean"] = 0.5 + points.a * points.b  # best at a = b = 1/2
    figure = simplex_response(WeightFamily(("bce", "dice", "focal"), points, "f1_iou"))
    (star,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx((0.5, 0.0))
    assert any("(0.50, 0.50, 0.00)" in text.get_text() for text in figure.legends[0].get_texts())
    assert math.isclose(figure.axes[0].get_aspect(), 1.0)


def test_every_figure_has_a_name_of_its_own_a_section_and_a_reading():
    names = [kind.name for kind in FIGURES]
    assert len(set(names)) == len(names)
    assert {kind.section for kind in FIGURES} <= {section.id for section in PAGE_SECTIONS}
    assert all(kind.reading.endswith((".", "?")) for kind in FIGURES)


def test_the_documentation_lists_every_figure():
    text = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text()
    table = text[text.index("## Figures") :]
    assert re.findall(r"`([a-z-]+?)(?:-<\w+>)?`", table) == [kind.name for kind in FIGURES]

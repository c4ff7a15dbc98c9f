"""Ranked tables, answer, exports, page and actor of a report, against made-up ledgers with known numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_data import PUBLISHED, key_of, plan_for, published_records, record, results_of, scores, write_realistic

from cellray.ledger import Ledger
from cellray.record import PlannedTrial
from cellray.report import (
    Findings,
    ReportActor,
    ReportObserver,
    StudyFacts,
    ahead_on_test,
    build_report,
    format_table,
    load_tables,
    make_tables,
    write_answer,
)
from cellray.report.exports import md, tex
from cellray.report.gallery import shrink
from cellray.report.inference import infer
from cellray.report.ranking import select
from cellray.report.words import plural
from cellray.results import Results
from cellray.scores import errors_of_nothing
from cellray.study import Role

NASTY = "<b>&_%$ |x"


def ranked(records, plan, **how):
    """Rows of the test set by label."""
    set_name = how.pop("set_name", "test")
    tables = make_tables(results_of(records, plan, **how))
    return select(tables.ranking, set_name=set_name, metric=plan.rank_by).set_index("label")


def test_a_collapse_costs_the_survivors_champion_its_place():
    rows = ranked(published_records(), plan_for(list(PUBLISHED)))
    champion = rows.loc["Focal Tversky"]
    assert champion["mean"] == pytest.approx((0.779 + 0.781 + 0.783) / 5)  # 0.469, the published 0.781 x 3 / 5
    assert round(champion["mean"], 3) == 0.469
    assert (round(champion.survivors_mean, 3), round(champion.survivors_sd, 3)) == (0.781, 0.002)
    assert (champion.n, champion.survivors_n, champion.n_collapsed) == (5, 3, 2)
    assert champion["rank"] == 5
    assert champion.survivors_rank == 1
    assert champion.order_differs
    assert round(rows.loc["Focal", "mean"], 3) == 0.491
    assert rows.loc["Focal", "rank"] == 4
    assert next(iter(rows.index)) == "CombinedFT: balanced"
    assert round(rows.loc["CombinedFT: balanced", "mean"], 3) == 0.744


def test_failed_counts_as_worst_and_missing_as_nothing():
    plan = plan_for(["A", "B"], seeds=(0, 1))
    records = [
        record("A", 0, {"test": scores(0.8)}),
        record("A", 1, None, outcome="failed"),
        record("B", 0, {"test": scores(0.6)}),
    ]
    rows = ranked(records, plan)
    assert rows.loc["A", "mean"] == pytest.approx(0.4)
    assert rows.loc["A", "worst"] == 0
    assert rows.loc["B", "mean"] == pytest.approx(0.6)
    assert rows.loc["B", "n_missing"] == 1
    assert rows.provisional.all()
    assert list(rows.index) == ["B", "A"]
    table = format_table(make_tables(results_of(records, plan)), metric="f1_iou")
    assert any("Provisional: 1 of 4" in note for note in table.notes)
    assert "1 missing" in table.rows[0][-1]
    assert "1 failed" in table.rows[1][-1]


def test_not_a_number_counts_as_worst_and_is_mentioned():
    plan = plan_for(["A"], seeds=(0, 1))
    records = [record("A", 0, {"test": scores(0.8)}), record("A", 1, {"test": scores(math.nan)})]
    tables = make_tables(results_of(records, plan))
    row = select(tables.ranking, set_name="test", metric="f1_iou").iloc[0]
    assert row["mean"] == pytest.approx(0.4)
    assert row.n_nan == 1
    assert row.survivors_n == 1
    assert any("A, seed 1: F1 (IoU) on test is not a number" in note for note in tables.notes)
    assert "1 not a number" in format_table(tables, metric="f1_iou").rows[0][-1]


@pytest.mark.parametrize("metric", ["mae", "medae", "mpe"])
def test_a_collapse_is_never_a_perfect_count(metric):
    nothing = errors_of_nothing([0, 3, 9])
    assert nothing == {
        "mae": 4.0, "medae": 3.0, "mpe": pytest.approx(200 / 3), "count_bias": 4.0,
        "count_low": pytest.approx(1.96 * 21**0.5 - 4), "count_high": pytest.approx(1.96 * 21**0.5 + 4),
    }  # fmt: skip
    plan = plan_for(["A", "B"], seeds=(0,), rank_by=metric)
    records = [
        record("A", 0, {"test": scores(0.0, error=0.0)}, outcome="collapsed"),  # as the released code scored it
        record("B", 0, {"test": scores(0.7, error=2.0)}),
    ]
    rows = ranked(records, plan, nothing={"test": nothing})
    assert rows.loc["A", "mean"] == nothing[metric]
    assert list(rows.index) == ["B", "A"]
    records[1] = record("B", 0, {"test": scores(0.7, error=500.0)})
    rows = ranked(records, plan, nothing={"test": nothing})
    assert rows.loc["A", "mean"] == 500
    assert list(rows["rank"]) == [1, 1]


def test_a_signed_error_is_ranked_by_its_size():
    plan = plan_for(["even", "swinging"], seeds=(0, 1), rank_by="mpe")
    records = [
        record("swinging", 0, {"test": scores(0.7, mpe=-50.0)}),
        record("swinging", 1, {"test": scores(0.7, mpe=50.0)}),
        *(record("even", seed, {"test": scores(0.7, mpe=-10.0)}) for seed in (0, 1)),
    ]
    rows = ranked(records, plan)
    assert list(rows["mean"]) == [10, 50]
    assert list(rows.index) == ["even", "swinging"]


def test_ties_share_a_rank_and_are_ordered_by_label():
    records = [record(label, 0, {"test": scores(0.1 + 0.2)}) for label in ("b", "a")]
    records.append(record("c", 0, {"test": scores(0.3)}))  # 0.1 + 0.2 isn't 0.3 in binary, and is no win
    rows = ranked(records, plan_for(["b", "c", "a"], seeds=(0,)))
    assert list(rows.index) == ["a", "b", "c"]
    assert list(rows["rank"]) == [1, 1, 1]


def test_a_set_that_was_not_judged_yet_is_missing_there():
    records = [
        record("A", 0, {"test": scores(0.8), "far": scores(0.5)}),
        record("A", 1, {"test": scores(0.7)}),
    ]
    far = ranked(records, plan_for(["A"], seeds=(0, 1)), set_name="far")
    assert far.n_missing.iloc[0] == 1
    assert far["mean"].iloc[0] == 0.5


def test_a_record_that_was_evaluated_otherwise_is_out_of_date():
    plan = plan_for(["A"], seeds=(0,))
    plan = replace(plan, trials=(PlannedTrial("A", 0, key_of("A", 0), evaluation_key="another"),))
    tables = make_tables(results_of([record("A", 0, {"test": scores(0.8)})], plan))
    assert tables.n_records == 0
    assert tables.n_unplanned == 1
    assert tables.trials.outcome[0] == "missing"


def answered(records, plan):
    """The answer from records alone: without image rows only seeds are compared."""
    results = results_of(records, plan)
    return write_answer(Findings(results, infer(make_tables(results), results)))


def test_the_verdict_is_about_the_runs_that_ended_and_names_the_lost_ones():
    told = answered(published_records(), plan_for(list(PUBLISHED)))
    # mean 0.7443, SD 0.0223 of five: 2.776 x 0.0223 / sqrt(5) = 0.0276 on either side
    score = "F1 (IoU) 0.744 on the test set (mean over 5 seeds; 95 % interval [0.717, 0.772])"
    assert told[0] == f"Take CombinedFT: balanced: {score}."
    # Focal Tversky's three runs that ended are better than any of the others', and it lost two of five
    assert told[1].startswith("It loses at most 0.0") and "Focal Tversky" in told[2]
    assert "Focal Tversky has the better mean, 0.781, but not all of its runs ended (3 of 5)." in told
    words = "3 of 25 trials collapsed (Focal Tversky 2, Focal 1): in the ranking each counts as the worst value"
    assert words in told[-2]
    assert "would have put Focal Tversky first (0.781 over 3 of 5 seeds)" in told[-2]
    # Clopper and Pearson: 1 of 5 and 2 of 5
    assert "Of new runs, 5 to 85 % of Focal Tversky and 1 to 72 % of Focal would be lost" in told[-1]


SEEDS = (0, 1, 2)


@pytest.mark.slow
def test_the_answer_names_the_best_where_every_comparison_decides():
    plan = plan_for(["A", "B"], seeds=SEEDS)
    values = {"A": (0.80, 0.82, 0.81), "B": (0.60, 0.61, 0.60)}  # differences 0.20, 0.21, 0.21
    records = [
        record(x, s, {"test": scores(f)}) for x, all_f in values.items() for s, f in zip(SEEDS, all_f, strict=True)
    ]
    told = answered(records, plan)
    # A: mean 0.81, SD 0.01 of three: 4.303 x 0.01 / sqrt(3) = 0.0248 on either side
    assert told[0] == "Take A: F1 (IoU) 0.810 on the test set (mean over 3 seeds; 95 % interval [0.785, 0.835])."
    assert told[1] == "It is the better one, with new trainings and on these test images (95 % confidence)."
    assert answered(records[:1], plan)[0].startswith("So far, A has")
    assert "provisional" in answered(records[:5], plan)[-1]
    assert answered([], plan) == ["No trial has a result yet (6 of 6 planned trials are missing)."]
    lost = [record(x, s, None, outcome="failed") for x in "AB" for s in SEEDS]
    assert answered(lost, plan)[0].startswith("No trial gave a usable result: 6 of 6 trials failed")


def test_whom_the_test_images_speak_for_rather_than_another_is_known():
    plan = plan_for(["A", "B", "C"], seeds=SEEDS)
    means = {"A": 0.81, "B": 0.60, "C": 0.70}
    records = [record(x, s, {"test": scores(f + s / 1000)}) for x, f in means.items() for s in SEEDS]
    results = results_of(records, plan)
    tables = infer(make_tables(results), results)
    assert ahead_on_test(tables, "B") == ["A"]
    assert ahead_on_test(tables, "A") == []
    # A collapses once: C is first with every run counted, A is still recommended by none but may lead those that ended
    lost = [record("A", SEEDS[0], {"test": scores(0.0)}, outcome="collapsed"), *records[1:]]
    results = results_of(lost, plan)
    assert "C" in ahead_on_test(infer(make_tables(results), results), "B")


def test_a_range_test_without_a_result_is_a_caveat():
    plan = plan_for(["A", "B"], seeds=SEEDS)
    tested = {"lr": [1e-5, 1e-4, 1e-3], "loss": [3.0, 4.0, 9.0]}
    records = [record(x, s, {"test": scores(0.6 + s / 10)}, range_test=tested, lr=1e-5) for x in "AB" for s in SEEDS]
    records[0] = record("A", 0, {"test": scores(0.6)}, range_test=tested, lr=1e-4)
    told = answered(records, plan)[-1]
    assert told.startswith(
        "The range test of 5 trials chose the lowest rate that it tried or ended before half were tried (B 3 and A 2)"
    )


OPEN = {"A": (0.81, 0.79, 0.80, 0.82, 0.78), "B": (0.74, 0.86, 0.79, 0.83, 0.76), "C": (0.52, 0.50, 0.51, 0.50, 0.49)}


def open_study(more=(), **changes):
    """A leads B by little, B scatters, C is far behind, and `more` by label; each trial took a minute."""
    rows = OPEN | dict(more)
    plan = replace(plan_for(list(rows), seeds=range(5)), **changes)
    minute = {"training": 50.0, "evaluation": 10.0}
    records = [
        record(x, s, {"test": scores(f), "val": scores(f)}, seconds=minute)
        for x, row in rows.items()
        for s, f in enumerate(row)
    ]
    return answered(records, plan)


def test_what_is_open_is_said_with_its_cost():
    told = open_study()
    assert told[2] == "Any of the 3 may be the best but C: another does at least as well."
    margin = r"B keeps that bound above 0\.02 F1 \(IoU\), the margin where a study names none\."
    found = re.fullmatch(
        rf"{margin} (\d+) seeds of it and these would, .* \((\d+) more trainings, about (.*) one after .*", told[3]
    )
    assert found and int(found[1]) in (7, 10, 14, 20, 28, 40)
    assert int(found[2]) == 2 * (int(found[1]) - 5) and found[3] == f"{found[2]} min"


@pytest.mark.slow
def test_those_are_named_that_are_fewer():
    far, near = {"D": (0.42, 0.40, 0.41, 0.40, 0.39)}, {"E": (0.86, 0.75, 0.80, 0.77, 0.81)}
    many = "of each of the 2 others, another does at least as well."
    assert open_study(far)[2] == f"The best is one of A and B; {many}"
    few = "for each of these, another does at least as well."
    assert open_study(far | near)[2] == f"Any of the 5 may be the best but C and D: {few}"


@pytest.mark.slow
def test_what_is_the_same_within_the_margin_is_said():
    # B scatters too widely to be promised anything of
    assert open_study(within=0.5)[3] == "A and C will all do within 0.5 F1 (IoU) of the best."
    assert open_study(is_drawn=True)[0].startswith("This is a demonstration")


def test_the_best_of_three_trainings_has_its_sentence():
    # of ten choices of three: B's best is 0.86 in six, 0.83 in three, 0.79 in one; A's 0.82, 0.81 and 0.80
    told = next(sentence for sentence in open_study() if sentence.startswith("Of 3 trainings"))
    assert f"most is to be expected of B {0.6 * 0.86 + 0.3 * 0.83 + 0.1 * 0.79:.3f} [" in told
    assert f"; of A {0.6 * 0.82 + 0.3 * 0.81 + 0.1 * 0.80:.3f} [" in told


def test_two_seeds_decide_nothing_however_far_apart():
    plan = plan_for(["A", "B"], seeds=(0, 1))
    records = [record(x, s, {"test": scores(f)}) for x, f in (("A", 0.8), ("B", 0.6)) for s in (0, 1)]
    first, second, *_ = answered(records, plan)
    assert first.startswith("A leads")
    assert "With 2 common seeds nothing is decided" in second


def test_an_error_is_compared_from_the_right_side():
    plan = plan_for(["A", "B"], seeds=SEEDS, rank_by="mae")
    errors = {"A": (1.0, 1.1, 1.0), "B": (3.0, 3.2, 3.1)}
    apart = [
        record(x, s, {"test": scores(0.7, error=e)})
        for x, all_e in errors.items()
        for s, e in zip(SEEDS, all_e, strict=True)
    ]
    told = answered(apart, plan)
    assert told[0].startswith("Take A: MAE 1.03") and told[1].startswith("It is the better one")
    close = [record(x, s, {"test": scores(0.7, error=e + s)}) for x, e in (("A", 1.0), ("B", 1.5)) for s in SEEDS]
    close[0] = record("A", 0, {"test": scores(0.7, error=2.0)})
    assert answered(close, plan)[2] == "Any of the 2 may be the best."


def test_counts_are_spelt_out():
    assert [plural(1, "seed"), plural(5, "seed"), plural(3, "group of images")] == [
        "1 seed",
        "5 seeds",
        "3 groups of images",
    ]


def test_text_is_escaped_for_each_format():
    assert md(NASTY) == r"&lt;b&gt;&\_%$ \|x"
    assert tex(NASTY) == r"\textless{}b\textgreater{}\&\_\%\$ \textbar{}x"
    assert tex("[k]") == "{}[k]"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A built report of two configurations and two seeds, one of them with a nasty label."""
    ledger = Ledger(str(tmp_path_factory.mktemp("store")), "made_up")
    plan = write_realistic(
        ledger,
        labels=[NASTY, "Dice"],
        seeds=(0, 5),
        external=("far",),
        n_images=6,
        epochs=6,
        bad={("Dice", 5): "collapsed"},
    )
    facts = StudyFacts(roles=(Role("loss", "compared", ["a"]),), study_yaml="name: made_up\n")
    paths = build_report(Results.now(ledger, plan), facts, export=True)
    return ledger, plan, facts, paths


@pytest.mark.slow
def test_the_same_ledger_gives_the_same_bytes_and_exports_stay_current(small):
    ledger, plan, facts, paths = small
    before = {path: ledger.read(path) for path in paths}
    again = build_report(Results.now(Ledger(ledger.storage, ledger.study), plan), facts)
    assert again == paths
    assert {p: ledger.read(p) for p in again} == before
    kinds = {path.rsplit(".", 1)[1] for path in paths}
    assert kinds == {"html", "csv", "parquet", "md", "tex", "txt", "svg", "png"}


@pytest.mark.slow
def test_the_page_is_escaped_and_holds_everything(small):
    page = small[0].read("report/index.html").decode()
    assert page.startswith("<!doctype html>")
    assert "<b>&_" not in page
    assert "&lt;b&gt;&amp;_%$ |x" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)  # nothing is fetched
    for words in ("Protocol", "split0", "split5", "built from 4 records of 4", "made up: collapsed",
                  "matched one-to-one",
                  "Published threshold", "data:image/webp", "predicting nothing", "IoU above 0.4"):  # fmt: skip
        assert words in page, words
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert len(page) < 2_000_000


@pytest.mark.slow
def test_exports_hold_the_same_numbers(small):
    ledger, plan, _, _ = small
    trials = pd.read_parquet(io.BytesIO(ledger.read("report/trials.parquet")))
    text = list(csv.DictReader(io.StringIO(ledger.read("report/trials.csv").decode())))
    assert list(trials.label) == [row["label"] for row in text] == [trial.label for trial in plan.trials]
    assert trials["own.test.f1_iou"].tolist() == pytest.approx([float(row["own.test.f1_iou"]) for row in text])
    ranking = pd.read_csv(io.BytesIO(ledger.read("report/ranking.csv")))
    assert set(ranking.set) == {"test", "far", "val"}
    assert set(ranking.point) == {"own", "shared"}
    mean = trials["own.test.f1_iou"].to_numpy()[[0, 2]].mean()  # the nasty label's two seeds
    row = ranking[
        (ranking.set == "test") & (ranking.point == "own") & (ranking.metric == "f1_iou") & (ranking["rank"] == 1)
    ]
    assert row.label.item() == NASTY
    assert row["mean"].item() == pytest.approx(mean)
    latex = ledger.read("report/ranking.tex").decode()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert r"\toprule" in latex
    widths = {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")}
    assert len(widths) == 1  # no stray ampersand
    assert r"| 1 | &lt;b&gt;" in ledger.read("report/ranking.md").decode()


def test_an_image_is_shrunk_below_its_share(small):
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="PNG")
    data, width, height = shrink(stream.getvalue(), 20_000)
    assert len(data) <= 20_000
    assert width / height == pytest.approx(4 / 3, rel=0.02)


@pytest.mark.slow
def test_a_study_ranked_by_a_median_of_image_errors_has_an_answer(tmp_path):
    ledger, labels, seeds = Ledger(str(tmp_path), "made_up"), ["A", "B"], (0, 5, 25)
    plan = write_realistic(ledger, labels=labels, seeds=seeds, external=(), n_images=6, epochs=2)
    results = Results.now(ledger, replace(plan, rank_by="medae"))
    answer = write_answer(Findings(results, load_tables(results)))
    assert answer[0].startswith("Take ")
    assert "The test set has only 6 images: that says little of others." in answer
    assert not any("nan" in sentence for sentence in answer)


@pytest.mark.slow
def test_an_empty_study_has_a_report_too(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    assert "report/index.html" in build_report(Results.now(ledger, plan_for(["A", "B"], seeds=(0,))))
    assert "No trial has a result yet" in ledger.read("report/index.html").decode()
    lost = record("A", 0, None, outcome="failed", operating_point=None, lr=None, overlays=[])
    ledger.write_record(lost, {}, {})
    build_report(Results.now(ledger, plan_for(["A", "B"], seeds=(0,))))
    assert "made up: failed" in ledger.read("report/index.html").decode()
    assert {"ranking.csv", "trials.csv", "verdict.txt"} < set(names := ledger.names("report"))
    assert not {"md", "tex", "parquet"} & {name.rpartition(".")[2] for name in names}, "nobody asked for them"


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Counting(Ledger):
    """A ledger that remembers what was read and written."""

    def __init__(self, *args: str) -> None:
        super().__init__(*args)
        self.log: list[str] = []

    def read(self, path: str) -> bytes:
        self.log.append(f"read {path}")
        return super().read(path)

    def write(self, path: str, data: bytes) -> None:
        self.log.append(f"write {path}")
        super().write(path, data)


def test_the_actor_keeps_the_table_current_without_reading_or_writing_much(tmp_path):
    ledger, clock = Counting(str(tmp_path), "made_up"), Clock()
    plan = plan_for(["A", "B"], seeds=(0, 1))
    actor = ReportActor(ledger, plan, flush_s=5, clock=clock)
    actor.trial_started("A", 0, key_of("A", 0))
    actor.epoch("A", 0, {"epoch": 1, "val_dice": math.nan})
    ledger.log.clear()
    for epoch in range(2, 50):
        actor.epoch("A", 0, {"epoch": epoch, "val_dice": 0.5})
    assert ledger.log == []  # flushed a moment ago
    clock.now = 3.0
    assert actor.status()["running"] == [
        {"label": "A", "seed": 0, "epoch": 49, "epochs": 10, "val_dice": 0.5, "running_s": 3.0, "eta_s": None}
    ]
    actor.trial_ended(record("A", 0, {"test": scores(0.8)}))
    assert not any(line.startswith("read") for line in ledger.log)
    clock.now = 6.0
    actor.epoch("B", 0, {"epoch": 1})
    status = json.loads(ledger.read("report/status.json"))
    assert status["done"] == {"finished": 1}
    assert status["missing"] == 3
    assert status["planned"] == 4
    assert status["table"]["rows"][0][:3] == ["1", "A", "0.800"]
    assert status["eta_s"] == pytest.approx(3 * 66)
    assert b"0.8" in ledger.read("report/ranking.csv")
    actor.epoch("B", 0, {"epoch": 4, "seconds": 2.0})
    assert actor.status()["running"][0]["eta_s"] == 6 * 2.0 + 6.0  # six of ten epochs are left, and an evaluation


@pytest.mark.slow
def test_a_report_of_the_same_results_is_not_built_again(tmp_path):
    ledger = Counting(str(tmp_path), "made_up")
    plan = plan_for(["A"], seeds=(0, 1))
    for seed in (0, 1):
        ledger.write_record(record("A", seed, {"test": scores(0.8)}), {}, {})
    assert "report/index.html" in ReportActor(ledger, plan).finish()
    ledger.log.clear()
    assert ReportActor(ledger, plan).finish() == []
    assert not any(line.startswith("write") for line in ledger.log)
    assert ReportActor(ledger, plan, study_facts=StudyFacts(notes=("Another note.",))).finish()
    ledger.write("trials/" + key_of("A", 1) + "/images.parquet", b"damaged since")
    assert ReportActor(ledger, plan).finish()
    ledger.delete("report/index.html")
    assert ReportActor(ledger, plan).finish()


def test_a_restarted_actor_knows_everything_again(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    plan = plan_for([f"c{i}" for i in range(12)])
    for i, trial in enumerate(plan.trials):
        ledger.write_record(
            record(trial.label, trial.seed, {"test": scores(0.5 + i / 200), "far": scores(0.4)}), {}, {}
        )
    start = time.perf_counter()
    status = ReportActor(ledger, plan).status()
    assert time.perf_counter() - start < 5  # about half a second on an idle core
    assert status["done"] == {"finished": 60}
    assert status["eta_s"] == 0
    assert len(status["table"]["rows"]) == 12


@pytest.mark.slow
def test_the_observer_passes_on_news_and_builds_the_report(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    actor = ReportActor(ledger, plan_for(["A"], seeds=(0,)))
    observer = ReportObserver(ledger, actor)
    trial = PlannedTrial("A", 0, key_of("A", 0))
    observer.on_epoch(trial, {"epoch": 3, "val_dice": 0.4})
    assert observer.status()["running"][0]["epoch"] == 3
    ended = record("A", 0, {"test": scores(0.8)})
    ledger.write_record(ended, {}, {})
    observer.on_end(ended)
    assert observer.status()["running"] == []
    observer.on_finish()
    assert "report/index.html" in observer.paths
    assert ledger.exists("report/index.html")

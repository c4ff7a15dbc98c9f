"""The reporting actor beside a running sweep: exact counts at once, tables at their pace, a ledger that goes away."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest
from pandas.testing import assert_frame_equal
from report_data import key_of, plan_for, record, results_of, scores, search_file, tried, write_realistic
from tiny_study import tiny_study

from cellray.cli.progress import PageOpener
from cellray.ledger import Ledger
from cellray.observers import Tries
from cellray.record import PlannedTrial
from cellray.report import ReportActor, ReportObserver, StudyFacts, make_tables
from cellray.report.actor import LedgerReportActor
from cellray.report.build import live_metrics
from cellray.report.progress import SweepProgress, slim

SEEDS = (0, 1)


def progress_of(labels, seeds=SEEDS):
    """Nothing has happened yet; time stands still."""
    return SweepProgress(plan_for(labels, seeds), clock=lambda: 0.0)


def until(holds, seconds=60.0):
    """Wait for another thread, with a bound that only a broken one reaches."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


# Counts, without a table.


def test_counts_follow_the_news():
    progress = progress_of(["A", "B"])
    progress.started("A", 0, key_of("A", 0))
    progress.ended(record("A", 0, None, outcome="failed"))
    assert (dict(progress.done), progress.n_done, progress.running) == ({"failed": 1}, 1, {})
    progress.ended(record("A", 0, {"test": scores(0.5)}))  # tried again
    assert +progress.done == {"finished": 1}
    assert progress.troubles(9) == []
    progress.ended(record("A", 0, {"test": scores(0.5)}, key="of no planned trial"))
    assert progress.n_done == 1


def test_labels_with_the_same_settings_share_a_trial_and_count_each():
    plan = plan_for(["A"], (0,))
    plan = replace(plan, trials=(*plan.trials, PlannedTrial("twin of A", 0, key_of("A", 0))))
    progress = SweepProgress(plan, clock=lambda: 0.0)
    progress.ended(record("A", 0, None, outcome="collapsed"))
    assert progress.n_done == 2
    assert [(row["label"], row["outcome"]) for row in progress.troubles(9)] == [
        ("A", "collapsed"),
        ("twin of A", "collapsed"),
    ]
    assert progress.eta_s() == 0


def test_a_record_judged_otherwise_is_not_done():
    plan = replace(plan_for(["A"], (0,)), trials=(PlannedTrial("A", 0, key_of("A", 0), evaluation_key="another"),))
    progress = SweepProgress(plan, clock=lambda: 0.0)
    progress.learn(record("A", 0, {"test": scores(0.5)}))
    assert progress.n_done == 0


def test_a_grown_plan_keeps_what_is_known():
    progress = progress_of(["A"])
    progress.started("A", 1, key_of("A", 1))
    progress.ended(record("A", 0, {"test": scores(0.5)}))
    progress.learn(record("B", 0, {"test": scores(0.5)}))  # of an earlier sweep, not planned yet
    assert progress.n_done == 1
    progress.replan(plan_for(["A", "B"], SEEDS))
    assert progress.n_done == 2
    assert list(progress.running) == [("A", 1)]
    # each took 60 + 6 s, two are left, one runs
    assert progress.eta_s() == pytest.approx(2 * 66)


def test_the_time_left_is_known_from_the_first_epoch():
    progress = progress_of(["A"])
    assert progress.eta_s() is None
    progress.started("A", 0)
    progress.epoch("A", 0, {"epoch": 4, "seconds": 2.0})
    assert progress.trial_eta_s("A", 0) == 6 * 2.0  # of ten epochs
    assert progress.eta_s() == 6 * 2.0 + 10 * 2.0  # and the other trial whole
    progress.started("A", 1)
    progress.epoch("A", 1, {"epoch": 9, "seconds": 2.0})
    assert progress.eta_s() == 6 * 2.0  # both run: the longer one


def test_steps_tell_the_time_left_too():
    plan = replace(plan_for(["A"], (0,)), epochs=None, steps=100)
    progress = SweepProgress(plan, clock=lambda: 0.0)
    progress.epoch("A", 0, {"epoch": 4, "step": 20, "seconds": 3.0})
    assert progress.running_rows()[0]["epochs"] == 20
    assert progress.eta_s() == 16 * 3.0


def test_a_trial_that_goes_on_has_less_left_than_a_new_one():
    now = [0.0]
    progress = SweepProgress(plan_for(["A"], (0, 1)), clock=lambda: now[0])
    progress.learn(record("A", 0, {"test": scores(0.5)}))  # took 60 s, and 6 s to be judged
    progress.started("A", 1)
    progress.epoch("A", 1, {"epoch": 8, "seconds": 6.0})
    now[0] = 2.0  # in the ninth epoch
    assert progress.eta_s() == 4.0 + 6.0 + 6.0


def test_a_slim_record_gives_the_same_table(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_realistic(
        ledger, labels=["A", "B"], seeds=SEEDS, external=("far",), n_images=4, epochs=4, bad={("A", 1): "collapsed"}
    )
    records = [*ledger.records(), record("C", 0, None, outcome="stopped", epochs=3, validation_dice=0.4)]
    plan = plan_for([*plan.labels, "C"], SEEDS)
    only = live_metrics(plan)
    whole, small = (
        make_tables(results_of(found, plan), only=only) for found in (records, [slim(r, only) for r in records])
    )
    for name in ("scores", "ranking", "trials"):
        assert_frame_equal(getattr(whole, name), getattr(small, name))
    assert (whole.sets, whole.worst, whole.notes) == (small.sets, small.worst, small.notes)
    sizes = [len(found.model_dump_json()) for found in (records[0], slim(records[0], only))]
    assert sizes[1] < sizes[0] / 2


# The table, in the actor.


class Moody(Ledger):
    """A ledger that can be away, or slow to read image tables."""

    away = False

    def __init__(self, storage, study="made_up"):
        super().__init__(storage, study)
        self.gate = threading.Event()
        self.gate.set()

    def _answer(self, path):
        if self.away:
            raise OSError("the bucket is away")
        if path.endswith("images.parquet"):
            self.gate.wait(60)

    def read(self, path):
        self._answer(path)
        return super().read(path)

    def write(self, path, data):
        self._answer(path)
        super().write(path, data)

    def exists(self, path):
        self._answer(path)
        return super().exists(path)


def test_a_question_is_answered_while_the_table_is_made(tmp_path):
    ledger = Moody(str(tmp_path))
    plan = plan_for(["A"], SEEDS)
    actor = ReportActor(ledger, plan, background=True, flush_s=0.05)
    ledger.gate.clear()
    actor.trial_ended(record("A", 0, {"test": scores(0.8)}))
    until(lambda: actor._work.locked())
    for _ in range(3):
        state = actor.status()
        assert (state["done"], state["missing"], state["table_of"]) == ({"finished": 1}, 1, 0)
    actor.trial_ended(record("A", 1, {"test": scores(0.6)}))
    assert actor.status()["done"] == {"finished": 2}
    ledger.gate.set()
    until(lambda: actor.status()["table_of"] == 2)
    assert actor.status()["table"]["rows"][0][2] == "0.700 ± 0.141"  # 0.1 x sqrt(2)


@pytest.mark.slow
def test_a_ledger_that_is_away_for_a_while_costs_nothing(tmp_path):
    ledger = Moody(str(tmp_path))
    actor = ReportActor(ledger, plan_for(["A"], SEEDS), background=True, flush_s=0.05)
    until(lambda: ledger.exists("report/status.json"))
    ledger.away = True
    actor.trial_ended(record("A", 0, {"test": scores(0.8)}))
    time.sleep(0.3)  # a few attempts
    actor.epoch("A", 1, {"epoch": 3})
    state = actor.status()
    assert (state["done"], state["running"][0]["epoch"]) == ({"finished": 1}, 3)
    ledger.away = False
    until(lambda: json.loads(ledger.read("report/status.json"))["done"] == {"finished": 1})
    until(lambda: ledger.exists("report/ranking.csv") and b"0.8" in ledger.read("report/ranking.csv"))


@pytest.mark.slow
def test_an_actor_that_starts_while_the_ledger_is_away_learns_the_records_later(tmp_path):
    ledger = Moody(str(tmp_path))
    ledger.write_record(record("A", 0, {"test": scores(0.8)}), {}, {})
    ledger.away = True
    actor = ReportActor(ledger, plan_for(["A"], SEEDS), background=True, flush_s=0.05)
    actor.trial_ended(record("A", 1, {"test": scores(0.6)}))
    assert actor.status()["done"] == {"finished": 1}
    ledger.away = False
    until(lambda: actor.status()["table_of"] == 2)


def test_a_restarted_actor_takes_the_plan_of_the_ledger(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    grown = plan_for(["A", "#1"], SEEDS)
    ledger.write_plan([replace(t, evaluation_key="e" * 16) for t in grown.trials])
    ledger.write_record(record("#1", 0, {"test": scores(0.8)}), {}, {})
    actor = LedgerReportActor((ledger.storage, ledger.study), replace(grown, trials=()), StudyFacts())
    until(lambda: actor.status()["planned"] == 4)
    until(lambda: actor.status()["table_of"] == 1)
    assert actor.status()["table"]["rows"][0][1] == "#1"


@pytest.mark.slow
def test_news_of_a_plan_are_newer_than_the_ledgers(tmp_path):
    ledger = Moody(str(tmp_path))
    ledger.write_plan(plan_for(["A"], SEEDS).trials)
    ledger.away = True
    actor = ReportActor(ledger, plan_for([]), background=True, flush_s=0.05)
    actor.replan(plan_for(["A", "#1"], SEEDS))
    ledger.away = False
    until(lambda: ledger.exists("report/status.json"))
    assert actor.status()["planned"] == 4


def test_a_huge_study_shows_its_first_hundred(tmp_path):
    labels = [f"c{i:03d}" for i in range(150)]
    actor = ReportActor(Ledger(str(tmp_path), "made_up"), plan_for(labels, (0,)), flush_s=1e9)
    for i, label in enumerate(labels):
        lost = i >= 30
        actor.trial_ended(
            record(
                label, 0, None if lost else {"test": scores(0.9 - i / 1000)}, outcome="failed" if lost else "finished"
            )
        )
    state = actor.status()
    assert state["done"] == {"failed": 120, "finished": 30}
    assert [row[1] for row in state["table"]["rows"]] == labels[:100]
    assert [row["label"] for row in state["troubles"]] == labels[30:130]
    assert "The first 100 of 150 configurations; report/ranking.csv has all." in state["table"]["notes"]
    assert "20 more failed and collapsed trials are named in report/trials.csv." in state["table"]["notes"]
    assert len(actor.status(limit=1000)["table"]["rows"]) == 150


def test_tables_are_written_again_only_if_something_came_in(tmp_path):
    ledger, now = Ledger(str(tmp_path), "made_up"), [0.0]
    actor = ReportActor(ledger, plan_for(["A"], SEEDS), flush_s=5, clock=lambda: now[0])
    actor.trial_ended(record("A", 0, {"test": scores(0.8)}))
    ledger.delete("report/ranking.csv")
    now[0] = 1e6
    actor.epoch("A", 1, {"epoch": 4})
    assert not ledger.exists("report/ranking.csv")
    assert json.loads(ledger.read("report/status.json"))["running"][0]["epoch"] == 4


def test_tables_as_latex_are_kept_current_where_they_were_asked_for(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    actor = ReportActor(ledger, plan_for(["A"], SEEDS), flush_s=1e9)
    actor.trial_ended(record("A", 0, {"test": scores(0.8)}))
    actor.flush()
    assert not ledger.exists("report/ranking.md")
    ledger.write("report/ranking.tex", b"of an earlier report")
    actor.trial_ended(record("A", 1, {"test": scores(0.4)}))
    actor.flush()
    assert all("0.600" in ledger.read(f"report/ranking.{end}").decode() for end in ("tex", "md"))


# The page of a sweep that runs.


@pytest.mark.slow
def test_the_live_page_shows_curves_the_table_and_the_last_trial(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    plan = write_realistic(ledger, labels=["A", "<b>"], seeds=SEEDS, n_images=4, epochs=4, missing=[("A", 1)])
    actor = ReportActor(ledger, plan, flush_s=1e9)
    actor.trial_started("A", 1, key_of("A", 1))
    for epoch, dice in ((1, 0.2), (2, float("nan")), (3, 0.6)):
        actor.epoch("A", 1, {"epoch": epoch, "val_dice": dice, "seconds": 2.0})
    actor.trial_ended(next(r for r in ledger.records() if r.label == "<b>"))
    actor.flush()
    page = ledger.read("report/live.html").decode()
    assert "3 of 4 trials (3 finished)" in page
    # two validated epochs of ten, at 0.2 and 0.6 of 28 px above the line at 30 px
    assert '<polyline points="18.0,24.4 54.0,13.2"/>' in page
    assert page.count("data:image/webp;base64,") == 3
    assert "The last trial that ended: &lt;b&gt;, seed" in page
    assert "<b>," not in page


def test_before_the_first_trial_it_is_said_how_far_the_learning_rates_are(tmp_path):
    now = [0.0]
    ledger = Ledger(str(tmp_path), "made_up")
    actor = ReportActor(ledger, plan_for(["A"], (0,)), clock=lambda: now[0])
    assert actor.status()["tries"] is None
    actor.tried(Tries(4, 20))  # four were there before
    said = "choosing learning rates: 4 of 20 shorter trainings done"
    assert actor.status()["tries"] == {"done": 4, "planned": 20, "eta_s": None, "said": said}
    now[0] = 60.0
    actor.tried(Tries(8, 24))
    now[0] = 75.0
    said = "choosing learning rates: 8 of 24 shorter trainings done, about 4 min left of them"
    # four took 60 s, so sixteen take 240 s, of which 15 are over
    assert actor.status()["tries"] == {"done": 8, "planned": 24, "eta_s": 225.0, "said": said}
    actor.flush()
    assert f"Now {said}." in ledger.read("report/live.html").decode()
    actor.tried(Tries(24, 24))
    assert actor.status()["tries"] is None
    actor.flush()
    assert "learning rates" not in ledger.read("report/live.html").decode()


@pytest.mark.slow
def test_the_live_page_gives_way_to_the_report(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    actor = ReportActor(ledger, plan_for(["A"], (0,)))
    actor.trial_ended(record("A", 0, {"test": scores(0.8)}))
    actor.finish()
    assert b"url=index.html" in ledger.read("report/live.html")
    assert ledger.exists("report/index.html")


@pytest.mark.slow
def test_the_page_is_opened_once_it_is_there(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    study = tiny_study(tmp_path)
    ledger = Ledger(str(tmp_path), study.name)
    PageOpener(ledger).on_start(study, [])
    assert opened == []
    ledger.write("report/live.html", b"")
    until(lambda: opened)
    assert opened == [(tmp_path / study.name / "report" / "live.html").as_uri()]


# The observer.


def planned(*who):
    """What a sweep hands over: trials with their keys."""
    return [PlannedTrial(label, seed, key_of(label, seed), "e" * 16) for label, seed in who]


@pytest.mark.slow
def test_a_plan_that_grows_is_passed_on(tmp_path):
    study = tiny_study(tmp_path)
    ledger = Ledger(str(tmp_path), study.name)
    observer = ReportObserver(ledger)
    observer.on_start(study, planned(("Dice", 0)))
    ended = record("Dice", 0, {"test": scores(0.8)})
    ledger.write_record(ended, {}, {})
    observer.on_end(ended)
    more = planned(("Dice", 0), ("#1", 0), ("#1", 1))
    observer.on_plan(study, more)
    observer.on_trial_start(more[1])
    state = observer.status()
    assert (state["planned"], state["missing"], state["done"]) == (3, 2, {"finished": 1})
    assert [(row["label"], row["seed"]) for row in state["running"]] == [("#1", 0)]
    ledger.write("search.json", search_file([tried(1, None, state="dropped", seeds=1)], method="racing"))
    ledger.write("report/ranking.tex", b"of an earlier report")
    observer.on_finish()
    assert "dropped after 1 seed" in ledger.read("report/ranking.md").decode()
    assert json.loads(ledger.read("report/status.json"))["planned"] == 3

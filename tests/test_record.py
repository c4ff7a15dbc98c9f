"""The ledger's JSON files: read back as written, older ones understood, damaged ones named with file and key."""

from __future__ import annotations

import json
import math

import pytest
from report_data import record

from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.ledger.lease import Lease
from cellray.record import (
    PlannedTrial,
    SearchLog,
    TrialRecord,
    Tried,
    parse_plan,
    parse_record,
    plan_text,
    record_text,
    search_text,
)

LEAST = {"key": "k", "label": "Dice", "seed": 5, "outcome": "finished"}


def text(**changed) -> str:
    return json.dumps(LEAST | changed)


def test_a_record_reads_back_as_it_was_written_to_the_byte():
    written = record("Dice", 5, {"test": {"f1_iou": 0.5, "n_true": 3, "mpe": math.nan}}, lr=0.1, epochs=3)
    again = parse_record(record_text(written), "trial.json")
    assert record_text(again) == record_text(written)
    assert isinstance(again.metrics["own"]["test"]["n_true"], int) and math.isnan(again.score("mpe"))


def test_settings_are_kept_whole_whatever_they_are():
    settings = {
        "loss": {"terms": [{"name": "bce", "weight": 2, "settings": {"cell_weight": 1.5}}], "balance": "none"},
        "training": {"epochs": None, "augment": {"flips": True}},
        "evaluation": {"iou_threshold": 0.4, "of_a_later_version": [1, 2]},
    }
    found = parse_record(text(settings=settings), "trial.json")
    assert found.plain()["settings"] == settings
    assert [(term.title, term.weight) for term in found.settings.loss.terms] == [("bce", 2)]


def test_an_older_record_lacks_what_came_later():
    found = parse_record(text(), "trial.json")
    assert (found.validation_dice, found.range_test, found.scores("test"), found.score("dice")) == (None,) * 4
    assert found.data.sets == {} and found.provenance.device == "" and found.seconds.total == 0
    assert not found.lr_in_doubt and not found.is_lost


def test_what_a_later_version_added_is_left_out():
    found = parse_record(text(mood="good", seconds={"training": 3, "waiting": 9}), "trial.json")
    assert found.seconds.training == 3 and "mood" not in found.plain()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"key": "k"', "EOF"),
        ("[]", "valid dictionary|an object"),
        ("[" * 100_000, "recursion"),
        ('{"key": "k", "label": "Dice", "outcome": "finished"}', "seed: Field required"),
        (text(outcome="won"), "outcome: Input should be 'finished'"),
        (text(seconds={"training": "long"}), "seconds.training: "),
        (text(metrics={"own": {"test": {"dice": "high"}}}), r"metrics.own.test.dice"),
        (text(settings={"loss": {"terms": [{"weight": "much"}]}}), r"settings.loss.terms.0.weight"),
        (text(operating_point={"threshold": 7}), r"operating_point.threshold"),
    ],
    ids=["cut off", "a list", "deep", "no seed", "outcome", "seconds", "metric", "loss", "point"],
)
def test_a_damaged_or_foreign_record_is_named_with_the_key(content, problem):
    with pytest.raises(LedgerError, match=rf"^studies/a/trial\.json is not a record \(.*({problem}).*; remove it"):
        parse_record(content, "studies/a/trial.json")


def test_a_rate_is_in_doubt_at_the_edge_of_its_range_test_and_where_that_ended_early():
    tried = {"lr": [1e-5, 1e-3], "loss": [1, 0.5]}
    assert parse_record(text(lr=1e-5, range_test=tried), "").lr_in_doubt
    assert not parse_record(text(lr=1e-3, range_test=tried), "").lr_in_doubt
    for planned, ended, is_in_doubt in ((2, None, False), (4, 1e-3, False), (5, 1e-3, True)):
        settings = {"training": {"range_test": {"steps": planned}}}
        found = parse_record(text(lr=1e-3, range_test=tried, settings=settings), "")
        assert (found.range_test_ended, found.lr_in_doubt) == (ended, is_in_doubt)
        assert found.plain()["settings"] == settings


def test_a_plan_keeps_labels_seeds_and_keys():
    plan = [PlannedTrial("Dice", 5, "k", "e", record=parse_record(text(), ""))]
    assert parse_plan(plan_text(plan), "plan.json") == [plan[0].bare] == [PlannedTrial("Dice", 5, "k", "e")]
    with pytest.raises(LedgerError, match=r"^plan\.json is not a plan of trials \(0\.seed: Field required"):
        parse_plan('[{"label": "Dice", "key": "k"}]', "plan.json")


def test_a_trial_is_done_by_a_record_that_was_judged_as_now():
    done = PlannedTrial("Dice", 5, "k", "e", record=parse_record(text(evaluation_key="e"), ""))
    other = PlannedTrial("Dice", 5, "k", "e", record=parse_record(text(evaluation_key="f"), ""))
    ended = PlannedTrial("Dice", 5, "k", "e", record=parse_record(text(evaluation_key="e", outcome="stopped"), ""))
    assert (done.done, other.done, ended.done) == (True, False, False)
    assert ended.is_stopped
    assert other.find({"k": other.record}) is None and done.find({"k": done.record}) is done.record


def test_a_search_reads_back_and_names_what_is_wrong(tmp_path):
    ledger = Ledger(str(tmp_path), "made_up")
    assert ledger.search() is None
    tried = Tried(
        label="#3", number=3, source="suggested", parameters={"training.lr": 0.1, "loss": "dice", "n": 2}, seeds=2,
        state="dropped", values=(0.5, math.inf), epochs=4, settings={"loss": {"name": "dice"}},
    )  # fmt: skip
    log = SearchLog(method="tpe", metrics=("f1_iou", "dice"), budget=9, configurations=(tried,))
    ledger.write_search(log)
    assert ledger.search() == log and ledger.search().in_state("dropped") == [tried]
    ledger.write("search.json", search_text(log).replace('"number": 3', '"number": "third"').encode())
    with pytest.raises(LedgerError, match=r"made_up/search\.json is not .* \(configurations\.0\.number: "):
        ledger.search()


def test_a_lease_of_an_older_version_names_no_space_of_processes():
    found = Lease.model_validate_json('{"host": "a", "pid": 7, "id": "x", "seen": 1.5}')
    assert (found.host, found.pids, found.seen) == ("a", "", 1.5)


def test_records_are_frozen():
    found = TrialRecord(**LEAST)
    with pytest.raises(ValueError, match="frozen"):
        found.outcome = "failed"

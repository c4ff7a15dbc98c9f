"""`cellray compare`: two configurations or two studies, against scores that can be compared by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_data import key_of, plan_for, record, scores

from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.report.comparing import compare_configurations, compare_studies
from cellray.results import Results

SEEDS = (0, 1, 2)
GOOD, POOR = (0.80, 0.82, 0.81), (0.60, 0.61, 0.60)  # differences 0.20, 0.21, 0.21


def stored(folder, values, study="made_up", **changed):
    """A ledger with the test scores of each label, seed by seed; None: that trial collapsed."""
    ledger = Ledger(str(folder), study)
    for label, scored in values.items():
        for seed, f1 in zip(SEEDS, scored, strict=True):
            lost = {"outcome": "collapsed"} if f1 is None else {}
            found = record(label, seed, {"test": scores(f1 or 0.0)}, **lost, **changed)
            ledger.write_record(found, {}, {})
    return ledger, replace(plan_for(list(values), seeds=SEEDS), study=study)


def row_of(table, first):
    """The row that begins so, by column."""
    return next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[: len(first)] == first)


def test_two_configurations_whichever_is_named_first(tmp_path):
    ledger, plan = stored(tmp_path, {"A": GOOD, "B": POOR})
    # mean 0.2067, SD 0.00577 of three: 4.303 x 0.00577 / sqrt(3) = 0.0143 on either side
    forth = row_of(compare_configurations(Results.now(ledger, plan), "A", "B"), ["test", "F1 (IoU)"])
    assert (forth["A"], forth["B"], forth["difference"]) == ("0.810", "0.603", "+0.207")
    assert (forth["95 % interval"], forth["verdict"]) == ("[0.192, 0.221]", "the first is better")
    back = row_of(compare_configurations(Results.now(ledger, plan), "B", "A"), ["test", "F1 (IoU)"])
    assert (back["difference"], back["95 % interval"]) == ("−0.207", "[−0.221, −0.192]")
    assert (back["first wins a rerun"], back["verdict"]) == ("0.00", "the second is better")
    assert back["p"] == forth["p"]


def test_a_collapse_counts_against_its_configuration(tmp_path):
    ledger, plan = stored(tmp_path, {"A": (0.80, None, 0.81), "B": POOR})
    found = row_of(compare_configurations(Results.now(ledger, plan), "A", "B"), ["test", "F1 (IoU)"])
    assert (found["A"], found["verdict"]) == ("0.537", "undecided")
    assert found["difference"] == "−0.067"  # (0.20 - 0.61 + 0.21) / 3


def test_a_configuration_is_not_compared_with_itself(tmp_path):
    ledger, plan = stored(tmp_path, {"A": GOOD, "B": POOR})
    with pytest.raises(StudyError, match="'A' is named twice"):
        compare_configurations(Results.now(ledger, plan), "A", "A")


def test_two_studies_by_common_labels(tmp_path):
    one = stored(tmp_path, {"A": GOOD, "B": POOR, "only here": POOR}, "one")
    other = stored(tmp_path, {"B": GOOD, "A": GOOD}, "other")
    table = compare_studies([Results.now(*one), Results.now(*other)])
    assert [row[0] for row in table.rows] == ["A", "B"]
    same, better = row_of(table, ["A"]), row_of(table, ["B"])
    assert (same["one"], same["other"], same["difference"], same["verdict"]) == (
        "0.810",
        "0.810",
        "+0.000",
        "undecided",
    )
    assert (better["difference"], better["verdict"]) == ("−0.207", "the second is better")
    assert any("only seeds are paired" in note for note in table.notes)


def test_studies_without_anything_in_common_are_refused(tmp_path):
    one, other = stored(tmp_path, {"A": GOOD}, "one"), stored(tmp_path, {"B": GOOD}, "other")
    with pytest.raises(StudyError, match="no configuration of one has a namesake in other"):
        compare_studies([Results.now(*one), Results.now(*other)])
    by_dice = (other[0], replace(one[1], study="other", rank_by="dice"))
    with pytest.raises(StudyError, match="ranked by f1_iou, other by dice"):
        compare_studies([Results.now(*one), Results.now(*by_dice)])


def test_a_missing_trial_leaves_its_seed_out(tmp_path):
    ledger, plan = stored(tmp_path, {"A": GOOD, "B": POOR})
    ledger.delete(f"trials/{key_of('A', 0)}/trial.json")
    found = row_of(compare_configurations(Results.now(ledger, plan), "A", "B"), ["test", "F1 (IoU)"])
    assert found["difference"] == "+0.210"
    assert found["verdict"] == "undecided"  # two seeds are left

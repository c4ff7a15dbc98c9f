"""One configuration, one seed -> one record: repeated, resumed, judged again, failed, collapsed."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import draw_images, lasting, lasting_history, same, tiny_study

from cellray.errors import DataError, LedgerError
from cellray.ledger import Ledger
from cellray.training import fitting
from cellray.training.adam import Adam
from cellray.trial import Sets, record_failure, record_stopped, run_trial
from cellray.trial import run as trial_module

pytestmark = pytest.mark.usefixtures("own_cache")


class Run:
    """A tiny study's first trial in a storage of its own."""

    def __init__(self, images: Path, storage: Path, **changes):
        self.study = tiny_study(images, **changes)
        self.trial, self.sets = self.study.trials()[0], Sets.open(self.study.data)
        self.ledger = Ledger(str(storage), self.study.name)

    def __call__(self, **how):
        return run_trial(self.trial, self.sets, self.ledger, **how)

    def history(self):
        return lasting_history(self.ledger.table(self.sets.keys(self.trial)[0], "history"))


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """A trial run from end to end, and its record."""
    run = Run(images, tmp_path_factory.mktemp("undisturbed"))
    rows = []
    run.record = run(on_epoch=rows.append)
    run.rows = rows
    return run


@pytest.fixture
def steps(monkeypatch):
    """Counts the optimiser's steps."""
    taken, step = [], Adam.step

    def spy(self, *args, **kwargs):
        taken.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Adam, "step", spy)
    return taken


def test_a_record_says_what_was_done_and_what_came_out(undisturbed):
    record, ledger = undisturbed.record, undisturbed.ledger
    assert (record.outcome, record.reason, record.steps, record.epochs) == ("finished", None, 6, 3)
    assert (record.label, record.seed, record.lr) == ("Dice", 0, 0.01)
    assert (record.data.n_train, record.data.n_val, record.data.n_test) == (6, 2, 3)
    assert set(record.metrics) == {"own", "shared"} and set(record.metrics["own"]) == {"val", "test"}
    assert ledger.records() == [record]
    history = ledger.table(record.key, "history")
    assert history.epoch.tolist() == [1, 2, 3] and history.to_dict("records") == undisturbed.rows
    rows = ledger.table(record.key, "images")
    assert rows.groupby(["set", "point"]).size().to_dict() == {
        ("test", "own"): 3,
        ("test", "shared"): 3,
        ("val", "own"): 2,
        ("val", "shared"): 2,
    }
    assert all(ledger.exists(f"trials/{record.key}/{overlay.file}") for overlay in record.overlays)


@pytest.mark.slow
def test_a_trial_repeats_bit_for_bit_elsewhere(undisturbed, tmp_path):
    elsewhere = draw_images(tmp_path / "same images, another folder")
    again = Run(elsewhere, tmp_path / "storage", name="another_name", configurations=[
        {"label": "Another label", "loss": {"name": "dice"}}
    ])  # fmt: skip
    assert again.sets.keys(again.trial) == undisturbed.sets.keys(undisturbed.trial)
    assert same(lasting(again()), lasting(undisturbed.record))
    pd.testing.assert_frame_equal(again.history(), undisturbed.history(), check_exact=True)
    best = [run.ledger.load_checkpoint(undisturbed.record.key, "best") for run in (again, undisturbed)]
    assert best[0] == best[1]


def test_what_the_ledger_has_is_not_done_again(undisturbed, monkeypatch):
    monkeypatch.setattr(trial_module, "fit", lambda *args, **kwargs: pytest.fail("it was trained again"))
    assert undisturbed() == undisturbed.record


def predicted(run):
    return sorted(name.split(".", 2)[2] for name in run.ledger.names("predicted"))


@pytest.mark.slow
def test_a_trial_judged_after_its_gpu_was_given_up_has_the_same_record(undisturbed, images, tmp_path, steps):
    run = Run(images, tmp_path)
    assert run(may_wait=1) is None and run.ledger.records() == []
    assert predicted(run) == ["0.pt", "1.pt", "all.pt"]  # of val and test
    n_steps, now = len(steps), sorted(file.changed for file in run.ledger.files("predicted"))
    assert run(may_wait=1) is None and sorted(file.changed for file in run.ledger.files("predicted")) == now
    record = run(threads=2)
    assert same(lasting(record), lasting(undisturbed.record)) and run.ledger.records() == [record]
    for name in ("images", "objects"):
        pd.testing.assert_frame_equal(
            run.ledger.table(record.key, name), undisturbed.ledger.table(record.key, name), check_exact=True
        )
    pd.testing.assert_frame_equal(run.history(), undisturbed.history(), check_exact=True)
    assert record.provenance.device.endswith("1 thread")  # it says by what it was trained
    assert record.seconds.waiting >= 0 and undisturbed.record.seconds.waiting is None
    assert len(steps) == n_steps and predicted(run) == []


@pytest.mark.slow
def test_no_more_trials_wait_to_be_judged_than_may(images, tmp_path):
    run = Run(images, tmp_path)
    other = Run(images, tmp_path, seeds=[1])
    assert run(may_wait=1) is None and other(may_wait=1).outcome == "finished" and run().outcome == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "cut", "of other settings"])
def test_predictions_that_cannot_be_used_are_made_again(images, tmp_path, undisturbed, steps, damage):
    run = Run(images, tmp_path)
    if damage == "of other settings":
        assert Run(images, tmp_path, evaluation={"iou_threshold": 0.9})(may_wait=1) is None
    else:
        assert run(may_wait=1) is None
        name = next(name for name in run.ledger.names("predicted") if name.endswith(".1.pt"))
        if damage == "gone":
            run.ledger.delete(f"predicted/{name}")
        else:
            run.ledger.write(f"predicted/{name}", run.ledger.read(f"predicted/{name}")[:-99])
    n_steps = len(steps)
    assert same(lasting(run()), lasting(undisturbed.record))
    assert len(steps) == n_steps and predicted(run) == []


def test_another_seed_loss_or_image_is_another_trial(undisturbed, images, tmp_path):
    others = [
        Run(images, tmp_path, seeds=[1]),
        Run(images, tmp_path, training={"steps": 7}),
        Run(images, tmp_path, model={"base_features": 3}),
        Run(draw_images(tmp_path / "others", seed=1), tmp_path),
    ]
    keys = {run.sets.keys(run.trial)[0] for run in [undisturbed, *others]}
    assert len(keys) == 1 + len(others)


@pytest.mark.slow
def test_another_matching_threshold_judges_again_without_training(undisturbed, images, tmp_path, steps):
    run = Run(images, tmp_path)
    first = run()
    n_steps = len(steps)
    stricter = Run(images, tmp_path, evaluation={"iou_threshold": 0.9})
    plan = stricter.sets.plan([stricter.trial], stricter.ledger)
    assert plan[0].record == first and not plan[0].done
    second = stricter()
    assert len(steps) == n_steps
    assert second.key == first.key and second.evaluation_key != first.evaluation_key
    assert second.seconds.training == first.seconds.training
    pd.testing.assert_frame_equal(stricter.history(), undisturbed.history(), check_exact=True)
    assert stricter.sets.plan([stricter.trial], stricter.ledger)[0].done


@pytest.mark.parametrize("validate_every", [1, 3], ids=["from a checkpoint", "before the first checkpoint"])
@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_trial_goes_on_to_the_same_record(
    undisturbed, images, tmp_path, monkeypatch, steps, validate_every, fatal
):
    monkeypatch.setattr(fitting, "SLOW_SAVE_S", math.inf)  # on a busy disk the next save would be left out
    run = Run(images, tmp_path, training={"validate_every": validate_every})

    def interrupt(row):
        if row["epoch"] == 2:
            raise fatal

    with pytest.raises(fatal):
        run(on_epoch=interrupt)
    assert run.ledger.records() == [] and len(steps) == 4
    resumed = run()
    assert len(steps) == (6 if validate_every == 1 else 10)
    assert resumed.outcome == "finished"
    if validate_every == 1:
        assert same(lasting(resumed), lasting(undisturbed.record))
        pd.testing.assert_frame_equal(run.history(), undisturbed.history(), check_exact=True)


@pytest.mark.slow
def test_a_process_that_was_cut_off_leaves_the_record_of_the_one_that_took_over(undisturbed, images, tmp_path):
    run, taken_over = Run(images, tmp_path), []

    def take_over(row):
        if row["epoch"] == 2:
            taken_over.append(run())

    assert run(on_epoch=take_over) == taken_over[0]
    assert run.ledger.records() == taken_over
    assert same(lasting(taken_over[0]), lasting(undisturbed.record))


def test_an_error_inside_is_an_outcome_with_its_reason(images, tmp_path, monkeypatch):
    def breaks(*args, **kwargs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(trial_module, "evaluate", breaks)
    run = Run(images, tmp_path)
    record = run()
    assert (record.outcome, record.reason, record.metrics) == ("failed", "RuntimeError: out of luck", {})
    assert b"in breaks" in run.ledger.read(f"trials/{record.key}/traceback.txt")
    assert len(run.history()) == 3  # the training went well
    assert run.ledger.records() == [record] and run() == record
    assert run.ledger.table(record.key, "images").empty


def test_a_loss_that_is_no_number_is_a_collapse_with_its_step(images, tmp_path):
    run = Run(images, tmp_path, training={"lr": 1e30, "schedule": "constant", "precision": "float32"})
    record = run()
    assert record.outcome == "collapsed"
    assert record.reason.startswith("the loss became ") and "at step " in record.reason
    assert run.ledger.records()[0].outcome == "collapsed"
    assert run().provenance == record.provenance


def test_a_model_that_finds_nothing_is_a_collapse(images, tmp_path):
    point = {"threshold": 1.0, "min_area": 100.0}
    record = Run(images, tmp_path, training={"lr": 1e-12}, evaluation={"operating_point": point})()
    assert record.outcome == "collapsed" and "no cell" in record.reason
    assert record.metrics["own"]["test"]["n_pred"] == 0


def test_a_failure_can_be_booked_from_outside(images, tmp_path):
    run = Run(images, tmp_path)
    record = record_failure(run.trial, run.sets, run.ledger, "its machine burnt down")
    assert run.ledger.records() == [record]
    assert (record.outcome, record.reason) == ("failed", "its machine burnt down")
    assert run.ledger.table(record.key, "history").empty and run.sets.plan([run.trial], run.ledger)[0].done


def test_problems_of_splits_and_crops_come_before_any_trial(images, tmp_path):
    too_large = Run(images, tmp_path, training={"crop_px": 72})
    with pytest.raises(DataError, match="72"):
        too_large.sets.plan(too_large.study.trials(), too_large.ledger)
    few = Run(draw_images(tmp_path / "one", n_trainval=1), tmp_path)
    with pytest.raises(DataError):
        few.sets.plan(few.study.trials(), few.ledger)


def test_opening_tells_the_progress_of_each_set(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    study = tiny_study(draw_images(tmp_path / "disks"))
    told = []
    Sets.open(study.data, lambda name, done, total: told.append((name, done, total)))
    assert told[-1] == ("disks", 11, 11)


@pytest.mark.slow
def test_a_paused_trial_goes_on_as_if_nothing_had_been(undisturbed, images, tmp_path):
    run, rows = Run(images, tmp_path), []
    assert run(until=2, on_epoch=rows.append) is None and run.ledger.records() == []
    assert run(until=2, on_epoch=rows.append) is None and [row["epoch"] for row in rows] == [1, 2]
    assert same(lasting(run(on_epoch=rows.append)), lasting(undisturbed.record))
    assert [row["epoch"] for row in rows] == [1, 2, 3]


@pytest.mark.slow
def test_a_stopped_trial_has_a_record_without_scores_and_can_go_on(undisturbed, images, tmp_path):
    run = Run(images, tmp_path)
    run(until=2)
    record = record_stopped(run.trial, run.sets, run.ledger, "too low")
    assert (record.outcome, record.reason, record.epochs, record.steps) == ("stopped", "too low", 2, 4)
    assert record.metrics == {} and record.operating_point is None
    assert record.validation_dice == undisturbed.rows[1]["val_dice"]
    assert len(run.history()) == 2
    (planned,) = run.sets.plan([run.trial], run.ledger)
    assert planned.is_stopped and not planned.done
    assert same(lasting(run()), lasting(undisturbed.record))


def test_a_trial_can_be_stopped_only_where_it_paused(images, tmp_path):
    run = Run(images, tmp_path)
    with pytest.raises(LedgerError, match="Dice, seed 0: its checkpoint has gone"):
        record_stopped(run.trial, run.sets, run.ledger, "too low")

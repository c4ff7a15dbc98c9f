"""`data.folds`: every image is tested once, by a training that didn't see it, and all else sees one trial."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from tiny_study import draw_images, lasting, same, tiny_study

from cellray.data import fold_dataset
from cellray.errors import DataError
from cellray.ledger import Ledger
from cellray.prediction import chosen_trial
from cellray.training.adam import Adam
from cellray.trial import Sets, run_trial

pytestmark = pytest.mark.usefixtures("own_cache")

FOLDS = 3


def folded(images, **changes):
    return tiny_study(images, data={"train": {"name": "disks", "path": str(images)}, "folds": FOLDS}, **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return folded(draw_images(tmp_path_factory.mktemp("folds") / "disks"))


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    """A trial of three trainings, its record, and the epochs that were told."""
    ledger, sets, rows = Ledger(str(tmp_path_factory.mktemp("done")), study.name), Sets.open(study.data), []
    trial = study.trials()[0]
    record = run_trial(trial, sets, ledger, on_epoch=rows.append)
    return SimpleNamespace(trial=trial, ledger=ledger, sets=sets, record=record, rows=rows)


def dataset(groups):
    names = [f"image {i:02}" for i in range(len(groups))]
    return SimpleNamespace(name="drawn", names=names, groups=groups, splits=["test", *[""] * (len(groups) - 1)])


def test_each_image_is_tested_and_validated_once_and_groups_stay_together():
    data = dataset(["a", "a", "a", "b", "b", "", "", "c", "", ""])
    for seed in range(8):
        splits = [fold_dataset(data, folds=4, fold=fold, split_seed=seed) for fold in range(4)]
        for part in ("test", "val"):
            assert sorted(i for split in splits for i in getattr(split, part)) == list(range(10))
        for split in splits:
            parts = (split.train, split.val, split.test)
            assert sorted(i for part in parts for i in part) == list(range(10)) and all(parts)
            for group in "abc":
                assert sum(any(data.groups[i] == group for i in part) for part in parts) == 1


def test_test_parts_are_the_same_for_every_seed_and_validation_parts_are_not():
    data = dataset([""] * 12)
    of_seeds = [fold_dataset(data, folds=4, fold=1, split_seed=seed) for seed in range(30)]
    assert {len(split.test) for split in of_seeds} == {3}
    assert len({tuple(split.test) for split in of_seeds}) == 1
    assert len({tuple(split.val) for split in of_seeds}) == 3


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(DataError, match=r"its 6 image\(s\) are in 2 group\(s\), too few for data.folds: 3"):
        fold_dataset(dataset(["a"] * 3 + ["b"] * 3), folds=3, fold=0, split_seed=0)


def test_one_record_tells_of_every_image(done):
    record, n = done.record, len(done.sets.train)
    rows = done.ledger.table(record.key, "images")
    for name in ("val", "test"):
        for point in ("own", "shared"):
            images = rows[(rows["set"] == name) & (rows["point"] == point)].image
            assert sorted(images) == sorted(done.sets.train.names)
    assert record.outcome == "finished" and (record.data.n_test, record.settings.data.folds) == (n, FOLDS)
    own = rows[(rows["set"] == "test") & (rows["point"] == "own")]
    f1 = 2 * own.tp_iou.sum() / (own.n_true.sum() + own.n_pred.sum())
    assert record.metrics["own"]["test"]["f1_iou"] == pytest.approx(f1)
    assert all(done.ledger.exists(f"trials/{record.key}/{picture.file}") for picture in record.overlays)
    assert [record.key] == [stored.key for stored in done.ledger.records()]


def test_epochs_are_counted_on(done):
    epochs = [row["epoch"] for row in done.rows]
    assert epochs == list(range(1, len(epochs) + 1)) and done.record.epochs == len(epochs)
    assert done.ledger.history(done.record.key) == [pytest.approx(row, nan_ok=True) for row in done.rows]
    assert done.rows[-1]["step"] == done.record.steps


def test_each_part_is_trained_without_its_own_images(done):
    for fold, one in enumerate(done.trial.trainings):
        split, part = done.sets.split(one), done.ledger.within("folds")
        rows = part.table(done.sets.keys(one)[0], "images")
        tested = set(rows[rows["set"] == "test"].image)
        assert tested == {done.sets.train.names[i] for i in split.test}
        assert not set(split.train) & set(split.test) and one.fold == fold


def test_the_first_training_is_handed_out(done):
    first = done.ledger.within("folds").record(done.sets.keys(done.trial.trainings[0])[0])
    assert done.record.operating_point == first.operating_point
    weights = done.ledger.load_checkpoint(done.record.key, "best")
    assert weights == done.ledger.within("folds").load_checkpoint(first.key, "best")
    assert chosen_trial(done.ledger) == (done.record, weights)


@pytest.mark.slow
def test_killed_between_two_trainings_it_goes_on(done, tmp_path):
    ledger, told = Ledger(str(tmp_path), done.ledger.study), []
    first = run_trial(done.trial.trainings[0], done.sets, ledger)
    record = run_trial(done.trial, done.sets, ledger, on_epoch=told.append)
    assert same(lasting(record), lasting(done.record))
    assert [row["epoch"] for row in told] == [row["epoch"] for row in done.rows[first.epochs :]]
    again = []
    assert run_trial(done.trial, done.sets, ledger, on_epoch=again.append) == record and not again


@pytest.mark.slow
def test_all_its_trainings_are_judged_after_their_gpu_was_given_up(done, tmp_path):
    ledger, told = Ledger(str(tmp_path), done.ledger.study), []
    assert run_trial(done.trial, done.sets, ledger, may_wait=1, on_epoch=told.append) is None
    assert ledger.records() == [] and [row["epoch"] for row in told] == [row["epoch"] for row in done.rows]
    assert sum(name.endswith(".all.pt") for name in ledger.within("folds").names("predicted")) == FOLDS
    record = run_trial(done.trial, done.sets, ledger, on_epoch=told.append)
    assert same(lasting(record), lasting(done.record)) and len(told) == len(done.rows)
    assert record.seconds.waiting >= 0 and ledger.within("folds").names("predicted") == []


@pytest.mark.slow
def test_a_lost_training_loses_the_trial_and_a_failed_one_is_tried_again(done, study, tmp_path, monkeypatch):
    ledger, n = Ledger(str(tmp_path), study.name), [0]
    step = Adam.step

    def breaks(self, *args, **kwargs):
        n[0] += 1
        if n[0] == done.record.steps // FOLDS + 1:
            raise RuntimeError("out of luck")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Adam, "step", breaks)
    record = run_trial(done.trial, done.sets, ledger)
    assert (record.outcome, record.metrics) == ("failed", {})
    assert (
        record.reason is not None and record.reason.startswith("training 2 of 3: ") and "out of luck" in record.reason
    )
    ledger.delete(f"trials/{record.key}/trial.json")
    assert same(lasting(run_trial(done.trial, done.sets, ledger)), lasting(done.record))


def test_the_key_is_another_one_and_old_keys_stay(study, done):
    plain = study.model_copy(update={"data": study.data.model_copy(update={"folds": None})}).trials()[0]
    keys = {done.sets.keys(trial)[0] for trial in (plain, done.trial, *done.trial.trainings)}
    assert len(keys) == 2 + FOLDS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"lr": "tune"}}, "training.lr: tune"),
        ({"stopping": {"rule": "asha"}}, "stopping"),
    ],
)
def test_what_chooses_by_validation_images_is_refused(study, changes, words):
    with pytest.raises(ValidationError, match=f"doesn't go together with {words}: it chooses by validation images"):
        folded(study.data.train.path, **changes)

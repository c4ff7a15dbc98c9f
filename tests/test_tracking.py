"""MLflow as it is: an SQLite store and a real server; no stand-ins."""

from __future__ import annotations

import io
import json
import math
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from tifffile import imread
from tracked import FINGERPRINT, N_EPOCHS, content_of, rows, runs_of, small_study, store_record, sweep, trials_of

from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.prediction import Cells
from cellray.record import PlannedTrial, TrialRecord, record_text
from cellray.results import Plan, Results
from cellray.scores import best_record
from cellray.study import Study
from cellray.tracking import (
    MLflowTracker,
    check_store,
    default_store,
    public_uri,
    register_model,
    run_tree,
    sync,
)
from cellray.tracking.seed_means import outcome_counts, seed_summaries, worst_compared
from cellray.tracking.values import flatten
from cellray.tracking.views import note, saved_view

pytestmark = pytest.mark.slow  # seconds each

KINDS = ("study", "configuration", "seed")


@pytest.fixture
def study() -> Study:
    return small_study()


@pytest.fixture
def ledger(tmp_path: Path, study: Study) -> Ledger:
    ledger = Ledger(str(tmp_path / "storage"), study.name)
    ledger.write("study.yaml", study.dump_yaml().encode())
    ledger.write_plan(trials_of(study))
    return ledger


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with its tables, which take a second to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(ledger: Ledger, empty_store: Path) -> str:
    shutil.copy(empty_store, ledger.storage)
    return default_store(ledger.storage)


def test_the_verdict_describes_the_study_until_somebody_describes_it_otherwise(study, ledger, store):
    ledger.write("report/verdict.txt", b"Take Dice.\n\nIt is the best.")
    sweep(MLflowTracker(ledger, store), ledger, study)
    (top,) = runs_of(store, "study")
    assert top.data.tags["mlflow.note.content"] == "Take Dice.\n\nIt is the best."
    ledger.write("report/verdict.txt", b"Take BCE.")
    sync(ledger, study, store)
    assert runs_of(store, "study")[0].data.tags["mlflow.note.content"] == "Take BCE."
    MlflowClient(tracking_uri=store).set_tag(top.info.run_id, "mlflow.note.content", "ours")
    ledger.write("report/verdict.txt", b"Take Dice.")
    sync(ledger, study, store)
    assert runs_of(store, "study")[0].data.tags["mlflow.note.content"] == "ours"


def test_the_tree_carries_params_metrics_tags_and_files(study, ledger, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "not-a-run")
    ledger.write("report/index.html", b"<html>")
    ledger.write("report/figures/rank.svg", b"<svg>")
    assert sweep(MLflowTracker(ledger, store), ledger, study) is None

    client = MlflowClient(tracking_uri=store)
    (top,) = runs_of(store, "study")
    assert top.info.status == "FINISHED"
    assert top.data.tags["mlflow.note.content"] == "Which loss is best?"
    experiment = client.get_experiment_by_name("losses")
    assert experiment is not None
    described = experiment.tags["mlflow.note.content"]
    assert described.endswith("Which loss is best?")
    assert f"](#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning" in described
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "mine")
    assert (top.data.metrics["outcome/n_planned"], top.data.metrics["outcome/n_finished"]) == (4, 4)
    assert [f.path for f in client.list_artifacts(top.info.run_id)] == ["report", "study.yaml"]
    assert len(client.list_artifacts(top.info.run_id, "report")) == 2
    configurations = {run.info.run_id: run for run in runs_of(store, "configuration")}
    assert {run.data.tags["mlflow.parentRunId"] for run in configurations.values()} == {top.info.run_id}
    assert {run.info.run_name for run in configurations.values()} == {"Dice", "BCE: low"}
    seeds = runs_of(store)
    assert len(seeds) == 4
    for run in seeds:
        parent = configurations[run.data.tags["mlflow.parentRunId"]]
        assert run.data.tags["cellray.label"] == parent.info.run_name
        assert run.data.metrics["test/f1_iou"] == 0.5
        assert run.data.metrics["test/shared/f1_iou"] == 0.25
        assert run.data.metrics["external/far/f1_iou"] == 0.125
        assert math.isnan(run.data.metrics["external/far/shared/f1_iou"])
        assert run.data.metrics["system/peak_memory_megabytes"] == 700
        assert run.data.params["configuration"] == parent.info.run_name
        used = {(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs}
        assert used == {
            ("drawn/train", f"{FINGERPRINT}.beef", "train"),
            ("drawn/val", f"{FINGERPRINT}.beef", "val"),
            ("drawn/test", FINGERPRINT, "test"),
            ("far", "fa7", "external"),
        }
        assert run.data.params["model.base_features"] == "2"
        assert run.data.tags["cellray.data_fingerprint"] == FINGERPRINT
        assert run.data.tags["cellray.outcome"] == "finished"
        assert run.info.status == "FINISHED"
        losses = client.get_metric_history(run.info.run_id, "epoch/train_loss")
        assert sorted((m.step, m.value) for m in losses) == [(i, 1 / i) for i in range(1, N_EPOCHS + 1)]
        assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "epoch/val_dice")) == [2, 4, 6]
        files = {f.path for f in client.list_artifacts(run.info.run_id)}
        assert files == {"trial.json", "config.json", "overlays"}

    sync(ledger, study, store)
    assert client.get_experiment(top.info.experiment_id).tags["mlflow.note.content"] == "mine"


@pytest.mark.slow
def test_a_second_sweep_and_a_sync_open_no_run_and_change_nothing(study, ledger, store):
    sweep(MLflowTracker(ledger, store), ledger, study, model=True)
    first = content_of(store)
    assert len(first) == 1 + 2 + 4
    tracker = MLflowTracker(ledger, store)
    tracker.on_start(study, trials_of(study))
    tracker.on_ready()
    tracker.on_finish()
    assert tracker.close() is None
    assert sync(ledger, study, store).n_written == 0
    np.testing.assert_equal(content_of(store), first)  # takes NaN for equal


def test_a_store_that_has_everything_is_not_opened_and_one_that_lacks_something_is(study, ledger, store, monkeypatch):
    ledger.write("study.yaml", b"name: losses\n")
    ledger.write("report/verdict.txt", b"Take Dice.")
    sweep(MLflowTracker(ledger, store), ledger, study)
    first, client = content_of(store), MlflowClient(tracking_uri=store)
    opened = []
    plain = run_tree.open_client
    monkeypatch.setattr(run_tree, "open_client", lambda uri: opened.append(uri) or plain(uri))

    def again():
        tracker = MLflowTracker(ledger, store)
        tracker.on_start(study, trials_of(study))
        tracker.on_finish()
        assert tracker.close() is None
        was_opened = bool(opened)
        opened.clear()
        return was_opened

    assert not again()
    for what in ("seed", "configuration", "study"):
        client.delete_run(runs_of(store, what)[0].info.run_id)
        assert again()
        assert len(content_of(store)) == len(first)
        assert not again()
    run = runs_of(store)[0].info.run_id
    client.set_tag(run, "cellray.digest", "another")
    assert again() and not again()
    client.set_terminated(runs_of(store, "study")[0].info.run_id, "KILLED")
    assert again() and not again()
    ledger.write("report/verdict.txt", b"Take BCE.")
    assert again() and not again()
    ledger.delete(f"trials/{trials_of(study)[0].key}/trial.json")
    assert again()  # not complete


def test_a_killed_sweep_goes_on_in_its_run(study, ledger, store):
    planned = trials_of(study)[0]
    first = MLflowTracker(ledger, store, interval_s=0.1)
    first.on_start(study, trials_of(study))
    first.on_ready()
    for row in rows()[:3]:
        first.on_epoch(planned.trial, row)
    first.on_finish()  # the sweep was interrupted
    assert first.close() is None
    (run,) = runs_of(store)
    assert run.info.status == "KILLED"
    assert runs_of(store, "study")[0].info.status == "KILLED"

    second = MLflowTracker(ledger, store)
    second.on_start(study, trials_of(study))
    second.on_ready()
    for row in rows()[2:4]:  # epoch 3 was not in the checkpoint, so it comes again
        second.on_epoch(planned.trial, row)
    time.sleep(0.5)
    second.on_end(store_record(ledger, planned))
    second.on_finish()
    assert second.close() is None
    (again,) = runs_of(store)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    losses = MlflowClient(tracking_uri=store).get_metric_history(run.info.run_id, "epoch/train_loss")
    assert sorted(m.step for m in losses) == list(range(1, N_EPOCHS + 1))


def test_a_new_evaluation_of_a_trial_replaces_its_scores(study, ledger, store):
    plan = trials_of(study)
    sweep(MLflowTracker(ledger, store), ledger, study)
    contents: Any = store_record(ledger, plan[0], f1=0.3).plain()  # lower, so that a maximum would show
    contents["settings"]["evaluation"]["iou_threshold"] = 0.7
    ledger.write(f"trials/{plan[0].key}/trial.json", json.dumps(contents).encode())
    assert sync(ledger, study, store).n_written == 1
    (run,) = [run for run in runs_of(store) if run.data.tags["cellray.key"] == plan[0].key]
    assert run.data.metrics["test/f1_iou"] == 0.3
    assert run.data.tags["cellray.settings_changed"] == "evaluation.iou_threshold"  # MLflow's own can't change


def test_outcomes_are_counted_beside_the_survivors_mean(study, ledger, store):
    plan = trials_of(study)
    tracker = MLflowTracker(ledger, store)
    tracker.on_start(study, plan)
    tracker.on_ready()
    outcomes = {
        ("Dice", 0): "finished",
        ("Dice", 5): "finished",
        ("BCE: low", 0): "collapsed",
        ("BCE: low", 5): "failed",
    }
    for planned in plan:
        f1 = 0.4 if planned.seed == 0 else 0.6
        tracker.on_end(store_record(ledger, planned, outcome=outcomes[planned.label, planned.seed], f1=f1))
    tracker.on_finish()
    assert tracker.close() is None
    metrics = {run.info.run_name: run.data.metrics for run in runs_of(store, "configuration")}
    assert metrics["Dice"]["test/survivors_mean/f1_iou"] == pytest.approx(0.5)
    assert metrics["Dice"]["test/sd/f1_iou"] == pytest.approx(0.02**0.5)  # of 0.4 and 0.6
    assert metrics["Dice"]["test/f1_iou"] == pytest.approx(0.5)
    assert metrics["Dice"]["outcome/n_finished"] == 2
    assert metrics["BCE: low"]["test/f1_iou"] == metrics["BCE: low"]["test/worst/f1_iou"] == 0  # both count as worst
    assert (metrics["BCE: low"]["outcome/n_collapsed"], metrics["BCE: low"]["outcome/n_failed"]) == (1, 1)
    assert "test/survivors_mean/f1_iou" not in metrics["BCE: low"]
    runs = {run.data.tags["cellray.outcome"]: run for run in runs_of(store)}
    assert runs["failed"].info.status == "FAILED"
    assert runs["collapsed"].info.status == "FINISHED"
    assert len(runs["failed"].data.tags["cellray.reason"]) == 1000  # of 20,000 characters
    assert outcome_counts(plan, {})["outcome/n_planned"] == 4


def test_many_and_long_settings_are_taken_in_batches_and_shortened(study, ledger, store):
    planned = trials_of(study)[0]
    contents: Any = store_record(ledger, planned).plain()
    contents["settings"]["loss"] = {f"weight {i} (é)": "x" * 9000 for i in range(230)}
    ledger.write(f"trials/{planned.key}/trial.json", json.dumps(contents).encode())
    sync(ledger, study, store)
    (run,) = runs_of(store)
    assert sum(name.startswith("loss.") for name in run.data.params) == 230
    assert max(map(len, run.data.params.values())) == 1000
    path = MlflowClient(tracking_uri=store).download_artifacts(run.info.run_id, "config.json")
    assert json.loads(Path(path).read_text())["loss"]["weight 0 (é)"] == "x" * 9000


def test_settings_are_flattened_by_name():
    nested = {"loss": {"terms": [{"name": "bce", "weight": 0.5}], "name": None}, "seeds": [0, 5], "on": True}
    assert flatten(nested) == {
        "loss.terms.0.name": "bce",
        "loss.terms.0.weight": "0.5",
        "loss.name": "null",
        "seeds": "[0, 5]",
        "on": "true",
    }


def test_calls_return_at_once(study, ledger, store):
    tracker = MLflowTracker(ledger, store)
    tracker.on_start(study, trials_of(study))
    tracker.on_ready()
    trial = trials_of(study)[0].trial
    took = []
    for _ in range(200):
        start = time.perf_counter()
        tracker.on_epoch(trial, rows()[0])
        took.append(time.perf_counter() - start)
        time.sleep(0.001)
    tracker.close()
    assert sorted(took)[len(took) // 2] < 0.001


def test_a_lost_store_is_rebuilt_from_the_ledger(study, ledger, store, tmp_path):
    sweep(MLflowTracker(ledger, store), ledger, study)
    again = f"sqlite:///{tmp_path / 'again.db'}"
    sync(ledger, study, again)

    def without_ids(uri: str) -> list[dict[str, Any]]:
        names = {run.info.run_id: run.info.run_name for kind in KINDS for run in runs_of(uri, kind)}
        shown = []
        for run_id, (status, data, *rest) in content_of(uri).items():
            tags = {**data["tags"], "mlflow.parentRunId": names.get(data["tags"].get("mlflow.parentRunId"))}
            shown.append({"name": names[run_id], "status": status, "data": {**data, "tags": tags}, "rest": rest[0]})
        return sorted(shown, key=lambda run: str(run["name"]))

    np.testing.assert_equal(without_ids(again), without_ids(store))


def judged(seed: int, sets: dict[str, dict[str, float]], outcome: str = "finished") -> TrialRecord:
    """A trial of the configuration `x` with these scores by set."""
    contents = {"key": f"k{seed}", "label": "x", "seed": seed, "outcome": outcome, "seconds": {"training": 2.0}}
    return TrialRecord.model_validate({**contents, "metrics": {"own": sets}})


def summary_of(
    ledger: Ledger, records: list[TrialRecord], n_planned: int, *, rank_by: str = "f1_iou", skip_collapsed: bool = False
) -> dict[str, float]:
    """The metrics of the configuration `x` with so many seeds."""
    trials = tuple(PlannedTrial("x", seed, f"k{seed}") for seed in range(n_planned))
    plan = Plan("losses", "", rank_by, trials, skip_collapsed=skip_collapsed)
    results = Results(ledger, plan, records, metric=rank_by)
    return seed_summaries(results, worst_compared(results), ["x"])["x"]


def test_means_count_lost_seeds_as_the_worst_and_unbounded_errors_as_the_largest(ledger):
    sets = [{"test": {"f1_iou": f1, "mae": mae}} for f1, mae in ((0.6, 1.0), (0.8, 3.0), (0.0, 0.0))]
    sets[0]["far"] = {"f1_iou": 0.5}
    records = [judged(0, sets[0]), judged(1, sets[1]), judged(2, sets[2], "collapsed")]
    images = {"set": "test", "point": "own", "image": ["a", "b"], "n_true": [10, 12], "n_pred": [10, 12]}
    ledger.write_record(records[0], {"images": pd.DataFrame(images)}, {})  # whoever predicts nothing is 11 off
    summary = summary_of(ledger, records, 4)
    assert summary["test/f1_iou"] == pytest.approx((0.6 + 0.8 + 0) / 3)
    assert summary["test/sd/f1_iou"] == pytest.approx(
        (((0.6 - 1.4 / 3) ** 2 + (0.8 - 1.4 / 3) ** 2 + (1.4 / 3) ** 2) / 2) ** 0.5
    )
    assert summary["test/worst/f1_iou"] == 0
    assert summary["test/survivors_mean/f1_iou"] == pytest.approx(0.7)
    assert summary["test/mae"] == pytest.approx((1 + 3 + 11) / 3)
    assert summary["test/worst/mae"] == 11
    assert summary["test/survivors_mean/mae"] == pytest.approx(2)
    assert (summary["outcome/n_finished"], summary["outcome/n_collapsed"], summary["outcome/n_missing"]) == (2, 1, 1)
    assert summary["training/seconds_of_all_seeds"] == 6
    # what a lost seed counts as isn't known where no error is
    assert math.isnan(summary["external/far/mae"]) and math.isnan(summary["external/far/worst/mae"])
    released = summary_of(ledger, records, 4, skip_collapsed=True)
    assert released["test/f1_iou"] == pytest.approx(0.7)


def test_a_configuration_that_was_stopped_early_has_no_means_and_an_unjudged_one_only_the_worst(ledger):
    stopped = [judged(0, {"test": {"f1_iou": 0.5}}), judged(1, {}, "stopped")]
    counts = summary_of(ledger, stopped, 2)
    assert {name.partition("/")[0] for name in counts} == {"outcome", "training"}
    assert counts["outcome/n_stopped"] == 1
    failed = summary_of(ledger, [judged(0, {}, "failed")], 2)
    assert (failed["outcome/n_failed"], failed["outcome/n_missing"]) == (1, 1)
    assert "test/f1_iou" not in failed  # no trial of the study says which sets there are
    one = summary_of(ledger, stopped[:1], 2)
    assert one["test/f1_iou"] == one["test/worst/f1_iou"] == 0.5
    assert "test/sd/f1_iou" not in one


def test_the_ranking_metric_comes_first_and_few_others_after_it(ledger):
    scores = {"f1_iou": 0.5, "aji": 0.4, "sq": 0.6}
    record = judged(0, {"val": scores, "far": scores, "test": scores})
    names = list(summary_of(ledger, [record], 1, rank_by="aji"))
    assert names[0] == "test/aji"
    assert "external/far/aji" in names
    assert "val/f1_iou" in names
    assert not any("sq" in name for name in names)


def test_notes_and_views_fit_into_a_tag_of_an_experiment():
    sets = ["test", *(f"external_set_{i:03}" for i in range(200)), "val"]
    assert len(saved_view("f1_iou", sets, 1)) <= 5000
    view = json.loads(saved_view("mae", ["test", "far"], 7))
    state = json.loads(view["state"])
    assert view["createdAt"] == 7
    assert state["orderByAsc"] is True  # the smallest error first
    assert state["selectedColumns"][0] == "metrics.`test/mae`"
    assert "metrics.`external/far/mae`" in state["selectedColumns"]
    text = note("Why?", "1")
    assert text.endswith("Why?")
    assert text.count("](#/") == 2


def poison(folder: Path) -> Path:
    """Make every model of a store one that leaves a mark when it is loaded; the mark."""
    mark = folder / "mark"
    (found,) = folder.rglob("MLmodel")
    found.write_text("flavors: {python_function: {loader_module: evil, python_model: model.pkl, code: code}}")
    (found.parent / "code" / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    (found.parent / "model.pkl").write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    return mark


@pytest.mark.slow
def test_the_best_on_validation_gets_one_version_in_the_registry(study, ledger, store, tmp_path):
    plan = trials_of(study)
    with pytest.raises(LedgerError, match="no finished trial"):
        register_model(ledger, study, store)
    for planned, f1 in zip(plan, (0.3, 0.9, 0.7, 0.9), strict=True):
        record = store_record(ledger, planned, f1=f1, model=True)
        better = record.model_copy(update={"operating_point_score": 1 - f1 / 2})  # on validation; it's worst on test
        ledger.write(f"trials/{planned.key}/trial.json", record_text(better).encode())
    with pytest.raises(LedgerError, match="cellray track sync losses"):
        register_model(ledger, study, store)
    sync(ledger, study, store)
    first = register_model(ledger, study, store, name="cells")
    assert (first.name, first.version, first.is_new) == ("cells", "1", True)
    assert (first.key, first.score) == (plan[0].key, 0.85)
    mark = poison(tmp_path)
    again = register_model(ledger, study, store, name="cells")
    assert (again.version, again.is_new) == ("1", False)
    (version,) = MlflowClient(tracking_uri=store).search_model_versions("name = 'cells'")
    expected = {"study": "losses", "key": plan[0].key, "label": "Dice", "seed": "0", "diameter_px": "16.0"}
    expected |= {"operating_point.threshold": "0.5", "operating_point.min_area": "0.1"}
    assert expected.items() <= {name.removeprefix("cellray."): value for name, value in version.tags.items()}.items()
    assert register_model(ledger, study, store).name == "losses"
    assert register_model(ledger, study, store, name="cells", label="BCE: low").key == plan[1].key
    sync(ledger, study, store)
    assert not mark.exists()


def test_a_table_of_cells_has_their_places_and_sizes():
    labels = np.zeros((6, 8), np.int32)
    labels[1:3, 2:6] = 1  # 2 rows and 4 columns: its middle lies at y 1.5, x 3.5
    labels[4, 7] = 2
    probs = np.where(labels == 1, 0.75, 0.5).astype(np.float32)
    assert Cells(labels, probs).table().to_dict(orient="records") == [
        {"label": 1, "y": 1.5, "x": 3.5, "top": 1, "left": 2, "bottom": 3, "right": 6, "area_px": 8, "score": 0.75},
        {"label": 2, "y": 4.0, "x": 7.0, "top": 4, "left": 7, "bottom": 5, "right": 8, "area_px": 1, "score": 0.5},
    ]
    empty = Cells(np.zeros((3, 3), np.int32), np.zeros((3, 3), np.float32))
    assert (empty.count, len(empty.table()), list(empty.table())) == (0, 0, list(Cells(labels, probs).table()))
    many = Cells(np.arange(70_000, dtype=np.int32).reshape(200, 350), np.zeros((200, 350), np.float32))
    np.testing.assert_array_equal(imread(io.BytesIO(many.tiff())), many.labels)


def test_the_best_of_an_error_is_the_smallest():
    def record(seed: int, score: float, outcome: str = "finished") -> TrialRecord:
        return judged(seed, {}, outcome).model_copy(update={"operating_point_score": score})

    records = [record(1, 0.4), record(2, 0.2), record(3, 0.1, "collapsed")]
    assert best_record(records, "mae") == records[1]
    assert best_record(records, "f1_iou") == records[0]
    assert best_record(records[2:], "mae") is None


@contextmanager
def silent_port() -> Iterator[int]:
    """Somebody who accepts and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_an_unreachable_store_is_an_early_error_without_credentials(tmp_path):
    with silent_port() as port:
        start = time.perf_counter()
        with pytest.raises(LedgerError) as silent:
            check_store(f"http://somebody:s3cret@127.0.0.1:{port}/", timeout_s=1)
        assert time.perf_counter() - start < 3
    assert f"http://127.0.0.1:{port}/" in str(silent.value)
    with pytest.raises(LedgerError, match="nosuch"):
        check_store("nosuch://store")
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        check_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    check_store(default_store(str(tmp_path / "new")))
    for text in (str(silent.value), public_uri("postgresql://somebody:s3cret@db/mlflow?password=s3cret")):
        assert "s3cret" not in text
        assert "somebody" not in text


def test_no_thread_is_left(study, ledger, store):
    sweep(MLflowTracker(ledger, store), ledger, study, [])
    assert not [thread for thread in threading.enumerate() if thread.name == "cellray-mlflow"]

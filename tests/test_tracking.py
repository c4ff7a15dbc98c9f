"""MLflow as it is: an SQLite store and a real server; no stand-ins."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow.pytorch
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.model import build_model
from cellray.study import Study
from cellray.tracking import MLflowTracker, check_store, default_store, public_uri, sync
from cellray.tracking.values import flatten, seed_summary
from cellray.trial import Planned

FINGERPRINT = "0123456789abcdef"
N_EPOCHS = 6


@pytest.fixture
def study() -> Study:
    return Study.model_validate(
        {
            "name": "losses",
            "question": "Which loss is best?",
            "data": {"train": {"name": "drawn", "synthetic": {}}},
            "model": {"base_features": 2},
            "training": {"epochs": N_EPOCHS},
            "configurations": [
                {"label": "Dice", "loss": {"name": "dice"}},
                {"label": "BCE: low", "loss": {"name": "bce"}},
            ],
            "seeds": [0, 5],
        }
    )


@pytest.fixture
def ledger(tmp_path: Path, study: Study) -> Ledger:
    ledger = Ledger(str(tmp_path / "storage"), study.name)
    ledger.write("study.yaml", study.dump_yaml().encode())
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


def plan_of(study: Study) -> list[Planned]:
    return [Planned(trial, trial.key(FINGERPRINT), "e" * 16, None) for trial in study.trials()]


def rows(n: int = N_EPOCHS) -> list[dict[str, float]]:
    dice = [float("nan") if epoch % 2 else epoch / 10 for epoch in range(1, n + 1)]  # validated every second epoch
    return [
        {"epoch": i + 1, "step": 10 * (i + 1), "train_loss": 1 / (i + 1), "val_dice": dice[i], "seconds": 0.5}
        for i in range(n)
    ]


def store_record(ledger: Ledger, planned: Planned, *, outcome: str = "finished", f1: float = 0.5, model: bool = False):
    """Write a trial's record as the sweep does, and return it."""
    settings = planned.trial.model_dump(mode="json", exclude={"study", "label", "seed", "protocol"})
    scores = {"test": {"f1_iou": f1, "n_images": 8}}
    record = {
        "schema": 1, "key": planned.key, "evaluation_key": planned.evaluation_key, "study": planned.trial.study,
        "label": planned.label, "seed": planned.seed, "protocol": "strict", "outcome": outcome,
        "reason": None if outcome == "finished" else "why " * 5000, "settings": settings,
        "metrics": {} if outcome == "failed" else {"own": scores, "shared": {"test": {"f1_iou": f1 / 2}}},
        "best_epoch": 4, "epochs": N_EPOCHS, "data": {"fingerprint": FINGERPRINT, "split_hash": "beef"},
        "seconds": {"training": 3.0, "evaluation": 1.0},
        "overlays": [{"set": "test", "role": "worst", "image": "a", "file": "overlays/test.worst.png"}],
        "provenance": {"code": "c0de", "started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:04:15+00:00"},
    }  # fmt: skip
    files = {"overlays/test.worst.png": b"\x89PNG"}
    if model:
        torch.manual_seed(planned.seed)
        stream = io.BytesIO()
        torch.save({"model": build_model("c_resunet", base_features=2, in_channels=3).state_dict()}, stream)
        files["checkpoints/best.pt"] = stream.getvalue()
    history = pd.DataFrame(rows())
    if outcome == "collapsed":
        history.loc[N_EPOCHS - 1, "train_loss"] = float("nan")
    tables = {} if outcome == "failed" else {"history": history}
    ledger.write_record(record, tables, files)
    return record


def sweep(tracker: MLflowTracker, ledger: Ledger, study: Study, plan: list[Planned] | None = None, **how: Any):
    """What a sweep tells its observers."""
    plan = plan if plan is not None else plan_of(study)
    tracker.on_start(study, plan)
    for planned in plan:
        for row in rows():
            tracker.on_epoch(planned.trial, row)
        tracker.on_end(store_record(ledger, planned, **how))
    tracker.on_finish()
    return tracker.close()


def runs_of(uri: str, kind: str = "seed", name: str = "losses") -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.`cellray.kind` = '{kind}'"))


def content_of(uri: str) -> dict[str, Any]:
    """Everything that a second writing could change or double."""
    client = MlflowClient(tracking_uri=uri)
    content = {}
    for run in [run for kind in ("study", "configuration", "seed") for run in runs_of(uri, kind)]:
        history = client.get_metric_history(run.info.run_id, "train_loss")
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        final = {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
        content[run.info.run_id] = (run.info.status, run.data.to_dictionary(), len(history), final, files)
    return content


def test_the_tree_carries_params_metrics_tags_and_files(study, ledger, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "not-a-run")
    ledger.write("report/index.html", b"<html>")
    ledger.write("report/figures/rank.svg", b"<svg>")
    assert sweep(MLflowTracker(ledger, store, models=False), ledger, study) is None

    client = MlflowClient(tracking_uri=store)
    (top,) = runs_of(store, "study")
    assert top.info.status == "FINISHED"
    assert top.data.tags["mlflow.note.content"] == "Which loss is best?"
    assert (top.data.metrics["n_planned"], top.data.metrics["n_finished"]) == (4, 4)
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
        assert run.data.metrics["test.f1_iou"] == 0.5
        assert run.data.metrics["test.shared.f1_iou"] == 0.25
        assert run.data.params["model.base_features"] == "2"
        assert run.data.tags["cellray.data_fingerprint"] == FINGERPRINT
        assert run.data.tags["cellray.outcome"] == "finished"
        assert run.info.status == "FINISHED"
        losses = client.get_metric_history(run.info.run_id, "train_loss")
        assert sorted((m.step, m.value) for m in losses) == [(i, 1 / i) for i in range(1, N_EPOCHS + 1)]
        assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "val_dice")) == [2, 4, 6]
        files = {f.path for f in client.list_artifacts(run.info.run_id)}
        assert files == {"trial.json", "config.json", "overlays"}


def test_a_second_sweep_and_a_sync_open_no_run_and_change_nothing(study, ledger, store):
    sweep(MLflowTracker(ledger, store), ledger, study, model=True)
    first = content_of(store)
    assert len(first) == 1 + 2 + 4
    tracker = MLflowTracker(ledger, store)
    tracker.on_start(study, plan_of(study))
    tracker.on_finish()
    assert tracker.close() is None
    assert sync(ledger, study, store).n_written == 0
    assert content_of(store) == first


def test_a_killed_sweep_goes_on_in_its_run(study, ledger, store):
    planned = plan_of(study)[0]
    first = MLflowTracker(ledger, store, interval_s=0.1)
    first.on_start(study, plan_of(study))
    for row in rows()[:3]:
        first.on_epoch(planned.trial, row)
    first.on_finish()  # the sweep was interrupted
    assert first.close() is None
    (run,) = runs_of(store)
    assert run.info.status == "KILLED"
    assert runs_of(store, "study")[0].info.status == "KILLED"

    second = MLflowTracker(ledger, store)
    second.on_start(study, plan_of(study))
    for row in rows()[2:4]:  # epoch 3 was not in the checkpoint, so it comes again
        second.on_epoch(planned.trial, row)
    time.sleep(0.5)
    second.on_end(store_record(ledger, planned))
    second.on_finish()
    assert second.close() is None
    (again,) = runs_of(store)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    losses = MlflowClient(tracking_uri=store).get_metric_history(run.info.run_id, "train_loss")
    assert sorted(m.step for m in losses) == list(range(1, N_EPOCHS + 1))


def test_a_new_evaluation_of_a_trial_replaces_its_scores(study, ledger, store):
    plan = plan_of(study)
    sweep(MLflowTracker(ledger, store, models=False), ledger, study)
    record = store_record(ledger, plan[0], f1=0.3)  # lower, so that a maximum would show
    record["settings"]["evaluation"]["iou_threshold"] = 0.7
    ledger.write(f"trials/{plan[0].key}/trial.json", json.dumps(record).encode())
    assert sync(ledger, study, store, models=False).n_written == 1
    (run,) = [run for run in runs_of(store) if run.data.tags["cellray.key"] == plan[0].key]
    assert run.data.metrics["test.f1_iou"] == 0.3
    assert run.data.tags["cellray.settings_changed"] == "evaluation.iou_threshold"  # MLflow's own can't change


def test_outcomes_are_counted_beside_the_survivors_mean(study, ledger, store):
    plan = plan_of(study)
    tracker = MLflowTracker(ledger, store, models=False)
    tracker.on_start(study, plan)
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
    assert metrics["Dice"]["test.f1_iou.survivors_mean"] == pytest.approx(0.5)
    assert metrics["Dice"]["test.f1_iou.survivors_sd"] == pytest.approx(0.02**0.5)  # of 0.4 and 0.6
    assert metrics["Dice"]["n_finished"] == 2
    assert (metrics["BCE: low"]["n_collapsed"], metrics["BCE: low"]["n_failed"]) == (1, 1)
    assert "test.f1_iou.survivors_mean" not in metrics["BCE: low"]
    runs = {run.data.tags["cellray.outcome"]: run for run in runs_of(store)}
    assert runs["failed"].info.status == "FAILED"
    assert runs["collapsed"].info.status == "FINISHED"
    assert len(runs["failed"].data.tags["cellray.reason"]) == 1000  # of 20,000 characters
    assert seed_summary([], 5)["n_planned"] == 5


def test_many_and_long_settings_are_taken_in_batches_and_shortened(study, ledger, store):
    planned = plan_of(study)[0]
    record = store_record(ledger, planned)
    record["settings"]["loss"] = {f"weight {i} (é)": "x" * 9000 for i in range(230)}
    ledger.write(f"trials/{planned.key}/trial.json", json.dumps(record).encode())
    sync(ledger, study, store, models=False)
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


def test_the_best_checkpoint_loads_and_runs_without_pickles(study, ledger, store, monkeypatch):
    plan = plan_of(study)[:2]
    assert sweep(MLflowTracker(ledger, store), ledger, study, plan, model=True) is None
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("losses")
    assert experiment is not None
    models = client.search_logged_models([experiment.experiment_id])
    assert len(models) == 2
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    images = torch.rand(3, 3, 64, 40)
    for planned in plan:
        (model,) = [model for model in models if model.tags["cellray.key"] == planned.key]
        assert model.status == "READY"
        assert model.metrics is not None
        assert ("test.f1_iou", 0.5) in [(m.key, m.value) for m in model.metrics]
        network = build_model("c_resunet", base_features=2, in_channels=3)
        weights = torch.load(io.BytesIO(ledger.load_checkpoint(planned.key, "best") or b""), weights_only=True)
        network.load_state_dict(weights["model"])
        for uri in (f"models:/{model.model_id}", f"runs:/{model.source_run_id}/best"):
            logits = mlflow.pytorch.load_model(uri)(images)
            # another memory layout: the same sums in another order
            torch.testing.assert_close(logits, network.eval()(images), rtol=1e-3, atol=1e-3)
    signature = mlflow.models.get_model_info(f"models:/{models[0].model_id}").signature
    assert signature.inputs.inputs[0].shape == (-1, 3, -1, -1)
    assert signature.outputs.inputs[0].shape == (-1, 1, -1, -1)


def test_calls_return_at_once(study, ledger, store):
    tracker = MLflowTracker(ledger, store, models=False)
    tracker.on_start(study, plan_of(study))
    trial = plan_of(study)[0].trial
    took = []
    for _ in range(200):
        start = time.perf_counter()
        tracker.on_epoch(trial, rows()[0])
        took.append(time.perf_counter() - start)
        time.sleep(0.001)
    tracker.close()
    assert sorted(took)[len(took) // 2] < 0.001


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """An MLflow server on loopback, gone with all its children at the end."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=quiet)
    try:
        for _ in range(900):  # seconds on a quiet machine
            assert process.poll() is None, (folder / "log").read_text()
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
            time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_dies_costs_the_sweep_nothing_and_sync_repairs(study, ledger, empty_store, tmp_path):
    plan, port = plan_of(study), free_port()
    uri = f"http://somebody:s3cret@127.0.0.1:{port}"
    said: list[str] = []
    (tmp_path / "server").mkdir()
    shutil.copy(empty_store, tmp_path / "server" / "server.db")
    with server(tmp_path / "server", port):
        check_store(uri)
        tracker = MLflowTracker(ledger, uri, say=said.append)
        tracker.on_start(study, plan)
        tracker.on_end(store_record(ledger, plan[0], model=True))
        for _ in range(300):
            time.sleep(0.1)
            if tracker.n_written:
                break
    start = time.perf_counter()
    for planned in plan[1:]:
        tracker.on_epoch(planned.trial, rows()[0])
        outcome = "collapsed" if planned is plan[1] else "finished"
        tracker.on_end(store_record(ledger, planned, outcome=outcome, model=True))
    tracker.on_finish()
    assert time.perf_counter() - start < 1  # most of it the ledger's
    trouble = tracker.close(timeout=20)
    assert said == [trouble]
    assert trouble is not None
    assert "3 of 4 records" in trouble
    assert "cellray track sync losses" in trouble
    assert "s3cret" not in trouble
    with pytest.raises(LedgerError, match=f"127.0.0.1:{port}") as unreachable:
        check_store(uri)
    assert "s3cret" not in str(unreachable.value)
    with server(tmp_path / "server", port):
        assert sync(ledger, study, uri).n_written == 3
        assert sync(ledger, study, uri).n_written == 0
        assert len(runs_of(uri)) == 4
        assert {run.info.status for run in runs_of(uri)} == {"FINISHED"}
        (top,) = runs_of(uri, "study")
        assert top.info.status == "FINISHED"
        assert (top.data.metrics["n_finished"], top.data.metrics["n_collapsed"]) == (3, 1)
        experiment = [top.info.experiment_id]
        models = MlflowClient(tracking_uri=uri).search_logged_models(experiment)
        assert [model.status for model in models] == ["READY"] * 4


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
    sweep(MLflowTracker(ledger, store, models=False), ledger, study, [])
    assert not [thread for thread in threading.enumerate() if thread.name == "cellray-mlflow"]

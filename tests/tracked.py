"""A small study with made-up records, told to MLflow as a sweep tells them; shared by the tests of tracking."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from cellray.ledger import Ledger
from cellray.model import build_model
from cellray.record import PlannedTrial, TrialRecord
from cellray.study import Study
from cellray.tracking import MLflowTracker

FINGERPRINT = "0123456789abcdef"
N_EPOCHS = 6


def small_study(**changes: Any) -> Study:
    """Two losses, two seeds."""
    settings: dict[str, Any] = {
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
    return Study.model_validate(settings | changes)


def trials_of(study: Study) -> list[PlannedTrial]:
    """What a study plans."""
    return [PlannedTrial(t.label, t.seed, t.key(FINGERPRINT), "e" * 16, t) for t in study.trials()]


def rows(n: int = N_EPOCHS) -> list[dict[str, float]]:
    dice = [float("nan") if epoch % 2 else epoch / 10 for epoch in range(1, n + 1)]  # validated every second epoch
    return [
        {
            "epoch": i + 1,
            "step": 10 * (i + 1),
            "train_loss": 1 / (i + 1),
            "val_dice": dice[i],
            "seconds": 0.5,
            "images_per_s": 8.0,
            "peak_memory_mb": 700.0,
        }
        for i in range(n)
    ]


def store_record(
    ledger: Ledger, planned: PlannedTrial, *, outcome: str = "finished", f1: float = 0.5, model: bool = False
) -> TrialRecord:
    """Write a trial's record as the sweep does, and return it."""
    settings = planned.trial.model_dump(mode="json", exclude={"study", "label", "seed", "protocol"})
    scores = {"test": {"f1_iou": f1, "n_images": 8}, "far": {"f1_iou": f1 / 4, "n_images": 3}}
    shared = {"test": {"f1_iou": f1 / 2}, "far": {"f1_iou": float("nan")}}
    contents = {
        "schema": 1, "key": planned.key, "evaluation_key": planned.evaluation_key, "study": planned.trial.study,
        "label": planned.label, "seed": planned.seed, "protocol": "strict", "outcome": outcome,
        "reason": None if outcome == "finished" else "why " * 5000, "settings": settings,
        "metrics": {} if outcome == "failed" else {"own": scores, "shared": shared},
        "operating_point_score": f1, "operating_point": {"threshold": 0.5, "min_area": 0.1},
        "best_epoch": 4, "epochs": N_EPOCHS,
        "data": {"fingerprint": FINGERPRINT, "diameter_px": 16.0, "split_hash": "beef", "n_train": 6, "n_val": 2,
                 "n_test": 8, "sets": {"far": {"fingerprint": "fa7", "n_images": 3, "diameter_px": 30.0}}},
        "seconds": {"training": 3.0, "evaluation": 1.0},
        "overlays": [{"set": "test", "role": "worst", "image": "a", "file": "overlays/test.worst.png"}],
        "provenance": {"code": "c0de", "started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:04:15+00:00"},
    }  # fmt: skip
    record = TrialRecord.model_validate(contents)
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


def sweep(tracker: MLflowTracker, ledger: Ledger, study: Study, plan: list[PlannedTrial] | None = None, **how: Any):
    """What a sweep tells its observers."""
    plan = plan if plan is not None else trials_of(study)
    tracker.on_start(study, plan)
    tracker.on_ready()
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
        history = client.get_metric_history(run.info.run_id, "epoch/train_loss")
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        final = {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
        content[run.info.run_id] = (run.info.status, run.data.to_dictionary(), len(history), final, files)
    return content

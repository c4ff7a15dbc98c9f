"""What must be so after a sweep that was disturbed: all that was planned is there, trained once and shown once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from disturb import Event
from mlflow import MlflowClient

from cellray.ledger import Ledger


def assert_nothing_trained_twice(ledger: Ledger, events: Iterable[Event]) -> None:
    """Each process that went on with a trial began at its last checkpoint, and none did after its record."""
    trials = {entry.key: f"{entry.label}/{entry.seed}" for entry in ledger.plan()}
    done: dict[str, int] = {}
    saved: dict[str, int] = {}
    owner: dict[str, tuple[str, int]] = {}
    ended = set()
    for event in events:
        if event.word == "step":
            trial, _, step = event.what.rpartition("/")
            n = int(step)
            assert trial not in ended, f"{trial} went on after its record"
            if owner.get(trial) != (event.host, event.pid):
                # a checkpoint may have been stored by a process that was killed before it could say so
                assert n in (saved.get(trial, 0), done.get(trial, 0)), f"{trial} went on at step {n}"
                owner[trial] = event.host, event.pid
            else:
                assert n == done[trial]
            done[trial] = n + 1
        elif event.word == "write" and event.what.startswith("trials/"):
            _, key, name = event.what.split("/", 2)
            if name == "checkpoints/last.pt":
                saved[trials[key]] = done[trials[key]]
            elif name == "trial.json":
                assert trials[key] not in ended, f"{trials[key]} has two records"
                ended.add(trials[key])
    assert done == {trials[record.key]: record.steps for record in ledger.records()}
    assert done.keys() == set(trials.values())


def assert_shown_once(uri: str, ledger: Ledger) -> None:
    """MLflow has one run for each trial, each configuration and the study, all closed, and each value once."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(ledger.study)
    assert experiment is not None
    records = {record.key: record for record in ledger.records()}
    runs = client.search_runs([experiment.experiment_id])
    kinds = Counter((run.data.tags["cellray.kind"], run.data.tags["cellray.key"]) for run in runs)
    assert set(kinds.values()) == {1}
    n_labels = len({record.label for record in records.values()})
    assert Counter(kind for kind, _ in kinds) == {"study": 1, "configuration": n_labels, "seed": len(records)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.data.tags["cellray.kind"] == "seed":
            for name in run.data.metrics:
                steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
                assert len(steps) == len(set(steps)), f"{run.info.run_name}: {name} twice"
            n_epochs = len(client.get_metric_history(run.info.run_id, "epoch/train_loss"))
            assert n_epochs == records[run.data.tags["cellray.key"]].epochs

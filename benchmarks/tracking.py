"""What MLflow costs a large study: seconds to write 200 epochs × 20 metrics of 60 trials, and an observer's call.

    python benchmarks/tracking.py [--trials N] [--epochs N] [--uri URI ...]

The trials are made up: settings of 150 parameters, some of them too long for MLflow, histories with gaps, NaN losses,
33 final metrics of four sets at both points; no models. Written once to SQLite and, where PostgreSQL is installed, to
an MLflow server with it, through the tracker as in a sweep; then again by `sync`, which finds everything there. Other
stores can be given. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from gauge import gauge

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from services import free_port, mlflow_server, postgres

from cellray.ledger import Ledger
from cellray.metrics import METRICS
from cellray.record import PlannedTrial, TrialRecord
from cellray.study import Study
from cellray.tracking import MLflowTracker, sync

MOST_SECONDS_A_TRIAL, MOST_CALL_MS = 1.0, 1.0
N_METRICS = 20
SETS = ("test", "external_a", "external_b", "val")


def write_ledger(folder: str, n_trials: int, n_epochs: int) -> tuple[Ledger, Study, list[PlannedTrial]]:
    """A study of made-up records: five seeds of as many configurations as that takes."""
    n_seeds = min(n_trials, 5)
    study = Study.model_validate(
        {
            "name": "tracked",
            "question": "What does MLflow cost a large study?",
            "data": {"train": {"name": "drawn", "synthetic": {}}},
            "training": {"epochs": n_epochs},
            "configurations": [
                {"label": f"loss {i}", "loss": {"name": "dice", "settings": {"smooth": 1.0 + i}}}
                for i in range(n_trials // n_seeds)
            ],
            "seeds": list(range(n_seeds)),
        }
    )
    ledger = Ledger(folder, study.name)
    ledger.write("study.yaml", study.dump_yaml().encode())
    plan = [PlannedTrial(t.label, t.seed, t.key("0" * 16), "0" * 16, t) for t in study.trials()]
    ledger.write_plan(plan)
    rng = np.random.default_rng(0)
    for planned in plan:
        record, history = made_up(planned, n_epochs, rng)
        ledger.write_record(record, {"history": history}, {})
    return ledger, study, plan


def made_up(planned: PlannedTrial, n_epochs: int, rng: np.random.Generator) -> tuple[TrialRecord, pd.DataFrame]:
    """A record as long as they come, and its history of N_METRICS columns."""
    settings = planned.trial.model_dump(mode="json", exclude={"study", "label", "seed", "protocol"})
    settings["notes"] = {f"parameter {i}": "x" * (9000 if i % 25 == 0 else 20) for i in range(100)}
    scores = {key: float(rng.random()) if i % 11 else float("nan") for i, key in enumerate(METRICS)}
    contents = {
        "schema": 1, "key": planned.key, "evaluation_key": planned.evaluation_key, "study": planned.trial.study,
        "label": planned.label, "seed": planned.seed, "protocol": "strict", "outcome": "finished", "reason": None,
        "settings": settings, "metrics": {point: dict.fromkeys(SETS, scores) for point in ("own", "shared")},
        "operating_point_score": 0.5, "best_epoch": 4, "epochs": n_epochs, "seconds": {"training": 3.0},
        "data": {"fingerprint": "0" * 16, "split_hash": f"{planned.seed}", "diameter_px": 16.0,
                 "n_train": 6, "n_val": 2, "n_test": 8},
        "provenance": {"started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:14:05+00:00"},
    }  # fmt: skip
    values = rng.random((n_epochs, N_METRICS))
    values[::7, 0] = np.nan
    values[1::2, 1:5] = np.nan  # validated every second epoch
    history = pd.DataFrame(values, columns=["train_loss", *(f"measure_{i}" for i in range(2, N_METRICS)), "seconds"])
    history.insert(0, "epoch", np.arange(1, n_epochs + 1))
    return TrialRecord.model_validate(contents), history


def measure(name: str, uri: str, ledger: Ledger, study: Study, plan: list[PlannedTrial]) -> bool:
    """Show the study live, then sync; print seconds; True if both are within their bars."""
    records = {record.key: record for record in ledger.records()}
    live = Ledger(tempfile.mkdtemp(dir=ledger.storage), study.name)  # a sweep's ledger has no record before its end
    live.write("study.yaml", ledger.read("study.yaml"))
    live.write_plan(plan)
    calls: list[float] = []
    tracker = MLflowTracker(live, uri)
    start = time.monotonic()
    tracker.on_start(study, plan)
    tracker.on_ready()
    for planned in plan:
        for row in ledger.history(planned.key):
            before = time.perf_counter()
            tracker.on_epoch(planned.trial, row)
            calls.append(time.perf_counter() - before)
        live.write_record(records[planned.key], {"history": ledger.table(planned.key, "history")}, {})
        tracker.on_end(records[planned.key])
    tracker.on_finish()
    trouble = tracker.close(timeout=1800)
    written = time.monotonic() - start
    start = time.monotonic()
    again = sync(live, study, uri)
    synced = time.monotonic() - start
    each, call_ms = written / len(plan), 1000 * sorted(calls)[len(calls) // 2]
    n_values = int(sum(ledger.table(p.key, "history").iloc[:, 1:].notna().sum().sum() for p in plan))
    print(
        f"{name}: {len(plan)} trials, {n_values} values of epochs: {written:.1f} s, {each:.2f} s a trial "
        f"(bar {MOST_SECONDS_A_TRIAL}); a call of the observer {call_ms:.3f} ms (bar {MOST_CALL_MS}); "
        f"sync of what is there {synced:.1f} s",
        flush=True,
    )
    assert trouble is None, trouble
    assert again.n_written == 0, again
    return each <= MOST_SECONDS_A_TRIAL and call_ms <= MOST_CALL_MS


def stores(stack: ExitStack, folder: Path, uris: list[str]) -> Iterator[tuple[str, str]]:
    """Names and uris: those given, else SQLite and a server of its own."""
    if uris:
        yield from ((uri, uri) for uri in uris)
        return
    yield "SQLite", f"sqlite:///{folder / 'mlflow.db'}"
    (folder / "postgres").mkdir()
    backend = stack.enter_context(postgres(folder / "postgres"))
    port = free_port()
    stack.enter_context(mlflow_server(folder / "server", port, backend=backend))
    yield "server with PostgreSQL", f"http://127.0.0.1:{port}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--uri", action="append", default=[], help="write to this store (repeatable)")
    chosen = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    print(gauge())
    good = []
    with tempfile.TemporaryDirectory(prefix="cellray-tracking-") as folder, ExitStack() as stack:
        ledger, study, plan = write_ledger(f"{folder}/storage", chosen.trials, chosen.epochs)
        for name, uri in stores(stack, Path(folder), chosen.uri):
            good.append(measure(name, uri, ledger, study, plan))
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())

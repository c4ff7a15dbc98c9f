"""What a sweep costs beyond its trials: seconds a trial, and memory of one more trial process.

    python benchmarks/sweep.py [--trials N] [--storage DIR]

Overhead: the smallest real trials (one step, one feature, 64 px), one at a time, with ledger, MLflow and report on; the
wall time of the sweep less what each record says of its own training and evaluation. Memory: private memory of a
process (/proc/self/smaps_rollup) before and after it opens the cached DSB2018 set and reads every pixel, beside another
process that has done so; the images are drawn where the shared data ($CELLRAY_SHARED, or `shared` beside the project)
are not at hand. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gauge import gauge

from cellray.ledger import Ledger
from cellray.report import ReportObserver
from cellray.study import DatasetConfig, Study
from cellray.sweep import connect, run_sweep
from cellray.tracking import MLflowTracker, default_store
from cellray.trial import Sets

MOST_OVERHEAD_S, MOST_MEMORY_MB = 0.5, 60.0
SYNTHETIC = {"n_trainval": 4, "n_test": 2, "width_px": 64, "height_px": 64}
PACK = "data/dsb2018_fluo.zip"


class Clock:
    """Notes when each record came."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_end(self, record: dict[str, Any]) -> None:
        self.ends.append(time.monotonic())


def measure_overhead(n_trials: int, storage: str) -> bool:
    """Run the sweep, print what it cost beyond its trials; True if that is within the bar."""
    study = Study.model_validate(
        {
            "name": "overhead",
            "question": "What does a sweep cost beyond its trials?",
            "data": {"train": {"name": "drawn", "synthetic": SYNTHETIC, "diameter_px": 16.0}, "val_fraction": 0.5},
            "model": {"base_features": 1},
            "training": {"steps": 1, "batch_size": 2, "crop_px": 32, "lr": 0.01, "batch_norm_batches": 1},
            "loss": {"name": "dice"},
            "configurations": [{"label": "Dice"}],
            "seeds": list(range(n_trials)),
            "resources": {"max_concurrent": 1},
        }
    )
    sets, ledger, clock = Sets.open(study.data), Ledger(storage, study.name), Clock()
    tracker = MLflowTracker(ledger, default_store(storage))
    with connect():
        started = time.monotonic()
        records = run_sweep(study, sets, ledger, observers=[clock, tracker, ReportObserver(ledger)])
        whole = time.monotonic() - started
        tracker.close()
    closed = time.monotonic() - started - whole
    own = [sum(record["seconds"].values()) for record in records]
    n = len(own)
    each = (whole - sum(own)) / n
    running = (clock.ends[-1] - clock.ends[0] - sum(own) * (n - 1) / n) / (n - 1)
    print(
        f"{n} trials one at a time: {whole:.1f} s, of which their own work {sum(own):.1f} s ({sum(own) / n:.2f} s each)"
    )
    print(
        f"overhead {each:.2f} s a trial, with the start of the worker and the report at the end (bar {MOST_OVERHEAD_S})"
    )
    print(f"         {running:.2f} s a trial from the first one's end to the last one's")
    print(
        f"         {clock.ends[0] - started:.1f} s to the first record; MLflow was done {closed:.1f} s after the sweep"
    )
    return each <= MOST_OVERHEAD_S


def measure_memory() -> bool:
    """Open one dataset in two processes, print what the second one adds; True if that is within the bar."""
    context = multiprocessing.get_context("spawn")
    added = []
    processes = []
    for _ in range(2):  # the first stays, so that what the second maps is shared
        here, there = context.Pipe()
        process = context.Process(target=_open_and_read, args=(there,), daemon=True)
        process.start()
        there.close()  # so that a process that dies is noticed
        processes.append(process)
        n_images, megabytes, private = here.recv()
        added.append(private)
    for process in processes:
        process.terminate()
    print(
        f"{n_images} images, {megabytes:.0f} MB decoded: the first process adds {added[0]:.1f} MB of private memory, "
        f"a second one {added[1]:.1f} MB (bar {MOST_MEMORY_MB:.0f})"
    )
    return added[1] <= MOST_MEMORY_MB


def _open_and_read(answer: Connection) -> None:
    from cellray.data import open_dataset, split_dataset

    before = _private_mb()
    dataset = open_dataset(_dataset(), channels=1, normalise="percentile")
    split_dataset(dataset, val_fraction=0.2, test_fraction=0.2, split_seed=0)
    n_bytes = 0
    for index in range(len(dataset)):
        for pixels in (dataset.image(index), dataset.labels(index)):
            pixels.max()
            n_bytes += pixels.nbytes
    answer.send((len(dataset), n_bytes / 2**20, _private_mb() - before))
    time.sleep(600)


def _dataset() -> DatasetConfig:
    shared = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if (shared / PACK).is_file():
        # The set of real_small.yaml, so that a machine that has run it has it decoded.
        return DatasetConfig(name="dsb2018", path=str(shared / PACK), where_not={"size_class": ("696x520",)})
    drawn = {"n_trainval": 200, "n_test": 60, "width_px": 320, "height_px": 256}
    return DatasetConfig.model_validate({"name": "drawn", "synthetic": drawn})


def _private_mb() -> float:
    """Memory of this process that no other shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main() -> int:
    """Measure both; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="What a sweep costs beyond its trials.")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--storage", help="folder for the ledger; default: a fresh one")
    given = parser.parse_args()
    print(gauge())
    with tempfile.TemporaryDirectory(prefix="cellray-benchmark-") as folder:
        os.environ.setdefault("CELLRAY_CACHE", f"{folder}/cache")
        good = [measure_memory(), measure_overhead(given.trials, given.storage or f"{folder}/studies")]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

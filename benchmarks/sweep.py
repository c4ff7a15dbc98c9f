"""What a sweep costs beyond its trials: seconds a trial, start-up, the driver's memory, and memory of one more process.

    python benchmarks/sweep.py [--trials 60] [--many 1000] [--storage DIR]

Overhead: the smallest real trials (one step, one feature, 64 px), one at a time, with ledger, MLflow and report on; the
time from the first record to the last, less what each record says of its own training and evaluation. Beside it Ray
Tune as it comes: trials that do nothing but report as many values once, with its own MLflow callback and fresh actors.
Then many trials: seconds each, and the driver's memory. Start-up: `cellray --help`, and from
the start of a sweep's process to its first trial. Memory: private memory of a
process (/proc/self/smaps_rollup) before and after it opens the cached DSB2018 set and reads every pixel, beside another
process that has done so; the images are drawn where the shared data ($CELLRAY_SHARED, or `shared` beside the project)
are not at hand. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gauge import gauge

from cellray.ledger import Ledger
from cellray.observers import Observer
from cellray.record import TrialRecord
from cellray.report import ReportObserver
from cellray.study import DatasetConfig, Study
from cellray.sweep import connect, run_sweep
from cellray.tracking import MLflowTracker, default_store
from cellray.trial import Sets

MOST_OVERHEAD_S, LEAST_RATIO, MOST_GROWTH, MOST_MEMORY_MB = 0.2, 5.0, 1.3, 60.0
MOST_START_S, MOST_AGAIN_S, MOST_HELP_S = 8.0, 3.0, 0.5
N_VALUES = 13
"""A row of a trial's history has so many, about."""
SYNTHETIC = {"n_trainval": 4, "n_test": 2, "width_px": 64, "height_px": 64}
PACK = "data/dsb2018_fluo.zip"


class Clock(Observer):
    """Notes when each record came."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_end(self, record: TrialRecord) -> None:
        self.ends.append(time.monotonic())


def sweep_of(n_trials: int, storage: str) -> tuple[float, float]:
    """Run so many smallest trials; the overhead of each, and the seconds to the first record."""
    study = Study.model_validate(
        {
            "name": f"overhead-{n_trials}",
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
    started = time.monotonic()
    records = run_sweep(study, sets, ledger, observers=[clock, tracker, ReportObserver(ledger)], cluster=connect)
    tracker.close()
    own = [record.seconds.total for record in records]
    n = len(own)
    each = (clock.ends[-1] - clock.ends[0] - sum(own) * (n - 1) / n) / (n - 1)
    return each, clock.ends[0] - started


def tune_alone(n_trials: int, folder: str) -> float:
    """Seconds a trial of Ray Tune's defaults with its own MLflow callback, from the first one's end to the last's."""
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    ends: list[float] = []

    class Ends(tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return tune.Callback, ()

    def nothing(config: dict[str, Any]) -> None:
        tune.report({f"value_{i}": float(i) for i in range(N_VALUES)})

    logger = MLflowLoggerCallback(f"sqlite:///{folder}/tune.db", experiment_name="tune")
    with connect():
        tune.Tuner(
            nothing,
            tune_config=tune.TuneConfig(num_samples=n_trials, max_concurrent_trials=1),
            run_config=tune.RunConfig(
                storage_path=f"{folder}/tune",
                verbose=0,
                callbacks=[logger, Ends()],
            ),
        ).fit()
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def measure_overhead(n_trials: int, n_many: int, storage: str) -> bool:
    """Print what sweeps cost beyond their trials; True if all of it is within the bars."""
    each, first = sweep_of(n_trials, storage)
    alone = tune_alone(max(n_trials // 3, 2), storage)
    print(f"{n_trials} trials one at a time: {each:.3f} s each beyond their own work (bar {MOST_OVERHEAD_S})")
    print(f"Ray Tune's defaults and MLflow callback: {alone:.2f} s each, {alone / each:.1f} times (bar {LEAST_RATIO})")
    print(f"{first:.1f} s to the first record")
    many, _ = sweep_of(n_many, storage)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n_many} trials: {many:.3f} s each, {many / each:.2f} times (bar {MOST_GROWTH}); "
        f"the driver took {peak_mb:.0f} MB at most"
    )
    return each <= MOST_OVERHEAD_S and alone / each >= LEAST_RATIO and many / each <= MOST_GROWTH


def measure_start(storage: str) -> bool:
    """Print how long the command takes to answer, a sweep to its first trial, and again where nothing is to be done;
    True if within the bars."""
    program = [sys.executable, "-m", "cellray"]
    helps = []
    for _ in range(5):
        started = time.monotonic()
        subprocess.run([*program, "--help"], check=True, capture_output=True)
        helps.append(time.monotonic() - started)
    study = Path(storage) / "start.yaml"
    study.write_text(START)
    begun = time.monotonic()
    command = [*program, "sweep", str(study), "--storage", storage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        folder = Path(storage) / "start" / "trials"
        while process.poll() is None and not (folder.is_dir() and any(folder.iterdir())):
            time.sleep(0.02)
        start_s = time.monotonic() - begun
        process.communicate()
    begun = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    again_s = time.monotonic() - begun
    print(f"`cellray --help`: {min(helps):.2f} s (bar {MOST_HELP_S}, the fastest of {len(helps)})")
    print(f"from the command to the first trial's checkpoint: {start_s:.1f} s (bar {MOST_START_S:.0f})")
    print(f"the same command again: {again_s:.1f} s (bar {MOST_AGAIN_S:.0f})")
    return min(helps) <= MOST_HELP_S and start_s <= MOST_START_S and again_s <= MOST_AGAIN_S


START = """
name: start
question: How long until the first trial?
data: {train: {name: drawn, synthetic: {n_trainval: 4, n_test: 2, width_px: 64, height_px: 64}, diameter_px: 16},
       val_fraction: 0.5}
model: {base_features: 1}
training: {steps: 1, batch_size: 2, crop_px: 32, lr: 0.01, batch_norm_batches: 1}
configurations: [{label: Dice, loss: {name: dice}}]
seeds: [0]
"""


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
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--storage", help="folder for the ledger; default: a fresh one")
    given = parser.parse_args()
    print(gauge())
    with tempfile.TemporaryDirectory(prefix="cellray-benchmark-") as folder:
        os.environ.setdefault("CELLRAY_CACHE", f"{folder}/cache")
        storage = given.storage or f"{folder}/studies"
        os.makedirs(storage, exist_ok=True)
        good = [measure_memory(), measure_start(storage), measure_overhead(given.trials, given.many, storage)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

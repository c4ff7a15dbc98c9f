"""What a large study asks of the parts that it shares: head, ledger, MLflow and report. Figures for docs/scale.md.

    python benchmarks/scale.py [--gpus 32] [--trials 1000] [--report 10000] [--only PART]

Head: whole sweeps on a Ray node with so many logical GPUs, whose trials train nothing: they report epochs and store a
real record. CPU time and memory of each process of the head, with 2 and with 22 epochs a trial, and with fewer GPUs.
Requests: two real trials of the full network, with 2 and with 6 epochs, ledger on SeaweedFS and runs on an MLflow
server; requests and bytes on their way to both, counted. Ledger: records of a bucket read one after the other and many
at a time, and checkpoints written. Report: seconds and memory for ledgers of a fifth of the trials and of all. No bars.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from gauge import gauge
from ray.cluster_utils import Cluster
from report import write_ledger

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from disturb import descendants, title
from services import Door, free_port, mlflow_server, s3_environment

from cellray.ledger import Ledger
from cellray.observers import Observer
from cellray.record import TrialRecord, record_text
from cellray.report import ReportObserver, build_report
from cellray.results import Results
from cellray.study import Study
from cellray.sweep import connect, run_sweep
from cellray.tracking import MLflowTracker, default_store
from cellray.trial import Sets, run_trial

N_SEEDS = 5
CHECKPOINT_BYTES = 20_600_000
"""A state of c-ResUnet with 16 features that goes on: weights and Adam's moments."""
PROCESSES = {"reporting actor": "LiveReportActor", "GCS": "/gcs_server ", "raylet": "/raylet/raylet "}
SYNTHETIC = {"n_trainval": 4, "n_test": 2, "width_px": 64, "height_px": 64}
TRAINING = {"steps": 1, "batch_size": 2, "crop_px": 32, "lr": 0.01, "batch_norm_batches": 1}


def study_of(n_trials: int, name: str = "scale", **changes: Any) -> Study:
    """A study of so many of the smallest trials, five seeds each."""
    settings = {
        "name": name,
        "question": "What does a large study cost?",
        "data": {"train": {"name": "drawn", "synthetic": SYNTHETIC, "diameter_px": 16.0}, "val_fraction": 0.5},
        "model": {"base_features": 1},
        "training": TRAINING,
        "configurations": [
            {"label": f"Dice {i}", "loss": {"name": "dice", "settings": {"smooth": 1.0 + i}}}
            for i in range(max(n_trials // N_SEEDS, 1))
        ],
        "seeds": list(range(N_SEEDS)),
        "resources": {"gpus": 1},
    }
    return Study.model_validate(settings | changes)


def head(n_trials: int, n_gpus: int, n_epochs: int, folder: str) -> None:
    """Print what a sweep of trials that train nothing costs the processes of the head."""
    study = study_of(n_trials, f"head-{n_gpus}-{n_epochs}")
    sets = Sets.open(study.data)
    template = Ledger(f"{folder}/template", "one")
    record = run_trial(study.trials()[0], sets, template)
    assert record is not None
    tables = {name: template.table(record.key, name) for name in ("images", "objects")}
    row = template.table(record.key, "history").iloc[0].to_dict()
    history = pd.DataFrame([{**row, "epoch": epoch + 1} for epoch in range(n_epochs)])

    def simulated(config: dict[str, Any], ledger: Ledger, resources: Any) -> None:
        from ray import tune

        for epoch in history.to_dict("records"):
            tune.report({"row": epoch})
        trial, (key, evaluation_key) = json.loads(config["trial"]), config["keys"]
        about = {"key": key, "evaluation_key": evaluation_key, "label": trial["label"], "seed": trial["seed"]}
        ledger.write_record(record.model_copy(update=about), {"history": history, **tables}, {})

    from cellray.sweep import tuner  # imports Ray

    tuner._work = simulated
    ledger = Ledger(folder, study.name)
    tracker = MLflowTracker(ledger, default_store(folder))
    clock = Clock()
    cluster = Cluster(True, head_node_args={"num_cpus": n_gpus, "num_gpus": n_gpus, "include_dashboard": False})
    try:
        observers = [clock, tracker, ReportObserver(ledger)]
        run_sweep(study, sets, ledger, observers=observers, cluster=lambda: connect(cluster.address))
        tracker.close()
    finally:
        cluster.shutdown()
    n, wall_s = n_trials - 1, clock.last.seconds - clock.first.seconds
    print(f"{n_trials} trials of {n_epochs} epochs on {n_gpus} logical GPUs: {wall_s / n:.3f} s each on all cores")
    for name, (cpu_s, memory_mb) in clock.last.processes.items():
        cpu_before, memory_before = clock.first.processes.get(name, (0.0, memory_mb))
        print(
            f"  {name:16} {1000 * (cpu_s - cpu_before) / n:6.1f} ms of CPU a trial, {memory_mb:5.0f} MB at the end, "
            f"{1000 * (memory_mb - memory_before) / n:6.1f} kB more with each trial"
        )


class Moment:
    """CPU seconds and resident memory of the head's processes, now."""

    def __init__(self) -> None:
        self.seconds = time.monotonic()
        self.processes = {"driver": usage(os.getpid())}
        for pid in descendants(os.getpid()):
            for name, part in PROCESSES.items():
                if part in title(pid):
                    self.processes[name] = usage(pid)


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds and resident MB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Clock(Observer):
    """Takes the head's usage at the first record and at the last one so far."""

    first: Moment
    last: Moment
    n = 0

    def on_end(self, record: TrialRecord) -> None:
        self.n += 1
        if self.n == 1:
            self.first = Moment()

    def on_finish(self) -> None:
        self.last = Moment()


class Counted(Door):
    """A way to a server on which requests are counted by method, and the bytes that go there."""

    def __init__(self, to_port: int) -> None:
        super().__init__(to_port)
        self.requests: Counter[str] = Counter()
        self.n_bytes = 0

    def passes(self, data: bytes) -> None:
        self.n_bytes += len(data)
        for method in re.findall(rb"(?:^|\r\n)(GET|PUT|HEAD|POST|PATCH|DELETE) \S+ HTTP/1\.1\r\n", data):
            self.requests[method.decode()] += 1


def requests(folder: Path) -> None:
    """Print how many requests a real trial sends to the object store and to MLflow, and how large they are."""
    with s3_environment(folder / "weed") as url:
        store, port = Counted(int(url.rpartition(":")[2])), free_port()
        os.environ["AWS_ENDPOINT_URL"] = store.address
        with mlflow_server(folder / "mlflow", port, artifacts="s3://cellray/mlflow", s3=url):
            mlflow, sent = Counted(port), []
            for n_epochs in (2, 6):
                seen = Counter(store.requests), store.n_bytes, Counter(mlflow.requests), mlflow.n_bytes
                study = study_of(
                    1, f"requests-{n_epochs}", model={}, seeds=[0], resources={},
                    training={**TRAINING, "steps": n_epochs},
                )  # fmt: skip
                sets, ledger = Sets.open(study.data), Ledger("s3://cellray/studies", study.name)
                ledger.prepare()
                ledger.write("study.yaml", study.dump_yaml().encode())
                plan = sets.plan(study.trials(), ledger)
                before = Counter(store.requests), store.n_bytes
                record = run_trial(plan[0].trial, sets, ledger)
                after = store.requests - before[0], store.n_bytes - before[1]
                tracker = MLflowTracker(ledger, mlflow.address)
                tracker.on_start(study, plan)
                tracker.on_ready()
                tracker.on_end(record)
                tracker.close()
                sent.append((after, (mlflow.requests - seen[2], mlflow.n_bytes - seen[3])))
                print(f"a trial of {n_epochs} validated epochs, c-ResUnet with 16 features")
                for name, (counts, n_bytes) in zip(("ledger", "MLflow, a study of one"), sent[-1], strict=True):
                    words = ", ".join(f"{n} {method}" for method, n in counts.most_common())
                    print(f"  {name}: {sum(counts.values())} requests ({words}), {n_bytes / 1e6:.1f} MB sent")


def bucket(n_records: int, folder: Path) -> None:
    """Print how long it takes to read the records of a bucket, and how much it takes from many writers."""
    with s3_environment(folder / "weed"):
        ledger = Ledger("s3://cellray/studies", "many")
        source, _ = write_ledger(str(folder / "source"), n_records // N_SEEDS)
        for record in source.records():
            ledger.write(f"trials/{record.key}/trial.json", record_text(record).encode())
        one = timed(lambda: [ledger.record(key) for key in ledger.names("trials")])
        many = timed(ledger.records)
        here = timed(source.records)
        data = os.urandom(CHECKPOINT_BYTES)
        with ThreadPoolExecutor(16) as pool:
            all_s = timed(lambda: list(pool.map(lambda i: ledger.write(f"probe/{i}", data), range(64))))
    print(f"{n_records} records: {one:.1f} s one by one, {many:.1f} s many at a time, {here:.1f} s from a folder")
    print(f"checkpoints of {len(data) / 1e6:.1f} MB by 16 writers: {64 * len(data) / all_s / 1e6:.0f} MB/s")


def whole_report(n_trials: int, folder: str) -> None:
    """Print how long a report of so many trials takes."""
    ledger, plan = write_ledger(f"{folder}/{n_trials}", n_trials // N_SEEDS)
    seconds = timed(lambda: build_report(Results.now(ledger, plan)))
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sizes = {path: len(ledger.read(f"report/{path}")) / 1e6 for path in ("index.html", "pairs.csv", "trials.csv")}
    files = ", ".join(f"{path} {size:.1f} MB" for path, size in sizes.items())
    print(f"report of {n_trials} trials x 70 images: {seconds:.0f} s, {memory_gb:.1f} GB at most so far; {files}")


def timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=32, help="logical ones")
    parser.add_argument("--trials", type=int, default=1000, help="of the sweeps")
    parser.add_argument("--report", type=int, default=10_000, help="trials of the larger report")
    parser.add_argument("--only", choices=("head", "requests", "ledger", "report"))
    given = parser.parse_args()
    logging.disable(logging.INFO)  # Ray's, of its addresses
    print(gauge(), flush=True)
    for part in ("head", "requests", "ledger", "report") if given.only is None else (given.only,):
        with tempfile.TemporaryDirectory(prefix="cellray-scale-") as folder:
            if part == "head":
                for n_gpus, n_epochs in ((given.gpus, 2), (given.gpus, 22), (given.gpus // 4, 2)):
                    head(given.trials, n_gpus, n_epochs, folder)
            elif part == "requests":
                requests(Path(folder))
            elif part == "ledger":
                bucket(given.trials, Path(folder))
            else:
                for n in (given.report // 5, given.report):
                    whole_report(n, folder)


if __name__ == "__main__":
    main()

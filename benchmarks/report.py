"""How long the statistics of a report take, with every metric and for ten thousand trials; how fast its actor answers.

    python benchmarks/report.py [--trials N]

The first is 12 configurations x 5 seeds x 70 images: jackknife, intervals, all pairs of all metrics, 2,000 resamples
of seeds and images for every metric. The second ranks 2,000 configurations x 5 seeds from a real ledger on disk by F1,
with intervals and the leader's comparisons. The third builds the whole report of a fifth of these trials, and builds it
again after one more. The fourth starts the reporting actor in Ray, stores those 10,000 results
one after the other, tells the actor of each, and meanwhile asks it ten times a second how far the sweep is; then its
process is killed. Images are drawn; records are as large as real ones. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gauge import gauge

from cellray.ledger import Ledger
from cellray.metrics import METRICS, summarise
from cellray.metrics.rows import COLUMNS
from cellray.record import PlannedTrial, TrialRecord, record_text
from cellray.report import build_report, load_tables, make_tables, start_report_actor
from cellray.report.inference import infer
from cellray.results import Plan, Results
from cellray.statistics import rank_shares, resampled_means

N_IMAGES, N_SEEDS = 70, 5
BAR_STUDY_S, BAR_LEDGER_S, BAR_LEDGER_GB, BAR_ANSWER_S = 5.0, 20.0, 4.0, 0.1


def image_rows(rng: np.random.Generator) -> pd.DataFrame:
    """Image rows of one trial on the test set at both points: every column, with counts like those of FNC yellow."""
    rows = pd.DataFrame({name: rng.poisson(5, 2 * N_IMAGES) for part in COLUMNS.values() for name in part})
    n_true = np.tile(np.random.default_rng(3).negative_binomial(0.8, 0.8 / 8.7, N_IMAGES), 2)  # the same in every trial
    tp = rng.binomial(n_true, 0.7)
    rows = rows.assign(
        n_true=n_true, tp_iou=tp, fp_iou=rng.poisson(1, len(rows)), fn_iou=n_true - tp, px_tn=1_920_000
    ).assign(n_pred=lambda r: r.tp_iou + r.fp_iou)
    rows["reach_px"] = 40.0
    rows["point"] = np.repeat(["own", "shared"], N_IMAGES)
    rows["image"] = [f"image{i:02d}.png" for i in range(N_IMAGES)] * 2
    return rows.assign(set="test", group="")


def write_ledger(folder: str, n_configurations: int) -> tuple[Ledger, Plan]:
    """A ledger of that many configurations with five seeds each; fifty different trials stand in for all."""
    ledger, plan, records = write_images(folder, n_configurations)
    for record in records:
        ledger.write(f"trials/{record.key}/trial.json", record_text(record).encode())
    return ledger, plan


def write_images(folder: str, n_configurations: int) -> tuple[Ledger, Plan, list[TrialRecord]]:
    """The same without the records, which are handed over."""
    ledger = Ledger(folder, "many")
    ledger.prepare()
    rng = np.random.default_rng(0)
    drawn = [image_rows(rng) for _ in range(50)]
    tables = [rows.to_parquet(index=False) for rows in drawn]
    metrics = [{p: {"test": summarise(part)} for p, part in rows.groupby("point")} for rows in drawn]
    trials, records = [], []
    for i in range(n_configurations * N_SEEDS):
        label, seed, key = f"c{i // N_SEEDS:04d}", i % N_SEEDS, f"{i:016x}"
        record = {
            "key": key, "label": label, "seed": seed, "outcome": "finished", "metrics": metrics[i % 50], "reason": None,
            "evaluation_key": "e", "epochs": 200, "seconds": {"training": 1.0, "evaluation": 1.0},
            "settings": {f"setting{k}": k / 7 for k in range(80)},
        }  # fmt: skip
        ledger.write(f"trials/{key}/images.parquet", tables[i % 50])
        records.append(TrialRecord.model_validate(record))
        trials.append(PlannedTrial(label, seed, key, "e"))
    return ledger, Plan("many", "Which is best?", "f1_iou", tuple(trials)), records


def whole_study(folder: str) -> float:
    """Seconds for every metric of one study, its resamples included."""
    ledger, plan = write_ledger(folder, 12)
    results = Results.now(ledger, plan)
    start = time.perf_counter()
    samples = results.samples
    tables = infer(make_tables(results), results)
    assert tables.inference is not None
    for metric in METRICS:
        if metric in samples[plan.trials[0].key]["test", "own"].values:
            values = np.array(
                [
                    [samples[t.key]["test", "own"].values[metric] for t in plan.trials if t.label == c]
                    for c in plan.labels
                ]
            )
            rank_shares(resampled_means(values))
    return time.perf_counter() - start


def many_trials(folder: str, n: int) -> float:
    """Seconds to rank a ledger of n trials."""
    ledger, plan = write_ledger(folder, n // N_SEEDS)
    start = time.perf_counter()
    results = Results(ledger, plan, ledger.records(), metric=plan.rank_by)
    tables = load_tables(results, only_ranking=True)
    assert tables.ranking[tables.ranking.metric == "f1_iou"].low.notna().any()
    return time.perf_counter() - start


def whole_report(folder: str, n: int) -> tuple[float, float]:
    """Seconds for the whole report of n - 1 trials, and for that of n after it; the ledger is an hour old."""
    ledger, plan = write_ledger(folder, n // N_SEEDS)
    for path in Path(folder).rglob("*"):
        os.utime(path, times=(time.time() - 3600,) * 2)
    last, aside = Path(ledger.uri) / "trials" / plan.trials[-1].key, Path(folder) / "aside"
    last.rename(aside)
    os.environ["CELLRAY_CACHE"] = f"{folder}/cache"
    build_report(Results.now(write_ledger(f"{folder}/small", 2)[0], plan))  # what is imported, and fonts
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        build_report(Results.now(ledger, plan))
        seconds.append(time.perf_counter() - start)
        if aside.exists():
            aside.rename(last)
    return seconds[0], seconds[1]


class Asker(threading.Thread):
    """Asks an actor ten times a second how far the sweep is, and takes the time."""

    def __init__(self, actor: Any) -> None:
        super().__init__(daemon=True)
        self.actor, self.answers_s, self.ended = actor, [], threading.Event()
        self.behind = 0

    def run(self) -> None:
        import ray

        while not self.ended.wait(0.1):
            start = time.perf_counter()
            state = ray.get(self.actor.status.remote())
            self.answers_s.append(time.perf_counter() - start)
            self.behind = max(self.behind, sum(state["done"].values()) - state["table_of"])


def live_results(folder: str, n: int) -> float:
    """Seconds of the slowest answer of the reporting actor while n results come in; prints the rest."""
    import ray

    ledger, plan, records = write_images(folder, n // N_SEEDS)
    ledger.write_plan(plan.trials)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actor = start_report_actor("many", (ledger.storage, ledger.study), plan)
    ray.get(actor.status.remote())
    asker = Asker(actor)
    asker.start()
    start, telling_s = time.perf_counter(), 0.0
    for record in records:
        ledger.write(f"trials/{record.key}/trial.json", record_text(record).encode())
        told = time.perf_counter()
        actor.trial_ended.remote(record)
        telling_s += time.perf_counter() - told
    came_s = time.perf_counter() - start
    while ray.get(actor.status.remote())["table_of"] < n:
        time.sleep(0.2)
    whole_s = time.perf_counter() - start - came_s
    asker.ended.set()
    asker.join()
    pid, peak_gb = ray.get(
        actor.__ray_call__.remote(lambda _: (os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
    )
    os.kill(pid, signal.SIGKILL)
    killed = time.perf_counter()
    while sum(ray.get(actor.status.remote())["done"].values()) < n:
        time.sleep(0.2)
    back_s = time.perf_counter() - killed
    ray.shutdown()
    answers_ms = np.array(asker.answers_s) * 1e3
    median, most, slowest = (np.quantile(answers_ms, share) for share in (0.5, 0.99, 1))
    print(f"actor: {n} results at {n / came_s:.0f} a second, {telling_s / n * 1e3:.2f} ms each to tell;", end=" ")
    print(f"{len(answers_ms)} answers, median {median:.0f} ms, 99 % {most:.0f} ms,", end=" ")
    print(f"slowest {slowest:.0f} ms (bar {BAR_ANSWER_S * 1e3:.0f})")
    print(f"  table up to {asker.behind} results behind, whole {whole_s:.0f} s after the last one;", end=" ")
    print(f"peak memory {peak_gb:.2f} GB; knows all again {back_s:.1f} s after kill -9")
    return float(slowest) / 1e3


def main() -> int:
    """Print the figures with their bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    n = parser.parse_args().trials
    print(gauge())
    with tempfile.TemporaryDirectory(prefix="cellray-bench-") as folder:
        study_s = whole_study(f"{folder}/one")
        ledger_s = many_trials(f"{folder}/many", n)
        memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        first_s, again_s = whole_report(f"{folder}/whole", n // 5)
        answer_s = live_results(f"{folder}/live", n)
    print(f"one study, 12 x 5 x {N_IMAGES}, {len(METRICS)} metrics: {study_s:.1f} s (bar {BAR_STUDY_S:g})")
    print(f"ledger of {n} trials x {N_IMAGES} images: {ledger_s:.1f} s (bar {BAR_LEDGER_S:g}),", end=" ")
    print(f"{memory_gb:.2f} GB (bar {BAR_LEDGER_GB:g})")
    print(f"whole report of {n // 5} trials: {first_s:.1f} s; {again_s:.1f} s after one more, {again_s / first_s:.2f}")
    found = ((study_s, BAR_STUDY_S), (ledger_s, BAR_LEDGER_S), (memory_gb, BAR_LEDGER_GB), (answer_s, BAR_ANSWER_S))
    return int(any(value > bar for value, bar in found))


if __name__ == "__main__":
    raise SystemExit(main())

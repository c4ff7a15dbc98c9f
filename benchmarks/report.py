"""How long the statistics of a report take: one study with every metric, and a ledger of ten thousand trials.

    python benchmarks/report.py [--trials N]

The first is 12 configurations x 5 seeds x 70 images: jackknife, intervals, all pairs of all metrics, 2,000 resamples
of seeds and images for every metric. The second ranks 2,000 configurations x 5 seeds from a real ledger on disk by F1,
with intervals and the leader's comparisons. Images are drawn; records are as large as real ones. Exit code 1 if a bar
is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time

import numpy as np
import pandas as pd
from gauge import gauge

from cellray.ledger import Ledger
from cellray.metrics import METRICS, summarise
from cellray.metrics.rows import COLUMNS
from cellray.report import Plan, PlannedTrial, load_tables, make_tables
from cellray.report.inference import infer
from cellray.samples import read_samples
from cellray.statistics import rank_shares, resampled_means

N_IMAGES, N_SEEDS = 70, 5
BAR_STUDY_S, BAR_LEDGER_S, BAR_LEDGER_GB = 5.0, 20.0, 4.0


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
    ledger = Ledger(folder, "many")
    ledger.prepare()
    rng = np.random.default_rng(0)
    drawn = [image_rows(rng) for _ in range(50)]
    tables = [rows.to_parquet(index=False) for rows in drawn]
    metrics = [{p: {"test": summarise(part)} for p, part in rows.groupby("point")} for rows in drawn]
    trials = []
    for i in range(n_configurations * N_SEEDS):
        label, seed, key = f"c{i // N_SEEDS:04d}", i % N_SEEDS, f"{i:016x}"
        record = {
            "key": key, "label": label, "seed": seed, "outcome": "finished", "metrics": metrics[i % 50], "reason": None,
            "evaluation_key": "e", "epochs": 200, "seconds": {"training": 1.0, "evaluation": 1.0},
            "settings": {f"setting{k}": k / 7 for k in range(80)},
        }  # fmt: skip
        ledger.write(f"trials/{key}/images.parquet", tables[i % 50])
        ledger.write(f"trials/{key}/trial.json", json.dumps(record).encode())
        trials.append(PlannedTrial(label, seed, key, "e"))
    return ledger, Plan("many", "Which is best?", "f1_iou", tuple(trials))


def whole_study(folder: str) -> float:
    """Seconds for every metric of one study, its resamples included."""
    ledger, plan = write_ledger(folder, 12)
    records = ledger.records()
    start = time.perf_counter()
    samples = read_samples(ledger, records)
    tables = infer(make_tables(records, plan), samples, plan)
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
    tables = load_tables(ledger, ledger.records(), plan, only_ranking=True)
    assert tables.ranking[tables.ranking.metric == "f1_iou"].low.notna().any()
    return time.perf_counter() - start


def main() -> int:
    """Print both figures with their bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    n = parser.parse_args().trials
    print(gauge())
    with tempfile.TemporaryDirectory(prefix="cellray-bench-") as folder:
        study_s = whole_study(f"{folder}/one")
        ledger_s = many_trials(f"{folder}/many", n)
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"one study, 12 x 5 x {N_IMAGES}, {len(METRICS)} metrics: {study_s:.1f} s (bar {BAR_STUDY_S:g})")
    print(f"ledger of {n} trials x {N_IMAGES} images: {ledger_s:.1f} s (bar {BAR_LEDGER_S:g}),", end=" ")
    print(f"{memory_gb:.2f} GB (bar {BAR_LEDGER_GB:g})")
    return int(study_s > BAR_STUDY_S or ledger_s > BAR_LEDGER_S or memory_gb > BAR_LEDGER_GB)


if __name__ == "__main__":
    raise SystemExit(main())

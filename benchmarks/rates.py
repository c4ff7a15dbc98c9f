"""What choosing a learning rate is worth: four losses on rare neurons, six rules for the rate, all else equal.

    CELLRAY_SHARED=… python benchmarks/rates.py [--storage DIR] [--steps 150] [--seeds 5] [--workers 2]

`search_spaces/real_rare_first.yaml` with Dice, BCE: medium, Focal Tversky and CombinedFT: balanced, judged on wue1
alone. The rules: `lr: tune`, the range test, the range test as it was before (`premature`) and 3e-3 for all, each
without clipping of gradients, and the first and the last one also with. Prints F1 on the test images, mean ± SD over
seeds, where a lost trial counts 0, the rates that were used, and the steps that each rule cost. docs/results/rates.md
tells what came out.

Run again with the same `--storage`, nothing is trained twice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cellray.ledger import Ledger
from cellray.search import Agenda
from cellray.study import Study, Trial, load_study
from cellray.trial import Sets, run_trial

FILE = Path(__file__).parents[1] / "search_spaces" / "real_rare_first.yaml"
LABELS = ("Dice", "BCE: medium", "Focal Tversky", "CombinedFT: balanced")
RULES: dict[str, dict[str, Any]] = {
    "tune": {"lr": "tune", "clip": None},
    "range test": {"lr": "range_test", "range_test": {"rule": "same_batches"}, "clip": None},
    "range test, premature": {"lr": "range_test", "range_test": {"rule": "premature"}, "clip": None},
    "3e-3": {"lr": 3e-3, "clip": None},
    "3e-3, clipped": {"lr": 3e-3, "clip": 2.0},
    "tune, clipped": {"lr": "tune", "clip": 2.0},
}


def study_of(rule: str, steps: int, n_seeds: int) -> Study:
    """The study under one rule."""
    values = load_study(FILE).select(only=LABELS).model_dump()
    values["name"] = f"rates-{list(RULES).index(rule)}"
    values["seeds"] = values["seeds"][:n_seeds]
    values["data"]["external"] = ()
    values["training"] |= {"steps": steps, "checkpoint": "dice", **RULES[rule]}
    return Study.model_validate(values)


def run(trial: Trial, ledger: Ledger) -> None:
    """One trial."""
    run_trial(trial, Sets.open(trial.data), ledger)


def swept(rule: str, study: Study, storage: str, workers: ProcessPoolExecutor) -> Agenda:
    """Run a study to its end."""
    sets, ledger = Sets.open(study.data), Ledger(storage, study.name)
    ledger.prepare()
    agenda = Agenda(study, sets, ledger)
    while not agenda.is_finished:
        ready = []
        while (task := agenda.next()) is not None:
            ready.append(task.trial)
        list(workers.map(run, ready, [ledger] * len(ready)))
        for trial in ready:
            agenda.ended(trial)
    agenda.write()
    return agenda


def cost(agenda: Agenda, study: Study) -> float:
    """Steps of all trainings for one configuration, against those of its trials without a rule for the rate."""
    steps, training = study.training.steps or 0, study.training
    tested = [planned.record.range_test for planned in agenda.plan if planned.record is not None]
    n_tested = sum(len(test.lr) for test in tested if test is not None)
    n_tried = sum(len(rate.dice) for entry in agenda.entries for rate in entry.rates)
    whole = len(agenda.plan) * steps
    return (whole + n_tested + n_tried * training.tune.share * steps) / whole


def main() -> None:
    """Run all rules and print the table."""
    parser = argparse.ArgumentParser(description="What choosing a learning rate is worth.")
    parser.add_argument("--storage", help="folder for the ledgers; default: a fresh one")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print(f"| rule | {' | '.join(LABELS)} | steps |\n| --- |{' --- |' * len(LABELS)} ---: |")
    spawned = ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory(prefix="cellray-benchmark-") as folder, spawned as workers:
        for rule in RULES:
            study = study_of(rule, given.steps, given.seeds)
            agenda = swept(rule, study, given.storage or folder, workers)
            cells = []
            for label in LABELS:
                records = [p.record for p in agenda.plan if p.label == label and p.record is not None]
                scores = [float(r.score("f1_iou") or 0) if r.outcome == "finished" else 0.0 for r in records]
                rates = sorted({r.lr for r in records if r.lr is not None})
                used = f"{rates[0]:.2g}" + (f" to {rates[-1]:.2g}" if len(rates) > 1 else "")
                spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
                cells.append(f"{statistics.mean(scores):.3f}{spread}, worst {min(scores):.3f}, at {used}")
            print(f"| {rule} | {' | '.join(cells)} | {cost(agenda, study):.2f} |", flush=True)


if __name__ == "__main__":
    main()

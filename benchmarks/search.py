"""What adapting saves, on the images of the quickstart: TPE against random search, and seeds where they decide.

    python benchmarks/search.py [--storage DIR] [--repetitions 5] [--budget 24]

TPE: weights of BCE (with the weight of a cell), Dice and Focal; a configuration counts by its validation F1, mean over
two seeds. Random search tries `--budget` configurations, TPE half as many, each with `--repetitions` seeds of the
sampler and without any listed configuration to start from. Half of the training images validate, the same for all: on
the quickstart's five, drawn anew for each seed, scores differ more by luck than by settings. The best of many noisy
scores flatters whoever tries more, so the winners of both are also trained with three further seeds and compared on the
test images. Bar: TPE's best is at least as good as random search's, in the median over repetitions.

Seeds: the twelve configurations of the quickstart with ten seeds, all of them, and then over the same records five
seeds and further ones where they decide, with a budget of 60 % of the trials. Bar: what is recommended may be the best
by the full grid, at no more than 60 % of its epochs.

Run again with the same `--storage`, nothing is trained twice. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from gauge import gauge

from cellray.ledger import Ledger
from cellray.record import TrialRecord, Tried
from cellray.report import load_tables
from cellray.results import Results, plan_of
from cellray.study import Study, load_study
from cellray.sweep import connect, run_sweep
from cellray.trial import Sets

QUICKSTART = Path(__file__).parents[1] / "search_spaces" / "quickstart.yaml"
SEEDS, FURTHER, TEN = [0, 5], [1, 2, 3], [0, 5, 25, 125, 1, 2, 3, 4, 6, 7]
SPACE = {
    "loss": {
        "terms": [
            {"name": "bce", "settings": {"cell_weight": {"log_uniform": [1, 200]}}},
            {"name": "dice"},
            {"name": "focal"},
        ],
        "weights": {"simplex": 1},
    }
}
MOST_EPOCHS, MARGIN = 0.6, 0.05


def quickstart(name: str, **changes: Any) -> Study:
    """The study of the quickstart with other configurations, seeds or search."""
    values = {**load_study(QUICKSTART).model_dump(mode="json"), "name": name, **changes}
    values["data"] |= {"val_fraction": 0.5, "split_seed": 0}
    return Study.model_validate_json(json.dumps(values))


def swept(study: Study, storage: str) -> tuple[Ledger, list[TrialRecord]]:
    ledger = Ledger(storage, study.name)
    return ledger, run_sweep(study, Sets.open(study.data), ledger, cluster=connect)


def search(method: str, budget: int, seed: int, storage: str) -> Tried:
    """The best configuration of one search."""
    how = {"method": method, "budget": budget, "seed": seed, "space": SPACE}
    ledger, _ = swept(quickstart(f"{method}-{seed}", configurations=[], seeds=SEEDS, search=how), storage)
    return max(ledger.search().configurations, key=lambda tried: tried.values[0])


def measure_search(repetitions: int, budget: int, storage: str) -> bool:
    """Print each repetition; True if TPE's best is at least random search's, in the median."""
    leads, winners = [], {}
    for seed in range(repetitions):
        best = {"random": search("random", budget, seed, storage), "tpe": search("tpe", budget // 2, seed, storage)}
        leads.append(best["tpe"].values[0] - best["random"].values[0])
        for method, entry in best.items():
            winners[f"{method} {seed}"] = entry
        found = ", ".join(f"{m} {e.values[0]:.3f} ({_weights(e)})" for m, e in best.items())
        print(f"repetition {seed}: {found}", flush=True)
    settings = {label: json.dumps(entry.settings, sort_keys=True) for label, entry in winners.items()}
    first = {text: label for label, text in reversed(settings.items())}  # both may have found the same
    listed = [{"label": label, "loss": winners[label].settings["loss"]} for label in first.values()]
    _, records = swept(quickstart("winners", configurations=listed, seeds=FURTHER), storage)
    scores = {text: _mean_f1([r for r in records if r.label == label]) for text, label in first.items()}
    again = [scores[settings[f"tpe {seed}"]] - scores[settings[f"random {seed}"]] for seed in range(repetitions)]
    lead = statistics.median(leads)
    print(f"TPE with {budget // 2} against random search with {budget}: median lead {lead:+.4f} validation F1 (bar 0)")
    print(
        f"their winners with {len(FURTHER)} further seeds on test images: median lead {statistics.median(again):+.4f}"
    )
    return lead >= 0


def _weights(tried: Tried) -> str:
    return " ".join(f"{value:.3g}" for value in tried.parameters.values())


def _mean_f1(records: list[TrialRecord]) -> float:
    found = [r.score("f1_iou") if r.outcome == "finished" else 0.0 for r in records]
    return sum(found) / len(found)


def measure_seeds(storage: str) -> bool:
    """Print what is recommended, and what it cost; True if the full grid allows it at no more than the share."""
    ledger, records = swept(quickstart("seeds", seeds=TEN), storage)
    _, may_be_best = _standing(quickstart("seeds", seeds=TEN), ledger)
    spent = sum(record.epochs for record in records)
    decide = {"within": MARGIN, "first": 5, "at_most": f"{int(MOST_EPOCHS * len(records))} trials"}
    study = quickstart("seeds", seeds=TEN, decide=decide)
    ledger, records = swept(study, storage)
    share = sum(record.epochs for record in records) / spent
    log, (take, _) = ledger.search(), _standing(study, ledger)
    print(f"full grid: {len(may_be_best)} may be the best: {', '.join(may_be_best)}")
    print(f"seeds where they decide: take {take}; {log.note}; {share:.0%} of the epochs (bar {MOST_EPOCHS:.0%})")
    for entry in log.configurations:
        print(f"  {entry.label}: {entry.seeds} seeds; {entry.reason}")
    return share <= MOST_EPOCHS and take in may_be_best


def _standing(study: Study, ledger: Ledger) -> tuple[str, list[str]]:
    """The recommended configuration, and those that may be the best on the test images, by the ledger's plan."""
    tables = load_tables(Results.now(ledger, plan_of(study, ledger.plan())), only_ranking=True)
    assert tables.inference is not None and tables.inference.choice is not None
    return tables.inference.choice.take, tables.inference.choice.may_be_best


def main() -> int:
    """Measure both; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="What adapting saves on the quickstart's images.")
    parser.add_argument("--storage", help="folder for the ledgers; default: a fresh one")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--budget", type=int, default=24)
    given = parser.parse_args()
    print(gauge())
    with tempfile.TemporaryDirectory(prefix="cellray-benchmark-") as folder:
        os.environ.setdefault("CELLRAY_CACHE", f"{folder}/cache")
        storage = given.storage or folder
        good = [measure_search(given.repetitions, given.budget, storage), measure_seeds(storage)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

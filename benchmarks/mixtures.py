"""Which search finds the weights of a three-term loss soonest: trained mixtures, and searches replayed on them.

    python benchmarks/mixtures.py train --storage DIR [--table FILE] [--labels N] [--seeds N]
    python benchmarks/mixtures.py replay [--table FILE | --drawn] [--replays 2000]

`train`: every mixture of BCE (a cell's pixel counts 50 times), Dice and Focal Tversky in steps of a tenth, 66 in all,
with five seeds each, on rare neurons (the data of `real_rare.yaml`), all with the same short training, through
cellray's own sweep; started again with the same storage, it goes on. The table has a row a trial: weights, seed,
outcome, F1 on validation and on test images, seconds, and the Dice of each validation. Validation images are the same
for all, so that seeds differ in training alone.

`replay`: a search asks for mixtures and sees the validation F1 of one seed at a time, those of a mixture in a random
order, and never one twice: a mixture all of whose seeds were seen gives way to the nearest other one. After each trial
it says which it would choose. The choice is good if its mean F1 over all seeds is within the noise of the best
mixture's: the standard error of the difference of two such means. That is asked of the validation images, by which it
searches, and of test images. Counted is after how many trials the choice is good and stays so until the budget's end
(trials are equally long, so epochs go by the same ratio), and what the choice loses against the best. NSGA-II isn't
among the searches: it needs two metrics. `--drawn` replays on a known surface with noise: do the searches do as they
should? Exit code 1 if no search needs half of random search's trials on test images.

Each search is replayed with and without seeds for the leaders: then every second trial goes to another seed of the
choice so far, until it has all, and the choice is the mixture whose mean less a standard error is highest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from gauge import gauge
from scipy.stats import qmc

from cellray.arrays import Floats
from cellray.statistics.simplex import N_TERMS, mixture_terms, simplex_grid
from cellray.study.space import Simplex

LOSSES = ({"name": "bce", "settings": {"cell_weight": 50}}, {"name": "dice"}, {"name": "focal_tversky"})
TERMS = tuple(str(term["name"]) for term in LOSSES)
STEPS = 10
"""Of a weight, from 0 to 1."""
SEEDS = (0, 5, 25, 47, 79)
TABLE = Path(__file__).parent / "mixtures.csv"
BUDGET = 66
"""Trials of a replayed search."""
FIRST = 10
"""Trials before a search that learns begins to."""
STICK = Simplex("weights", (None, None, None), (1.0, 1.0, 1.0))
"""How cellray draws three weights."""


def train(storage: str, table: Path, n_labels: int | None, n_seeds: int) -> None:
    """Train what isn't trained yet, and write the table."""
    from cellray.ledger import Ledger
    from cellray.study import Study
    from cellray.sweep import connect, run_sweep
    from cellray.trial import Sets

    shared = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    grid = simplex_grid(STEPS)
    chosen = grid[np.linspace(0, len(grid) - 1, n_labels or len(grid)).round().astype(int)]
    values = {
        "name": "mixtures",
        "question": "Which mixture of BCE, Dice and Focal Tversky finds rare neurons best after a short training?",
        "data": {
            "channels": 1,
            "normalise": "percentile",
            "test_fraction": 0.25,
            "val_fraction": 0.25,
            "split_seed": 0,
            "train": {
                "name": "wue1",
                "path": str(shared / "data" / "cfos_multilab.zip"),
                "where": {"lab": ["wue1"]},
                "diameter_px": 15.3,
            },
        },
        "model": {"base_features": 8},
        "training": {
            "steps": 150,
            "batch_size": 8,
            "crop_px": 128,
            "lr": 3e-3,
            "validate_every": 10,
            "batch_norm_batches": 8,
        },
        "configurations": [
            {
                "label": " ".join(f"{name} {weight:g}" for name, weight in zip(TERMS, weights, strict=True)),
                "loss": {"terms": [{**term, "weight": float(w)} for term, w in zip(LOSSES, weights, strict=True)]},
            }
            for weights in chosen
        ],
        "seeds": SEEDS[:n_seeds],
        "resources": {"checkpoints_gb": 0.5},
    }
    study = Study.model_validate_json(json.dumps(values))
    ledger = Ledger(storage, study.name)
    records = run_sweep(study, Sets.open(study.data), ledger, cluster=connect)
    rows = []
    for record in records:
        weights = {term.title: term.weight for term in record.settings.loss.terms}
        history = ledger.table(record.key, "history")["val_dice"].dropna() if record.epochs else []
        rows.append(
            {
                **{name: weights[name] for name in TERMS},
                "seed": record.seed,
                "outcome": record.outcome,
                "val_f1": record.score("f1_iou", "val"),
                "test_f1": record.score("f1_iou", "test"),
                "seconds": round(record.seconds.total, 1),
                **{f"dice_{k}": round(dice, 5) for k, dice in enumerate(history, start=1)},
            }
        )
    pd.DataFrame(rows).sort_values([*TERMS, "seed"]).to_csv(table, index=False, float_format="%.6g")
    print(f"{len(rows)} trials: {table}")


@dataclass(frozen=True)
class Truth:
    """How good the mixtures are."""

    means: Floats
    """Mean F1 over the seeds, shape (n,)."""
    noise: float
    """Standard error of the difference of two of these."""

    @classmethod
    def of(cls, scores: Floats) -> Truth:
        """From the F1 of each seed, shape (n, seeds)."""
        between_seeds = float(np.sqrt(scores.var(axis=1, ddof=1).mean()))
        return cls(scores.mean(axis=1), between_seeds * float(np.sqrt(2 / scores.shape[1])))

    @property
    def loss(self) -> Floats:
        """By how much each is worse than the best."""
        return self.means.max() - self.means

    @property
    def good(self) -> np.ndarray:
        """Which are within the noise of the best."""
        return self.loss <= self.noise


@dataclass(frozen=True)
class Table:
    """The trained mixtures."""

    weights: Floats
    """Shape (n, 3)."""
    seen: Floats
    """What a search sees: validation F1, 0 of a lost trial; shape (n, seeds)."""
    truths: dict[str, Truth]
    """By the images: `val` and `test`."""

    @classmethod
    def read(cls, file: Path) -> Table:
        """From the table of trials; a mixture that lacks a seed is an error."""
        rows = pd.read_csv(file)
        scores = rows[["val_f1", "test_f1"]].where(rows.outcome == "finished", 0.0).fillna(0.0)
        whole = pd.concat([rows[[*TERMS, "seed"]].round(6), scores], axis=1).set_index([*TERMS, "seed"])
        val, test = (whole[name].unstack("seed") for name in scores)
        if val.isna().any(axis=None):
            raise SystemExit(f"{file}: a mixture lacks a seed; run `train` to its end")
        return cls.of(np.array(val.index.to_list(), dtype=float), val.to_numpy(), test.to_numpy())

    @classmethod
    def drawn(cls, noise: float = 0.02) -> Table:
        """A hill with its top at weights of 0.2, 0.3 and 0.5, and noise that every seed draws anew."""
        weights, rng = simplex_grid(STEPS), np.random.default_rng(0)
        hill = 0.85 - 0.4 * ((weights - [0.2, 0.3, 0.5]) ** 2).sum(axis=1)
        val, test = hill[:, None] + rng.normal(0, noise, (2, len(weights), len(SEEDS)))
        return cls.of(weights, val, test)

    @classmethod
    def of(cls, weights: Floats, val: Floats, test: Floats) -> Table:
        """With the truth on both kinds of images."""
        return cls(weights, val, {"val": Truth.of(val), "test": Truth.of(test)})

    def nearest(self, weights: Floats, open_ones: np.ndarray) -> int:
        """The mixture nearest to some weights among those that are open."""
        distance = ((self.weights - weights) ** 2).sum(axis=1)
        return int(np.argmin(np.where(open_ones, distance, np.inf)))


@dataclass
class Known:
    """What one search has seen so far."""

    table: Table
    order: np.ndarray
    """In which order each mixture's seeds come, shape (n, seeds)."""
    count: np.ndarray = field(init=False)
    total: Floats = field(init=False)
    trials: list[tuple[int, float]] = field(default_factory=list)
    """Mixture and value, in the order of time."""

    def __post_init__(self) -> None:
        self.count = np.zeros(len(self.order), dtype=int)
        self.total = np.zeros(len(self.order))

    def look(self, mixture: int) -> float:
        """One more seed of a mixture."""
        value = float(self.table.seen[mixture, self.order[mixture, self.count[mixture]]])
        self.count[mixture] += 1
        self.total[mixture] += value
        self.trials.append((mixture, value))
        return value

    @property
    def open_ones(self) -> np.ndarray:
        """Mixtures with a seed that wasn't seen yet."""
        return self.count < self.order.shape[1]

    @property
    def mean(self) -> Floats:
        """Of each mixture, NaN where none was seen."""
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)

    def leader(self) -> int:
        """The mixture whose mean less a standard error is highest; of equal counts, whose mean is."""
        squares = np.zeros(len(self.count))
        np.add.at(squares, [m for m, _ in self.trials], [v**2 for _, v in self.trials])
        spare = int(np.maximum(self.count - 1, 0).sum())
        within = (squares - self.count * np.nan_to_num(self.mean) ** 2)[self.count > 1].sum()
        sd = np.sqrt(max(within, 0.0) / spare) if spare else 0.0
        return int(np.nanargmax(self.mean - sd / np.sqrt(np.maximum(self.count, 1))))

    def surface(self) -> Floats | None:
        """The quadratic surface of what was seen, at every mixture; None while it isn't determined."""
        seen = self.count > 0
        terms = mixture_terms(self.table.weights)
        if seen.sum() <= N_TERMS or np.linalg.matrix_rank(terms[seen]) < N_TERMS:
            return None
        scale = np.sqrt(self.count[seen])
        coefficients = np.linalg.lstsq(terms[seen] * scale[:, None], self.mean[seen] * scale, rcond=None)[0]
        return terms @ coefficients

    def top(self) -> int:
        """Where the surface is highest; the leader while there is none."""
        surface = self.surface()
        return self.leader() if surface is None else int(np.argmax(surface))


Next = Callable[[Known], int]
"""The mixture that a search looks at next; it must be open."""


def at_random(rng: np.random.Generator) -> Next:
    """Uniform on the simplex."""
    return lambda known: known.table.nearest(np.array(STICK.weights(rng.random(2))), known.open_ones)


def evenly(rng: np.random.Generator) -> Next:
    """Sobol's points on the simplex, scrambled."""
    points = iter(qmc.Sobol(2, rng=rng).random(128))  # a power of 2, as it wants, and more than the budget
    return lambda known: known.table.nearest(np.array(STICK.weights(next(points))), known.open_ones)


def up_the_surface(rng: np.random.Generator) -> Next:
    """Evenly at first, then by turns where the quadratic surface is highest and evenly."""
    spread = evenly(rng)

    def ask(known: Known) -> int:
        n = len(known.trials)
        if n < FIRST or n // 2 % 2:
            return spread(known)
        return known.table.nearest(known.table.weights[known.top()], known.open_ones)

    return ask


def by_optuna(make: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[[np.random.Generator], Next]:
    """One of Optuna's samplers, asked as cellray asks it: fresh for each suggestion, over how the stick is broken."""

    def start(rng: np.random.Generator) -> Next:
        kinds = {name: optuna.distributions.FloatDistribution(0, 1) for name in STICK.cuts()}

        def ask(known: Known) -> int:
            study = optuna.create_study(direction="maximize", sampler=make(int(rng.integers(2**31))))
            for mixture, value in known.trials:
                cuts = STICK.cut(known.table.weights[mixture])
                params = dict(zip(kinds, cuts or [], strict=True))
                study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=value))
            asked = study.ask(kinds)
            weights = STICK.weights([asked.params[name] for name in kinds])
            return known.table.nearest(np.array(weights), known.open_ones)

        return ask

    return start


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    """As `cellray.search` has it."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST, multivariate=True, group=True)


def gp(seed: int) -> optuna.samplers.BaseSampler:
    """As `cellray.search` has it."""
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=FIRST)


@dataclass(frozen=True)
class Search:
    """How it asks, and what it chooses."""

    start: Callable[[np.random.Generator], Next]
    by_surface: bool = False
    slower: int = 1
    """Replayed so many times less often."""


SEARCHES = {
    "random": Search(at_random),
    "random, chosen by surface": Search(at_random, by_surface=True),
    "tpe": Search(by_optuna(tpe), slower=20),
    "gp": Search(by_optuna(gp), slower=200),
    "even": Search(evenly),
    "even, chosen by surface": Search(evenly, by_surface=True),
    "up the surface": Search(up_the_surface, by_surface=True),
}


def replay(table: Table, search: Search, races: bool, seed: int) -> list[int]:
    """What one search would choose after each trial."""
    rng = np.random.default_rng(seed)
    known = Known(table, rng.permuted(np.tile(np.arange(table.seen.shape[1]), (len(table.weights), 1)), axis=1))
    ask = search.start(rng)
    choices: list[int] = []
    for n in range(BUDGET):
        again = races and n >= FIRST and n % 2 and known.open_ones[choices[-1]]
        known.look(choices[-1] if again else ask(known))
        choices.append(known.top() if search.by_surface else known.leader())
    return choices


def settled(found: np.ndarray) -> np.ndarray:
    """The trial from which on the choice was good to the end; one more than there were if the last was not.

    Args:
        found: Whether it was good after each trial, shape (replays, trials).
    """
    return found.shape[1] + 1 - np.logical_and.accumulate(found[:, ::-1], axis=1).sum(axis=1)


def replay_all(table: Table, replays: int) -> pd.DataFrame:
    """A row a search, with and without seeds for the leaders."""
    rows = []
    for name, search in SEARCHES.items():
        for races in (False, True):
            n = max(replays // search.slower, 10)
            choices = np.array([replay(table, search, races, seed) for seed in range(n)])
            row: dict[str, object] = {"search": name + (", seeds for leaders" if races else ""), "replays": n}
            for images, truth in table.truths.items():
                last = settled(truth.good[choices])
                row |= {f"{images}: median": np.median(last), f"{images}: 90 %": np.quantile(last, 0.9)}
                lost = truth.loss[choices]
                row |= {f"{images}: loses after {k}": f"{lost[:, k - 1].mean():.3f}" for k in (12, 24, BUDGET)}
            print(" | ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> int:
    """Train or replay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "replay"))
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--storage", help="of the sweep")
    parser.add_argument("--labels", type=int, help="so many mixtures only")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="so many seeds only")
    parser.add_argument("--drawn", action="store_true", help="replay on a known surface")
    parser.add_argument("--replays", type=int, default=2000)
    given = parser.parse_args()
    print(gauge())
    if given.what == "train":
        if given.storage is None:
            parser.error("train needs --storage")
        train(given.storage, given.table, given.labels, given.seeds)
        return 0
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    table = Table.drawn() if given.drawn else Table.read(given.table)
    for images, truth in table.truths.items():
        best = int(np.argmax(truth.means))
        at = " ".join(f"{weight:g}" for weight in table.weights[best])
        print(
            f"{len(table.weights)} mixtures x {table.seen.shape[1]} seeds, {images} images: "
            f"best {truth.means[best]:.3f} at {at}; spread of the means {truth.means.std():.3f}; "
            f"{int(truth.good.sum())} within the noise of the best, {truth.noise:.3f}"
        )
    found = replay_all(table, given.replays).set_index("search")
    for images in table.truths:
        medians = found[f"{images}: median"]
        print(
            f"{images} images: half of random search's median is {medians['random'] / 2:g} trials; {medians.idxmin()} "
            f"needs {medians.min():g}"
        )
    return 0 if medians.min() <= medians["random"] / 2 else 1


if __name__ == "__main__":
    sys.exit(main())

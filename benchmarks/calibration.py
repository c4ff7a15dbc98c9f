"""How often is the report's answer wrong, and how often has it one? Simulated studies whose truth is known.

Each study has 12 configurations whose means, spreads over seeds, collapses and images are like those of studies of real
images, or as hard on the method as they can be. A score is a mean over images of what each adds; images have as many
cells as they like, so some weigh much more than others, and the configurations' luck with a seed is correlated.

Then the same studies with seeds where they decide (`search.rules.look_at`), against as many seeds for all; and with
predictions made elsewhere, which have no seeds.

Run: python benchmarks/calibration.py [studies for each scenario]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cellray.search.rules import alpha_of, look_at, looks
from cellray.statistics import (
    ALPHA,
    LEAST_SEEDS,
    SEED_LOOKS,
    Bootstrap,
    crossed_mean,
    difference_from,
    find_best,
    holm,
    moments,
    winner,
)

K = 12
SMALL = (
    (0.846, 0.834, 0.822, 0.819, 0.815, 0.814, 0.811, 0.807, 0.789, 0.783, 0.706, 0.574),
    (0.006, 0.009, 0.022, 0.016, 0.017, 0.011, 0.012, 0.015, 0.019, 0.043, 0.079, 0.135),
)
"""Means and SDs over seeds of F1 in docs/results/real_small.md."""
RARE = (
    (0.776, 0.760, 0.750, 0.726, 0.685, 0.657, 0.602, 0.546, 0.497, 0.492, 0.318, 0.093),
    (0.015, 0.021, 0.028, 0.044, 0.064, 0.069, 0.184, 0.108, 0.165, 0.284, 0.296, 0.157),
)
"""Of docs/results/real_rare.md, before its rates were mended."""
TUNED = (
    (0.773, 0.759, 0.757, 0.751, 0.749, 0.746, 0.739, 0.720, 0.711, 0.701, 0.699, 0.599),
    (0.041, 0.023, 0.093, 0.075, 0.038, 0.031, 0.037, 0.025, 0.080, 0.019, 0.059, 0.090),
)
"""Of the same, since."""


@dataclass(frozen=True)
class Scenario:
    """Truths in units of the score."""

    name: str
    mean: tuple[float, ...] = (0.8,) * K
    sd: tuple[float, ...] = (0.02,) * K
    """Over seeds, of a run's score on the test images."""
    n_seeds: int = 5
    n_images: int = 70
    image: float = 0.04
    """SD of what one image adds to one configuration, beyond what it adds to all."""
    rest: float = 0.045
    """SD of one image with one configuration and seed beyond that."""
    correlation: float = 0.3
    """Of two configurations with the same seed."""
    collapse: tuple[float, ...] = (0.0,) * K
    """Probability that a run collapses."""
    fails: bool = False
    """A named failure: shown, and not asked to hold."""


EVEN = tuple(float(sd) for sd in np.geomspace(0.003, 0.3, K))
TWO = (0.85, 0.85, *(0.7,) * 10)
SCENARIOS = (
    *(Scenario(f"like real_small, {n} seeds", *SMALL, n_seeds=n) for n in (3, 5, 10)),
    *(Scenario(f"like real_rare, {n} seeds, 8 images", *RARE, n_seeds=n, n_images=8, rest=0.03) for n in (3, 5, 10)),
    Scenario("like real_rare, 5 seeds, 70 images", *RARE),
    Scenario("two best alike, ten far behind", TWO),
    Scenario("five best alike with the spreads of real_small", (0.82,) * 5 + SMALL[0][5:], SMALL[1]),
    Scenario(
        "five best alike with the spreads of real_rare", (0.75,) * 5 + RARE[0][5:], RARE[1], n_images=8, rest=0.03
    ),
    Scenario("two best alike, seeds hardly matter", TWO, sd=(0.006,) * K),
    Scenario("two best alike, 8 images", TWO, n_images=8),
    Scenario("a wide best one", (0.85, *(0.8,) * 11), (0.15, *(0.01,) * 11)),
    Scenario("two best alike, one of them wide", (0.85, 0.85, *(0.7,) * 10), (0.1, *(0.01,) * 11)),
    Scenario("like real_small, one run in ten collapses", *SMALL, collapse=(0.1,) * K),
    Scenario("all alike", fails=True),
    Scenario("all alike but for their spreads", sd=EVEN, fails=True),
    Scenario("all alike but for their collapses", collapse=tuple(float(c) for c in np.linspace(0, 0.4, K)), fails=True),
)
"""Where all are alike the best isn't one but twelve: each may be lost, the set as a whole loses someone more often."""


def draw(scenario: Scenario, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What each image adds to each run (k, n_seeds, n_images), NaN where it collapsed; the truth on these images."""
    s = scenario
    sd, mean = np.array(s.sd), np.array(s.mean)
    weight = np.sqrt(rng.gamma(2.0, 0.5, s.n_images))  # its square has a mean of 1
    of_seed = np.sqrt(np.maximum(sd**2 - s.rest**2 / s.n_images, sd**2 / 4))
    luck = np.sqrt(s.correlation) * rng.standard_normal((1, s.n_seeds)) + np.sqrt(
        1 - s.correlation
    ) * rng.standard_normal((K, s.n_seeds))
    own = mean[:, None] + s.image * weight * rng.standard_normal((K, s.n_images))
    values = own[:, None] + (of_seed[:, None] * luck)[..., None] + 0.15 * weight * rng.standard_normal(s.n_images)
    values = values + s.rest * weight * rng.standard_normal(values.shape)
    values[rng.random(values.shape[:2]) < np.array(s.collapse)[:, None]] = np.nan
    return values, own.mean(1)


def judge(scenario: Scenario, values: np.ndarray, here: np.ndarray) -> dict[str, float]:
    """What one study says, and what of it is false."""
    true = np.array(scenario.mean)
    best = np.flatnonzero(true == true.max())
    has = ~np.isnan(values).any(2)
    bootstrap = Bootstrap(moments(values))
    said, said_here = (bootstrap.statement(new_images=new, preferred=has.all(1)) for new in (True, False))
    assert said is not None and said_here is not None
    named = winner(values)
    possible = said.may_be_best if named is None else np.arange(K) == named
    missed = (~possible & (has.sum(1) >= LEAST_SEEDS))[best]
    better = np.argwhere(bootstrap.pair_p() < ALPHA)
    gap = true[better[:, 0]] - true[better[:, 1]] if len(better) else np.zeros(0)
    n_true = (true[:, None] > true).sum()
    before = as_before(values, true)
    short = true.max() - true[said.take]
    loss = said.loss if named is None else 0.0 if named == said.take else said.loss
    losses = np.where(np.isnan(said.losses), np.inf, said.losses)
    return {
        "a best one is missed": float(missed.mean()),
        "someone of them is": float(missed.any()),
        "bound is wrong": float(short > loss + 1e-12),
        "any bound is wrong": float((true.max() - true > losses + 1e-12).any()),
        "on this test set: missed": float(not said_here.may_be_best[here.argmax()]),
        "on this test set: bound": float(here.max() - here[said_here.take] > said_here.loss),
        "a false pair": float((gap <= 0).any()),
        "named one": float(possible.sum() == 1),
        "may be best": float(possible.sum()),
        "within .05": float(loss <= 0.05),
        "within .02": float(loss <= 0.02),
        "loses": float(short),
        "pairs": float((gap > 0).sum() / n_true) if n_true else 0.0,
        **before,
    }


def as_before(values: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """What the rule before this one said: Holm over all pairs; the best is ruled out by one-sided p / (k - 1)."""
    counted = np.nan_to_num(values)  # a collapse counts as the worst value
    order = np.argsort(-counted.mean((1, 2)), kind="stable")
    a, b = (order[i] for i in np.triu_indices(K, 1))
    lead = crossed_mean(counted[a] - counted[b])
    first = crossed_mean(counted[order[0]] - counted[order[1:]])
    worst = first.mean - first.critical(2 * ALPHA / (K - 1)) * first.se
    return {
        "before: may be best": float(K - len(set(b[lead.p / 2 * (K - 1) < ALPHA]))),
        "before: within .05": float(-worst.min() <= 0.05),
        "before: within .02": float(-worst.min() <= 0.02),
        "before: pairs": float((holm(lead.p) < ALPHA)[true[a] != true[b]].mean()) if np.ptp(true) else 0.0,
    }


def one_study(i: int, scenario: Scenario) -> dict[str, float]:
    """Study number i of a scenario."""
    return judge(scenario, *draw(scenario, np.random.default_rng([7, i])))


def run(pool: Executor, scenario: Scenario, n: int) -> Mapping[str, float]:
    """Means over simulated studies."""
    rows = list(pool.map(partial(one_study, scenario=scenario), range(n), chunksize=10))
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


SEQUENTIAL = (
    ("like real_small", Scenario("", *SMALL), 0.02),
    ("like real_small", Scenario("", *SMALL), 0.05),
    ("like real_rare, 70 images", Scenario("", *RARE), 0.02),
    ("like real_rare, 70 images", Scenario("", *RARE), 0.05),
    ("like real_rare, 8 images", Scenario("", *RARE, n_images=8, rest=0.03), 0.05),
    ("like real_rare tuned, 8 images", Scenario("", *TUNED, n_images=8, rest=0.03), 0.05),
    ("like real_rare tuned, 30 images", Scenario("", *TUNED, n_images=30, rest=0.03), 0.05),
    ("a wide best one", Scenario("", (0.85, *(0.8,) * 11), (0.15, *(0.01,) * 11)), 0.05),
    ("one best by just more than the margin", Scenario("", (0.821, *(0.8,) * 11)), 0.02),
    ("the same, 8 images", Scenario("", (0.821, *(0.8,) * 11), n_images=8), 0.02),
    ("two best by just more than the margin, 8 images", Scenario("", (0.821, 0.821, *(0.8,) * 10), n_images=8), 0.02),
)
"""Scenarios and margins."""


def decide(i: int, scenario: Scenario, margin: float) -> dict[str, float]:
    """One study that is given seeds where they decide, without a budget; and with as many for all."""
    values, _ = draw(replace(scenario, n_seeds=SEED_LOOKS[-1]), np.random.default_rng([11, i]))
    short = max(scenario.mean) - np.array(scenario.mean)
    counts, planned = [SEED_LOOKS[0]] * K, looks(SEED_LOOKS[0], K, None)
    while True:
        seen = values.copy()
        for mine, count in zip(seen, counts, strict=True):
            mine[count:] = np.nan
        look = look_at(seen, counts, planned, lambda score: margin)
        if not look.needs:
            break
        counts = [look.n_seeds if j in look.needs else count for j, count in enumerate(counts)]
    assert look.said is not None
    is_decided = look.said.loss <= margin
    found = {
        "runs": float(sum(counts)),
        "decided": float(is_decided),
        "wrong": float(is_decided and short[look.said.take] > margin),
        "images lacking": float("images" in look.note),
        "though seeds would do": 0.0,
    }
    if found["images lacking"]:
        most = find_best(values, alpha=alpha_of(len(planned) - 1, len(planned)))
        found["though seeds would do"] = float(most is not None and most.loss <= margin)
    for n in (5, 10, 20):
        said = find_best(values[:, :n])
        found[f"{n} seeds for all"] = float(said is not None and said.loss <= margin)
    return found


REFERENCES = (
    ("six alike, and the reference, 20 images", Scenario("", n_images=20), 6, 0.8),
    ("six alike, and the reference, 3 seeds, 8 images", Scenario("", n_seeds=3, n_images=8), 6, 0.8),
    ("like real_small, a reference below the best", Scenario("", *SMALL), K - 1, 0.83),
    ("like real_rare tuned, 8 images, experts", Scenario("", *TUNED, n_images=8, rest=0.03), K - 1, 0.785),
)
"""Scenarios, how many of their configurations there are, and the true score of predictions made elsewhere."""


def against(i: int, scenario: Scenario, k: int, score: float) -> dict[str, float]:
    """One study with predictions made elsewhere: what it says of these, and of the configuration that it recommends."""
    with_it = replace(scenario, mean=(*scenario.mean[:-1], score), sd=(*scenario.sd[:-1], 0.0))
    values, _ = draw(with_it, np.random.default_rng([13, i]))
    trials, fixed = values[:k], values[-1, 0]  # what it is doesn't depend on seeds
    said = find_best(trials)
    take = int(trials.mean((1, 2)).argmax()) if said is None else said.take
    true = scenario.mean[take] - score
    found = difference_from(trials[take], fixed, n_chosen_from=k)
    low, high = crossed_mean(fixed[None]).interval()
    return {
        "its score missed": float(not low <= score <= high),
        "the difference missed": float(not found.low <= true <= found.high),
        "wrongly better or worse": float(found.low > 0 >= true or found.high < 0 <= true),
        "better or worse": float(found.low > 0 or found.high < 0),
    }


def main() -> int:
    """Print every scenario; exit code 1 if a best one is missed, or a bound wrong, in more than 6 % of the studies."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    missed = []
    print(f"{n} studies of {K} configurations a scenario; shares in %, counts and losses as they are")
    with ProcessPoolExecutor() as pool:
        for scenario in SCENARIOS:
            start = time.perf_counter()
            found = run(pool, scenario, n)
            print(f"\n{scenario.name} ({time.perf_counter() - start:.0f} s)")
            for key, value in found.items():
                shown = (
                    f"{value:8.3f}"
                    if key in ("may be best", "loses", "before: may be best")
                    else f"{100 * value:6.1f} %"
                )
                print(f"  {key:28s} {shown}", flush=True)
            if not scenario.fails and max(found["a best one is missed"], found["bound is wrong"]) > 0.06:
                missed.append(scenario.name)
        print(f"\nSeeds where they decide, {n // 5} studies each")
        for name, scenario, margin in SEQUENTIAL:
            rows = list(pool.map(partial(decide, scenario=scenario, margin=margin), range(n // 5)))
            means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            words = [f"{key} {v:.0f}" if key == "runs" else f"{key} {100 * v:.0f} %" for key, v in means.items()]
            print(f"  {name}, within {margin}: {', '.join(words)}", flush=True)
            if means["wrong"] > 0.06:
                missed.append(name)
        print(f"\nPredictions made elsewhere, {n} studies each")
        for name, scenario, k, score in REFERENCES:
            rows = list(pool.map(partial(against, scenario=scenario, k=k, score=score), range(n), chunksize=10))
            means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            print(f"  {name}: {', '.join(f'{key} {100 * v:.1f} %' for key, v in means.items())}", flush=True)
            if means["wrongly better or worse"] > 0.06:
                missed.append(name)
    print("\nmissed the bar: " + (", ".join(missed) or "none"))
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())

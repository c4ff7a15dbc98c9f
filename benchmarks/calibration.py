"""Do the report's intervals hold, and does it ever name a false winner? Simulated studies whose truth is known.

Each study has 12 configurations, 5 seeds and 70 images. Cells an image follow FNC yellow (mean 7.9, median 4, a sixth
of the images empty); found and spurious cells are drawn with effects of the seed, the image, the configuration on the
image and all together, as large as those seen in studies of real images. Each trial's micro-averaged F1 then goes the
way of the report: jackknife, crossed means, paired tests, ranks.

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

from cellray.metrics import metrics_of
from cellray.statistics import (
    contenders,
    contributions,
    crossed_mean,
    mean_median,
    paired_tests,
    rank_table,
    resampled_means,
)
from cellray.statistics.pairs import holm, superiority, wilcoxon

N_CONFIGURATIONS, N_SEEDS, N_IMAGES = 12, 5, 70
LABELS = [f"c{i:02d}" for i in range(N_CONFIGURATIONS)]
MEAN_CELLS, DISPERSION = 7.9, 0.8


@dataclass(frozen=True)
class Scenario:
    """Sizes of the effects, in logits of the recall; one that applies to the configurations alike unless it says."""

    name: str
    skill: tuple[float, ...] = (0.0,) * N_CONFIGURATIONS
    """Of each configuration."""
    seed: float = 0.12
    """Of a configuration's seed; 0.12 makes an SD of some 0.02 of F1."""
    image: float = 0.8
    image_configuration: float = 0.35
    rest: float = 0.4
    collapse: float = 0.0
    """Probability that a trial predicts nothing."""


SCENARIOS = (
    Scenario("all alike"),
    Scenario("all alike, seeds hardly matter", seed=0.02),
    Scenario("all alike, seeds matter most", seed=0.4),
    Scenario("all alike, one trial in ten collapses", collapse=0.1),
    Scenario("two best alike, ten far behind", skill=(1.0, 1.0) + (-0.5,) * 10),
    Scenario("two best alike, seeds hardly matter", skill=(1.0, 1.0) + (-0.5,) * 10, seed=0.02),
)


def draw(scenario: Scenario, rng: np.random.Generator, n_seeds: int, n_images: int) -> np.ndarray:
    """TP, FP and FN of each configuration, seed and image; shape (3, 12, n_seeds, n_images)."""
    shape = (N_CONFIGURATIONS, n_seeds, n_images)
    n_true = rng.negative_binomial(DISPERSION, DISPERSION / (DISPERSION + MEAN_CELLS), n_images)
    common = 0.5 * scenario.seed * rng.standard_normal((1, n_seeds, 1))  # paired seeds share a part
    logit = 1.0 + np.array(scenario.skill)[:, None, None] + common
    logit = logit + scenario.seed * rng.standard_normal((N_CONFIGURATIONS, n_seeds, 1))
    logit = logit + scenario.image * rng.standard_normal((1, 1, n_images))
    logit = logit + scenario.image_configuration * rng.standard_normal((N_CONFIGURATIONS, 1, n_images))
    logit = logit + scenario.rest * rng.standard_normal(shape)
    tp = rng.binomial(n_true, 1 / (1 + np.exp(-logit)))
    fp = rng.poisson(0.2 * (n_true + 1) * np.exp(-0.5 * (logit - 1)))
    if scenario.collapse:
        lost = rng.random((N_CONFIGURATIONS, n_seeds, 1)) < scenario.collapse
        tp, fp = np.where(lost, 0, tp), np.where(lost, 0, fp)
    return np.stack([tp, fp, n_true - tp])


@dataclass(frozen=True)
class Truth:
    """What endless seeds and images would show of each configuration; alike ones share it exactly."""

    f1: np.ndarray
    """Mean over seeds of the micro-averaged F1."""
    medae: np.ndarray
    """Mean over seeds of the median over images of |true - predicted count|."""


def truth(scenario: Scenario) -> Truth:
    """By drawing 1,200 seeds and 120,000 images."""
    rng = np.random.default_rng(99)
    f1, medae = [], []
    for _ in range(60):
        counts = draw(scenario, rng, 20, 2000)
        tp, fp, fn = counts.sum(-1)
        f1.append((2 * tp / (2 * tp + fp + fn)).mean(-1))
        medae.append(np.median(np.abs(counts[2] - counts[1]), axis=-1).mean(-1))
    skill = np.array(scenario.skill)

    def shared(values: list[np.ndarray]) -> np.ndarray:
        means = np.mean(values, axis=0)
        return np.array([means[skill == s].mean() for s in skill])

    return Truth(shared(f1), shared(medae))


def scores(counts: np.ndarray) -> np.ndarray:
    """What each image adds to each trial's F1; shape (12, n_seeds, n_images)."""
    units = np.arange(counts.shape[-1])
    values = np.empty(counts.shape[1:])
    for c, s in np.ndindex(*values.shape[:2]):
        tp, fp, fn = counts[:, c, s].astype(float)
        terms = {"tp_iou": tp, "fp_iou": fp, "fn_iou": fn, "f1_iou_image": tp, "n_images": np.ones_like(tp)}
        values[c, s] = contributions(terms, units, metrics_of)["f1_iou"]
    return values


def judge(counts: np.ndarray, known: Truth, rng_seed: int, *, bootstrap: bool) -> dict[str, float]:
    """What one study claims, and what of it is false."""
    values, true = scores(counts), known.f1
    pairs = paired_tests(values, LABELS, detail=False)
    a, b = (np.array([LABELS.index(label) for label in pairs[side]]) for side in ("a", "b"))
    gap = true[a] - true[b]
    ranks = rank_table(values.mean((1, 2)), values.mean(1), pairs, LABELS)
    named = ranks[(ranks.rank_low == 1) & (ranks.rank_high == 1)].index
    best = np.flatnonzero(np.isclose(true, true.max()))
    middle = crossed_mean(values)
    low, high = middle.interval()
    medians = np.array([mean_median(np.abs(fn - fp)) for _, fp, fn in counts.transpose(1, 0, 2, 3).astype(float)])
    chance = superiority(crossed_mean(values[a] - values[b]))[:, gap == 0]
    possible = contenders(pairs, LABELS)
    found = {
        "winner": float(len(named) > 0),
        "false winner": float(any(len(best) > 1 or i not in best for i in named)),
        "false pair": float((pairs.decided & (gap <= 0)).any()),
        "pairs decided": float(pairs.decided.mean()),
        "coverage of a difference": float(((pairs.low <= gap) & (gap <= pairs.high)).mean()),
        "coverage of a mean": float(((low <= true) & (true <= high)).mean()),
        "coverage of a median": float(((medians[:, 1] <= known.medae) & (known.medae <= medians[:, 2])).mean()),
        "the best (each of equals) ruled out": float(np.mean([LABELS[i] not in possible for i in best])),
        "still contenders": len(possible) / len(LABELS),
        "rank interval holds": float(covers(ranks, true)),
    }
    if chance.size:
        found["coverage of P(A > B) = 0.5"] = float(((chance[1] <= 0.5) & (chance[2] >= 0.5)).mean())
    if bootstrap:
        drawn = resampled_means(values, n_resamples=1000, seed=rng_seed)
        ends = np.percentile(drawn[:, a] - drawn[:, b], [2.5, 97.5], axis=0)
        found["difference by percentile bootstrap"] = float(((ends[0] <= gap) & (gap <= ends[1])).mean())
        p = np.array([wilcoxon((values[i] - values[j]).mean(0)) for i, j in zip(a, b, strict=True)])
        found["false pair by Wilcoxon"] = float(((holm(p) < 0.05) & (gap <= 0)).any())
    return found


def covers(ranks: object, true: np.ndarray) -> bool:
    """Whether every interval holds a rank that its configuration may have, ties in any order."""
    better = np.array([(true > t + 1e-12).sum() for t in true])
    alike = np.array([np.isclose(true, t).sum() for t in true])
    return bool(((ranks.rank_low <= better + alike) & (ranks.rank_high >= better + 1)).all())  # type: ignore[attr-defined]


def one_study(i: int, scenario: Scenario, known: Truth, bootstrap: bool) -> dict[str, float]:
    """Study number i of a scenario."""
    rng = np.random.default_rng([7, i])
    return judge(draw(scenario, rng, N_SEEDS, N_IMAGES), known, i, bootstrap=bootstrap)


def run(pool: Executor, scenario: Scenario, n: int, *, bootstrap: bool = True) -> Mapping[str, float]:
    """Means over simulated studies."""
    work = partial(one_study, scenario=scenario, known=truth(scenario), bootstrap=bootstrap)
    rows = list(pool.map(work, range(n), chunksize=10))
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def main() -> int:
    """Print every scenario; exit code 1 if a false winner or the coverage of differences misses its bar."""
    with ProcessPoolExecutor() as pool:
        return simulate(pool, int(sys.argv[1]) if len(sys.argv) > 1 else 1000)


def simulate(pool: Executor, n: int) -> int:
    """All scenarios, n studies each."""
    missed = 0
    print(f"{n} studies of {N_CONFIGURATIONS} configurations x {N_SEEDS} seeds x {N_IMAGES} images a scenario")
    for scenario in SCENARIOS:
        start = time.perf_counter()
        found = run(pool, scenario, n)
        print(f"\n{scenario.name} ({time.perf_counter() - start:.0f} s)")
        for key, value in found.items():
            print(f"  {key:38s} {100 * value:6.1f} %")
        missed += found["false winner"] > 0.05 or not 0.93 <= found["coverage of a difference"] <= 0.97
    print("\nPower: one configuration is better than eleven alike by so much F1")
    base = truth(SCENARIOS[0]).f1[0]
    for skill in (0.1, 0.2, 0.3, 0.5, 0.8, 1.2):
        scenario = replace(SCENARIOS[0], skill=(skill,) + (0.0,) * 11)
        found = run(pool, scenario, max(n // 5, 50), bootstrap=False)
        gap = truth(scenario).f1[0] - base
        print(
            f"  {gap:.3f}: named the winner {100 * found['winner']:5.1f} %, "
            f"falsely {100 * found['false winner']:.1f} %, pairs decided {100 * found['pairs decided']:.1f} %"
        )
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())

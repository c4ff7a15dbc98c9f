"""Which difference between two configurations a study can find at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellray.data import Dataset
from cellray.ledger import Ledger
from cellray.metrics import MEDIANS, METRICS
from cellray.samples import read_samples
from cellray.scores import nothing_by_set, worst_values
from cellray.statistics import CrossedMean, crossed_mean, detectable
from cellray.trial import Planned

TYPICAL_SD = {"seed": 0.020, "image": 0.056, "rest": 0.063}
"""Of the difference between two configurations that are trained alike: between seeds, between units of images, and of
both together. The leader's middle pair by F1 in a study of twelve losses on real nuclei (docs/results/real_small.md,
5 seeds x 27 groups of test images; crossed analysis of variance). On few and rare cells seeds differ more: in
docs/results/real_rare.md by 0.064, with a rest of 0.17."""


@dataclass(frozen=True)
class Effect:
    """The smallest true difference of a pair that is found at p < 0.05 with 80 % power."""

    metric: str
    difference: float
    n_seeds: int
    n_units: int
    """Test images, each group of images that belong together counted once."""
    source: str
    """Where the variances come from."""


def smallest_effect(
    ledger: Ledger, plan: Sequence[Planned], metric: str, *, n_seeds: int, n_units: int
) -> Effect | None:
    """What so many seeds and test images can show; None where nothing is known.

    The variances are those of the study's own records where two configurations have two seeds in common, else those of
    `TYPICAL_SD`, which hold for metrics that are shares (from 0 to 1).

    Args:
        ledger: With the records of what is done.
        plan: The study's trials.
        metric: What the study ranks by.
        n_seeds: Of each configuration.
        n_units: Units of the test set.
    """
    if metric in MEDIANS:  # their errors are no sums over images
        return None
    values = _values(ledger, plan, metric)
    if values is not None:
        seen = crossed_mean(values)
        seed = np.maximum(seen.by_seed * seen.n_seeds - seen.rest / seen.n_images, 0)
        image, rest = seen.by_image * seen.n_images, seen.rest
        n_units = seen.n_images
        source = f"variances of the study's own {seen.n_seeds} seeds so far"
    elif METRICS[metric].worst is not None:
        seed, image, rest = (np.array([TYPICAL_SD[name] ** 2]) for name in ("seed", "image", "rest"))
        source = "typical variances, of a study of real nuclei"
    else:
        return None
    by_seed, by_image = (seed + rest / n_units) / n_seeds, image / n_units
    differences = CrossedMean(np.zeros_like(seed), by_seed, by_image, rest, n_seeds, n_units)
    return Effect(metric, detectable(differences), n_seeds, n_units, source)


def n_units(dataset: Dataset, indices: Sequence[int]) -> int:
    """Independent units among some images: groups, and images that belong to none."""
    groups = [dataset.groups[index] for index in indices]
    return len({group for group in groups if group}) + groups.count("")


def _values(ledger: Ledger, plan: Sequence[Planned], metric: str) -> np.ndarray | None:
    """Differences of the leader to each other configuration on the test set, shape (n - 1, n_seeds, n_units).

    A lost trial counts as the worst on every image. None unless two configurations have two seeds in common.
    """
    done = [(p.label, p.seed, p.stored) for p in plan if p.done and p.stored is not None]
    if not done:
        return None
    records = [record for _, _, record in done]
    samples = read_samples(ledger, records, metric=metric)
    worst = worst_values(records, ["test"], nothing_by_set(ledger, records), [metric])["test", metric]
    known: dict[str, dict[int, np.ndarray]] = {}
    units: set[tuple[str, ...]] = set()
    lost: list[tuple[str, int]] = []
    for label, seed, record in done:
        sample = samples.get(record["key"], {}).get(("test", "own"))
        if record["outcome"] != "finished":
            lost.append((label, seed))
        elif sample is not None and metric in sample.values and np.isfinite(sample.values[metric]).all():
            known.setdefault(label, {})[seed] = sample.values[metric]
            units.add(sample.units)
    if len(units) != 1 or not np.isfinite(worst):
        return None
    for label, seed in lost:
        known.setdefault(label, {})[seed] = np.full(len(next(iter(units))), worst)
    several = {label: of for label, of in known.items() if len(of) > 1}
    common = sorted(set.intersection(*(set(of) for of in several.values()))) if several else []
    if len(several) < 2 or len(common) < 2:
        return None
    block = np.array([[of[seed] for seed in common] for of in several.values()])
    sign = 1 if METRICS[metric].higher_is_better else -1
    leader = (sign * block.mean((1, 2))).argmax()
    return block[leader] - np.delete(block, leader, axis=0)

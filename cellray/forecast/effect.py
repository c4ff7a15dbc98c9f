"""Which difference between two configurations a study can find at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellray.data import Dataset
from cellray.ledger import Ledger
from cellray.metrics import MEDIANS, METRICS
from cellray.record import PlannedTrial
from cellray.results import Results, make_block, plan_of
from cellray.scores import POINTS, score_table, worst_values
from cellray.statistics import CrossedMean, detectable
from cellray.study import Study

TYPICAL_SD = {"seed": 0.020, "image": 0.056, "rest": 0.063}
"""Of the difference between two configurations that are trained alike: between seeds, between units of images, and of
both together. The leader's middle pair by F1 in a study of twelve losses on real nuclei (docs/results/real_small.md,
5 seeds x 27 groups of test images; crossed analysis of variance). On few and rare cells seeds differ more: in the
first version of docs/results/real_rare.md by 0.064, with a rest of 0.17."""


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
    ledger: Ledger, study: Study, trials: Sequence[PlannedTrial], *, n_seeds: int, n_units: int
) -> Effect | None:
    """What so many seeds and test images can show; None where nothing is known.

    The variances are those of the study's own records where two configurations have two seeds in common, else those of
    `TYPICAL_SD`, which hold for metrics that are shares (from 0 to 1).

    Args:
        ledger: With the records of what is done.
        study: Whose metric ranks.
        trials: The study's, planned.
        n_seeds: Of each configuration.
        n_units: Units of the test set.
    """
    metric = study.evaluation.rank_by
    if metric in MEDIANS:  # their errors are no sums over images
        return None
    seen = _leader_differences(ledger, study, trials)
    if seen is not None:
        n_units = seen.n_images
        source = f"variances of the study's own {seen.n_seeds} seeds so far"
    elif METRICS[metric].worst is not None:
        seed, image, rest = (np.array([TYPICAL_SD[name] ** 2]) for name in ("seed", "image", "rest"))
        seen = CrossedMean(np.zeros(1), seed + rest, image, rest, 1, 1)
        source = "typical variances, of a study of real nuclei"
    else:
        return None
    return Effect(metric, detectable(seen.resized(n_seeds, n_units)), n_seeds, n_units, source)


def n_units(dataset: Dataset, indices: Sequence[int]) -> int:
    """Independent units among some images: groups, and images that belong to none."""
    groups = [dataset.groups[index] for index in indices]
    return len({group for group in groups if group}) + groups.count("")


def _leader_differences(ledger: Ledger, study: Study, trials: Sequence[PlannedTrial]) -> CrossedMean | None:
    """The leader less each other configuration on the test set, by what is done; None if no two have two seeds in
    common."""
    done = [trial for trial in trials if trial.done]
    metric = study.evaluation.rank_by
    results = Results(ledger, plan_of(study, done), [t.record for t in done if t.record is not None], metric=metric)
    worst = worst_values(results.records.values(), ["test"], results.nothing, [metric])
    scores = score_table(results.plan.trials, results.records, ["test"], [metric], worst, points=POINTS[:1])
    n_seeds = Counter(trial.label for trial in done)
    several = [label for label in results.plan.labels if n_seeds[label] > 1]
    if len(several) < 2:
        return None
    block = make_block(scores, results.samples, several, sorted({trial.seed for trial in done}))
    seen = block.leader_differences(range(len(several)))
    return seen if seen is not None and seen.n_seeds > 1 else None

"""Trials as an array: what each image adds to each trial's score, lost trials among them.

This is the one place where samples and lost trials are put together; reports, plans and races compare what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellray.metrics import MEDIANS
from cellray.results.samples import Samples
from cellray.scores import sign_of
from cellray.statistics import CrossedMean, crossed_mean


@dataclass(frozen=True)
class Block:
    """One set, operating point and metric: the trials of some configurations, higher is better."""

    values: np.ndarray
    """Shape (n_configurations, n_seeds, n_units); NaN throughout where a trial is missing. The units are images, or
    groups of images that belong together, or one only, the trial's score, where trials can't be compared image by
    image."""
    is_median: bool
    """Whether a trial's score is the median over its units, not their mean."""

    def leader_differences(self, chosen: Sequence[int]) -> CrossedMean | None:
        """The leader among some configurations less each other one, over the seeds that all of these have.

        None for a median, and where fewer than two configurations, or one seed and unit only, are left.
        """
        values = self.values[list(chosen)]
        values = values[:, ~np.isnan(values).any((0, 2))]
        if self.is_median or len(values) < 2 or values.shape[1] == 0 or values.shape[1] * values.shape[2] < 2:
            return None
        leader = int(values.mean((1, 2)).argmax())
        return crossed_mean(values[leader] - np.delete(values, leader, axis=0))


def make_block(
    scores: pd.DataFrame,
    samples: Samples,
    labels: Sequence[str],
    seeds: Sequence[int],
    *,
    skip_collapsed: bool = False,
) -> Block:
    """The trials of one set, operating point and metric.

    A lost trial counts on every unit as the worst value, as in the ranking; so does a value that is not a number. A
    signed error is ranked by its size: the units of a trial whose error is negative are turned.

    Args:
        scores: Rows of `scores.score_table` of one set, point and metric.
        samples: Of these trials.
        labels: Configurations wanted, in the order of the first axis; those that were stopped early aren't compared.
        seeds: In the order of the second axis.
        skip_collapsed: The quirk of that name: lost trials are missing.
    """
    name, point, metric = (str(scores[column].iloc[0]) for column in ("set", "point", "metric"))
    is_median, sign = metric in MEDIANS, sign_of(metric)
    place, order = {label: i for i, label in enumerate(labels)}, {seed: i for i, seed in enumerate(seeds)}
    columns = ("label", "seed", "key", "outcome", "value", "counted", "note")
    rows = list(zip(*(scores[column].tolist() for column in columns), strict=True))  # thousands of blocks: no pandas
    left_out = {label for label, _, _, outcome, *_ in rows if outcome == "stopped"} | set(scores.label) - set(labels)
    trials: dict[tuple[int, int], float] = {}
    by_unit: dict[tuple[int, int], np.ndarray] = {}
    units: set[tuple[str, ...] | None] = set()
    for label, seed, key, _, value, score, note in rows:
        if label in left_out or math.isnan(score) or (skip_collapsed and note):
            continue
        where = place[label], order[seed]
        trials[where] = score
        if note:
            continue
        sample = samples.get(key, {}).get((name, point))
        found = None if sample is None else (sample.images if is_median else sample.values).get(metric)
        units.add(None if sample is None or found is None else sample.units)
        if found is not None:
            by_unit[where] = -found if value < 0 < score else found
    # they can be compared unit by unit if every trial that isn't lost has the same ones
    alike = len(units) == 1 and None not in units
    values = np.full((len(labels), len(seeds), len(next(iter(by_unit.values()))) if alike else 1), np.nan)
    for where, score in trials.items():
        values[where] = sign * (by_unit.get(where, score) if alike else score)
    return Block(values, is_median and alike)


def ended_runs(
    scores: pd.DataFrame, samples: Samples, labels: Sequence[str], seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The runs that ended, for `statistics.best`: others are missing.

    Args:
        scores, samples, labels, seeds: As for `make_block`.

    Returns:
        Shape (n_configurations, n_seeds, n_units), of a median with one unit only; and which configurations lost no
        run, shape (n_configurations,).
    """
    everything = make_block(scores, samples, labels, seeds)
    ended = make_block(scores, samples, labels, seeds, skip_collapsed=True)
    values = np.median(ended.values, axis=2, keepdims=True) if ended.is_median else ended.values
    lost = np.isnan(ended.values).all(2) & ~np.isnan(everything.values).all(2)
    return values, ~lost.any(1)

"""Predictions made elsewhere beside a study's own: their scores, and how each configuration compares.

They have no seeds and are what they are: an interval of theirs is over images alone, and one of a difference over new
seeds of the configuration and new images. They are never ranked, and nothing is recommended or decided by them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cellray.metrics import MEDIANS, METRICS
from cellray.record import Reference
from cellray.report.inference import intervals_of, within_range
from cellray.report.ranking import References, Tables, select
from cellray.results import Results, Sample, ended_runs
from cellray.scores import as_float, magnitude, sign_of, stopped_in
from cellray.statistics import ALPHA, LEAST_SEEDS, difference_from

VALUE_COLUMNS = ["label", "set", "metric", "value", "low", "high", "n_units"]
AGAINST_COLUMNS = ["reference", "configuration", "n_seeds", "n_units", "difference", "low", "high"]


@dataclass(frozen=True)
class _Judged:
    """One reference by one metric, higher is better."""

    label: str
    score: float
    """What is ranked: of a signed error its size."""
    sample: Sample
    units: np.ndarray
    """What each image adds to `score`, or of a median its value there; shape (n_units,)."""


def add_references(tables: Tables, results: Results) -> Tables:
    """The same tables with the study's references, if it has any.

    Args:
        tables: Of `make_tables`, with what `infer` found.
        results: Of the same trials.
    """
    if not results.references:
        return tables
    rows = []
    for key in METRICS:
        for reference, sample in results.references:
            if (one := _judged(reference, sample, key)) is not None:
                ((low, high),) = intervals_of(one.units[None, None], key, is_median=key in MEDIANS)
                rows.append((one.label, "test", key, abs(one.score), low, high, len(one.units)))
    values = pd.DataFrame(rows, columns=VALUE_COLUMNS)
    return replace(tables, references=References(values, _against(tables, results)))


def _judged(reference: Reference, sample: Sample, metric: str) -> _Judged | None:
    """A reference by a metric; None where that can't be judged without probabilities."""
    value = as_float(reference.metrics.get(metric))
    units = (sample.images if metric in MEDIANS else sample.values).get(metric)
    if np.isnan(value) or units is None or np.isnan(units).any():
        return None
    score = magnitude(METRICS[metric], value)
    turned = -1.0 if value < 0 < score else 1.0
    return _Judged(reference.label, sign_of(metric) * score, sample, sign_of(metric) * turned * units)


def _against(tables: Tables, results: Results) -> pd.DataFrame:
    """Each configuration with each reference by the metric that ranks, the runs that ended alone."""
    plan, stopped = results.plan, stopped_in(tables.scores)
    labels = [label for label in plan.labels if label not in stopped]
    seeds = sorted({trial.seed for trial in plan.trials})
    scores = select(tables.scores, set_name="test", metric=plan.rank_by)
    if scores.empty or not labels:
        return pd.DataFrame(columns=AGAINST_COLUMNS)
    values, _ = ended_runs(scores, results.samples, labels, seeds)
    ended = {label: v[~np.isnan(v).any(1)] for label, v in zip(labels, values, strict=True)}
    n_judged = sum(len(trials) >= LEAST_SEEDS for trials in ended.values())
    alpha = ALPHA if results.log is None else results.log.alpha or ALPHA
    tested = {s.units for sets in results.samples.values() for (name, _), s in sets.items() if name == "test"}
    rows = []
    for reference, sample in results.references:
        if (one := _judged(reference, sample, plan.rank_by)) is None:
            continue
        for label, trials in ended.items():
            if not len(trials):
                continue
            fixed = one.units
            if tested != {sample.units} or trials.shape[1] != len(fixed):  # no common images, or a median
                trials, fixed = trials.mean(1, keepdims=True), np.array([one.score])
            found = difference_from(trials, fixed, n_chosen_from=max(n_judged, 1), alpha=alpha)
            ends = (found.low, found.high) if len(trials) >= LEAST_SEEDS else (np.nan, np.nan)
            rows.append((reference.label, label, len(trials), len(fixed), found.difference, *ends))
    return within_range(pd.DataFrame(rows, columns=AGAINST_COLUMNS), plan.rank_by)

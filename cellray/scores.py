"""What a trial counts as where trials are averaged and ranked: the default rule, for the report and for MLflow alike.

A trial that failed or collapsed counts as the worst value of a metric, and so does a metric that is not a number.
An unbounded counting error has no worst value: there the largest error of any trial in that set, or that of
predicting nothing, stands in for it, whichever is worse. A trial that was stopped early counts as nothing: it is
ranked as stopped, never beside trials that had their whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

import numpy as np
import pandas as pd

from cellray.metrics import METRICS, Metric, summarise
from cellray.record import PlannedTrial, Scores, TrialRecord

POINTS = ("own", "shared")
"""Operating points: chosen on each trial's validation images, and the published one shared by all."""
SCORE_COLUMNS = ["set", "point", "metric", "label", "seed", "key", "outcome", "value", "counted", "note"]


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a stored value is a real number (None, NaN and infinities aren't)."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def as_float(value: object) -> float:
    """A stored number as a float, NaN where there is none."""
    return float(value) if is_finite(value) else math.nan


def magnitude(metric: Metric, value: float) -> float:
    """The size by which a value is ranked: |value| for an unbounded error, else the value.

    A signed error (MPE) of +50 in one seed and -50 in another is no good count, so its size is what is averaged.
    """
    return abs(value) if metric.worst is None else value


def sign_of(metric: str) -> float:
    """What a ranked value is multiplied by so that higher is better."""
    return 1.0 if METRICS[metric].higher_is_better else -1.0


def score(metric: str, outcome: str, values: Scores | None, worst: float) -> tuple[str, float, float, str]:
    """Outcome in this set, value as stored, value that counts, and a note.

    The note is "", "nan", "worst", "stopped" or "not evaluated".

    Args:
        metric: A key of ``METRICS``.
        outcome: Of the trial: finished, collapsed, failed, stopped or missing.
        values: The trial's metrics in the set; None if it has none.
        worst: What a lost trial counts as, see `worst_values`.
    """
    nan = math.nan
    value = nan if values is None else as_float(values.get(metric))
    if outcome in ("failed", "collapsed"):
        return outcome, value, worst, "worst"
    if outcome == "missing":
        return outcome, nan, nan, ""
    if outcome == "stopped":
        return outcome, value, nan, "stopped"
    if values is None:
        return "missing", nan, nan, "not evaluated"
    if math.isnan(value):
        return outcome, nan, worst, "nan"
    return outcome, value, magnitude(METRICS[metric], value), ""


def score_table(
    trials: Iterable[PlannedTrial],
    records: Mapping[str, TrialRecord],
    sets: Sequence[str],
    metrics: Sequence[str],
    worst: Mapping[tuple[str, str], float],
    points: Sequence[str] = POINTS,
) -> pd.DataFrame:
    """One row a planned trial, set, point and metric.

    Columns: set, point, metric, label, seed, key, outcome, value (as stored, NaN if there is none), counted (what
    the default rule averages; NaN only for a missing or stopped trial), note ("", "nan", "worst", "stopped" or "not
    evaluated").

    Args:
        trials: Planned.
        records: Theirs, by key.
        sets: Names of sets.
        metrics: Keys of ``METRICS``.
        worst: For each set and metric, see `worst_values`.
        points: Operating points.
    """
    rows = []
    for trial in trials:
        record = records.get(trial.key)
        outcome = "missing" if record is None else record.outcome
        for name in sets:
            for point in points:
                values = None if record is None else record.scores(name, point)
                for key in metrics:
                    where = (name, point, key, trial.label, trial.seed, trial.key)
                    rows.append((*where, *score(key, outcome, values, worst[name, key])))
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def spread(scores: pd.DataFrame, by: list[str], *, skip_collapsed: bool = False) -> pd.DataFrame:
    """What the default rule makes of several trials: one row a group.

    Columns: n, mean, sd (with n - 1), low and high of what counts, and worst, the worst trial's; the same of the
    survivors (finished trials with a value) as survivors_n, survivors_mean and survivors_sd. A NaN among the values
    makes a NaN of the result. A configuration of which a trial was stopped early has no row.

    Args:
        scores: Of `score_table`; missing trials are left out by name.
        by: Columns that group trials, metric among them.
        skip_collapsed: The quirk of that name: failed and collapsed trials and NaNs have no part.
    """
    full = scores[(scores.outcome != "missing") & ~scores.label.isin(stopped_in(scores))]
    survivors = full[(full.outcome == "finished") & (full.note == "")]
    counted = _spread(survivors if skip_collapsed else full, by)
    survived = _spread(survivors, by)[["n", "mean", "sd"]].add_prefix("survivors_")
    table = counted.join(survived).reset_index()
    higher = table.metric.map({key: metric.higher_is_better for key, metric in METRICS.items()})
    table["worst"] = table.low.where(higher, table.high)
    return table


def stopped_in(scores: pd.DataFrame) -> set[str]:
    """Labels of the configurations that were stopped early, which nothing is compared with."""
    return set(scores.label[scores.outcome == "stopped"])


def _spread(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    grouped = frame.groupby(by, sort=False)["counted"]
    out = pd.DataFrame(
        {"n": grouped.size(), "mean": grouped.mean(), "sd": grouped.std(), "low": grouped.min(), "high": grouped.max()}
    )
    holes = grouped.count() < out["n"]
    out.loc[holes, ["mean", "sd", "low", "high"]] = np.nan
    return out


def worst_values(
    records: Iterable[TrialRecord],
    sets: Sequence[str],
    nothing: Mapping[str, Mapping[str, float]],
    metrics: Iterable[str],
) -> dict[tuple[str, str], float]:
    """The value that a failed or collapsed trial counts as, for each set and metric.

    A bounded metric has its own worst value. An unbounded counting error (MAE, MedAE, |MPE|) has none, so it gets
    the largest error of any trial in that set, at either operating point, or that of predicting nothing,
    whichever is worse: a collapse never beats a trial that ended. Where neither is known it is NaN. Trials that were
    stopped early have no say.

    Args:
        records: Of planned trials.
        sets: Names of sets.
        nothing: For each set, the counting errors of predicting nothing (`errors_of_nothing`).
        metrics: Keys of ``METRICS``.
    """
    worst: dict[tuple[str, str], float] = {}
    stored = [record for record in records if record.outcome != "stopped"]
    for name in sets:
        rows = [values for r in stored for point in POINTS if (values := r.scores(name, point)) is not None]
        for key in metrics:
            own = METRICS[key].worst
            if own is not None:
                worst[name, key] = own
                continue
            seen = [abs(value) for row in rows if is_finite(value := row.get(key))]
            if key in nothing.get(name, {}):
                seen.append(nothing[name][key])
            worst[name, key] = max(seen, default=math.nan)
    return worst


def errors_of_nothing(n_true: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Counting errors of a model that predicts no cell at all, from the true counts of a set's images."""
    counts = pd.DataFrame({"n_true": np.asarray(n_true), "n_pred": 0})
    if counts.empty:
        return {}
    errors = {key: abs(value) for key, value in summarise(counts).items() if key in METRICS}
    return {key: value for key, value in errors.items() if METRICS[key].worst is None}


def best_record(records: Iterable[TrialRecord], rank_by: str) -> TrialRecord | None:
    """The finished trial with the best score on its validation images; test images have no say.

    Args:
        records: Of a study.
        rank_by: The metric of `operating_point_score`.

    Returns:
        Of equals, the first by label and seed; None if no trial has finished.
    """
    finished = [(r.operating_point_score, r) for r in records if r.outcome == "finished"]
    known = [(METRICS[rank_by].shortfall(score), *r.pair, r) for score, r in finished if score is not None]
    return min(known, key=lambda found: found[:3])[-1] if known else None

"""What the runs above a study's trials say: outcomes counted, and means over seeds by the default rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cellray.record import PlannedTrial, TrialRecord
from cellray.results import Results
from cellray.scores import score_table, spread, worst_values
from cellray.tracking.values import group_of, safe_name

HEADLINE = ("f1_iou", "f1_distance", "dice", "pq", "mae")
"""Compared on configuration runs beside the metric that ranks: segmentation, detection, pixels, both, counting.
The report has every metric; a list of hundreds would hide these."""


def outcome_counts(trials: Sequence[PlannedTrial], records: Mapping[str, TrialRecord]) -> dict[str, float]:
    """How many trials are planned, ended how, and are still missing."""
    outcomes = [records[trial.key].outcome for trial in trials if trial.key in records]
    counts = {f"n_{name}": outcomes.count(name) for name in ("finished", "collapsed", "failed", "stopped")}
    counts |= {"n_planned": len(trials), "n_missing": len(trials) - len(outcomes)}
    return {f"outcome/{name}": float(count) for name, count in counts.items()}


def worst_compared(results: Results) -> dict[tuple[str, str], float]:
    """What a lost trial counts as, for each set, `test` first, and each metric that configurations are compared by."""
    scored = [sets for record in results.records.values() if (sets := record.metrics.get("own"))]
    found = {name for sets in scored for name in sets}
    order = [name for name in ("test", *sorted(found - {"test", "val"}), "val") if name in found]
    known = {metric for sets in scored for scores in sets.values() for metric in scores}
    metrics = [key for key in dict.fromkeys((results.plan.rank_by, *HEADLINE)) if key in known]
    return worst_values(results.records.values(), order, results.nothing, metrics)


def seed_summaries(
    results: Results, worst: Mapping[tuple[str, str], float], labels: Iterable[str]
) -> dict[str, dict[str, float]]:
    """Each configuration's metrics: counts of outcomes, and for each set the mean over its seeds by the default rule.

    `test/f1_iou` is that mean, under the name that the seeds have. Beside it stand `test/sd/…` (n - 1),
    `test/worst/…` (the worst seed), `test/survivors_mean/…` and `test/shared/…`, the mean at the shared operating
    point. See `scores.spread`.

    Args:
        results: Of the study.
        worst: What a lost trial counts as; its keys say which sets and metrics are shown (`worst_compared`).
        labels: Configurations wanted; one that isn't planned any more has counts of 0.

    Returns:
        By label, then by the metric's name in MLflow.
    """
    plan, records = results.plan, results.records
    found: dict[str, dict[str, float]] = {label: {} for label in labels}
    if worst:
        sets, metrics = (list(dict.fromkeys(names)) for names in zip(*worst, strict=True))
        scores = score_table([t for t in plan.trials if t.label in found], records, sets, metrics, worst)
        table = spread(scores, ["label", "set", "point", "metric"], skip_collapsed=plan.skip_collapsed)
        for row in table.itertuples(index=False):
            shown = {row.point: (row.n, row.mean)}
            if row.point == "own":
                shown = {"": (row.n, row.mean), "worst": (row.n, row.worst), "sd": (row.n - 1, row.sd)}
                shown["survivors_mean"] = (row.survivors_n, row.survivors_mean)
            for kind, (n, value) in shown.items():
                if n > 0:
                    found[row.label][safe_name("/".join(filter(None, (group_of(row.set), kind, row.metric))))] = value
    for label, summary in found.items():
        trials = [trial for trial in plan.trials if trial.label == label]
        ended = [records[trial.key] for trial in trials if trial.key in records]
        summary |= outcome_counts(trials, records)
        summary["training/seconds_of_all_seeds"] = sum((r.seconds.training or 0.0 for r in ended), 0.0)
    return found

"""What the numbers of a study allow to say: intervals, paired comparisons and ranks over seeds × images.

A lost trial counts on every image as the worst value, as in the ranking. Where the trials of a configuration were not
judged on the same images (validation), or their image rows aren't there, only seeds are compared. Configurations that
were stopped early are left out. Where a race gave some more seeds than others, a pair is compared over the seeds that
both have, and ranks within images over the seeds that all have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cellray.metrics import METRICS
from cellray.report.ranking import INTERVALS, Advice, Inference, Tables, rows_of, select
from cellray.report.searched import read_search
from cellray.results import Block, Results, Samples, ended_runs, make_block
from cellray.scores import as_float, sign_of, stopped_in
from cellray.statistics import (
    ALPHA,
    LEAST_SEEDS,
    Bootstrap,
    best_of_k,
    crossed_mean,
    detectable,
    friedman,
    holm,
    mean_median,
    median_pairs,
    moments,
    paired_tests,
    rank_shares,
    rank_table,
    resampled_means,
    winner,
)

MOST_COMPARED = 60
"""Configurations up to which every pair is compared; among more, the leader with each other one, and nothing is said
of which may be the best."""


def infer(tables: Tables, results: Results, *, only_ranking: bool = False) -> Tables:
    """The same tables with intervals in the ranking (columns low, high, rank_low, rank_high) and an `Inference`.

    Args:
        tables: Of `make_tables`.
        results: Of the same trials.
        only_ranking: Only the metric that ranks on the test set, for a table that is made anew every few seconds.
    """
    plan, samples = results.plan, results.samples
    stopped = stopped_in(tables.scores)
    labels = [label for label in plan.labels if label not in stopped]
    seeds = sorted({trial.seed for trial in plan.trials})
    racing = [i for i, label in enumerate(labels) if label not in plan.dropped]
    ends, ranks, shares, tests, effects = [], [], [], [], []
    pairs: dict[tuple[str, str], pd.DataFrame] = {}
    choice, alpha = None, ALPHA if results.log is None else results.log.alpha or ALPHA
    kept: dict[tuple[str, str], tuple[float, float, float]] = {}
    for by, rows in tables.scores.groupby(["set", "point", "metric"], sort=False):
        name, point, metric = map(str, by)
        if only_ranking and (name, point, metric) != ("test", "own", plan.rank_by):
            continue
        block = make_block(rows, samples, labels, seeds, skip_collapsed=tables.skip_collapsed)
        intervals = intervals_of(block.values, metric, is_median=block.is_median)
        ends += [(name, point, metric, label, *both) for label, both in zip(labels, intervals, strict=True)]
        if point != "own":
            continue
        ranks_it = metric == plan.rank_by
        compared = within_range(_compare(block, labels, detail=ranks_it, alpha=alpha), metric)
        pairs[name, metric] = compared
        apart = block.leader_differences(racing)
        least = np.nan if apart is None else detectable(apart)
        effects.append({"set": name, "metric": metric, "difference": least})
        if not ranks_it:
            continue
        means, by_image = _means(block)
        ranks.append(rank_table(means, by_image, compared, labels).assign(set=name))
        kept |= {(name, label): ends for label, ends in _kept(rows, block, labels, seeds, results).items()}
        if name == "test" and len(labels) <= MOST_COMPARED:
            choice = _choose(rows, labels, seeds, results, alpha)
        if 0 < len(labels) <= MOST_COMPARED:
            shares.append(_stability(block, labels).assign(set=name))
            test = friedman(by_image)
            if test is not None:
                tests.append({"set": name, **vars(test)})
    found = pd.DataFrame(ends, columns=["set", "point", "metric", "label", "low", "high"])
    if not pairs:  # no record has the metric
        return tables
    nobody = rank_table(np.empty(0), np.empty((0, 0)), compared.iloc[:0], []).assign(set="")
    all_ranks = pd.concat(ranks, ignore_index=True) if ranks else nobody
    bounds = all_ranks[["set", "label", "rank_low", "rank_high"]].assign(metric=plan.rank_by, point="own")
    of_three = [kept.get(place, (np.nan,) * 3) for place in zip(bounds["set"], bounds.label, strict=True)]
    bounds[["kept_mean", "kept_low", "kept_high"]] = np.array(of_three).reshape(-1, 3)
    ranking = tables.ranking.drop(columns=INTERVALS)
    for intervals_by in (found, bounds):
        ranking = ranking.merge(intervals_by, on=["set", "point", "metric", "label"], how="left", sort=False)
    inference = Inference(
        pairs=pd.concat(pairs, names=["set", "metric"]).reset_index(level=("set", "metric")).reset_index(drop=True),
        ranks=all_ranks,
        stability=pd.concat(shares, ignore_index=True)
        if shares
        else pd.DataFrame(columns=["set", "label", "rank", "share"]),
        friedman=pd.DataFrame(tests, columns=["set", "n_images", "statistic", "p", "critical_difference"]),
        detectable=pd.DataFrame(effects, columns=["set", "metric", "difference"]),
        choice=choice,
        unit=results.unit,
    )
    return replace(tables, ranking=ranking, inference=inference)


def versus(
    tables: Tables, samples: Samples, couples: Sequence[tuple[str, str]], *, set_name: str, metric: str
) -> pd.DataFrame:
    """Chosen couples of configurations, each compared alone; Holm's adjustment is over the couples.

    Args:
        tables: Of `make_tables`, of one study or of several put together.
        samples: Of its trials.
        couples: Labels; those without a common seed are left out, and so is a configuration that was stopped early.
        set_name: One of ``tables.sets``.
        metric: A key of ``METRICS``.

    Returns:
        One row a couple in their order, with `statistics.PAIR_COLUMNS`; ``a`` is the better one, ``p_adjusted`` Holm's.
    """
    rows = select(tables.scores, set_name=set_name, metric=metric)
    seeds = sorted(set(rows.seed))
    found = []
    for couple in couples:
        mine = rows[rows.label.isin(couple)]
        block = make_block(mine, samples, couple, seeds, skip_collapsed=tables.skip_collapsed)
        found.append(_compare(block, couple, detail=True))
    table = within_range(pd.concat(found, ignore_index=True), metric)
    table["p_adjusted"], table["p_wilcoxon_holm"] = (holm(table[c].to_numpy(dtype=float)) for c in ("p", "p_wilcoxon"))
    table["decided"] = (table.p_adjusted < ALPHA) & (table.n_seeds >= LEAST_SEEDS)
    # what would decide a couple that is so alone, but not among the others, isn't known
    table.loc[~table.decided & (table.more_seeds == 0), ["more_seeds", "more_images"]] = np.nan
    return table


def intervals_of(values: np.ndarray, metric: str, *, is_median: bool) -> list[tuple[float, float]]:
    """95 % interval of each configuration's mean, in the metric's own direction and range.

    Args:
        values: Shape (n_configurations, n_seeds, n_units), higher is better; NaN throughout where a trial is missing.
        metric: A key of ``METRICS``.
        is_median: As `Block.is_median`.
    """
    there = ~np.isnan(values).any(2)
    found = np.full((len(values), 2), np.nan)
    for seeds in np.unique(there, axis=0):
        alike = np.flatnonzero((there == seeds).all(1))
        if seeds.any():
            known = np.ascontiguousarray(values[alike][:, seeds])  # the order of a sum moves its last digit
            ends = (
                [mean_median(v)[1:] for v in known] if is_median else np.stack(crossed_mean(known).interval(), axis=1)
            )
            found[alike] = ends
    return [_in_range(low, high, metric) for low, high in found.tolist()]


def _in_range(low: float, high: float, metric: str) -> tuple[float, float]:
    """The ends of an interval of which higher is better, in the metric's own direction and range."""
    if not METRICS[metric].higher_is_better:
        low, high = -high, -low
    worst = METRICS[metric].worst
    top = np.inf if worst is None else max(worst, METRICS[metric].best)
    return max(low, 0.0) if not np.isnan(low) else low, min(high, top) if not np.isnan(high) else high


def _choose(
    rows: pd.DataFrame, labels: Sequence[str], seeds: Sequence[int], results: Results, alpha: float
) -> Advice | None:
    """Which to take, from the runs that ended; one that lost a run is recommended only if all did."""
    values, preferred = ended_runs(rows, results.samples, labels, seeds)
    search = read_search(results.log)
    if search is not None and search.suggests:  # what it chose on validation images is what is judged
        chosen = search.chosen(results.plan.rank_by)
        preferred = np.array([chosen is not None and label == chosen.label for label in labels])
    bootstrap = Bootstrap(moments(values), alpha=alpha)
    best = winner(values, bootstrap.alpha)
    new_images = values.shape[2] > 1
    found = bootstrap.statement(new_images=new_images, preferred=preferred, best=best)
    if found is None or (search is not None and search.suggests and not preferred[found.take]):
        return None
    here = bootstrap.statement(new_images=False, preferred=preferred) if new_images else None
    return Advice(tuple(labels), found, here, bootstrap, new_images)


def _kept(
    rows: pd.DataFrame, block: Block, labels: Sequence[str], seeds: Sequence[int], results: Results
) -> dict[str, tuple[float, float, float]]:
    """Of each configuration, the best of three trainings by validation: mean, low and high."""
    metric = str(rows.metric.iloc[0])
    by_validation = np.full(block.values.shape[:2], -np.inf)
    place, order = {label: i for i, label in enumerate(labels)}, {seed: i for i, seed in enumerate(seeds)}
    for row in rows_of(rows):
        record = results.records.get(row.key)
        if row.label in place and record is not None and not row.note:
            score = as_float(record.score(metric, "val"))
            by_validation[place[row.label], order[row.seed]] = sign_of(metric) * score
    found = {}
    for label, values, validation in zip(labels, block.values, by_validation, strict=True):
        has = ~np.isnan(values).any(1)
        trials = np.median(values[has], axis=1, keepdims=True) if block.is_median else values[has]
        mean, low, high = best_of_k(trials, validation[has])
        found[label] = (abs(mean), *_in_range(low, high, metric))
    return found


def within_range(pairs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The same, columns low and high, with intervals cut where no difference of a bounded metric can lie."""
    worst, best = METRICS[metric].worst, METRICS[metric].best
    if worst is None:
        return pairs
    span = abs(best - worst)
    return pairs.assign(low=pairs.low.clip(lower=-span), high=pairs.high.clip(upper=span))


def _compare(block: Block, labels: Sequence[str], *, detail: bool, alpha: float = ALPHA) -> pd.DataFrame:
    many = len(labels) > MOST_COMPARED
    if block.is_median:
        known = {label: v[~np.isnan(v).any(1)] for label, v in zip(labels, block.values, strict=True)}
        known = {label: -v for label, v in known.items() if len(v)}
        n_seeds = min((len(v) for v in known.values()), default=0)
        return median_pairs([mean_median(v) for v in known.values()], list(known), n_seeds, leader_only=many)
    return paired_tests(block.values, labels, detail=detail, leader_only=many, alpha=alpha)


def _means(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each configuration over its seeds, and image by image over the seeds that all have; NaN without a trial.

    A configuration with other seeds than the rest would be better or worse on each image by the luck of its seeds.
    """
    known = ~np.isnan(block.values).any(2)
    some = known.any(1)
    by_image = np.full((len(block.values), block.values.shape[2]), np.nan)
    means = np.full(len(block.values), np.nan)
    common = known[some].all(0)
    if common.any():
        by_image[some] = block.values[some][:, common].mean(1)
    for i in np.flatnonzero(some):
        trials = block.values[i, known[i]]
        means[i] = np.median(trials, axis=1).mean() if block.is_median else trials.mean()
    return means, by_image


def _stability(block: Block, labels: Sequence[str]) -> pd.DataFrame:
    shares = rank_shares(resampled_means(block.values, is_median=block.is_median))
    rows = [
        (label, place + 1, share) for label, row in zip(labels, shares, strict=True) for place, share in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=["label", "rank", "share"])

"""What a search found, in sentences: chosen on validation images, told by test images, never the other way round."""

from __future__ import annotations

import pandas as pd

from cellray.record import Tried
from cellray.report.findings import Findings
from cellray.report.searched import METHODS, STOPPING, Search, parameters_text
from cellray.report.text import format_interval, format_rank, format_value, metric_title
from cellray.report.words import listing, listing_some, plural


def found_sentence(search: Search, found: Findings) -> str:
    """The configuration that a search which suggests chose on validation images, and what it scores on the test images;
    empty before any is judged."""
    metric = found.metric
    best = search.chosen(metric)
    if best is None:
        return ""
    by = metric if metric in search.metrics else search.metrics[0]
    value = format_value(by, search.value(best, by))
    running = len(search.in_state("running"))
    so_far = f"; {plural(running, 'configuration')} still running" if running else ""
    text = (
        f"On validation images, {METHODS[search.method]} chose {best.label} of {len(search.configurations)} "
        f"configurations tried ({metric_title(by)} {value}, mean over {plural(best.seeds, 'seed')}{so_far})"
    )
    words = parameters_text(best.parameters, found.losses.get(best.label))
    text += f": {words}." if words else "."
    if len(search.metrics) > 1:
        front = [c.label for c in search.front()]
        names = " and ".join(map(metric_title, search.metrics))
        text += f" By {names} together, none beats {listing_some(front, most=8)}."
    return f"{text} {test_sentence(best, found.ranked, metric)}"


def test_sentence(best: Tried, ranked: pd.DataFrame, metric: str) -> str:
    """What the chosen configuration scores on images that had no say, and who leads there."""
    mine = ranked[(ranked.label == best.label) & ranked["rank"].notna()]
    if mine.empty:
        return "It has no result on the test images yet."
    row = mine.iloc[0]
    interval = format_interval(metric, row.low, row.high)
    score = f"{metric_title(metric)} {format_value(metric, row['mean'])}" + (f" {interval}" if interval else "")
    text = f"On the test images, which had no say in that, it has {score}"
    if row["rank"] == 1:
        return f"{text} and is first there too."
    place = format_rank(row["rank"])
    return (
        f"{text} and is at rank {place}; {ranked.iloc[0].label} is first there, but to choose it for that would be a "
        "choice made on the test images."
    )


def seeds_sentence(search: Search) -> str:
    """Who got how many seeds, and why the study ended; empty where nothing is known yet."""
    by_seeds: dict[int, list[str]] = {}
    for c in sorted(search.configurations, key=lambda c: (-c.seeds, c.number)):
        by_seeds.setdefault(c.seeds, []).append(c.label)
    parts = [f"{listing_some(labels)} {plural(seeds, 'seed')}" for seeds, labels in by_seeds.items()]
    told = [f"Seeds were given where they decide: {listing(parts)}"] if len(by_seeds) > 1 else []
    ended = [f"{'it ended, as' if told else 'No further seeds were given:'} {search.note}"] if search.note else []
    return "; ".join(told + ended) + "." if told or ended else ""


def stopped_clause(ranked: pd.DataFrame, search: Search | None) -> str:
    """How many configurations were ended early; empty where none was."""
    n = int((ranked.n_stopped > 0).sum())
    if not n:
        return ""
    rule = f" by {STOPPING[search.stopping]}" if search is not None and search.stopping else ""
    verb = "was" if n == 1 else "were"
    return f"{n} of {plural(len(ranked), 'configuration')} {verb} ended early{rule} and ranked as stopped, not compared"

"""The answer of a study in up to three sentences, written from the numbers and never stronger than they allow.

Who leads is what was seen; that it is the best is said only where the paired tests decide it against each other
configuration. What they leave open is called undecided, with what would decide it.
"""

from __future__ import annotations

import math

import pandas as pd

from cellray.report.findings import Findings
from cellray.report.ranking import rows_of
from cellray.report.search_answer import found_sentence, race_sentence, stopped_clause
from cellray.report.text import format_interval, format_value, metric_title
from cellray.report.words import listing, listing_some, plural
from cellray.statistics import LEAST_SEEDS


def write_answer(found: Findings) -> list[str]:
    """A few sentences about the ranking on the test set at each trial's own operating point.

    Of a search, what it chose on validation images comes first: the ranking may name another one, but that is seen on
    the test images. Of a study of loss weights, where the best ones lie comes last.
    """
    tables, search, metric, ranked = found.tables, found.search, found.metric, found.ranked
    known = ranked[ranked["rank"].notna()]
    missing = int(ranked.n_missing.sum())
    stopped = stopped_clause(ranked, search)
    if known.empty and stopped and not missing:
        return [f"No configuration was trained to its end: {stopped}."]
    if known.empty:
        return [f"No trial has a result yet ({missing} of {int(ranked.n_planned.sum())} planned trials are missing)."]
    if not known.survivors_n.sum():
        return [f"No trial gave a usable result: {trouble(ranked)}."]
    pairs = tables.inference.pairs_of("test", metric) if tables.inference else pd.DataFrame()
    unit = tables.inference.unit if tables.inference else "image"
    sentences = []
    if search is not None and search.suggests:
        sentences.append(found_sentence(search, ranked, metric, found.losses))
    sentences.append(lead(known, pairs, metric, missing, unit))
    if len(known) > 1 and len(pairs):
        ranks = tables.inference.ranks if tables.inference else pd.DataFrame()
        sentences.append(decision(known, pairs, set(ranks[(ranks["set"] == "test") & ranks.may_be_best].label)))
    if search is not None and search.is_racing:
        sentences.append(race_sentence(search))
    sentences.append(caveats(known, ranked, tables.trials, metric, missing, found.plan.skip_collapsed, stopped))
    sentences += [family.sentence for family in found.families]
    if len(found.networks) > 1:
        sentences.append(f"Its configurations differ in their networks: {networks(found)}.")
    return [sentence for sentence in sentences if sentence]


def networks(found: Findings) -> str:
    """`c_resunet(base_features=8) (Dice and BCE) and monai_unet (Small)`."""
    return listing([f"{name} ({listing_some(labels)})" for name, labels in found.networks.items()])


def lead(known: pd.DataFrame, pairs: pd.DataFrame, metric: str, missing: int, unit: str) -> str:
    """Who leads and by how much; `is best` only where that is decided."""
    so_far = "So far, " if missing else ""
    first = known.iloc[0]
    over = plural(int(first.n), "seed")
    if len(pairs) and pairs.n_images.max() > 1:
        over += f" and {plural(int(pairs.n_images.max()), unit)}"
    interval = format_interval(metric, first.low, first.high)
    score = f"{metric_title(metric)} on the test set, {format_value(metric, first['mean'])}"
    score += f" (mean over {over}; 95 % interval {interval})" if interval else f" (mean over {over})"
    if len(known) == 1:
        return f"{so_far}{first.label} has {score}; there is nothing to compare it with."
    tied = known[known["rank"] == 1]
    if len(tied) > 1:
        return f"{so_far}{listing(list(tied.label))} share the first place by {score}."
    second = known.iloc[1]
    gap = format_value(metric, abs(first["mean"] - second["mean"]))
    pair = pair_of(pairs, first.label, second.label)
    if pair is not None and pair.a == first.label and math.isfinite(pair.low):
        gap = f"{format_value(metric, pair.difference)} {format_interval(metric, pair.low, pair.high)}"
    verb = "is best" if is_best(first) else "leads"
    return f"{so_far}{first.label} {verb} by {score}; {second.label} follows, {gap} behind."


def is_best(row: pd.Series) -> bool:
    """Whether a configuration's rank is decided to be the first."""
    return bool(row.rank_low == 1 and row.rank_high == 1)


def pair_of(pairs: pd.DataFrame, one: str, other: str) -> pd.Series | None:
    """The comparison of two configurations, whichever is better."""
    if pairs.empty:
        return None
    found = pairs[((pairs.a == one) & (pairs.b == other)) | ((pairs.a == other) & (pairs.b == one))]
    return None if found.empty else found.iloc[0]


def decision(known: pd.DataFrame, pairs: pd.DataFrame, contenders: set[str]) -> str:
    """What the tests decide, what they leave open, and what would decide it.

    Args:
        known: Rows of the ranking, best first.
        pairs: Their comparisons.
        contenders: The labels that may be the best.
    """
    first = known.iloc[0]
    if pairs.n_seeds.max() < LEAST_SEEDS:
        common = plural(int(pairs.n_seeds.max()), "common seed")
        return f"With {common} nothing is decided: it takes {LEAST_SEEDS} to see how much is chance."
    others = [str(label) for label in known.label[1:]]
    if is_best(first):
        rest = pairs[(pairs.a != first.label) & ~pairs.decided.astype(bool)]
        more = f"; of the other pairs, {len(rest)} are undecided" if len(rest) else ""
        each = "the other" if len(others) == 1 else f"each of the {len(others)} others"
        return f"It is decided to be better than {each} (paired by seed and image){more}."
    possible = [label for label in others if label in contenders]
    ruled_out = [label for label in others if label not in contenders]
    if not possible:  # each is beaten by some other, if not by the leader
        return f"With 95 % confidence {first.label} is the only one that may be the best (paired by seed and image)."
    could = "any of the others" if not ruled_out and len(others) > 1 else listing_some(possible)
    text = f"Which is best is undecided: besides {first.label} it may be {could}"
    if ruled_out:
        text += f"; {listing_some(ruled_out)} can't be it (95 % confidence)"
    return f"{text}{advice(pair_of(pairs, first.label, possible[0]), possible[0])}."


def advice(pair: pd.Series | None, other: str) -> str:
    """What would decide the closest open pair."""
    if pair is None or pd.isna(pair.more_seeds):
        return ""
    ways = [
        f"{n:.0f} more {what}"
        for n, what in ((pair.more_seeds, "seeds"), (pair.more_images, "test images"))
        if math.isfinite(n)
    ]
    if not ways:
        return f". Against {other}, neither more seeds nor more images alone would decide a difference as small as this"
    return f". If the difference stayed as it is, {' or '.join(ways)} would decide it against {other}"


def caveats(
    known: pd.DataFrame,
    ranked: pd.DataFrame,
    trials: pd.DataFrame,
    metric: str,
    missing: int,
    skipped: bool,
    stopped: str,
) -> str:
    """Collapses, failures, another leader among the survivors, range tests without a result, missing trials, those
    ended early: one sentence, or none."""
    parts = []
    words = trouble(ranked)
    if words:
        parts.append(
            f"{words} and are left out of the ranking, as the quirk skip_collapsed has it"
            if skipped
            else f"{words} and count as the worst value"
        )
    favoured = known[(known.survivors_rank == 1) & (known["rank"] > 1)]
    if len(favoured) and words:
        row = favoured.iloc[0]
        mean = format_value(metric, row.survivors_mean)
        parts.append(
            f"leaving them out would have put {row.label} first ({mean} over {row.survivors_n} of "
            f"{plural(int(row.n_planned), 'seed')})"
        )
    at_edge = trials[trials.lr_at_edge].label.value_counts()
    if len(at_edge):
        named = listing_some([f"{label} {n}" for label, n in at_edge.items()])
        parts.append(
            f"the range test of {plural(int(at_edge.sum()), 'trial')} chose the lowest rate that it tried ({named}), "
            "so that these may be undertrained"
        )
    if missing:
        parts.append(
            f"the table is provisional, as {missing} of {int(ranked.n_planned.sum())} planned trials are missing"
        )
    if stopped:
        parts.append(stopped)
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def trouble(ranked: pd.DataFrame) -> str:
    """`3 of 60 trials collapsed (Focal 2, Dice 1)`, for collapses, failures and values that aren't numbers."""
    total = int(ranked.n_planned.sum())
    parts: list[str] = []
    for column, verb in (("n_collapsed", "collapsed"), ("n_failed", "failed"), ("n_nan", "gave no number")):
        rows = ranked[ranked[column] > 0].sort_values([column, "label"], ascending=[False, True])
        if rows.empty:
            continue
        named = [f"{row.label} {getattr(row, column)}" for row in rows_of(rows.head(4))]
        if len(rows) > 4:
            named.append(f"{len(rows) - 4} more")
        count = f"{int(rows[column].sum())} of {total} trials" if not parts else str(int(rows[column].sum()))
        parts.append(f"{count} {verb} ({', '.join(named)})")
    return listing(parts)

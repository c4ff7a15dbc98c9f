"""The answer of a study in up to three sentences, written from the numbers and never stronger than they allow.

No test is made here, so no sentence says that a difference is real: overlapping seeds are called undecided,
seeds that don't overlap are reported as what was seen.
"""

from __future__ import annotations

import pandas as pd

from cellray.metrics import METRICS
from cellray.report.tables import Plan, Tables, format_spread, format_value, metric_title, rows_of, select


def write_answer(tables: Tables, plan: Plan) -> list[str]:
    """One to three sentences about the ranking on the test set at each trial's own operating point."""
    metric = plan.rank_by
    ranked = select(tables.ranking, set_name="test", metric=metric)
    scores = select(tables.scores, set_name="test", metric=metric)
    known = ranked[ranked["rank"].notna()]
    missing = int(ranked.n_missing.sum())
    if known.empty:
        return [f"No trial has a result yet ({missing} of {len(scores)} planned trials are missing)."]
    if not known.survivors_n.sum():
        return [f"No trial gave a usable result: {trouble(ranked)}."]
    sentences = [lead(known, metric, missing)]
    if len(known) > 1:
        sentences.append(separation(known, scores, metric))
    last = caveats(known, ranked, metric, missing, plan.skip_collapsed)
    return sentences + ([last] if last else [])


def lead(known: pd.DataFrame, metric: str, missing: int) -> str:
    """Who leads and by how much."""
    so_far = "So far, " if missing else ""
    first = known.iloc[0]
    score = f"{metric_title(metric)} on the test set, {format_spread(metric, first['mean'], first.sd)}"
    score += f" (mean{' ± SD' if first.n > 1 else ''} over {plural(int(first.n), 'seed')})"
    if len(known) == 1:
        return f"{so_far}{first.label} has {score}; there is nothing to compare it with."
    tied = known[known["rank"] == 1]
    if len(tied) > 1:
        return f"{so_far}{listing(list(tied.label))} share the first place by {score}."
    second = known.iloc[1]
    gap = format_value(metric, abs(first["mean"] - second["mean"]))
    rest = f"{second.label} follows with {format_spread(metric, second['mean'], second.sd)}, {gap} behind"
    return f"{so_far}{first.label} leads by {score}; {rest}."


def separation(known: pd.DataFrame, scores: pd.DataFrame, metric: str) -> str:
    """Whether the leader's seeds stand apart from the others'."""
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    seeds = {
        label: (sign * rows.counted).to_numpy() for label, rows in scores[scores.outcome != "missing"].groupby("label")
    }
    first, second = str(known.iloc[0].label), str(known.iloc[1].label)
    if len(seeds[first]) < 2 or len(seeds[second]) < 2:
        return f"With one seed of {first if len(seeds[first]) < 2 else second} the order of the two is undecided."
    overlapping = [str(x) for x in known.label[1:] if seeds[str(x)].max() >= seeds[first].min()]
    if second in overlapping:
        others = len(overlapping) - 1
        more = f", and so do those of {plural(others, 'further configuration')}" if others else ""
        return f"The seeds of {first} and {second} overlap{more}: which of them is best is undecided."
    if overlapping:
        return (
            f"The seeds of {first} and {second} don't overlap, but those of {plural(len(overlapping), 'other')} reach "
            f"into the leader's: no test was made, so take the order as what was seen."
        )
    return (
        f"No seed of another configuration reaches the lowest of {first}: this is what {len(seeds[first])} seeds "
        "showed, not a test."
        if sign > 0
        else f"No seed of another configuration comes down to the highest of {first}: this is what "
        f"{len(seeds[first])} seeds showed, not a test."
    )


def caveats(known: pd.DataFrame, ranked: pd.DataFrame, metric: str, missing: int, skipped: bool) -> str:
    """Collapses, failures, another leader among the survivors, missing trials: one sentence, or none."""
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
    if missing:
        parts.append(
            f"the table is provisional, as {missing} of {int(ranked.n_planned.sum())} planned trials are missing"
        )
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


def listing(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def plural(n: int, word: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{n} {word}" + ("" if n == 1 else "s")

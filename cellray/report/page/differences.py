"""What the statistical comparison says, as tables and sentences of the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cellray.report.page.table_cells import PageTable, TableCell, head, number_cell, sort_key
from cellray.report.ranking import Tables, rows_of, select
from cellray.report.text import format_difference, format_p, format_rank, format_value, interval_cell, metric_title


@dataclass(frozen=True)
class Differences:
    """The comparison of the configurations on one set."""

    leader: PageTable | None = None
    """The first against every other."""
    undecided: PageTable | None = None
    """Every pair that the tests leave open; None where the leader's table has them all."""
    schemes: PageTable | None = None
    """Ranks under three schemes, where they disagree."""
    sentences: list[str] = field(default_factory=list)
    """What is said at once."""
    statistics: list[str] = field(default_factory=list)
    """What only a reader who knows statistics asks for."""
    has_decided: bool = False
    """Whether the leader is told apart from any other."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return self.leader is None and self.schemes is None and not (self.sentences or self.statistics)


def find_differences(tables: Tables, metric: str, set_name: str) -> Differences:
    """The tests on one set, for the metric that ranks; empty where none was made."""
    inference = tables.inference
    if inference is None:
        return Differences()
    pairs = inference.pairs
    pairs = pairs[(pairs["set"] == set_name) & (pairs["metric"] == metric)]
    ranking = select(tables.ranking, set_name=set_name, metric=metric)
    ranks = inference.ranks[inference.ranks["set"] == set_name]
    sentences = []
    if len(pairs):
        n_decided = int(pairs.decided.sum())
        sentences.append(
            f"Of {len(pairs)} pairs of configurations, {n_decided} are told apart, all at once at 5\u00a0%, and "
            f"{len(pairs) - n_decided} aren't. Which may be the best is an easier question; the answer above has it."
        )
    statistics = [
        *friedman_sentence(inference.friedman, set_name),
        *detectable_sentence(inference.detectable, set_name, metric),
    ]
    first = next(iter(ranking.label), "")
    of_leader = pairs[(pairs.a == first) | (pairs.b == first)]
    undecided = pairs[~pairs.decided.astype(bool)]
    others_open = undecided[~undecided.index.isin(of_leader.index)]
    return Differences(
        leader=pair_table(of_leader, metric, leader=str(first)) if len(of_leader) else None,
        undecided=pair_table(undecided, metric) if len(others_open) else None,
        schemes=scheme_table(ranks),
        sentences=sentences,
        statistics=statistics,
        has_decided=bool(of_leader.decided.any()),
    )


def pair_table(pairs: pd.DataFrame, metric: str, *, leader: str = "") -> PageTable:
    """One row a pair; with a leader, the pair is named by the other one."""
    title = metric_title(metric)
    columns = [
        (f"{leader} against" if leader else "Pair", "" if leader else "The better-ranked first"),
        (
            "Difference",
            f"Mean {title} of the first minus that of the second on the same seeds and images, turned so that + means "
            "the first is better; below, its 95 % interval over new seeds and new images",
        ),
        (
            "p of all pairs",
            "Adjusted for testing all pairs (step-down, by a bootstrap over seeds and images); below, Student's paired "
            "test of this pair alone",
        ),
        (
            "Wilcoxon",
            "Adjusted p of the signed-rank test over images, seeds averaged: it speaks of these trained networks, not "
            "of the loss, and decides nothing here",
        ),
        (
            "Wins a rerun",
            "The chance that the first scores higher with a new seed and as many new images, P(A > B); a win worth the "
            "name has 0.75 or more, with an interval above 0.5",
        ),
        ("Isn't better", "The probability that the first is not better, so that the claim that it is would be false"),
        (
            "Told apart",
            "Adjusted p below 0.05, with three common seeds or more. To be the best is a question of its own",
        ),
        ("Would decide it", "Further seeds, or further images, that would, if the difference stayed as it is"),
    ]
    body = []
    for row in rows_of(pairs):
        name = f"{row.a} over {row.b}" if not leader else str(row.b if row.a == leader else row.a)
        body.append(
            [
                head(name),
                number_cell(
                    row.difference,
                    format_difference(metric, row.difference),
                    interval_cell(metric, row.low, row.high),
                ),
                number_cell(row.p_adjusted, format_p(row.p_adjusted), f"alone {format_p(row.p)}"),
                number_cell(row.p_wilcoxon_holm, format_p(row.p_wilcoxon_holm), f"alone {format_p(row.p_wilcoxon)}"),
                number_cell(
                    row.superiority,
                    f"{row.superiority:.2f}",
                    f"[{row.superiority_low:.2f}, {row.superiority_high:.2f}]"
                    if np.isfinite(row.superiority_low)
                    else "",
                ),
                number_cell(row.p_false, format_p(row.p_false)),
                TableCell("yes", 1.0, "good") if row.decided else TableCell("no", 0.0, "moved"),
                needed(row),
            ]
        )
    return PageTable(columns, body)


def needed(row: Any) -> TableCell:
    """What would decide a pair, in words."""
    if row.decided:
        return TableCell("–", 0.0)
    parts = [
        f"{value:,.0f} {what}".replace(",", " ")  # a thin space
        for value, what in ((row.more_seeds, "seeds"), (row.more_images, "images"))
        if np.isfinite(value)
    ]
    known = [value for value in (row.more_seeds, row.more_images) if not np.isnan(value)]
    if not known:
        return TableCell("–", "")
    return TableCell(" or ".join(parts) or "no number would", sort_key(min(known)))


def scheme_table(ranks: pd.DataFrame) -> PageTable | None:
    """Ranks by three schemes; None where they agree, and so the order doesn't hang on the choice."""
    known = ranks[ranks["rank"].notna()]
    if not (contradicts(known["rank"], known.rank_then_mean) or contradicts(known["rank"], known.by_tests)):
        return None
    columns = [
        ("Configuration", ""),
        (
            "Mean, then rank",
            "The ranking of this report: by the mean over seeds; in brackets the ranks that the tests leave possible",
        ),
        ("Rank, then mean", "Ranked on each image, then by the mean of those ranks"),
        ("Mean rank", "That mean"),
        ("By tests", "By decided wins less decided losses"),
    ]
    body = [
        [
            head(str(row.label)),
            number_cell(row.rank, format_rank(row.rank, row.rank_low, row.rank_high)),
            number_cell(row.rank_then_mean, format_rank(row.rank_then_mean)),
            number_cell(row.mean_rank, f"{row.mean_rank:.2f}"),
            number_cell(row.by_tests, format_rank(row.by_tests)),
        ]
        for row in rows_of(known.sort_values("rank", kind="stable"))
    ]
    return PageTable(columns, body)


def contradicts(ranks: pd.Series, others: pd.Series) -> bool:
    """Whether two ranks of the same things put any two of them in opposite order; a tie contradicts nothing."""
    a, b = (column.to_numpy(dtype=float) for column in (ranks, others))
    return bool(((a[:, None] < a) & (b[:, None] > b)).any())


def friedman_sentence(friedman: pd.DataFrame, set_name: str) -> list[str]:
    """Whether the configurations differ at all, in a sentence, or none."""
    found = friedman[friedman["set"] == set_name]
    if found.empty or not np.isfinite(found.iloc[0].p):
        return []
    row = found.iloc[0]
    verdict = "differ as a whole" if row.p < 0.05 else "can't be told apart as a whole"
    apart = ""
    if np.isfinite(row.critical_difference):
        apart = f"; mean ranks closer than {row.critical_difference:.2f} (Nemenyi, 5\u00a0%) belong together"
    p = format_p(row.p)
    p = p if "<" in p else f"= {p}"
    return [
        f"Friedman's test over {int(row.n_images)} images or groups of images: χ² = {row.statistic:.1f}, p {p}: "
        f"as these seeds went, the configurations {verdict}{apart}."
    ]


def detectable_sentence(detectable: pd.DataFrame, set_name: str, metric: str) -> list[str]:
    """The smallest difference that this study could have seen, in a sentence, or none."""
    found = detectable[(detectable["set"] == set_name) & (detectable["metric"] == metric)]
    if found.empty or not np.isfinite(found.iloc[0].difference):
        return []
    least = format_value(metric, found.iloc[0].difference)
    return [
        f"With the seeds and images at hand, a true difference of one pair in {metric_title(metric)} has to be at "
        f"least {least} to be found with 80\u00a0% power; a smaller one may exist unseen."
    ]

"""What each quirk of the reference study's code does to a study's ranking, one at a time, from the ledger alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.metrics import quirk_rows, summarise
from cellray.report.tables import (
    Plan,
    PlannedTrial,
    TextTable,
    format_rank,
    format_value,
    make_tables,
    metric_title,
    rows_of,
    select,
)
from cellray.scores import Record, nothing_by_set
from cellray.study import QUIRKS, Study

TRAINING = tuple(name for name, quirk in QUIRKS.items() if quirk.acts_on == "training")
JUDGING = tuple(name for name, quirk in QUIRKS.items() if quirk.acts_on == "evaluation")


@dataclass(frozen=True)
class Ranking:
    """The configurations in order, under one set of quirks."""

    quirk: str
    """`strict`, a quirk's name, one that acts on training `+ skip_collapsed` if trials with it collapsed, `all in
    judging` (those that need no training), or `all`."""
    order: list[tuple[str, float, float]]
    """Label, rank and mean, best first; NaN without a result."""


def quirk_rankings(ledger: Ledger, study: Study, plan: Plan, metric: str) -> list[Ranking]:
    """Rank the configurations without quirks of their own: strictly, with each quirk alone, and with all together.

    A quirk that acts on training puts configurations that have it in the place of those that lack it and are the same
    otherwise; one that acts on evaluation or ranking judges and counts the same trials anew.

    Args:
        ledger: Where the records and image tables are.
        study: Under the strict protocol, its configurations with and without quirks.
        plan: Its planned trials.
        metric: A key of ``METRICS``.

    Raises:
        StudyError: If the whole study runs with quirks, so that there is nothing strict to compare with.
    """
    if study.all_quirks:
        raise StudyError(
            f"study {study.name!r} runs with {', '.join(study.all_quirks)}: to see what a quirk does, it needs "
            "configurations without it; see search_spaces/quirks.yaml"
        )
    records = plan.planned(ledger.records())
    twins = twins_of(study)
    known: dict[str, Any] = {}

    def ranked(quirk: str, judged_with: Sequence[str], labels: Mapping[str, str], skip: bool) -> Ranking:
        trials = tuple(
            replace(t, label=base) for base, label in labels.items() for t in plan.trials if t.label == label
        )
        used = [judged(ledger, records[t.key], judged_with) for t in trials if t.key in records]
        nothing = nothing_by_set(ledger, used, known)
        tables = make_tables(used, replace(plan, trials=plain(trials), skip_collapsed=skip), nothing=nothing)
        rows = rows_of(select(tables.ranking, set_name="test", metric=metric))
        return Ranking(quirk, [(str(row.label), row.rank, row.mean) for row in rows])

    def swapped(*quirks: str) -> dict[str, str]:
        return {label: others.get(frozenset(quirks), label) for label, others in twins.items()}

    alone = swapped()
    rankings = [ranked("strict", (), alone, skip=False)]
    for name, quirk in QUIRKS.items():
        if quirk.acts_on != "training":
            rankings.append(ranked(name, (name,), alone, skip=name == "skip_collapsed"))
        elif swapped(name) != alone:
            rankings.append(ranked(name, (), swapped(name), skip=False))
            if any(
                r["outcome"] in ("collapsed", "failed") and r["label"] in swapped(name).values()
                for r in records.values()
            ):
                rankings.append(ranked(f"{name} + skip_collapsed", (), swapped(name), skip=True))
    rankings.append(ranked("all in judging", JUDGING, alone, skip=True))
    if swapped(*TRAINING) != alone:
        rankings.append(ranked("all", JUDGING, swapped(*TRAINING), skip=True))
    return rankings


def twins_of(study: Study) -> dict[str, dict[frozenset[str], str]]:
    """For each configuration without quirks, by its quirks, the labels of those that differ by quirks alone."""
    return {
        c.label: {
            frozenset(other.quirks): other.label
            for other in study.configurations
            if (other.loss, other.model, other.training) == (c.loss, c.model, c.training)
        }
        for c in study.configurations
        if not c.quirks
    }


def judged(ledger: Ledger, record: Record, quirks: Sequence[str]) -> dict[str, Any]:
    """A record whose test scores are those of its stored image rows under some quirks."""
    if not record.get("metrics"):
        return dict(record)
    images = ledger.table(record["key"], "images")
    point = "shared" if "shared_threshold" in quirks else "own"
    rows = images[(images["set"] == "test") & (images["point"] == point)]
    scores = summarise(quirk_rows(rows, quirks))
    metrics = {name: dict(sets) for name, sets in record["metrics"].items()}
    metrics["own"]["test"] = scores
    return {**record, "metrics": metrics}


def quirk_table(rankings: Sequence[Ranking], metric: str) -> TextTable:
    """The order under each set of quirks, with the places that the strict rules would give, and how many change."""
    strict = {label: rank for label, rank, _ in rankings[0].order}
    rows = []
    for ranking in rankings:
        moved = [label for label, rank, _ in ranking.order if format_rank(rank) != format_rank(strict[label])]
        places = [
            f"{format_rank(rank)} {label} {format_value(metric, mean)}"
            + (f" (was {format_rank(strict[label])})" if label in moved else "")
            for label, rank, mean in ranking.order
        ]
        rows.append([ranking.quirk, f"{len(moved)} of {len(strict)}", ", ".join(places)])
    notes = [f"Place, configuration and mean of {metric_title(metric)} on the test set, best first."]
    return TextTable(["quirk", "moved", "order"], rows, notes)


def plain(trials: Sequence[PlannedTrial]) -> tuple[PlannedTrial, ...]:
    """Planned trials whose records count however they were judged: they were judged anew here."""
    return tuple(replace(trial, evaluation_key="") for trial in trials)

"""What each quirk of the reference study's code does to a study's ranking, one at a time, from the ledger alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from cellray.errors import StudyError
from cellray.metrics import quirk_rows, summarise
from cellray.record import TrialRecord
from cellray.report.ranking import make_tables, rows_of, select
from cellray.report.text import TextTable, format_rank, format_value, metric_title
from cellray.results import Results
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


def quirk_rankings(results: Results, study: Study, metric: str) -> list[Ranking]:
    """Rank the configurations without quirks of their own: strictly, with each quirk alone, and with all together.

    A quirk that acts on training puts configurations that have it in the place of those that lack it and are the same
    otherwise; one that acts on evaluation or ranking judges and counts the same trials anew.

    Args:
        results: Of the study.
        study: Under the strict protocol, its configurations with and without quirks.
        metric: A key of ``METRICS``.

    Raises:
        StudyError: If the whole study runs with quirks, so that there is nothing strict to compare with.
    """
    if study.all_quirks:
        raise StudyError(
            f"study {study.name!r} runs with {', '.join(study.all_quirks)}: to see what a quirk does, it needs "
            "configurations without it; see search_spaces/quirks.yaml"
        )
    plan, records, twins = results.plan, results.records, twins_of(study)
    images = {key: results.ledger.table(key, "images") for key, record in records.items() if record.metrics}

    def ranked(quirk: str, judged_with: Sequence[str], labels: Mapping[str, str], skip: bool) -> Ranking:
        trials = tuple(
            replace(t, label=base) for base, label in labels.items() for t in plan.trials if t.label == label
        )
        used = [judged(records[t.key], images.get(t.key), judged_with) for t in trials if t.key in records]
        counted = results.recounted(replace(plan, trials=trials, skip_collapsed=skip), used)
        rows = rows_of(select(make_tables(counted).ranking, set_name="test", metric=metric))
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
            if any(r.is_lost and r.label in swapped(name).values() for r in records.values()):
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


def judged(record: TrialRecord, images: pd.DataFrame | None, quirks: Sequence[str]) -> TrialRecord:
    """A record whose test scores are those of its image rows under some quirks."""
    if images is None:
        return record
    point = "shared" if "shared_threshold" in quirks else "own"
    rows = images[(images["set"] == "test") & (images["point"] == point)]
    own = {**record.metrics.get("own", {}), "test": summarise(quirk_rows(rows, quirks))}
    return record.model_copy(update={"metrics": {**record.metrics, "own": own}})


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

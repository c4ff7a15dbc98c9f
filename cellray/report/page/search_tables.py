"""The page's section on a search: how it was done, what it found, and what became of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cellray.metrics import METRICS
from cellray.record import Tried
from cellray.report.findings import Findings
from cellray.report.page.table_cells import PageTable, TableCell, head, number_cell
from cellray.report.ranking import rows_of
from cellray.report.searched import METHODS, STOPPING, Search, parameters_text
from cellray.report.text import format_rank, format_value, interval_cell, metric_title
from cellray.report.words import listing, plural
from cellray.scores import as_float

MOST_LISTED = 10
"""The best so many configurations stand in the table."""


@dataclass(frozen=True)
class SearchSection:
    """What the section shows besides its figures."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    """Name and text, in order."""
    best: PageTable | None = None
    """The best on validation images."""
    dropped: PageTable | None = None
    """What a race gave no further seeds."""
    stopped: PageTable | None = None
    """What was ended early."""
    sentences: list[str] = field(default_factory=list)
    """On the importance of parameters and on the best weights."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.facts or self.sentences)


def search_section(found: Findings) -> SearchSection:
    """Facts, tables and sentences; of a study without a search only what mixtures of losses say."""
    search = found.search
    on_weights = [text for family in found.families for text in (family.sentence, family.caveat) if text]
    if search is None:
        return SearchSection(sentences=on_weights)
    best = search.best_first(found.metric)[:MOST_LISTED] if search.suggests else []
    dropped, stopped = search.in_state("dropped"), search.in_state("stopped")
    return SearchSection(
        facts=list(search_facts(search)),
        best=best_table(best, search, found) if best else None,
        dropped=dropped_table(dropped, search, found) if dropped else None,
        stopped=stopped_table(stopped, found) if stopped else None,
        sentences=[*importance_sentences(search, found.parameter_names), *on_weights],
    )


def search_facts(search: Search) -> Iterator[tuple[str, str]]:
    """How the search was done, and what rule chose."""
    everyone = search.configurations
    given = sum(c.source == "given" for c in everyone)
    counts = [(f"{len(search.in_state(state))} {words}") for state, words in STATES.items() if search.in_state(state)]
    yield "Method", METHODS[search.method]
    tried = f"{len(everyone)}, of which {given} given by the study and {len(everyone) - given} suggested"
    yield "Configurations", (tried if search.suggests else str(len(everyone))) + f": {listing(counts)}"
    seeds = sorted({c.seeds for c in everyone})
    if seeds:
        span = plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        yield "Seeds", f"{span} a configuration"
    if search.suggests:
        titles = listing([metric_title(key) for key in search.metrics])
        worst = listing([format_value(key, as_float(METRICS[key].worst)) for key in search.metrics])
        yield (
            "Rule",
            f"A configuration is judged by the mean over its seeds of {titles} on validation images; a collapsed "
            f"or failed trial counts as the worst value, {worst}. Test images have no say.",
        )
    if search.gives_seeds:
        yield (
            "Rule",
            "All start with a few seeds; further ones go to the recommended configuration and to those that may "
            "still be better than it by more than the margin.",
        )
    if search.stopping:
        yield (
            "Early stopping",
            f"By {STOPPING[search.stopping]}, on the mean over a configuration's seeds of the validation Dice: all "
            "its trials end together. It is ranked as stopped, at its epoch.",
        )


STATES = {"finished": "finished", "stopped": "ended early", "dropped": "dropped from the race", "running": "running"}


def best_table(best: list[Tried], search: Search, found: Findings) -> PageTable:
    """The best on validation images, with what they score on the test images."""
    values = [
        (f"{metric_title(key)}, validation", "Mean over its seeds: by this it was chosen") for key in search.metrics
    ]
    columns = [
        ("Place", "By validation images"),
        ("Configuration", ""),
        ("Parameters", "Those that were searched"),
        *values,
        (f"{found.title}, test", "Mean over seeds with its 95 % interval over new seeds and new images"),
        ("Test rank", "Among all configurations; to choose by it would be to choose on the test images"),
        ("Seeds", ""),
    ]
    body = []
    for place, c in enumerate(best, start=1):
        seen = {key: search.value(c, key) for key in search.metrics}
        words = parameters_text(c.parameters, found.losses.get(c.label)) or "outside of the searched space"
        body.append(
            [
                number_cell(place, str(place), "" if c.acceptable else "breaks a constraint"),
                head(c.label),
                words_cell(words),
                *(number_cell(value, format_value(key, value)) for key, value in seen.items()),
                *test_cells(c, found),
                number_cell(c.seeds, str(c.seeds)),
            ]
        )
    rest = len(search.judged) - len(best)
    notes = [f"{plural(rest, 'further configuration')} with a value: all are in the ranking."] if rest else []
    return PageTable(columns, body, notes)


def test_cells(c: Tried, found: Findings) -> list[TableCell]:
    """Mean with its interval, and rank."""
    rows = rows_of(found.ranked[found.ranked.label == c.label])
    if not rows:
        return [number_cell(np.nan, "")] * 2
    (row,) = rows
    mean = format_value(found.metric, row.mean)
    interval = interval_cell(found.metric, row.low, row.high)
    return [number_cell(row.mean, mean, interval), number_cell(row.rank, format_rank(row.rank))]


def words_cell(text: str) -> TableCell:
    """Long text, or a dash."""
    return TableCell(text or "–", text, "words")


def dropped_table(dropped: list[Tried], search: Search, found: Findings) -> PageTable:
    """What a race dropped: after how many seeds, and why."""
    columns = [
        ("Configuration", ""),
        ("Seeds", "That it was given"),
        (f"{metric_title(search.metrics[0])}, validation", "Mean over these seeds"),
        (f"{found.title}, test", "The same with its 95 % interval; its trials are whole results"),
        ("Test rank", ""),
        ("Reason", ""),
    ]
    body = []
    for c in dropped:
        value = search.value(c) if c.values else np.nan
        validation = number_cell(value, format_value(search.metrics[0], value))
        seeds, reason = number_cell(c.seeds, str(c.seeds)), words_cell(c.reason)
        body.append([head(c.label), seeds, validation, *test_cells(c, found), reason])
    return PageTable(columns, body)


def stopped_table(stopped: list[Tried], found: Findings) -> PageTable:
    """What was ended early, in the order in which it is ranked: where, with which Dice, and why."""
    columns = [
        ("Configuration", ""),
        ("Epoch", "At which all its trials were ended"),
        ("Validation Dice", "There, mean over seeds; a collapsed one counts 0"),
        ("Seeds", ""),
        ("Parameters", "Those that were searched"),
        ("Reason", ""),
    ]
    place = {label: i for i, label in enumerate(found.ranked.label)}
    dice_of = found.ranked.set_index("label").stopped_dice
    body = []
    for c in sorted(stopped, key=lambda c: (place.get(c.label, len(place)), c.number)):
        epoch = float("nan") if c.epoch is None else float(c.epoch)
        dice = float(dice_of.get(c.label, np.nan))
        body.append(
            [
                head(c.label),
                number_cell(epoch, f"{epoch:.0f}" + (f" of {c.epochs}" if c.epochs else "")),
                number_cell(dice, format_value("dice", dice)),
                number_cell(c.seeds, str(c.seeds)),
                words_cell(parameters_text(c.parameters, found.losses.get(c.label))),
                words_cell(c.reason),
            ]
        )
    return PageTable(columns, body)


def importance_sentences(search: Search, names: Mapping[str, str]) -> list[str]:
    """Which parameters stand out from chance, or why nothing is said of that."""
    if not search.suggests:
        return []
    found = search.importance
    if found.missing:
        return [f"How much each parameter matters isn't worked out: {found.missing}"]
    clear = [f"{names[s.name]} {s.value:.2f} [{s.low:.2f}–{s.high:.2f}]" for s in found.shares if s.is_clear]
    said = (
        f"Parameters that explain more of the variation of the score than random numbers do: {listing(clear)}."
        if clear
        else "No parameter explains more of the variation of the score than random numbers may: what the figure of "
        "importance shows can be chance."
    )
    few = [f"{names[path]} ({n})" for path, n in found.left_out.items()]
    return [said] + ([f"Tried in too few configurations to say: {listing(few)}."] if few else [])

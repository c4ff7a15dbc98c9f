"""What a study's results say, worked out once and given to the answer, the figures, the page and the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd

from cellray.record import LossSettings, TrialRecord
from cellray.report.mixtures import WeightFamily, find_families
from cellray.report.ranking import Advice, Tables, select
from cellray.report.searched import Search, names_of_parameters, read_search
from cellray.report.text import metric_title
from cellray.results import Plan, Results
from cellray.results.details import NO_DETAILS, Details
from cellray.scores import stopped_in
from cellray.statistics import PAIR_COLUMNS


@dataclass(frozen=True)
class Findings:
    """A study's results, and what follows from them: each property is worked out when first asked for, and kept."""

    results: Results
    tables: Tables
    """With what `infer` found, where it has looked at the images."""
    details: Details = NO_DETAILS
    """Of the same trials."""
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Set -> metric -> how well human experts agree on its images, a ceiling."""

    @property
    def plan(self) -> Plan:
        """The planned trials, and the question."""
        return self.results.plan

    @property
    def records(self) -> Mapping[str, TrialRecord]:
        """Of the planned trials, by key."""
        return self.results.records

    @cached_property
    def search(self) -> Search | None:
        """What a search tried, where there was one."""
        return read_search(self.results.log)

    @property
    def metric(self) -> str:
        """The key of the metric that ranks."""
        return self.plan.rank_by

    @property
    def title(self) -> str:
        """Its name."""
        return metric_title(self.plan.rank_by)

    @property
    def external(self) -> list[str]:
        """The sets beyond the test and validation images."""
        return [name for name in self.tables.sets if name not in ("test", "val")]

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """Rows of the ranking on the test set by the metric that ranks, at each trial's own operating point."""
        return select(self.tables.ranking, set_name="test", metric=self.metric)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """The paired comparisons on the test set by that metric; none where images were not looked at."""
        inference = self.tables.inference
        return inference.pairs_of("test", self.metric) if inference else pd.DataFrame(columns=PAIR_COLUMNS)

    @property
    def choice(self) -> Advice | None:
        """Which configuration to take, where that can be said."""
        return self.tables.choice_of("test", self.metric)

    @property
    def unit(self) -> str:
        """What seeds are crossed with on the test set: `image`, or `group of images`."""
        return self.tables.inference.unit if self.tables.inference else "image"

    @cached_property
    def everyone(self) -> list[str]:
        """Every label, best first."""
        return list(map(str, self.ranked.label)) or self.plan.labels

    @cached_property
    def labels(self) -> list[str]:
        """Those that are compared, best first: none that was stopped early."""
        stopped = stopped_in(self.tables.scores)
        return [label for label in self.everyone if label not in stopped]

    @cached_property
    def compared(self) -> Tables:
        """The tables without the configurations that were stopped early: nothing is compared with those."""
        stopped = stopped_in(self.tables.scores)
        kept = {name: getattr(self.tables, name) for name in ("scores", "ranking", "trials")}
        return replace(self.tables, **{name: table[~table.label.isin(stopped)] for name, table in kept.items()})

    @cached_property
    def trials(self) -> dict[tuple[str, int], TrialRecord]:
        """The records by label and seed, in the order of the plan."""
        return {(t.label, t.seed): self.records[t.key] for t in self.plan.trials if t.key in self.records}

    @cached_property
    def by_label(self) -> dict[str, list[TrialRecord]]:
        """The records of each configuration; of one without any, an empty list."""
        found: dict[str, list[TrialRecord]] = {label: [] for label in self.plan.labels}
        for (label, _), record in self.trials.items():
            found[label].append(record)
        return found

    @cached_property
    def networks(self) -> dict[str, list[str]]:
        """The networks that were trained, each with the labels of its configurations, best first."""
        found: dict[str, list[str]] = {}
        for label in self.everyone:
            for name in dict.fromkeys(record.settings.model.title for record in self.by_label.get(label, [])):
                found.setdefault(name, []).append(label)
        found.pop("", None)
        return found

    @cached_property
    def losses(self) -> dict[str, LossSettings]:
        """The loss of each configuration that has a record, by label."""
        found = {label: record.settings.loss for (label, _), record in self.trials.items()}
        return {label: loss for label, loss in found.items() if loss.terms}

    @cached_property
    def families(self) -> list[WeightFamily]:
        """The families of losses that mix the same three terms in enough ways."""
        settings = {label: record.settings for (label, _), record in self.trials.items()}
        return find_families(self.ranked, settings, self.metric, self.search)

    @cached_property
    def parameter_names(self) -> dict[str, str]:
        """A name for each parameter of the search, as `Search.merged` has them."""
        return {} if self.search is None else names_of_parameters(self.search, self.losses)

    @property
    def ceiling(self) -> dict[str, float]:
        """Set -> how well human experts agree by the metric that ranks, where that is known."""
        return {name: values[self.metric] for name, values in self.agreement.items() if self.metric in values}

"""What a study's results are about: the question, the metric that ranks, and every planned trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cellray.record import PlannedTrial, SearchLog, TrialRecord
from cellray.study import ConfigurationConfig, Study


@dataclass(frozen=True)
class Plan:
    """What a report is about: the question, the metric that ranks, and every planned trial."""

    study: str
    question: str
    rank_by: str
    trials: tuple[PlannedTrial, ...]
    skip_collapsed: bool = False
    """The quirk of that name: means and ranks leave out collapsed and failed trials. The default rule never does."""
    epochs: int | None = None
    """Epochs of a trial where all have the same number; for progress and ETA, and where a record doesn't say."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Label -> when, in words: configurations that a race gives no more seeds. Their results are whole."""

    def planned(self, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
        """The records of planned trials, by key; out-of-date ones are left out."""
        by_key = {record.key: record for record in records}
        return {trial.key: record for trial in self.trials if (record := trial.find(by_key)) is not None}

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the plan."""
        return list(dict.fromkeys(trial.label for trial in self.trials))

    def with_dropped(self, log: SearchLog | None) -> Plan:
        """The same with the configurations that a race has dropped so far."""
        if log is None:
            return self
        gone = {c.label: c.seeds for c in log.in_state("dropped")}
        words = {label: f"dropped after {n} seed{'' if n == 1 else 's'}" for label, n in gone.items()}
        return replace(self, dropped=words)


def plan_of(study: Study, trials: Iterable[PlannedTrial]) -> Plan:
    """The plan of a study with these trials, small enough to be sent anywhere."""
    return Plan(
        study.name,
        study.question,
        study.evaluation.rank_by,
        tuple(trial.bare for trial in trials),
        skip_collapsed="skip_collapsed" in study.all_quirks,
        epochs=study.training.epochs,
    )


def known_study(study: Study, log: SearchLog | None) -> Study:
    """A study with the learning rates that its sweeps have chosen and the configurations they suggested so far."""
    if log is None:
        return study
    rates = {tried.tuned: tried.lr for tried in log.configurations if tried.lr is not None}
    study = study.with_configurations(c.with_rate(rates.get(study.content_hash(c))) for c in study.configurations)
    if study.search is None:
        return study
    suggested = [
        ConfigurationConfig.model_validate({"label": tried.label, **tried.settings})
        for tried in log.configurations
        if tried.source == "suggested" and tried.seeds
    ]
    return study.with_configurations([*study.configurations, *suggested])

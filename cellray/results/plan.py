"""What a study's results are about: the question, the metric that ranks, and every planned trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cellray.metrics import METRICS
from cellray.record import PlannedTrial, SearchLog, TrialRecord
from cellray.study import ConfigurationConfig, Study, Trial


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
    steps: int | None = None
    """Steps of a trial where these are what is planned."""
    within: float | None = None
    """A difference of the ranked metric that doesn't matter; None: `margin` has a default."""
    folds: int | None = None
    """Trainings of a trial, where each image is a test image of one."""
    is_drawn: bool = False
    """Whether the images are drawn, so that the study demonstrates and decides nothing."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Label -> when, in words: configurations that a race gives no more seeds. Their results are whole."""

    def planned(self, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
        """The records of planned trials, by key; out-of-date ones are left out."""
        by_key = {record.key: record for record in records}
        return {trial.key: record for trial in self.trials if (record := trial.find(by_key)) is not None}

    def margin(self, score: float) -> float:
        """A difference of the ranked metric that doesn't matter: as the study says, or 0.02 of the range of a share, or
        a twentieth of an error.

        Args:
            score: Of a good configuration.
        """
        if self.within is not None:
            return self.within
        metric = METRICS[self.rank_by]
        return 0.05 * abs(score) if metric.worst is None else 0.02 * abs(metric.best - metric.worst)

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
        epochs=study.training.epochs and study.training.epochs * (study.data.folds or 1),
        steps=study.training.steps and study.training.steps * (study.data.folds or 1),
        within=None if study.decide is None else study.decide.within,
        folds=study.data.folds,
        is_drawn=study.data.train.synthetic is not None,
    )


def known_trials(study: Study, log: SearchLog | None) -> list[Trial]:
    """The trials that its sweeps have planned so far, and those that it begins with."""
    known = known_study(study, log)
    if not study.gives_seeds or log is None:
        return known.trials()
    counts = {tried.label: tried.seeds for tried in log.configurations}
    order = known.more_seeds(max(counts.values(), default=0))
    first = len(study.first_seeds)
    every = known.with_seeds(max(len(order), first)).trials()
    return [trial for trial in every if trial.seed in order[: max(counts.get(trial.label, 0), first)]]


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

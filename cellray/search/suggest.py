"""What Optuna suggests, as a function of the study file and of the results that a suggestion may know.

A suggestion is made from a fresh sampler, whose seed comes from the study's and the suggestion's number, and from the
results of a fixed number of earlier configurations: so a search repeats itself whichever trial happens to end first,
however many run at once, and whatever is killed in between.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from cellray.ledger import Ledger
from cellray.metrics import METRICS
from cellray.record import Plain
from cellray.search.journal import LedgerJournal
from cellray.study import ConfigurationConfig, Study, short_hash
from cellray.study.space import Fixed

NUMBER = "number"
"""Attribute of an Optuna trial: the configuration's number in the study."""


class Suggester:
    """Configurations of a search, kept with their results in an Optuna study of its own in the ledger.

    Args:
        study: With a search.
        ledger: Its ledger, held by this process.
        fingerprint: Of the training images.
    """

    def __init__(self, study: Study, ledger: Ledger, fingerprint: str) -> None:
        assert study.search is not None
        self._study, self._config, self._space = study, study.search, study.search.parsed_space
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        self._directions = [up if METRICS[m].higher_is_better else down for m in study.searched_by]
        optuna.logging.set_verbosity(logging.WARNING)
        journal = LedgerJournal(ledger)
        with _quiet(), journal.reading():
            self._stored = optuna.create_study(
                storage=optuna.storages.JournalStorage(journal),
                study_name=f"{study.name}-{_identity(study, fingerprint)}",
                directions=self._directions,
                load_if_exists=True,
            )

    def given(self, number: int, configuration: ConfigurationConfig) -> dict[str, Plain]:
        """Make a configuration that the study lists known to the sampler, if it lies in the space.

        Returns:
            Its parameters for a reader; empty if it lies outside.
        """
        wanted = self._study.content(configuration)
        for values in self._space.locate(self._study.resolved(configuration)):
            settings, shown = self._space.draw(Fixed(values))
            if self._study.content(_configuration(configuration.label, settings)) == wanted:
                if self._find(number) is None:
                    study = self._study_of([], number)
                    study.enqueue_trial(values)
                    self._keep(number, study)
                return shown
        return {}

    def suggestion(self, number: int) -> tuple[ConfigurationConfig, dict[str, Plain]]:
        """Configuration `number`, as it was suggested before, or new.

        Args:
            number: All configurations up to ``number - at_once`` must have been told of (`tell`, `tell_stopped`).

        Returns:
            The configuration, labelled ``#number``, and its parameters for a reader.
        """
        trial = self._find(number)
        if trial is None:
            known = [t for t in self._trials() if t.user_attrs[NUMBER] <= number - self._config.at_once]
            trial = self._keep(number, self._study_of(known, number))
        settings, shown = self._space.draw(Fixed(trial.params))
        return _configuration(f"#{number}", settings), shown

    def tell(self, number: int, values: Sequence[float], bounded: Mapping[str, float]) -> None:
        """The result of a configuration: each metric of the search, and of each metric with a bound its excess."""
        trial = self._running(number)
        if trial is not None:
            for name, excess in bounded.items():
                trial.set_constraint(name, excess)
            self._stored.tell(trial.number, list(values))

    def tell_stopped(self, number: int, epoch: int, dice: float) -> None:
        """That a configuration was ended early, with its validation Dice at that epoch."""
        trial = self._running(number)
        if trial is not None:
            if len(self._directions) == 1:
                trial.report(dice, epoch)
            self._stored.tell(trial.number, state=TrialState.PRUNED)

    def _trials(self) -> list[FrozenTrial]:
        return [trial for trial in self._stored.get_trials(deepcopy=False) if NUMBER in trial.user_attrs]

    def _find(self, number: int) -> FrozenTrial | None:
        return next((t for t in self._trials() if t.user_attrs[NUMBER] == number), None)

    def _running(self, number: int) -> Trial | None:
        trial = self._find(number)
        known = trial is not None and trial.state == TrialState.RUNNING
        return Trial(self._stored, trial._trial_id) if trial is not None and known else None

    def _study_of(self, known: list[FrozenTrial], number: int) -> optuna.Study:
        """An Optuna study in memory that knows these trials, with the sampler of one suggestion."""
        with _quiet():
            study = optuna.create_study(directions=self._directions, sampler=self._sampler(number))
            study.add_trials(known)
        return study

    def _keep(self, number: int, study: optuna.Study) -> FrozenTrial:
        """Ask a study in memory for a trial and store it."""
        with _quiet():
            asked = study.ask()
            self._space.draw(asked)
        trial = study.trials[-1]
        fixed = ("fixed_params",)  # of a trial that was enqueued: it has them as parameters now
        self._stored.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={NUMBER: number},
                system_attrs={k: v for k, v in trial.system_attrs.items() if k not in fixed},
            )
        )
        found = self._find(number)
        assert found is not None
        return found

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler for one suggestion."""
        seed = int(hashlib.sha256(f"{self._config.seed}/{number}".encode()).hexdigest()[:8], 16)
        n_startup = min(10, max(self._config.budget // 4, 4))
        with _quiet():
            if self._config.method == "random":
                return optuna.samplers.RandomSampler(seed=seed)
            if self._config.method == "gp":
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=n_startup)
            if self._config.method == "nsga2":
                size = max(self._config.budget // 5, 4)
                return optuna.samplers.NSGAIISampler(seed=seed, population_size=size)
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=n_startup, multivariate=True, group=True)


def _identity(study: Study, fingerprint: str) -> str:
    """Names the Optuna study, by all that decides what is suggested; a larger budget goes on with the same one."""
    assert study.search is not None
    facts = study.model_dump(mode="json", include={"search": True, "seeds": True, "stopping": True})
    del facts["search"]["budget"]
    trials = study.select(seeds=study.seeds[:1]).trials() if study.configurations else []
    return short_hash(
        {
            **facts,
            "metrics": study.searched_by,
            "evaluation": study.judged_by.model_dump(mode="json"),
            "base": study.model_dump(
                mode="json", include={"model": True, "training": True}, exclude={"training": {"compile"}}
            ),
            "data": study.data.model_dump(mode="json", exclude={"train", "external"}),
            "given": [trial.key(fingerprint) for trial in trials],
            "fingerprint": fingerprint,
        }
    )


def _configuration(label: str, settings: Mapping[str, object]) -> ConfigurationConfig:
    return ConfigurationConfig.model_validate({"label": label, **settings})


class _quiet(warnings.catch_warnings):  # noqa: N801 (used as a function)
    """Without Optuna's notes on experimental features."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", module=r"optuna\b")

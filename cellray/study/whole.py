"""A whole study: one question, the configurations that contend, and the terms they contend on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count, islice
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cellray.errors import StudyError, one_of
from cellray.losses.check import CHECKS
from cellray.study.adaptive import DecideConfig, SearchConfig, StoppingConfig
from cellray.study.conflicts import (
    decide_problems,
    fold_problems,
    repeated_labels,
    repeated_seeds,
    search_problems,
)
from cellray.study.group import Settings
from cellray.study.keys import Recipe, Trial, canonical, short_hash
from cellray.study.loss import LossConfig
from cellray.study.merging import changed
from cellray.study.network import ModelConfig
from cellray.study.problems import Path, Problem, SettingsError, problems_in, shown_path
from cellray.study.quirks import QUIRKS, known_quirks
from cellray.study.roles import Role, in_order, shared_roles, trained_roles
from cellray.study.settings import (
    ConfigurationConfig,
    DataConfig,
    EvaluationConfig,
    ReferenceConfig,
    ResourcesConfig,
    SeedNumber,
    StudyTitle,
    Text,
    TrainingConfig,
)
from cellray.study.yaml_tree import write_tree


class Study(Settings):
    """A study file: one question, the configurations that contend, and the terms they contend on."""

    name: StudyTitle
    """Names the study's folder in the storage and its MLflow experiment."""
    question: Text
    """What the study is to answer, in one sentence; heads the report."""
    protocol: Literal["strict", "fluocells-2023"] = "strict"
    """`strict`: logits, one activation, one-to-one matching, correct counts, own operating points;
    `fluocells-2023`: the reference study's released code, with all its quirks."""
    quirks: tuple[str, ...] = ()
    """Single quirks of that code to switch on under the strict protocol."""
    allow: tuple[str, ...] = ()
    """Failures of the loss check that don't stop the sweep; keys of ``cellray.losses.check.CHECKS``."""
    data: DataConfig
    """The images that are trained on, chosen by and judged on."""
    model: ModelConfig = ModelConfig()
    """The network of every configuration that names no other."""
    training: TrainingConfig
    """How each network is trained, unless its configuration says otherwise."""
    loss: LossConfig | None = None
    """The loss of configurations that don't name one."""
    configurations: tuple[ConfigurationConfig, ...] = ()
    """The contenders; with a search those that are tried first."""
    seeds: tuple[SeedNumber, ...] = Field(min_length=1)
    """Paired repeats: every configuration is trained once with each."""
    search: SearchConfig | None = None
    """Suggests further configurations."""
    stopping: StoppingConfig | None = None
    """Ends poor configurations early."""
    decide: DecideConfig | None = None
    """Which difference matters, and what may be spent on further seeds until that is decided."""
    references: tuple[ReferenceConfig, ...] = ()
    """Predictions made elsewhere on the test images, shown beside the ranking: is the best one better?"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How trained networks are judged, and by what they are ranked."""
    resources: ResourcesConfig = ResourcesConfig()
    """Processors and disk. They decide how fast, never what comes out."""

    @field_validator("quirks")
    @classmethod
    def are_quirks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known_quirks(names))

    @field_validator("allow")
    @classmethod
    def are_checks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one_of("loss check", name, CHECKS) for name in names)

    @property
    def all_quirks(self) -> tuple[str, ...]:
        """The quirks of every configuration, in the order of `QUIRKS`."""
        return tuple(name for name in QUIRKS if name in self.quirks or self.protocol != "strict")

    @model_validator(mode="after")
    def can_be_run(self) -> Study:
        """Check what no single field can know."""
        problems = [*repeated_seeds(self.seeds), *self._adapting_problems()]
        labels: list[str] = []
        resolved: dict[str, str] = {}
        for i, configuration in enumerate(self.configurations):
            at: Path = ("configurations", i)
            if configuration.label in labels:
                words = f"a second configuration is labelled {configuration.label!r}; give each its own label"
                problems.append(Problem((*at, "label"), words))
            labels.append(configuration.label)
            try:
                problems += self._too_few_rows(at, configuration)
                content = self.content(configuration)
            except SettingsError as found:
                problems += [Problem(at + problem.path, problem.message) for problem in found.problems]
                continue
            if content in resolved:
                same = f"{configuration.label!r} has the same settings as {resolved[content]!r}"
                problems.append(Problem(at, f"{same}: nothing is compared"))
            resolved.setdefault(content, configuration.label)
        problems += repeated_labels([reference.label for reference in self.references], labels)
        if problems:
            raise SettingsError(problems)
        return self

    def _too_few_rows(self, at: Path, configuration: ConfigurationConfig) -> list[Problem]:
        """Each worker needs a row of every batch."""
        n_workers, batch_size = self.resources.n_workers, self.recipe(configuration).training.batch_size
        if batch_size >= n_workers:
            return []
        words = f"{configuration.label!r} has a batch_size of {batch_size}, too few for {n_workers} workers"
        return [Problem(at, words)]

    def _adapting_problems(self) -> list[Problem]:
        """What doesn't go together in search, stopping, decide and folds."""
        n, rank_by = len(self.configurations), self.evaluation.rank_by
        problems = []
        if self.data.folds is not None:
            choosers = [name for name in ("search", "stopping") if getattr(self, name) is not None]
            rates = [self.training.lr, *(configuration.training.get("lr") for configuration in self.configurations)]
            problems += fold_problems([*choosers, *(["training.lr: tune"] if "tune" in rates else [])])
        if self.search is None and not n:
            problems.append(Problem(("configurations",), "must have at least 1 entry, unless there is a search"))
        if self.decide is not None:
            others = [name for name in ("search", "stopping") if getattr(self, name) is not None]
            n_seeds = len(self.seeds)
            problems += decide_problems(self.decide, others, n_seeds=n_seeds, n_configurations=n, rank_by=rank_by)
        if self.search is not None:
            problems += search_problems(self.search, n_configurations=n, rank_by=rank_by)
            problems += self._space_problems(self.search)
        return problems

    def _space_problems(self, search: SearchConfig) -> list[Problem]:
        """What is wrong with the configurations that a search can suggest, each thing once."""
        found: dict[Problem, None] = {}
        for settings, _ in search.parsed_space.corners():
            try:
                self.recipe(ConfigurationConfig.model_validate({"label": "corner", **settings}))
            except ValidationError as error:
                found |= dict.fromkeys(problems_in(error, ConfigurationConfig))
            except SettingsError as error:
                found |= dict.fromkeys(error.problems)
        return [Problem(("search", "space", *path), message) for path, message in found]

    @property
    def adapts(self) -> bool:
        """Whether results decide which trials there are."""
        return self.search is not None or self.stopping is not None or self.gives_seeds

    @property
    def gives_seeds(self) -> bool:
        """Whether results decide how many seeds each configuration gets."""
        return self.decide is not None and self.decide.at_most is not None

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """Those that every configuration gets."""
        first = self.decide.first if self.decide is not None and self.gives_seeds else None
        return self.seeds[:first]

    @property
    def most_trials(self) -> int | None:
        """Trials that results may lead to; None: as many as are listed, or as its hours allow."""
        if self.search is not None:
            return self.search.budget * len(self.seeds)
        return self.decide.most_trials if self.decide is not None else None

    def more_seeds(self, n: int) -> tuple[int, ...]:
        """The first n seeds: those of the file, and then the whole numbers that aren't among them."""
        further = (seed for seed in count() if seed not in self.seeds)
        return (*self.seeds, *islice(further, max(n - len(self.seeds), 0)))[:n]

    def with_seeds(self, n: int) -> Study:
        """The same study with the first n seeds for all."""
        return self.model_copy(update={"seeds": self.more_seeds(n), "decide": None})

    @property
    def tunes_rates(self) -> bool:
        """Whether a configuration's learning rate is chosen before its trials."""
        if self.search is not None and self.training.lr == "tune":
            return True
        return any(self.recipe(configuration).training.lr == "tune" for configuration in self.configurations)

    @property
    def keeps_log(self) -> bool:
        """Whether its ledger says how its trials came about."""
        return self.adapts or self.tunes_rates

    @property
    def searched_by(self) -> tuple[str, ...]:
        """The metrics on validation images that a search goes by."""
        return (self.search.metrics if self.search else ()) or (self.evaluation.rank_by,)

    def resolved(self, configuration: ConfigurationConfig) -> dict[str, dict[str, object]]:
        """A configuration's loss, model and training with all defaults, as plain data."""
        model, loss, training = self.recipe(configuration)
        return {"loss": loss.model_dump(), "model": model.model_dump(), "training": training.model_dump()}

    def content(self, configuration: ConfigurationConfig) -> str:
        """What decides a configuration's trainings besides data and seed, as text to compare."""
        return json.dumps(canonical(self.recipe(configuration).decisive()), sort_keys=True)

    def content_hash(self, configuration: ConfigurationConfig) -> str:
        """Short hash of `content`."""
        return short_hash(self.content(configuration))

    def examples(self) -> list[ConfigurationConfig]:
        """Every listed configuration, and enough of a search's space to see each choice and both ends of each range."""
        corners = self.search.parsed_space.corners() if self.search else ()
        return [
            *self.configurations,
            *(
                ConfigurationConfig.model_validate({"label": f"search.space, example {i}", **settings})
                for i, (settings, _) in enumerate(corners, 1)
            ),
        ]

    def with_configurations(self, configurations: Iterable[ConfigurationConfig]) -> Study:
        """The same study with these configurations, which have been checked: those it lists and what was suggested."""
        return self.model_copy(update={"configurations": tuple(configurations)})

    def recipe(self, configuration: ConfigurationConfig) -> Recipe:
        """The study's settings with a configuration's changes, or `SettingsError` with paths below it."""
        problems: list[Problem] = []
        anew = configuration.model.get("name", self.model.name) != self.model.name
        model = changed(self.model, "model", configuration.model, problems, anew=anew)
        training = changed(self.training, "training", configuration.training, problems)
        loss = configuration.loss or self.loss
        if loss is None:
            problems.append(Problem((), f"configuration {configuration.label!r} has no loss, nor has the study"))
        if problems or loss is None:
            raise SettingsError(problems)
        quirks = self.quirks_of(configuration)
        if self.protocol != "strict":
            training = training.model_copy(update={"clip": None})
        if "lr_test_ignored" in quirks:
            training = training.model_copy(update={"lr": 1e-3, "schedule": "one_cycle"})
        try:
            return Recipe(model, loss.with_quirks(quirks), training)
        except ValidationError as error:
            raise SettingsError(
                Problem(("loss", *p.path), f"with the quirks {', '.join(quirks)}: {p.message}")
                for p in problems_in(error, LossConfig)
            ) from None

    def quirks_of(self, configuration: ConfigurationConfig) -> tuple[str, ...]:
        """The quirks that a configuration is trained, judged and ranked with."""
        return tuple(name for name in QUIRKS if name in self.all_quirks or name in configuration.quirks)

    @property
    def judged_by(self) -> EvaluationConfig:
        """The evaluation settings with the study's quirks."""
        changes: dict[str, object] = {}
        if "many_to_one" in self.all_quirks:
            changes["matching"] = "many_to_one"
        if "released_counts" in self.all_quirks:
            changes["counts"] = "released"
        if "shared_threshold" in self.all_quirks:
            changes["operating_point"] = self.evaluation.shared_point
        return self.evaluation.model_copy(update=changes)

    def trials(self) -> list[Trial]:
        """Every listed configuration with every seed that all get, all configurations of a seed before the next one."""
        resolved = [(c.label, self.quirks_of(c), *self.recipe(c)) for c in self.configurations]
        return [
            Trial(
                study=self.name,
                label=label,
                seed=seed,
                protocol=self.protocol,
                quirks=quirks,
                data=self.data,
                model=model,
                loss=loss,
                training=training,
                evaluation=self.judged_by,
            )
            for seed in self.first_seeds
            for label, quirks, model, loss, training in resolved
        ]

    def select(self, *, seeds: Iterable[int] | None = None, only: Iterable[str] | None = None) -> Study:
        """The same study with other seeds, or with only the configurations of these labels.

        Raises:
            StudyError: If a label is unknown, a seed is repeated or out of range, or nothing is left.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        if only is not None:
            labels = [one_of("configuration", label, [c.label for c in self.configurations]) for label in only]
            values["configurations"] = tuple(c for c in self.configurations if c.label in labels)
        if seeds is not None:
            values["seeds"] = tuple(seeds)
        try:
            return Study.model_validate(values)
        except ValidationError as error:
            found = problems_in(error, Study)
            raise StudyError("; ".join(f"{shown_path(p.path)}: {p.message}" for p in found)) from None

    def dump_yaml(self) -> str:
        """The study as resolved: every default written out. Loading it gives an equal study."""
        return write_tree(self.model_dump(mode="json"))

    def roles(self) -> list[Role]:
        """The part of every parameter that decides a result: compared first, then tuned, then fixed.

        The terms of a combined loss are one parameter, ``loss.terms``, each combination a line of text.
        """
        ranges = self.search.parsed_space.describe() if self.search else {}
        plain = {"data": self.data.model_dump(mode="json"), "evaluation": self.judged_by.model_dump(mode="json")}
        return in_order(
            [
                *(Role(name, "compared", [words]) for name, words in ranges.items()),
                *trained_roles(
                    map(self.recipe, self.configurations),
                    searched=self.search is not None,
                    tunes_rate=self.training.lr == "tune",
                ),
                *shared_roles({"protocol": self.protocol, **plain}),
            ]
        )

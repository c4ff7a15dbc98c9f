"""A whole study, its trials, and the keys by which a ledger knows what is done already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cellray.errors import StudyError, one_of
from cellray.losses import LOSSES, PRESETS, RELEASED
from cellray.losses.check import CHECKS
from cellray.metrics import MEDIANS, METRICS
from cellray.model import MODELS
from cellray.study.base import Settings
from cellray.study.loss import LossConfig, check_loss_settings
from cellray.study.problems import Path, Problem, SettingsError, problems_in, shown_path
from cellray.study.quirks import QUIRKS, known_quirks
from cellray.study.search import RacingConfig, SearchConfig, StoppingConfig
from cellray.study.settings import (
    ConfigurationConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    Name,
    ResourcesConfig,
    Seed,
    TrainingConfig,
)
from cellray.study.yaml_tree import write_tree

SCHEMA_VERSION = 1
"""Raised when a change of code changes what a training computes, rounding aside: old records then count as not done."""
EVALUATION_VERSION = 2
"""Raised when a change of code changes the scores of trained weights: they are then evaluated again."""

T = TypeVar("T", bound=Settings)


class Role(NamedTuple):
    """What part a parameter plays in a study."""

    parameter: str
    """Dotted path, as in the study file."""
    role: Literal["compared", "tuned", "fixed"]
    value: Any
    """Of a compared parameter: the list of its distinct values."""


class Trial(Settings):
    """One configuration with one seed: everything that decides a training run, and its keys."""

    study: str
    label: str
    seed: int
    protocol: str
    quirks: tuple[str, ...] = ()
    """What differs from the strict protocol; those that act on training or evaluation are in the settings already."""
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    def key(self, fingerprint: str) -> str:
        """Short hash of what decides the trained weights: settings, seed, data, code; no paths, no label.

        Args:
            fingerprint: Of the training set's content (`Dataset.fingerprint`).
        """
        data = self.data.model_dump(mode="json", include={"channels", "normalise", "val_fraction", "test_fraction"})
        data["split_seed"] = self.seed if self.data.split_seed is None else self.data.split_seed
        return short_hash(
            {
                "schema": SCHEMA_VERSION,
                "protocol": "strict",  # quirks that act on training are part of its settings
                "fingerprint": fingerprint,
                "data": data,
                "seed": self.seed,
                **_decisive(self.model, self.loss, self.training),
            }
        )

    def evaluation_key(self, facts: Mapping[str, Any]) -> str:
        """Short hash of what decides the scores of trained weights; a change evaluates again, no training.

        Args:
            facts: Fingerprint and mean diameter of each set, by the set's name.
        """
        evaluation = self.evaluation.model_dump(mode="json")
        if self.evaluation.operating_point != "validation":
            del evaluation["rank_by"]  # otherwise also what the validation images choose the point by
        return short_hash(
            {"schema": SCHEMA_VERSION, "version": EVALUATION_VERSION, "evaluation": evaluation, "sets": facts}
        )


class Study(Settings):
    """A study file: one question, the configurations that contend, and the terms they contend on."""

    name: Name
    """Names the study's folder in the storage and its MLflow experiment."""
    question: str
    """What the study is to answer, in one sentence; heads the report."""
    protocol: Literal["strict", "fluocells-2023"] = "strict"
    """`strict`: logits, one activation, one-to-one matching, correct counts, own operating points;
    `fluocells-2023`: the reference study's released code, with all its quirks."""
    quirks: tuple[str, ...] = ()
    """Single quirks of that code to switch on under the strict protocol."""
    allow: tuple[str, ...] = ()
    """Failures of the loss check that don't stop the sweep; keys of ``cellray.losses.check.CHECKS``."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    loss: LossConfig | None = None
    """The loss of configurations that don't name one."""
    configurations: tuple[ConfigurationConfig, ...] = ()
    """The contenders; with a search those that are tried first."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Paired repeats: every configuration is trained once with each."""
    search: SearchConfig | None = None
    """Suggests further configurations."""
    stopping: StoppingConfig | None = None
    """Ends poor configurations early."""
    racing: RacingConfig | None = None
    """Gives more seeds to configurations that may be the best, up to `seeds`."""
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()

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
        problems = [
            Problem(("seeds", i), f"seed {seed} is given twice; each repeat needs its own")
            for i, seed in enumerate(self.seeds)
            if seed in self.seeds[:i]
        ]
        problems += self._adapting_problems()
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
        if problems:
            raise SettingsError(problems)
        return self

    def _too_few_rows(self, at: Path, configuration: ConfigurationConfig) -> list[Problem]:
        """Each worker needs a row of every batch."""
        n_workers, batch_size = self.resources.n_workers, self._resolve(configuration)[2].batch_size
        if batch_size >= n_workers:
            return []
        words = f"{configuration.label!r} has a batch_size of {batch_size}, too few for {n_workers} workers"
        return [Problem(at, words)]

    def _adapting_problems(self) -> list[Problem]:
        """What doesn't go together in search, stopping and racing."""
        problems = []
        if self.search is None and not self.configurations:
            problems.append(Problem(("configurations",), "must have at least 1 entry, unless there is a search"))
        if self.racing is not None:
            for name in ("search", "stopping"):
                if getattr(self, name) is not None:
                    problems.append(Problem(("racing",), f"doesn't go together with {name}: drop one of them"))
            if self.racing.start > len(self.seeds):
                words = f"starts with {self.racing.start} seeds, but the study has only {len(self.seeds)}"
                problems.append(Problem(("racing", "start"), words))
            least = self.racing.start * len(self.configurations)
            if self.racing.budget is not None and self.racing.budget < least:
                words = f"{self.racing.start} seeds of {len(self.configurations)} configurations are {least} trials"
                problems.append(Problem(("racing", "budget"), f"is too small: {words}"))
            if self.evaluation.rank_by in MEDIANS:
                words = f"can't compare by {self.evaluation.rank_by!r}, a median; rank by another metric"
                problems.append(Problem(("racing",), words))
        if self.search is None:
            return problems
        if self.search.budget < len(self.configurations):
            words = f"is smaller than the {len(self.configurations)} configurations that the study lists"
            problems.append(Problem(("search", "budget"), words))
        if not self.search.metrics and METRICS[self.evaluation.rank_by].worst is None:
            words = f"name bounded metrics here: evaluation.rank_by {self.evaluation.rank_by!r} has no worst value"
            problems.append(Problem(("search", "metrics"), words))
        found: dict[tuple[Path, str], None] = {}
        for settings, _ in self.search.parsed_space.corners():
            try:
                self._resolve(ConfigurationConfig.model_validate({"label": "corner", **settings}))
            except ValidationError as error:
                found |= {(p.path, p.message): None for p in problems_in(error, ConfigurationConfig)}
            except SettingsError as error:
                found |= {(p.path, p.message): None for p in error.problems}
        return problems + [Problem(("search", "space", *path), message) for path, message in found]

    @property
    def adapts(self) -> bool:
        """Whether results decide which trials there are."""
        return self.search is not None or self.stopping is not None or self.racing is not None

    @property
    def searched_by(self) -> tuple[str, ...]:
        """The metrics on validation images that a search goes by."""
        return (self.search.metrics if self.search else ()) or (self.evaluation.rank_by,)

    def resolved(self, configuration: ConfigurationConfig) -> dict[str, Any]:
        """A configuration's loss, model and training with all defaults, as plain data."""
        model, loss, training = self._resolve(configuration)
        return {"loss": loss.model_dump(), "model": model.model_dump(), "training": training.model_dump()}

    def content(self, configuration: ConfigurationConfig) -> str:
        """What decides a configuration's trainings besides data and seed, as text to compare."""
        return json.dumps(_canonical(_decisive(*self._resolve(configuration))), sort_keys=True)

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

    def _resolve(self, configuration: ConfigurationConfig) -> tuple[ModelConfig, LossConfig, TrainingConfig]:
        """The study's settings with a configuration's changes, or `SettingsError` with paths below it."""
        problems: list[Problem] = []
        model, found = _changed(self.model, "model", configuration.model)
        problems += found
        training, found = _changed(self.training, "training", configuration.training)
        problems += found
        loss = configuration.loss or self.loss
        if loss is None:
            problems.append(Problem((), f"configuration {configuration.label!r} has no loss, nor has the study"))
        if problems or loss is None:
            raise SettingsError(problems)
        quirks = self.quirks_of(configuration)
        if "lr_test_ignored" in quirks:
            training = training.model_copy(update={"lr": 1e-3, "schedule": "one_cycle"})
        try:
            return model, loss.with_quirks(quirks), training
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
        changes: dict[str, Any] = {}
        if "many_to_one" in self.all_quirks:
            changes["matching"] = "many_to_one"
        if "released_counts" in self.all_quirks:
            changes["counts"] = "released"
        if "shared_threshold" in self.all_quirks:
            changes["operating_point"] = self.evaluation.shared_point
        return self.evaluation.model_copy(update=changes)

    def trials(self) -> list[Trial]:
        """Every listed configuration with every seed, all configurations of a seed before the next seed."""
        resolved = [(c.label, self.quirks_of(c), *self._resolve(c)) for c in self.configurations]
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
            for seed in self.seeds
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
        roles: dict[str, list[Role]] = {"compared": [], "tuned": [], "fixed": []}
        if self.search is not None:
            for name, words in self.search.parsed_space.describe().items():
                roles["compared"].append(Role(name, "compared", [words]))
        leaves = []
        for model, loss, training in (self._resolve(c) for c in self.configurations):
            groups = _decisive(model, loss, training)
            if loss.name is None:
                groups["loss"] = {"terms": loss.describe()}
            leaves.append(_leaves(groups))
        for path in dict.fromkeys(path for each in leaves for path in each):
            values = [each[path] for each in leaves if path in each]
            distinct = [value for i, value in enumerate(values) if value not in values[:i]]
            is_choice = path in ("loss.name", "loss.terms") and len(values) < len(leaves)
            if len(distinct) > 1 or is_choice:
                if self.search is None:  # else the ranges say it
                    roles["compared"].append(Role(path, "compared", distinct))
            elif path == "training.lr" and distinct[0] == "range_test":
                roles["tuned"].append(Role(path, "tuned", distinct[0]))
            else:
                roles["fixed"].append(Role(path, "fixed", distinct[0]))
        for path, value in _leaves(
            _plain({"protocol": self.protocol, "data": self.data, "evaluation": self.judged_by})
        ).items():
            if path == "evaluation.operating_point" and value == "validation":
                roles["tuned"].append(Role(path, "tuned", value))
            else:
                roles["fixed"].append(Role(path, "fixed", value))
        return [role for part in roles.values() for role in part]


def study_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    schema = Study.model_json_schema()
    types = schema["$defs"]
    for owner, key, words in (
        ("ModelConfig", "name", MODELS),
        ("EvaluationConfig", "rank_by", METRICS),
    ):
        place = types[owner]["properties"][key]
        place.pop("type")
        place["enum"] = list(words)
    trained = [name for name, quirk in QUIRKS.items() if quirk.acts_on == "training"]
    for place, known in (
        (schema["properties"]["quirks"], list(QUIRKS)),
        (schema["properties"]["allow"], list(CHECKS)),
        (types["ConfigurationConfig"]["properties"]["quirks"], trained),
    ):
        place["items"] = {"enum": known}
    for owner in ("TermConfig", "LossConfig"):
        place = types[owner]["properties"]["name"]
        names: list[dict[str, Any]] = [{"enum": [*LOSSES, *RELEASED, *PRESETS]}, {"type": "string", "pattern": ":"}]
        place.pop("type", None)
        place["anyOf"] = [*names, {"type": "null"}] if owner == "LossConfig" else names
    for key, owner in (("model", "ModelConfig"), ("training", "TrainingConfig")):
        # All settings of both have defaults, so that the whole also describes a part.
        place = types["ConfigurationConfig"]["properties"][key]
        types["ConfigurationConfig"]["properties"][key] = {
            "$ref": f"#/$defs/{owner}",
            "description": place["description"],
        }
    for owner in ("TermConfig", "LossConfig"):
        types[owner]["allOf"] = [
            {
                "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
                "then": {"properties": {"settings": {"propertyNames": {"enum": list(check_loss_settings(name, {}))}}}},
            }
            for name in LOSSES | RELEASED
        ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def short_hash(content: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `content`; 1 and 1.0 count as equal."""
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _changed(base: T, name: str, changes: Mapping[str, Any]) -> tuple[T, list[Problem]]:
    """`base` with some settings changed, and what is wrong with them, with paths that begin with `name`."""
    if not changes:
        return base, []
    text = json.dumps(_merged(base.model_dump(mode="json"), changes))
    try:
        return type(base).model_validate_json(text, strict=True), []
    except ValidationError as error:
        return base, [Problem((name, *p.path), p.message) for p in problems_in(error, type(base))]


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in changes.items():
        inner = both.get(key)
        both[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return both


def _plain(groups: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in groups.items()}


def _decisive(model: ModelConfig, loss: LossConfig, training: TrainingConfig) -> dict[str, Any]:
    """Plain settings of a training, without those that can't change what comes out."""
    groups = _plain({"model": model, "loss": loss.decisive(), "training": training})
    if training.lr != "range_test":
        del groups["training"]["range_test"]
    return groups


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted path -> value; an empty mapping or a list of plain values is a leaf."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found |= _leaves(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            for i, entry in enumerate(value):
                found |= _leaves(entry, f"{path}[{i}].") if isinstance(entry, Mapping) else {f"{path}[{i}]": entry}
        else:
            found[path] = value
    return found

"""What a ledger's JSON files say, each parsed in one place: trial.json, plan.json and search.json.

Each file has a frozen type. A key that a record of an older version lacks has a default here, and one that a newer
version added is left out, so that readers never ask whether something is there. A file that doesn't fit its type is a
`LedgerError` that names the file and the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Literal, NamedTuple, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cellray.errors import LedgerError
from cellray.postprocess import OperatingPoint
from cellray.study import SCHEMA_VERSION, EvaluationConfig, ModelConfig, Trial

Outcome = Literal["finished", "collapsed", "failed", "stopped"]
Number = int | float | None
Plain = bool | int | float | str | None
Scores = Mapping[str, Number]
"""Metric -> value, of one set at one operating point."""

_T = TypeVar("_T")


class Validated(NamedTuple):
    """How a network does on the validation images."""

    loss: float
    """Mean over images."""
    dice: float
    """Of all pixels, at the threshold where it is highest."""
    threshold: float


class EpochRow(TypedDict):
    """One row of a trial's history.parquet; what wasn't measured in an epoch is NaN."""

    epoch: int
    """From 1."""
    step: int
    """Steps trained by its end."""
    train_loss: float
    val_loss: float
    val_dice: float
    """At its best threshold."""
    val_threshold: float
    lr: float
    seconds: float
    images_per_s: float
    peak_memory_mb: float


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), populate_by_name=True)


class _Kept(BaseModel):
    """A group of settings: typed where cellray reads it, and whole for those who show it."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def plain(self) -> dict[str, object]:
        """As stored."""
        return self.model_dump(mode="json", exclude_unset=True)


class TermSettings(_Kept):
    """One term of a trial's loss."""

    name: str | None = None
    code: str | None = None
    weight: float = 1.0
    settings: dict[str, Plain] = {}

    @property
    def title(self) -> str:
        """What it is called: its name, or the address of its code."""
        return str(self.name or self.code)


class LossSettings(_Kept):
    """A trial's loss."""

    terms: tuple[TermSettings, ...] = ()


class RangeTestSettings(_Kept):
    """Which learning rates a range test was to try."""

    steps: int | None = None


class TrainingSettings(_Kept):
    """How a trial was trained."""

    epochs: int | None = None
    """None where the budget is steps."""
    steps: int | None = None
    batch_size: int | None = None
    precision: str = "auto"
    range_test: RangeTestSettings = RangeTestSettings()

    @property
    def only_budget(self) -> TrainingSettings:
        """The epochs alone, where they are stated."""
        return TrainingSettings(epochs=self.epochs) if "epochs" in self.model_fields_set else TrainingSettings()


class NetworkSettings(_Kept):
    """What a trial trained."""

    name: str = "c_resunet"
    base_features: int | None = None
    settings: dict[str, object] = {}
    weights: str | None = None
    code: str | None = None
    weights_hash: str | None = None

    @property
    def config(self) -> ModelConfig:
        """The network, checked."""
        return ModelConfig.model_validate(self.model_dump(include=set(ModelConfig.model_fields)))

    @property
    def title(self) -> str:
        """What it is called: its name, and the settings that are no defaults; empty if the record doesn't say."""
        if "name" not in self.model_fields_set:
            return ""
        try:
            return self.config.describe()
        except ValidationError:  # of a version that knows another
            return self.name


class DatasetSettings(_Kept):
    """A set of images as the study names it."""

    name: str = ""
    path: str | None = None


class DataSettings(_Kept):
    """Which images a trial had, and how they were read."""

    channels: int = 3
    channel: int | str | None = None
    plane: int | str | None = None
    ignore: int | None = None
    normalise: str = "none"
    folds: int | None = None
    train: DatasetSettings | None = None
    external: tuple[DatasetSettings, ...] = ()


class TrialSettings(_Kept):
    """All settings of a trial, as its record states them."""

    data: DataSettings = DataSettings()
    evaluation: dict[str, object] = {}
    loss: LossSettings = LossSettings()
    model: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()

    @property
    def rules(self) -> EvaluationConfig:
        """The evaluation settings, checked."""
        return EvaluationConfig.model_validate(self.evaluation)


class SetFacts(_Part):
    """One external set."""

    fingerprint: str = ""
    n_images: int = 0
    diameter_px: float | None = None


class DataFacts(_Part):
    """What a trial's images were."""

    fingerprint: str = ""
    diameter_px: float | None = None
    """Mean cell diameter of the training set."""
    split_hash: str = ""
    """Of the images that are drawn for training, validation and test."""
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    sets: dict[str, SetFacts] = {}
    """The external sets by name."""


class Seconds(_Part):
    """How long a trial took."""

    training: float | None = None
    evaluation: float | None = None
    compilation: float | None = None
    """Before the training; little where another trial of the machine had compiled the same network."""
    waiting: float | None = None
    """Until the trained network was judged, of a trial that had given up its GPU or its workers by then."""

    @property
    def total(self) -> float:
        """Of what is known."""
        return (self.training or 0.0) + (self.evaluation or 0.0) + (self.compilation or 0.0)


class Compilation(_Part):
    """Of a network whose training steps ran compiled."""

    compiler: str
    steps: int
    """That ran compiled; fewer than all where the training went on elsewhere without a compiler."""


class Provenance(_Part):
    """By what, where and when a record was made; "" where it isn't known."""

    cellray: str = ""
    code: str = ""
    torch: str = ""
    python: str = ""
    device: str = ""
    gpus: float | None = None
    """GPUs that the trial was given; None where it isn't known."""
    host: str = ""
    started: str = ""
    ended: str = ""

    @property
    def elapsed_s(self) -> float:
        """From start to end by the clock."""
        return (datetime.fromisoformat(self.ended) - datetime.fromisoformat(self.started)).total_seconds()


class RangeTest(_Part):
    """The learning rates that were tried, rising, and the loss at each."""

    lr: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()


class OverlayFile(_Part):
    """One picture of hits and misses."""

    set: str
    role: str
    file: str
    """In the trial's folder."""
    image: str = ""
    f1_iou: float | None = None
    n_true: int | None = None
    n_pred: int | None = None


class TrialRecord(_Part):
    """The contents of one trial.json: what a trial was, what came out, and how."""

    schema_version: int = Field(default=1, alias="schema")
    key: str
    evaluation_key: str = ""
    study: str = ""
    label: str
    seed: int
    protocol: str = ""
    quirks: tuple[str, ...] = ()
    settings: TrialSettings = TrialSettings()
    data: DataFacts = DataFacts()
    outcome: Outcome
    reason: str | None = None
    """Why it isn't `finished`."""
    seconds: Seconds = Seconds()
    peak_memory_mb: float | None = None
    provenance: Provenance = Provenance()
    n_parameters: int | None = None
    best_epoch: int | None = None
    validation_dice: float | None = None
    """Of the last validation."""
    epochs: int | None = None
    """Trained."""
    steps: int | None = None
    lr: float | None = None
    """Peak rate, given or found by the range test."""
    range_test: RangeTest | None = None
    term_scales: tuple[float, ...] | None = None
    """What each term of a balanced loss was multiplied by."""
    compiled: Compilation | None = None
    """None where every step ran as torch has it."""
    operating_point: OperatingPoint | None = None
    operating_point_score: float | None = None
    """On the validation images, in the metric that ranks."""
    operating_point_gain: float | None = None
    operating_point_candidates: int | None = None
    metrics: Mapping[str, Mapping[str, Mapping[str, Number]]] = {}
    """By operating point (own, shared), set and metric; empty if it wasn't judged."""
    overlays: tuple[OverlayFile, ...] = ()

    @property
    def is_lost(self) -> bool:
        """Whether it counts as the worst value."""
        return self.outcome in ("failed", "collapsed")

    @property
    def pair(self) -> tuple[str, int]:
        """Label and seed."""
        return self.label, self.seed

    @property
    def range_test_ended(self) -> float | None:
        """The rate at which the range test ended before it had tried all; None if it tried all, or there was none."""
        tried, planned = self.range_test.lr if self.range_test else (), self.settings.training.range_test.steps
        return tried[-1] if planned is not None and 0 < len(tried) < planned else None

    @property
    def lr_in_doubt(self) -> bool:
        """Whether the range test chose the lowest rate that it tried, or ended before half of its rates were tried."""
        tried, planned = self.range_test.lr if self.range_test else (), self.settings.training.range_test.steps
        if not tried or self.lr is None or not math.isfinite(self.lr):
            return False
        return self.lr <= min(tried) * 1.001 or (planned is not None and len(tried) < planned / 2)

    def scores(self, set_name: str, point: str = "own") -> Scores | None:
        """Its metrics in a set at an operating point; None if it wasn't judged there."""
        return self.metrics.get(point, {}).get(set_name)

    def score(self, metric: str, set_name: str = "test", point: str = "own") -> Number:
        """One value as stored; None if there is none."""
        return (self.scores(set_name, point) or {}).get(metric)

    def plain(self) -> dict[str, object]:
        """The contents of its trial.json."""
        found = self.model_dump(by_alias=True)
        return {**found, "settings": self.settings.plain()}


@dataclass(frozen=True)
class PlannedTrial:
    """One trial that a study plans, and what the ledger has of it."""

    label: str
    seed: int
    key: str
    evaluation_key: str = ""
    """Where given, a record evaluated otherwise is out of date, and the trial counts as missing."""
    settings: Trial | None = None
    """What is to be trained; None of a plan that was read from a ledger."""
    record: TrialRecord | None = None
    """Its record when it was planned, if it had one."""

    FIELDS: ClassVar = ("label", "seed", "key", "evaluation_key")

    @property
    def trial(self) -> Trial:
        """What is to be trained; only where the study planned it."""
        assert self.settings is not None
        return self.settings

    @property
    def bare(self) -> PlannedTrial:
        """What a plan.json holds of it."""
        return replace(self, settings=None, record=None)

    @property
    def done(self) -> bool:
        """Whether the record answers to the study as it is now; else it is trained, or at least judged again.

        A trial that was stopped early isn't done: it could go on.
        """
        return self.record is not None and self.evaluation_key == self.record.evaluation_key and not self.is_stopped

    @property
    def is_stopped(self) -> bool:
        """Whether it was ended early."""
        return self.record is not None and self.record.outcome == "stopped"

    def find(self, records: Mapping[str, TrialRecord]) -> TrialRecord | None:
        """Its record among those by key, if there is one and it is up to date."""
        record = records.get(self.key)
        if record is None or (self.evaluation_key and record.evaluation_key != self.evaluation_key):
            return None
        return record


class EnsembleRecord(_Part):
    """The finished seeds of a configuration as one model, and the operating point chosen for it."""

    key: str
    label: str
    seeds: tuple[int, ...]
    members: tuple[str, ...]
    """Keys of the trials, in the order of the seeds."""
    n_left_out: int = 0
    """Seeds of the configuration that failed, collapsed or were stopped."""
    operating_point: OperatingPoint
    operating_point_score: float
    """On the images that it was chosen on, in the metric that ranks."""
    n_images: int
    """That it was chosen on."""
    fewest_members: int
    """Networks that predicted one of these images: those that weren't trained on it."""
    most_members: int

    @property
    def title(self) -> str:
        """What it is called."""
        return f"{self.label}, ensemble of seeds {', '.join(map(str, self.seeds))}"

    @property
    def how_chosen(self) -> str:
        """Which images the operating point was chosen on, in words."""
        if self.fewest_members == len(self.seeds):
            return f"{self.n_images} validation images"
        few, most, of = self.fewest_members, self.most_members, len(self.seeds)
        which = f"{few}" if few == most else f"{few} to {most}"
        return f"{self.n_images} images, each predicted only by the {which} of {of} members not trained on it"


class Reference(_Part):
    """Predictions made elsewhere, as they were judged on the test images; `references.json` lists them."""

    label: str
    key: str
    """Names its table of images; another one where the predictions, the images or the evaluation differ."""
    metrics: Scores


class TriedRate(_Part):
    """A learning rate that was tried for a configuration."""

    lr: float
    dice: tuple[float | None, ...]
    """Best validation Dice of each training with it, 0 where it was lost; None where it isn't done."""


class Tried(_Part):
    """One configuration that was tried, or is being tried."""

    label: str
    number: int
    """Its place in the order of trying, from 0."""
    source: str
    """`given`: listed in the study; `suggested`: by the search."""
    parameters: dict[str, Plain] = {}
    """What was searched: dotted path -> value; empty for a configuration outside of the space."""
    values: tuple[float, ...] | None = None
    """One a metric of the search, as the metric reads; None while it runs or where it was ended early."""
    acceptable: bool = True
    """Whether it keeps within the search's constraints."""
    seeds: int
    """Trials given to it."""
    state: str
    """`running`, `finished`, `stopped` (ended early) or `dropped` (out of the race)."""
    reason: str = ""
    epoch: int | None = None
    """Where it was ended early."""
    epochs: int | None = None
    """Planned."""
    settings: dict[str, object] = {}
    """Of the configuration, as a study file gives them; with its learning rate where that was chosen."""
    rates: tuple[TriedRate, ...] = ()
    """What was tried for it, rising."""
    lr: float | None = None
    """The one that was chosen."""
    tuned: str = ""
    """Hash of the settings for which it was chosen."""


class SearchLog(_Part):
    """The contents of search.json: how configurations were chosen, and what became of each."""

    method: str
    metrics: tuple[str, ...]
    """Keys of ``METRICS``; the first is the one that ranks, unless the study says otherwise."""
    stopping: str | None = None
    """The rule of early stopping, if there is one."""
    budget: int | None = None
    """Configurations that a search may try."""
    alpha: float | None = None
    """Probability of a wrong statement at the last look of a study that gives seeds where they decide."""
    note: str = ""
    """Why such a study ended; empty while it runs."""
    configurations: tuple[Tried, ...] = ()

    @property
    def only_rates(self) -> bool:
        """Whether it is of a study that chose learning rates and nothing else."""
        return self.method == "grid" and self.stopping is None

    def in_state(self, state: str) -> list[Tried]:
        """The configurations in one state."""
        return [c for c in self.configurations if c.state == state]


REMEDY = "remove it and the trial runs again"
"""What to do about a record that can't be used."""
_PLAN: TypeAdapter[list[PlannedTrial]] = TypeAdapter(list[PlannedTrial])
_REFERENCES: TypeAdapter[list[Reference]] = TypeAdapter(list[Reference])


def parse(kind: type[_T] | TypeAdapter[_T], data: bytes | str, where: str, what: str) -> _T:
    """What a JSON file says.

    Args:
        kind: One of the types of this module.
        data: The file's content.
        where: Names the file.
        what: What it should be, in words.

    Raises:
        LedgerError: Naming the file and the key, if it is no such file.
    """
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")
        remedy = f"; {REMEDY}" if kind is TrialRecord else ""
        raise LedgerError(f"{where} is not {what} ({problem}){remedy}") from None


def parse_record(data: bytes | str, where: str, key: str | None = None) -> TrialRecord:
    """The contents of a trial.json.

    Args:
        data: The file's content.
        where: Names the file.
        key: Of the trial whose record it should be; None: any.

    Raises:
        LedgerError: As for `parse`, or if it is another trial's or of a newer version.
    """
    record = parse(TrialRecord, data, where, "a record")
    problem = None
    if record.schema_version > SCHEMA_VERSION:
        problem = f"schema: {record.schema_version} is of a newer cellray, this one reads up to {SCHEMA_VERSION}"
    elif key is not None and record.key != key:
        problem = f"key: {record.key[:40]!r} is another trial's"
    if problem is not None:
        raise LedgerError(f"{where} can't count ({problem}); {REMEDY}")
    return record


def parse_plan(data: bytes | str, where: str) -> list[PlannedTrial]:
    """The contents of a plan.json; errors as for `parse`."""
    return parse(_PLAN, data, where, "a plan of trials")


def parse_references(data: bytes | str, where: str) -> list[Reference]:
    """The contents of a references.json; errors as for `parse`."""
    return parse(_REFERENCES, data, where, "a list of references")


def record_text(record: TrialRecord) -> str:
    """A trial.json."""
    return json.dumps(record.plain(), indent=1, sort_keys=True, allow_nan=True)


def plan_text(trials: Sequence[PlannedTrial]) -> str:
    """A plan.json: label, seed and both keys of each trial."""
    return json.dumps([{name: getattr(trial, name) for name in PlannedTrial.FIELDS} for trial in trials], indent=1)


def parse_ensemble(data: bytes | str, where: str) -> EnsembleRecord:
    """The contents of an ensemble's file; errors as for `parse`."""
    return parse(EnsembleRecord, data, where, "an ensemble")


def references_text(references: Sequence[Reference]) -> str:
    """A references.json."""
    return json.dumps([reference.model_dump() for reference in references], indent=1, ensure_ascii=False)


def search_text(log: SearchLog) -> str:
    """A search.json."""
    return json.dumps(log.model_dump(), indent=1, ensure_ascii=False)

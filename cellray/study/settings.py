"""The settings that a study file holds: typed, frozen, unknown keys refused, each with its default."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cellray.errors import one_of, unknown
from cellray.losses import LOSSES
from cellray.metrics import METRICS
from cellray.model import MODELS
from cellray.postprocess import PUBLISHED_POINT, OperatingPoint
from cellray.study.problems import Problem, SettingsError, problems_in

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
Label = Annotated[str, Field(min_length=1, max_length=60)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
LossSettings = dict[str, Any]


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SyntheticConfig(Settings):
    """Images drawn by `cellray.data.synth` in the likeness of FNC yellow."""

    n_trainval: int = Field(default=24, ge=2)
    n_test: int = Field(default=8, ge=1)
    width_px: int = Field(default=320, ge=64)
    height_px: int = Field(default=240, ge=64)
    scale: Positive = 0.5
    """Size of a cell relative to FNC's, so that small images still hold several (1 = 37 px across)."""
    seed: Seed = 0


class DatasetConfig(Settings):
    """One set of images with ground truth, and the facts about it that no file says."""

    name: Name
    path: str | None = None
    """Folder, zip pack or manifest CSV. ``${NAME}`` is replaced from the environment; a relative path starts
    at the folder of the study file. None: synthetic."""
    format: Literal["auto", "fnc", "pairs", "manifest", "synthetic"] = "auto"
    """`fnc`: the layout of FNC v1/v2; `pairs`: images/ beside masks/ or labels/; `manifest`: a CSV, or a
    folder or zip that holds manifest.csv. `auto` looks."""
    synthetic: SyntheticConfig | None = None
    where: dict[str, tuple[str, ...]] = {}
    """Keep the rows whose manifest column has one of these values."""
    where_not: dict[str, tuple[str, ...]] = {}
    """Leave out the rows whose manifest column has one of these values."""
    diameter_px: Positive | None = None
    """Mean cell diameter in pixels. Without it: diameter_um / pixel_size_um, or, in training, measured."""
    diameter_um: Positive | None = None
    pixel_size_um: Positive | None = None
    max_value: Positive | None = None
    """Full-scale intensity, for cameras that fill only part of 16 bits (4095 for 12 bits)."""
    rescale: bool = False
    """Resample to the training set's mean cell diameter before anything else (external sets)."""

    @model_validator(mode="after")
    def has_one_source(self) -> DatasetConfig:
        if (self.path is None) == (self.synthetic is None):
            raise ValueError("give either path or synthetic, not both and not neither")
        if self.format == "synthetic" and self.synthetic is None:
            raise SettingsError([Problem(("format",), "'synthetic' goes with the key synthetic, not with a path")])
        if self.diameter_um is not None and self.diameter_px is None and self.pixel_size_um is None:
            raise SettingsError([Problem(("diameter_um",), "needs pixel_size_um to become pixels")])
        return self


class DataConfig(Settings):
    """What a study trains, selects and is judged on."""

    train: DatasetConfig
    external: tuple[DatasetConfig, ...] = ()
    """Sets judged with the frozen model and operating point, never trained or tuned on."""
    channels: Literal[1, 3] = 3
    """1 takes the brightest channel of an RGB image; 3 repeats a gray one."""
    normalise: Literal["none", "percentile"] = "none"
    """`none`: full scale to [0, 1]; `percentile`: each image's 1st..99.8th percentile to [0, 1]."""
    val_fraction: Fraction = 0.2
    test_fraction: Fraction = 0.2
    """Used where the data bring no official test split."""
    split_seed: Seed | None = None
    """Seed of the train/validation split; None: each trial's own seed, so that the split varies too."""

    @model_validator(mode="after")
    def sets_can_be_told_apart(self) -> DataConfig:
        problems = []
        if self.train.rescale:
            problems.append(
                Problem(("train", "rescale"), "only external sets are rescaled, to the size of these cells")
            )
        names = [s.name for s in self.external]
        for i, (name, dataset) in enumerate(zip(names, self.external, strict=True)):
            if name in names[:i]:
                problems.append(Problem(("external", i, "name"), f"a second external set is called {name!r}"))
            if name in ("train", "val", "test"):
                problems.append(Problem(("external", i, "name"), f"an external set can't be called {name!r}"))
            if dataset.path is not None and dataset.diameter_px is None and dataset.diameter_um is None:
                words = "an external set needs diameter_px (mean cell diameter), or diameter_um and pixel_size_um"
                problems.append(Problem(("external", i), words))
        if problems:
            raise SettingsError(problems)
        return self


class ModelConfig(Settings):
    """The network."""

    name: str = "c_resunet"
    """A key of ``cellray.model.MODELS``."""
    base_features: int = Field(default=16, ge=1)

    @field_validator("name")
    @classmethod
    def is_known(cls, name: str) -> str:
        return one_of("model", name, MODELS)


class TermConfig(Settings):
    """One term of a combined loss."""

    name: str
    """A key of ``cellray.losses.LOSSES``."""
    weight: float = Field(default=1.0, ge=0)
    """lambda of this term."""
    settings: LossSettings = Field(default={}, validate_default=True)
    """Keyword arguments of that loss; those left out are filled in from its signature."""

    @field_validator("name")
    @classmethod
    def is_known(cls, name: str) -> str:
        return one_of("loss", name, LOSSES)

    @field_validator("settings")
    @classmethod
    def are_complete(cls, settings: LossSettings, info: ValidationInfo) -> LossSettings:
        return check_loss_settings(info.data["name"], settings) if "name" in info.data else settings


class LossConfig(Settings):
    """Which loss a configuration minimises: one by name, or a weighted sum of terms."""

    name: str | None = None
    """A key of ``cellray.losses.LOSSES``."""
    settings: LossSettings = Field(default={}, validate_default=True)
    """Keyword arguments of that loss; those left out are filled in from its signature."""
    terms: tuple[TermConfig, ...] = ()
    """Instead of a name: the terms of a combined loss."""

    @field_validator("name")
    @classmethod
    def is_known(cls, name: str | None) -> str | None:
        return name if name is None else one_of("loss", name, LOSSES)

    @field_validator("settings")
    @classmethod
    def are_complete(cls, settings: LossSettings, info: ValidationInfo) -> LossSettings:
        return check_loss_settings(info.data["name"], settings) if info.data.get("name") else settings

    @model_validator(mode="after")
    def is_one_or_combined(self) -> LossConfig:
        if (self.name is None) == (not self.terms):
            raise ValueError("give either name or terms, not both and not neither")
        if self.name is None and self.settings:
            raise SettingsError([Problem(("settings",), "a combined loss has its settings in each of its terms")])
        if self.terms and sum(term.weight for term in self.terms) == 0:
            raise SettingsError([Problem(("terms",), "every term has weight 0")])
        return self

    def describe(self) -> str:
        """One line for tables, such as ``bce(cell_weight=50)`` or ``0.3 bce + 0.7 dice``; defaults are left out."""
        if self.name is not None:
            return _call(self.name, self.settings)
        return " + ".join(f"{term.weight:g} {_call(term.name, term.settings)}" for term in self.terms)


def check_loss_settings(name: str, settings: Mapping[str, Any]) -> LossSettings:
    """Complete settings of a loss: those given, and the defaults of its signature.

    The annotation of a keyword decides what it takes. A plain ``float`` means a number >= 0, since nearly all
    are weights, exponents or smoothing; another range is annotated, as ``Annotated[float, Field(ge=-1)]``.

    Raises:
        SettingsError: If a keyword is unknown or a value doesn't fit, one problem for each.
    """
    function = LOSSES[name]
    hints = get_type_hints(function, include_extras=True)
    parameters = {
        key: p for key, p in inspect.signature(function).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    complete = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    problems = []
    for key, value in settings.items():
        if key not in parameters:
            problems.append(Problem((key,), unknown(f"{name} setting", key, parameters)))
            continue
        hint: Any = Annotated[float, Field(ge=0)] if hints.get(key) is float else hints.get(key, Any)
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))
            complete[key] = adapter.validate_python(value, strict=True)
        except ValidationError as error:
            problems += [Problem((key,), problem.message) for problem in problems_in(error)]
    problems += [
        Problem((key,), f"loss {name!r} has no default for this setting")
        for key in parameters
        if key not in complete and key not in settings
    ]
    if problems:
        raise SettingsError(problems)
    return {key: complete[key] for key in parameters}


def _call(name: str, settings: Mapping[str, Any]) -> str:
    defaults = inspect.signature(LOSSES[name]).parameters
    given = {k: f"{v:g}" if isinstance(v, float) else v for k, v in settings.items() if v != defaults[k].default}
    return name + (f"({', '.join(f'{k}={v}' for k, v in given.items())})" if given else "")


class AugmentConfig(Settings):
    """Random changes of a training crop, drawn anew for each crop of a batch."""

    flips: bool = True
    rotation_deg: float = Field(default=15.0, ge=0, le=180)
    zoom: float = Field(default=0.1, ge=0, lt=1)
    """Scale factor in [1 - zoom, 1 + zoom]."""
    brightness: float = Field(default=0.1, ge=0, le=1)
    contrast: float = Field(default=0.1, ge=0, le=1)


class RangeTestConfig(Settings):
    """Learning-rate range test: rates rise geometrically from low to high, one a step (Smith 2017)."""

    low: Positive = 1e-5
    high: Positive = 1.0
    steps: int = Field(default=60, ge=10)

    @model_validator(mode="after")
    def rises(self) -> RangeTestConfig:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        return self


class TrainingConfig(Settings):
    """How one model is fitted."""

    epochs: int | None = Field(default=None, ge=1)
    """An epoch is one crop of every training image. Give epochs or steps."""
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    crop_px: int = Field(default=512, ge=16, multiple_of=8)
    lr: Positive | Literal["range_test"] = "range_test"
    """Peak learning rate; `range_test` tunes it anew for each trial."""
    range_test: RangeTestConfig = RangeTestConfig()
    schedule: Literal["one_cycle", "triangular", "constant"] = "one_cycle"
    weight_decay: float = Field(default=0.0, ge=0)
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast where the device has fast instructions for it, else float32."""
    validate_every: int = Field(default=1, ge=1)
    """Validate after every so many epochs, and after the last."""
    batch_norm_batches: int = Field(default=20, ge=0)
    """Training batches that re-estimate the running statistics before each validation; 0: leave them."""

    @model_validator(mode="after")
    def has_one_length(self) -> TrainingConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, not both and not neither")
        return self


class EvaluationConfig(Settings):
    """How a trained model is judged."""

    rank_by: str = "f1_iou"
    """A key of ``cellray.metrics.METRICS``; the table is ordered by it on the test set."""
    iou_threshold: float = Field(default=0.4, ge=0, lt=1)
    """A true and a predicted cell can be a pair if their IoU exceeds this."""
    max_distance: Positive = 1.0
    """Centres can be a pair up to this distance, in mean cell diameters."""
    operating_point: Literal["validation"] | OperatingPoint = "validation"
    """`validation`: chosen for each trial on its validation images; or one given for all."""
    shared_point: OperatingPoint = PUBLISHED_POINT
    """The point at which every trial is scored besides its own."""
    tile_px: int = Field(default=1024, ge=64, multiple_of=8)
    """Images larger than this are predicted in overlapping tiles."""

    @field_validator("rank_by")
    @classmethod
    def is_known(cls, name: str) -> str:
        return one_of("metric", name, METRICS)


class ResourcesConfig(Settings):
    """What one trial is given. Decides how fast, never what comes out."""

    cpus: Positive = 1
    gpus: float = Field(default=0, ge=0)
    max_concurrent: int | None = Field(default=None, ge=1)
    """None: as many as fit."""


class ConfigurationConfig(Settings):
    """One contender: a label, and what differs from the study's own settings (the compared parameters)."""

    label: Label
    loss: LossConfig | None = None
    """None: the study's own loss."""
    model: dict[str, Any] = {}
    """Settings of `model` that this configuration changes; the others stay as they are."""
    training: dict[str, Any] = {}
    """Settings of `training` that this configuration changes; the others stay as they are."""

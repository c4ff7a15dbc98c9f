"""The settings that a study file holds: typed, frozen, unknown keys refused, each with its default."""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from cellray.data import Reading
from cellray.errors import StudyError, one_of
from cellray.losses import Positive
from cellray.metrics import METRICS
from cellray.postprocess import PUBLISHED_POINT, OperatingPoint
from cellray.study.group import Settings
from cellray.study.loss import LossConfig
from cellray.study.network import complete_changes
from cellray.study.problems import Problem, SettingsError
from cellray.study.quirks import QUIRKS, known_quirks

Fraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


def visible(text: str, info: ValidationInfo) -> str:
    """Text with no characters that a terminal obeys or nobody sees, but lines' ends and tabs. Stored ones pass."""
    hidden = [c for c in text if unicodedata.category(c) in HIDDEN and c not in "\n\t"]
    if hidden and not is_stored(info):
        raise StudyError(f"must not have control characters or other invisible ones, got U+{ord(hidden[0]):04X}")
    return text


def one_line(text: str, info: ValidationInfo) -> str:
    """Text in one line that neither begins nor ends with a blank."""
    if not is_stored(info):
        if set("\n\t") & set(text):
            raise StudyError("must not have control characters, got a line's end or a tab")
        if text != text.strip():
            raise StudyError(f"must not begin or end with a blank, got {text!r}")
    return text


def is_stored(info: ValidationInfo) -> bool:
    """Whether a study is read that ran before."""
    return (info.context or {}).get("code") == "stored"


def no_store(name: str) -> str:
    """A study's name that isn't that of the MLflow store, which lies beside the ledgers."""
    if name.lower().startswith(STORE_FILES):
        raise StudyError(f"is a name that MLflow's files have beside the studies' folders, got {name!r}; take another")
    return name


HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, marks of direction and other format, halves of pairs, line ends."""
STORE_FILES = ("mlflow.db", "mlartifacts")
Text = Annotated[str, AfterValidator(visible)]
Label = Annotated[Text, Field(min_length=1, max_length=60), AfterValidator(one_line)]
StudyTitle = Annotated[Name, AfterValidator(no_store)]
SeedNumber = Annotated[int, Field(ge=0, lt=2**31)]


class SyntheticConfig(Settings):
    """Images drawn by `cellray.data.synth` in the likeness of FNC yellow."""

    n_trainval: int = Field(default=24, ge=2)
    """Images for training and validation."""
    n_test: int = Field(default=8, ge=1)
    """Images for testing."""
    width_px: int = Field(default=320, ge=64)
    """Of each image, in pixels."""
    height_px: int = Field(default=240, ge=64)
    """Of each image, in pixels."""
    scale: Positive = 0.5
    """Size of a cell relative to FNC's, so that small images still hold several (1 = 37 px across)."""
    seed: SeedNumber = 0
    """Of the drawing: the same seed draws the same images."""


class DatasetConfig(Settings):
    """One set of images with ground truth, and the facts about it that no file says."""

    name: Name
    """What tables, figures and errors call it."""
    path: str | None = None
    """Folder, zip pack or manifest CSV. ``${NAME}`` is replaced from the environment; a relative path starts
    at the folder of the study file. None: synthetic."""
    format: Literal["auto", "fnc", "pairs", "manifest", "synthetic"] = "auto"
    """`fnc`: the layout of FNC v1/v2; `pairs`: images/ beside masks/ or labels/; `manifest`: a CSV, or a
    folder or zip that holds manifest.csv. `auto` looks."""
    synthetic: SyntheticConfig | None = None
    """Instead of a path: images drawn by cellray, to try things out. ``{}`` draws the default ones."""
    where: dict[str, tuple[str, ...]] = Field(default={})
    """Keep the rows whose manifest column has one of these values."""
    where_not: dict[str, tuple[str, ...]] = Field(default={})
    """Leave out the rows whose manifest column has one of these values."""
    groups: str | None = None
    """Regular expression that finds in an image's name which group it is of (its first group, else all that fits).
    Images of one group stay on one side of a split. For datasets that say no groups themselves."""
    diameter_px: Positive | None = None
    """Mean cell diameter in pixels. Without it: diameter_um / pixel_size_um, or, in training, measured."""
    diameter_um: Positive | None = None
    """Mean cell diameter in micrometres; goes with pixel_size_um."""
    pixel_size_um: Positive | None = None
    """Side of a pixel in micrometres."""
    max_value: Positive | None = None
    """Full-scale intensity, for cameras that fill only part of 16 bits (4095 for 12 bits)."""
    rescale: bool = False
    """Resample to the training set's mean cell diameter before anything else (external sets)."""
    agreement: dict[str, float] = Field(default={})
    """Metric -> what human experts reach against this ground truth: the report shows it as a ceiling."""

    @field_validator("groups")
    @classmethod
    def is_a_pattern(cls, groups: str | None) -> str | None:
        try:
            re.compile(groups or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return groups

    @field_validator("agreement")
    @classmethod
    def names_metrics(cls, agreement: dict[str, float]) -> dict[str, float]:
        for name in agreement:
            one_of("metric", name, METRICS)
        return agreement

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
    """The set that training, validation and test images are taken from."""
    external: tuple[DatasetConfig, ...] = ()
    """Sets judged with the frozen model and operating point, never trained or tuned on."""
    channels: Literal[1, 3] = 3
    """1 takes the brightest channel of an RGB image; 3 repeats a gray one."""
    channel: Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1)] | None = None
    """Of images of several channels: one by its number from 1 or by its name in the file, or `max` or `mean` of all."""
    plane: Annotated[int, Field(ge=1)] | Literal["max", "mean", "all"] | None = None
    """Of stacks and time series: one picture by its number from 1, `max` or `mean` of all, or `all`: each an image, in
    one group. None: refused. A mask that is one picture goes with each."""
    ignore: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Mask pixels of this value (255 by custom) count in no loss and no metric. Where the dataset has a folder
    masks_ignore/, they are those of this value there."""
    normalise: Literal["none", "percentile"] = "none"
    """`none`: full scale to [0, 1]; `percentile`: each image's 1st..99.8th percentile to [0, 1]."""
    val_fraction: Fraction = 0.2
    """Share of the images that aren't for testing: on these the best epoch and the operating point are chosen."""
    test_fraction: Fraction = 0.2
    """Share of the images set aside for testing, always the same; where the data bring no official test split."""
    split_seed: SeedNumber | None = None
    """Seed of the train/validation split; None: each trial's own seed, so that the split varies too."""
    folds: Annotated[int, Field(ge=3, le=20)] | None = None
    """Parts that the training set is dealt into, groups kept together: each trial trains a network for each part, which
    is tested on that part and validated on another, so that every image is a test image. An official split and the
    fractions above have no say then."""

    @property
    def reading(self) -> Reading:
        """How files that hold more than one picture are read."""
        return Reading(self.channel, self.plane, self.ignore)

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


class AugmentConfig(Settings):
    """Random changes of a training crop, drawn anew for each crop of a batch."""

    flips: bool = True
    """Mirrored at random, left to right and top to bottom."""
    rotation_deg: float = Field(default=15.0, ge=0, le=180)
    """Turned by up to so many degrees either way."""
    zoom: float = Field(default=0.1, ge=0, lt=1)
    """Scale factor in [1 - zoom, 1 + zoom]."""
    brightness: float = Field(default=0.1, ge=0, le=1)
    """Up to so much of full scale is added or taken away."""
    contrast: float = Field(default=0.1, ge=0, le=1)
    """Differences from the crop's mean are scaled by a factor in [1 - contrast, 1 + contrast]."""


class RangeTestConfig(Settings):
    """Learning-rate range test: rates rise geometrically from low to high, one a step (Smith 2017)."""

    low: Positive = 1e-5
    """First rate."""
    high: Positive = 1.0
    """Last rate."""
    steps: int = Field(default=60, ge=10)
    """Rates that are tried, a training step each."""
    rule: Literal["same_batches", "premature"] = "same_batches"
    """`same_batches`: a few batches by turns, so that rates and not batches are compared; it ends where a batch's loss
    exceeds 4 times what it was at first. `premature`, as the first ledgers have it: a new batch at each rate, and the
    end where a loss exceeds 4 times the smallest so far, which a batch full of cells can do at any rate."""

    @model_validator(mode="after")
    def rises(self) -> RangeTestConfig:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        return self


class TuneConfig(Settings):
    """Learning rates that are tried for each configuration: the same for every loss, on seeds of their own."""

    rates: tuple[Positive, ...] = Field(default=(1e-3, 3e-3, 1e-2), min_length=2)
    """Rising. While the best is the lowest or the highest, one more is tried beyond it, two at most."""
    seeds: int = Field(default=2, ge=1)
    """Trainings with each rate. Their seeds are none of the study's."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Length of such a training against a whole one. Short ones favour high rates."""

    @field_validator("rates")
    @classmethod
    def rise(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(rate >= above for rate, above in pairwise(rates)):
            raise ValueError(f"must rise from each to the next, got {', '.join(f'{rate:g}' for rate in rates)}")
        return rates


class TrainingConfig(Settings):
    """How one model is fitted."""

    epochs: int | None = Field(default=None, ge=1)
    """An epoch is one crop of every training image. Give epochs or steps."""
    steps: int | None = Field(default=None, ge=1)
    """Batches trained on. With the same steps, and not epochs, studies of different sizes train alike."""
    batch_size: int = Field(default=32, ge=1)
    """Crops in a step."""
    crop_px: int = Field(default=512, ge=16, multiple_of=8)
    """Side of a training crop in pixels, no larger than the smallest image; some eight cells across do well."""
    foreground: float = Field(default=0.0, ge=0, le=1)
    """Share of a batch's crops that are drawn around a cell; the others are uniform over their image."""
    lr: Positive | Literal["range_test", "tune"] = "tune"
    """Peak learning rate. `tune`: chosen for each configuration on validation images, the same for all its seeds;
    `range_test`: found anew for each trial."""
    range_test: RangeTestConfig = RangeTestConfig()
    """Which rates a range test tries; with `lr: range_test`."""
    tune: TuneConfig = TuneConfig()
    """Which rates are tried for each configuration; with `lr: tune`."""
    clip: Positive | None = 2.0
    """A step's gradient is shortened to so many times the median norm of the steps before it; None: never."""
    schedule: Literal["one_cycle", "triangular", "constant"] = "one_cycle"
    """`one_cycle`: the rate rises for 30 % of a training and then falls to almost nothing (Smith 2018); `triangular`:
    four rises and falls; `constant`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of Adam: pull of the weights towards 0 (L2)."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of the training crops."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast where the device has fast instructions for it, else float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether training steps run compiled by torch's Inductor, which changes the last digits only. `auto`: where
    that was measured to be faster, which it is on no CPU yet. Without a compiler steps run as ever, with a note. It
    decides no trial key."""
    validate_every: int = Field(default=1, ge=1)
    """Validate after every so many epochs, and after the last."""
    batch_norm_batches: int = Field(default=20, ge=0)
    """Training batches that re-estimate the running statistics before each validation; 0: leave them."""
    checkpoint: Literal["dice", "coarse_dice"] = "dice"
    """Which weights are kept: those of the highest validation Dice over 2048 thresholds that tell logits apart
    however sure the network is; `coarse_dice`: over 256 in even steps of probability, as the first ledgers have it."""

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
    matching: Literal["one_to_one", "many_to_one"] = "one_to_one"
    """`many_to_one`: each true cell looks for its best partner alone, so that one blob over two cells scores twice."""
    counts: Literal["correct", "released"] = "correct"
    """`released`: counting errors by the formula of the reference study's code, which leaves out false positives."""
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

    @property
    def quirks(self) -> tuple[str, ...]:
        """What `matching` and `counts` ask of `cellray.metrics.quirk_rows`."""
        asked = {"many_to_one": self.matching == "many_to_one", "released_counts": self.counts == "released"}
        return tuple(name for name, wanted in asked.items() if wanted)


class ResourcesConfig(Settings):
    """What one trial is given. Decides how fast, never what comes out."""

    cpus: Positive = 1
    """Processors for each worker of a trial."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    """GPUs for the whole trial: below 1, trials share a GPU; above 1, a whole number, shared out evenly to its workers.
    `auto`: one (with `workers`, one each) where the machine or cluster has GPUs, else none."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that train one trial together. None: one for each whole GPU, at least one."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at once. None: as many as fit."""
    checkpoints_gb: Positive | None = None
    """Quota of all checkpoints of the sweep, in units of 10^9 bytes. None: no limit."""

    @model_validator(mode="after")
    def every_worker_has_its_gpus(self) -> ResourcesConfig:
        if self.gpus == "auto":
            return self
        if self.gpus > 1 and self.gpus % 1:
            words = f"above 1, a trial needs whole GPUs, got {self.gpus:g}: take {math.ceil(self.gpus)}, or at most 1"
            raise SettingsError([Problem(("gpus",), words)])
        if self.n_workers > 1 and self.gpus % self.n_workers:
            words = f"{self.gpus:g} can't be shared out evenly to {self.n_workers} workers: take {self.n_workers}, or 0"
            raise SettingsError([Problem(("gpus",), words)])
        return self

    @property
    def n_workers(self) -> int:
        """Processes that train one trial together."""
        return self.workers or (1 if self.gpus == "auto" else max(int(self.gpus), 1))

    @property
    def n_gpus(self) -> float:
        """GPUs of a trial.

        Raises:
            ValueError: If that is still left to the machine: see `settled`.
        """
        if self.gpus == "auto":
            raise ValueError("resources.gpus is auto and not settled yet")
        return self.gpus

    def settled(self, has_gpus: bool) -> ResourcesConfig:
        """The same with a number for `auto`, on a machine or cluster with or without GPUs."""
        if self.gpus != "auto":
            return self
        return self.model_copy(update={"gpus": float(self.n_workers) if has_gpus else 0.0})


class ReferenceConfig(Settings):
    """Predictions made elsewhere, by another tool or a person, judged beside the configurations and never trained."""

    label: Label
    """What the tables call it, such as Cellpose."""
    path: str
    """Folder or zip of label images (0 background, cells 1 to n), one for each test image under its name, or under that
    with an ending such as _cp_masks. ``${NAME}`` and relative paths as for data."""


class ConfigurationConfig(Settings):
    """One contender: a label, and what differs from the study's own settings (the compared parameters)."""

    label: Label
    """What tables and figures call it."""
    loss: LossConfig | None = None
    """None: the study's own loss."""
    model: dict[str, object] = Field(default={})
    """Settings of `model` that this configuration changes; the others stay as they are, unless it names another
    network, which has its own."""
    training: dict[str, object] = Field(default={})
    """Settings of `training` that this configuration changes; the others stay as they are."""
    quirks: tuple[str, ...] = ()
    """Quirks of the reference study's code for this configuration alone; only those that act on training."""

    def with_rate(self, lr: float | None) -> ConfigurationConfig:
        """The same with a learning rate of its own; as it is if None."""
        return self if lr is None else self.model_copy(update={"training": {**self.training, "lr": lr}})

    @field_validator("model")
    @classmethod
    def may_be_used(cls, changes: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        return complete_changes(changes, info)

    @field_validator("quirks")
    @classmethod
    def act_on_training(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in known_quirks(names):
            if QUIRKS[name].acts_on != "training":
                raise ValueError(f"{name!r} acts on {QUIRKS[name].acts_on}: put it under the study's own quirks")
        return names

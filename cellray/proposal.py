"""A study proposed for a folder of images: what is found there decides the settings, a time budget how much is run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import yaml

from cellray.data import DatasetReport, Reading, check_dataset
from cellray.errors import DataError, StudyError
from cellray.forecast import Forecast, this_machine
from cellray.study import DatasetConfig, Study

CELLS_ACROSS = 8
"""Of a training crop, in cell diameters."""
CROPS = 64, 512
"""Smallest and largest side of a training crop in pixels, as far as the images are that large."""
VALIDATIONS = 20
"""Of one training, about."""
ONE_CHANNEL = 2.0
"""A channel in which cells stand out this many times more than in the next is taken alone."""
PLANS = (
    *((n_seeds, 2000) for n_seeds in (10, 7)),
    *((5, steps) for steps in (2000, 1500, 1000, 700, 500, 300)),
    *((3, steps) for steps in (300, 200, 150)),
)
"""Seeds and steps, the best first: with fewer than three seeds nothing can be decided, and five are worth more than
steps beyond a few hundred."""
OTHERWISE = (
    [Reading(channel=k) for k in range(1, 6)],
    [Reading(plane="max")],
    [Reading(channel=k, plane="max") for k in range(1, 6)],
)
"""How images are read that hold several channels or planes: the first that makes them usable, the channel with the most
contrast among these."""
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
FEW_IMAGES, FEW_VALIDATION, FEW_CELLS = 10, 4, 50
RARE_PERCENT = 3.0
"""Of pixels in cells: with less, at least a tenth of the crops hold no cell, were cells spread at random."""


@dataclass(frozen=True)
class ChosenSetting:
    """One setting of a proposal, and why it is so."""

    what: str
    why: str


@dataclass(frozen=True)
class Proposal:
    """A study for a folder; its file is `text`."""

    name: str
    path: str
    found: DatasetReport
    reading: Reading
    is_complete: bool
    """All twelve configurations of the reference study rather than a short list."""
    on_gpu: bool
    n_seeds: int = PLANS[-1][0]
    steps: int = PLANS[-1][1]

    @property
    def diameter_px(self) -> float:
        assert self.found.diameter_px is not None
        return self.found.diameter_px[1]

    @property
    def is_gray(self) -> bool:
        """Whether the network gets one channel."""
        return self.reading.channel is not None or all("RGB" not in kind for kind in self.found.dtypes)

    @property
    def normalise(self) -> str:
        """Percentiles unless 8 bits are well used."""
        deep = any("uint8" not in kind for kind in self.found.dtypes)
        dim = self.found.intensity is not None and self.found.intensity[1] < 192
        return "percentile" if deep or dim else "none"

    @property
    def crop_px(self) -> int:
        """Some eight cells across, in steps of 32, no larger than the smallest image."""
        low, high = CROPS
        wanted = min(max(32 * round(CELLS_ACROSS * self.diameter_px / 32), low), high)
        smallest = min(int(side) for size in self.found.sizes for side in size.split("x"))
        return max(min(wanted, smallest // 8 * 8), 16)

    @property
    def batch_size(self) -> int:
        return 16 if self.on_gpu else 8

    @property
    def base_features(self) -> int:
        return 16 if self.on_gpu else 8

    @property
    def cell_weight(self) -> int:
        """What makes cells weigh as much as background in a cross-entropy, from 2 to 200."""
        assert self.found.foreground_percent is not None
        share = max(self.found.foreground_percent[0] / 100, 1e-4)
        return min(max(round((1 - share) / share), 2), 200)

    @property
    def is_rare(self) -> bool:
        """Whether many crops hold no cell, from which Dice of each image learns next to nothing."""
        assert self.found.foreground_percent is not None
        return self.found.foreground_percent[0] < RARE_PERCENT

    @property
    def has_official_test(self) -> bool:
        return self.found.splits.get("test", 0) > 0

    @property
    def fraction(self) -> float:
        """Of the images for validation, and for testing if there is no official test set."""
        return 0.25 if self.found.n_images < 20 else 0.2

    @property
    def validate_every(self) -> int:
        """Epochs between validations; an epoch is one crop of each training image."""
        n_train = self.found.study_split[0] if self.found.study_split else 1
        epochs = self.steps / math.ceil(n_train / self.batch_size)
        return max(round(epochs / VALIDATIONS), 1)

    @property
    def losses(self) -> dict[str, str]:
        """What is compared: labels, and the losses as YAML."""
        if self.is_complete:
            return {label: f"{{name: {preset}@slides}}" for label, preset in _TWELVE.items()}
        by_batch = {"Dice by batch": "{name: dice, settings: {reduction: batch}}"} if self.is_rare else {}
        return {
            "Dice": "{name: dice}",
            **by_batch,
            "BCE": "{name: bce}",
            f"BCE (cells x{self.cell_weight})": f"{{name: bce, settings: {{cell_weight: {self.cell_weight}}}}}",
            "Focal": "{name: focal}",
            "Focal Tversky": "{name: focal_tversky}",
            "Dice + BCE": "{name: dice_ce}",
        }

    def choices(self) -> Iterator[ChosenSetting]:
        """The settings that weren't obvious."""
        diameter = f"{self.diameter_px:.0f} px"
        yield ChosenSetting(
            f"crops of {self.crop_px} px", f"{self.crop_px / self.diameter_px:.0f} cells of {diameter} across"
        )
        if self.reading.channel is not None:
            yield ChosenSetting(f"channel {self.reading.channel} alone", "the cells stand out there")
        elif self.is_gray:
            yield ChosenSetting("one channel", "the images are gray")
        else:
            yield ChosenSetting("three channels", "the images are in colour")
        if self.reading.plane is not None:
            yield ChosenSetting(f"the {self.reading.plane} of each stack's planes", "a study is of flat images")
        if self.normalise == "percentile":
            yield ChosenSetting("brightness by percentiles of each image", "the images fill little of their range")
        if self.has_official_test:
            yield ChosenSetting("the official test images", "there is a folder or column for them")
        else:
            yield ChosenSetting(f"{self.fraction:.0%} of the images for testing", "there is no official test set")
        if self.found.guessed_groups:
            n = self.found.n_images
            yield ChosenSetting(
                "images whose names begin alike stay together",
                f"the {n} names look like those of groups, of one animal or well; delete `groups` if that is wrong",
            )
        if self.is_rare and not self.is_complete:
            yield ChosenSetting("Dice by batch, too", "cells are rare, and Dice learns little from a crop without any")
        is_least = (self.n_seeds, self.steps) == PLANS[-1]
        why = "the least that says anything" if is_least else "what the time budget carries"
        yield ChosenSetting(f"{self.steps} steps, {self.n_seeds} seeds", why)

    def warnings(self) -> Iterator[str]:
        """What may make the study's answer worth little."""
        found = self.found
        yield from found.notes
        if found.n_images < FEW_IMAGES:
            yield f"{found.n_images} images are few: differences between losses will hardly be larger than chance"
        if found.study_split and found.study_split[1] < FEW_VALIDATION:
            yield f"{found.study_split[1]} validation images are few to choose the best epoch and threshold by"
        if found.n_objects < FEW_CELLS:
            yield f"{found.n_objects} cells in all are few"
        if found.n_objects > found.n_pieces:
            n = found.n_objects - found.n_pieces
            yield f"some cells touch: {found.n_objects} are marked in {found.n_pieces} pieces, so {n} must be cut apart"
        elif not found.has_labels:
            yield "masks don't tell touching cells apart: if there are instance labels, put them into labels/ instead"

    def text(self) -> str:
        """The study file, with a comment beside what may be changed."""
        data = [f"  channels: {1 if self.is_gray else 3}"]
        for key in ("channel", "plane"):
            value = getattr(self.reading, key)
            if value is not None:
                data.append(f"  {key}: {_scalar(value)}")
        data.append(f"  normalise: {self.normalise} # none: full scale; percentile: each image's own range")
        data.append("  split_seed: null # each seed draws its own validation images too")
        data.append(f"  val_fraction: {self.fraction}")
        if not self.has_official_test:
            data.append(f"  test_fraction: {self.fraction}")
        data += ["  train:", f"    name: {self.name}", f"    path: {_scalar(self.path)}"]
        data.append(f"    diameter_px: {self.diameter_px:.1f} # mean cell diameter, measured")
        if self.found.guessed_groups:
            data.append(
                f"    groups: {_scalar(self.found.guessed_groups)} # guessed from names: what shares it stays together"
            )
        configurations = [f"  - {{label: {_scalar(label)}, loss: {loss}}}" for label, loss in self.losses.items()]
        seeds = ", ".join(map(str, SEEDS[: self.n_seeds]))
        cells = self.crop_px / self.diameter_px
        return "\n".join(
            [
                "# Written by `cellray init`: change what you know better.",
                "# `cellray plan` says what it costs, `cellray sweep` runs it, `cellray losses list` has more losses.",
                "",
                f"name: {self.name}",
                f"question: {_scalar(f'Which loss finds the cells of {self.name} best?')}",
                "",
                "data:",
                *data,
                "",
                "model:",
                f"  base_features: {self.base_features} # width of the network; 16 is the published one",
                "",
                "training:",
                f"  steps: {self.steps}",
                f"  batch_size: {self.batch_size}",
                f"  crop_px: {self.crop_px} # {cells:.0f} cells across",
                "  lr: tune # a learning rate for each loss, tried on seeds of their own; a number: that one for all",
                f"  validate_every: {self.validate_every} # epochs of one crop of each training image",
                "",
                "configurations:",
                *configurations,
                "",
                f"seeds: [{seeds}] # each draws weights, order of images and validation images anew",
                "",
                "evaluation:",
                "  rank_by: f1_iou",
                "",
                "resources: {cpus: 1, gpus: auto} # a GPU for each trial where there is one",
                "",
            ]
        )


def examine(name: str, path: str, *, is_complete: bool = False) -> Proposal:
    """A proposal for the images of a folder, a zip or a manifest, with the least that makes sense to run.

    Args:
        name: Of the study and its data.
        path: As it will stand in the study file, absolute.
        is_complete: Compare the twelve configurations of the reference study.

    Raises:
        DataError: If the images can't be used as they are: every reason, one a line.
    """
    config = DatasetConfig(name=name, path=path)
    found, reading = _check(config, Reading()), Reading()
    if found.is_usable and len(found.channel_contrast) > 1:
        best, second, *_ = sorted(found.channel_contrast, reverse=True)
        if best > ONE_CHANNEL * max(second, 0.0):
            reading = Reading(channel=found.channel_contrast.index(best) + 1)
            found = _check(config, reading)
    if not found.is_usable:
        found, reading = _otherwise(config, found)
    if found.study_split is None or found.diameter_px is None:
        reasons = found.notes if found.n_objects else ["no cell is marked in them"]
        raise DataError(f"{path}: a study needs images to train, to choose and to test with: {'; '.join(reasons)}")
    return Proposal(name, path, found, reading, is_complete, on_gpu=this_machine().gpus > 0)


def _check(config: DatasetConfig, reading: Reading) -> DatasetReport:
    """The dataset's facts, without the note on dark images: `Proposal.normalise` sees to that."""
    return check_dataset(config, normalise="percentile", reading=reading)


def _otherwise(config: DatasetConfig, found: DatasetReport) -> tuple[DatasetReport, Reading]:
    """The dataset read by one channel or by the maximum of its planes, if that makes it usable."""
    for readings in OTHERWISE:
        tried = [(reading, _check(config, reading)) for reading in readings]
        usable = [(reading, other) for reading, other in tried if other.is_usable]
        if usable:
            reading, best = max(usable, key=lambda pair: pair[1].contrast or 0.0)
            return best, reading
    head = [f"{config.path} can't be used as it is:"] if len(found.problems) > 1 else []
    raise DataError("\n  ".join([*head, *found.problems]))


def within_budget(proposal: Proposal, budget_s: float, cost_of: Callable[[Study], Forecast]) -> tuple[Proposal, float]:
    """The proposal with as many seeds and steps as a time budget carries, and its seconds; at least the least.

    Args:
        proposal: As `examine` gave it.
        budget_s: From the command to the report.
        cost_of: What a study will cost.
    """
    takes_s = math.inf
    for n_seeds, steps in PLANS:
        proposal = replace(proposal, n_seeds=n_seeds, steps=steps)
        total_s = cost_of(Study.model_validate(yaml.safe_load(proposal.text()))).total_s
        assert total_s is not None  # the proposal asks for what this machine has
        takes_s = total_s
        if takes_s <= budget_s:
            break
    return proposal, takes_s


def seconds_of(budget: str) -> float:
    """Seconds of ``90s``, ``30m``, ``2h`` or ``1h30m``.

    Raises:
        StudyError: If it is none of these.
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", budget.strip().lower())
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0
    )
    if seconds <= 0:
        raise StudyError(f"--budget: expected a time such as 30m, 2h or 1h30m, got {budget!r}")
    return seconds


def _scalar(value: object) -> str:
    """A word, number or text as YAML, on one line within braces too."""
    is_plain = isinstance(value, int | float) or re.fullmatch(r"[A-Za-z][\w +]*", str(value), re.ASCII)
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


_TWELVE = {
    "BCE: low": "bce_low",
    "BCE: medium": "bce_medium",
    "BCE: high": "bce_high",
    "Dice": "dice",
    "Focal": "focal",
    "Focal Tversky": "focal_tversky",
    "Combined: balanced": "combined_balanced",
    "Combined: overcrowd": "combined_overcrowd",
    "Combined: CellViT": "combined_cellvit",
    "CombinedFT: balanced": "combined_ft_balanced",
    "CombinedFT: overcrowd": "combined_ft_overcrowd",
    "CombinedFT: CellViT": "combined_ft_cellvit",
}

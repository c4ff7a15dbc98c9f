"""What a reader needs to know and what it finds: settings, items, and the words of files and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from cellray.data.source import Source
from cellray.errors import DataError

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
SPLIT_WORDS = {
    "": "",
    "train": "trainval",
    "training": "trainval",
    "trainval": "trainval",
    "train_val": "trainval",
    "val": "trainval",
    "validation": "trainval",
    "test": "test",
}
"""How the words of folders and manifests are understood; validation images are drawn by the study."""
SPLIT_COLUMNS = ("split", "official_split", "v1_split")
IMAGE_FOLDERS = ("images", "all_images/images", "all_images")
MASK_FOLDERS = (
    "ground_truths/labels",
    "ground_truths/masks",
    "labels",
    "masks",
    "masks_gt",
    "all_masks/masks",
    "all_masks",
    "ground_truths",
    "ground_truth",
    "gt",
)
"""First one found wins: instance labels tell touching cells apart, masks don't."""
MASK_ENDING = re.compile(r"[-_ ](?:(?P<labels>cp_masks|labels?)|masks?|seg|gt)$", re.IGNORECASE)
"""How the stem of a mask ends that lies beside its image in one folder; `labels`: endings of instance labels."""
VOID_FOLDER = "masks_ignore"
"""Beside the masks: what a study may leave out (`data.ignore`)."""


class DatasetLike(Protocol):
    """What a reader needs to know; `cellray.study.DatasetConfig` has it."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def format(self) -> str: ...
    @property
    def synthetic(self) -> object: ...
    @property
    def where(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def where_not(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def groups(self) -> str | None: ...
    @property
    def diameter_px(self) -> float | None: ...
    @property
    def diameter_um(self) -> float | None: ...
    @property
    def pixel_size_um(self) -> float | None: ...
    @property
    def max_value(self) -> float | None: ...
    @property
    def rescale(self) -> bool: ...


@dataclass(frozen=True)
class Item:
    """One image with its ground truth."""

    name: str
    split: str = ""
    """`trainval`, `test`, or '' where the source has no official split."""
    group: str = ""
    """Images of one group stay on one side of a split; '' is a group of its own."""
    attributes: dict[str, str] = field(default_factory=dict)
    image_file: str = ""
    mask_file: str = ""
    void_file: str = ""
    """Marks pixels that count as neither cell nor background; '' where the mask itself may."""
    looks_in_mask: bool = True
    """Whether void pixels are marked in the mask: not in a set that has files of their own for them."""
    plane: int | None = None
    """Of a stack each plane of which is an image: its number from 1 on."""

    @property
    def is_labels(self) -> bool:
        """Whether the mask file lies in a folder for instance labels, or beside its image under a name for them."""
        mask = PurePosixPath(self.mask_file)
        if mask.parent == PurePosixPath(self.image_file).parent:
            ending = MASK_ENDING.search(mask.stem)
            return ending is not None and ending["labels"] is not None
        return mask.parent.name == "labels"


@dataclass
class Listing:
    """What a reader found, in order of name; the problems are sentences for the user."""

    source: Source
    items: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def chosen_rows(source: Source, rows: Sequence[Mapping[str, str]], config: DatasetLike) -> list[int]:
    """Indices of the rows that `where` and `where_not` let through."""
    columns = sorted(set().union(*rows))
    kept = list(range(len(rows)))
    for option, keep in (("where", True), ("where_not", False)):
        for column, wanted in getattr(config, option).items():
            if column not in columns:
                known = ", ".join(columns) or "none (only a manifest has columns)"
                raise DataError(f"{source.path}: {option}: unknown column {column!r}; known: {known}")
            values = sorted({row.get(column, "") for row in rows})
            texts = {str(value) for value in wanted}
            for text in sorted(texts.difference(values)):
                known = ", ".join(repr(v) for v in values[:20]) + (", …" if len(values) > 20 else "")
                raise DataError(f"{source.path}: {option}: no row has {column} = {text!r}; known: {known}")
            kept = [k for k in kept if (rows[k].get(column, "") in texts) == keep]
    if rows and not kept:
        raise DataError(f"{source.path}: where and where_not leave no image of {len(rows)}")
    return kept


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def is_image(name: str) -> bool:
    leaf = PurePosixPath(name)
    return leaf.suffix.lower() in IMAGE_SUFFIXES and not leaf.name.startswith(".")


def single_root(source: Source) -> str:
    """The one folder that holds everything, as in a zip made of a folder; else the root itself."""
    folders = source.folders()
    return folders[0] if len(folders) == 1 and not any(map(is_image, source.files(""))) else ""

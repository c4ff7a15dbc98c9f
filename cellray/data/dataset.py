"""An open dataset: flat files of decoded images and labels that every process maps read-only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from cellray.arrays import Mask, Numbers
from cellray.data.duplicates import Likeness
from cellray.data.plausible import Doubt, Signs, doubt_note, doubts
from cellray.errors import DataError
from cellray.losses.maps import MAPS_VERSION

CACHE_VERSION = 1
"""Raised when decoding or converting changes what comes out; it is part of every fingerprint."""

LAYOUT = 2
"""Raised when more is kept with the decoded images: those of earlier releases are decoded once more."""
VOID_NAME = "void.u8"
"""The file of pixels that count as neither cell nor background."""


class CacheIndex(TypedDict):
    """What `index.json` says of a decoded dataset."""

    fingerprint: str
    version: int
    layout: int
    channels: int
    names: list[str]
    splits: list[str]
    groups: list[str]
    shapes: list[tuple[int, int]]
    n_objects: list[int]
    labels: str
    """Name of the file of labels."""
    labels_dtype: str
    measured_diameter_px: float | None
    void_at: list[int | None]
    """Where an image's void pixels begin in `VOID_NAME`; None without any."""
    signs: list[Signs]
    looks: list[list[str]]
    """As `Likeness`."""
    sizes: dict[str, int]
    """Bytes of each file."""
    notes: list[str]


class Dataset:
    """Images and labels in a read-only memory map; small to pickle, opened anew in each process.

    Attributes:
        name: What the study calls it.
        fingerprint: 16 hex digits of its content and conversion, whatever its path.
        diameter_px: Mean cell diameter in its pixels (after resampling, if it was resampled).
        names, splits, groups: One entry an image, in order of name.
        doubts: What may be wrong with its masks.
        looks: What its images are recognised by.
        notes: Warnings worth showing, those about its masks among them.
    """

    def __init__(self, folder: Path, *, name: str, diameter_px: float, notes: list[str]) -> None:
        index = read_index(folder)
        if index is None:
            raise DataError(f"{folder}: the cache of dataset {name!r} is gone or damaged; open the dataset again")
        self.folder = folder
        self.name = name
        self.diameter_px = diameter_px
        self.doubts: list[Doubt] = doubts(index["signs"])
        self.looks = [Likeness(*look) for look in index["looks"]]
        self.given_notes = notes
        self.notes = notes + [f"dataset {name!r}: {doubt_note(doubt, index['names'])}" for doubt in self.doubts]
        self.fingerprint = index["fingerprint"]
        self.channels = index["channels"]
        self.names = index["names"]
        self.splits = index["splits"]
        self.groups = index["groups"]
        self.n_objects = index["n_objects"]
        self.shapes = [(h, w) for h, w in index["shapes"]]
        self._starts = np.concatenate([[0], np.cumsum([h * w for h, w in self.shapes])]).tolist()
        self._images = np.memmap(folder / "images.u8", np.uint8, "r")
        self._labels = np.memmap(folder / index["labels"], np.dtype(index["labels_dtype"]), "r")
        self._void_at = index["void_at"]
        has_void = any(at is not None for at in self._void_at)
        self._void = np.memmap(folder / VOID_NAME, bool, "r") if has_void else None
        self._maps: dict[str, np.memmap[tuple[int, ...], np.dtype[np.number]]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i, shape (H, W, C), a read-only view of the map."""
        start, stop = self._span(i)
        pixels = self._images[start * self.channels : stop * self.channels]
        return np.asarray(pixels).reshape(*self.shapes[i], self.channels)

    def labels(self, i: int) -> NDArray[np.uint16] | NDArray[np.int32]:
        """Labels of image i, shape (H, W), 0 background and 1..n, a read-only view of the map."""
        start, stop = self._span(i)
        return np.asarray(self._labels[start:stop]).reshape(self.shapes[i])

    @property
    def has_void(self) -> bool:
        """Whether any image has pixels that count as neither cell nor background."""
        return self._void is not None

    def void(self, i: int) -> Mask | None:
        """Pixels of image i that count in no loss and no metric, shape (H, W), a view of the map; None without any."""
        at = self._void_at[i]
        if at is None or self._void is None:
            return None
        height, width = self.shapes[i]
        return np.asarray(self._void[at : at + height * width]).reshape(height, width)

    def map(self, name: str, i: int) -> Numbers:
        """A stored map of image i's true cells (`cellray.losses.maps.STORED`), shape (H, W); `add_maps` makes it."""
        if name not in self._maps:
            kind = self._labels.dtype if name == "voronoi" else np.dtype(np.float16)
            self._maps[name] = np.memmap(self.map_folder(name) / "values", kind, "r")
        start, stop = self._span(i)
        return np.asarray(self._maps[name][start:stop]).reshape(self.shapes[i])

    def map_folder(self, name: str) -> Path:
        """Where the cache keeps a map of this dataset's images."""
        return self.folder.parent.parent / "maps" / f"{self.fingerprint}-{MAPS_VERSION}" / name

    def _span(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"dataset {self.name!r} has {len(self)} images, got index {i}")
        return self._starts[i], self._starts[i + 1]

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.folder, self.name, self.diameter_px, self.given_notes)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} images, {self.diameter_px:.1f} px, {self.fingerprint})"


def _reopen(folder: Path, name: str, diameter_px: float, notes: list[str]) -> Dataset:
    return Dataset(folder, name=name, diameter_px=diameter_px, notes=notes)


def read_index(folder: Path) -> CacheIndex | None:
    """The index of a cache whose files have the sizes that it states; None for any other."""
    try:
        index: CacheIndex = json.loads((folder / "index.json").read_text())
        sizes = {name: (folder / name).stat().st_size for name in index["sizes"]}
        is_whole = sizes == index["sizes"] and index["version"] == CACHE_VERSION
        return index if is_whole and index["layout"] == LAYOUT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Is this a usable dataset? Every problem at once, its statistics, and a contact sheet to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cellray.arrays import Floats
from cellray.data.cache import default_cache_dir
from cellray.data.dataset import Dataset
from cellray.data.decode import PLAIN, ChannelsError, Reading
from cellray.data.duplicates import Likeness, look_of, twin_notes
from cellray.data.grouping import guess_groups
from cellray.data.items import list_items, load_item
from cellray.data.listing import DatasetLike, Item
from cellray.data.opening import WORKERS, Facts, OnImage, locate, object_diameters
from cellray.data.plausible import DIM, Signs, contrast, doubt_note, doubts, signs_of
from cellray.data.source import Source
from cellray.data.splits import split_dataset
from cellray.errors import DataError
from cellray.overlay import draw_outlines

CAPTION_PX = 16


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` found; the statistics are of the images that could be read."""

    name: str
    path: str
    problems: list[str]
    """Each one keeps the dataset from being opened."""
    notes: list[str]
    """Worth knowing; none keeps it from being opened."""
    n_images: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    """Images of each width x height in pixels."""
    dtypes: dict[str, int] = field(default_factory=dict)
    """Images of each depth and colour, such as `uint8 RGB`."""
    splits: dict[str, int] = field(default_factory=dict)
    """Images of each official split; '' has none."""
    n_groups: int = 0
    n_objects: int = 0
    objects_per_image: tuple[float, float, float] | None = None
    """Minimum, median, maximum."""
    foreground_percent: tuple[float, float] | None = None
    """Mean and median over the images."""
    diameter_px: tuple[float, float, float] | None = None
    """5th, 50th and 95th percentile over the objects."""
    intensity: tuple[float, float] | None = None
    """Median over the images of the darkest and of the brightest value."""
    has_labels: bool = False
    """Whether some file of the ground truth tells cells apart that touch."""
    n_pieces: int = 0
    """Connected parts of what is marked: fewer than cells where some touch."""
    contrast: float | None = None
    """How much brighter cells are than what surrounds them, in standard deviations: the median over the images."""
    guessed_groups: str = ""
    """Pattern of groups that the images' names suggest, where the dataset says none; see `guess_groups`."""
    channel_contrast: list[float] = field(default_factory=list)
    """Of images of several channels: how much brighter cells are than what surrounds them in each, the median."""
    study_split: tuple[int, int, int] | None = None
    """Training, validation and test images that a study would get with seed 0; None if one is empty."""

    @property
    def is_usable(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class _Examined:
    """The facts of one image."""

    size: str
    depth: str
    dtype: str
    darkest: int
    brightest: int
    foreground_percent: float
    diameters: Floats
    tells_apart: bool
    signs: Signs
    look: Likeness
    contrasts: list[float]
    """Of each of several channels that differ."""


@dataclass(frozen=True)
class _Names:
    name: str
    names: list[str]
    splits: list[str]
    groups: list[str]


def check_dataset(
    config: DatasetLike,
    *,
    normalise: str = "none",
    reading: Reading = PLAIN,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    cache_dir: Path | None = None,
    progress: OnImage | None = None,
) -> DatasetReport:
    """Read every file of a dataset and collect every problem; nothing is cached and no bad data raises.

    Args:
        config: A `DatasetConfig` of the study, or anything with its attributes.
        normalise: As in the study, to tell whether images come out dark.
        reading: As in the study.
        val_fraction, test_fraction: As in the study, to tell whether it can be split for training.
        cache_dir: Where a synthetic dataset is drawn.
        progress: Called with images done and in all.
    """
    path = str(config.path or "synthetic")
    try:
        listing = list_items(config, locate(config, cache_dir or default_cache_dir()), reading)
    except DataError as error:
        return DatasetReport(config.name, path, [str(error)], [])
    problems, notes = list(listing.problems), list(listing.notes)
    found_facts, readable, facts = [], [], Facts(reading)
    with ThreadPoolExecutor(WORKERS) as pool:
        examined = pool.map(lambda i: _examine(listing.source, i, reading), listing.items)
        for done, (item, found) in enumerate(zip(listing.items, examined, strict=True), start=1):
            if isinstance(found, str):
                problems.append(found)
            else:
                found_facts.append(found)
                readable.append(item.name)
                facts.add(found.depth, found.brightest, len(found.diameters), 0, item.is_labels)
            if progress is not None:
                progress(done, len(listing.items))
    if found_facts:
        notes += facts.notes(config.max_value, normalise)
        notes += [doubt_note(doubt, readable) for doubt in doubts([image.signs for image in found_facts])]
    items = listing.items
    names = _Names(config.name, [i.name for i in items], [i.split for i in items], [i.group for i in items])
    study_split = None
    try:
        split = split_dataset(names, val_fraction=val_fraction, test_fraction=test_fraction, split_seed=0)
        study_split = len(split.train), len(split.val), len(split.test)
        looks = {name: image.look for name, image in zip(readable, found_facts, strict=True)}
        training, test = (
            {names.names[i]: looks[names.names[i]] for i in part if names.names[i] in looks}
            for part in (split.train + split.val, split.test)
        )
        notes += twin_notes("training", training, "test", test)
    except DataError as error:
        if items:
            notes.append(f"only good for judging, not for training: {error}")
    groups = {("group", i.group) if i.group else ("image", i.name) for i in items}
    report = DatasetReport(
        name=config.name,
        path=path,
        problems=problems,
        notes=notes,
        n_images=len(items),
        splits=dict(Counter(i.split for i in items)),
        n_groups=len(groups),
        has_labels=any(found.tells_apart for found in found_facts),
        guessed_groups="" if any(i.group for i in items) else guess_groups([i.name for i in items]),
        study_split=study_split,
    )
    return _with_statistics(report, found_facts) if found_facts else report


def _examine(source: Source, item: Item, reading: Reading) -> _Examined | str:
    """The facts of one item, or the sentence that says why it can't be used."""
    try:
        pixels, labels, _, _, odd_label, tells_apart = load_item(source, item, reading)
    except ChannelsError as error:
        return f"{error}{_hint(source, item, reading, error.n_channels)}"
    except DataError as error:
        return str(error)
    several = pixels.ndim == 3 and bool((pixels != pixels[..., :1]).any())
    channels = [pixels[..., k] for k in range(3)] if several else []
    return _Examined(
        size=f"{labels.shape[1]}x{labels.shape[0]}",
        depth=pixels.dtype.name,
        dtype=f"{pixels.dtype} {'RGB' if pixels.ndim == 3 else 'gray'}",
        darkest=int(pixels.min()),
        brightest=int(pixels.max()),
        foreground_percent=100 * float(np.count_nonzero(labels)) / labels.size,
        diameters=object_diameters(labels),
        tells_apart=tells_apart,
        signs=signs_of(pixels, labels, odd_label),
        look=look_of(pixels),
        contrasts=[contrast(channel, labels) or 0.0 for channel in channels],
    )


def _hint(source: Source, item: Item, reading: Reading, n_channels: int) -> str:
    """Which channel the cells are in, if that can be told."""
    found = []
    for k in range(1, n_channels + 1):
        try:
            pixels, labels, *_ = load_item(source, item, replace(reading, channel=k))
        except DataError:
            return ""
        found.append(contrast(pixels, labels) or 0.0)
    best = int(np.argmax(found))
    return f"; the masks fit channel {best + 1} best" if found[best] > DIM else "; the masks fit none of them"


def _with_statistics(report: DatasetReport, images: list[_Examined]) -> DatasetReport:
    counts = [len(image.diameters) for image in images]
    diameters = np.concatenate([image.diameters for image in images])
    foreground = [image.foreground_percent for image in images]
    low, middle, high = np.percentile(diameters, [5, 50, 95]).tolist() if len(diameters) else [0.0] * 3
    contrasts = [image.contrasts for image in images if image.contrasts]
    dark, bright = (float(np.median([getattr(i, name) for i in images])) for name in ("darkest", "brightest"))
    return replace(
        report,
        sizes=dict(Counter(image.size for image in images).most_common()),
        dtypes=dict(Counter(image.dtype for image in images).most_common()),
        n_objects=sum(counts),
        objects_per_image=(float(min(counts)), float(np.median(counts)), float(max(counts))),
        foreground_percent=(float(np.mean(foreground)), float(np.median(foreground))),
        diameter_px=(low, middle, high) if len(diameters) else None,
        intensity=(dark, bright),
        n_pieces=sum(image.signs["pieces"] for image in images),
        contrast=_median([image.signs["contrast"] for image in images]),
        channel_contrast=np.median(contrasts, axis=0).tolist() if contrasts else [],
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def preview_dataset(dataset: Dataset, n: int = 12, *, columns: int = 4, side_px: int = 320) -> NDArray[np.uint8]:
    """A contact sheet of n images with the contours of their true cells: the doubtful ones, then from the emptiest on.

    Args:
        dataset: An open dataset.
        n: At most this many images: up to half of them doubtful, the others evenly spaced by their cell counts.
        columns: Pictures in a row.
        side_px: Longer side of a picture.

    Returns:
        uint8, shape (height, width, 3).
    """
    order = sorted(range(len(dataset)), key=lambda i: (dataset.n_objects[i], dataset.names[i]))
    n = max(1, min(n, len(order)))
    doubtful = {i: doubt.short for doubt in reversed(dataset.doubts) for i in doubt.images}
    first = list(doubtful)[: max(n // 2, 1)]
    rest = [i for i in order if i not in first]
    places = np.linspace(0, len(rest) - 1, n - len(first)).round().astype(int)
    tiles = [_thumbnail(dataset, i, side_px, doubtful.get(i, "")) for i in [*first, *(rest[k] for k in places)]]
    columns = min(columns, n)
    rows = -(-n // columns)
    height = max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (columns * (side_px + 4), rows * (height + 4)), "white")
    for k, tile in enumerate(tiles):
        sheet.paste(tile, ((k % columns) * (side_px + 4) + 2, (k // columns) * (height + 4) + 2))
    return np.asarray(sheet)


def _thumbnail(dataset: Dataset, i: int, side_px: int, doubt: str) -> Image.Image:
    """One image with the outlines of its cells, and a caption that is red if something is doubtful about it."""
    labels = dataset.labels(i)
    drawn = draw_outlines(dataset.image(i), [("hit", labels, np.unique(labels))], max_side_px=side_px, thin=True)
    tile = Image.new("RGB", (side_px, len(drawn) + CAPTION_PX), "white")
    tile.paste(Image.fromarray(drawn), (0, CAPTION_PX))
    name = dataset.names[i]
    room = 36 - len(doubt)
    short = name if len(name) <= room else f"{name[: room - 3]}..."
    words = doubt or f"{dataset.n_objects[i]} cells"
    ImageDraw.Draw(tile).text((2, 2), f"{short}  {words}", fill="#B00000" if doubt else "black")
    return tile

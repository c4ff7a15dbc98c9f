"""Is this a usable dataset? Every problem at once, its statistics, and a contact sheet to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from cellray.data.cache import default_cache_dir
from cellray.data.dataset import Dataset
from cellray.data.listing import DatasetSettings, Item
from cellray.data.opening import WORKERS, Facts, Progress, load_item, locate, object_diameters
from cellray.data.readers import list_dataset
from cellray.data.source import Source
from cellray.data.splits import split_dataset
from cellray.errors import DataError

CONTOUR_RGB = (86, 180, 233)
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
    study_split: tuple[int, int, int] | None = None
    """Training, validation and test images that a study would get with seed 0; None if one is empty."""

    @property
    def is_usable(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class _Names:
    name: str
    names: list[str]
    splits: list[str]
    groups: list[str]


def check_dataset(
    config: DatasetSettings,
    *,
    normalise: str = "none",
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> DatasetReport:
    """Read every file of a dataset and collect every problem; nothing is cached and no bad data raises.

    Args:
        config: A `DatasetConfig` of the study, or anything with its attributes.
        normalise: As in the study, to tell whether images come out dark.
        val_fraction, test_fraction: As in the study, to tell whether it can be split for training.
        cache_dir: Where a synthetic dataset is drawn.
        progress: Called with images done and in all.
    """
    path = str(config.path or "synthetic")
    try:
        listing = list_dataset(config, locate(config, cache_dir or default_cache_dir()))
    except DataError as error:
        return DatasetReport(config.name, path, [str(error)], [])
    problems, notes = list(listing.problems), list(listing.notes)
    found_facts, facts = [], Facts()
    with ThreadPoolExecutor(WORKERS) as pool:
        examined = pool.map(lambda i: _examine(listing.source, i), listing.items)
        for done, (item, found) in enumerate(zip(listing.items, examined, strict=True), start=1):
            if isinstance(found, str):
                problems.append(found)
            else:
                found_facts.append(found)
                facts.add(found["depth"], found["brightest"], len(found["diameters"]), 0, item.is_labels)
            if progress is not None:
                progress(done, len(listing.items))
    if found_facts:
        notes += facts.notes(config.max_value, normalise)
    items = listing.items
    names = _Names(config.name, [i.name for i in items], [i.split for i in items], [i.group for i in items])
    study_split = None
    try:
        split = split_dataset(names, val_fraction=val_fraction, test_fraction=test_fraction, split_seed=0)
        study_split = len(split.train), len(split.val), len(split.test)
    except DataError as error:
        notes.append(f"only good for judging, not for training: {error}")
    groups = {("group", i.group) if i.group else ("image", i.name) for i in items}
    return DatasetReport(
        name=config.name,
        path=path,
        problems=problems,
        notes=notes,
        n_images=len(items),
        splits=dict(Counter(i.split for i in items)),
        n_groups=len(groups),
        study_split=study_split,
        **_statistics(found_facts),
    )


def _examine(source: Source, item: Item) -> dict[str, Any] | str:
    """The facts of one item, or the sentence that says why it can't be used."""
    try:
        pixels, labels = load_item(source, item)
    except DataError as error:
        return str(error)
    return {
        "size": f"{labels.shape[1]}x{labels.shape[0]}",
        "depth": pixels.dtype.name,
        "dtype": f"{pixels.dtype} {'RGB' if pixels.ndim == 3 else 'gray'}",
        "darkest": int(pixels.min()),
        "brightest": int(pixels.max()),
        "foreground": 100 * float(np.count_nonzero(labels)) / labels.size,
        "diameters": object_diameters(labels),
    }


def _statistics(facts: list[dict[str, Any]]) -> dict[str, Any]:
    if not facts:
        return {}
    counts = [len(f["diameters"]) for f in facts]
    diameters = np.concatenate([f["diameters"] for f in facts])
    foreground = [f["foreground"] for f in facts]
    return {
        "sizes": dict(Counter(f["size"] for f in facts).most_common()),
        "dtypes": dict(Counter(f["dtype"] for f in facts).most_common()),
        "n_objects": sum(counts),
        "objects_per_image": (float(min(counts)), float(np.median(counts)), float(max(counts))),
        "foreground_percent": (float(np.mean(foreground)), float(np.median(foreground))),
        "diameter_px": _floats(np.percentile(diameters, [5, 50, 95])) if len(diameters) else None,
        "intensity": _floats([np.median([f["darkest"] for f in facts]), np.median([f["brightest"] for f in facts])]),
    }


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def preview_dataset(dataset: Dataset, n: int = 12, *, columns: int = 4, side_px: int = 320) -> NDArray[np.uint8]:
    """A contact sheet of n images with the contours of their true cells, from the emptiest to the most crowded.

    Args:
        dataset: An open dataset.
        n: At most this many images, evenly spaced in the order of their cell counts.
        columns: Pictures in a row.
        side_px: Longer side of a picture.

    Returns:
        uint8, shape (height, width, 3).
    """
    order = sorted(range(len(dataset)), key=lambda i: (dataset.n_objects[i], dataset.names[i]))
    n = max(1, min(n, len(order)))
    chosen = [order[k] for k in np.linspace(0, len(order) - 1, n).round().astype(int)]
    tiles = [_thumbnail(dataset, i, side_px) for i in chosen]
    columns = min(columns, n)
    rows = -(-n // columns)
    height = max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (columns * (side_px + 4), rows * (height + 4)), "white")
    for k, tile in enumerate(tiles):
        sheet.paste(tile, ((k % columns) * (side_px + 4) + 2, (k // columns) * (height + 4) + 2))
    return np.asarray(sheet)


def _thumbnail(dataset: Dataset, i: int, side_px: int) -> Image.Image:
    """One image stretched for the eye, with contours drawn after resizing so that they stay visible, and a caption."""
    pixels = dataset.image(i).astype(np.float32)
    low, high = np.percentile(pixels, [1, 99.8])
    stretched = np.clip((pixels - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)
    height, width = stretched.shape[:2]
    scale = side_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(stretched if stretched.shape[2] == 3 else np.repeat(stretched, 3, axis=2))
    drawn = np.array(picture.resize(size, Image.Resampling.BILINEAR))
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(np.intp)
    cols = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(np.intp)
    labels = dataset.labels(i)[rows[:, None], cols].astype(np.int32)
    drawn[find_boundaries(labels, mode="inner")] = CONTOUR_RGB
    tile = Image.new("RGB", (side_px, size[1] + CAPTION_PX), "white")
    tile.paste(Image.fromarray(drawn), (0, CAPTION_PX))
    name = dataset.names[i]
    short = name if len(name) <= 36 else f"{name[:33]}..."
    ImageDraw.Draw(tile).text((2, 2), f"{short}  {dataset.n_objects[i]} cells", fill="black")
    return tile

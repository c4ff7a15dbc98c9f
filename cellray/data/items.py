"""The items of a dataset, and the files of one of them: an image with its ground truth."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellray.arrays import Mask
from cellray.data.decode import PLAIN, Reading, Truth, UInt, consecutive, decode_image, decode_mask, decode_void
from cellray.data.image_file import read_header
from cellray.data.listing import DatasetLike, Item, Listing
from cellray.data.readers import list_dataset
from cellray.data.source import Source
from cellray.errors import DataError


def list_items(config: DatasetLike, path: Path, reading: Reading) -> Listing:
    """As `list_dataset`, with an item for each plane of a stack if the study wants that.

    Raises:
        DataError: As `list_dataset`.
    """
    listing = list_dataset(config, path, reading.ignore)
    if reading.plane != "all":
        return listing
    items = []
    for item in listing.items:
        try:
            data = io.BytesIO(listing.source.read(item.image_file))
            n = read_header(data, listing.source.where(item.image_file)).n_planes
        except DataError as error:
            listing.problems.append(str(error))
            continue
        if n == 1:
            items.append(item)
            continue
        width = len(str(n))
        items += [
            replace(item, name=f"{item.name}_{k:0{width}}", group=item.group or item.name, plane=k)
            for k in range(1, n + 1)
        ]
    for name, count in Counter(item.name for item in items).items():
        if count > 1:
            listing.problems.append(
                f"{path}: {count} images are called {name!r}, one a plane of a file; rename the file"
            )
    listing.items = items
    return listing


class Loaded(NamedTuple):
    """An image with its ground truth, as they are in their files."""

    pixels: UInt
    """Shape (H, W) or (H, W, 3)."""
    labels: NDArray[np.int32]
    """Shape (H, W), 0 and 1..n."""
    void: Mask | None
    """Pixels that count as neither cell nor background, same shape; None if there are none."""
    reread: tuple[str, ...]
    """As `ImageFile.reread`, of both files."""
    odd_label: int | None
    """As `Truth.odd_label`."""
    tells_apart: bool
    """As `Truth.tells_apart`."""


def load_item(source: Source, item: Item, reading: Reading = PLAIN) -> Loaded:
    """Read the files of one item.

    Raises:
        DataError: If one of them can't be used, or their sizes differ.
    """
    reading = reading.at(item.plane)
    image_where, mask_where = source.where(item.image_file), source.where(item.mask_file)
    image = decode_image(source.read(item.image_file), image_where, reading)
    truth = decode_mask(
        source.read(item.mask_file),
        mask_where,
        is_labels=item.is_labels,
        reading=reading if item.looks_in_mask else replace(reading, ignore=None),
    )
    _check_sizes(image.pixels, image_where, truth.labels, mask_where, image.reread + truth.reread)
    if item.void_file:
        void_where = source.where(item.void_file)
        void = decode_void(source.read(item.void_file), void_where, reading)
        _check_sizes(image.pixels, image_where, void, void_where, ())
        truth = _without(truth, void)
    reread = image.reread + truth.reread
    return Loaded(image.pixels, truth.labels, truth.void, reread, truth.odd_label, truth.tells_apart)


def _check_sizes(
    pixels: UInt, image_where: str, mask: NDArray[np.generic], mask_where: str, reread: tuple[str, ...]
) -> None:
    if pixels.shape[:2] != mask.shape:
        turned = " as its orientation tag turns it" if "turned" in reread else ""
        raise DataError(
            f"{mask_where}: mask of {mask.shape[1]}x{mask.shape[0]} pixels, "
            f"expected {pixels.shape[1]}x{pixels.shape[0]} like its image {image_where}{turned}"
        )


def _without(truth: Truth, void: Mask) -> Truth:
    """Leave out pixels, and with them the cells of which they are more than half."""
    if not void.any():
        return truth
    areas = np.bincount(truth.labels.ravel())
    lost = np.bincount(truth.labels[void], minlength=len(areas))
    gone = 2 * lost > areas
    gone[0] = False
    void = void | gone[truth.labels]
    return truth._replace(labels=consecutive(np.where(void, 0, truth.labels)), void=void)

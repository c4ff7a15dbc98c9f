"""The reader of a manifest: a CSV with one row for each image."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import PurePosixPath

from cellray.data.listing import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    MASK_FOLDERS,
    SPLIT_COLUMNS,
    SPLIT_WORDS,
    DatasetLike,
    Item,
    Listing,
    chosen_rows,
    is_image,
    join,
    single_root,
)
from cellray.data.source import Source
from cellray.errors import DataError, unknown


def find_manifest(source: Source) -> str:
    """The manifest at the root or in the one top folder; '' if there is none."""
    for root in ("", single_root(source)):
        if found := source.find(join(root, "manifest.csv")):
            return found
    return ""


def read_manifest(listing: Listing, manifest: str, config: DatasetLike) -> None:
    """A CSV with the column file; split, group, collection, labelled are understood, the rest can be filtered."""
    source = listing.source
    if not manifest:
        raise DataError(f"{source.path}: no manifest.csv in it, expected one")
    rows = _manifest_rows(source, manifest)
    root = PurePosixPath(manifest).parent.as_posix().removeprefix(".")
    unlabelled = 0
    for k in chosen_rows(source, rows, config):
        if rows[k].get("labelled", "1").lower() in ("0", "false", "no"):
            unlabelled += 1
            continue
        try:
            listing.items.append(_manifest_item(source, root, rows[k]))
        except DataError as error:
            listing.problems.append(f"{source.where(manifest)}: line {k + 2}: {error}")
    if unlabelled:
        listing.notes.append(f"{source.where(manifest)}: left out {unlabelled} unlabelled image(s)")
    for file, count in Counter(item.image_file for item in listing.items).items():
        if count > 1:
            listing.problems.append(f"{source.where(manifest)}: lists {file!r} {count} times, expected once")
    images_of: dict[str, set[str]] = {}
    for item in listing.items:
        images_of.setdefault(item.mask_file, set()).add(item.image_file)
    for mask, images in images_of.items():
        if len(images) > 1:
            names = " and ".join(sorted(images))
            listing.problems.append(f"{source.where(mask)}: the mask of {names}, expected one image of that name")


def _manifest_rows(source: Source, manifest: str) -> list[dict[str, str]]:
    try:
        text = source.read(manifest).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source.where(manifest)}: not a CSV in UTF-8: {error}") from error
    if not rows or "file" not in rows[0]:
        columns = f"the columns {', '.join(map(str, rows[0]))}" if rows else "no rows"
        raise DataError(f"{source.where(manifest)}: expected rows with a column 'file', got {columns}")
    return [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in rows]


def _manifest_item(source: Source, root: str, values: dict[str, str]) -> Item:
    file = PurePosixPath(values["file"].replace("\\", "/"))
    collection = values.get("collection", "")
    if not values["file"] or file.is_absolute() or ".." in file.parts or ".." in PurePosixPath(collection).parts:
        raise DataError(f"file {values['file']!r}: expected a path below images/")
    base = join(root, collection) if collection else root
    candidates = [join(base, f"{folder}/{file}") for folder in IMAGE_FOLDERS] + [join(base, str(file))]
    image = next(filter(None, map(source.find, candidates)), None)
    if image is None:
        raise DataError(f"file {str(file)!r}: no such image, expected {source.where(candidates[0])}")
    if not is_image(image):
        raise DataError(f"file {str(file)!r}: unknown format {file.suffix!r}, expected {', '.join(IMAGE_SUFFIXES)}")
    stem = file.with_suffix("")
    masks = (join(base, f"{folder}/{stem}{suffix}") for folder in MASK_FOLDERS for suffix in IMAGE_SUFFIXES)
    mask = next(filter(None, map(source.find, masks)), None)
    if mask is None:
        raise DataError(
            f"file {str(file)!r}: image without mask, expected {source.where(join(base, f'labels/{stem}.png'))}"
        )
    word = next((values[c] for c in SPLIT_COLUMNS if values.get(c)), "")
    if word.lower() not in SPLIT_WORDS:
        raise DataError(unknown("split", word, filter(None, SPLIT_WORDS)))
    return Item(stem.as_posix(), SPLIT_WORDS[word.lower()], values.get("group", ""), values, image, mask)

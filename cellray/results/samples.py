"""What each image adds to each trial's metrics: small enough to keep for every trial."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cellray.arrays import Floats
from cellray.ledger import read_parquet
from cellray.metrics import MEDIANS, METRICS, columns_of, image_terms, metrics_of
from cellray.statistics import contributions

WHERE = ("set", "point", "image", "group")
GROUP = "group "
"""Begins the name of a unit that is a group of images."""


@dataclass(frozen=True)
class Sample:
    """One trial on the images of one set, at one operating point."""

    units: tuple[str, ...]
    """Names of the images, or of the clusters of images that belong together, in the order of the values."""
    values: dict[str, np.ndarray]
    """By metric, what each unit adds to the trial's score (`contributions`), shape (n_units,)."""
    images: dict[str, np.ndarray]
    """By metric that is a median, the value of each image, shape (n_images,)."""


class ImageTable(NamedTuple):
    """One trial's image table, a row an image, set and operating point, in the order in which they are stored."""

    words: dict[str, np.ndarray]
    """Set, point, image and group of each row; texts."""
    numbers: dict[str, Floats]
    """The columns of numbers by name."""


class ImageRows(NamedTuple):
    """What one trial's image table says."""

    samples: dict[tuple[str, str], Sample]
    """By set and operating point."""
    n_true: dict[str, np.ndarray]
    """True cells of each image, by set."""


Samples = Mapping[str, Mapping[tuple[str, str], Sample]]
"""By the trial's key, then by set and point."""


def read_images(data: bytes, metric: str | None = None) -> ImageTable:
    """One trial's image table.

    Args:
        data: The file's content.
        metric: Read no more than this metric needs; None: everything.

    Raises:
        ValueError, KeyError: If it is no such table. What pyarrow raises, too.
    """
    read = read_columns(data, None if metric is None else [*WHERE, "n_true", *columns_of(metric)], words=WHERE)
    numbers = {name: v.astype(np.float64) for name, v in read.items() if name not in WHERE and v.dtype.kind in "iuf"}
    n_rows = len(read["set"])
    if not n_rows:
        raise ValueError("it has no rows")
    check_columns(tuple(numbers))
    # an old table has no groups
    read.setdefault("group", np.full(n_rows, "", dtype=object))
    return ImageTable({name: read[name] for name in WHERE}, numbers)


def read_columns(data: bytes, columns: Collection[str] | None = None, *, words: Sequence[str]) -> dict[str, np.ndarray]:
    """A stored table as arrays.

    Args:
        data: The file's content.
        columns: Those wanted, as far as they are there; None: all.
        words: Those of them that hold texts.
    """
    table = read_parquet(data, columns)
    return {name: words_of(table[name]) if name in words else table[name].to_numpy() for name in table.column_names}


@lru_cache
def check_columns(names: tuple[str, ...]) -> None:
    """Raise a KeyError if a table of these number columns lacks one that goes with the others."""
    metrics_of(image_terms(dict.fromkeys(names, np.ones(1))))


def words_of(column: pa.ChunkedArray) -> np.ndarray:
    """The texts of a column, each made once; none is an empty one."""
    chunk = column.combine_chunks().dictionary_encode()
    texts = np.array(
        ["" if word is None else str(word) for word in (*chunk.dictionary.to_pylist(), None)], dtype=object
    )
    return texts[chunk.indices.fill_null(len(texts) - 1).to_numpy()]


def read_samples(tables: Sequence[ImageTable], metric: str | None = None) -> list[ImageRows]:
    """What the image tables of several trials say; those that have the same images are worked out together.

    Args:
        tables: Of `read_images`.
        metric: Keep no more than this metric on the test set at the own operating point needs; None: everything.
    """
    found = [ImageRows({}, {}) for _ in tables]
    alike: dict[tuple[tuple[str, ...], ...], list[tuple[ImageRows, tuple[str, str], dict[str, Floats]]]] = {}
    units: dict[tuple[tuple[str, ...], ...], np.ndarray] = {}
    for table, rows in zip(tables, found, strict=True):
        names, points, image, group = (table.words[name] for name in WHERE)
        unit = np.where(group != "", GROUP + group, "image " + image)
        for name, point in dict.fromkeys(zip(names, points, strict=True)):
            mine = np.flatnonzero((names == name) & (points == point))
            mine = mine[np.argsort(image[mine], kind="stable")]
            if point == "own":
                rows.n_true[name] = table.numbers["n_true"][mine]
            if metric is None or (name, point) == ("test", "own"):
                mine_of = tuple(table.numbers), tuple(unit[mine])
                units[mine_of] = unit[mine]
                chosen = {n: values[mine] for n, values in table.numbers.items()}
                alike.setdefault(mine_of, []).append((rows, (name, point), chosen))
    for which, parts in alike.items():
        columns = {name: np.stack([chosen[name] for _, _, chosen in parts]) for name in parts[0][2]}
        for (rows, where, _), sample in zip(parts, samples_of(columns, units[which]), strict=True):
            rows.samples[where] = sample
    return found


def samples_of(columns: Mapping[str, Floats], unit: np.ndarray) -> list[Sample]:
    """The samples of one set from its number columns, shape (n_trials, n_images); images with the same unit belong
    together."""
    units, number = np.unique(unit, return_inverse=True)
    terms = image_terms(columns)
    found = contributions(terms, number, metrics_of)
    names = tuple(map(str, units))
    metrics = [key for key in METRICS if key in found]
    medians = {key: terms[term] for key, term in MEDIANS.items() if term in terms}
    values = np.stack([found[key] for key in metrics], axis=1)  # one block, as holes between small ones add up
    return [
        Sample(
            units=names,
            values=dict(zip(metrics, mine, strict=True)),
            images={key: of[i] for key, of in medians.items()},
        )
        for i, mine in enumerate(values)
    ]

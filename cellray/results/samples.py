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
MOST_CELLS = 2**53
"""Of an image: above it floating-point numbers have gaps."""
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
    columns: tuple[str, ...]
    """Names of the columns of numbers."""
    values: Floats
    """Those columns, shape (n_columns, n_rows)."""

    @property
    def numbers(self) -> dict[str, Floats]:
        """The columns of numbers by name."""
        return dict(zip(self.columns, self.values, strict=True))


class ImageRows(NamedTuple):
    """What one trial's image table says."""

    samples: dict[tuple[str, str], Sample]
    """By set and operating point."""
    n_true: dict[str, np.ndarray]
    """True cells of each image, by set."""


Samples = Mapping[str, Mapping[tuple[str, str], Sample]]
"""By the trial's key, then by set and point."""


def parse_images(data: bytes, metric: str | None = None) -> pa.Table:
    """One trial's image table as it is stored, for `image_tables`.

    Args:
        data: The file's content.
        metric: Read no more than this metric needs; None: everything.

    Raises:
        ValueError, KeyError: If it is no such table. What pyarrow raises, too.
    """
    table = read_parquet(data, None if metric is None else [*WHERE, "n_true", *columns_of(metric)])
    if not len(table.select(WHERE[:3])):  # an old one has no groups
        raise ValueError("it has no rows")
    check_columns(number_columns(table))
    return table.replace_schema_metadata(None)


def image_tables(tables: Sequence[pa.Table]) -> list[ImageTable]:
    """Image tables of several trials; those with the same columns are converted at once.

    Raises:
        ValueError: If one holds what its columns can't. What pyarrow raises, too.
    """
    alike: dict[pa.Schema, list[int]] = {}
    for i, table in enumerate(tables):
        alike.setdefault(table.schema, []).append(i)
    found: dict[int, ImageTable] = {}
    for places in alike.values():
        whole = pa.concat_tables(tables[i] for i in places)
        columns = number_columns(whole)
        none = np.full(len(whole), "", dtype=object)
        words = {name: words_of(whole[name]) if name in whole.column_names else none for name in WHERE}
        values = np.stack([whole[name].to_numpy().astype(np.float64) for name in columns])
        ends = np.cumsum([len(tables[i]) for i in places])
        for i, end in zip(places, ends, strict=True):
            rows = slice(end - len(tables[i]), end)
            found[i] = ImageTable({name: of[rows] for name, of in words.items()}, columns, values[:, rows])
            check_rows(found[i])
    return [found[i] for i in range(len(tables))]


def check_rows(table: ImageTable) -> None:
    """Raise a ValueError if cells aren't counted by whole numbers, or if a test image has two rows at a point; one of
    validation may be that of several folds."""
    for name in {"n_true", "n_pred"}.intersection(table.columns):
        counts = table.values[table.columns.index(name)]
        if not ((counts >= 0) & (counts < MOST_CELLS) & (counts == np.floor(counts))).all():
            raise ValueError(f"{name} isn't a number of cells in every row")
    tested = table.words["set"] == "test"
    if len(set(zip(table.words["point"][tested], table.words["image"][tested], strict=True))) < tested.sum():
        raise ValueError("a test image has two rows")


def number_columns(table: pa.Table) -> tuple[str, ...]:
    """The names of a table's columns of numbers, without those that say where a row is from."""
    kinds = (pa.types.is_integer, pa.types.is_floating)
    return tuple(of.name for of in table.schema if of.name not in WHERE and any(is_one(of.type) for is_one in kinds))


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
        tables: Of `image_tables`.
        metric: Keep no more than this metric on the test set at the own operating point needs; None: everything.
    """
    found = [ImageRows({}, {}) for _ in tables]
    layouts: dict[tuple[tuple[str, ...], ...], list[Part]] = {}
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[tuple[ImageRows, tuple[str, str], Floats]]] = {}
    for table, rows in zip(tables, found, strict=True):
        words = tuple(tuple(table.words[name]) for name in WHERE)
        if words not in layouts:
            layouts[words] = parts_of(table.words)
        for part in layouts[words]:
            values = table.values[:, part.rows]
            name, point = part.where
            if point == "own":
                rows.n_true[name] = values[table.columns.index("n_true")].copy()
            if metric is None or part.where == ("test", "own"):
                alike.setdefault((table.columns, part.units), []).append((rows, part.where, values))
    for (columns, units), trials in alike.items():
        together = np.stack([values for _, _, values in trials], axis=1)
        samples = samples_of(dict(zip(columns, together, strict=True)), np.array(units, dtype=object))
        for (rows, where, _), sample in zip(trials, samples, strict=True):
            rows.samples[where] = sample
    return found


class Part(NamedTuple):
    """The rows of one set at one operating point in an image table."""

    where: tuple[str, str]
    """Set and point."""
    rows: np.ndarray
    """Their numbers, in the order of the images' names."""
    units: tuple[str, ...]
    """What each row belongs to: an image by itself, or a group of images."""


def parts_of(words: Mapping[str, np.ndarray]) -> list[Part]:
    """The sets and operating points of an image table, in the order in which they are stored."""
    names, points, image, group = (words[name] for name in WHERE)
    unit = np.where(group != "", GROUP + group, "image " + image)
    found = []
    for name, point in dict.fromkeys(zip(names, points, strict=True)):
        mine = np.flatnonzero((names == name) & (points == point))
        mine = mine[np.argsort(image[mine], kind="stable")]
        found.append(Part((name, point), mine, tuple(unit[mine])))
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

"""What each image adds to each trial's metrics: read once from the ledger, small enough to keep for every trial."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellray.metrics import MEDIANS, METRICS, columns_of, image_terms, metrics_of
from cellray.scores import Record
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


class Reader(Protocol):
    """What is needed of a ledger."""

    def read_all(self, paths: Iterable[str]) -> Iterator[bytes | None]: ...


Samples = Mapping[str, Mapping[tuple[str, str], Sample]]
"""By the trial's key, then by set and point."""


def read_samples(
    ledger: Reader,
    records: Iterable[Record],
    *,
    known: dict[str, dict[tuple[str, str], Sample]] | None = None,
    metric: str | None = None,
) -> dict[str, dict[tuple[str, str], Sample]]:
    """The samples of all records that have image rows.

    Args:
        ledger: Where the image tables are.
        records: Of planned trials.
        known: Filled with what was read; pass it again to read only new trials. A trial judged anew is read anew.
        metric: Read no more than this metric on the test set at the own operating point needs; None: everything.
    """
    known = {} if known is None else known
    stored = {f"{record['key']}/{record.get('evaluation_key')}": record for record in records}
    for name in set(known) - stored.keys():
        del known[name]
    names: dict[tuple[str, ...], tuple[str, ...]] = {}  # the same images in every trial, so one copy of their names
    new = {name: record["key"] for name, record in stored.items() if name not in known and record.get("metrics")}
    tables = ledger.read_all(f"trials/{key}/images.parquet" for key in new.values())
    for name, data in zip(new, tables, strict=True):
        if data is not None:
            found = samples_of(data, metric)
            known[name] = {
                where: replace(sample, units=names.setdefault(sample.units, sample.units))
                for where, sample in found.items()
            }
    return {str(stored[name]["key"]): sample for name, sample in known.items()}


def samples_of(data: bytes, metric: str | None) -> dict[tuple[str, str], Sample]:
    """One trial's samples from the bytes of its image table; `metric` as for `read_samples`."""
    file = pq.ParquetFile(io.BytesIO(data))
    fields = {field.name: field.type for field in file.schema_arrow}
    numbers = [n for n, kind in fields.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    if metric is not None:
        numbers = sorted(set(numbers) & set(columns_of(metric)))
    words = [name for name in WHERE if name in fields]
    table = file.read(columns=[*words, *numbers])
    read = {name: np.array(table[name].to_pylist(), dtype=object) for name in words}
    columns = {name: table[name].to_numpy().astype(np.float64) for name in numbers}
    image = read["image"].astype(str)
    # an old table has no groups, and one without any has them empty
    group = np.array([word or "" for word in read.get("group", [""] * len(image))], dtype=str)
    unit = np.where(group != "", np.char.add(GROUP, group), np.char.add("image ", image))
    wanted = dict.fromkeys(zip(read["set"], read["point"], strict=True))
    found = {}
    for name, point in wanted if metric is None else wanted.keys() & {("test", "own")}:
        mine = np.flatnonzero((read["set"] == name) & (read["point"] == point))
        mine = mine[np.argsort(image[mine], kind="stable")]
        found[str(name), str(point)] = sample_of({n: values[mine] for n, values in columns.items()}, unit[mine])
    return found


def sample_of(columns: Mapping[str, np.ndarray], unit: np.ndarray) -> Sample:
    """The sample of one set from its number columns; images with the same unit belong together."""
    units, number = np.unique(unit, return_inverse=True)
    terms = image_terms(columns)
    found = contributions(terms, number, metrics_of)
    return Sample(
        units=tuple(units.tolist()),
        values={key: found[key] for key in METRICS if key in found},
        images={key: terms[term] for key, term in MEDIANS.items() if term in terms},
    )


def has_groups(samples: Samples) -> bool:
    """Whether images of the test set belong together."""
    tested = {s.units for sets in samples.values() for (name, _), s in sets.items() if name == "test"}
    return any(unit.startswith(GROUP) for units in tested for unit in units)

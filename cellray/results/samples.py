"""What each image adds to each trial's metrics: small enough to keep for every trial."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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


class ImageRows(NamedTuple):
    """What one trial's image table says."""

    samples: dict[tuple[str, str], Sample]
    """By set and operating point."""
    n_true: dict[str, np.ndarray]
    """True cells of each image, by set."""


Samples = Mapping[str, Mapping[tuple[str, str], Sample]]
"""By the trial's key, then by set and point."""


def read_images(data: bytes, metric: str | None = None) -> ImageRows:
    """What one trial's image table says.

    Args:
        data: The file's content.
        metric: Keep no more than this metric on the test set at the own operating point needs; None: everything.

    Raises:
        ValueError, KeyError: If it is no such table. What pyarrow raises, too.
    """
    file = pq.ParquetFile(io.BytesIO(data))
    fields = {field.name: field.type for field in file.schema_arrow}
    numbers = [n for n, kind in fields.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    if metric is not None:
        numbers = sorted(set(numbers) & {"n_true", *columns_of(metric)})
    words = [name for name in WHERE if name in fields]
    table = file.read(columns=[*words, *numbers])
    read = {name: np.array(table[name].to_pylist(), dtype=object) for name in words}
    columns = {name: table[name].to_numpy().astype(np.float64) for name in numbers}
    image = read["image"].astype(str)
    if not len(image):
        raise ValueError("it has no rows")
    # an old table has no groups, and one without any has them empty
    group = np.array([word or "" for word in read.get("group", [""] * len(image))], dtype=str)
    unit = np.where(group != "", np.char.add(GROUP, group), np.char.add("image ", image))
    found = ImageRows({}, {})
    for name, point in dict.fromkeys(zip(read["set"], read["point"], strict=True)):
        mine = np.flatnonzero((read["set"] == name) & (read["point"] == point))
        mine = mine[np.argsort(image[mine], kind="stable")]
        if point == "own":
            found.n_true[str(name)] = columns["n_true"][mine]
        if metric is None or (name, point) == ("test", "own"):
            chosen = {n: values[mine] for n, values in columns.items()}
            found.samples[str(name), str(point)] = sample_of(chosen, unit[mine])
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

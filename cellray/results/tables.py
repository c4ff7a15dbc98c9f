"""One trial's tables: what a report takes of them, which can be kept, so that it is made once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgpack
import numpy as np

import cellray
from cellray.ledger import Ledger
from cellray.metrics import CURVE_SOURCES, stratum_rows
from cellray.record import EpochRow, TrialRecord
from cellray.results.samples import ImageRows, ImageTable, Sample, read_columns

STRATUM_SOURCES = ["tp_iou", "fp_iou", "fn_iou", "crowded"]
IMAGES = {*STRATUM_SOURCES, *CURVE_SOURCES}
OBJECTS = ["set", "image", "true_id", "pred_id", "area_true", "area_pred", "kind"]
NUMBERS, TEXTS = 1, 2
"""Kinds of arrays as MessagePack has them."""

Columns = Mapping[str, np.ndarray]
"""A table by its columns' names, each of shape (n_rows,)."""


class TrialTables(NamedTuple):
    """What figures take of one trial's tables."""

    history: Columns
    """A row an epoch; no column of a trial that trained none."""
    images: Columns
    """A row an image, at the own operating point and without validation; no column if there are none."""
    levels: list[dict[str, object]]
    """The strata of each set, with a key `set`; see `stratify`."""


def read_tables(
    ledger: Ledger, record: TrialRecord, table: ImageTable | None, files: Mapping[str, bytes | None]
) -> TrialTables:
    """What figures take of a trial's image table and of its other files by name, None where one is missing.

    Raises:
        LedgerError: If a file is damaged.
    """
    history, objects = files["history"], files["objects"]
    images = {} if table is None or record.outcome == "stopped" else shown_images(table)
    with ledger.reading(record.key, "history"):
        course = {} if history is None else course_of(history)
    with ledger.reading(record.key, "objects"):
        levels = [] if record.is_lost else strata_of(images, objects)
    return TrialTables(course, images, levels)


def course_of(file: bytes) -> Columns:
    """A trial's epochs, a row each.

    Raises:
        KeyError, TypeError, ValueError: If they aren't numbered, or a column has no numbers. What pyarrow raises, too.
    """
    columns = read_columns(file, EpochRow.__annotations__, words=())
    course = {name: of if of.dtype.kind in "iuf" else of.astype(np.float64) for name, of in columns.items()}
    if course and not np.isfinite(course["epoch"]).all():
        raise ValueError("an epoch has no number")
    return course


def shown_images(table: ImageTable) -> Columns:
    """The columns of a trial's image table that figures need, at its own operating point and without validation."""
    chosen = (table.words["point"] == "own") & (table.words["set"] != "val")
    words, numbers = ({name: values[chosen] for name, values in of.items()} for of in (table.words, table.numbers))
    whole = {name: numbers[name].astype(int) for name in ("n_true", "n_pred")}
    return {**words, **{name: numbers[name] for name in IMAGES if name in numbers}, **whole} if chosen.any() else {}


def strata_of(images: Columns, file: bytes | None) -> list[dict[str, object]]:
    """The strata of each set of one trial, with a key `set`; `file` holds its table of objects."""
    if file is None or not set(STRATUM_SOURCES) <= set(images):
        return []
    objects = read_columns(file, OBJECTS, words=("set", "image", "kind"))
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(images["set"]) if len(objects["set"]) else ():
        parts = ({column: values[of["set"] == name] for column, values in of.items()} for of in (images, objects))
        rows += [row | {"set": name} for row in stratum_rows(*parts)]
    return rows


@cache
def package_hash() -> str:
    """A hash of cellray's files: after a change of them, what was made before isn't good any more."""
    everything = sorted(Path(cellray.__file__).parent.rglob("*.*"))
    files = (file.read_bytes() for file in everything if file.is_file() and file.suffix != ".pyc")
    return hashlib.sha256(b"".join(files)).hexdigest()


def packed(rows: ImageRows | None, tables: TrialTables) -> bytes:
    """What a report takes of one trial, as bytes."""
    return bytes(msgpack.packb((rows, tables), default=_plain))


def unpacked(data: bytes) -> tuple[ImageRows | None, TrialTables]:
    """What `packed` made bytes of; arrays can't be written to."""
    rows, (history, images, levels) = msgpack.unpackb(data, ext_hook=_array, use_list=False, strict_map_key=False)
    tables = TrialTables(history, images, list(levels))
    if rows is None:
        return None, tables
    samples, n_true = rows
    found = {
        where: Sample(units, dict(zip(metrics, values, strict=True)), medians)
        for where, (units, metrics, values, medians) in samples.items()
    }
    return ImageRows(found, n_true), tables


def _plain(of: object) -> object:
    """What MessagePack has no name for."""
    if isinstance(of, Sample):  # its values in one array, as a hundred small ones take most of the time
        return of.units, tuple(of.values), np.stack(list(of.values.values())), of.images
    if not isinstance(of, np.ndarray):
        raise TypeError(f"{type(of).__name__} can't be packed")
    if of.dtype == object:
        return msgpack.ExtType(TEXTS, msgpack.packb(of.tolist()))
    return msgpack.ExtType(NUMBERS, msgpack.packb((of.dtype.str, of.shape, of.tobytes())))


def _array(kind: int, data: bytes) -> np.ndarray:
    if kind == TEXTS:
        return np.array(msgpack.unpackb(data), dtype=object)
    dtype, shape, numbers = msgpack.unpackb(data)
    return np.frombuffer(numbers, dtype).reshape(shape)

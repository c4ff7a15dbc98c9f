"""What a record says, in MLflow's terms: flat parameters, named metrics, tags; pure functions."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime

from cellray.record import EpochRow, Number, TrialRecord

LONGEST_VALUE = 1000
"""Longer parameters and tags are cut; MLflow's limits are 6000 and 8000, and one longer value fails a whole batch."""


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as `{"loss.terms.0.name": "bce"}`; lists of plain values stay one JSON text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                flat.update(flatten(item, f"{name}.{index}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[safe_name(name)] = cut(text)
    return flat


def safe_name(name: str) -> str:
    """A name MLflow accepts: its alphabet, at most 250 characters."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def cut(text: str) -> str:
    """The text itself, or its first `LONGEST_VALUE` characters, in which it says that there is more."""
    note = f"… ({len(text)} characters, whole in config.json)"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - len(note)] + note


def group_of(name: str) -> str:
    """The group of a set's metrics: `test`, `val` or `external/<set>`; the web page gives each group a section."""
    return name if name in ("test", "val") else f"external/{name}"


def final_metrics(record: TrialRecord) -> dict[str, float]:
    """`test/f1_iou` at the trial's own operating point, `test/shared/f1_iou` at the shared one, and its costs.

    A value that a record has as NaN stays NaN; what it doesn't have is left out.
    """
    found: dict[str, Number] = {}
    for point, sets in record.metrics.items():
        infix = "" if point == "own" else f"{point}/"
        for name, scores in sets.items():
            found.update({f"{group_of(name)}/{infix}{metric}": value for metric, value in scores.items()})
    found |= {
        "val/operating_point_score": record.operating_point_score,
        "training/best_epoch": record.best_epoch,
        "training/epochs": record.epochs,
        "training/lr": record.lr,
        "training/n_parameters": record.n_parameters,
        "training/seconds": record.seconds.training,
        "training/evaluation_seconds": record.seconds.evaluation,
        "training/peak_memory_megabytes": record.peak_memory_mb,
    }
    return {safe_name(name): float(value) for name, value in found.items() if value is not None}


EPOCH_LOSS = "epoch/train_loss"
"""Every epoch has it, so it tells which epochs a run has."""

SYSTEM = {
    "seconds": "system/epoch_seconds",
    "images_per_s": "system/images_per_second",
    "peak_memory_mb": "system/peak_memory_megabytes",
}
"""Columns of a history that measure the machine: MLflow shows what begins with `system/` on a page of its own."""


def epoch_metrics(row: EpochRow) -> dict[str, float]:
    """The values of one epoch; an epoch without validation has none of its metrics, while a NaN loss is news."""
    found = {}
    for column, value in row.items():
        name = SYSTEM.get(column, f"epoch/{column}")
        if column == "epoch" or not isinstance(value, int | float) or (math.isnan(value) and name != EPOCH_LOSS):
            continue
        found[safe_name(name)] = float(value)
    return found


def record_tags(record: TrialRecord) -> dict[str, str]:
    """Where a record comes from and how it ended."""
    tags = {
        "cellray.label": record.label,
        "cellray.seed": str(record.seed),
        "cellray.outcome": record.outcome,
        "cellray.reason": record.reason or "",
        "cellray.protocol": record.protocol,
        "cellray.quirks": ", ".join(record.quirks),
        "cellray.evaluation_key": record.evaluation_key,
        "cellray.data_fingerprint": record.data.fingerprint,
        "cellray.split_hash": record.data.split_hash,
        "cellray.code": record.provenance.code,
        "cellray.version": record.provenance.cellray,
        "cellray.device": record.provenance.device,
        "mlflow.source.git.commit": record.provenance.code,
    }
    return {name: cut(text) for name, text in tags.items() if text}


def digest(content: object) -> str:
    """Short hash of bytes, or of the canonical JSON of anything else."""
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True, default=str).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def milliseconds(iso: str) -> int | None:
    """An ISO time as MLflow counts; None of ""."""
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else None

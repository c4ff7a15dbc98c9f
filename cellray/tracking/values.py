"""What a record says, in MLflow's terms: flat parameters, named metrics, tags; pure functions."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

LONGEST_VALUE = 1000
"""Longer parameters and tags are cut; MLflow's limits are 6000 and 8000, and one longer value fails a whole batch."""

Record = Mapping[str, Any]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
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
            flat[safe_name(name)] = shorten(text)
    return flat


def safe_name(name: str) -> str:
    """A name MLflow accepts: its alphabet, at most 250 characters."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def shorten(text: str, longest: int = LONGEST_VALUE) -> str:
    """The text itself, or its beginning with a note that there is more."""
    note = f"… ({len(text)} characters, whole in config.json)"
    return text if len(text) <= longest else text[: longest - len(note)] + note


def final_metrics(record: Record) -> dict[str, float]:
    """`test.f1_iou` at the trial's own operating point, `test.shared.f1_iou` at the shared one, and its costs."""
    found: dict[str, Any] = {}
    for point, sets in record.get("metrics", {}).items():
        infix = "" if point == "own" else f"{point}."
        for name, values in sets.items():
            found.update({safe_name(f"{name}.{infix}{metric}"): value for metric, value in values.items()})
    found.update({f"seconds.{part}": value for part, value in record.get("seconds", {}).items()})
    for name in ("operating_point_score", "best_epoch", "epochs", "lr", "n_parameters", "peak_memory_mb"):
        found[name] = record.get(name)
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def epoch_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The values of one epoch; an epoch without validation has none of its metrics, while a NaN loss is news."""
    values = {}
    for name, value in row.items():
        if name == "epoch" or (not isinstance(value, int | float) and not hasattr(value, "__float__")):
            continue
        number = float(value)
        if name == "train_loss" or not math.isnan(number):
            values[safe_name(name)] = number
    return values


def seed_summary(records: Iterable[Record], n_planned: int) -> dict[str, float]:
    """Counts of outcomes, and mean and spread over the seeds that finished.

    The names say `survivors`, since a collapsed or failed seed has no part in them: the report ranks with both.
    """
    outcomes = [record["outcome"] for record in records]
    summary: dict[str, float] = {"n_planned": n_planned}
    for outcome in ("finished", "collapsed", "failed", "stopped"):
        summary[f"n_{outcome}"] = outcomes.count(outcome)
    values: dict[str, list[float]] = {}
    for record in records:
        if record["outcome"] == "finished":
            for name, value in final_metrics(record).items():
                values.setdefault(name, []).append(value)
    for name, found in values.items():
        summary[f"{name}.survivors_mean"] = statistics.fmean(found)
        if len(found) > 1:
            summary[f"{name}.survivors_sd"] = statistics.stdev(found)
    return summary


def record_tags(record: Record) -> dict[str, str]:
    """Where a record comes from and how it ended."""
    data, provenance = record.get("data", {}), record.get("provenance", {})
    tags = {
        "cellray.label": record["label"],
        "cellray.seed": record["seed"],
        "cellray.outcome": record["outcome"],
        "cellray.reason": record.get("reason") or "",
        "cellray.protocol": record.get("protocol"),
        "cellray.quirks": ", ".join(record.get("quirks") or []),
        "cellray.evaluation_key": record.get("evaluation_key"),
        "cellray.data_fingerprint": data.get("fingerprint"),
        "cellray.split_hash": data.get("split_hash"),
        "cellray.code": provenance.get("code"),
        "cellray.version": provenance.get("cellray"),
        "cellray.device": provenance.get("device"),
        "mlflow.source.git.commit": provenance.get("code"),
    }
    return {name: shorten(str(value)) for name, value in tags.items() if value not in (None, "")}


def digest(content: Any) -> str:
    """Short hash of bytes, or of the canonical JSON of anything else."""
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True, default=str).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def milliseconds(iso: str | None) -> int | None:
    """An ISO time as MLflow counts."""
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else None

"""What a record says, in MLflow's terms: flat parameters, named metrics, tags; pure functions."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from cellray.metrics import METRICS
from cellray.scores import score

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


def group_of(name: str) -> str:
    """The group of a set's metrics: `test`, `val` or `external/<set>`; the web page gives each group a section."""
    return name if name in ("test", "val") else f"external/{name}"


def final_metrics(record: Record) -> dict[str, float]:
    """`test/f1_iou` at the trial's own operating point, `test/shared/f1_iou` at the shared one, and its costs.

    A value that a record has as NaN stays NaN; what it doesn't have is left out.
    """
    found: dict[str, Any] = {}
    for point, sets in record.get("metrics", {}).items():
        infix = "" if point == "own" else f"{point}/"
        for name, values in sets.items():
            found.update({f"{group_of(name)}/{infix}{metric}": value for metric, value in values.items()})
    found["val/operating_point_score"] = record.get("operating_point_score")
    found.update({f"training/{name}": record.get(name) for name in ("best_epoch", "epochs", "lr", "n_parameters")})
    seconds = record.get("seconds", {})
    found |= {"training/seconds": seconds.get("training"), "training/evaluation_seconds": seconds.get("evaluation")}
    found["training/peak_memory_megabytes"] = record.get("peak_memory_mb")
    return {safe_name(name): float(value) for name, value in found.items() if isinstance(value, int | float)}


EPOCH_LOSS = "epoch/train_loss"
"""Every epoch has it, so it tells which epochs a run has."""

SYSTEM = {
    "seconds": "system/epoch_seconds",
    "images_per_s": "system/images_per_second",
    "peak_memory_mb": "system/peak_memory_megabytes",
}
"""Columns of a history that measure the machine: MLflow shows what begins with `system/` on a page of its own."""


def epoch_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The values of one epoch; an epoch without validation has none of its metrics, while a NaN loss is news."""
    values = {}
    for column, value in row.items():
        if column == "epoch" or (not isinstance(value, int | float) and not hasattr(value, "__float__")):
            continue
        number, name = float(value), SYSTEM.get(column, f"epoch/{column}")
        if name == EPOCH_LOSS or not math.isnan(number):
            values[safe_name(name)] = number
    return values


HEADLINE = ("f1_iou", "f1_distance", "dice", "pq", "mae")
"""Compared on configuration runs beside the metric that ranks: segmentation, detection, pixels, both, counting.
The report has every metric; a list of hundreds would hide these."""


def outcome_counts(outcomes: Sequence[str], n_planned: int) -> dict[str, float]:
    """How many trials are planned, ended how, and are still missing."""
    counts = {f"n_{name}": float(outcomes.count(name)) for name in ("finished", "collapsed", "failed", "stopped")}
    counts |= {"n_planned": float(n_planned), "n_missing": float(n_planned - len(outcomes))}
    return {f"outcome/{name}": count for name, count in counts.items()}


def seed_summary(
    records: Sequence[Record],
    n_planned: int,
    worst: Mapping[tuple[str, str], float],
    *,
    rank_by: str = "f1_iou",
    skip_collapsed: bool = False,
) -> dict[str, float]:
    """A configuration's metrics: counts of outcomes, and for each set the mean over its seeds by the default rule.

    `test/f1_iou` is that mean, under the name that the seeds have; failed and collapsed seeds and NaNs count as the
    worst value. Beside it stand `test/sd/…` (n - 1), `test/worst/…` (the worst seed), `test/survivors_mean/…` and
    `test/shared/…`, the mean at the shared operating point.

    Args:
        records: Of its seeds, as far as they ended.
        n_planned: Its planned seeds.
        worst: What a lost trial counts as; its keys say which sets and metrics there are (`scores.worst_values`).
        rank_by: The study's metric, shown first.
        skip_collapsed: The quirk of that name: failed and collapsed seeds have no part in the means.
    """
    summary: dict[str, float] = {}
    metrics = [key for key in dict.fromkeys((rank_by, *HEADLINE)) if any(key == known for _, known in worst)]
    for key in metrics:
        for name in dict.fromkeys(name for name, _ in worst):
            group = group_of(name)
            counted, survivors = _counted(records, "own", name, key, worst[name, key])
            used = survivors if skip_collapsed else counted
            summary |= _spread(group, key, used)
            if survivors:
                summary[f"{group}/survivors_mean/{key}"] = statistics.fmean(survivors)
            counted, survivors = _counted(records, "shared", name, key, worst[name, key])
            if used := survivors if skip_collapsed else counted:
                summary[f"{group}/shared/{key}"] = statistics.fmean(used)
    summary |= outcome_counts([record["outcome"] for record in records], n_planned)
    summary["training/seconds_of_all_seeds"] = sum(r.get("seconds", {}).get("training", 0.0) for r in records)
    return {safe_name(name): value for name, value in summary.items()}


def _counted(
    records: Sequence[Record], point: str, set_name: str, key: str, worst: float
) -> tuple[list[float], list[float]]:
    """What each seed counts as, and the values of those that finished with one; nothing if it was stopped early."""
    counted: list[float] = []
    survivors: list[float] = []
    if any(record["outcome"] == "stopped" for record in records):
        return counted, survivors  # the report ranks it as stopped, too
    for record in records:
        values = (record.get("metrics") or {}).get(point, {}).get(set_name)
        outcome, _, value, note = score(METRICS[key], key, record["outcome"], values, worst)
        if outcome != "missing":
            counted.append(value)
        if outcome == "finished" and not note:
            survivors.append(value)
    return counted, survivors


def _spread(group: str, key: str, values: Sequence[float]) -> dict[str, float]:
    """Mean, SD and worst of what was counted; a NaN among the values makes a NaN of each."""
    if not values:
        return {}
    worst = min if METRICS[key].higher_is_better else max
    spread = {
        f"{group}/{key}": statistics.fmean(values),
        f"{group}/worst/{key}": math.nan if any(map(math.isnan, values)) else worst(values),
    }
    if len(values) > 1:
        spread[f"{group}/sd/{key}"] = math.nan if any(map(math.isnan, values)) else statistics.stdev(values)
    return spread


class DatasetInput(NamedTuple):
    """A set of images that a trial used, as MLflow describes one."""

    name: str
    digest: str
    """MLflow takes up to 36 characters."""
    context: str
    source: str
    """The path that the study gives, or `synthetic`."""
    n_images: int
    diameter_px: float


def dataset_inputs(record: Record) -> list[DatasetInput]:
    """Training, validation, test and external images of a trial, from its record alone.

    The digest is the fingerprint of the files; of the images drawn for training and validation also the split's hash,
    since MLflow keeps one description of each name and digest, and every seed draws others.
    """
    facts, settings = record.get("data", {}), record["settings"].get("data", {})
    if "n_train" not in facts or "train" not in settings:
        return []
    given, found = settings["train"], []
    for part in ("train", "val", "test"):
        digest = facts["fingerprint"] if part == "test" else f"{facts['fingerprint']}.{facts['split_hash']}"
        name, n_images = f"{given['name']}/{part}", facts[f"n_{part}"]
        found.append(DatasetInput(name, digest[:36], part, _source(given), n_images, facts.get("diameter_px") or 0.0))
    by_name = {dataset["name"]: dataset for dataset in settings.get("external", ())}
    for name, dataset in facts.get("sets", {}).items():
        source = _source(by_name.get(name, {}))
        found.append(
            DatasetInput(
                name, dataset["fingerprint"][:36], "external", source, dataset["n_images"], dataset["diameter_px"]
            )
        )
    return found


def _source(dataset: Mapping[str, Any]) -> str:
    return dataset.get("path") or "synthetic"


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

"""Made-up ledgers for the tests of the report: records with known numbers, no training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellray.ledger import Ledger
from cellray.metrics import METRICS
from cellray.overlay import draw_overlay, encode_png
from cellray.record import PlannedTrial, SearchLog, TrialRecord
from cellray.results import Plan, Results, Samples

SEEDS = (0, 5, 25, 47, 79)
# published_order_statistics.csv, F1 (IoU); None = NaN, a collapse
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "CombinedFT: balanced": (0.7207, 0.7227, 0.7493, 0.7582, 0.7708),
    "CombinedFT: overcrowd": (0.6898, 0.7392, 0.7492, 0.7541, 0.7657),
    "Dice": (0.7115, 0.7221, 0.7375, 0.7421, 0.7618),
    "Focal Tversky": (None, None, 0.779, 0.781, 0.783),
    "Focal": (None, 0.5853, 0.6080, 0.6219, 0.6405),
}
TWELVE = (
    "BCE: low", "BCE: medium", "BCE: high", "Dice", "Focal", "Focal Tversky", "Combined: balanced",
    "Combined: overcrowd", "Combined: CellViT", "CombinedFT: balanced", "CombinedFT: overcrowd", "CombinedFT: CellViT",
)  # fmt: skip


def key_of(label: str, seed: int) -> str:
    """A stand-in for the trial key."""
    return hashlib.sha256(f"{label}/{seed}".encode()).hexdigest()[:16]


def scores(f1: float, *, error: float = 2.0, **changed: float) -> dict[str, float]:
    """A value for every metric, from one number."""
    values = {name: f1 if metric.higher_is_better else error for name, metric in METRICS.items()}
    return values | {"n_images": 4, "n_true": 10, "n_pred": 9} | changed


def record(
    label: str,
    seed: int,
    sets: Mapping[str, Mapping[str, float]] | None,
    *,
    outcome: str = "finished",
    **changed: Any,
) -> TrialRecord:
    """A trial's record; `sets` holds each set's metrics at both points (the shared one 0.05 lower)."""
    metrics: dict[str, Any] = {}
    if sets is not None:
        lower = {
            n: {k: v - 0.05 if k in METRICS and METRICS[k].higher_is_better else v for k, v in m.items()}
            for n, m in sets.items()
        }
        metrics = {"own": {n: dict(m) for n, m in sets.items()}, "shared": lower}
    stored = {
        "schema": 1, "key": key_of(label, seed), "evaluation_key": "e" * 16, "study": "made_up", "label": label,
        "seed": seed, "protocol": "strict", "outcome": outcome,
        "reason": None if outcome == "finished" else f"made up: {outcome}",
        "settings": {"evaluation": {"iou_threshold": 0.4, "max_distance": 1.0, "shared_point": {"threshold": 0.875}}},
        "operating_point": {"threshold": 0.5 + 0.01 * (seed % 7), "opening": 0.075, "watershed": True},
        "operating_point_score": 0.7, "metrics": metrics, "best_epoch": 8, "epochs": 10, "steps": 100, "lr": 0.01,
        "range_test": None, "n_parameters": 427663,
        "data": {"fingerprint": "f" * 16, "split_hash": f"split{seed}", "n_train": 8, "n_val": 2, "n_test": 4,
                 "sets": {}},
        "seconds": {"training": 60.0, "evaluation": 6.0}, "peak_memory_mb": 900.0,
        "provenance": {"cellray": "0.1.0", "code": "abc", "torch": "2", "python": "3", "device": "cpu", "host": "h",
                       "started": "2026-01-01", "ended": "2026-01-01"},
        "overlays": [],
    } | changed  # fmt: skip
    return TrialRecord.model_validate(stored)


def results_of(
    records: Sequence[TrialRecord],
    plan: Plan,
    *,
    nothing: Mapping[str, Mapping[str, float]] | None = None,
    samples: Samples | None = None,
    log: SearchLog | None = None,
) -> Results:
    """Results of records that lie in no ledger; without samples only seeds can be compared."""
    made_up = type(
        "MadeUp", (Results,), {"samples": samples or {}, "nothing": nothing or {}, "unit": "image", "references": []}
    )
    return made_up(None, plan, records, log=log)


def plan_for(labels: Sequence[str], seeds: Sequence[int] = SEEDS, rank_by: str = "f1_iou") -> Plan:
    """Every label with every seed."""
    trials = tuple(PlannedTrial(label, seed, key_of(label, seed)) for seed in seeds for label in labels)
    return Plan("made_up", "Which loss finds most cells?", rank_by, trials, epochs=10)


def published_records() -> list[TrialRecord]:
    """The published per-seed F1 of five configurations, with collapses as what they are."""
    return [
        record(label, seed, {"test": scores(f1)})
        if f1 is not None
        else record(label, seed, {"test": scores(0.0, error=0.0)}, outcome="collapsed")
        for label, values in PUBLISHED.items()
        for seed, f1 in zip(SEEDS, values, strict=True)
    ]


def write_realistic(
    ledger: Ledger,
    *,
    labels: Sequence[str] = TWELVE,
    seeds: Sequence[int] = SEEDS,
    external: Sequence[str] = ("bbbc039", "s_bsst265", "cfos"),
    n_images: int = 40,
    epochs: int = 41,
    bad: Mapping[tuple[str, int], str] | None = None,
    missing: Sequence[tuple[str, int]] = (),
    side_px: int = 160,
) -> Plan:
    """A ledger of trials with histories, image rows, range tests and overlays, drawn from a fixed seed."""
    rng = np.random.default_rng(7)
    bad = bad or {}
    truth = {name: rng.poisson(9, n_images) * (rng.random(n_images) > 0.15) for name in ("test", *external, "val")}
    picture = rng.normal(60, 14, (side_px, side_px, 1)).clip(0, 255).astype(np.uint8)
    discs = draw_discs(side_px, rng)
    drawn = {kind: overlay_png(picture, discs, kind, rng) for kind in ("worst", "median", "best", "crowded", "none")}
    for i, label in enumerate(labels):
        for seed in seeds:
            if (label, seed) in missing:
                continue
            outcome = bad.get((label, seed), "finished")
            base = 0.62 + 0.012 * i + rng.normal(0, 0.012)
            lost = outcome != "finished"
            rows, sets = [], {}
            for j, (name, n_true) in enumerate(truth.items()):
                f1 = 0.0 if lost else base - (0, 0.05, 0.12, 0.25, 0)[min(j, 4)]
                n_pred = np.zeros_like(n_true) if lost else rng.poisson(n_true * 0.95 + 0.3)
                miss = n_true - n_pred
                relative = 100 * (miss / n_true.clip(1)).mean()
                sets[name] = scores(f1, mae=float(abs(miss).mean()), medae=float(np.median(abs(miss))), mpe=relative)
                rows += [
                    {
                        "set": name,
                        "point": p,
                        "image": f"{name}_{k}",
                        "group": "",
                        "n_true": int(t),
                        "n_pred": int(q),
                    }
                    for p in ("own", "shared")
                    for k, (t, q) in enumerate(zip(n_true, n_pred, strict=True))
                ]
            tables = {"history": history(rng, epochs, lost), "images": pd.DataFrame(rows)}
            lr = np.geomspace(1e-5, 1, 60)
            curve = 0.7 - 0.3 / (1 + (3e-3 / lr) ** 1.5) + (lr / 0.4) ** 2 + rng.normal(0, 0.008, 60)
            files, overlays = {}, []
            if outcome != "failed":
                for name in ("test", *external):
                    for role in ("worst", "median", "best", "crowded"):
                        files[f"overlays/{name}.{role}.png"] = drawn["none" if lost else role]
                        overlays.append(
                            {"set": name, "role": role, "image": f"{name}_3", "file": f"overlays/{name}.{role}.png",
                             "f1_iou": 0.71, "n_true": 12, "n_pred": 9}
                        )  # fmt: skip
            stored = record(
                label, seed, None if outcome == "failed" else sets, outcome=outcome, overlays=overlays,
                lr=float(rng.uniform(0.004, 0.02)), range_test={"lr": lr.tolist(), "loss": curve.tolist()},
                epochs=epochs,
                seconds={"training": float(rng.uniform(110, 140)), "evaluation": float(rng.uniform(18, 26))},
                data={"fingerprint": "f" * 16, "split_hash": f"split{seed}", "n_train": 8, "n_val": 2, "n_test": 4,
                      "sets": {name: {"fingerprint": "0123456789abcdef", "n_images": n_images, "diameter_px": 16.6}
                               for name in external}},
            )  # fmt: skip
            ledger.write_record(stored, tables, files)
    return plan_for(labels, seeds)


def add_cells(ledger: Ledger) -> None:
    """Give each image table the columns by cell and overlap, and each trial a table of objects, from its counts."""
    for record in ledger.records():
        images = ledger.table(record.key, "images")
        found = np.minimum(images.n_true, images.n_pred)
        images = images.assign(tp_iou=found, fp_iou=images.n_pred - found, fn_iou=images.n_true - found)
        images = images.assign(crowded=images.n_true // 2)
        for tenth in range(1, 10):
            images[f"tp_iou_{tenth}0"] = found * (10 - tenth) // 10
        rows = [
            {"set": row.set, "image": row.image, "true_id": i + 1, "pred_id": i + 1 if i < row.tp_iou else 0,
             "area_true": 100 + 90 * (i % 3), "area_pred": 100, "kind": "hit" if i < row.tp_iou else "missed"}
            for row in images[images.point == "own"].itertuples() for i in range(row.n_true)
        ]  # fmt: skip
        for name, table in (("images", images), ("objects", pd.DataFrame(rows))):
            ledger.write(f"trials/{record.key}/{name}.parquet", table.to_parquet(index=False))


def overlay_png(picture: np.ndarray, discs: np.ndarray, kind: str, rng: np.random.Generator) -> bytes:
    """An overlay in which some of the discs are found, all of them or none."""
    share = {"worst": 0.3, "median": 0.7, "best": 1.0, "crowded": 0.8, "none": 0.0}[kind]
    found = discs * (rng.random(discs.max() + 1) < share)[discs]
    return encode_png(
        draw_overlay(picture + (discs > 0)[..., None].astype(np.uint8) * 90, discs, found, max_side_px=320)
    )


def history(rng: np.random.Generator, epochs: int, lost: bool) -> pd.DataFrame:
    """A learning curve, validated every second epoch; a collapsed one falls to nothing."""
    epoch = np.arange(1, epochs + 1)
    dice = (0.85 - 0.7 * np.exp(-epoch / 7) + rng.normal(0, 0.012, epochs)) * (epoch < epochs * 0.4 if lost else 1)
    dice[epoch % 2 == 1] = np.nan
    loss = 0.15 + 0.6 * np.exp(-epoch / 9) + rng.normal(0, 0.012, epochs)
    return pd.DataFrame({"epoch": epoch, "step": epoch * 24, "train_loss": loss, "val_dice": dice, "seconds": 3.0})


def draw_discs(side_px: int, rng: np.random.Generator) -> np.ndarray:
    """A label image of a few discs."""
    labels = np.zeros((side_px, side_px), dtype=np.int32)
    y, x = np.mgrid[:side_px, :side_px]
    for i in range(1, 13):
        cy, cx = rng.integers(10, side_px - 10, 2)
        labels[((y - cy) ** 2 + (x - cx) ** 2 < 81) & (labels == 0)] = i
    return labels


TERMS = ("bce", "dice", "focal")


def mixed(weights: Sequence[float], terms: Sequence[str] = TERMS, **settings: Any) -> dict[str, Any]:
    """A combined loss as a record's settings hold it; `settings` are those of its last term."""
    made = [
        {"name": name, "weight": weight, "code": None, "settings": {}}
        for name, weight in zip(terms, weights, strict=True)
    ]
    made[-1]["settings"] = settings
    return {"name": None, "settings": {}, "terms": made, "balance": "none"}


def tried(number: int, values: Sequence[float] | None, **changed: Any) -> dict[str, Any]:
    """A configuration in search.json: suggested, with three seeds, finished if it has values."""
    return {
        "label": f"#{number}", "number": number, "source": "suggested", "parameters": {}, "values": values, "seeds": 3,
        "state": "finished" if values else "running", "reason": "", "epoch": None, "epochs": 20,
    } | changed  # fmt: skip


def search_file(
    configurations: Sequence[Mapping[str, Any]],
    *,
    method: str = "tpe",
    metrics: Sequence[str] = ("f1_iou",),
    stopping: str | None = None,
) -> bytes:
    """The contents of search.json."""
    content = {"method": method, "metrics": list(metrics), "stopping": stopping, "configurations": list(configurations)}
    return json.dumps(content).encode()


def write_search(
    ledger: Ledger,
    configurations: Sequence[Mapping[str, Any]],
    f1: Mapping[str, float],
    *,
    losses: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = SEEDS,
    noise: float = 0.01,
    n_images: int = 12,
    **how: Any,
) -> Plan:
    """A ledger of what a search tried: search.json, and for each configuration as many records as it has seeds.

    Args:
        ledger: Where to.
        configurations: Of search.json; the first seeds are theirs.
        f1: Label -> the F1 about which its seeds scatter on test images; validation has what search.json says.
        losses: Label -> the loss in its records.
        seeds: The study's.
        noise: SD over seeds.
        n_images: Test images.
        how: For `search_file`.
    """
    rng = np.random.default_rng(3)
    truth = rng.poisson(9, n_images) + 1
    trials = []
    for c in configurations:
        label, stopped = c["label"], c["state"] == "stopped"
        for seed in seeds[: c["seeds"]]:
            trials.append(PlannedTrial(label, seed, key_of(label, seed)))
            if c["state"] == "running":
                continue
            score = float(np.clip(f1[label] + rng.normal(0, noise), 0, 1))
            found = rng.binomial(truth, score)
            n_pred = found + rng.binomial(truth, 0.1)
            rows = pd.DataFrame(
                [
                    {"set": "test", "point": p, "image": f"test_{k}", "group": "", "n_true": t, "n_pred": q,
                     "tp_iou": h, "fp_iou": q - h, "fn_iou": t - h}
                    for p in ("own", "shared")
                    for k, (t, q, h) in enumerate(zip(truth, n_pred, found, strict=True))
                ]
            )  # fmt: skip
            hits = 2 * found.sum() / (truth.sum() + n_pred.sum())
            values = dict(zip(how.get("metrics", ("f1_iou",)), c["values"] or (), strict=False))
            sets = None if stopped else {"test": scores(float(hits)), "val": scores(score) | values}
            epochs = c["epoch"] if stopped else c["epochs"]
            curve = history(rng, 20, lost=False).head(epochs)
            stored = record(
                label, seed, sets, outcome="stopped" if stopped else "finished", epochs=epochs,
                validation_dice=round(float(curve.val_dice.dropna().iloc[-1]), 3), lr=0.01,
                settings={"loss": dict((losses or {}).get(label, {})), "training": {"epochs": c["epochs"]}},
                reason=c["reason"] or None,
            )  # fmt: skip
            tables = {"history": curve} | ({} if stopped else {"images": rows})
            ledger.write_record(stored, tables, {})
    ledger.write("search.json", search_file(configurations, **how))
    return Plan("made_up", "Which loss finds most cells?", "f1_iou", tuple(trials), epochs=20)

"""A study that trains in a second: drawn disks, a network of two features, a few steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cellray.ledger import Ledger
from cellray.record import TrialRecord
from cellray.results import Results, plan_of
from cellray.study import Study
from cellray.trial import Sets, run_trial

TIMES = ("seconds", "images_per_s", "peak_memory_mb")
"""Columns of a history that measure the machine."""


def draw_images(folder: Path, *, n_trainval: int = 8, n_test: int = 3, side_px: int = 64, seed: int = 0) -> Path:
    """Write bright disks on a dim ground in the layout of FNC, with their masks."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side_px, :side_px]
    for part, n in {"trainval": n_trainval, "test": n_test}.items():
        images, masks = folder / part / "images", folder / part / "ground_truths" / "masks"
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(n):
            mask = np.zeros((side_px, side_px), bool)
            for cy, cx in rng.uniform(8, side_px - 8, (4, 2)):
                mask |= (rows - cy) ** 2 + (columns - cx) ** 2 < 7**2
            pixels = np.clip(rng.normal(30, 8, mask.shape) + 120 * mask, 0, 255).astype(np.uint8)
            Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(images / f"{part}_{i}.png")
            Image.fromarray((mask * 255).astype(np.uint8)).save(masks / f"{part}_{i}.png")
    return folder


def tiny_study(path: Path, **changes: Any) -> Study:
    """Two losses and one seed on the images at `path`; `training`, `evaluation` and `resources` are updated."""
    training = {"steps": 6, "batch_size": 3, "crop_px": 32, "lr": 0.01, "batch_norm_batches": 2}
    settings: dict[str, Any] = {
        "name": "tiny",
        "question": "Does it run?",
        "data": {"train": {"name": "disks", "path": str(path)}, "val_fraction": 0.25},
        "model": {"base_features": 2},
        "training": training | changes.pop("training", {}),
        "configurations": [
            {"label": "Dice", "loss": {"name": "dice"}},
            {"label": "BCE", "loss": {"name": "bce"}},
        ],
        "seeds": [0],
    }
    return Study.model_validate(settings | changes)


def train_all(study: Study, ledger: Ledger) -> tuple[Sets, list[TrialRecord], Results]:
    """Run every trial of a study in this process: its data, records and results."""
    sets = Sets.open(study.data)
    records = [run_trial(trial, sets, ledger) for trial in study.trials()]
    plan = sets.plan(study.trials(), ledger)
    ledger.write("study.yaml", study.dump_yaml().encode())
    ledger.write_plan(plan)
    return sets, [record for record in records if record is not None], Results.now(ledger, plan_of(study, plan))


def lasting(record: TrialRecord) -> dict[str, Any]:
    """What must be equal of two records of one trial: all but times, places and memory."""
    kept = {
        k: v
        for k, v in record.plain().items()
        if k not in ("seconds", "peak_memory_mb", "provenance", "study", "label")
    }
    data = {k: v for k, v in kept["settings"]["data"].items() if k != "train"}
    return kept | {"settings": kept["settings"] | {"data": data}}


def lasting_history(table: pd.DataFrame) -> pd.DataFrame:
    """A history without what measures the machine."""
    return table.drop(columns=list(TIMES))


def same(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))

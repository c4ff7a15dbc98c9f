"""Commands on one trial: train it, judge its model on other images, count cells with it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cellray.cli.common import (
    FAILED,
    AllowCode,
    Config,
    Diameter,
    Json,
    MaxValue,
    Quiet,
    Seed,
    Storage,
    StudyFile,
    StudyName,
    check_study,
    chosen_trials,
    find,
    interruptible,
    load,
    name_of,
    open_sets,
    out,
    with_allocator,
)
from cellray.cli.show import print_metrics, print_numbers
from cellray.errors import StudyError


def train(
    study_file: StudyFile,
    config: Config,
    seed: Annotated[int, typer.Option(help="One of the study's seeds.")],
    storage: Storage = "studies",
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Run one trial alone, without Ray: the same code, the same record.

    Example: [bold]cellray train search_spaces/quickstart.yaml --config Dice --seed 0[/bold]
    """
    from cellray.cli.progress import ProgressObserver
    from cellray.ledger import Ledger
    from cellray.results import known_study
    from cellray.trial import run_trial

    with_allocator()
    study = load(study_file, storage, allow_code)
    check_study(study, storage)
    ledger = Ledger(storage, study.name)
    ledger.prepare()
    study = known_study(study, ledger.search())
    chosen = chosen_trials(study, str(seed), [config])
    sets = open_sets(study, as_json)
    plan = sets.plan(study.trials(), ledger)
    if not ledger.exists("plan.json"):
        ledger.write("study.yaml", study.dump_yaml().encode())
        ledger.write_plan(plan)
    planned = [p for p in plan if (p.label, p.seed) in chosen]
    observer = None if as_json else ProgressObserver(out)
    resources = study.resources
    with interruptible(), ledger.lease(observer.on_note if observer else lambda words: None):
        if observer:
            observer.on_start(study, planned)
        try:
            record = run_trial(
                planned[0].trial,
                sets,
                ledger,
                gpus=resources.gpus,
                threads=max(int(resources.cpus), 1),
                on_epoch=lambda row: observer.on_epoch(planned[0].trial, row) if observer else None,
            )
            assert record is not None  # only a trial with `until` pauses
            if observer and not planned[0].done:
                observer.on_end(record)
        finally:
            if observer:
                observer.on_finish()
    if as_json:
        print(json.dumps(record.plain()))
    else:
        print_metrics(record.metrics.get("own", {}))
        out.print(f"record: {ledger.uri}/trials/{record.key}", highlight=False, soft_wrap=True)
    if record.outcome == "failed":
        raise typer.Exit(FAILED)


def evaluate_dataset(
    study_name: StudyName,
    path: Annotated[Path, typer.Argument(help="A dataset with ground truth: folder, zip pack or manifest CSV.")],
    config: Config,
    seed: Seed = None,
    diameter_px: Diameter = None,
    max_value: MaxValue = None,
    rescale: Annotated[bool, typer.Option("--rescale", help="Resample to the training set's cell diameter.")] = False,
    where: Annotated[list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep these manifest rows.")] = None,
    storage: Storage = "studies",
    output: Annotated[Path | None, typer.Option("--out", help="Write scores.json and tables there.")] = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Judge a trained model on a dataset with ground truth, at its own frozen operating point.

    Example: [bold]cellray evaluate quickstart my_images --config Dice --diameter-px 30[/bold]
    """
    from cellray.data import open_dataset
    from cellray.metrics import iou_curve, stratify
    from cellray.prediction import TrainedModel
    from cellray.study import DatasetConfig

    if diameter_px is None:
        raise StudyError("give --diameter-px, the mean cell diameter on these images: sizes are measured in it")
    ledger = find(study_name, storage).ledger
    model = TrainedModel.load(ledger, config, seed, allow_code=_look_beside(study_name, allow_code))
    dataset = open_dataset(
        DatasetConfig(
            name=name_of(path),
            path=str(path),
            diameter_px=diameter_px,
            max_value=max_value,
            rescale=rescale,
            where=_where(where),
        ),
        channels=model.channels,
        normalise=model.normalise,
        target_diameter_px=model.diameter_px,
    )
    scores, images, objects = model.evaluate(dataset, os.cpu_count() or 1)
    tables = {
        "images": images,
        "cells": objects,
        "strata": stratify(images, objects),
        "iou_curve": iou_curve(images),
    }
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "scores.json").write_text(json.dumps(scores, indent=1))
        for name, table in tables.items():
            table.to_csv(output / f"{name}.csv", index=False)
    if as_json:
        print(json.dumps({"study": model.record.study, "label": config, "seed": model.record.seed, **scores}))
        return
    out.print(f"{escape(config)}, seed {model.record.seed}, on {len(dataset)} images", highlight=False)
    print_metrics({dataset.name: scores})
    print_numbers(tables["strata"])
    print_numbers(tables["iou_curve"])
    if output:
        names = ", ".join(f"{name}.csv" for name in tables)
        out.print(f"written: {output}/scores.json, {names}", highlight=False, soft_wrap=True)


def predict(
    study_name: StudyName,
    path: Annotated[Path, typer.Argument(help="A folder of images, or one image.")],
    output: Annotated[Path, typer.Option("--out", help="Write counts.csv, labels/ and overlays/ there.")],
    config: Config,
    seed: Seed = None,
    diameter_px: Diameter = None,
    max_value: MaxValue = None,
    storage: Storage = "studies",
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Find and count cells on images without ground truth: a table of counts, label images, overlays.

    Example: [bold]cellray predict quickstart new_images --config Dice --out counted[/bold]
    """
    import numpy as np
    import pandas as pd
    from PIL import Image

    from cellray.overlay import encode_png
    from cellray.prediction import TrainedModel

    ledger = find(study_name, storage).ledger
    model = TrainedModel.load(ledger, config, seed, allow_code=_look_beside(study_name, allow_code))
    for folder in ("labels", "overlays"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    predictions = model.predict(path, diameter_px=diameter_px, max_value=max_value, threads=os.cpu_count() or 1)
    for file, labels, overlay in predictions:
        kind = np.uint16 if labels.max() < 2**16 else np.int32
        Image.fromarray(labels.astype(kind)).save(output / "labels" / f"{file.stem}.png")
        (output / "overlays" / f"{file.stem}.png").write_bytes(encode_png(overlay))
        areas = np.bincount(labels.ravel())[1:]
        median = float(np.median(areas)) if areas.size else float("nan")
        rows.append({"image": file.name, "n_cells": int(labels.max()), "median_area_px": median})
        if not quiet:
            out.print(f"{escape(file.name)}: {labels.max()} cells", highlight=False)
    pd.DataFrame(rows).to_csv(output / "counts.csv", index=False)
    if not quiet:
        out.print(f"written: {output}/counts.csv, labels/, overlays/", highlight=False, soft_wrap=True)


def _look_beside(study_name: str, allow_code: bool) -> bool:
    """`allow_code`; if so, a network of the user's own is looked for beside the study file, or in this folder."""
    folder = str(Path(study_name).resolve().parent)
    if allow_code and folder not in sys.path:
        sys.path.insert(0, folder)
    return allow_code


def _where(pairs: list[str] | None) -> dict[str, tuple[str, ...]]:
    """`--where lab=mue --where lab=inns1` as a filter."""
    chosen: dict[str, tuple[str, ...]] = {}
    for pair in pairs or []:
        column, equals, value = pair.partition("=")
        if not (column and equals):
            raise StudyError(f"--where: expected COLUMN=VALUE, got {pair!r}")
        chosen[column] = (*chosen.get(column, ()), value)
    return chosen

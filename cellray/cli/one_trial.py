"""Commands on one trial: train it, judge its model on other images, count cells with it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cellray.cli.common import (
    FAILED,
    AllowCode,
    Chosen,
    Config,
    Diameter,
    Ensemble,
    Json,
    MaxValue,
    Quiet,
    Seed,
    Storage,
    StudyFile,
    StudyName,
    check_study,
    chosen_trials,
    err,
    interruptible,
    load,
    name_of,
    open_sets,
    out,
    trained_model,
    with_allocator,
)
from cellray.cli.show import print_metrics, print_numbers
from cellray.errors import DataError, StudyError

if TYPE_CHECKING:
    from cellray.prediction import TrainedModel


@interruptible()
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
    from cellray.device import has_gpu
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
    if planned[0].trial.training.lr == "tune":
        raise StudyError(f"{config}: its learning rate isn't chosen yet; a sweep does that first, or give training.lr")
    observer = None if as_json else ProgressObserver(out, ledger)
    resources = study.resources.settled(has_gpu())
    with ledger.lease(observer.on_note if observer else lambda words: None):
        if observer:
            observer.on_start(study, planned)
        try:
            record = run_trial(
                planned[0].trial,
                sets,
                ledger,
                gpus=resources.n_gpus,
                threads=max(int(resources.cpus), 1),
                on_epoch=lambda row: observer.on_epoch(planned[0].trial, row) if observer else None,
                on_note=lambda words: observer.on_note(words) if observer else None,
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
    config: Chosen = None,
    seed: Seed = None,
    ensemble: Ensemble = False,
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

    With --ensemble, the scores of its single seeds stand beside.

    Example: [bold]cellray evaluate quickstart my_images --ensemble --out scores[/bold]
    """
    from cellray.data import open_dataset
    from cellray.metrics import iou_curve, stratify
    from cellray.report.exports import csv_bytes
    from cellray.study import DatasetConfig

    if rescale and diameter_px is None:
        raise StudyError("--rescale goes with --diameter-px, the mean cell diameter on these images")
    model = trained_model(study_name, storage, config, seed, ensemble=ensemble, allow_code=allow_code)
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
        reading=model.reading,
        target_diameter_px=model.diameter_px,
    )
    for note in dataset.notes:
        err.print(f"[yellow]Note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    threads = os.cpu_count() or 1
    scores, images, objects = model.evaluate(dataset, threads)
    single = {f"seed {one.record.seed}": one.evaluate(dataset, threads).metrics for one in model.members}
    told = {**scores, **({"single_runs": single} if single else {})}
    tables = {
        "images": images,
        "cells": objects,
        "strata": stratify(images, objects),
        "iou_curve": iou_curve(images),
    }
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "scores.json").write_text(json.dumps(told, indent=1))
        for name, table in tables.items():
            (output / f"{name}.csv").write_bytes(csv_bytes(table))
    if as_json:
        seeds = [one.record.seed for one in model.members] or model.record.seed
        print(json.dumps({"study": model.record.study, "label": model.record.label, "seed": seeds, **told}))
        return
    measured = "given" if diameter_px else "measured on their true cells; --diameter-px sets another"
    out.print(f"{_said(model)}, on {len(dataset)} images", highlight=False)
    out.print(f"mean cell diameter {dataset.diameter_px:.1f} px, {measured}", highlight=False)
    print_metrics({**single, "ensemble": scores} if single else {dataset.name: scores})
    print_numbers(tables["strata"])
    print_numbers(tables["iou_curve"])
    if output:
        names = ", ".join(f"{name}.csv" for name in tables)
        out.print(f"written: {output}/scores.json, {names}", highlight=False, soft_wrap=True)


def predict(
    study_name: StudyName,
    path: Annotated[Path, typer.Argument(help="A folder of images, or one image.")],
    output: Annotated[Path, typer.Option("--out", help="Write counts.csv, cells.csv, labels/ and overlays/ there.")],
    config: Chosen = None,
    seed: Seed = None,
    ensemble: Ensemble = False,
    diameter_px: Diameter = None,
    max_value: MaxValue = None,
    storage: Storage = "studies",
    allow_code: AllowCode = False,
    quiet: Quiet = False,
) -> None:
    """Find and count cells on images without ground truth: a table of counts, label images, overlays.

    Example: [bold]cellray predict quickstart new_images --out counted[/bold]
    """
    from cellray.overlay import encode_png
    from cellray.prediction import CELL_COLUMNS
    from cellray.report.exports import csv_cell

    model = trained_model(study_name, storage, config, seed, ensemble=ensemble, allow_code=allow_code)
    pictures, problems = model.pictures(path)
    if problems:
        err.print(f"{len(problems)} of the files can't be read; they are named at the end.", highlight=False)
    for folder in ("labels", "overlays"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    if not quiet:
        out.print(_said(model), highlight=False)
    predictions = model.predict(pictures, diameter_px=diameter_px, max_value=max_value, threads=os.cpu_count() or 1)
    with _table(output / "counts.csv") as counts, _table(output / "cells.csv") as listed:
        counts.writerow(["image", "n_cells", "median_area_px"])
        listed.writerow(["image", *CELL_COLUMNS])
        for found in predictions:
            if isinstance(found, DataError):
                problems.append(str(found))
                continue
            picture, cells, overlay = found
            (output / "labels" / f"{picture.name}.tif").write_bytes(cells.tiff())
            (output / "overlays" / f"{picture.name}.png").write_bytes(encode_png(overlay))
            table = cells.table()
            shown = picture.file.name if picture.plane is None else f"{picture.file.name}, plane {picture.plane}"
            counts.writerow([csv_cell(shown), cells.count, table.area_px.median() if cells.count else ""])
            listed.writerows([csv_cell(shown), *row] for row in table.itertuples(index=False))
            if not quiet:
                out.print(f"{escape(shown)}: {cells.count} cells", highlight=False)
    if not quiet:
        out.print(f"written: {output}/counts.csv, cells.csv, labels/, overlays/", highlight=False, soft_wrap=True)
    for problem in problems:
        err.print(f"[red]not counted:[/red] {escape(problem)}", highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(FAILED)


def _said(model: TrainedModel) -> str:
    """Which model a command uses."""
    record, found = model.record, model.ensemble
    value = found.operating_point_score if found else record.operating_point_score
    score = f"{record.settings.rules.rank_by} on validation {value:.3f}"
    return f"{escape(model.title)} ({score}{f', chosen on {found.how_chosen}' if found else ''})"


@contextmanager
def _table(file: Path) -> Iterator[Any]:
    """A CSV file that has each row as soon as it is written."""
    with open(file, "w", newline="", encoding="utf-8", buffering=1) as opened:
        yield csv.writer(opened, lineterminator="\n")


def _where(pairs: list[str] | None) -> dict[str, tuple[str, ...]]:
    """`--where lab=mue --where lab=inns1` as a filter."""
    chosen: dict[str, tuple[str, ...]] = {}
    for pair in pairs or []:
        column, equals, value = pair.partition("=")
        if not (column and equals):
            raise StudyError(f"--where: expected COLUMN=VALUE, got {pair!r}")
        chosen[column] = (*chosen.get(column, ()), value)
    return chosen

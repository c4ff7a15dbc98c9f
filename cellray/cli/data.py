"""``cellray data``: is this a usable dataset? show me; make one of what other tools leave, or draw it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cellray.cli.common import Json, err, name_of, out, tell_next
from cellray.cli.show import print_dataset
from cellray.errors import StudyError

if TYPE_CHECKING:
    from cellray.data import Reading
    from cellray.study import DatasetConfig

DataPath = Annotated[
    str, typer.Argument(metavar="PATH", help="Folder, zip pack or manifest CSV, here or s3://…, or a study file.")
]

data_app = typer.Typer(help="Look at datasets, or make one: check, preview, convert, synth.", no_args_is_help=True)


@data_app.command("check")
def data_check(
    path: DataPath,
    as_json: Json = False,
) -> None:
    """Is this a usable dataset? Every problem with its file, and what the images are like.

    Example: [bold]cellray data check my_images[/bold]
    """
    from cellray.data import check_dataset

    configs, reading = _dataset_configs(path)
    reports = [check_dataset(config, reading=reading) for config in configs]
    if as_json:
        print(json.dumps([{**asdict(r), "is_usable": r.is_usable} for r in reports]))
    else:
        for found in reports:
            print_dataset(found)
    if not all(found.is_usable for found in reports):
        raise typer.Exit(2)


@data_app.command("preview")
def data_preview(
    path: DataPath,
    output: Annotated[Path, typer.Option("--out", help="The picture to write.")] = Path("preview.png"),
    n: Annotated[int, typer.Option(min=1, max=48, help="Images to show.")] = 12,
) -> None:
    """Draw a contact sheet of images with their true contours.

    Example: [bold]cellray data preview my_images --out preview.png[/bold]
    """
    from cellray.data import open_dataset, preview_dataset
    from cellray.overlay import encode_png

    (config, *_), reading = _dataset_configs(path)
    dataset = open_dataset(config, channels=3, normalise="none", reading=reading)
    for note in dataset.notes:
        err.print(f"[yellow]Note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    output.write_bytes(encode_png(preview_dataset(dataset, n)))
    out.print(f"{output}: {min(n, len(dataset))} of {len(dataset)} images of {escape(path)}", highlight=False)


@data_app.command("convert")
def data_convert(
    path: Annotated[Path, typer.Argument(help="A folder, or one file: NAME_seg.npy, NAME.zip or NAME.roi.")],
    output: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Default: beside the images, where `init` and studies find them."),
    ] = None,
) -> None:
    """Make label images of cells that were marked in Cellpose (_seg.npy) or ImageJ (regions, in a zip or alone).

    Nothing in the files is run. ImageJ's regions need the image that they were drawn on beside them.

    Example: [bold]cellray data convert my_images[/bold]
    """
    from tifffile import imwrite

    from cellray.data import find_marked, read_foreign

    folder = path if path.is_dir() else path.parent
    for marked in find_marked(path, output):
        labels, notes = read_foreign(marked)
        marked.target.parent.mkdir(parents=True, exist_ok=True)
        n = int(labels.max(initial=0))
        imwrite(marked.target, labels.astype("uint16" if n < 2**16 else "int32"), compression="zlib")
        out.print(
            f"{marked.file}: {n} cells, written to {marked.target}", markup=False, highlight=False, soft_wrap=True
        )
        for note in notes:
            err.print(f"[yellow]Note:[/yellow] {escape(f'{marked.file}: {note}')}", highlight=False, soft_wrap=True)
    if output is None:
        tell_next("init", str(folder))


@data_app.command("synth")
def data_synth(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    n_trainval: Annotated[int, typer.Option(min=1)] = 24,
    n_test: Annotated[int, typer.Option(min=1)] = 8,
    width_px: Annotated[int, typer.Option(min=64)] = 1600,
    height_px: Annotated[int, typer.Option(min=64)] = 1200,
    scale: Annotated[float, typer.Option(min=0.05, help="Size of a cell relative to FNC's 37 px.")] = 1.0,
    seed: int = 0,
) -> None:
    """Draw a dataset in the likeness of Fluorescent Neuronal Cells yellow, in its folder layout.

    Example: [bold]cellray data synth drawn --n-trainval 10 --width-px 320 --height-px 240 --scale 0.5[/bold]
    """
    from cellray.data.synth import synthesise

    if output.exists() and any(output.iterdir()):
        raise StudyError(f"{output} is not empty; name a new folder")
    with out.status(f"drawing {n_trainval + n_test} images"):
        synthesise(
            output,
            n_trainval=n_trainval,
            n_test=n_test,
            width_px=width_px,
            height_px=height_px,
            scale=scale,
            seed=seed,
        )
    out.print(f"{output}: {n_trainval} training and {n_test} test images", highlight=False)


def _dataset_configs(path: str) -> tuple[list[DatasetConfig], Reading]:
    """The datasets of a study file and how it reads them, or the one that a path names."""
    from cellray.data import Reading
    from cellray.study import DatasetConfig, load_study

    if Path(path).suffix in (".yaml", ".yml"):
        study = load_study(Path(path))
        return [study.data.train, *study.data.external], study.data.reading
    return [DatasetConfig(name=name_of(Path(path)), path=path)], Reading()

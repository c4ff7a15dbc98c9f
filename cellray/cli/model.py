"""``cellray model``: which networks are there, and can cellray train them?"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cellray.cli.common import AllowCode, Json, Storage, load, out
from cellray.cli.losses import MARKS, UNSOUND
from cellray.outside import allow_code_in

if TYPE_CHECKING:
    from cellray.model.check import NetworkFinding
    from cellray.study import ModelConfig

model_app = typer.Typer(help="The networks: list, check.", no_args_is_help=True)


@model_app.command("list")
def model_list(as_json: Json = False) -> None:
    """Every network that a study can name, with its settings.

    Example: [bold]cellray model list[/bold]
    """
    import inspect

    from cellray.model import MODELS, find_factory
    from cellray.study import ModelConfig

    rows = [(name, ModelConfig(name=name), inspect.getdoc(find_factory(name)) or "") for name in MODELS]
    if as_json:
        print(json.dumps([{"name": name, "settings": _settings(config)} for name, config, _ in rows]))
        return
    table = Table("name", "settings", "what it is", box=None, header_style="bold", pad_edge=False)
    for name, config, about in rows:
        written = " ".join(f"{key}={value}" for key, value in _settings(config).items())
        table.add_row(name, escape(written), escape(about.split("\n", 1)[0]))
    out.print(table)


@model_app.command("check")
def model_check(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Networks, your own package.module:Factory, or a study file: all of its."),
    ],
    channels: Annotated[int, typer.Option(min=1, help="Channels of the images.")] = 3,
    storage: Storage = "studies",
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Prove on small random images, without data, that networks are ones that cellray can train.

    Ends with exit code 1 if one fails a check; warnings are worth knowing and block nothing.

    Example: [bold]cellray model check monai_unet my_lab.networks:Net[/bold]
    """
    from cellray.model.check import check_network
    from cellray.study import model_named

    allow_code_in(Path.cwd())  # to name one's own module here is to ask for it
    found: dict[str, list[NetworkFinding]] = {}
    for name in names:
        if Path(name).suffix in (".yaml", ".yml"):
            study = load(Path(name), storage, allow_code)
            for trial in {t.model.describe(): t for t in study.trials()}.values():
                build = partial(trial.model.build, trial.data.channels)
                batch = trial.training.batch_size // study.resources.n_workers, trial.training.crop_px
                found[trial.model.describe()] = check_network(build, trial.data.channels, batch)
        else:
            found[name] = check_network(partial(model_named(name).build, channels), channels)
    if as_json:
        print(json.dumps([{"network": name, "findings": [asdict(f) for f in told]} for name, told in found.items()]))
    else:
        for name, told in found.items():
            _print_findings(name, told)
    if any(finding.status == "failure" for told in found.values() for finding in told):
        raise typer.Exit(UNSOUND)


def _print_findings(name: str, told: list[NetworkFinding]) -> None:
    out.print(f"[bold]{escape(name)}[/bold]", highlight=False)
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in told:
        table.add_row(f"{MARKS[finding.status]} {finding.check}", escape(finding.reason or finding.figure))
    out.print(table, highlight=False)


def _settings(config: ModelConfig) -> dict[str, object]:
    return config.settings or {"base_features": config.base_features}

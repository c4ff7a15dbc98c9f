"""Commands on a Kubernetes cluster."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cellray.cli.common import Json, out

STATE_MARKS = {"good": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[bold red]bad[/bold red] "}

cluster_app = typer.Typer(help="A Kubernetes cluster: check.", no_args_is_help=True)


@cluster_app.command("check")
def cluster_check(
    context: Annotated[str | None, typer.Option(help="Of kubectl; default: the current one.")] = None,
    namespace: Annotated[str, typer.Option(help="Where cellray is, or will be, installed.")] = "cellray",
    overlay: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What would be installed; default: what is.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a Kubernetes cluster can run studies, a line for each thing, with what to do. Installs nothing.

    Exit code 2 if anything is bad. With an installation it starts one small pod for a moment, to see what that reaches.

    Example: [bold]cellray cluster check --context lab --overlay k8s/overlays/gpu[/bold]
    """
    from cellray.submission import Namespace, check_cluster

    lines = []
    for line in check_cluster(Namespace(context, namespace), overlay):
        lines.append(line)
        if not as_json:
            out.print(f"{STATE_MARKS[line.state]}  {escape(line.what)}", highlight=False, soft_wrap=True)
            if line.do:
                out.print(f"        {escape(line.do)}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps([asdict(line) for line in lines]))
    if any(line.state == "bad" for line in lines):
        raise typer.Exit(2)

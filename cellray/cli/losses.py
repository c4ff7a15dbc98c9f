"""``cellray losses``: which ones are there, and do they do what their names say?"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from cellray.cli.common import Json, out
from cellray.outside import allow_code_in

if TYPE_CHECKING:
    from cellray.losses import LossFunction
    from cellray.losses.check import Finding
    from cellray.losses.presets import PresetSum, PresetTerm

losses_app = typer.Typer(help="The losses: list, check.", no_args_is_help=True)

UNSOUND = 1
"""Exit code when a loss fails a check."""

MARKS = {"pass": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "failure": "[bold red]✗[/bold red]"}

GROUPED = {
    "logits": ("probabilities", "double_activation", "activation"),
    "floor": ("floor",),
    "settings": ("weights", "words"),
    "maps": ("maps",),
    "cells": ("wrong_class", "missed_or_spurious", "object_size"),
    "masks": ("masks",),
    "numbers": ("finite", "precision", "gradient"),
    "batch": ("reduction",),
    "flips": ("invariance",),
}
"""Columns of the table of marks, each with the worst mark of some checks: one each would be too wide."""


class _Described(NamedTuple):
    """A loss as it is listed."""

    name: str
    settings: dict[str, object]
    about: str


@losses_app.command("list")
def losses_list(as_json: Json = False) -> None:
    """Every registered loss and preset with its settings.

    Example: [bold]cellray losses list[/bold]
    """
    from cellray.losses import LOSSES, PRESETS, RELEASED

    rows = {
        group: [_Described(name, _defaults(function), _about(function)) for name, function in functions.items()]
        for group, functions in (("losses", LOSSES), ("released", RELEASED))
    }
    if as_json:
        plain = {group: [row._asdict() for row in found] for group, found in rows.items()}
        print(json.dumps({**plain, "presets": PRESETS}))
        return
    titles = {"losses": "losses", "released": "as the reference study's code has them, faults included"}
    for group, title in titles.items():
        table = Table("name", "settings", "what it is", box=None, header_style="bold", pad_edge=False)
        for row in rows[group]:
            table.add_row(row.name, escape(_written(row.settings)), escape(row.about))
        if rows[group]:
            out.print(f"[bold]{title}[/bold]", table, "", sep="\n", highlight=False)
    if PRESETS:
        out.print("[bold]presets[/bold]")
    for name, preset in PRESETS.items():
        out.print(f"{name}: {escape(_formula(preset))}", highlight=False, soft_wrap=True)


@losses_app.command("check")
def losses_check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Losses, presets, or your own package.module:function; default: all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove on tiny images, in a second and without data, that losses do what their names and settings say.

    Ends with exit code 1 if one fails a check; warnings are worth knowing and block nothing.

    Example: [bold]cellray losses check dice my_lab.losses:weighted[/bold]
    """
    from cellray.losses import LOSSES
    from cellray.losses.check import check_loss
    from cellray.study import loss_named

    allow_code_in(Path.cwd())  # to name one's own module here is to ask for it
    losses = {name: loss_named(name) for name in names or LOSSES}
    found = {name: check_loss(loss) for name, loss in losses.items()}
    if as_json:
        print(
            json.dumps([{"loss": name, "findings": [asdict(f) for f in findings]} for name, findings in found.items()])
        )
    else:
        print_findings(found)
    if any(finding.status == "failure" for findings in found.values() for finding in findings):
        raise typer.Exit(UNSOUND)


def print_findings(found: dict[str, list[Finding]]) -> None:
    """A row a loss with a mark for each group of checks, then each warning and failure with its reason."""
    from cellray.losses.check import CHECKS

    marks = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    marks.add_column("loss", overflow="fold")
    for heading in GROUPED:
        marks.add_column(heading, justify="center", no_wrap=True)
    for name, findings in found.items():
        marks.add_row(escape(name), *(MARKS[_worst(findings, checks)] for checks in GROUPED.values()))
    out.print(marks)
    for name, findings in found.items():
        reasons = Table.grid(padding=(0, 2, 0, 0))
        reasons.add_column(width=max(map(len, CHECKS)) + 2)
        for (status, reason), checks in _by_reason(findings).items():
            told = ", ".join(checks) if len(checks) <= 2 else f"{len(checks)} checks"
            reasons.add_row(f"{MARKS[status]} {told}", escape(reason))
        if reasons.row_count:
            out.print(f"\n[bold]{escape(name)}[/bold]", highlight=False)
            out.print(reasons, highlight=False)
    n_failed = sum(any(f.status == "failure" for f in findings) for findings in found.values())
    out.print(f"\n{len(found)} checked, {n_failed} failed; ✓ pass  ! worth knowing  ✗ fault", highlight=False)


def _worst(findings: list[Finding], checks: tuple[str, ...]) -> str:
    order = ("pass", "warning", "failure")
    return max((f.status for f in findings if f.check in checks), key=order.index)


def _by_reason(findings: list[Finding]) -> dict[tuple[str, str], list[str]]:
    """Which checks say the same: an error that a loss raises stops them all."""
    told: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.status != "pass":
            told.setdefault((finding.status, finding.reason), []).append(finding.check)
    return told


def _defaults(function: LossFunction) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _about(function: LossFunction) -> str:
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def _written(settings: Mapping[str, object]) -> str:
    return " ".join(f"{name}={v:.4g}" if isinstance(v, float) else f"{name}={v}" for name, v in settings.items())


def _formula(preset: PresetTerm | PresetSum) -> str:
    """Such as `0.3 bce + 0.7 dice (smooth=1e-06)`."""
    if "terms" in preset:
        return " + ".join(map(_formula, preset["terms"]))
    weight = f"{preset['weight']:g} " if "weight" in preset else ""
    settings = f" ({_written(preset['settings'])})" if preset.get("settings") else ""
    return f"{weight}{preset['name']}{settings}"

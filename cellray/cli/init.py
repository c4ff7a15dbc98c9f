"""``cellray init``: from a folder of images to a study file that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cellray.cli.common import Storage, name_of, open_sets, out, tell_next
from cellray.errors import StudyError
from cellray.times import duration

if TYPE_CHECKING:
    from cellray.forecast import Forecast
    from cellray.proposal import Proposal
    from cellray.study import Study


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images with masks or labels: a folder or a zip.")],
    budget: Annotated[str, typer.Option(metavar="30m", help="Time that the study may take on this machine.")] = "1h",
    complete: Annotated[bool, typer.Option("--all", help="Compare all twelve losses of the reference study.")] = False,
    output: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.yaml", help="Default: named for the folder.")
    ] = None,
    storage: Storage = "studies",
) -> None:
    """Look at a folder of images and write a study file for it that runs; nothing is asked that can be measured.

    Masks may lie in masks/, labels/ or ground_truth/ beside images/, or beside their images as NAME_mask or NAME_label.

    Example: [bold]cellray init my_images --budget 30m[/bold]
    """
    from cellray.forecast import forecast
    from cellray.ledger import Ledger
    from cellray.proposal import examine, seconds_of, within_budget

    budget_s = seconds_of(budget)
    name = name_of(folder)
    file = output or Path(f"{name}.yaml")
    if file.exists():
        raise StudyError(f"{file} exists already; name another file with --out")
    file.touch(exist_ok=False)  # where it can't be written, that is said before anything is timed
    file.unlink()
    with out.status(f"looking at {escape(str(folder))}"):
        proposal = examine(name, str(folder.resolve()), is_complete=complete)
    _print_found(proposal)

    def cost_of(study: Study) -> Forecast:
        sets = open_sets(study, quiet=True)
        return forecast(study, sets, sets.plan(study.trials(), ledger), ledger)

    ledger = Ledger(storage, name)
    with out.status("timing each loss for a few seconds"):
        proposal, takes_s = within_budget(proposal, budget_s, cost_of)
    file.write_text(proposal.text(), encoding="utf-8")
    out.print(f"[bold]Written: {escape(str(file))}[/bold]", highlight=False, soft_wrap=True)
    for choice in proposal.choices():
        out.print(f"  {escape(choice.what)}: {escape(choice.why)}", highlight=False, soft_wrap=True)
    out.print(f"  compared: {escape(', '.join(proposal.losses))}", highlight=False, soft_wrap=True)
    for warning in proposal.warnings():
        out.print(f"[yellow]Note:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    if takes_s > budget_s:
        words = f"a budget of {budget} carries no study of these losses: the least takes about {duration(takes_s)}"
        out.print(f"[yellow]Note:[/yellow] {escape(words)}", highlight=False, soft_wrap=True)
    out.print(
        f"{proposal.n_seeds * len(proposal.losses)} trials, about {duration(takes_s)} on this machine", highlight=False
    )
    tell_next("sweep", str(file), storage=storage)


def _print_found(proposal: Proposal) -> None:
    """What there is, in one line."""
    found = proposal.found
    share = found.foreground_percent[0] if found.foreground_percent else 0.0
    kinds = ", ".join(found.dtypes)
    out.print(
        f"[bold]Found:[/bold] {found.n_objects} cells in {found.n_images} images ({kinds}), "
        f"{proposal.diameter_px:.0f} px across, {share:.1f} % of the pixels",
        highlight=False,
    )

"""The ``cellray`` command.

Exit codes: 0 done, 1 unsound loss or network, 2 bad input, 3 some trials failed, 4 the storage failed, 5 Ray failed,
130 interrupted.
"""

from __future__ import annotations

import atexit
import codecs
import io
import os
import sys
import threading
from contextlib import suppress
from typing import Annotated

import typer
from rich.markup import escape

import cellray
from cellray.cli import audit, cluster, compare, data, init, losses, model, one_trial, plan, studies, submit, track
from cellray.cli.common import err, out
from cellray.errors import CellrayError
from cellray.processes import collect_seldom

PLAINER = {"−": "-", "–": "-", "≥": ">=", "≤": "<=", "±": "+-", "×": "x", "…": "..."}
"""What stands for letters that a terminal lacks."""

app = typer.Typer(
    name="cellray",
    help="Which loss segments, detects and counts cells best on your images: one YAML file in, a ranked answer out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 an unsound loss or network (losses check, model check), 2 bad input, "
    "3 some trials failed, 4 the storage failed (full, away), 5 Ray failed (busy machine, killed), 130 interrupted "
    "(after these three, the same command goes on).",
)
track_app = typer.Typer(help="The MLflow store: sync.", no_args_is_help=True)
for command in (
    init.init,
    studies.sweep,
    submit.submit,
    plan.plan,
    studies.status,
    studies.report,
    studies.fetch,
    compare.compare,
    studies.ui,
    studies.schema,
    one_trial.train,
    one_trial.evaluate_dataset,
    one_trial.predict,
    track.register,
):
    app.command(command.__name__.partition("_")[0])(command)
track_app.command("sync")(track.track_sync)
app.add_typer(audit.audit_app, name="audit")
app.add_typer(cluster.cluster_app, name="cluster")
app.add_typer(data.data_app, name="data")
app.add_typer(losses.losses_app, name="losses")
app.add_typer(model.model_app, name="model")
app.add_typer(track_app, name="track")


def nearest(error: UnicodeError) -> tuple[str, int]:
    """What is shown in the place of letters that can't be: a minus stays one, as no number may change."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(PLAINER.get(letter, "?") for letter in letters), error.end


def main() -> None:
    """Entry point of a process: a command, and then the end at once.

    Python would first take torch, Ray and pandas apart, object by object, for more than a second.
    """
    collect_seldom()
    code = 0
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, str):  # words, which Python shows
            raise
        code = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does: wait for threads, then call what asked for it
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(BrokenPipeError, ValueError):  # the reader has gone, or it was closed
            stream.flush()
    os._exit(code)


def run() -> None:
    """A command: one clear line for what the user can mend, and an exit code for scripts."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # no Python that is started from here imports from the working folder
    if os.path.expanduser("~") == "~":  # a user of no name here; Ray and MLflow ask for a home, and can do without
        os.environ["HOME"] = "/nonexistent"
    codecs.register_error("cellray", nearest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter is no reason to stop
            stream.reconfigure(errors="cellray")
    try:
        app()
    except BrokenPipeError:  # the reader has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter says so when it ends
        sys.exit(141)
    except CellrayError as error:
        err.print(f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        words = f"{error.filename}: {error.strerror}"
        err.print(f"[bold red]Error:[/bold red] {escape(words)}", highlight=False, soft_wrap=True)
        sys.exit(2)


def show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"cellray {cellray.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Nothing of its own: every option belongs to a command."""

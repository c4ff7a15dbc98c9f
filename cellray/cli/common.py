"""What the commands share: their options, the terminal, and finding a study and its ledger."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from cellray.errors import INTERRUPTED, NO_RAY, ClusterError, StorageError, StudyError, one_of
from cellray.outside import allow_code_in
from cellray.processes import answer_ending

if TYPE_CHECKING:
    from cellray.ledger import Ledger
    from cellray.ledger.files import StudyFiles
    from cellray.prediction import TrainedModel
    from cellray.record import SearchLog
    from cellray.results import Plan, Results
    from cellray.study import Study
    from cellray.study.loading import Code
    from cellray.trial import Sets

BAD_INPUT, FAILED, NO_STORAGE = 2, 3, 4


class Terminal(Console):
    """What a command says; once nobody reads that any more, as after ``| head``, it goes on unheard."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


# A file has no width: wide enough there for a whole table.
out = Terminal(width=None if (sys.stdout and sys.stdout.isatty()) or "COLUMNS" in os.environ else 140)
err = Terminal(stderr=True)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.", show_default=False)]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or a study's name in the storage.", show_default=False)
]
Storage = Annotated[str, typer.Option(metavar="DIR|s3://…", envvar="CELLRAY_STORAGE", help="Where ledgers lie.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(metavar="URI", envvar="CELLRAY_TRACKING_URI", help="MLflow store; default: SQLite beside the ledger."),
]
Seeds = Annotated[str | None, typer.Option(metavar="0,5", help="Run only these of the study's seeds.")]
Only = Annotated[list[str] | None, typer.Option(metavar="LABEL", help="Run only this configuration (repeatable).")]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="At most so many trials at once.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import losses and networks outside cellray (package.module:name).")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Config = Annotated[str, typer.Option(metavar="LABEL", help="A configuration of the study.")]
Chosen = Annotated[
    str | None,
    typer.Option("--config", metavar="LABEL", help="A configuration; default: that of the trial best on validation."),
]
Ensemble = Annotated[
    bool, typer.Option("--ensemble", help="All seeds of the configuration together: their mean probability.")
]
Seed = Annotated[int | None, typer.Option(help="Its seed; default: the one with the best validation score.")]
Diameter = Annotated[float | None, typer.Option(min=0.1, help="Mean cell diameter on these images, in pixels.")]
MaxValue = Annotated[float | None, typer.Option(min=1, help="Full-scale intensity (4095 for a 12-bit camera).")]


def with_allocator() -> None:
    """Start this command over with the allocator settings that a sweep gives its workers: they can't be set later."""
    from cellray.device import ALLOCATOR_ENV

    missing = {name: value for name, value in ALLOCATOR_ENV.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]], {**os.environ, **missing})


def tell_next(*words: str, storage: str = "studies") -> None:
    """End a command with the one that follows it; `storage` is named where it isn't the usual folder."""
    where = [] if storage == "studies" else ["--storage", storage]
    line = escape(shlex.join([_program(), *words, *where]))
    out.print(f"next: [bold]{line}[/bold]", highlight=False, soft_wrap=True)


def _program() -> str:
    """How this program is called here: by its name where the shell finds that, else by the path it was called by."""
    called, found = Path(sys.argv[0]), shutil.which("cellray")
    if called.stem != "cellray" or (found is not None and called.exists() and called.samefile(found)):
        return "cellray"
    return str(called)


@contextmanager
def interruptible() -> Iterator[None]:
    """What ends a command in here (Ctrl-C and its like, a storage, Ray) is told, with the words that continue it."""
    goes_on = f"[bold]{escape(shlex.join([_program(), *sys.argv[1:]]))}[/bold]"
    restore = answer_ending(_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"Interrupted; nothing is lost. To go on: {goes_on}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    except StorageError as error:
        err.print(f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        err.print(f"No trial counts as failed for that. When the storage is well, go on: {goes_on}", highlight=False)
        raise typer.Exit(NO_STORAGE) from None
    except ClusterError as error:
        err.print(f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        err.print(f"No trial counts as failed for that. To try again: {goes_on}", highlight=False)
        raise typer.Exit(NO_RAY) from None
    finally:
        restore()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def choose(study: Study, seeds: str | None, only: list[str] | None) -> set[tuple[str, int]] | None:
    """The (label, seed) pairs that `--seeds` and `--only` leave, None for all; the study's plan stays whole."""
    if seeds is None and not only:
        return None
    if study.adapts:
        raise StudyError(
            "--seeds and --only don't go with search, stopping or decide.at_most: results decide what is run"
        )
    return chosen_trials(study, seeds, only)


def chosen_trials(study: Study, seeds: str | None, only: list[str] | None) -> set[tuple[str, int]]:
    """The (label, seed) pairs of these seeds and labels; None stands for all."""
    labels = [c.label for c in study.configurations]
    for label in only or []:
        one_of("configuration", label, labels)
    wanted = list(study.seeds)
    if seeds is not None:
        try:
            wanted = [int(seed) for seed in seeds.split(",")]
        except ValueError:
            raise StudyError(f"--seeds: expected whole numbers with commas between, got {seeds!r}") from None
        for seed in wanted:
            if seed not in study.seeds:
                known = ", ".join(map(str, study.seeds))
                raise StudyError(f"--seeds: seed {seed} is not in the study (it has {known}); add it to the file")
    return {(label, seed) for label in (only or labels) for seed in wanted}


def load(study_file: Path, storage: str, allow_code: bool) -> Study:
    """A study file that is to be run: with the hashes of a user's own code and of the weights that it starts from."""
    from cellray.ledger import read_weights
    from cellray.study import load_study

    code: Code = "allowed" if allow_code else "forbidden"
    return load_study(study_file, code=code, read_weights=partial(read_weights, storage=storage))


def check_study(study: Study, storage: str | None = None) -> None:
    """Stop at a loss or a network that isn't what it says, before any data is opened; say what is worth knowing.

    Args:
        study: What is to be run.
        storage: Where ledgers lie; None: weights to start from aren't looked at here.
    """
    from cellray.ledger import read_weights
    from cellray.study import check_losses, check_networks

    read = None if storage is None else partial(read_weights, storage=storage)
    for sentence in [*check_losses(study), *check_networks(study, read)]:
        err.print(f"[yellow]Note:[/yellow] {escape(sentence)}", highlight=False, soft_wrap=True)


def open_sets(study: Study, quiet: bool) -> Sets:
    """Open a study's data, showing progress where something has to be decoded first."""
    from cellray.trial import Sets

    trials = study.with_configurations(study.examples()).trials()
    if quiet:
        sets = Sets.open(study.data)
        sets.add_maps(trials)
        return sets
    with out.status("opening the data") as shown:

        def progress(name: str, done: int, total: int) -> None:
            shown.update(f"preparing {escape(name)}: {done}/{total}")

        sets = Sets.open(study.data, progress=progress)
        sets.add_maps(trials, progress)
    # sets cut from one pack would all say the same
    for note in dict.fromkeys(sets.notes(study.data)):
        err.print(f"[yellow]Note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    return sets


class StoredStudy(NamedTuple):
    """A study with its ledger."""

    ledger: Ledger
    study: Study
    """With the configurations that its sweeps have suggested so far."""
    log: SearchLog | None
    """How they were chosen, of a study that adapts."""

    @classmethod
    def of(cls, study: Study, ledger: Ledger) -> StoredStudy:
        """A study as its ledger knows it."""
        from cellray.results import known_study

        log = ledger.search() if study.keeps_log else None
        return cls(ledger, known_study(study, log), log)

    def plan(self) -> Plan:
        """What its last sweep planned.

        Raises:
            LedgerError: If no sweep has been there.
        """
        from cellray.results import plan_of

        return plan_of(self.study, self.ledger.plan()).with_dropped(self.log)

    def results(self, metric: str | None = None) -> Results:
        """What the ledger has of it; `metric` as for `Results`."""
        from cellray.results import Results

        return Results.now(self.ledger, self.plan(), metric=metric)

    def ensemble(self, config: str | None, *, allow_code: bool) -> TrainedModel:
        """All seeds of a configuration as one model, by default of that of the trial best on validation."""
        from cellray.ensemble import load_ensemble
        from cellray.results import known_trials

        with err.status("opening the ensemble; the first time, its operating point is chosen"):
            return load_ensemble(
                self.ledger,
                known_trials(self.study, self.log),
                config,
                open_sets=lambda: open_sets(self.study, quiet=True),
                allow_code=allow_code,
                threads=os.cpu_count() or 1,
            )


def find(study_name: str, storage: str) -> StoredStudy:
    """The study of a study file, or of a name in the storage, with its ledger."""
    from cellray.ledger import Ledger
    from cellray.study import load_study, read_study

    path = Path(study_name)
    if path.suffix in (".yaml", ".yml"):
        study = load_study(path, code="stored")
        ledger = Ledger(storage, study.name)
    else:
        ledger = Ledger(storage, study_name)
        if not ledger.exists("study.yaml"):
            raise StudyError(f"no study {study_name!r} in {storage}; give its YAML file, or --storage")
        where = f"{ledger.uri}/study.yaml"
        try:
            text = ledger.read("study.yaml").decode()
        except UnicodeDecodeError:
            raise StudyError(f"{where} is no text; restore it, or give the study's own YAML file") from None
        study = read_study(text, where)
    return StoredStudy.of(study, ledger)


def trained_model(
    study_name: str, storage: str, config: str | None, seed: int | None, *, ensemble: bool, allow_code: bool
) -> TrainedModel:
    """The model that a command uses: of one trial, or of all seeds of a configuration together."""
    from cellray.prediction import TrainedModel

    found = find(study_name, storage)
    if not ensemble:
        return TrainedModel.load(found.ledger, config, seed, allow_code=look_beside(study_name, allow_code))
    if seed is not None:
        raise StudyError("--ensemble takes all seeds of a configuration: leave out --seed")
    return found.ensemble(config, allow_code=look_beside(study_name, allow_code))


def find_files(study_name: str, storage: str) -> StudyFiles:
    """The files of a study, named as for `find`; without what it takes to read the study itself."""
    from cellray.ledger.files import StudyFiles
    from cellray.study.yaml_tree import name_in

    path = Path(study_name)
    name = name_in(path) if path.suffix in (".yaml", ".yml") else study_name
    files = StudyFiles(storage, name) if name else None
    return files if files and files.exists("study.yaml") else find(study_name, storage).ledger


def tell_damaged(*studies: Results) -> None:
    """Name the trials that count as missing since a file of theirs is damaged, and end with 2 if there are any."""
    sentences = [sentence for results in studies for sentence in results.damaged.values()]
    for sentence in sentences:
        err.print(f"[bold red]Error:[/bold red] {escape(sentence)}", highlight=False, soft_wrap=True)
    if sentences:
        raise typer.Exit(BAD_INPUT)


def look_beside(study_name: str, allow_code: bool) -> bool:
    """`allow_code`; if so, a network of the user's own is looked for beside the study file, or in this folder."""
    if allow_code:
        allow_code_in(Path(study_name).resolve().parent)
    return allow_code


def name_of(path: Path) -> str:
    """A dataset name from a path: letters, digits, dots, dashes."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in path.resolve().stem)
    return name.lstrip("._-") or "images"

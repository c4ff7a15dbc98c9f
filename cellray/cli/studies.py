"""Commands on a whole study: run it, follow it, report on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from cellray.cli.common import (
    FAILED,
    AllowCode,
    Json,
    MaxConcurrent,
    Only,
    Quiet,
    Seeds,
    Storage,
    StoredStudy,
    StudyFile,
    StudyName,
    TrackingUri,
    check_study,
    choose,
    err,
    find,
    find_files,
    interruptible,
    load,
    open_sets,
    out,
    tell_damaged,
    tell_next,
)
from cellray.cli.exposed import warn_of_exposed
from cellray.cli.show import print_table, print_verdict, verdict
from cellray.times import duration

if TYPE_CHECKING:
    from cellray.observers import Observer
    from cellray.results import Results


@interruptible()
def sweep(
    study_file: StudyFile,
    storage: Storage = "studies",
    tracking_uri: TrackingUri = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: this machine.")] = None,
    seeds: Seeds = None,
    only: Only = None,
    max_concurrent: MaxConcurrent = None,
    retry: Annotated[
        Literal["failed"] | None, typer.Option(help="Run trials with this outcome again.", show_default=False)
    ] = None,
    allow_code: AllowCode = False,
    opens: Annotated[bool, typer.Option("--open", help="Show the sweep in a browser while it runs.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run every trial of a study that its ledger doesn't have yet, and rank what is there.

    Running it again trains nothing; after a kill or Ctrl-C the same command goes on where it stopped.

    Example: [bold]cellray sweep search_spaces/quickstart.yaml[/bold]
    """
    from cellray.cli.progress import PageOpener, ProgressObserver
    from cellray.ledger import Ledger
    from cellray.report import ReportObserver
    from cellray.sweep import connect, run_sweep
    from cellray.tracking import MLflowTracker, check_store, default_store

    study = load(study_file, storage, allow_code)
    chosen = choose(study, seeds, only)
    ledger = Ledger(storage, study.name)
    begun = ledger.exists("study.yaml") and ledger.read("study.yaml") == study.dump_yaml().encode()
    if not begun:
        check_study(study, storage)
    ledger.prepare()
    uri = tracking_uri or default_store(storage)
    warn_of_exposed(address=address, tracking_uri=uri)
    check_store(uri)
    sets = open_sets(study, quiet or as_json)
    tracker = MLflowTracker(ledger, uri, say=lambda text: err.print(text, markup=False, highlight=False))
    observers: list[Observer] = [ReportObserver(ledger), tracker]
    if not (quiet or as_json):
        observers.append(ProgressObserver(out, ledger))
    if opens:
        observers.append(PageOpener(ledger))

    @contextmanager
    def cluster() -> Iterator[None]:
        if begun:  # its losses passed once; they are looked at anew where anything is to be run
            check_study(study, storage)
        with connect(address):
            yield

    try:
        records = run_sweep(
            study,
            sets,
            ledger,
            observers=observers,
            chosen=chosen,
            max_concurrent=max_concurrent,
            retry_failed=retry == "failed",
            cluster=cluster,
        )
    finally:
        with nullcontext() if quiet or as_json else out.status("writing to MLflow"):
            tracker.close()
    results = StoredStudy.of(study, ledger).results(study.evaluation.rank_by)
    _finish(results, storage, quiet=quiet, as_json=as_json)
    planned = {(trial.label, trial.seed) for trial in results.plan.trials} if chosen is None else chosen
    lost = planned - {record.pair for record in records}
    if lost:
        err.print(f"{len(lost)} trials ended without a record: Ray could not run them. The same command tries again.")
        raise typer.Exit(FAILED)


def status(
    study_name: StudyName,
    storage: Storage = "studies",
    context: Annotated[
        str | None, typer.Option(help="Of kubectl: a study that was submitted there, from any machine.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="With --context, where cellray is installed.")] = "cellray",
    as_json: Json = False,
) -> None:
    """Show how far a sweep is, from any machine that sees the storage, or the cluster with --context.

    Example: [bold]cellray status quickstart[/bold]
    """
    if context is not None:
        _status_there(study_name, context, namespace, as_json)
        return
    from cellray.ledger.lease import current_holder

    ledger = find_files(study_name, storage)
    try:
        state = json.loads(ledger.read("report/status.json"))
        state["planned"], state["table"]["columns"]
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):  # there is none, or it is damaged
        from cellray.report import ReportActor, facts_of

        found = find(study_name, storage)
        state = ReportActor(found.ledger, found.plan(), study_facts=facts_of(found.study)).status()
    held = current_holder(ledger)
    state["held_by"] = held.model_dump() if held else None
    state["verdict"] = state.get("verdict", []) if held else verdict(ledger)
    if as_json:
        print(json.dumps(state))
        return
    done = ", ".join(f"{n} {outcome}" for outcome, n in state["done"].items()) or "none done"
    who = f"running (process {held.pid} on {held.host})" if held else "no sweep is running"
    name = escape(ledger.study)
    out.print(f"[bold]{name}[/bold]: {state['planned']} trials planned, {done}; {who}", highlight=False)
    if held and state.get("tries"):
        out.print(f"  {state['tries']['said']}", highlight=False)
    for row in state["running"] if held else []:
        of = f"/{row['epochs']}" if row["epochs"] else ""
        dice = f", val Dice {row['val_dice']:.3f}" if row["val_dice"] is not None else ""
        left = f", about {duration(row['eta_s'])} left" if row.get("eta_s") is not None else ""
        who = f"{row['label']}, seed {row['seed']}"
        out.print(f"  {escape(who)}: epoch {row['epoch']}{of}{dice}{left}", highlight=False)
    if held and state["eta_s"]:
        out.print(f"about {duration(state['eta_s'])} left in all", highlight=False)
    print_table(state["table"]["columns"], state["table"]["rows"], state["table"]["notes"])
    for trouble in state["troubles"]:
        who = f"{trouble['label']}, seed {trouble['seed']}"
        out.print(escape(f"{who}: {trouble['outcome']}: {trouble['reason']}"), highlight=False)
        log = f"trials/{trouble['key']}/traceback.txt"
        if ledger.exists(log):
            out.print(f"  log: {ledger.uri}/{log}", highlight=False, soft_wrap=True)
    print_verdict(state["verdict"])


def _status_there(study_name: str, context: str, namespace: str, as_json: bool) -> None:
    """How a submitted study is: its RayJob, and what the ledger says in the pod of MLflow, which sees it."""
    from cellray.study import load_study
    from cellray.submission import Namespace

    is_file = study_name.endswith((".yaml", ".yml"))
    name = load_study(Path(study_name), code="stored").name if is_file else study_name
    cluster = Namespace(context, namespace)
    if not as_json:
        job, end = cluster.running_job(name), cluster.last_end(name)
        if job is not None:
            out.print(f"RayJob {job} is running; to follow it: cellray submit", highlight=False)
            for incident in cluster.incidents(job):
                out.print(escape(str(incident)), highlight=False, soft_wrap=True)
        elif end is not None:
            goes_on = "; cellray submit goes on from its ledger" if end.trouble.passes else ""
            out.print(escape(f"{end}{goes_on}"), highlight=False, soft_wrap=True)
    words = ["exec", "deployment/mlflow", "--", "cellray", "status", name, *(["--json"] if as_json else [])]
    print(cluster.kubectl(*words).decode(), end="")


def report(
    study_name: StudyName,
    storage: Storage = "studies",
    export: Annotated[
        bool, typer.Option("--export", help="The tables as Markdown, LaTeX and Parquet, too, now and in later reports.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build a study's report anew from its ledger alone, finished or not, without data or training.

    Example: [bold]cellray report quickstart[/bold]
    """
    from cellray.report import build_report, facts_of

    found = find(study_name, storage)
    results = found.results()
    build_report(results, facts_of(found.study), export=export)
    _finish(results, storage, quiet=quiet, as_json=as_json)


def fetch(
    study_name: StudyName,
    storage: Storage = "studies",
    to: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Default: studies/STUDY/report; - writes a tar to standard output."),
    ] = None,
) -> None:
    """Copy a study's report from its storage to this machine, to be opened in a browser.

    Example: [bold]cellray fetch quickstart --storage s3://bucket/studies[/bold]
    """
    from cellray.submission import copy_report, tar_report

    ledger, study, _ = find(study_name, storage)
    if to == "-":
        tar_report(ledger, sys.stdout.buffer)
        return
    folder = Path(to) if to is not None else Path("studies") / study.name / "report"
    n = copy_report(ledger, folder)
    out.print(f"{n} files, open {folder / 'index.html'}", highlight=False, soft_wrap=True)


def ui(
    storage: Storage = "studies",
    tracking_uri: TrackingUri = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On this machine only (127.0.0.1).")] = 5000,
) -> None:
    """Open MLflow's web page on the studies' store. Ctrl-C ends it.

    Example: [bold]cellray ui --port 5001[/bold]
    """
    from cellray.tracking import check_store, default_store, public_uri, serve_page, study_pages

    uri = tracking_uri or default_store(storage)
    check_store(uri)
    served = not uri.startswith(("http://", "https://"))  # else a server has its own page
    server = f"http://127.0.0.1:{port}" if served else public_uri(uri).rstrip("/")
    out.print(f"MLflow at {server}{' (Ctrl-C ends it)' if served else ''}", highlight=False, soft_wrap=True)
    for name, page in study_pages(uri, server).items():
        out.print(f"  {name}: {page}", markup=False, highlight=False, soft_wrap=True)
    if served:
        serve_page(uri, port)


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="A page of every key to read: docs/keys.md.")] = False,
) -> None:
    """Print the JSON Schema of study files, for editors.

    Example: [bold]cellray schema > study.schema.json[/bold]
    """
    from cellray.study import key_page, study_schema

    print(key_page() if markdown else json.dumps(study_schema(), indent=1), end="" if markdown else "\n")


def _finish(results: Results, storage: str, *, quiet: bool, as_json: bool) -> None:
    """Print the ranked table, the verdict, the report's path and what comes next.

    Exits with 2 if trials are damaged, with 3 if some failed.
    """
    from cellray.report import format_table, load_tables

    plan = results.plan
    tables = load_tables(results, only_ranking=True)
    outcomes = {str(k): int(v) for k, v in tables.trials.outcome.value_counts().items()}
    page = f"{results.ledger.uri}/report/index.html"
    table = format_table(tables, metric=plan.rank_by)
    if as_json:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        answer = verdict(results.ledger)
        print(json.dumps({"study": plan.study, "verdict": answer, "outcomes": outcomes, "table": rows, "report": page}))
    elif not quiet:
        print_table(table.columns, table.rows, table.notes)
        print_verdict(verdict(results.ledger))
        out.print(f"report: {page}", highlight=False, soft_wrap=True)
        if outcomes.get("finished"):
            tell_next("predict", plan.study, "YOUR_IMAGES", "--out", "counted", storage=storage)
    tell_damaged(results)
    if outcomes.get("failed"):
        raise typer.Exit(FAILED)

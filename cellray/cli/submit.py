"""``cellray submit``: a study sent to a cluster, followed from here, its report fetched at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from cellray.cli.common import AllowCode, StudyFile, check_study, err, out
from cellray.cli.exposed import warn_of_exposed
from cellray.errors import INTERRUPTED, CellrayError

if TYPE_CHECKING:
    from cellray.submission import Namespace, Parcel

T = TypeVar("T")


def submit(
    study_file: StudyFile,
    address: Annotated[
        str | None, typer.Option(metavar="http://HOST:8265", help="A Ray cluster's dashboard; default: Kubernetes.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Of kubectl; default: the current one.")] = None,
    namespace: Annotated[str, typer.Option(help="Of Kubernetes, where cellray is installed.")] = "cellray",
    storage: Annotated[
        str | None,
        typer.Option(metavar="DIR|s3://…", help="Where the ledger lies, as the nodes of the Ray cluster see it."),
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(metavar="URI", help="MLflow store, as the nodes see it.")] = None,
    retry: Annotated[
        Literal["failed"] | None, typer.Option(help="Run trials with this outcome again.", show_default=False)
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove this study's ended RayJobs, and nothing else.")
    ] = False,
    allow_code: AllowCode = False,
) -> None:
    """Run a study on a cluster: Kubernetes with cellray installed (k8s/README.md), or any Ray cluster by --address.

    The study goes on without this command. Ctrl-C leaves it running; the same command comes back to it. After what
    passes, such as a lost head, it is started anew and goes on from its ledger; what doesn't pass ends it with a line.

    Example: [bold]cellray submit search_spaces/ablation.yaml --context lab[/bold]
    """
    from cellray.errors import StudyError
    from cellray.submission import Namespace, pack

    for name, value in (("--storage", storage), ("--tracking-uri", tracking_uri)):
        if "@" in urlsplit(value or "").netloc:
            raise StudyError(
                f"{name}: credentials don't belong into a job's command, which gets stored and printed; "
                f"set CELLRAY_{name[2:].upper().replace('-', '_')} in the environment of the cluster's nodes"
            )
    warn_of_exposed(address=address, tracking_uri=tracking_uri)
    options = {"--storage": storage, "--tracking-uri": tracking_uri, "--retry": retry}
    parcel = pack(
        study_file,
        words=tuple(word for name, value in options.items() if value is not None for word in (name, value)),
        allow_code=allow_code,
    )
    check_study(parcel.study)
    folder = Path("studies") / parcel.study.name / "report"
    if address is None:
        _submit_to_kubernetes(parcel, Namespace(context, namespace), folder, clean)
    elif clean:
        raise StudyError("--clean is for RayJobs of Kubernetes, not for --address")
    else:
        _submit_to_ray(parcel, address, storage, folder)


def _submit_to_kubernetes(parcel: Parcel, cluster: Namespace, folder: Path, clean: bool) -> None:
    from cellray.errors import StudyError
    from cellray.submission import RESUBMISSIONS

    def say(text: str) -> None:
        out.print(escape(text), highlight=False, soft_wrap=True)

    name = parcel.study.name
    if clean:
        removed = cluster.clean(name)
        say(f"removed: {', '.join(removed)}" if removed else f"no RayJob of {name} has ended")
        return
    job = cluster.running_job(name)
    if job is not None:
        say(f"RayJob {job} of this study is running: following it")
    elif (end := cluster.last_end(name)) is not None:
        say(f"The last time it ended: {end}")
    for left in reversed(range(RESUBMISSIONS + 1)):
        if job is None:
            cluster.clean(name)
            job = cluster.submit(parcel)
            say(f"RayJob {job} created in namespace {cluster.name}")
        found = _follow(partial(cluster.follow, job, say), cluster.command("delete", "rayjob", job))
        if found is None:
            n_files = cluster.fetch_report(name, folder)
            say(f"report: {folder / 'index.html'} ({n_files} files)")
            return
        if not found.trouble.passes or not left:
            if cluster.running_job(name) == job:  # it would wait for ever; one that ended keeps its logs
                cluster.delete(job)
            raise StudyError(str(found))
        say(f"{found}. It starts anew and goes on from its ledger; {left - 1} more such starts")
        job = None


def _submit_to_ray(parcel: Parcel, address: str, storage: str | None, folder: Path) -> None:
    from cellray.errors import StudyError
    from cellray.ledger import Ledger
    from cellray.submission import connect_jobs, copy_report, follow_job, running_job, submit_job

    if storage is None:
        raise StudyError("--storage: say where the ledger is to lie: s3://bucket/…, or a folder that all nodes share")
    client = connect_jobs(address)
    job = running_job(client, parcel.study.name)
    if job is None:
        job = submit_job(client, parcel)
        out.print(f"job {job} submitted to {escape(address)}", highlight=False)
    else:
        out.print(f"job {job} of this study is running: following it", highlight=False)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    code = _follow(lambda: follow_job(client, job, write), f"ray job stop {job} --address {address}")
    try:
        n_files = copy_report(Ledger(storage, parcel.study.name), folder)
    except (CellrayError, OSError) as error:
        err.print(f"The report stays in {escape(storage)}: {escape(str(error))}", highlight=False, soft_wrap=True)
    else:
        out.print(f"report: {folder / 'index.html'} ({n_files} files)", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _follow(follow: Callable[[], T], stop: str) -> T:
    """Follow a job; Ctrl-C leaves it alone and says how to come back and how to end it."""
    try:
        return follow()
    except KeyboardInterrupt:
        err.print("Not followed any more; the study goes on. The same command comes back to it.", highlight=False)
        err.print(f"To stop it: [bold]{escape(stop)}[/bold]", highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None

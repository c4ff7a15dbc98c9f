"""Commands on the MLflow store: bring it up to date, give a study's best model a version there."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape

from cellray.cli.common import Json, Quiet, Storage, StudyName, TrackingUri, find, out
from cellray.cli.exposed import warn_of_exposed
from cellray.errors import StudyError


def track_sync(
    study_name: StudyName, storage: Storage = "studies", tracking_uri: TrackingUri = None, quiet: Quiet = False
) -> None:
    """Bring the MLflow store up to date from the ledger alone."""
    from cellray.tracking import check_store, default_store, public_uri, sync

    ledger, study, _ = find(study_name, storage)
    uri = tracking_uri or default_store(storage)
    warn_of_exposed(tracking_uri=uri)
    check_store(uri)
    done = sync(ledger, study, uri)
    if not quiet:
        out.print(f"{public_uri(uri)}: {done.n_records} records, {done.n_written} of them new", highlight=False)


def register(
    study_name: StudyName,
    best: Annotated[bool, typer.Option("--best", help="The trial with the best score on validation.")] = False,
    name: Annotated[str | None, typer.Option(help="In the registry; default: the study's name.")] = None,
    storage: Storage = "studies",
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Give the model of a study's best trial a version in MLflow's registry. A second call finds that version.

    Example: [bold]cellray register quickstart --best --name cells[/bold]
    """
    from dataclasses import asdict

    from cellray.tracking import check_store, default_store, register_best

    if not best:
        raise StudyError("say which model to register: --best is the trial with the best score on validation")
    ledger, study, _ = find(study_name, storage)
    uri = tracking_uri or default_store(storage)
    warn_of_exposed(tracking_uri=uri)
    check_store(uri)
    done = register_best(ledger, study, uri, name=name)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    which = f"{done.label}, seed {done.seed} (validation {study.evaluation.rank_by} {done.score:.4f})"
    state = "registered as" if done.is_new else "has its version already:"
    out.print(f"{escape(which)} {state} {escape(done.name)}, version {done.version}", highlight=False, soft_wrap=True)
    out.print(f"load or serve it as models:/{escape(done.name)}/{done.version}", highlight=False, soft_wrap=True)

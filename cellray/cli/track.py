"""Commands on the MLflow store: bring it up to date, give a study's best model a version there."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer
from rich.markup import escape

from cellray.cli.common import (
    AllowCode,
    Chosen,
    Ensemble,
    Json,
    Quiet,
    Storage,
    StudyName,
    TrackingUri,
    find,
    look_beside,
    out,
)
from cellray.cli.exposed import warn_of_exposed


def track_sync(
    study_name: StudyName, storage: Storage = "studies", tracking_uri: TrackingUri = None, quiet: Quiet = False
) -> None:
    """Bring the MLflow store up to date from the ledger alone.

    Example: [bold]cellray track sync quickstart --tracking-uri http://mlflow.lab:5000[/bold]
    """
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
    config: Chosen = None,
    ensemble: Ensemble = False,
    name: Annotated[str | None, typer.Option(help="In the registry; default: the study's name.")] = None,
    allow_code: AllowCode = False,
    storage: Storage = "studies",
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Give a study's best model a version in MLflow's registry, as a tool: image in, cells out.

    The best is the trial with the best score on the validation images; --ensemble takes all seeds of its configuration.
    A second call finds its version.

    Example: [bold]cellray register quickstart --name cells[/bold]
    """
    from dataclasses import asdict

    from cellray.report import ahead_on_test, load_tables
    from cellray.tracking import check_store, default_store, public_uri, register_model

    ledger, study, _ = found = find(study_name, storage)
    uri = tracking_uri or default_store(storage)
    warn_of_exposed(tracking_uri=uri)
    check_store(uri)
    allowed = look_beside(study_name, allow_code)
    together = found.ensemble(config, allow_code=allowed).ensemble if ensemble else None
    done = register_model(ledger, study, uri, name=name, label=config, ensemble=together, allow_code=allowed)
    others: list[str] = []
    if config is None:
        tables = load_tables(found.results(study.evaluation.rank_by), only_ranking=True)
        others = ahead_on_test(tables, done.label)
    if as_json:
        print(json.dumps({**asdict(done), "ahead_on_test": others}))
        return
    runs = f"ensemble of seeds {', '.join(map(str, done.seeds))}" if ensemble else f"seed {done.seeds[0]}"
    which = f"{done.label}, {runs} (validation {study.evaluation.rank_by} {done.score:.4f})"
    state = "registered as" if done.is_new else "has its version already:"
    out.print(f"{escape(which)} {state} {escape(done.name)}, version {done.version}", highlight=False, soft_wrap=True)
    for other in others:
        words = (
            f"Note: the test images speak for {other}. Validation images chose all the same: a model chosen by its "
            f"test score looks better there than it will be on new images. To take it: --config {shlex.quote(other)}"
        )
        out.print(words, markup=False, highlight=False, soft_wrap=True)
    command = f"mlflow models serve --model-uri models:/{done.name}/{done.version} --env-manager local --port 5001"
    line = f"serve it: MLFLOW_TRACKING_URI={public_uri(uri)} {command}"
    out.print(line, markup=False, highlight=False, soft_wrap=True)

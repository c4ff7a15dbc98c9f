"""A study's chosen model under a name and a version in MLflow's registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellray.errors import CellrayError, LedgerError, StudyError
from cellray.ledger import Ledger
from cellray.outside import is_dotted
from cellray.prediction import best_weights, chosen_trial
from cellray.record import EnsembleRecord, TrialRecord
from cellray.scores import best_record
from cellray.study import Study
from cellray.tracking.models import log_model
from cellray.tracking.stores import open_client, public_uri, scrub
from cellray.tracking.values import digest, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and the trial that it is."""

    name: str
    version: str
    is_new: bool
    """Whether this call made it."""
    key: str
    label: str
    seeds: tuple[int, ...]
    """Of an ensemble all of its members'."""
    score: float
    """On validation, in the study's metric."""


def register_model(
    ledger: Ledger,
    study: Study,
    tracking_uri: str,
    *,
    name: str | None = None,
    label: str | None = None,
    ensemble: EnsembleRecord | None = None,
    allow_code: bool = False,
) -> Registered:
    """Give the trial with the best validation score a version in the registry, as a model that finds cells.

    The same weights with the same operating point get no second version under that name.

    Args:
        ledger: Of the study.
        study: Its `name` and `evaluation.rank_by` are used.
        tracking_uri: Of the store that holds the runs and the registry.
        name: In the registry; the study's by default.
        label: Of the configuration to choose from; None: from all.
        ensemble: Register this one instead.
        allow_code: Put a network of the user's own into the model; else a trial of one is an error.

    Raises:
        LedgerError: If no such trial has finished, the store lacks its run, or it can't be asked.
    """
    if ensemble is None:
        record, checkpoint = chosen_trial(ledger, label)
        members, point, score = {record.key: checkpoint}, record.operating_point, record.operating_point_score
    else:
        records = ledger.records(ensemble.members)
        members = {each.key: best_weights(ledger, each) for each in records}
        best = best_record(records, study.evaluation.rank_by)
        record, point, score = best or records[0], ensemble.operating_point, ensemble.operating_point_score
    assert point is not None and score is not None
    network = record.settings.model.name
    if is_dotted(network) and not allow_code:
        raise StudyError(f"the network {network!r} is code outside cellray; --allow-code takes it along")
    tags = {
        "study": study.name,
        "question": study.question,
        "key": ensemble.key if ensemble else record.key,
        "label": record.label,
        "seed": ", ".join(map(str, ensemble.seeds)) if ensemble else str(record.seed),
        "diameter_px": str(record.data.diameter_px),
        f"val.{study.evaluation.rank_by}": str(score),
        "checkpoint": digest(b"".join(members.values())),
        **flatten({"operating_point": point.model_dump()}),
    }
    tags = {f"cellray.{key}": value for key, value in tags.items() if value}
    name = name or study.name
    try:
        client = open_client(tracking_uri)
        run = _run(client, study.name, record)
        if run is None:
            raise LedgerError(
                f"MLflow at {public_uri(tracking_uri)} lacks the run of {record.label!r}, seed {record.seed}; "
                f"bring it with: cellray track sync {study.name}"
            )

        def make() -> LoggedModel:
            return log_model(client, run, ledger, members, record, ensemble)

        title = ensemble.title if ensemble else f"{record.label}, seed {record.seed}"
        version, is_new = _version(client, run, make, title, name, tags)
    except CellrayError:
        raise
    except Exception as error:
        raise LedgerError(f"MLflow at {public_uri(tracking_uri)}: {scrub(error, tracking_uri)}") from error
    seeds = ensemble.seeds if ensemble else (record.seed,)
    return Registered(name, version, is_new, tags["cellray.key"], record.label, seeds, float(score))


def _run(client: MlflowClient, study: str, record: TrialRecord) -> Run | None:
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return None
    asked = f"tags.`cellray.kind` = 'seed' and tags.`cellray.key` = '{record.key}'"
    return next(iter(client.search_runs([experiment.experiment_id], asked, max_results=1)), None)


def _version(
    client: MlflowClient, run: Run, make: Callable[[], LoggedModel], title: str, name: str, tags: Mapping[str, str]
) -> tuple[str, bool]:
    """The version that is this model, and whether it was made now."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={"cellray.study": tags["cellray.study"]})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    decides = [key for key in tags if key.startswith(("cellray.checkpoint", "cellray.operating_point"))]
    for version in client.search_model_versions(f"name = '{name}'"):
        if all(version.tags.get(key) == tags[key] for key in decides):
            return str(version.version), False
    model = make()
    made = client.create_model_version(
        name,
        source=model.artifact_location,
        run_id=run.info.run_id,
        tags=dict(tags),
        model_id=model.model_id,
        description=f"{title}, of the study {tags['cellray.study']}",
    )
    return str(made.version), True

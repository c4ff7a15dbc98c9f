"""The best model of a study under a name and a version in MLflow's registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.scores import best_record
from cellray.study import Study
from cellray.tracking.stores import open_client, public_uri, scrub
from cellray.tracking.values import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and the trial that it is."""

    name: str
    version: str
    is_new: bool
    """Whether this call made it."""
    key: str
    label: str
    seed: int
    score: float
    """On validation, in the study's metric."""


def register_best(ledger: Ledger, study: Study, tracking_uri: str, *, name: str | None = None) -> Registered:
    """Give the logged model of a study's best trial a version in the registry.

    A model that has a version under that name gets no second one.

    Args:
        ledger: Of the study.
        study: Its `name` and `evaluation.rank_by` are used.
        tracking_uri: Of the store that holds the runs and the registry.
        name: In the registry; the study's by default.

    Raises:
        LedgerError: If no trial has finished, the store lacks the model, or it can't be asked.
    """
    record = best_record(ledger.records(), study.evaluation.rank_by)
    if record is None or record.operating_point_score is None:
        raise LedgerError(f"{ledger.uri} has no finished trial, so there is no model to register")
    checkpoint = ledger.load_checkpoint(record.key, "best")
    if checkpoint is None:
        raise LedgerError(f"{ledger.uri}/trials/{record.key} has no checkpoint `best`")
    tags = {
        "cellray.study": study.name,
        "cellray.key": record.key,
        "cellray.label": record.label,
        "cellray.seed": str(record.seed),
        "cellray.diameter_px": str(record.data.diameter_px),
        f"cellray.val.{study.evaluation.rank_by}": str(record.operating_point_score),
        "cellray.checkpoint": digest(checkpoint),
    }
    name = name or study.name
    try:
        version, is_new = _version(open_client(tracking_uri), study.name, name, tags)
    except LedgerError:
        raise
    except Exception as error:
        raise LedgerError(f"MLflow at {public_uri(tracking_uri)}: {scrub(error, tracking_uri)}") from error
    if version is None:
        raise LedgerError(
            f"MLflow at {public_uri(tracking_uri)} lacks the model of {record.label!r}, seed {record.seed}; "
            f"bring it with: cellray track sync {study.name}"
        )
    score = float(record.operating_point_score)
    return Registered(name, version, is_new, record.key, record.label, record.seed, score)


def _version(client: MlflowClient, study: str, name: str, tags: Mapping[str, str]) -> tuple[str | None, bool]:
    """The version with these weights, and whether it was made now; None if the store lacks the model."""
    from mlflow.exceptions import MlflowException

    model = _logged_model(client, study, tags)
    if model is None:
        return None, False
    try:
        client.create_registered_model(name, tags={"cellray.study": study})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("cellray.checkpoint") == tags["cellray.checkpoint"]:
            return str(version.version), False
    made = client.create_model_version(
        name,
        source=model.artifact_location,
        run_id=model.source_run_id,
        tags=dict(tags),
        model_id=model.model_id,
        description=f"{tags['cellray.label']}, seed {tags['cellray.seed']}, of the study {study}",
    )
    return str(made.version), True


def _logged_model(client: MlflowClient, study: str, tags: Mapping[str, str]) -> LoggedModel | None:
    """The model that the study's tracker logged of these weights, ready to be loaded."""
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return None
    found = client.search_logged_models(
        [experiment.experiment_id], f"tags.`cellray.checkpoint` = '{tags['cellray.checkpoint']}'"
    )
    return next((m for m in found if m.status == "READY" and m.tags.get("cellray.key") == tags["cellray.key"]), None)

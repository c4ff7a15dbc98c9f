"""A trained network as an MLflow model that finds cells: what was judged, from raw image to counts, without pickles."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import cellray
from cellray.errors import StudyError
from cellray.ledger import Ledger
from cellray.outside import find_module, is_dotted
from cellray.record import EnsembleRecord, TrialRecord
from cellray.scratch import scratch_folder
from cellray.study.network import DEFAULT
from cellray.tracking.serving import CHECKPOINT, ENSEMBLE, RECORD

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_UNUSED = {"ray", "optuna", "mlflow", "matplotlib", "jinja2", "scikit-learn", "roifile"}
"""Dependencies that finding cells doesn't import; MLflow names itself."""


def log_model(
    client: MlflowClient,
    run: Run,
    ledger: Ledger,
    members: Mapping[str, bytes],
    record: TrialRecord,
    ensemble: EnsembleRecord | None,
) -> LoggedModel:
    """Log a trial's network, operating point and post-processing, or those of an ensemble, as a model of a run.

    The folder holds records, weights and cellray's code; `cellray.tracking.serving` loads it.

    Args:
        client: Of the store.
        run: Of the trial.
        ledger: Of the study.
        members: Contents of the trials' `best.pt` by their keys.
        record: Of the trial, or of a member.
        ensemble: What they are together; None of one trial.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    model = client.create_logged_model(
        run.info.experiment_id, "cells", source_run_id=run.info.run_id, model_type="segmentation"
    )
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [ColSpec(DataType.long, "count"), ColSpec(DataType.string, "labels"), ColSpec(AnyType(), "cells")]
        ),
        params=ParamSchema(
            [
                ParamSpec("diameter_px", DataType.double, float(record.data.diameter_px or 0)),
                ParamSpec("max_value", DataType.double, 0.0),
            ]
        ),
    )
    about = Model(run_id=run.info.run_id, model_id=model.model_id, model_uuid=model.model_id)
    with scratch_folder("models") as scratch:
        data, folder = Path(scratch, "data"), Path(scratch, "model")
        data.mkdir()
        for key, checkpoint in members.items():
            place = data / key if ensemble else data
            place.mkdir(exist_ok=True)
            (place / RECORD).write_bytes(ledger.read(f"trials/{key}/trial.json"))
            (place / CHECKPOINT).write_bytes(checkpoint)
        if ensemble:
            (data / ENSEMBLE).write_text(ensemble.model_dump_json())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an example of input, which it lacks
            mlflow.pyfunc.save_model(
                folder,
                loader_module="cellray.tracking.serving",
                data_path=str(data),
                code_paths=[str(Path(cellray.__file__).parent), *_own_code(record.settings.model.name)],
                mlflow_model=about,
                signature=signature,
                pip_requirements=_requirements(record.settings.model.name),
            )
        client.log_model_artifacts(model.model_id, str(folder))
    return client.finalize_logged_model(model.model_id, "READY")


def _own_code(network: str) -> list[str]:
    """The file or package of a user's own network; nothing of it is run."""
    if not is_dotted(network):
        return []
    found = find_module(network.partition(":")[0])
    if found is None or found.origin is None:
        raise StudyError(f"the network {network!r}: its module isn't here; name the study by its file")
    file = Path(found.origin)
    return [str(file.parent if file.name == "__init__.py" else file)]


def _requirements(network: str) -> list[str]:
    """cellray's dependencies, and those of networks of libraries, at the versions installed here."""
    every = [line.replace('"', "'") for line in metadata.requires("cellray") or []]
    wanted = [line for line in every if "extra ==" not in line]
    if network != DEFAULT:
        wanted += [line for line in every if "extra == 'networks'" in line]
    names = {re.split(r"[^\w-]", line)[0] for line in wanted} - _UNUSED
    return sorted(f"{name}=={metadata.version(name).partition('+')[0]}" for name in names)

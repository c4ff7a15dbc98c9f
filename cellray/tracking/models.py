"""A trained network as an MLflow model: a `torch.export` archive, which loads without cellray and without pickles."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cellray.outside import is_dotted
from cellray.record import TrialRecord, TrialSettings
from cellray.scratch import scratch_folder
from cellray.study import ModelConfig, short_hash
from cellray.tracking.values import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from torch import Tensor
    from torch.export import ExportedProgram


class ModelSaver:
    """Saves networks as MLflow model folders.

    Tracing a network takes seconds and depends on its architecture alone, so each architecture is traced once and
    every trial's folder is a copy of that with other weights, which takes about 0.2 s.
    """

    def __init__(self) -> None:
        self._folder = scratch_folder("models")
        self._traced: dict[str, tuple[Path, ExportedProgram]] = {}

    def save(self, settings: TrialSettings, checkpoint: bytes, *, run_id: str, model_id: str) -> Path:
        """Write a model folder.

        Args:
            settings: Of the trial; `model` and `data.channels` are read.
            checkpoint: Of the trial, with the weights under "model".
            run_id: MLflow run that it belongs to.
            model_id: MLflow logged model that it becomes.

        Returns:
            The folder, good until the next call.
        """
        import torch
        from mlflow.models import Model

        weights = torch.load(io.BytesIO(checkpoint), weights_only=True, map_location="cpu")["model"]
        template, program = self._trace(settings.model.config, settings.data.channels, weights)
        with torch.no_grad():
            for key, tensor in program.state_dict.items():
                tensor.copy_(weights[key])
        folder = Path(self._folder.name) / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        torch.export.save(program, folder / "data" / "model.pt2")
        model = Model.load(str(folder))
        model.run_id, model.model_id, model.model_uuid = run_id, model_id, model_id
        model.save(str(folder / "MLmodel"))
        return folder

    def _trace(
        self, model: ModelConfig, in_channels: int, weights: Mapping[str, Tensor]
    ) -> tuple[Path, ExportedProgram]:
        """The model folder of an architecture, and its exported program; the weights are the first trial's."""
        architecture = f"{model.model_dump_json(exclude={'weights', 'weights_hash'})} {in_channels}"
        if architecture not in self._traced:
            import mlflow.pytorch
            import numpy as np
            import torch
            from mlflow.models import ModelSignature
            from mlflow.types import Schema, TensorSpec

            if is_dotted(model.name) and model.name.partition(":")[0] not in sys.modules:
                raise ValueError(f"{model.name!r} is code outside cellray; a sweep with --allow-code exports it")
            # On meta and then filled: initial weights would draw from the random state of whoever trains here.
            network = model.build(in_channels, "meta")
            if dict(network.named_buffers()).keys() - network.state_dict().keys():
                raise ValueError(f"{model.name!r} has buffers that its checkpoints lack")
            network.to_empty(device="cpu").load_state_dict(weights)
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # what the format stores
            network.eval()
            folder = Path(self._folder.name) / short_hash(architecture)
            shutil.rmtree(folder, ignore_errors=True)
            single, side = np.dtype("float32"), max(getattr(network, "size_multiple", 8), 8)
            mlflow.pytorch.save_model(
                network,
                str(folder),
                signature=ModelSignature(
                    inputs=Schema([TensorSpec(single, (-1, in_channels, -1, -1))]),
                    outputs=Schema([TensorSpec(single, (-1, 1, -1, -1))]),
                ),
                # of two images and two tiles a side, since tracing takes a size of 1 for a constant
                input_example=np.zeros((2, in_channels, 2 * side, 3 * side), dtype=single),
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
                metadata={
                    "input": f"images in [0, 1]; height and width multiples of {side}, from {2 * side}",
                    "output": "logits",
                },
                serialization_format="pt2",
            )
            self._traced[architecture] = folder, torch.export.load(folder / "data" / "model.pt2")
        return self._traced[architecture]


def log_model(
    client: MlflowClient, experiment: Experiment, run_id: str, record: TrialRecord, checkpoint: bytes, saver: ModelSaver
) -> tuple[str | None, Exception | None]:
    """Log a trial's best checkpoint as a model of its run, in place of any other.

    Args:
        client: Of the store.
        experiment: The study's.
        run_id: Of the trial's run.
        record: Of the trial.
        checkpoint: As for `ModelSaver.save`.
        saver: Writes the model's folder.

    Returns:
        The model's id if it is new, and why it can't be one if its network can't be exported.
    """
    from mlflow.entities import LoggedModelOutput

    tags = {"cellray.study": experiment.name, "cellray.key": record.key, "cellray.checkpoint": digest(checkpoint)}
    for model in client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run_id}'"):
        if model.tags.get("cellray.checkpoint") == tags["cellray.checkpoint"] and model.status == "READY":
            return None, None
        client.delete_logged_model(model.model_id)
    model = client.create_logged_model(
        experiment.experiment_id, "best", source_run_id=run_id, tags=tags, model_type="segmentation"
    )
    try:
        folder = saver.save(record.settings, checkpoint, run_id=run_id, model_id=model.model_id)
    except Exception as error:
        client.delete_logged_model(model.model_id)
        return None, error
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record.best_epoch or 0)])
    return model.model_id, None

"""The sets of images that a trial used, as MLflow describes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cellray.record import DatasetSettings, TrialRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


def dataset_inputs(record: TrialRecord) -> list[DatasetInput]:
    """Training, validation, test and external images of a trial, from its record alone.

    The digest is the fingerprint of the files; of the images drawn for training and validation also the split's hash,
    since MLflow keeps one description of each name and digest, and every seed draws others.
    """
    facts, settings = record.data, record.settings.data
    counts = {"train": facts.n_train, "val": facts.n_val, "test": facts.n_test}
    if settings.train is None or facts.n_train is None:
        return []
    found = []
    for part, n_images in counts.items():
        digest = facts.fingerprint if part == "test" else f"{facts.fingerprint}.{facts.split_hash}"
        name = f"{settings.train.name}/{part}"
        found.append(_input(name, digest, part, settings.train, n_images, facts.diameter_px))
    by_name = {dataset.name: dataset for dataset in settings.external}
    for name, dataset in facts.sets.items():
        given = by_name.get(name, DatasetSettings())
        found.append(_input(name, dataset.fingerprint, "external", given, dataset.n_images, dataset.diameter_px))
    return found


def _input(
    name: str, digest: str, context: str, given: DatasetSettings, n_images: int | None, diameter_px: float | None
) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name,
        digest[:36],  # MLflow takes no more
        source_type="local",
        source=json.dumps({"uri": given.path or "synthetic"}),
        profile=json.dumps({"num_rows": n_images, "diameter_px": diameter_px or 0.0}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])

"""Predictions made elsewhere, judged on a study's test images as its own are."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from cellray.data.predicted import read_predictions
from cellray.errors import DataError
from cellray.evaluation import as_judged, judge_labels
from cellray.ledger import Ledger
from cellray.record import Reference
from cellray.study import EVALUATION_VERSION, Study, short_hash
from cellray.trial.sets import Sets

Labelled = dict[str, list[np.ndarray]]


def read_references(study: Study, sets: Sets) -> Labelled:
    """The label images of each reference by its label, one for each test image.

    Raises:
        DataError: Naming the key of the study file, and the first image that has no label image of its size.
    """
    found = {}
    for i, reference in enumerate(study.references):
        try:
            found[reference.label] = read_predictions(reference.path, sets.train, _tested(study, sets))
        except DataError as error:
            raise DataError(f"references[{i}] {reference.label!r}: {error}") from error
    return found


def judge_references(study: Study, sets: Sets, ledger: Ledger) -> None:
    """Judge every reference by the rules of the study's trials, and keep the result in the ledger.

    What was judged already isn't judged again.

    Raises:
        DataError: As `read_references`.
    """
    known = {reference.key: reference for reference in ledger.references()}
    found = []
    for label, images in read_references(study, sets).items():
        key = _key(study, sets, images)
        if key not in known:
            known[key] = _judged(study, sets, ledger, key, images)
        found.append(known[key].model_copy(update={"label": label}))
    if found or known:
        ledger.write_references(found)


def _judged(study: Study, sets: Sets, ledger: Ledger, key: str, images: list[np.ndarray]) -> Reference:
    rows = pd.DataFrame(
        {
            "set": "test",
            "image": sets.train.names[index],
            "group": sets.train.groups[index],
            "point": "own",
            **judge_labels(labels, sets.train, index, study.judged_by)[1],
        }
        for index, labels in zip(_tested(study, sets), images, strict=True)
    )
    ledger.write(f"references/{key}.parquet", rows.to_parquet(index=False))
    return Reference(label="", key=key, metrics=as_judged(rows, study.judged_by))


def _tested(study: Study, sets: Sets) -> list[int]:
    """The test images of all trials."""
    trials = study.with_configurations(study.examples()[:1]).trials()
    return sorted({index for trial in trials for index in sets.split(trial).test})


def _key(study: Study, sets: Sets, images: list[np.ndarray]) -> str:
    content = hashlib.sha256()
    for labels in images:
        content.update(repr(labels.shape).encode() + labels.tobytes())
    return short_hash(
        {
            "version": EVALUATION_VERSION,
            "evaluation": study.judged_by.model_dump(mode="json"),
            "images": [sets.train.names[index] for index in _tested(study, sets)],
            "fingerprint": sets.train.fingerprint,
            "diameter_px": sets.train.diameter_px,
            "labels": content.hexdigest(),
        }
    )

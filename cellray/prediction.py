"""Use a finished trial's model: count cells on images without ground truth, or judge it on a dataset with it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from cellray.data import Dataset, Reading, list_images, outputs_of, planes_of, read_image
from cellray.device import prepare
from cellray.errors import DataError, LedgerError
from cellray.evaluation import SetScores, evaluate_set, predict_image
from cellray.ledger import Ledger
from cellray.model import build_model
from cellray.overlay import draw_overlay
from cellray.postprocess import OperatingPoint, postprocess
from cellray.record import TrialRecord
from cellray.scores import as_float, best_record
from cellray.study import EvaluationConfig


class ToCount(NamedTuple):
    """One image to count cells on."""

    file: Path
    name: str
    """Names what is made of it: no other image of its folder has it."""
    plane: int | None
    """Of a stack: which one, from 1 on."""


@dataclass(frozen=True)
class TrainedModel:
    """A trial's best weights with what belongs to them: how images are converted, and the operating point."""

    network: nn.Module
    point: OperatingPoint
    channels: int
    normalise: str
    reading: Reading
    precision: str
    diameter_px: float
    """Mean cell diameter of the set it was trained on."""
    evaluation: EvaluationConfig
    record: TrialRecord

    @classmethod
    def load(cls, ledger: Ledger, label: str, seed: int | None = None) -> TrainedModel:
        """The model of a configuration; without a seed, the one with the best validation score.

        Raises:
            LedgerError: If there is no such trial, or it has no usable model.
        """
        records = [r for r in ledger.records() if r.label == label and (seed is None or r.seed == seed)]
        record = best_record(records, records[0].settings.rules.rank_by) if records else None
        if record is None or record.operating_point is None:
            outcomes = {f"seed {r.seed}: {r.outcome}" for r in records}
            known = sorted({r.label for r in ledger.records()})
            state = ", ".join(sorted(outcomes)) or f"no record; {ledger.uri} has {', '.join(known) or 'none at all'}"
            raise LedgerError(f"no finished trial of {label!r}{'' if seed is None else f' with seed {seed}'}: {state}")
        settings = record.settings
        weights = ledger.load_checkpoint(record.key, "best")
        if weights is None:
            raise LedgerError(f"{ledger.uri}/trials/{record.key} has no checkpoint `best`")
        network = build_model(
            settings.model.name,
            base_features=settings.model.base_features,
            in_channels=settings.data.channels,
        )
        network.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)["model"])
        network.eval()
        return cls(
            network,
            record.operating_point,
            settings.data.channels,
            settings.data.normalise,
            Reading(settings.data.channel, settings.data.plane, settings.data.ignore),
            settings.training.precision,
            as_float(record.data.diameter_px),
            settings.rules,
            record,
        )

    def evaluate(self, dataset: Dataset, threads: int) -> SetScores:
        """Scores on a dataset at the trial's own operating point.

        The numbers are those of a study that names the dataset as an external set.
        """
        device = torch.device("cpu")
        prepare(device, threads)
        return evaluate_set(self.network, dataset, self.point, self.evaluation, device=device, precision=self.precision)

    def pictures(self, path: Path) -> tuple[list[ToCount], list[str]]:
        """The images of a folder, or one image, by their headers; and what is wrong with those that can't be read.

        Raises:
            DataError: If there are none.
        """
        files = list_images(path)
        found, problems = [], []
        for file, name in zip(files, outputs_of(files), strict=True):
            try:
                planes = planes_of(file, self.reading)
            except DataError as error:
                problems.append(str(error))
                continue
            width = len(str(len(planes)))
            found += [ToCount(file, name if k is None else f"{name}_{k:0{width}}", k) for k in planes]
        return found, problems

    def predict(
        self, pictures: list[ToCount], *, diameter_px: float | None, max_value: float | None, threads: int
    ) -> Iterator[tuple[ToCount, np.ndarray, np.ndarray] | DataError]:
        """Label the cells of every image: (picture, labels int32 (H, W), overlay uint8 (h, w, 3)).

        An image that can't be read gives its error instead, and the next one follows.

        Args:
            pictures: As `pictures` found them.
            diameter_px: Mean cell diameter there; None: as in training.
            max_value: Full-scale intensity, for 16-bit cameras that fill only part of it.
            threads: CPU threads.
        """
        device = torch.device("cpu")
        prepare(device, threads)
        for picture in pictures:
            try:
                image = read_image(
                    picture.file,
                    channels=self.channels,
                    normalise=self.normalise,
                    max_value=max_value,
                    reading=self.reading,
                    plane=picture.plane,
                )
            except DataError as error:
                yield error
                continue
            probs = predict_image(
                self.network, image, device=device, precision=self.precision, tile_px=self.evaluation.tile_px
            )
            labels = postprocess(probs, self.point, diameter_px=diameter_px or self.diameter_px)
            yield picture, labels, draw_overlay(image, labels, labels)

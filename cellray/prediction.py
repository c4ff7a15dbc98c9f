"""Use a finished trial's model: count cells on images without ground truth, or judge it on a dataset with it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cellray.data import Dataset, list_images, read_image
from cellray.device import prepare
from cellray.errors import LedgerError, StudyError
from cellray.evaluation import SetScores, evaluate_set, predict_image
from cellray.ledger import Ledger
from cellray.outside import is_dotted
from cellray.overlay import draw_overlay
from cellray.postprocess import OperatingPoint, postprocess
from cellray.record import TrialRecord
from cellray.scores import as_float, best_record
from cellray.study import EvaluationConfig


@dataclass(frozen=True)
class TrainedModel:
    """A trial's best weights with what belongs to them: how images are converted, and the operating point."""

    network: nn.Module
    point: OperatingPoint
    channels: int
    normalise: str
    precision: str
    diameter_px: float
    """Mean cell diameter of the set it was trained on."""
    evaluation: EvaluationConfig
    record: TrialRecord

    @classmethod
    def load(cls, ledger: Ledger, label: str, seed: int | None = None, *, allow_code: bool = False) -> TrainedModel:
        """The model of a configuration; without a seed, the one with the best validation score.

        Args:
            ledger: Of the study.
            label: The configuration's.
            seed: Of the trial.
            allow_code: Import a network of the user's own; else a trial of one is an error.

        Raises:
            LedgerError: If there is no such trial, or it has no usable model.
            StudyError: If its network can't be built here as it was.
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
        if is_dotted(settings.model.name) and not allow_code:
            raise StudyError(f"the network {settings.model.name!r} is code outside cellray; --allow-code runs it")
        network = settings.model.config.build(settings.data.channels)
        network.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)["model"])
        network.eval()
        return cls(
            network,
            record.operating_point,
            settings.data.channels,
            settings.data.normalise,
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

    def predict(
        self, path: Path, *, diameter_px: float | None, max_value: float | None, threads: int
    ) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        """Label the cells of every image of a folder: (file, labels int32 (H, W), overlay uint8 (h, w, 3)).

        Args:
            path: A folder of images, or one image.
            diameter_px: Mean cell diameter there; None: as in training.
            max_value: Full-scale intensity, for 16-bit cameras that fill only part of it.
            threads: CPU threads.
        """
        device = torch.device("cpu")
        prepare(device, threads)
        for file in list_images(path):
            image = read_image(file, channels=self.channels, normalise=self.normalise, max_value=max_value)
            probs = predict_image(
                self.network, image, device=device, precision=self.precision, tile_px=self.evaluation.tile_px
            )
            labels = postprocess(probs, self.point, diameter_px=diameter_px or self.diameter_px)
            yield file, labels, draw_overlay(image, labels, labels)

"""Use a finished trial's model: find cells on images without ground truth, or judge it on a dataset with it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from skimage.measure import regionprops_table
from tifffile import imwrite
from torch import nn

from cellray.data import Dataset, Reading, file_content, image_from_bytes, list_images, outputs_of, planes_of
from cellray.device import prepare
from cellray.errors import DataError, LedgerError, StudyError
from cellray.evaluation import SetScores, evaluate_set, predict_image
from cellray.ledger import Ledger
from cellray.outside import is_dotted
from cellray.overlay import draw_overlay
from cellray.postprocess import OperatingPoint, postprocess
from cellray.record import EnsembleRecord, TrialRecord
from cellray.scores import as_float, best_record
from cellray.study import EvaluationConfig

CELL_COLUMNS = ("label", "y", "x", "top", "left", "bottom", "right", "area_px", "score")


@dataclass(frozen=True)
class Cells:
    """What a model finds on one image."""

    labels: np.ndarray
    """Int32 (H, W): 1 … n, 0 is background."""
    probs: np.ndarray
    """Float32 (H, W) in [0, 1]."""

    @property
    def count(self) -> int:
        """Number of cells."""
        return int(self.labels.max(initial=0))

    def tiff(self) -> bytes:
        """The labels as a TIFF file of 16 bits, or of 32 where there are more than 65,535 cells."""
        file = io.BytesIO()
        kind = np.uint16 if self.count < 2**16 else np.uint32
        imwrite(file, self.labels.astype(kind), compression="zlib")
        return file.getvalue()

    def table(self) -> pd.DataFrame:
        """One row a cell, lengths and places in pixels from the upper left corner.

        Columns: `label`; `y`, `x`: centroid; `top`, `left`, `bottom`, `right`: bounding box, the last two exclusive;
        `area_px`; `score`: mean probability of its pixels.
        """
        found = regionprops_table(
            self.labels, self.probs, properties=("label", "centroid", "bbox", "area", "intensity_mean")
        )
        table = pd.DataFrame(found).set_axis(CELL_COLUMNS, axis=1)
        return table.astype({"area_px": int})


def chosen_trial(ledger: Ledger, label: str | None = None, seed: int | None = None) -> tuple[TrialRecord, bytes]:
    """The finished trial with the best validation score, and the contents of its best checkpoint.

    Args:
        ledger: Of the study.
        label: Only of this configuration; None: of any.
        seed: Only with this seed; None: with any.

    Raises:
        LedgerError: If there is no such trial, or its checkpoint is missing or damaged.
    """
    known = ledger.records()
    records = [r for r in known if label in (None, r.label) and seed in (None, r.seed)]
    record = best_record(records, records[0].settings.rules.rank_by) if records else None
    if record is None or record.operating_point is None:
        asked = "" if label is None else f" of {label!r}"
        asked += "" if seed is None else f" with seed {seed}"
        outcomes = ", ".join(sorted({f"{r.label}, seed {r.seed}: {r.outcome}" for r in records}))
        labels = ", ".join(sorted({r.label for r in known}))
        state = outcomes or f"no record; {ledger.uri} has {labels or 'none at all'}"
        raise LedgerError(f"no finished trial{asked}: {state}")
    checkpoint = best_weights(ledger, record)
    weights_in(checkpoint, record)
    return record, checkpoint


def best_weights(ledger: Ledger, record: TrialRecord) -> bytes:
    """The contents of a trial's best checkpoint.

    Raises:
        LedgerError: If it is missing.
    """
    checkpoint = ledger.load_checkpoint(record.key, "best")
    if checkpoint is None:
        raise LedgerError(
            f"{ledger.uri}/trials/{record.key} has no checkpoint `best`; remove its trial.json, and the sweep "
            "trains it again"
        )
    return checkpoint


def weights_in(checkpoint: bytes, record: TrialRecord) -> dict[str, torch.Tensor]:
    """The weights in the checkpoint `best` of a trial.

    Raises:
        LedgerError: If it is damaged, with what to do.
    """
    try:
        weights: dict[str, torch.Tensor] = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)[
            "model"
        ]
    except Exception as error:  # torch and zip files have many names for it
        raise _damaged(record, error) from error
    return weights


def _damaged(record: TrialRecord, error: Exception) -> LedgerError:
    folder, problem = f"trials/{record.key}", str(error).partition("\n")[0][:200] or type(error).__name__
    return LedgerError(
        f"{record.label}, seed {record.seed}: {folder}/checkpoints/best.pt is damaged ({problem}); "
        f"remove {folder}/trial.json, and the sweep trains it again"
    )


class ToCount(NamedTuple):
    """One image to count cells on."""

    file: Path
    name: str
    """Names what is made of it: no other image of its folder has it."""
    plane: int | None
    """Of a stack: which one, from 1 on."""


class MeanProbability(nn.Module):
    """Several networks as one: the logit of the mean of their probabilities, so that all else works as for one.

    Args:
        networks: Of one kind; each returns logits (N, 1, H, W).
    """

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.size_multiple = getattr(networks[0], "size_multiple", 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1, H, W) of images (N, C, H, W)."""
        total = sum(network(images).float().sigmoid() for network in self.networks)
        return torch.logit(total / len(self.networks))


@dataclass(frozen=True)
class TrainedModel:
    """Trained weights with what belongs to them: how images are converted, and the operating point.

    The best weights of one trial, or of several as one model (`ensemble`).
    """

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
    """Of the trial; of an ensemble, of its first member."""
    ensemble: EnsembleRecord | None = None
    members: tuple[TrainedModel, ...] = ()
    """Of an ensemble."""

    @property
    def title(self) -> str:
        """Whose it is."""
        return self.ensemble.title if self.ensemble else f"{self.record.label}, seed {self.record.seed}"

    @classmethod
    def load(
        cls, ledger: Ledger, label: str | None = None, seed: int | None = None, *, allow_code: bool = False
    ) -> TrainedModel:
        """The model that `chosen_trial` gives.

        Args:
            ledger: Of the study.
            label: The configuration's.
            seed: Of the trial.
            allow_code: Import a network of the user's own; else a trial of one is an error.

        Raises:
            LedgerError: If there is no such trial, or it has no usable model.
            StudyError: If its network can't be built here as it was.
        """
        record, checkpoint = chosen_trial(ledger, label, seed)
        return cls.of(record, checkpoint, allow_code=allow_code)

    @classmethod
    def stored(cls, ledger: Ledger, record: TrialRecord, *, allow_code: bool = False) -> TrainedModel:
        """The model of a finished trial of a ledger; arguments and errors as for `load`."""
        return cls.of(record, best_weights(ledger, record), allow_code=allow_code)

    @classmethod
    def together(cls, members: list[TrainedModel], ensemble: EnsembleRecord) -> TrainedModel:
        """Several trained models of one configuration as one.

        Args:
            members: In the order of the ensemble's seeds.
            ensemble: Holds the operating point.
        """
        network = MeanProbability([member.network for member in members])
        point = ensemble.operating_point
        return replace(members[0], network=network, point=point, ensemble=ensemble, members=tuple(members))

    @classmethod
    def of(cls, record: TrialRecord, checkpoint: bytes, *, allow_code: bool = False) -> TrainedModel:
        """The model of a finished trial.

        Args:
            record: Of the trial, with its operating point.
            checkpoint: Contents of its `best.pt`.
            allow_code: As for `load`.

        Raises:
            LedgerError: If the checkpoint is damaged.
            StudyError: As `load`.
        """
        assert record.operating_point is not None
        settings = record.settings
        if is_dotted(settings.model.name) and not allow_code:
            raise StudyError(f"the network {settings.model.name!r} is code outside cellray; --allow-code runs it")
        network = settings.model.config.build(settings.data.channels)
        weights = weights_in(checkpoint, record)
        try:
            network.load_state_dict(weights)
        except Exception as error:
            raise _damaged(record, error) from error
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

    def converted(
        self, data: bytes, where: str, *, max_value: float | None = None, plane: int | None = None
    ) -> np.ndarray:
        """An image file's content as the network takes it, uint8 (H, W, C); arguments as of `image_from_bytes`."""
        return image_from_bytes(
            data,
            where,
            channels=self.channels,
            normalise=self.normalise,
            max_value=max_value,
            reading=self.reading,
            plane=plane,
        )

    def find_cells(self, image: np.ndarray, diameter_px: float | None = None) -> Cells:
        """The cells of one converted image, uint8 (H, W, C), on the CPU.

        Args:
            image: As `converted` gives it.
            diameter_px: Mean cell diameter there; None: as in training.
        """
        device = torch.device("cpu")
        probs = predict_image(
            self.network, image, device=device, precision=self.precision, tile_px=self.evaluation.tile_px
        )
        return Cells(postprocess(probs, self.point, diameter_px=diameter_px or self.diameter_px), probs)

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
    ) -> Iterator[tuple[ToCount, Cells, np.ndarray] | DataError]:
        """Find the cells of every image: (picture, cells, overlay uint8 (h, w, 3)).

        An image that can't be read gives its error instead, and the next one follows.

        Args:
            pictures: As `pictures` found them.
            diameter_px: Mean cell diameter there; None: as in training.
            max_value: Full-scale intensity, for 16-bit cameras that fill only part of it.
            threads: CPU threads.
        """
        prepare(torch.device("cpu"), threads)
        for picture in pictures:
            try:
                data = file_content(picture.file)
                image = self.converted(data, str(picture.file), max_value=max_value, plane=picture.plane)
            except DataError as error:
                yield error
                continue
            cells = self.find_cells(image, diameter_px)
            yield picture, cells, draw_overlay(image, cells.labels, cells.labels)

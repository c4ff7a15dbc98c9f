"""All seeds of a configuration as one model: the mean of their probabilities, at an operating point of its own.

The point is chosen on validation images as a trial's is, and no network has a say on an image that it was trained on.
With one split for all seeds (`data.split_seed`) these are the validation images, predicted by every member. Where each
seed draws its own validation images, each of them is predicted by the members that hadn't trained on it: the mean is
then over fewer networks than it will be on new images, which is said wherever the score is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

from cellray.device import prepare
from cellray.errors import DataError, LedgerError
from cellray.evaluation import predict_logits
from cellray.ledger import Ledger
from cellray.operating_point import choose_point
from cellray.prediction import TrainedModel, chosen_trial
from cellray.record import EnsembleRecord, TrialRecord
from cellray.study import EVALUATION_VERSION, Trial, short_hash
from cellray.trial import Sets


class Unseen(NamedTuple):
    """Images that some members of an ensemble weren't trained on, by their number in the training set."""

    probs: dict[int, np.ndarray]
    """Mean probability (H, W) of those members."""
    n_members: dict[int, int]
    """How many they are."""


def load_ensemble(
    ledger: Ledger,
    trials: Iterable[Trial],
    label: str | None = None,
    *,
    open_sets: Callable[[], Sets],
    allow_code: bool = False,
    threads: int = 1,
) -> TrainedModel:
    """The ensemble of a configuration's finished trials; its operating point is chosen when it is first asked for.

    Args:
        ledger: Of the study; keeps the operating point.
        trials: Of the study.
        label: The configuration's; None: that of the trial with the best validation score.
        open_sets: Opens the study's data, which is needed to choose the point.
        allow_code: As for `TrainedModel.load`.
        threads: CPU threads.

    Raises:
        DataError: If the study's images aren't those that the trials were trained on any more.
        LedgerError: If the configuration has fewer than two finished trials, or one has no usable model.
        StudyError: As `TrainedModel.load`.
    """
    label = label or chosen_trial(ledger)[0].label
    keys = [trial.key for trial in ledger.plan() if trial.label == label]
    records = sorted(ledger.records(keys), key=lambda record: record.seed)
    finished = [record for record in records if record.outcome == "finished" and record.operating_point is not None]
    if len(finished) < 2:
        counts = ", ".join(f"seed {record.seed} {record.outcome}" for record in records) or "no record"
        raise LedgerError(f"an ensemble needs two finished seeds or more of {label!r}; there are: {counts}")
    models = [TrainedModel.stored(ledger, record, allow_code=allow_code) for record in finished]
    known = ledger.ensemble(key := _key(finished))
    if known is None:
        known = _choose(key, models, list(trials), open_sets(), len(records) - len(finished), threads)
        ledger.write_ensemble(known)
    return TrainedModel.together(models, known)


def _choose(
    key: str, models: list[TrainedModel], trials: list[Trial], sets: Sets, n_left_out: int, threads: int
) -> EnsembleRecord:
    """Choose the operating point on images that those who predict them weren't trained on."""
    found = predict_unseen(models, trials, sets, threads)
    train, first = sets.train, models[0]
    truth: dict[int, np.ndarray] = {index: train.labels(index) for index in found.probs}
    void = {index: mask for index in found.probs if (mask := train.void(index)) is not None}
    choice = choose_point(found.probs, truth, train.diameter_px, first.evaluation, void)
    return EnsembleRecord(
        key=key,
        label=first.record.label,
        seeds=tuple(model.record.seed for model in models),
        members=tuple(model.record.key for model in models),
        n_left_out=n_left_out,
        operating_point=choice.point,
        operating_point_score=choice.score,
        n_images=len(found.probs),
        fewest_members=min(found.n_members.values()),
        most_members=max(found.n_members.values()),
    )


def predict_unseen(models: list[TrainedModel], trials: list[Trial], sets: Sets, threads: int) -> Unseen:
    """Each validation image of any member, predicted by the members that have it for validation.

    Raises:
        DataError: If the images, or their split, aren't those of a member's training.
    """
    device = torch.device("cpu")
    prepare(device, threads)
    by_pair = {(trial.label, trial.seed): trial for trial in trials}
    sums: dict[int, np.ndarray] = {}
    n_members: dict[int, int] = {}
    for model in models:
        indices = _validation_images(model.record, by_pair.get(model.record.pair), sets)
        logits = predict_logits(
            model.network,
            sets.train,
            indices,
            device=device,
            precision=model.precision,
            tile_px=model.evaluation.tile_px,
        )
        for index, each in logits:
            probs = each.sigmoid().numpy()
            sums[index] = sums[index] + probs if index in sums else probs
            n_members[index] = n_members.get(index, 0) + 1
    return Unseen({index: total / np.float32(n_members[index]) for index, total in sums.items()}, n_members)


def _validation_images(record: TrialRecord, trial: Trial | None, sets: Sets) -> list[int]:
    split = None if trial is None else sets.split(trial)
    if split is None or (sets.train.fingerprint, split.hash) != (record.data.fingerprint, record.data.split_hash):
        raise DataError(
            f"{record.label}, seed {record.seed} was trained on other images, or another split of them, than the study "
            "names now: which images it hasn't seen can't be told, and so no operating point chosen"
        )
    return split.val  # with `data.folds` of the first training, whose weights are the trial's


def _key(records: list[TrialRecord]) -> str:
    """Short hash of what decides the operating point."""
    return short_hash(
        {
            "version": EVALUATION_VERSION,
            "members": [record.key for record in records],
            "evaluation": records[0].settings.rules.model_dump(mode="json"),
        }
    )

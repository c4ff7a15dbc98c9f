"""What a trial does, counted without doing any of it: steps, pixels, and the memory that a step takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cellray.forecast.child import FORWARD_SHARE, megapixels
from cellray.study import Trial
from cellray.training.compiling import COMPILE_S
from cellray.trial import Sets, new_network

RANGE_TEST_SHARE = 0.9
"""Of a range test's steps: it ends where training diverges (mean of the tests in docs/results/rates.md)."""
BYTES = 4
"""Of a weight, and of each of Adam's two moments."""
LIBRARIES_MB = 540.0
"""Of a process that has imported torch and Ray Tune, about."""
WORKSPACE_SHARE = 0.1
"""What a training step takes beside the tensors that it keeps for the way back, as a share of these, about."""
SLOW_MPX_S = 0.3
"""Megapixels that a CPU trains in a second, at least about, with c-ResUnet's 16 features; fewer features are faster by
the square; other networks are taken for as slow as that."""
PROBED_STEPS = 5
"""Training steps that a probe takes at least, its validation counted as some."""


@dataclass(frozen=True)
class Work:
    """What one trial does from its start to its record."""

    step_mpx: float
    """Megapixels of a training step."""
    steps: int
    steps_per_epoch: int
    tested: float
    """Steps of the range test."""
    validations: int
    val_mpx: float
    judged_mpx: float
    """Of all sets that are judged, beside the validation images."""
    batch_norm_batches: int
    validate_every: int
    trainings: int = 1
    """In which these steps and validations are, with as many operating points to be chosen."""

    @classmethod
    def of(cls, trial: Trial, sets: Sets) -> Work:
        settings, split = trial.training, sets.split(trial)
        steps_per_epoch = math.ceil(len(split.train) / settings.batch_size)
        steps, n = settings.steps or (settings.epochs or 0) * steps_per_epoch, len(trial.trainings)
        external_mpx = sum(megapixels(dataset, range(len(dataset))) for dataset in sets.external.values())
        return cls(
            step_mpx=settings.batch_size * settings.crop_px**2 / 1e6,
            steps=n * steps,
            steps_per_epoch=steps_per_epoch,
            tested=n * RANGE_TEST_SHARE * settings.range_test.steps if settings.lr == "range_test" else 0.0,
            validations=n * math.ceil(steps / steps_per_epoch / settings.validate_every),
            val_mpx=megapixels(sets.train, split.val),
            judged_mpx=megapixels(sets.train, split.test) + external_mpx,
            batch_norm_batches=settings.batch_norm_batches,
            validate_every=settings.validate_every,
            trainings=n,
        )


def times_at(work: Work, rate: float) -> tuple[dict[str, float], dict[str, float]]:
    """What probes of training and of judging would say where a trial trains so many megapixels a second.

    Only the network is counted; the search for the operating point and the matching of cells cost little beside it.
    """
    step_s = work.step_mpx / rate
    forward = {"predict_s": FORWARD_SHARE / rate, "search_s": 0.0, "judge_s": 0.0}
    return {"step_s": step_s, "forward_s": FORWARD_SHARE * step_s, "validation_s": FORWARD_SHARE / rate}, forward


def probing_s(trial: Trial, work: Work) -> float:
    """Seconds that a probe of the trial's training takes on a CPU, at most about; with a compilation if it has one."""
    steps_s = PROBED_STEPS * work.step_mpx / (SLOW_MPX_S * (16 / (trial.model.base_features or 16)) ** 2)
    return steps_s + (COMPILE_S if trial.training.compile == "on" else 0.0)


def memory_mb(trial: Trial, n_workers: int, on_gpu: bool) -> float:
    """Memory that one worker takes for a training step in 32 bits: of its GPU by tensors, or of its process.

    The network runs without numbers, on torch's `meta` device, and what it keeps for the way back is added up.
    """
    network, training = new_network(trial, "meta"), trial.training
    batch = -(-training.batch_size // n_workers)
    images = torch.empty(batch, trial.data.channels, training.crop_px, training.crop_px, device="meta")
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    activations = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
    total = activations * (1 + WORKSPACE_SHARE) + 4 * weights_mb(trial) * 2**20  # with gradient and two moments
    return total / 2**20 + (0.0 if on_gpu else LIBRARIES_MB)


def weights_mb(trial: Trial) -> float:
    """Size of a trial's best weights."""
    return BYTES * sum(p.numel() for p in new_network(trial, "meta").parameters()) / 2**20

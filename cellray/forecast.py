"""What a study will cost, from a probe of a few seconds that trains nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from cellray.device import autocast, pick_device, prepare
from cellray.losses.maps import maps_of
from cellray.study import Study, Trial
from cellray.trial import Planned, Sets, new_network

RECORD_MB = 1.5
"""Tables and overlays of one trial, about."""
JUDGE_S_PER_MPX = 0.35
"""Post-processing and matching of a megapixel, at both operating points, about."""
SEARCH_S_PER_MPX = 0.4
"""Choosing the operating point, a megapixel of validation images, about; 0.1 if the network is sure, 0.8 if not."""


@dataclass(frozen=True)
class Forecast:
    """The cost of the trials still to do."""

    n_todo: int
    trial_s: float
    """Seconds of one trial alone."""
    source: str
    """Where that comes from."""
    concurrent: int
    disk_mb: float

    @property
    def total_s(self) -> float:
        return math.ceil(self.n_todo / self.concurrent) * self.trial_s


def forecast(study: Study, sets: Sets, plan: list[Planned], *, cpus: int, gpus: int, limit: int | None) -> Forecast:
    """Time and disk of a study's missing trials.

    The time comes from the study's own records where it has any, else from a probe: a few steps of one trial's
    network on random pixels.

    Args:
        study: The study.
        sets: Its data.
        plan: Its trials and what is done of them.
        cpus: Of the machine or cluster.
        gpus: Of the machine or cluster.
        limit: `--max-concurrent`, if given.
    """
    todo = [planned.trial for planned in plan if not planned.done]
    took = [sum(p.stored["seconds"].values()) for p in plan if p.stored is not None and p.stored["steps"]]
    resources = study.resources
    room = [cpus // resources.cpus] + ([gpus // resources.gpus] if resources.gpus else [])
    concurrent = int(max(min([*room, limit or resources.max_concurrent or math.inf]), 1))
    if took:
        trial_s, source = sum(took) / len(took), f"mean of {len(took)} records"
    elif todo:
        trial_s, source = _probe(todo[0], sets, study), "probe"
    else:
        trial_s, source = 0.0, "nothing to do"
    n_parameters = sum(p.numel() for p in new_network(plan[0].trial, "meta").parameters())
    # weights in `best`; weights and Adam's two moments in `last`
    disk_mb = len(todo) * (4 * 4 * n_parameters / 2**20 + RECORD_MB)
    return Forecast(len(todo), trial_s, source, concurrent, disk_mb)


def _probe(trial: Trial, sets: Sets, study: Study) -> float:
    """Seconds of one trial: timed steps and predictions, times their number."""
    device = pick_device(study.resources.gpus)
    threads = torch.get_num_threads()
    prepare(device, max(int(study.resources.cpus), 1))
    settings, channels = trial.training, trial.data.channels
    network = new_network(trial, device)
    loss = trial.loss.build()
    side = settings.crop_px
    images = torch.rand(settings.batch_size, channels, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    cell = np.pad(np.ones((4, 4), np.int64), 2)
    labels = np.kron(np.arange(1, (side // 8) ** 2 + 1).reshape(side // 8, -1), cell)
    target = torch.from_numpy(labels > 0).float().expand(settings.batch_size, 1, side, side).to(device)
    maps = {k: v.expand_as(target).to(device) for k, v in maps_of(loss.maps, labels[None]).items()}

    def step() -> None:
        with autocast(device, settings.precision):
            logits = network(images)
        loss(logits.float(), target, maps).backward()

    def predict() -> None:
        with torch.inference_mode(), autocast(device, settings.precision):
            network(images)

    step_s, predict_s = _seconds(step, device), _seconds(predict, device)
    torch.set_num_threads(threads)
    mpx = settings.batch_size * side**2 / 1e6
    split = sets.split(trial)
    steps_per_epoch = math.ceil(len(split.train) / settings.batch_size)
    steps = settings.steps or (settings.epochs or 0) * steps_per_epoch
    validations = math.ceil(steps / steps_per_epoch / settings.validate_every)
    val_mpx = _mpx(sets.train.shapes, split.val)
    judged_mpx = _mpx(sets.train.shapes, split.test) + sum(
        _mpx(d.shapes, range(len(d))) for d in sets.external.values()
    )
    tested = settings.range_test.steps if settings.lr == "range_test" else 0
    return (
        (steps + tested) * step_s
        + validations * (settings.batch_norm_batches * predict_s + val_mpx / mpx * predict_s)
        + (val_mpx + judged_mpx) * (predict_s / mpx + JUDGE_S_PER_MPX)
        + val_mpx * SEARCH_S_PER_MPX
    )


def _seconds(work: Callable[[], None], device: torch.device, n: int = 3) -> float:
    """Seconds of one call, the fastest of a few after a first one that counts for nothing."""
    times = []
    for _ in range(n + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _mpx(shapes: list[tuple[int, int]], indices: Iterable[int]) -> float:
    return sum(shapes[i][0] * shapes[i][1] for i in indices) / 1e6

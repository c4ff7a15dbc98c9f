"""What a probe does in its own process: trains a few steps, and judges a network that has learned."""

from __future__ import annotations

import json
import math
import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from cellray.data import Dataset, Split
from cellray.device import peak_memory_mb, pick_device, prepare, release_memory
from cellray.evaluation import BATCH_PX, JudgedSets, evaluate, predict_logits
from cellray.study import EvaluationConfig, Trial
from cellray.training import fit
from cellray.trial import Sets, new_network

MOST_STEPS, LONG_ENOUGH_S = 30, 1.5
"""A probe times so many steps, or for so long; at least one."""
BATCH_NORM_BATCHES = 2
"""At most so many in a probe's validation."""
FORWARD_SHARE = 1 / 3
"""Of a training step: its forward pass."""

Times = dict[str, float]
Clock = Callable[[], float]


def answer_jobs() -> None:
    """Read a task (`probe.ProbeTask`) from the standard input, answer with one line of JSON for each of its jobs."""
    import ray.tune  # noqa: F401  # so that this process is as large as a sweep's worker

    task = pickle.loads(sys.stdin.buffer.read())
    device = pick_device(task.gpus)
    prepare(device, task.threads)
    sets = Sets.open(task.data)
    for job in task.jobs:
        work = {"training": time_training, "judging": time_judging}[job.what]
        clock = time.process_time if task.alone_on_cpu else time.perf_counter
        try:
            _forget_peak(device)
            answer: dict[str, float | str] = {**work(job.trial, sets, device, clock), "peak_mb": _peak_mb(device)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
        release_memory()


def time_training(trial: Trial, sets: Sets, device: torch.device, clock: Clock) -> Times:
    """A few real training steps and one validation of a trial.

    Returns:
        ``step_s``, seconds of a step (the median after the first); ``forward_s``, of its forward pass, about;
        ``validation_s``, of validating a megapixel, beside batch norm's own batches.
    """
    split = sets.split(trial)
    # No more images than a batch, so that every step is an epoch and told of.
    train = split.train[: trial.training.batch_size]
    part = Split(train, _some(sets.train, split.val), [], split.hash)
    *steps, last = _train(trial, sets, part, device, clock, 3)
    n = min(math.ceil(LONG_ENOUGH_S / steps[-1]), MOST_STEPS)
    if n > 1:
        *steps, last = _train(trial, sets, part, device, clock, n + 2)
    step_s = statistics.median(steps)
    forward_s = FORWARD_SHARE * step_s
    prepared_s = min(trial.training.batch_norm_batches, BATCH_NORM_BATCHES) * forward_s
    validation_s = max(last - step_s - prepared_s, 0.0) / megapixels(sets.train, part.val)
    return {"step_s": step_s, "forward_s": forward_s, "validation_s": validation_s}


def _train(trial: Trial, sets: Sets, split: Split, device: torch.device, clock: Clock, steps: int) -> list[float]:
    """Seconds of each step after the first, which is always slow; the last one has the validation with it."""
    changes = {
        "steps": steps,
        "epochs": None,
        "lr": 1e-4,
        "validate_every": steps,
        "batch_norm_batches": min(trial.training.batch_norm_batches, BATCH_NORM_BATCHES),
    }
    training = trial.training.model_copy(update=changes)
    # Balancing comes once a training, and afterwards steps are as without.
    loss = trial.loss.model_copy(update={"balance": "none"})
    ends: list[float] = []
    fit(
        trial.model_copy(update={"training": training, "loss": loss}),
        sets.train,
        split,
        device=device,
        load=lambda name: None,
        save=lambda name, data: None,
        on_epoch=lambda row: ends.append(clock()),
    )
    return [after - before for before, after in pairwise(ends)]


def time_judging(trial: Trial, sets: Sets, device: torch.device, clock: Clock) -> Times:
    """Predictions of the trial's network, and the judgement of what a trained one would predict.

    Returns:
        Seconds a megapixel: ``predict_s``; ``search_s``, of a validation image, with the search for the operating
        point; ``judge_s``, of an image of any other set.
    """
    split = sets.split(trial)
    others = {"test": (sets.train, split.test)} | {
        name: (dataset, list(range(len(dataset)))) for name, dataset in sets.external.items()
    }
    parts = {name: (dataset, _some(dataset, indices)) for name, (dataset, indices) in others.items()}
    dataset, indices = sets.train, _some(sets.train, split.val)
    val_mpx = megapixels(dataset, indices)
    search_s = _judge({"val": (dataset, indices)}, trial.evaluation, clock)
    # The operating point is given here; that of one validation image, since `evaluate` wants some, costs little.
    fixed = trial.evaluation.model_copy(update={"operating_point": trial.evaluation.shared_point})
    judge_s = _judge({"val": (dataset, indices[:1]), **parts}, fixed, clock)
    network = new_network(trial, device)
    _predict(network, dataset, indices[:1], trial, device, clock)  # the first time is slow on a GPU
    wholes = [(dataset, split.val), *others.values()]
    batches = [(of, _largest_batch(of, members, trial.evaluation.tile_px)) for of, members in wholes]
    predicted_s = sum(_predict(network, *batch, trial, device, clock) for batch in batches)
    predict_s = predicted_s / sum(megapixels(*batch) for batch in batches)
    judged_mpx = megapixels(dataset, indices[:1]) + sum(megapixels(*part) for part in parts.values())
    return {"predict_s": predict_s, "search_s": search_s / val_mpx, "judge_s": judge_s / judged_mpx}


def _predict(
    network: nn.Module, dataset: Dataset, indices: list[int], trial: Trial, device: torch.device, clock: Clock
) -> float:
    """Seconds that predicting some images takes."""
    precision, tile_px = trial.training.precision, trial.evaluation.tile_px
    started = clock()
    for _ in predict_logits(network, dataset, indices, device=device, precision=precision, tile_px=tile_px):
        pass
    return clock() - started


def _judge(sets: JudgedSets, settings: EvaluationConfig, clock: Clock) -> float:
    """Seconds that judging takes when predicting costs nothing."""
    learned = {name: [(i, _learned(dataset, i)) for i in indices] for name, (dataset, indices) in sets.items()}
    started = clock()
    evaluate(lambda name: iter(learned[name]), sets, settings)
    return clock() - started


def _learned(dataset: Dataset, index: int) -> Tensor:
    """Logits (H, W) that find most cells of an image: the true mask with soft, uncertain borders."""
    rng = np.random.default_rng(index)
    soft = ndimage.gaussian_filter((dataset.labels(index) > 0).astype(np.float32), 3.0)
    noise = ndimage.gaussian_filter(rng.standard_normal(soft.shape).astype(np.float32), 1.5)
    return torch.from_numpy(8 * (soft - 0.5) + 3 * noise)


def _some(dataset: Dataset, indices: Sequence[int]) -> list[int]:
    """Some images, evenly picked, as many as are predicted at once; one at least. Those of one shape stand together."""
    n = max(int(len(indices) * min(BATCH_PX / 1e6 / megapixels(dataset, indices), 1)), 1)
    chosen = [indices[k * len(indices) // n] for k in range(n)]
    return sorted(chosen, key=lambda index: dataset.shapes[index])


def _largest_batch(dataset: Dataset, indices: Sequence[int], tile_px: int) -> list[int]:
    """Of the images that are predicted together, those that have most pixels: they take most memory."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        by_shape.setdefault(dataset.shapes[index], []).append(index)
    batches = [
        members[: 1 if max(shape) > tile_px else max(BATCH_PX // (shape[0] * shape[1]), 1)]
        for shape, members in by_shape.items()
    ]
    return max(batches, key=lambda batch: megapixels(dataset, batch))


def megapixels(dataset: Dataset, indices: Iterable[int]) -> float:
    """Size of some images together."""
    return sum(dataset.shapes[index][0] * dataset.shapes[index][1] for index in indices) / 1e6


def _forget_peak(device: torch.device) -> None:
    """Begin to look for the most memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")  # the peak of resident memory becomes what is resident now
    except OSError:
        pass


def _peak_mb(device: torch.device) -> float:
    """Most memory since then: of the GPU by tensors, else resident in this process, libraries included."""
    if device.type == "cpu" and os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as stream:
            line = next((line for line in stream if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) / 1024
    return peak_memory_mb(device)

"""Probes of what trials do, run as many at once as trials will run, and remembered on this machine."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from cellray.data import default_cache_dir
from cellray.device import ALLOCATOR_ENV, describe, pick_device
from cellray.errors import StudyError
from cellray.study import DataConfig, LossConfig, ResourcesConfig, Trial, short_hash
from cellray.study.loss import NamedLoss
from cellray.trial import Sets

PROBE_VERSION = 2
"""Part of the name of a remembered probe: raised when a probe measures something else."""
MOST_PROCESSES = 16
"""Probes run at once, at most."""

ProbesDone = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One thing to time, for one trial."""

    what: Literal["training", "judging"]
    trial: Trial


@dataclass(frozen=True)
class ProbeTask:
    """What one probing process is told."""

    data: DataConfig
    jobs: list[Job]
    gpus: float
    threads: int
    alone_on_cpu: bool
    """Whether it computes with one thread that has a processor for itself. Then its processor time is counted: what
    other programs take from the machine meanwhile would make a remembered probe wrong for good."""


def run_probes(
    jobs: Sequence[Job],
    sets: Sets,
    resources: ResourcesConfig,
    *,
    n_at_once: int,
    progress: ProbesDone = lambda done, of: None,
) -> list[dict[str, float]]:
    """Times and peak memory of each job, measured now or remembered from an earlier plan on this machine.

    As many processes as trials will run at once work through the same list, since two trials on two cores slow each
    other down; a time is their mean, a peak their highest. A trial of several workers is probed as that many processes
    with a share of the batch each; what their exchange of gradients costs isn't seen.

    Args:
        jobs: What to time.
        sets: The study's data.
        resources: Of one trial.
        n_at_once: Trials at once.
        progress: Told how many jobs are done.

    Raises:
        StudyError: If a probe fails, as a trial would.
    """
    n_processes = max(min(n_at_once * resources.n_workers, MOST_PROCESSES), 1)
    device, threads = pick_device(resources.n_gpus), max(int(resources.cpus), 1)
    jobs = [_as_worker(job, resources.n_workers) for job in jobs]
    where = {"device": describe(device, threads), "torch": torch.__version__, "at once": n_processes}
    files = [default_cache_dir() / "probes" / f"{_name(job, sets, where)}.json" for job in jobs]
    known = [_remembered(file) for file in files]
    todo = [k for k, answer in enumerate(known) if answer is None]
    progress(len(jobs) - len(todo), len(jobs))
    if todo:
        alone_on_cpu = device.type == "cpu" and threads == 1 and resources.cpus >= 1
        task = ProbeTask(jobs[0].trial.data, [jobs[k] for k in todo], resources.n_gpus, threads, alone_on_cpu)
        answers = _measure(task, n_processes, lambda n: progress(len(jobs) - len(todo) + n, len(jobs)))
        for k, answer in zip(todo, answers, strict=True):
            known[k] = answer
            _remember(files[k], answer)
    return [answer for answer in known if answer is not None]


def _as_worker(job: Job, n_workers: int) -> Job:
    """The job with the part of a batch that each worker of a trial has; several don't compile."""
    if n_workers == 1:
        return job
    training, trial = job.trial.training, job.trial
    changes = {"batch_size": -(-training.batch_size // n_workers), "compile": "off"}
    return replace(job, trial=trial.model_copy(update={"training": training.model_copy(update=changes)}))


def work_of(loss: LossConfig) -> list[object]:
    """What of a loss decides its time: its terms and their settings, less the plain numbers among them."""
    terms: Sequence[NamedLoss] = [term for term in loss.terms if term.weight] or [loss]
    return [
        [term.name, term.code, {name: value for name, value in term.settings.items() if not isinstance(value, float)}]
        for term in terms
    ] + [loss.double_activation]


def _name(job: Job, sets: Sets, where: dict[str, object]) -> str:
    """Hash of what decides a job's time and memory."""
    trial, training = job.trial, job.trial.training
    facts: dict[str, object] = {
        "version": PROBE_VERSION,
        "what": job.what,
        **where,
        "model": trial.model.model_dump(mode="json"),
        "precision": training.precision,
        "images": [sets.train.fingerprint, sorted(dataset.fingerprint for dataset in sets.external.values())],
    }
    if job.what == "training":
        facts |= {
            "loss": work_of(trial.loss),
            "training": training.model_dump(mode="json", include={"batch_size", "crop_px", "augment"}),
            "batch norm": bool(training.batch_norm_batches),
        }
        if training.compile == "on":
            facts["compiled"] = True
    else:
        facts["evaluation"] = trial.evaluation.model_dump(mode="json")
    return short_hash(facts)


def _measure(task: ProbeTask, n_processes: int, progress: Callable[[int], None]) -> list[dict[str, float]]:
    """The answers to a task's jobs, from so many processes at once."""
    content, n_gpus = pickle.dumps(task), torch.cuda.device_count() if task.gpus else 0
    sharing = int(1 / task.gpus + 1e-9) if 0 < task.gpus < 1 else 1  # processes on one GPU
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for place in range(n_processes):
            # The workers of a sweep have these, too. What the study may import is where this process finds it.
            env = {**os.environ, **ALLOCATOR_ENV, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            if n_gpus:
                env["CUDA_VISIBLE_DEVICES"] = _gpu(place // sharing % n_gpus)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from cellray.forecast.child import answer_jobs; answer_jobs()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
            )
            processes.append(process)
            assert process.stdin
            process.stdin.write(content)
            process.stdin.close()
        answers = []
        for done, job in enumerate(task.jobs, 1):
            answers.append(_together([_answer(process) for process in processes], job))
            progress(done)
        return answers
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _answer(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout
    line = process.stdout.readline()
    return json.loads(line) if line else {"error": f"its process ended with exit code {process.wait()}"}


def _together(answers: list[dict[str, Any]], job: Job) -> dict[str, float]:
    """One answer from those of all processes."""
    for answer in answers:
        if "error" in answer:
            raise StudyError(
                f"{job.trial.label}: the probe of its {job.what} failed, as a trial would: {answer['error']}"
            )
    means = {name: sum(answer[name] for answer in answers) / len(answers) for name in answers[0]}
    return means | {"peak_mb": max(answer["peak_mb"] for answer in answers)}


def _gpu(number: int) -> str:
    """The GPU that torch here calls by this number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


def _remembered(file: Path) -> dict[str, float] | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _remember(file: Path, answer: dict[str, float]) -> None:
    """Keep an answer; a cache that can't be written only costs the time of another probe."""
    aside = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(answer))
        aside.replace(file)
    except OSError:
        aside.unlink(missing_ok=True)

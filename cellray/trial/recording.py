"""A trial's record, put together from what was trained and judged."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import datetime
from functools import cache
from pathlib import Path

import cellray
from cellray.data import Split
from cellray.device import describe
from cellray.evaluation import Evaluation
from cellray.record import (
    Compilation,
    DataFacts,
    Outcome,
    Provenance,
    RangeTest,
    Seconds,
    SetFacts,
    TrialRecord,
    TrialSettings,
)
from cellray.study import SCHEMA_VERSION, Trial
from cellray.torch_later import torch
from cellray.training import TrainingRun
from cellray.trial.sets import Sets


def make_record(
    trial: Trial,
    sets: Sets,
    split: Split,
    *,
    outcome: Outcome,
    reason: str | None,
    run: TrainingRun | None,
    judged: Evaluation | None,
    seconds: Seconds,
    peak_memory_mb: float,
    provenance: Provenance,
) -> TrialRecord:
    """The record of a trial.

    Args:
        trial: Its settings.
        sets: The study's data.
        split: Its parts of the training set.
        outcome: How it ended.
        reason: Why not `finished`.
        run: Its training; None if it never began.
        judged: Its evaluation; None if it had none.
        seconds: How long both took.
        peak_memory_mb: The most memory that they took.
        provenance: By what, where and when.
    """
    key, evaluation_key = sets.keys(trial)
    settings = trial.model_dump(mode="json", include={"model", "loss", "training", "evaluation", "data"})
    validated = [row["val_dice"] for row in run.history if row["val_dice"] == row["val_dice"]] if run else []
    choice = judged.choice if judged else None
    return TrialRecord(
        schema=SCHEMA_VERSION,
        key=key,
        evaluation_key=evaluation_key,
        study=trial.study,
        label=trial.label,
        seed=trial.seed,
        protocol=trial.protocol,
        quirks=trial.quirks,
        settings=TrialSettings.model_validate(settings),
        data=data_facts(sets, split),
        outcome=outcome,
        reason=reason,
        seconds=seconds,
        peak_memory_mb=peak_memory_mb,
        provenance=provenance,
        n_parameters=sum(p.numel() for p in new_network(trial, "meta").parameters()),
        best_epoch=run.best_epoch if run else None,
        validation_dice=validated[-1] if validated else None,
        epochs=len(run.history) if run else 0,
        steps=run.step if run else 0,
        lr=run.lr if run else None,
        range_test=RangeTest.model_validate(run.range_test) if run and run.range_test else None,
        term_scales=tuple(run.term_scales) if run and run.term_scales else None,
        compiled=Compilation(compiler=run.compiler, steps=run.compiled_steps) if run and run.compiler else None,
        operating_point=choice.point if choice else None,
        operating_point_score=choice.score if choice else None,
        operating_point_gain=choice.gain if choice else None,
        operating_point_candidates=choice.n_candidates if choice else None,
        metrics=judged.metrics if judged else {},
        overlays=tuple(judged.overlays) if judged else (),
    )


def new_network(trial: Trial, device: torch.device | str) -> torch.nn.Module:
    """The network that a trial trains, with fresh weights; on `meta` it takes no memory."""
    return trial.model.build(trial.data.channels, device)


def data_facts(sets: Sets, split: Split) -> DataFacts:
    """What the images of a trial with this split are."""
    return DataFacts(
        fingerprint=sets.train.fingerprint,
        diameter_px=sets.train.diameter_px,
        split_hash=split.hash,
        n_train=len(split.train),
        n_val=len(split.val),
        n_test=len(split.test),
        sets={
            name: SetFacts(fingerprint=d.fingerprint, n_images=len(d), diameter_px=d.diameter_px)
            for name, d in sets.external.items()
        },
    )


def make_provenance(
    device: torch.device, gpus: float, threads: int, workers: int, started: datetime, ended: datetime
) -> Provenance:
    """By what, where and when a record is made; `gpus` of each of the workers."""
    return Provenance(
        cellray=cellray.__version__,
        code=code_version(),
        torch=torch.__version__,
        python=platform.python_version(),
        device=describe(device, threads) + (f", {workers} workers" if workers > 1 else ""),
        gpus=gpus * workers,
        host=socket.gethostname(),
        started=_iso(started),
        ended=_iso(max(started, ended)),  # the clock may have gone back
    )


@cache
def code_version() -> str:
    """Git commit of the code that runs, `+` if it was changed since, or '' outside a checkout."""
    here = Path(cellray.__file__).parent
    if not (here.parent / ".git").exists():
        return ""
    try:
        say = ["git", "-C", os.fspath(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(say, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")

"""One configuration, one seed -> one record in the ledger."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from time import monotonic
from typing import Any

import pandas as pd
import torch

import cellray
from cellray.data import Dataset, Split, add_maps, open_dataset, split_dataset
from cellray.device import describe, peak_memory_mb, pick_device, prepare, reason_of
from cellray.errors import DataError, LedgerError
from cellray.evaluation import Evaluation, evaluate
from cellray.ledger import TABLES, Ledger
from cellray.model import build_model
from cellray.study import SCHEMA_VERSION, DataConfig, DatasetConfig, Trial
from cellray.training import ALONE, Fit, Team, TrainingRun, check_crop, fit, training_run

Row = dict[str, float]


@dataclass(frozen=True)
class Sets:
    """The opened data of a study: cheap to open again in another process of the same machine."""

    train: Dataset
    external: dict[str, Dataset]

    @classmethod
    def open(cls, config: DataConfig, progress: Callable[[str, int, int], None] | None = None) -> Sets:
        """Open every set of a study, decoding what this machine hasn't decoded yet.

        Args:
            config: The study's data.
            progress: Called with a set's name, its images decoded so far and in all.

        Raises:
            DataError: Naming the file, if something can't be used.
        """

        def opened(dataset: DatasetConfig, **more: Any) -> Dataset:
            return open_dataset(
                dataset,
                channels=config.channels,
                normalise=config.normalise,
                progress=partial(progress, dataset.name) if progress else None,
                **more,
            )

        train = opened(config.train)
        how = {"target_diameter_px": train.diameter_px, "require_diameter": True}
        return cls(train, {external.name: opened(external, **how) for external in config.external})

    def add_maps(self, trials: list[Trial], progress: Callable[[str, int, int], None] | None = None) -> None:
        """Compute the maps of true cells that the trials' losses need and this machine doesn't have yet."""
        names = {name for loss in {t.label: t.loss for t in trials}.values() for name in loss.build().maps}
        add_maps(self.train, names, partial(progress, f"{self.train.name}: maps of cells") if progress else None)

    def split(self, trial: Trial) -> Split:
        """The training set's parts for one trial."""
        data = trial.data
        return split_dataset(
            self.train,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            split_seed=trial.seed if data.split_seed is None else data.split_seed,
        )

    def plan(self, trials: list[Trial], ledger: Ledger) -> list[Planned]:
        """Every trial with its keys and whether the ledger has it.

        Raises:
            DataError: If the data can't be split or cropped as one of the trials wants it.
        """
        self.check(trials)
        stored = {record["key"]: record for record in ledger.records()}
        return [Planned(trial, *keys, stored.get(keys[0])) for trial in trials for keys in [self.keys(trial)]]

    def check(self, trials: list[Trial]) -> None:
        """Raise `DataError` if a trial would find no images for one of its parts, or none that holds a crop."""
        seen = set()
        for trial in trials:
            case = (trial.seed if trial.data.split_seed is None else trial.data.split_seed, trial.training.crop_px)
            if case not in seen:
                seen.add(case)
                check_crop(self.train, self.split(trial).train, trial.training.crop_px)

    def keys(self, trial: Trial) -> tuple[str, str]:
        """A trial's key and evaluation key."""
        facts = {
            name: {"fingerprint": dataset.fingerprint, "diameter_px": dataset.diameter_px}
            for name, dataset in {"": self.train, **self.external}.items()
        }
        return trial.key(self.train.fingerprint), trial.evaluation_key(facts)

    def expect(self, trial: Trial, keys: tuple[str, str]) -> None:
        """Raise `DataError` unless a trial has these keys here: the same path may hold other files elsewhere."""
        if self.keys(trial) != keys:
            raise DataError(f"the images at the study's paths on {socket.gethostname()} are not those of the sweep")


@dataclass(frozen=True)
class Planned:
    """A trial of a study, and what the ledger has of it."""

    trial: Trial
    key: str
    evaluation_key: str
    stored: dict[str, Any] | None
    """Its record, if it has one."""

    @property
    def label(self) -> str:
        return self.trial.label

    @property
    def seed(self) -> int:
        return self.trial.seed

    @property
    def done(self) -> bool:
        """Whether the record answers to the study as it is now; else it is trained, or at least judged again.

        A trial that was stopped early isn't done: it could go on.
        """
        stored = self.stored
        return stored is not None and self.evaluation_key == stored["evaluation_key"] and not self.is_stopped

    @property
    def is_stopped(self) -> bool:
        return self.stored is not None and self.stored["outcome"] == "stopped"


def run_trial(
    trial: Trial,
    sets: Sets,
    ledger: Ledger,
    *,
    gpus: float = 0,
    threads: int = 1,
    on_epoch: Callable[[Row], None] = lambda row: None,
    until: int | None = None,
    team: Team = ALONE,
) -> dict[str, Any] | None:
    """Train and judge one trial, store its record and return it; what the ledger has is not done again.

    A trial that was interrupted goes on from its last checkpoint, and one whose training is complete is only judged.
    An error of the trial's own becomes its outcome `failed`, with the reason.

    Args:
        trial: What to run.
        sets: The study's data.
        ledger: Where records go.
        gpus: Above 0: train on a GPU.
        threads: CPU threads to compute with.
        on_epoch: Told each epoch's row.
        until: Pause after this epoch, with a checkpoint and without a record; None: to the end.
        team: The processes that train it together, each of which calls this. The first one judges and writes; what
            one member raises while they train is raised, not recorded, since only from outside can be seen who failed.

    Returns:
        The content of ``trial.json``, or None if the trial paused or another member writes.
    """
    key, evaluation_key = sets.keys(trial)
    planned = Planned(trial, key, evaluation_key, ledger.record(key))
    if planned.done:
        return planned.stored
    device = pick_device(gpus)
    prepare(device, threads, gpus)
    split = sets.split(trial)
    started, clock = datetime.now(UTC), monotonic()
    fitted: Fit | None = None
    judged: Evaluation | None = None
    trained_s = 0.0
    files: dict[str, bytes] = {}
    reason: str | None
    try:
        fitted = fit(
            trial,
            sets.train,
            split,
            device=device,
            load=lambda name: ledger.load_checkpoint(key, name),
            save=lambda name, data: ledger.save_checkpoint(key, name, data),
            on_epoch=on_epoch,
            until=until,
            team=team,
        )
        if not fitted.is_complete or not team.leads:
            return None
        trained_s = monotonic() - clock
        if fitted.run.diverged is None:
            judged = _judge(trial, sets, split, fitted, device)
    except Exception as error:
        if fitted is None and team.size > 1:
            raise
        outcome, reason = "failed", reason_of(error, device)
        files["traceback.txt"] = traceback.format_exc().encode()
    else:
        reason = fitted.run.diverged or (judged.collapsed if judged else None)
        outcome = "collapsed" if reason else "finished"
    record = {
        **_identity(trial, sets, split),
        "outcome": outcome,
        "reason": reason,
        "seconds": {
            "training": fitted.run.seconds if fitted else trained_s,
            "evaluation": monotonic() - clock - trained_s if judged else 0.0,
        },
        "peak_memory_mb": peak_memory_mb(device),
        "provenance": {
            **_provenance(device, threads, team.size),
            "started": _iso(started),
            "ended": _iso(datetime.now(UTC)),
        },
        **_training_facts(trial, fitted.run if fitted else None),
        **_evaluation_facts(judged),
    }
    tables = {
        "history": pd.DataFrame(fitted.run.history if fitted else []),
        "images": judged.images if judged else pd.DataFrame(),
        "objects": judged.objects if judged else pd.DataFrame(),
    }
    now = Planned(trial, key, evaluation_key, ledger.record(key))
    if now.done:  # by the process that took over when this one's machine was cut off from the others for a while
        return now.stored
    ledger.write_record(record, tables, {**files, **(judged.files if judged else {})})
    return record


def record_failure(trial: Trial, sets: Sets, ledger: Ledger, reason: str, trace: str = "") -> dict[str, Any]:
    """Store the outcome `failed` for a trial that could not say so itself; `trace` goes to its ``traceback.txt``."""
    return _record_unjudged(trial, sets, ledger, "failed", reason, None, trace)


def record_stopped(trial: Trial, sets: Sets, ledger: Ledger, reason: str) -> dict[str, Any]:
    """Store the outcome `stopped` for a trial that paused and is not to go on, with its history so far.

    Raises:
        LedgerError: If its checkpoint has gone.
    """
    data = ledger.load_checkpoint(sets.keys(trial)[0], "last")
    if data is None:
        raise LedgerError(f"{trial.label}, seed {trial.seed}: its checkpoint has gone from {ledger.uri}")
    return _record_unjudged(trial, sets, ledger, "stopped", reason, training_run(data))


def _record_unjudged(
    trial: Trial, sets: Sets, ledger: Ledger, outcome: str, reason: str, run: TrainingRun | None, trace: str = ""
) -> dict[str, Any]:
    """A record written by the sweep, not by the trial's own process."""
    now = _iso(datetime.now(UTC))
    record = {
        **_identity(trial, sets, sets.split(trial)),
        "outcome": outcome,
        "reason": reason,
        "seconds": {"training": run.seconds if run else 0.0, "evaluation": 0.0},
        "peak_memory_mb": max((row["peak_memory_mb"] for row in run.history), default=0.0) if run else 0.0,
        "provenance": {**_provenance(torch.device("cpu"), 1), "device": "", "started": now, "ended": now},
        **_training_facts(trial, run),
        **_evaluation_facts(None),
    }
    tables = {name: pd.DataFrame() for name in TABLES}
    files = {"traceback.txt": trace.encode()} if trace else {}
    ledger.write_record(record, {**tables, "history": pd.DataFrame(run.history if run else [])}, files)
    return record


def _identity(trial: Trial, sets: Sets, split: Split) -> dict[str, Any]:
    """What a record says of its trial, whatever came out."""
    key, evaluation_key = sets.keys(trial)
    return {
        "schema": SCHEMA_VERSION,
        "key": key,
        "evaluation_key": evaluation_key,
        "study": trial.study,
        "label": trial.label,
        "seed": trial.seed,
        "protocol": trial.protocol,
        "quirks": list(trial.quirks),
        "settings": trial.model_dump(mode="json", include={"model", "loss", "training", "evaluation", "data"}),
        "data": _data_facts(sets, split),
    }


def _judge(trial: Trial, sets: Sets, split: Split, fitted: Fit, device: torch.device) -> Evaluation:
    """Evaluate the best weights on every set."""
    model = new_network(trial, device)
    assert fitted.best_state is not None  # a training that didn't diverge ends with a validation
    model.load_state_dict(fitted.best_state)
    parts = {"val": (sets.train, split.val), "test": (sets.train, split.test)}
    external = {name: (dataset, list(range(len(dataset)))) for name, dataset in sets.external.items()}
    return evaluate(model, {**parts, **external}, trial.evaluation, device=device, precision=trial.training.precision)


def new_network(trial: Trial, device: torch.device | str) -> torch.nn.Module:
    """The network that a trial trains, with fresh weights; on `meta` it takes no memory."""
    return build_model(
        trial.model.name,
        base_features=trial.model.base_features,
        in_channels=trial.data.channels,
        device=device,
    )


def _data_facts(sets: Sets, split: Split) -> dict[str, Any]:
    return {
        "fingerprint": sets.train.fingerprint,
        "diameter_px": sets.train.diameter_px,
        "split_hash": split.hash,
        "n_train": len(split.train),
        "n_val": len(split.val),
        "n_test": len(split.test),
        "sets": {
            name: {"fingerprint": d.fingerprint, "n_images": len(d), "diameter_px": d.diameter_px}
            for name, d in sets.external.items()
        },
    }


def _training_facts(trial: Trial, run: TrainingRun | None) -> dict[str, Any]:
    validated = [row["val_dice"] for row in run.history if row["val_dice"] == row["val_dice"]] if run else []
    return {
        "n_parameters": sum(p.numel() for p in new_network(trial, "meta").parameters()),
        "best_epoch": run.best_epoch if run else None,
        "validation_dice": validated[-1] if validated else None,
        "epochs": len(run.history) if run else 0,
        "steps": run.step if run else 0,
        "lr": run.lr if run else None,
        "range_test": run.range_test if run else None,
        "term_scales": run.term_scales if run else None,
    }


def _evaluation_facts(judged: Evaluation | None) -> dict[str, Any]:
    return {
        "operating_point": judged.choice.point.model_dump() if judged else None,
        "operating_point_score": judged.choice.score if judged else None,
        "operating_point_gain": judged.choice.gain if judged else None,
        "operating_point_candidates": judged.choice.n_candidates if judged else None,
        "metrics": judged.metrics if judged else {},
        "overlays": judged.overlays if judged else [],
    }


def _provenance(device: torch.device, threads: int, workers: int = 1) -> dict[str, str]:
    return {
        "cellray": cellray.__version__,
        "code": code_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": describe(device, threads) + (f", {workers} workers" if workers > 1 else ""),
        "host": socket.gethostname(),
    }


@cache
def code_version() -> str:
    """Git commit of the code that runs, `+` if it was changed since, or '' outside a checkout."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return ""
    try:
        say = ["git", "-C", os.fspath(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(say, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")

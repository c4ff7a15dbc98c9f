"""One configuration, one seed -> one record in the ledger."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from time import monotonic

import pandas as pd
import torch

from cellray.data import Split
from cellray.device import peak_memory_mb, pick_device, prepare, reason_of
from cellray.errors import CheckpointError, LedgerError, StorageError
from cellray.evaluation import Evaluation, evaluate
from cellray.ledger import TABLES, Ledger, weights_of
from cellray.record import EpochRow, Outcome, Seconds, TrialRecord
from cellray.storage import is_full
from cellray.study import Trial
from cellray.training import ALONE, Fit, Team, TrainingRun, fit, training_run
from cellray.trial.folds import run_folds
from cellray.trial.recording import make_provenance, make_record, new_network
from cellray.trial.sets import Sets


def run_trial(
    trial: Trial,
    sets: Sets,
    ledger: Ledger,
    *,
    gpus: float = 0,
    threads: int = 1,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    on_note: Callable[[str], None] = lambda words: None,
    until: int | None = None,
    team: Team = ALONE,
) -> TrialRecord | None:
    """Train and judge one trial, store its record and return it; what the ledger has is not done again.

    A trial that was interrupted goes on from its last checkpoint, and one whose training is complete is only judged.
    One with a damaged checkpoint is trained from the start, which ends in the same weights.
    An error of the trial's own becomes its outcome `failed`, with the reason; one of storage or a full disk does not.

    Args:
        trial: What to run.
        sets: The study's data.
        ledger: Where records go.
        gpus: Above 0: train on a GPU.
        threads: CPU threads to compute with.
        on_epoch: Told each epoch's row.
        on_note: Told, in a sentence, that a damaged checkpoint was put aside, or that a network isn't compiled.
        until: Pause after this epoch, with a checkpoint and without a record; None: to the end.
        team: The processes that train it together, each of which calls this. The first one judges and writes; what
            one member raises while they train is raised, not recorded, since only from outside can be seen who failed.

    Returns:
        Its record, or None if the trial paused or another member writes.

    Raises:
        StorageError: If the storage gives or takes no files. Run again, the trial goes on from its last checkpoint.
    """
    if len(trial.trainings) > 1:
        run = partial(run_trial, gpus=gpus, threads=threads, on_note=on_note, team=team)
        return run_folds(trial, sets, ledger, run, on_epoch=on_epoch, leads=team.leads)
    ledger = home(trial, ledger)
    planned = sets.planned(trial, ledger)
    key = planned.key
    if planned.done:
        return planned.record
    device = pick_device(gpus)
    prepare(device, threads, gpus)
    split = sets.split(trial)
    started, clock = datetime.now(UTC), monotonic()
    fitted: Fit | None = None
    judged: Evaluation | None = None
    trained_s = 0.0
    files: dict[str, bytes] = {}
    outcome: Outcome
    reason: str | None
    try:
        train = partial(
            fit,
            trial,
            sets.train,
            split,
            device=device,
            load=lambda name: ledger.load_checkpoint(key, name),
            save=lambda name, data: ledger.save_checkpoint(key, name, data),
            on_epoch=on_epoch,
            on_note=on_note,
            until=until,
            team=team,
            start=weights_of(trial.model, ledger.storage),
        )
        try:
            fitted = train()
        except CheckpointError as error:
            if team.leads:
                on_note(_put_aside(trial, ledger, key, error))
            fitted = train()
        if not fitted.is_complete or not team.leads:
            return None
        trained_s = monotonic() - clock
        if fitted.run.diverged is None and not trial.tries_rate:
            judged = _judge(trial, sets, split, fitted, device)
    except StorageError:
        raise
    except Exception as error:
        if is_full(error):
            raise StorageError(f"a disk of {socket.gethostname()} is full: {error}") from error
        if fitted is None and team.size > 1:
            raise
        outcome, reason = "failed", reason_of(error, device)
        files["traceback.txt"] = traceback.format_exc().encode()
    else:
        reason = fitted.run.diverged or (judged.collapsed if judged else None)
        outcome = "collapsed" if reason else "finished"
    record = make_record(
        trial,
        sets,
        split,
        outcome=outcome,
        reason=reason,
        run=fitted.run if fitted else None,
        judged=judged,
        seconds=Seconds(
            training=fitted.run.seconds if fitted else trained_s,
            evaluation=monotonic() - clock - trained_s if judged else 0.0,
            compilation=fitted.run.compile_s if fitted and fitted.run.compiler else None,
        ),
        peak_memory_mb=peak_memory_mb(device),
        provenance=make_provenance(device, gpus, threads, team.size, started, datetime.now(UTC)),
    )
    tables = {
        "history": pd.DataFrame(fitted.run.history if fitted else []),
        "images": judged.images if judged else pd.DataFrame(),
        "objects": judged.objects if judged else pd.DataFrame(),
    }
    now = sets.planned(trial, ledger)
    if now.done:  # by the process that took over when this one's machine was cut off from the others for a while
        return now.record
    ledger.write_record(record, tables, {**files, **(judged.files if judged else {})})
    if trial.tries_rate:  # its weights are of no use
        ledger.delete(f"trials/{key}/checkpoints/best.pt")
    return record


def _put_aside(trial: Trial, ledger: Ledger, key: str, error: CheckpointError) -> str:
    """Put a trial's checkpoints out of the way; the sentence that says so."""
    paths = [f"trials/{key}/checkpoints/{name}.pt" for name in ("last", "best")]
    moved = [ledger.put_aside(path) for path in paths if ledger.exists(path)]
    kept = ", ".join(f"{ledger.uri}/{path}" for path in moved)
    return f"{trial.label}, seed {trial.seed}: {error}; it is trained from the start, and the old files are {kept}"


def home(trial: Trial, ledger: Ledger) -> Ledger:
    """Where a trial's record lies: in its study's ledger, or beside it if it tries a rate or is one of folds."""
    if trial.fold is not None:
        return ledger.within("folds")
    return ledger.within("rates") if trial.tries_rate else ledger


def record_failure(trial: Trial, sets: Sets, ledger: Ledger, reason: str, trace: str = "") -> TrialRecord:
    """Store the outcome `failed` for a trial that could not say so itself; `trace` goes to its ``traceback.txt``."""
    return _record_unjudged(trial, sets, home(trial, ledger), "failed", reason, None, trace)


def record_stopped(trial: Trial, sets: Sets, ledger: Ledger, reason: str) -> TrialRecord:
    """Store the outcome `stopped` for a trial that paused and is not to go on, with its history so far.

    Raises:
        LedgerError: If its checkpoint has gone.
    """
    data = ledger.load_checkpoint(sets.keys(trial)[0], "last")
    if data is None:
        raise LedgerError(f"{trial.label}, seed {trial.seed}: its checkpoint has gone from {ledger.uri}")
    return _record_unjudged(trial, sets, ledger, "stopped", reason, training_run(data))


def _record_unjudged(
    trial: Trial, sets: Sets, ledger: Ledger, outcome: Outcome, reason: str, run: TrainingRun | None, trace: str = ""
) -> TrialRecord:
    """A record written by the sweep, not by the trial's own process."""
    now = datetime.now(UTC)
    record = make_record(
        trial,
        sets,
        sets.split(trial),
        outcome=outcome,
        reason=reason,
        run=run,
        judged=None,
        seconds=Seconds(training=run.seconds if run else 0.0, evaluation=0.0),
        peak_memory_mb=max((row["peak_memory_mb"] for row in run.history), default=0.0) if run else 0.0,
        provenance=make_provenance(torch.device("cpu"), 0, 1, 1, now, now).model_copy(
            update={"device": "", "gpus": None}
        ),
    )
    tables = {name: pd.DataFrame() for name in TABLES}
    files = {"traceback.txt": trace.encode()} if trace else {}
    ledger.write_record(record, {**tables, "history": pd.DataFrame(run.history if run else [])}, files)
    return record


def _judge(trial: Trial, sets: Sets, split: Split, fitted: Fit, device: torch.device) -> Evaluation:
    """Evaluate the best weights on every set."""
    model = new_network(trial, device)
    assert fitted.best_state is not None  # a training that didn't diverge ends with a validation
    model.load_state_dict(fitted.best_state)
    parts = {"val": (sets.train, split.val), "test": (sets.train, split.test)}
    judging = sets.external if not trial.fold else {}  # of several trainings the first one is handed out
    external = {name: (dataset, list(range(len(dataset)))) for name, dataset in judging.items()}
    return evaluate(model, {**parts, **external}, trial.evaluation, device=device, precision=trial.training.precision)

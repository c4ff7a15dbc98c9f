"""One configuration, one seed -> one record in the ledger."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from time import monotonic

import pandas as pd

from cellray.device import peak_memory_mb, pick_device, prepare, reason_of
from cellray.errors import CheckpointError, LedgerError, StorageError
from cellray.evaluation import Evaluation, JudgedSets, LogitsOf, evaluate, predict_set
from cellray.ledger import Ledger, weights_of
from cellray.record import EpochRow, Outcome, PlannedTrial, Provenance, Seconds, TrialRecord
from cellray.storage import is_full
from cellray.study import Trial
from cellray.torch_later import torch
from cellray.training import ALONE, Fit, Team, TrainingRun, fit, training_run
from cellray.trial.folds import run_folds
from cellray.trial.predicted import Predictions, forget_predictions, kept_predictions, n_waiting, store_logits
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
    may_wait: int = 0,
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
        may_wait: While fewer trials than this wait to be judged, end with the predictions of the images that judge it;
            a later call, which needs neither GPU nor team, does the rest.
        team: The processes that train it together, each of which calls this. The first one judges and writes; what
            one member raises while they train is raised, not recorded, since only from outside can be seen who failed.

    Returns:
        Its record, or None if the trial paused, waits to be judged, or another member writes.

    Raises:
        StorageError: If the storage gives or takes no files. Run again, the trial goes on from its last checkpoint.
    """
    if len(trial.trainings) > 1:
        run = partial(
            run_trial, gpus=gpus, threads=threads, on_note=on_note, may_wait=may_wait * len(trial.trainings), team=team
        )
        return run_folds(trial, sets, ledger, run, on_epoch=on_epoch, leads=team.leads)
    ledger = home(trial, ledger)
    planned = sets.planned(trial, ledger)
    key = planned.key
    if planned.done:
        return planned.record
    kept = kept_predictions(planned, ledger)
    if kept is not None and may_wait:
        return None
    if kept is not None and (record := _judge_kept(trial, planned, kept, sets, ledger, threads)) is not None:
        return record
    device = pick_device(gpus)
    prepare(device, threads, gpus)
    started, clock = datetime.now(UTC), monotonic()
    fitted: Fit | None = None
    judged: Evaluation | None = None
    trained_s, reason, trace = 0.0, None, ""

    def provenance() -> Provenance:
        return make_provenance(device, gpus, threads, team.size, started, datetime.now(UTC))

    try:
        train = partial(
            fit,
            trial,
            sets.train,
            sets.split(trial),
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
        trained_s, reason = monotonic() - clock, fitted.run.diverged
        if reason is None and not trial.tries_rate:
            logits_of = _predict(trial, sets, fitted, device)
            if n_waiting(ledger) < may_wait:
                files = store_logits(planned, ledger, _judged_sets(trial, sets), logits_of)
                predicted_s = monotonic() - clock - trained_s
                Predictions(files, fitted.run, provenance(), predicted_s, peak_memory_mb(device)).keep(planned, ledger)
                return None
            judged = evaluate(logits_of, _judged_sets(trial, sets), trial.evaluation)
            reason = judged.collapsed
    except Exception as error:
        reason, trace = _failure(error, device)
        if fitted is None and team.size > 1:
            raise
    record = _write(
        trial,
        sets,
        ledger,
        reason=reason,
        trace=trace,
        run=fitted.run if fitted else None,
        judged=judged,
        evaluation_s=monotonic() - clock - trained_s if judged else 0.0,
        peak_memory_mb=peak_memory_mb(device),
        provenance=provenance(),
    )
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
    by = make_provenance(torch.device("cpu"), 0, 1, 1, now, now).model_copy(update={"device": "", "gpus": None})
    peak_mb = max((row["peak_memory_mb"] for row in run.history), default=0.0) if run else 0.0
    return _write(
        trial, sets, ledger, outcome=outcome, reason=reason, trace=trace, run=run, peak_memory_mb=peak_mb, provenance=by
    )


def _judge_kept(
    trial: Trial, planned: PlannedTrial, kept: Predictions, sets: Sets, ledger: Ledger, threads: int
) -> TrialRecord | None:
    """Judge a trial by its predictions; None if they can't be read, and so are removed."""
    device = torch.device("cpu")
    prepare(device, threads)
    started, clock = datetime.now(UTC), monotonic()
    judged: Evaluation | None = None
    reason, trace = None, ""
    try:
        judged = evaluate(partial(kept.logits_of, planned, ledger), _judged_sets(trial, sets), trial.evaluation)
        reason = judged.collapsed
    except CheckpointError:
        forget_predictions(planned, ledger)
        return None
    except Exception as error:
        reason, trace = _failure(error, device)
    return _write(
        trial,
        sets,
        ledger,
        reason=reason,
        trace=trace,
        run=kept.run,
        judged=judged,
        evaluation_s=kept.seconds + monotonic() - clock,
        waiting_s=max((started - datetime.fromisoformat(kept.provenance.ended)).total_seconds(), 0.0),
        peak_memory_mb=kept.peak_memory_mb,
        provenance=kept.provenance.model_copy(update={"ended": datetime.now(UTC).isoformat(timespec="seconds")}),
    )


def _failure(error: Exception, device: torch.device) -> tuple[str, str]:
    """Why a trial failed, in words, and the traceback; what isn't its own fault is raised as `StorageError`."""
    if isinstance(error, StorageError):
        raise error
    if is_full(error):
        raise StorageError(f"a disk of {socket.gethostname()} is full: {error}") from error
    return reason_of(error, device), traceback.format_exc()


def _write(
    trial: Trial,
    sets: Sets,
    ledger: Ledger,
    *,
    outcome: Outcome | None = None,
    reason: str | None,
    trace: str,
    run: TrainingRun | None,
    judged: Evaluation | None = None,
    evaluation_s: float = 0.0,
    waiting_s: float | None = None,
    peak_memory_mb: float,
    provenance: Provenance,
) -> TrialRecord:
    """Store a trial's record and return it; without a given outcome it failed if there is a traceback, and collapsed if
    there is a reason alone."""
    record = make_record(
        trial,
        sets,
        sets.split(trial),
        outcome=outcome or ("failed" if trace else "collapsed" if reason else "finished"),
        reason=reason,
        run=run,
        judged=judged,
        seconds=Seconds(
            training=run.seconds if run else 0.0,
            evaluation=evaluation_s,
            compilation=run.compile_s if run and run.compiler else None,
            waiting=waiting_s,
        ),
        peak_memory_mb=peak_memory_mb,
        provenance=provenance,
    )
    tables = {
        "history": pd.DataFrame(run.history if run else []),
        "images": judged.images if judged else pd.DataFrame(),
        "objects": judged.objects if judged else pd.DataFrame(),
    }
    files = judged.files if judged else {}
    now = sets.planned(trial, ledger)
    if (
        now.record is not None and now.done
    ):  # by who took over when this machine was cut off from the others for a while
        return now.record
    forget_predictions(now, ledger)  # before the record, after which nobody would look for them
    ledger.write_record(record, tables, {**files, **({"traceback.txt": trace.encode()} if trace else {})})
    return record


def _judged_sets(trial: Trial, sets: Sets) -> JudgedSets:
    """What judges a trial."""
    split, judging = sets.split(trial), sets.external if not trial.fold else {}  # of folds the first one is handed out
    external = {name: (dataset, list(range(len(dataset)))) for name, dataset in judging.items()}
    return {"val": (sets.train, split.val), "test": (sets.train, split.test), **external}


def _predict(trial: Trial, sets: Sets, fitted: Fit, device: torch.device) -> LogitsOf:
    """What the best weights say to each set."""
    model = new_network(trial, device)
    assert fitted.best_state is not None  # a training that didn't diverge ends with a validation
    model.load_state_dict(fitted.best_state)
    precision = trial.training.precision
    return partial(predict_set, model, _judged_sets(trial, sets), trial.evaluation, device, precision)

"""One study, from its ledger to its ledger: what is still to do is done on Ray, and observers hear of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

from cellray.ledger import Ledger
from cellray.observers import Observer, tell
from cellray.record import TrialRecord
from cellray.search import Agenda
from cellray.study import Study
from cellray.sweep.capacity import check_feasible, settle
from cellray.sweep.nodes import check_nodes
from cellray.trial import Sets, judge_references


def run_sweep(
    study: Study,
    sets: Sets,
    ledger: Ledger,
    *,
    observers: Sequence[Observer] = (),
    chosen: Collection[tuple[str, int]] | None = None,
    max_concurrent: int | None = None,
    retry_failed: bool = False,
    cluster: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[TrialRecord]:
    """Run every trial the ledger doesn't have, and return the records of the whole plan so far.

    Ctrl+C (SIGINT) lets the trials that are running come to the end of their epoch, starts no others, and then raises
    KeyboardInterrupt; a second one doesn't wait. At most the work since a trial's last checkpoint is done again by the
    next run, which ends in the same records.

    Args:
        study: What to run.
        sets: Its data, opened.
        ledger: Where records are and go.
        observers: Told what happens.
        chosen: Run only these labels and seeds; the plan, and so the report, stays that of the whole study. Not for a
            study that adapts, where results decide what is run.
        max_concurrent: At most so many trials at once; None: as many as fit.
        retry_failed: Run trials again whose outcome was `failed`.
        cluster: Connects to Ray (`connect`) if anything is to be run; not needed where that has been done.

    Raises:
        DataError: If the data can't be split or cropped as a trial wants it, or a reference lacks a label image.
        KeyboardInterrupt: If the sweep was interrupted, after the observers' `on_finish`.
        LedgerError: If another sweep holds the ledger, or it can't be written.
        StorageError: If it couldn't be written or read any more: no trial counts as failed for that.
        StudyError: If no node can hold a trial, or one doesn't see the data or the ledger.
    """
    ledger.prepare()
    with ledger.lease(on_wait=lambda words: tell(observers, "on_note", words)):
        ledger.write("study.yaml", study.dump_yaml().encode())
        judge_references(study, sets, ledger)
        if retry_failed:
            _forget_failures(study, sets, ledger, chosen)
        agenda = Agenda(study, sets, ledger, chosen=chosen)
        with nullcontext() if agenda.is_finished else cluster():
            if not agenda.is_finished:
                study = study.model_copy(update={"resources": settle(study.resources)})
                check_feasible(study.resources, lambda words: tell(observers, "on_note", words))
                check_nodes(study.data, sets, ledger)
            agenda.write()
            agenda.stopped.clear()  # the plan has them
            agenda.notes.clear()  # old news
            tell(observers, "on_start", agenda.study, agenda.plan)
            if n_tries := agenda.tries.planned - agenda.tries.done:
                tell(observers, "on_note", f"{n_tries} shorter trainings choose learning rates first")
                tell(observers, "on_tries", agenda.tries)
            try:
                if not agenda.is_finished:
                    from cellray.sweep.tuner import run_agenda  # needs Ray, which a finished study doesn't

                    run_agenda(agenda, study, sets, ledger, observers, max_concurrent)
            finally:
                tell(observers, "on_finish")
        return ledger.records(planned.key for planned in agenda.plan)


def _forget_failures(study: Study, sets: Sets, ledger: Ledger, chosen: Collection[tuple[str, int]] | None) -> None:
    """Remove the records of failed trials: a trial without one is run."""
    keys = None
    if chosen is not None:
        keys = {sets.keys(trial)[0] for trial in study.trials() if (trial.label, trial.seed) in chosen}
    for record in ledger.records():
        if record.outcome == "failed" and (keys is None or record.key in keys):
            ledger.delete(f"trials/{record.key}/trial.json")
    tries = ledger.within("rates")
    for record in tries.records():
        if record.outcome == "failed":
            tries.delete(f"trials/{record.key}/trial.json")

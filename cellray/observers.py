"""Those who watch a sweep, and how they are told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from cellray.record import EpochRow, PlannedTrial, TrialRecord
from cellray.study import Study, Trial

_log = logging.getLogger(__name__)


class Tries(NamedTuple):
    """The shorter trainings that choose learning rates."""

    done: int
    planned: int
    """As far as is known: there are more where the highest or the lowest rate does best."""


class Observer:
    """Somebody who watches a sweep. News of one sweep come one at a time, in the driver's process.

    Each kind of observer says what it does about the news that concern it; the others pass by.
    """

    def on_start(self, study: Study, plan: list[PlannedTrial]) -> None:
        """The sweep begins; `plan` tells what the ledger has already."""

    def on_ready(self) -> None:
        """The first trial has its process, or has waited long for it; what takes processors to begin may begin now."""

    def on_plan(self, study: Study, plan: list[PlannedTrial]) -> None:
        """The plan has grown: a search suggested a configuration, or a race gave another seed."""

    def on_tries(self, tries: Tries) -> None:
        """How far the trainings are that choose learning rates, at the start and after each of them."""

    def on_trial_start(self, trial: Trial) -> None:
        """A trial was given its resources; it may be one that goes on after its process died."""

    def on_epoch(self, trial: Trial, row: EpochRow) -> None:
        """A running trial ended an epoch."""

    def on_end(self, record: TrialRecord) -> None:
        """A trial's record is in the ledger."""

    def on_note(self, sentence: str) -> None:
        """Something that a reader must hear of, such as files that were removed."""

    def on_finish(self) -> None:
        """No trial runs any more, because all are done or because the sweep was interrupted."""


def tell(observers: Sequence[Observer], what: str, *news: object) -> None:
    """Tell every observer; one that fails must not cost the sweep anything."""
    for observer in observers:
        try:
            getattr(observer, what)(*news)
        except Exception:
            _log.exception("%s.%s failed; the sweep goes on", type(observer).__name__, what)

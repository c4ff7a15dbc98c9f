"""A store repaired from the ledger alone: what `cellray track sync` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cellray.errors import LedgerError
from cellray.ledger import Ledger
from cellray.study import Study
from cellray.tracking.writer import Writer


@dataclass(frozen=True)
class Synced:
    """What `sync` found and did."""

    n_records: int
    n_written: int
    """Records that the store lacked, or had otherwise."""


def sync(
    ledger: Ledger,
    study: Study,
    tracking_uri: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Synced:
    """Bring a store up to date from the ledger alone; a second call changes nothing.

    Args:
        ledger: Of the study.
        study: Shown.
        tracking_uri: Any that MLflow takes.
        progress: Called with records done and records in all.

    Raises:
        LedgerError: If no sweep has been there, or the store didn't take everything.
    """
    writer = Writer(ledger, study, ledger.plan(), tracking_uri, progress=progress)
    for pause_s in (0.0, 1.0, 3.0):
        time.sleep(pause_s)
        if writer.round(everything=True) and writer.report():
            return Synced(len(writer.records), writer.n_written)
    raise LedgerError(writer.trouble(unfinished=True) or "the MLflow store did not take everything")

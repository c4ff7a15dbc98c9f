"""Optuna's storage in a study's ledger: one small file an entry, so that a bucket serves as well as a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from cellray.ledger import Ledger

FOLDER = "search/journal"


class LedgerJournal(BaseJournalBackend):
    """Backend of an `optuna.storages.JournalStorage`. One writer at a time, which the ledger's lease sees to.

    To look at a search with Optuna's own tools::

        storage = optuna.storages.JournalStorage(LedgerJournal(Ledger("studies", "lambda_tuning")))
        study = optuna.load_study(study_name=None, storage=storage)

    Args:
        ledger: Of the study.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known = [json.loads(ledger.read(f"{FOLDER}/{name}")) for name in ledger.names(FOLDER)]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Entries from a number on."""
        yield from self._known[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep further entries, each whole or not at all."""
        for log in logs:
            self._ledger.write(f"{FOLDER}/{len(self._known):06}.json", json.dumps(log).encode())
            self._known.append(log)

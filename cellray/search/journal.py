"""Optuna's storage in a study's ledger: one small file an entry, so that a bucket serves as well as a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from cellray.errors import LedgerError
from cellray.ledger import Ledger

FOLDER = "search/journal"
NO_ENTRY = (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What entries that aren't Optuna's raise while they are read."""


class LedgerJournal(BaseJournalBackend):
    """Backend of an `optuna.storages.JournalStorage`. One writer at a time, which the ledger's lease sees to.

    To look at a search with Optuna's own tools::

        storage = optuna.storages.JournalStorage(LedgerJournal(Ledger("studies", "lambda_tuning")))
        study = optuna.load_study(study_name=None, storage=storage)

    Args:
        ledger: Of the study.

    Raises:
        LedgerError: If an entry is missing or no JSON.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._last = ledger, 0
        self._known: list[dict[str, Any]] = []
        for name in filter(re.compile(r"\d{6}\.json").fullmatch, ledger.names(FOLDER)):
            self._last = len(self._known)
            with self.reading():
                if name != f"{self._last:06}.json":
                    raise ValueError("it is missing")
                self._known.append(json.loads(ledger.read(f"{FOLDER}/{name}")))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What goes wrong in here is the fault of the entry that was read last.

        Raises:
            LedgerError: That names it and says what to do.
        """
        try:
            yield
        except LedgerError:
            raise
        except NO_ENTRY as error:
            problem = str(error).partition("\n")[0][:200] or type(error).__name__
            raise LedgerError(
                f"{self._ledger.uri}/{FOLDER}/{self._last:06}.json is no entry of a search ({problem}); restore it, or "
                f"remove {FOLDER}, and the sweep makes it anew from its records"
            ) from None

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Entries from a number on."""
        for number in range(log_number_from, len(self._known)):
            self._last = number
            yield self._known[number]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep further entries, each whole or not at all."""
        for log in logs:
            self._ledger.write(f"{FOLDER}/{len(self._known):06}.json", json.dumps(log).encode())
            self._known.append(log)

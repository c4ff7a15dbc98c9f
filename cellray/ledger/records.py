"""The records of one study, whole or not at all.

``trials/<key>/trial.json`` is written last and marks a record as complete; whatever lies beside it without one belongs
to a trial that is still running or was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellray.errors import LedgerError
from cellray.ledger.files import TRIALS, StudyFiles
from cellray.ledger.lease import Lease, current_holder, held
from cellray.record import (
    REMEDY,
    EnsembleRecord,
    EpochRow,
    PlannedTrial,
    Reference,
    SearchLog,
    TrialRecord,
    parse,
    parse_ensemble,
    parse_plan,
    parse_record,
    parse_references,
    plan_text,
    record_text,
    references_text,
    search_text,
)

TABLES = ("history", "images", "objects")
DAMAGED = (pa.ArrowException, KeyError, TypeError, ValueError, OSError)
"""What a table that is cut, empty or of another shape raises while it is read."""


def read_parquet(data: bytes, columns: Collection[str] | None = None) -> pa.Table:
    """A stored table, or those of its columns that are there; half the time of other ways to read so small a file."""
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def _made_of(key: str) -> list[str]:
    """A trial's record and tables."""
    return [f"{TRIALS}/{key}/{name}" for name in ("trial.json", *(f"{table}.parquet" for table in TABLES))]


class Ledger(StudyFiles):
    """The files of one study and what they say; arguments and errors as for `StudyFiles`."""

    def record(self, key: str) -> TrialRecord | None:
        """A trial's record, or None if it has none yet.

        Raises:
            LedgerError: If it can't be read.
        """
        path = f"trials/{key}/trial.json"
        try:
            return parse_record(self.read(path), f"{self.uri}/{path}", key)
        except FileNotFoundError:
            return None

    def records(self, keys: Iterable[str] | None = None, damaged: dict[str, str] | None = None) -> list[TrialRecord]:
        """The complete records of these keys; None: all, ordered by key.

        Args:
            keys: Of the trials.
            damaged: Is given, by key, what is wrong with each record that can't be parsed, in a sentence; None: that
                is an error.

        Raises:
            LedgerError: If one can't be read.
        """
        keys = self.names("trials") if keys is None else list(keys)
        files = self.read_all(f"trials/{key}/trial.json" for key in keys)
        found = []
        for key, data in zip(keys, files, strict=True):
            if data is None:
                continue
            where = f"{self.uri}/trials/{key}/trial.json"
            try:
                record = parse_record(data, where, key)
                if damaged is not None and record.outcome == "finished" and not record.metrics:
                    raise LedgerError(f"{where} can't count (it is finished, but has no scores); {REMEDY}")
                found.append(record)
            except LedgerError as error:
                if damaged is None:
                    raise
                damaged[key] = str(error)
        return found

    def find_made(self, key: str, made_by: str) -> bytes | None:
        """What was kept of a trial's record and tables on this machine, if these are the same and so is the code that
        made it; only for one `with_copies`."""
        return None if self._copies is None else self._copies.find(f"{TRIALS}/{key}/made", _made_of(key), made_by)

    def keep_made(self, key: str, data: bytes, made_by: str) -> None:
        """Keep what was made of a trial's record and tables; only for one `with_copies`."""
        if self._copies is not None:
            self._copies.keep(f"{TRIALS}/{key}/made", data, _made_of(key), made_by)

    @contextmanager
    def reading(self, key: str, name: str) -> Iterator[None]:
        """What goes wrong in here is the fault of one of a trial's tables.

        Raises:
            LedgerError: That names it and says what to do.
        """
        try:
            yield
        except DAMAGED as error:
            problem = str(error).partition("\n")[0].strip()[:200] or type(error).__name__
            if isinstance(error, KeyError):
                problem = f"it lacks {problem}"
            words = f"is damaged ({problem}); restore it, or remove the trial.json beside it and the trial runs again"
            raise LedgerError(f"{self.uri}/trials/{key}/{name}.parquet {words}") from error

    def table(self, key: str, name: str) -> pd.DataFrame:
        """One of a trial's tables: `history`, `images` or `objects`.

        Raises:
            LedgerError: If it is damaged.
        """
        data = self.read(f"trials/{key}/{name}.parquet")
        with self.reading(key, name):
            return read_parquet(data).to_pandas()

    def history(self, key: str) -> list[EpochRow]:
        """A trial's epochs; empty if it has no record, or trained none."""
        try:
            return self.table(key, "history").to_dict("records")
        except FileNotFoundError:
            return []

    def write_record(self, record: TrialRecord, tables: Mapping[str, pd.DataFrame], files: Mapping[str, bytes]) -> None:
        """Store a trial's record with its tables and other files, replacing an earlier one."""
        folder = f"trials/{record.key}"
        self.delete(f"{folder}/trial.json")
        stored = {f"{name}.parquet": table.to_parquet(index=False) for name, table in tables.items()}
        self.write_all({f"{folder}/{path}": data for path, data in (stored | dict(files)).items()})
        self.write(f"{folder}/trial.json", record_text(record).encode())

    def plan(self) -> list[PlannedTrial]:
        """What the last sweep planned.

        Raises:
            LedgerError: If no sweep has been here.
        """
        try:
            return parse_plan(self.read("plan.json"), f"{self.uri}/plan.json")
        except FileNotFoundError:
            raise LedgerError(f"{self.uri} has no plan.json: no sweep of this study was started there") from None

    def write_plan(self, trials: Sequence[PlannedTrial]) -> None:
        """Keep what a study plans, so that a report needs no data."""
        self.write("plan.json", plan_text(trials).encode())

    def search(self) -> SearchLog | None:
        """How a study that adapts chose its configurations so far; None of one that listed them and runs them all."""
        try:
            return parse(SearchLog, self.read("search.json"), f"{self.uri}/search.json", "an account of a search")
        except FileNotFoundError:
            return None

    def write_search(self, log: SearchLog) -> None:
        """Keep how configurations were chosen."""
        self.write("search.json", search_text(log).encode())

    def references(self) -> list[Reference]:
        """Predictions made elsewhere, as the last sweep judged them."""
        try:
            return parse_references(self.read("references.json"), f"{self.uri}/references.json")
        except FileNotFoundError:
            return []

    def write_references(self, references: Sequence[Reference]) -> None:
        """Keep which predictions made elsewhere belong to the study, and how they do."""
        self.write("references.json", references_text(references).encode())

    def ensemble(self, key: str) -> EnsembleRecord | None:
        """A configuration's seeds as one model, if its operating point was chosen already."""
        try:
            return parse_ensemble(self.read(f"ensembles/{key}.json"), f"{self.uri}/ensembles/{key}.json")
        except FileNotFoundError:
            return None

    def write_ensemble(self, ensemble: EnsembleRecord) -> None:
        """Keep an ensemble's operating point."""
        self.write(f"ensembles/{ensemble.key}.json", ensemble.model_dump_json(indent=1).encode())

    def load_checkpoint(self, key: str, name: str) -> bytes | None:
        """A trial's checkpoint `last` or `best`, or None."""
        try:
            return self.read(f"trials/{key}/checkpoints/{name}.pt")
        except FileNotFoundError:
            return None

    def save_checkpoint(self, key: str, name: str, data: bytes) -> None:
        """Keep a trial's checkpoint."""
        self.write(f"trials/{key}/checkpoints/{name}.pt", data)

    def lease(self, on_wait: Callable[[str], None] = lambda words: None) -> AbstractContextManager[None]:
        """Hold the ledger for one sweep; see `lease.held`."""
        return held(self, on_wait)

    def holder(self) -> Lease | None:
        """Who holds the ledger now, if anybody."""
        return current_holder(self)

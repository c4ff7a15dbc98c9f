"""The results of one study, each file of its ledger read once, for whoever shows or compares them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import pyarrow as pa

from cellray.errors import LedgerError
from cellray.ledger import DAMAGED, TABLES, Ledger
from cellray.record import PlannedTrial, Reference, SearchLog, TrialRecord
from cellray.results.plan import Plan
from cellray.results.samples import (
    GROUP,
    ImageRows,
    ImageTable,
    Sample,
    Samples,
    image_tables,
    parse_images,
    read_samples,
)
from cellray.results.tables import TrialTables, package_hash, packed, read_tables, unpacked
from cellray.scores import errors_of_nothing

READ_TOGETHER = 64
"""Trials whose tables are read together."""


class Results:
    """A study's records and what their tables say.

    Args:
        ledger: The study's.
        plan: The planned trials.
        records: Those of the ledger, planned or not.
        metric: Read no more of image tables than this metric on the test set at the own operating point needs; None:
            everything.
        log: How configurations were chosen, of a study that adapts.
        damaged: Key -> what is wrong with its record, in a sentence.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        records: Iterable[TrialRecord] = (),
        *,
        metric: str | None = None,
        log: SearchLog | None = None,
        damaged: Mapping[str, str] | None = None,
    ) -> None:
        self.ledger, self.log = ledger, log
        self.damaged = dict(damaged or {})
        """Key -> sentence: trials with a file that can't be read, which are counted as missing."""
        self._metric = metric
        self._images: dict[tuple[str, str], ImageRows] = {}
        self._units: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.update(plan, records)

    @classmethod
    def now(cls, ledger: Ledger, plan: Plan, *, metric: str | None = None) -> Results:
        """The results of a plan as they lie in the ledger; `metric` as for `Results`."""
        ledger = ledger.with_copies()
        log, damaged = ledger.search(), dict[str, str]()
        records = ledger.records(damaged=damaged)
        return cls(ledger, plan.with_dropped(log), records, metric=metric, log=log, damaged=damaged)

    @classmethod
    def together(cls, studies: Sequence[Results], labels: Collection[str]) -> Results:
        """Some configurations of several studies as if of one: labels and keys have the study's number before them.

        The same trial may be in two studies, judged differently.
        """
        trials: list[PlannedTrial] = []
        records: list[TrialRecord] = []
        images: dict[tuple[str, str], ImageRows] = {}
        for i, results in enumerate(studies):
            results.drop_damaged()
            images |= {(f"{i}/{key}", evaluation): rows for (key, evaluation), rows in results._images.items()}
            trials += [
                replace(trial, label=f"{i}/{trial.label}", key=f"{i}/{trial.key}")
                for trial in results.plan.trials
                if trial.label in labels
            ]
            for key, record in results.records.items():
                data = record.data.model_copy(update={"split_hash": f"{i}/{record.data.split_hash}"})
                records.append(record.model_copy(update={"key": f"{i}/{key}", "data": data}))
        found = cls(studies[0].ledger, replace(studies[0].plan, trials=tuple(trials)), records)
        found._images = images
        found.damaged = {f"{i}/{key}": words for i, of in enumerate(studies) for key, words in of.damaged.items()}
        return found

    def recounted(self, plan: Plan, records: Iterable[TrialRecord]) -> Results:
        """The same image rows under another plan, with other records of the same trials."""
        found = Results(self.ledger, plan, records, metric=self._metric)
        found._images = dict(self._images)
        return found

    def update(self, plan: Plan, records: Iterable[TrialRecord]) -> None:
        """Another plan, other records; what was read of trials that were judged anew since is forgotten."""
        everything = list(records)
        self.plan = plan
        self.records = plan.planned(everything)
        """The planned trials' records by key."""
        self.n_unplanned = len(everything) - len(self.records)
        """Records that the plan doesn't name, or that are out of date."""
        names = {(record.key, record.evaluation_key) for record in self.records.values()}
        for name in self._images.keys() - names:
            del self._images[name]

    def drop(self, key: str, sentence: str) -> None:
        """Count a trial as missing, since one of its files is damaged."""
        self.records.pop(key, None)
        self.damaged[key] = sentence

    def drop_damaged(self) -> None:
        """Look at the image tables before anything is counted, so that trials with a damaged one are missing."""
        self._load(list(self.records.values()))

    @property
    def samples(self) -> Samples:
        """What each image adds to each trial's metrics, by the trial's key; of every trial that has image rows."""
        self._load(list(self.records.values()))
        return {key: rows.samples for (key, _), rows in self._images.items()}

    @property
    def unit(self) -> str:
        """What seeds are crossed with on the test set: `image`, or `group of images`."""
        return "group of images" if any(u.startswith(GROUP) for units in self._tested for u in units) else "image"

    @property
    def n_units(self) -> int:
        """How many images, or groups of images, the test set has; 0 where no trial has image rows."""
        return max(map(len, self._tested), default=0)

    @property
    def _tested(self) -> set[tuple[str, ...]]:
        """Images or groups of the test set by any trial."""
        return {s.units for sets in self.samples.values() for (name, _), s in sets.items() if name == "test"}

    @cached_property
    def references(self) -> list[tuple[Reference, Sample]]:
        """Predictions made elsewhere, with what each image adds to their metrics on the test set."""
        found = []
        for reference in self.ledger.references():
            path = f"references/{reference.key}.parquet"
            try:
                rows = read_samples(image_tables([parse_images(self.ledger.read(path))]))[0]
            except (FileNotFoundError, *DAMAGED) as error:
                words = "is missing or damaged; remove references.json, and the next sweep judges the reference again"
                raise LedgerError(f"{self.ledger.uri}/{path} {words}") from error
            found.append((reference, rows.samples["test", "own"]))
        return found

    @property
    def nothing(self) -> dict[str, dict[str, float]]:
        """The worst counting errors of predicting nothing, by set.

        The images of a set are the same in every trial except on validation, so one image table for each split is read.
        """
        merged: dict[str, dict[str, float]] = {}
        seen: set[str] = set()
        for record in sorted(self.records.values(), key=lambda r: r.key):
            if record.data.split_hash in seen or not record.metrics:
                continue
            self._load([record])
            if record.key not in self.records:
                continue
            n_true = self._images[record.key, record.evaluation_key].n_true
            if n_true:
                seen.add(record.data.split_hash)
            for name, counts in n_true.items():
                into = merged.setdefault(name, {})
                for key, value in errors_of_nothing(counts).items():
                    into[key] = max(value, into.get(key, value))
        return merged

    def tables(self) -> Iterator[tuple[TrialRecord, TrialTables]]:
        """Each planned trial's record with what figures take of its tables; one with a damaged table is dropped.

        What image tables say is remembered on the way, so that none is opened twice: ask for this first. What was made
        of a trial's files before, on this machine and by the same code, isn't made again.
        """
        for some in in_parts(list(self.records.values())):
            kept = {record.key: self.ledger.find_made(record.key, self._made_by) for record in some}
            made = self._make([record for record in some if kept[record.key] is None])
            for record in some:
                if (data := kept[record.key]) is not None:
                    rows, tables = unpacked(data)
                    if rows is not None:
                        self._take(record, rows)
                    yield record, tables
                elif record.key in made:
                    yield record, made[record.key]

    @property
    def _made_by(self) -> str:
        """What else than a trial's files decides what is made of them."""
        return f"{package_hash()} {self._metric}"

    def _make(self, records: Sequence[TrialRecord]) -> dict[str, TrialTables]:
        """What figures take of some trials' tables, by key, and keep it with what their image tables say."""
        paths = [f"trials/{record.key}/{name}.parquet" for record in records for name in TABLES]
        files = self.ledger.read_all(paths)
        found = [dict(zip(TABLES, files, strict=False)) for _ in records]
        images = self._remember(records, [of["images"] for of in found])
        made: dict[str, TrialTables] = {}
        for record, of in zip(records, found, strict=True):
            if record.key not in self.records:
                continue
            try:
                made[record.key] = read_tables(self.ledger, record, images.get(record.key), of)
            except LedgerError as error:
                self.drop(record.key, str(error))
                continue
            rows = self._images.get((record.key, record.evaluation_key))
            self.ledger.keep_made(record.key, packed(rows, made[record.key]), self._made_by)
        return made

    def _load(self, records: Iterable[TrialRecord]) -> None:
        """Read the image tables of these records that weren't read yet."""
        new = [r for r in records if r.metrics and (r.key, r.evaluation_key) not in self._images]
        files = self.ledger.read_all(f"trials/{record.key}/images.parquet" for record in new)
        for some in in_parts(new):
            self._remember(some, [next(files) for _ in some])

    def _remember(self, records: Sequence[TrialRecord], files: Sequence[bytes | None]) -> dict[str, ImageTable]:
        """Keep what the image tables of some trials say; the tables themselves, by key."""
        parsed: dict[str, pa.Table] = {}
        for record, data in zip(records, files, strict=True):
            if record.metrics and data is None:
                self._images[record.key, record.evaluation_key] = ImageRows({}, {})
            elif record.metrics and data is not None:
                with self._dropping(record.key):
                    parsed[record.key] = parse_images(data, self._metric)
        tables = self._converted(parsed)
        judged = [record for record in records if record.key in tables]
        found = read_samples([tables[record.key] for record in judged], self._metric)
        for record, rows in zip(judged, found, strict=True):
            self._take(record, rows)
        return tables

    def _take(self, record: TrialRecord, rows: ImageRows) -> None:
        # the same images in every trial, so one copy of their names
        samples = {
            where: replace(sample, units=self._units.setdefault(sample.units, sample.units))
            for where, sample in rows.samples.items()
        }
        self._images[record.key, record.evaluation_key] = ImageRows(samples, rows.n_true)

    def _converted(self, parsed: Mapping[str, pa.Table]) -> dict[str, ImageTable]:
        """Image tables by key, converted together, or, if one of them is damaged, each by itself."""
        try:
            return dict(zip(parsed, image_tables(list(parsed.values())), strict=True))
        except DAMAGED:
            tables: dict[str, ImageTable] = {}
            for key, table in parsed.items():
                with self._dropping(key):
                    (tables[key],) = image_tables([table])
            return tables

    @contextmanager
    def _dropping(self, key: str) -> Iterator[None]:
        """A trial whose image table turns out to be damaged in here counts as missing."""
        try:
            with self.ledger.reading(key, "images"):
                yield
        except LedgerError as error:
            self.drop(key, str(error))


def in_parts(records: Sequence[TrialRecord]) -> Iterator[Sequence[TrialRecord]]:
    """So many at a time that their tables fit into memory."""
    return (records[i : i + READ_TOGETHER] for i in range(0, len(records), READ_TOGETHER))

"""The opened data of a study: what its trials train on and are judged by, and their keys."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from cellray.data import Dataset, Likeness, Split, add_maps, fold_dataset, open_dataset, split_dataset, twin_notes
from cellray.errors import DataError
from cellray.ledger import Ledger
from cellray.record import PlannedTrial
from cellray.study import DataConfig, DatasetConfig, Trial
from cellray.training import check_crop


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

        def opened(dataset: DatasetConfig, beside: Dataset | None = None) -> Dataset:
            return open_dataset(
                dataset,
                channels=config.channels,
                normalise=config.normalise,
                reading=config.reading,
                progress=partial(progress, dataset.name) if progress else None,
                target_diameter_px=beside.diameter_px if beside else None,
                require_diameter=beside is not None,
            )

        train = opened(config.train)
        return cls(train, {external.name: opened(external, train) for external in config.external})

    def notes(self, data: DataConfig) -> list[str]:
        """What is worth knowing before anything is trained: of each set, and of images that two parts share."""
        found = [note for dataset in (self.train, *self.external.values()) for note in dataset.notes]

        def looks(dataset: Dataset, indices: Iterable[int]) -> dict[str, Likeness]:
            return {dataset.names[i]: dataset.looks[i] for i in indices}

        for fold in range(data.folds or 1):
            split = self._parts(data, fold, 0)
            training = looks(self.train, split.train + split.val)
            twins = twin_notes("training", training, "test", looks(self.train, split.test))
            found += twins if data.folds is None else [f"fold {fold + 1}: {note}" for note in twins]
        if data.folds is not None:
            training = looks(self.train, range(len(self.train)))
        for name, dataset in self.external.items():
            found += twin_notes("training", training, name, looks(dataset, range(len(dataset))))
        return found

    def add_maps(self, trials: list[Trial], progress: Callable[[str, int, int], None] | None = None) -> None:
        """Compute the maps of true cells that the trials' losses need and this machine doesn't have yet."""
        names = {name for loss in {t.label: t.loss for t in trials}.values() for name in loss.build().maps}
        add_maps(self.train, names, partial(progress, f"{self.train.name}: maps of cells") if progress else None)

    def split(self, trial: Trial) -> Split:
        """The training set's parts for one trial; with `data.folds` as `fold_dataset` has them."""
        return self._parts(trial.data, trial.fold, trial.seed)

    def _parts(self, data: DataConfig, fold: int | None, seed: int) -> Split:
        drawn_by = seed if data.split_seed is None else data.split_seed
        if data.folds is not None:
            return fold_dataset(self.train, folds=data.folds, fold=fold, split_seed=drawn_by)
        return split_dataset(
            self.train, val_fraction=data.val_fraction, test_fraction=data.test_fraction, split_seed=drawn_by
        )

    def plan(self, trials: list[Trial], ledger: Ledger) -> list[PlannedTrial]:
        """Every trial with its keys and whether the ledger has it.

        Raises:
            DataError: If the data can't be split or cropped as one of the trials wants it.
        """
        self.check(trials)
        stored = {record.key: record for record in ledger.records()}
        planned = [self.planned(trial) for trial in trials]
        return [replace(trial, record=stored.get(trial.key)) for trial in planned]

    def planned(self, trial: Trial, ledger: Ledger | None = None) -> PlannedTrial:
        """A trial with its keys, and with its record if a ledger is given."""
        key, evaluation_key = self.keys(trial)
        record = ledger.record(key) if ledger else None
        return PlannedTrial(trial.label, trial.seed, key, evaluation_key, trial, record)

    def check(self, trials: list[Trial]) -> None:
        """Raise `DataError` if a trial would find no images for one of its parts, no cell, or no image for a crop."""
        seen = set()
        for trial in trials:
            case = (trial.seed if trial.data.split_seed is None else trial.data.split_seed, trial.training.crop_px)
            if case not in seen:
                seen.add(case)
                for split in map(self.split, trial.trainings):
                    check_crop(self.train, split.train, trial.training.crop_px)
                    self._check_cells(split)

    def _check_cells(self, split: Split) -> None:
        """A part without any cell would be judged perfect by finding none."""
        for part, indices in {"training": split.train, "validation": split.val, "test": split.test}.items():
            if not any(self.train.n_objects[i] for i in indices):
                raise DataError(
                    f"dataset {self.train.name!r}: its {len(indices)} {part} image(s) hold no cell at all, "
                    f"so nothing can be learnt or judged on them; expected cells in some"
                )

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

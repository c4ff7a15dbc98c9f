"""Which images train, select and judge: official test rows if there are any, whole groups otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cellray.errors import DataError


class HasNames(Protocol):
    """The facts that decide a split; `Dataset` has them."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def splits(self) -> list[str]: ...
    @property
    def groups(self) -> list[str]: ...


@dataclass(frozen=True)
class Split:
    """Indices into a dataset, each part in order of name, and a short hash of the names in each part."""

    train: list[int]
    val: list[int]
    test: list[int]
    hash: str


def split_dataset(dataset: HasNames, *, val_fraction: float, test_fraction: float, split_seed: int) -> Split:
    """Divide a dataset into training, validation and test images.

    Official test rows are the test set. Without any, whole groups are drawn for it, always with seed 0, so that
    the test set never varies. Validation groups are drawn from the rest by `split_seed`. Nothing depends on the
    order in which files were listed.

    Raises:
        DataError: If a part comes out empty.
    """
    order = sorted(range(len(dataset.names)), key=lambda i: dataset.names[i])
    test = [i for i in order if dataset.splits[i] == "test"]
    rest = [i for i in order if dataset.splits[i] != "test"]
    if not test:
        test, rest = _draw(dataset, rest, test_fraction, seed=0)
    val, train = _draw(dataset, rest, val_fraction, seed=split_seed)
    parts = {"training": train, "validation": val, "test": test}
    empty = [name for name, part in parts.items() if not part]
    if empty:
        sizes = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        raise DataError(
            f"dataset {dataset.name!r}: its {len(order)} image(s) in {len(_grouped(dataset, order))} group(s) leave no "
            f"{' and no '.join(empty)} images ({sizes}); expected at least 3 images in different groups, "
            f"or an official test split and 2 groups besides"
        )
    return Split(train, val, test, _hash_parts(dataset, train, val, test))


def fold_dataset(dataset: HasNames, *, folds: int, fold: int | None, split_seed: int) -> Split:
    """Divide a dataset so that every image is a test image of one fold, whatever official split it has.

    Whole groups are dealt, always with seed 0, each to the part that is smallest so far, the largest group first. Part
    `fold` is for testing and another, drawn by `split_seed`, for validation; over the folds each part is both once.

    Args:
        dataset: To be divided.
        folds: Number of parts, at least 3.
        fold: From 0; None: all of them, of which `train` and `val` are the first one's, and `test` is every image.
        split_seed: Draws how far behind the test part the validation part comes.

    Raises:
        DataError: If there are fewer groups than folds.
    """
    order = sorted(range(len(dataset.names)), key=lambda i: dataset.names[i])
    groups = _grouped(dataset, order)
    if len(groups) < folds:
        raise DataError(
            f"dataset {dataset.name!r}: its {len(order)} image(s) are in {len(groups)} group(s), too few for "
            f"data.folds: {folds}; expected at least one group for each"
        )
    parts: list[list[int]] = [[] for _ in range(folds)]
    for name in sorted(_permuted(groups, seed=0), key=lambda name: -len(groups[name])):
        min(parts, key=len).extend(groups[name])
    behind = 1 + int(np.random.Generator(np.random.PCG64(split_seed)).integers(folds - 1))
    test, val = set(parts[fold or 0]), set(parts[((fold or 0) + behind) % folds])
    train, validated = [i for i in order if i not in test | val], [i for i in order if i in val]
    tested = order if fold is None else [i for i in order if i in test]
    return Split(train, validated, tested, _hash_parts(dataset, train, validated, tested))


def _group(dataset: HasNames, index: int) -> tuple[str, str]:
    """Name of an image's group; an image without one is a group of its own that no other can be called."""
    return ("group", dataset.groups[index]) if dataset.groups[index] else ("image", dataset.names[index])


def _grouped(dataset: HasNames, indices: Sequence[int]) -> dict[tuple[str, str], list[int]]:
    """The images of each group."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in indices:
        groups.setdefault(_group(dataset, i), []).append(i)
    return groups


def _permuted(groups: Iterable[tuple[str, str]], *, seed: int) -> list[tuple[str, str]]:
    """The groups in an order that depends on their names and a seed alone."""
    names = sorted(groups)
    return [names[k] for k in np.random.Generator(np.random.PCG64(seed)).permutation(len(names))]


def _draw(dataset: HasNames, indices: list[int], fraction: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Draw whole groups for about `fraction` of the images: (drawn, left), neither empty if that is possible."""
    groups = _grouped(dataset, indices)
    if len(groups) < 2:
        return [], indices
    permuted = _permuted(groups, seed=seed)
    wanted = max(1, round(fraction * len(indices)))
    drawn: list[int] = []
    for name in permuted:
        if len(drawn) + len(groups[name]) <= wanted and len(drawn) + len(groups[name]) < len(indices):
            drawn += groups[name]
    if not drawn:  # every group is larger than the part: the smallest comes closest
        drawn = list(groups[min(permuted, key=lambda name: len(groups[name]))])
    chosen = set(drawn)
    return [i for i in indices if i in chosen], [i for i in indices if i not in chosen]


def _hash_parts(dataset: HasNames, *parts: list[int]) -> str:
    text = "\n\n".join("\n".join(sorted(dataset.names[i] for i in part)) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

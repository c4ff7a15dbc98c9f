"""Which images train, select and judge: official test rows if there are any, whole groups otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
            f"dataset {dataset.name!r}: its {len(order)} image(s) in {_count_groups(dataset, order)} group(s) leave no "
            f"{' and no '.join(empty)} images ({sizes}); expected at least 3 images in different groups, "
            f"or an official test split and 2 groups besides"
        )
    return Split(train, val, test, _hash_parts(dataset, train, val, test))


def _group(dataset: HasNames, index: int) -> tuple[str, str]:
    """Name of an image's group; an image without one is a group of its own that no other can be called."""
    return ("group", dataset.groups[index]) if dataset.groups[index] else ("image", dataset.names[index])


def _count_groups(dataset: HasNames, indices: Sequence[int]) -> int:
    return len({_group(dataset, i) for i in indices})


def _draw(dataset: HasNames, indices: list[int], fraction: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Draw whole groups for about `fraction` of the images: (drawn, left), neither empty if that is possible."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in indices:
        groups.setdefault(_group(dataset, i), []).append(i)
    if len(groups) < 2:
        return [], indices
    names = sorted(groups)
    permuted = [names[k] for k in np.random.Generator(np.random.PCG64(seed)).permutation(len(names))]
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

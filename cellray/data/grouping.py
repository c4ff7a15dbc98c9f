"""Groups of images by their names: those of one animal, well or slide stay on one side of a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from cellray.data.listing import Item
from cellray.errors import DataError

LEAST_GROUPS = 4
"""Fewer can't be split into training, validation and test images with any choice."""


def grouped(items: Sequence[Item], pattern: str, where: str) -> list[Item]:
    """The items with groups: what the pattern finds in a name, unless the dataset says the group itself.

    Args:
        items: Of a dataset.
        pattern: A regular expression, searched for in names; its first group if it has one, else all of it.
        where: Names the dataset in errors.

    Raises:
        DataError: If a name doesn't have the pattern.
    """
    search = re.compile(pattern).search
    found = []
    for item in items:
        match = search(item.name)
        if match is None and not item.group:
            raise DataError(f"{where}: groups: the image {item.name!r} doesn't have the pattern {pattern!r}")
        found.append(item if item.group or match is None else replace(item, group=match[1 if match.re.groups else 0]))
    return found


def guess_groups(names: Sequence[str]) -> str:
    """A pattern of the beginning that images of one animal or well share in their names; '' if none shows.

    It is the shortest beginning, in words, that makes at least four groups of two images on average: the longer ones
    make smaller groups, which may put images of one animal on both sides of a split.
    """
    words = [re.split(r"[-_ .]+", name) for name in names]
    for n in range(1, max(map(len, words), default=0)):
        beginnings = {tuple(name[:n]) for name in words}
        if all(len(name) > n for name in words) and LEAST_GROUPS <= len(beginnings) <= len(names) / 2:
            return r"^" + r"[-_ .]+".join([r"[^-_ .]+"] * n)
    return ""

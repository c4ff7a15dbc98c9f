"""Pictures that are the same, or nearly so: a hash of the pixels, and a small picture that survives a new contrast."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cellray.arrays import Floats, Numbers, brightest

SIDE = 24
"""Of the small picture, in its pixels."""
ALIKE = 0.9
"""Correlation of two small pictures from which on they show the same; of different fields it lies near 0."""


class Likeness(NamedTuple):
    """What an image is recognised by."""

    digest: str
    """Of its pixels."""
    small: str
    """The image on `SIDE` x `SIDE` pixels less its own surroundings, int8 in base 64; all 0 of a flat image."""


class Twins(NamedTuple):
    """Two images that show the same."""

    first: int
    second: int
    is_identical: bool


def look_of(pixels: Numbers) -> Likeness:
    """What to recognise an image (H, W[, C]) by."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).hexdigest()
    gray = Image.fromarray(brightest(pixels).astype(np.float32))
    small = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    small = small - ndimage.uniform_filter(small, 5)
    peak = np.abs(small).max()
    scaled = np.round(small / peak * 127) if peak > 1e-3 else np.zeros_like(small)
    return Likeness(digest, base64.b64encode(scaled.astype(np.int8).tobytes()).decode())


def twin_notes(
    first: str, of_first: Mapping[str, Likeness], second: str, of_second: Mapping[str, Likeness]
) -> list[str]:
    """A note if images of the second set show what images of the first one do.

    Args:
        first: What the one set is called, such as ``training``.
        of_first: Its images by name.
        second: What the other is called.
        of_second: The same of it.
    """
    pairs = twins(list(of_first.values()), list(of_second.values()))
    if not pairs:
        return []
    pair = max(pairs, key=lambda twin: twin.is_identical)
    names = list(of_second)[pair.second], list(of_first)[pair.first]
    how = "identical" if pair.is_identical else "nearly identical"
    n = len({twin.second for twin in pairs})
    return [
        f"{n} of {len(of_second)} {second} images show what a {first} image shows: {names[0]!r} is {how} "
        f"to {names[1]!r}; scores on such images say little about others"
    ]


def twins(first: Sequence[Likeness], second: Sequence[Likeness]) -> list[Twins]:
    """Pairs of images of two lists that show the same."""
    if not first or not second:
        return []
    rows, columns = np.nonzero(_unit(first) @ _unit(second).T > ALIKE)
    return [
        Twins(i, k, first[i].digest == second[k].digest) for i, k in zip(rows.tolist(), columns.tolist(), strict=True)
    ]


def _unit(looks: Sequence[Likeness]) -> Floats:
    small = [np.frombuffer(base64.b64decode(look.small), np.int8) for look in looks]
    values: NDArray[np.float64] = np.array(small, np.float64)
    values -= values.mean(axis=1, keepdims=True)
    length = np.sqrt((values**2).sum(axis=1, keepdims=True))
    return values / np.where(length > 0, length, 1)

"""Signs that a mask doesn't belong to its image, or isn't a mask of cells at all: facts of each image, then notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from scipy import ndimage
from skimage.measure import label as label_regions

from cellray.arrays import Floats, Labels, Mask, Numbers, brightest

DIM = 0.35
"""Cells of less contrast than this are no brighter than what surrounds them; of real sets the lowest is 0.6."""
HUNDREDFOLD = 100.0


class Signs(TypedDict):
    """What one image and its true cells are like."""

    labels: int
    pieces: int
    """Connected parts of labels."""
    scattered: int
    """Labels that lie in several distant pieces."""
    signal: float
    """Share of the pixels that are marked as cell."""
    contrast: float | None
    """How much brighter cells are than what surrounds them, in standard deviations of both together."""
    touched: float
    """Largest share of the other labels' pieces that one label touches."""
    hollow: float
    """Area of the holes in what is marked, in areas of what is marked."""
    odd_label: int | None
    """A label that may mark pixels to leave out, by its number."""
    area: float
    """Median of the labels, in pixels; 0 without any."""
    spread: float
    """How many times the area of the largest label is the median, or the median the area of the smallest tenth."""


class Doubt(NamedTuple):
    """What may be wrong with the masks of some images."""

    short: str
    """A few words for the caption of a picture."""
    sentence: str
    """With the figures of the first of the images."""
    images: list[int]


def signs_of(pixels: Numbers, labels: Labels, odd_label: int | None = None) -> Signs:
    """Likeness at one image (H, W[, C]) and its labels (H, W), 0 and 1..n; `odd_label` as in `Signs`."""
    mask = labels > 0
    areas = np.bincount(labels.ravel())[1:]
    pieces = label_regions(labels, background=0, connectivity=2)
    owners = _owners(labels, pieces)
    median = float(np.median(areas)) if len(areas) else 1.0
    return {
        "labels": len(areas),
        "pieces": len(owners),
        "scattered": _n_scattered(pieces, owners),
        "signal": float(mask.mean()) if mask.size else 0.0,
        "contrast": contrast(brightest(pixels), labels),
        "touched": _touched(labels, pieces, owners),
        "hollow": _hollow(mask),
        "odd_label": odd_label,
        "area": median if len(areas) else 0.0,
        "spread": float(max(areas.max() / median, median / np.percentile(areas, 10))) if len(areas) else 1.0,
    }


def contrast(gray: Numbers, labels: Labels) -> float | None:
    """`Signs.contrast`; the surroundings are a ring a quarter of a cell wide. None without cells or surroundings."""
    mask = labels > 0
    if not mask.any():
        return None
    diameter = np.sqrt(4 / np.pi * np.median(np.bincount(labels.ravel())[1:]))
    ring = ndimage.maximum_filter(mask, 2 * max(2, round(diameter / 4)) + 1) & ~mask
    inside, around = gray[mask].astype(np.float64), gray[ring].astype(np.float64)
    if not len(around):
        return None
    spread = np.concatenate([inside, around]).std()
    return float((inside.mean() - around.mean()) / spread) if spread else 0.0


def doubts(signs: Sequence[Signs]) -> list[Doubt]:
    """What the signs of a set's images make doubtful, each kind once."""
    contrasts = [s["contrast"] for s in signs if s["contrast"] is not None]
    usual_contrast = float(np.median(contrasts)) if contrasts else 0.0
    areas = [s["area"] for s in signs if s["area"]]
    usual_area = float(np.median(areas)) if areas else 1.0

    def is_dim(s: Signs) -> bool:
        return s["contrast"] is not None and s["contrast"] < max(DIM, usual_contrast / 2)

    def has_another_scale(s: Signs) -> bool:
        return bool(s["area"]) and not 1 / HUNDREDFOLD < s["area"] / usual_area < HUNDREDFOLD

    found = []
    for short, is_so, sentence in (
        *DOUBTS,
        (
            "cells not brighter",
            is_dim,
            "cells are no brighter than what surrounds them; is the mask another image's, turned, shifted or inverted?",
        ),
        (
            "cells of another size",
            has_another_scale,
            "the median cell has {area:.0f} px, in the whole set {usual_area:.0f} px; is it scaled, or specks?",
        ),
    ):
        images = [k for k, s in enumerate(signs) if is_so(s)]
        if images:
            figures = {**signs[images[0]], "usual_area": usual_area}
            found.append(Doubt(short, sentence.format_map(figures), images))
    return found


def doubt_note(doubt: Doubt, names: Sequence[str]) -> str:
    """A doubt as a note, with the images' names."""
    first, *others = doubt.images
    shown = ", ".join(repr(names[k]) for k in others[:2]) + (", …" if len(others) > 2 else "")
    alike = f" (and alike in {len(others)} more of {len(names)} images: {shown})" if others else ""
    return f"in {names[first]!r} {doubt.sentence}{alike}"


def _is_scattered(s: Signs) -> bool:
    return s["scattered"] > 0 or (s["pieces"] >= 2 * s["labels"] and s["pieces"] >= s["labels"] + 4)


DOUBTS: tuple[tuple[str, Callable[[Signs], bool], str], ...] = (
    (
        "signal above half",
        lambda s: s["signal"] > 0.8 or (s["signal"] > 0.5 and (s["contrast"] or 0.0) < 1),
        "{signal:.0%} of the pixels are marked as cell; is the mask inverted?",
    ),
    (
        "one label, many pieces",
        _is_scattered,
        "{labels} label(s) lie in {pieces} distant pieces; if the numbers are classes, "
        "save a mask of the cells alone as 0/255",
    ),
    (
        "one label touches most",
        lambda s: s["touched"] > 0.6,
        "one label touches {touched:.0%} of the others; if it marks borders or pixels to leave out, "
        "set data.ignore to its number, or save one number a cell",
    ),
    (
        "a label far above",
        lambda s: s["odd_label"] is not None,
        "label {odd_label} stands far above all others; "
        "if it marks pixels that are neither cell nor background, set data.ignore: {odd_label}",
    ),
    (
        "outlines, not filled",
        lambda s: s["hollow"] > 0.5,
        "the holes in what is marked are {hollow:.1f} times as large as itself; if the mask holds outlines, fill them",
    ),
    (
        "sizes differ 100-fold",
        lambda s: s["spread"] > HUNDREDFOLD,
        "sizes differ {spread:.0f}-fold from the median; is the background a label, or are there specks?",
    ),
)
"""Short words, the rule, and the sentence, filled in with `Signs`, of each doubt that one image alone can raise."""


def _owners(labels: Labels, pieces: Labels) -> Labels:
    """Label of each piece 1..n."""
    owners = np.zeros(int(pieces.max(initial=0)) + 1, labels.dtype)
    inside = pieces > 0
    owners[pieces[inside]] = labels[inside]
    return owners[1:]


def _n_scattered(pieces: Labels, owners: Labels) -> int:
    """Labels of which two pieces of alike size, not cut off by the image's edge, lie over two diameters apart."""
    several = np.flatnonzero(np.bincount(owners, minlength=1) > 1)
    if not len(several):
        return 0
    numbers = np.arange(1, len(owners) + 1)
    areas = np.bincount(pieces.ravel())[1:]
    inside = ~np.isin(numbers, np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    centres: Floats = np.array(ndimage.center_of_mass(np.ones_like(pieces), pieces, numbers))
    n = 0
    for label in several:
        own = np.flatnonzero((owners == label) & inside)
        own = own[areas[own] >= areas[own].max(initial=0) / 4]
        if len(own) < 2:
            continue
        reach = np.hypot(*(centres[own] - centres[own[0]]).T).max()
        n += bool(reach > 2 * np.sqrt(4 / np.pi * areas[own].max()))
    return n


def _touched(labels: Labels, pieces: Labels, owners: Labels) -> float:
    if len(owners) < 7:  # of few cells one often touches most
        return 0.0
    pairs = []
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        meet = (labels[a] != labels[b]) & (labels[a] > 0) & (labels[b] > 0)
        pairs += [(labels[a][meet], pieces[b][meet]), (labels[b][meet], pieces[a][meet])]
    label, piece = (np.concatenate(part) for part in zip(*pairs, strict=True))
    if not len(label):
        return 0.0
    touching = np.unique(np.stack([label, piece]), axis=1)[0]
    counts = np.bincount(touching, minlength=labels.max() + 1)
    others = len(owners) - np.bincount(owners, minlength=len(counts))
    return float((counts / np.maximum(others, 6)).max())


def _hollow(mask: Mask) -> float:
    grounds, n = ndimage.label(~mask)
    if n < 2:
        return 0.0
    areas = np.bincount(grounds.ravel())
    areas[0] = 0
    for edge in (grounds[0], grounds[-1], grounds[:, 0], grounds[:, -1]):
        areas[edge] = 0
    return float(areas.sum() / max(np.count_nonzero(mask), 1))

"""Which image has which mask, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cellray.data.source import plain_name

CHANNEL = re.compile(r"(?<![^\W_])(?:c|ch|w)\d+(?![^\W_])")
"""A channel's number as a word of a file name; any other number says which image it is."""


class Pairing(NamedTuple):
    """Stems of images and masks that belong together, and of those that stand alone."""

    pairs: dict[str, str]
    """Stem of an image -> stem of its mask."""
    images_alone: list[str]
    masks_alone: list[str]
    affixes: tuple[str, str]
    """What stands before and after an image's name in its mask's, as words; both '' if the names are equal."""


def pair_stems(images: Iterable[str], masks: Iterable[str]) -> Pairing:
    """Pair equal names, then those that differ in case or Unicode form, then those that differ by one common affix."""
    left_images, left_masks = sorted(images), sorted(masks)
    pairs: dict[str, str] = {}
    affixes = ("", "")
    for key in (str, plain_name):
        pairs |= _matched({key(i): i for i in left_images}, {key(m): m for m in left_masks})
        left_images = [i for i in left_images if i not in pairs]
        taken = set(pairs.values())
        left_masks = [m for m in left_masks if m not in taken]
    if left_images and left_masks and not pairs:
        image_affix, mask_affix = _affixes([*map(plain_name, left_images)], [*map(plain_name, left_masks)])
        found = _matched(_cores(left_images, image_affix), _cores(left_masks, mask_affix))
        if found:
            pairs, affixes = found, (_told(image_affix), _told(mask_affix))
            left_images = [i for i in left_images if i not in pairs]
            left_masks = [m for m in left_masks if m not in set(pairs.values())]
    return Pairing(pairs, left_images, left_masks, affixes)


def _matched(images: Mapping[str, str], masks: Mapping[str, str]) -> dict[str, str]:
    return {stem: masks[key] for key, stem in images.items() if key in masks}


_Affix = tuple[str, str]


def _affixes(images: list[str], masks: list[str]) -> tuple[_Affix, _Affix]:
    """Prefix and suffix that all images share and all masks, as far as the two differ."""
    if len(images) == len(masks) == 1:
        (image,), (mask,) = images, masks
        head = _common_prefix([image, mask])
        tail = _common_suffix([image[len(head) :], mask[len(head) :]])
        return _single(image, mask, head, tail)
    before = _common_prefix(images), _common_prefix(masks)
    after = _common_suffix(images), _common_suffix(masks)
    shared_before, shared_after = len(_common_suffix(before)), len(_common_prefix(after))
    image_affix, mask_affix = ((before[k][: len(before[k]) - shared_before], after[k][shared_after:]) for k in range(2))
    return image_affix, mask_affix


def _single(image: str, mask: str, head: str, tail: str) -> tuple[_Affix, _Affix]:
    """Affixes of one image and one mask, whose names share a beginning or an end."""
    if len(head) >= len(tail):
        return ("", image[len(head) :]), ("", mask[len(head) :])
    return (image[: len(image) - len(tail)], ""), (mask[: len(mask) - len(tail)], "")


def _common_prefix(names: Sequence[str]) -> str:
    low, high = min(names), max(names)
    n = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:n]


def _common_suffix(names: Sequence[str]) -> str:
    return _common_prefix([name[::-1] for name in names])[::-1]


def _cores(stems: list[str], affix: _Affix) -> dict[str, str]:
    """Stems by what is left of their names without an affix; none if the affix holds numbers of images."""
    before, after = affix
    if any(c.isdigit() for c in CHANNEL.sub("", before) + CHANNEL.sub("", after)):
        return {}
    cores: dict[str, str] = {}
    for stem in stems:
        plain = plain_name(stem)
        core = plain[len(before) : len(plain) - len(after)]
        if not core or core in cores:
            return {}
        cores[core] = stem
    return cores


def _told(affix: _Affix) -> str:
    """An affix as a pattern, such as ``*_masks``."""
    return f"{affix[0]}*{affix[1]}"

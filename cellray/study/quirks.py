"""What the reference study's released code does differently, each point a switch of its own (SCIENCE, section 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cellray.errors import one_of


@dataclass(frozen=True)
class Quirk:
    """One difference from the strict protocol."""

    acts_on: Literal["training", "evaluation", "ranking"]
    description: str
    allows: tuple[str, ...] = ()
    """Failures of the loss check that it causes on purpose."""


QUIRKS: dict[str, Quirk] = {
    "double_activation": Quirk(
        "training",
        "the loss activates the network's probability once more: it sees values from 0.269 to 0.731 only",
        ("floor", "double_activation"),
    ),
    "flattened_tversky": Quirk(
        "training",
        "Tversky and Focal Tversky sum both channels of all images together, so that their weights cancel",
        ("weights",),
    ),
    "lr_test_ignored": Quirk("training", "the learning rate is 1e-3 in one cycle, whatever a range test finds"),
    "many_to_one": Quirk("evaluation", "each true cell looks for its best partner alone: one blob can score twice"),
    "released_counts": Quirk("evaluation", "counting errors compare two numbers of hits and leave out false positives"),
    "shared_threshold": Quirk("evaluation", "every trial is judged at the published operating point"),
    "skip_collapsed": Quirk("ranking", "means and ranks leave out collapsed and failed trials"),
}


def known_quirks(names: Iterable[str]) -> list[str]:
    """`names` if all of them are quirks, else `StudyError` naming the nearest known one."""
    return [one_of("quirk", name, QUIRKS) for name in names]

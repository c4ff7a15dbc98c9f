"""Losses with settings that were published somewhere, each as a study's ``loss:`` would hold it.

The part of the name after the @ is the source: ``slides`` and ``code`` are the slides and the released code of the
reference study (Clissa, Macaluso & Zoccoli, ICIAP 2023 workshops), with its values but without the faults of its code;
``paper`` is the paper that proposed the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, TypedDict, final


@final
class PresetTerm(TypedDict, total=False):
    """A loss by its name; its weight where it is one of several."""

    name: Required[str]
    settings: dict[str, float]
    weight: float


@final
class PresetSum(TypedDict):
    """A weighted sum of losses."""

    terms: Sequence[PresetTerm]


def _bce(cell_weight: float) -> PresetTerm:
    return {"name": "bce", "settings": {"cell_weight": cell_weight, "background_weight": 1.0}}


def _focal_tversky(exponent: float) -> PresetTerm:
    return {
        "name": "focal_tversky",
        "settings": {"fp_weight": 0.3, "fn_weight": 0.7, "exponent": exponent, "smooth": 1e-6},
    }


def _combined(bce: float, dice: float, third_weight: float, third: PresetTerm) -> PresetSum:
    return {"terms": [{"name": "bce", "weight": bce}, {**DICE, "weight": dice}, {**third, "weight": third_weight}]}


DICE: PresetTerm = {"name": "dice", "settings": {"smooth": 1e-6}}
FOCAL: PresetTerm = {"name": "focal", "settings": {"exponent": 2.0}}
SLIDES, CODE = _focal_tversky(2.0), _focal_tversky(4 / 3)

PRESETS: dict[str, PresetTerm | PresetSum] = {
    "bce_low@slides": _bce(50.0),
    "bce_medium@slides": _bce(100.0),
    "bce_high@slides": _bce(200.0),
    "dice@slides": DICE,
    "focal@slides": FOCAL,
    "focal_tversky@slides": SLIDES,
    "combined_balanced@slides": _combined(0.3, 0.3, 0.4, FOCAL),
    "combined_overcrowd@slides": _combined(0.2, 0.5, 0.3, FOCAL),
    "combined_cellvit@slides": _combined(0.5, 0.3, 0.5, FOCAL),
    "combined_ft_balanced@slides": _combined(0.3, 0.3, 0.4, SLIDES),
    "combined_ft_overcrowd@slides": _combined(0.2, 0.5, 0.3, SLIDES),
    "combined_ft_cellvit@slides": _combined(0.5, 0.3, 0.5, SLIDES),
    "bce_low@code": _bce(50.0),
    "bce_medium@code": _bce(100.0),
    "bce_high@code": _bce(200.0),
    "dice@code": DICE,
    "focal@code": FOCAL,
    "focal_tversky@code": CODE,
    "combined_balanced@code": _combined(0.3, 0.3, 0.4, FOCAL),
    "combined_overcrowd@code": _combined(0.2, 0.5, 0.3, FOCAL),
    "combined_cellvit@code": _combined(0.5, 0.2, 0.5, FOCAL),
    "combined_ft_balanced@code": _combined(0.3, 0.3, 0.4, CODE),
    "combined_ft_overcrowd@code": _combined(0.2, 0.5, 0.3, CODE),
    "combined_ft_cellvit@code": _combined(0.5, 0.2, 0.5, CODE),
    "focal_tversky@paper": {
        "name": "focal_tversky",
        "settings": {"fp_weight": 0.3, "fn_weight": 0.7, "exponent": 0.75, "smooth": 1.0},
    },
}

"""One trial's settings, and the keys by which a ledger knows what of it is done already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

from cellray.study.group import Settings
from cellray.study.loss import LossConfig
from cellray.study.network import ModelConfig
from cellray.study.settings import DataConfig, EvaluationConfig, TrainingConfig

SCHEMA_VERSION = 1
"""Raised when a change of code changes what a training computes, rounding aside: old records then count as not done."""
EVALUATION_VERSION = 2
"""Raised when a change of code changes the scores of trained weights: they are then evaluated again."""


class Recipe(NamedTuple):
    """What a configuration trains: the study's settings with its changes."""

    model: ModelConfig
    loss: LossConfig
    training: TrainingConfig

    def decisive(self) -> dict[str, object]:
        """Plain settings, without those that can't change what comes out."""
        unused = set() if self.training.lr == "range_test" else {"range_test"}
        return {
            "model": self.model.decisive(),
            "loss": self.loss.decisive(),
            "training": self.training.model_dump(mode="json", exclude=unused),
        }


class Trial(Settings):
    """One configuration with one seed: everything that decides a training run, and its keys."""

    study: str
    label: str
    seed: int
    protocol: str
    quirks: tuple[str, ...] = ()
    """What differs from the strict protocol; those that act on training or evaluation are in the settings already."""
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    def key(self, fingerprint: str) -> str:
        """Short hash of what decides the trained weights: settings, seed, data, code; no paths, no label.

        Args:
            fingerprint: Of the training set's content (`Dataset.fingerprint`).
        """
        data = self.data.model_dump(mode="json", include={"channels", "normalise", "val_fraction", "test_fraction"})
        data["split_seed"] = self.seed if self.data.split_seed is None else self.data.split_seed
        return short_hash(
            {
                "schema": SCHEMA_VERSION,
                "protocol": "strict",  # quirks that act on training are part of its settings
                "fingerprint": fingerprint,
                "data": data,
                "seed": self.seed,
                **Recipe(self.model, self.loss, self.training).decisive(),
            }
        )

    def evaluation_key(self, facts: Mapping[str, object]) -> str:
        """Short hash of what decides the scores of trained weights; a change evaluates again, no training.

        Args:
            facts: Fingerprint and mean diameter of each set, by the set's name.
        """
        evaluation = self.evaluation.model_dump(mode="json")
        if self.evaluation.operating_point != "validation":
            del evaluation["rank_by"]  # otherwise also what the validation images choose the point by
        return short_hash(
            {"schema": SCHEMA_VERSION, "version": EVALUATION_VERSION, "evaluation": evaluation, "sets": facts}
        )


def short_hash(content: object) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `content`; 1 and 1.0 count as equal."""
    text = json.dumps(canonical(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: object) -> object:
    """The value with lists for tuples, text for keys and whole numbers for floats that are whole."""
    if isinstance(value, Mapping):
        return {str(key): canonical(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

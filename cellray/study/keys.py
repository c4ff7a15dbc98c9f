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


FIRST: dict[str, object] = {"checkpoint": "coarse_dice", "clip": None, "foreground": 0.0}
"""Training settings that came after the first ledgers: at these values all is as it was, and the trial key too."""


class Recipe(NamedTuple):
    """What a configuration trains: the study's settings with its changes."""

    model: ModelConfig
    loss: LossConfig
    training: TrainingConfig

    def decisive(self, *, neutral: bool = False) -> dict[str, object]:
        """Plain settings, without those that can't change what comes out.

        Args:
            neutral: Also those that came after the first ledgers and change nothing, for a reader.
        """
        training = self.training.model_dump(mode="json", exclude={"compile"})  # moves the last digits only
        if self.training.lr != "range_test":
            del training["range_test"]
        elif self.training.range_test.rule == "premature" and not neutral:
            del training["range_test"]["rule"]
        if self.training.lr != "tune":
            del training["tune"]
        return {
            "model": self.model.decisive(),
            "loss": self.loss.decisive(neutral=neutral),
            "training": {k: v for k, v in training.items() if neutral or k not in FIRST or v != FIRST[k]},
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
    fold: int | None = None
    """With `data.folds`: which part one of its trainings is tested on, from 0; None: the whole trial."""
    tries_rate: bool = False
    """Whether it only tries a learning rate: it is trained and not judged, and its record lies beside the study's."""

    @property
    def trainings(self) -> list[Trial]:
        """What it trains: itself, or with `data.folds` one for each part."""
        if self.data.folds is None or self.fold is not None:
            return [self]
        return [self.model_copy(update={"fold": fold}) for fold in range(self.data.folds)]

    def key(self, fingerprint: str) -> str:
        """Short hash of what decides the trained weights: settings, seed, data, code; no paths, no label.

        Args:
            fingerprint: Of the training set's content (`Dataset.fingerprint`).
        """
        parted = {"val_fraction", "test_fraction"} if self.data.folds is None else {"folds"}
        data = self.data.model_dump(mode="json", include={"channels", "normalise"} | parted)
        if self.data.folds is not None:
            data["fold"] = self.fold
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
        """Short hash of what decides the scores of trained weights, "" if there are none; a change evaluates again.

        Args:
            facts: Fingerprint and mean diameter of each set, by the set's name.
        """
        if self.tries_rate:
            return ""
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

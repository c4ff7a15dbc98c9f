"""The settings of a study that adapts: what is suggested, what is ended early, where seeds are added."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cellray.errors import one_of
from cellray.metrics import METRICS
from cellray.study.group import Settings
from cellray.study.keywords import with_code
from cellray.study.problems import Problem, SettingsError
from cellray.study.settings import Fraction
from cellray.study.space import Space


class BoundConfig(Settings):
    """What a metric must reach."""

    at_least: float | None = None
    """In the metric's units."""
    at_most: float | None = None
    """In the metric's units."""

    @model_validator(mode="after")
    def bounds_something(self) -> BoundConfig:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least or at_most, or both")
        return self

    def excess(self, value: float) -> float:
        """By how much a value is out of bounds; at most 0 inside."""
        above = [] if self.at_most is None else [value - self.at_most]
        below = [] if self.at_least is None else [self.at_least - value]
        return max(above + below)


class SearchConfig(Settings):
    """Suggests configurations from a space, after those that the study lists."""

    method: Literal["tpe", "random", "gp", "nsga2"] = "tpe"
    """How Optuna chooses: tree-structured Parzen estimator, at random, Gaussian process, or the genetic algorithm
    NSGA-II for two or more metrics."""
    budget: int = Field(ge=1)
    """Configurations in all, those that the study lists among them."""
    space: dict[str, object]
    """A configuration (loss, model, training) in which ranges stand in the place of values: uniform, log_uniform, int,
    log_int: [low, high]; choice: a list, or named parts; weights: {simplex: 1} beside the terms of a loss."""
    metrics: tuple[str, ...] = ()
    """What a configuration is judged by on validation images, mean over seeds; none: `evaluation.rank_by`."""
    constraints: dict[str, BoundConfig] = Field(default={})
    """Metric on validation images, mean over seeds -> what it must reach for a configuration to be acceptable."""
    at_once: int = Field(default=2, ge=1)
    """A suggestion knows the results of all configurations but the last `at_once - 1` before it. More keep more workers
    busy and know less. It decides what is suggested, so it isn't a matter of the machine."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the sampler: the same one repeats the search."""

    @field_validator("space")
    @classmethod
    def is_a_space(cls, tree: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        if '"weights":' in json.dumps(tree.get("model")):
            raise SettingsError([Problem(("model",), "weights to start from are no part of a search")])
        Space(tree)
        return {key: with_code(part, info, (key,)) for key, part in tree.items()}

    @model_validator(mode="after")
    def can_be_judged(self) -> SearchConfig:
        problems: list[Problem] = []
        names: list[tuple[tuple[str | int, ...], str]] = [(("metrics", i), name) for i, name in enumerate(self.metrics)]
        for path, name in [*names, *((("constraints", name), name) for name in self.constraints)]:
            one_of("metric", name, METRICS)
            if METRICS[name].worst is None:
                words = f"{name!r} has no worst value that a collapsed trial could count as; choose a bounded metric"
                problems.append(Problem(path, words))
        if len(set(self.metrics)) < len(self.metrics):
            problems.append(Problem(("metrics",), "a metric is given twice"))
        if (self.method == "nsga2") != (len(self.metrics) > 1):
            words = "nsga2 needs two or more search.metrics" if self.method == "nsga2" else "two or more need nsga2"
            problems.append(Problem(("method",), words))
        if problems:
            raise SettingsError(problems)
        return self

    @cached_property
    def parsed_space(self) -> Space:
        return Space(self.space)


class StoppingConfig(Settings):
    """Ends configurations early, all seeds at once, by the mean over seeds of their validation Dice."""

    rule: Literal["asha", "median"]
    """`asha`: goes on if among the best 1/eta of those that came that far before it, itself among them (successive
    halving); `median`: if not below their median."""
    at: tuple[Fraction, ...] = ()
    """Shares of a training at which it decides, rising; none: 1/9 and 1/3 for asha, 1/4, 1/2 and 3/4 for median."""
    eta: float = Field(default=3.0, gt=1)
    """Of asha: one in so many goes on."""
    grace: int = Field(default=4, ge=1)
    """So many configurations are never ended: there is nothing yet to compare with."""

    @field_validator("at")
    @classmethod
    def rises(cls, at: tuple[float, ...]) -> tuple[float, ...]:
        if list(at) != sorted(set(at)):
            raise ValueError("must rise from share to share")
        return at

    @property
    def shares(self) -> tuple[float, ...]:
        return self.at or ((1 / 9, 1 / 3) if self.rule == "asha" else (0.25, 0.5, 0.75))


class DecideConfig(Settings):
    """Which difference matters, and what may be spent on seeds until the answer is that sure."""

    within: Annotated[float, Field(gt=0)] | None = None
    """A difference of `evaluation.rank_by` that doesn't matter, in its own units; None: 0.02 of the range of a share, a
    twentieth of a counting error."""
    at_most: str | None = None
    """`120 trials`, or `6h` of the trials' own time, one after the other: after the first seeds, further ones go to the
    recommended configuration and to those that may be better than it by more than `within`, until none may or this is
    spent. None: every configuration gets every seed and no more."""
    first: Annotated[int, Field(ge=3)] | None = None
    """So many of `seeds` every configuration gets; None: all. Further ones are the rest of `seeds`, and then the whole
    numbers that aren't among them."""

    @field_validator("at_most", mode="before")
    @classmethod
    def is_a_budget(cls, value: object) -> object:
        if value is not None and not re.fullmatch(r"\d+ trials?|\d+(\.\d+)? ?h", str(value)):
            raise ValueError("must be a number of trials or hours, such as '120 trials' or '6h'")
        return value

    @property
    def most_trials(self) -> int | None:
        """Trials in all, if they are limited by number."""
        return int(self.at_most.split()[0]) if self.at_most and "trial" in self.at_most else None

    @property
    def most_hours(self) -> float | None:
        """Hours in all, if they are limited by time."""
        return float(self.at_most.rstrip("h ")) if self.at_most and self.at_most.endswith("h") else None

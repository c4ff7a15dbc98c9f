"""What a search tried, in the words of its ledger file: read here, drawn and told elsewhere.

A search judges a configuration by the mean over its seeds of a metric on the validation images; a failed or collapsed
trial counts as the worst value. Test images have no say in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cellray.metrics import METRICS
from cellray.record import LossSettings, SearchLog, Tried
from cellray.scores import is_finite, magnitude
from cellray.statistics.importance import Importance, importance_of

METHODS = {
    "tpe": "TPE",
    "random": "random search",
    "gp": "a Gaussian process",
    "nsga2": "NSGA-II",
    "decide": "further seeds where they decide",
    "racing": "racing, as older versions had it",
    "grid": "no search: every listed configuration",
}
"""A method's name in a sentence."""
STOPPING = {"asha": "ASHA", "median": "the median rule"}


Parameters = Mapping[str, object]
"""Dotted path -> number, flag or word."""


@dataclass(frozen=True)
class Search:
    """How configurations were chosen, and what became of each."""

    method: str
    """A key of `METHODS`."""
    metrics: tuple[str, ...]
    """Keys of ``METRICS``; the first is the one that ranks, unless the study says otherwise."""
    stopping: str | None
    """A key of `STOPPING`, or None."""
    configurations: tuple[Tried, ...]
    """In the order of their numbers."""
    note: str = ""
    """Why a study that gives seeds where they decide ended."""

    @property
    def suggests(self) -> bool:
        """Whether configurations were suggested, and not only listed."""
        return self.method not in ("decide", "racing", "grid")

    @property
    def gives_seeds(self) -> bool:
        """Whether results decided how many seeds each listed configuration got."""
        return self.method in ("decide", "racing")

    @cached_property
    def importance(self) -> Importance:
        """Of each parameter for the first metric; worked out when first asked for, as it takes seconds."""
        known = [c for c in self.judged if c.parameters]
        return importance_of([self.merged(c.parameters) for c in known], [self.value(c) for c in known])

    def merged(self, parameters: Parameters) -> dict[str, object]:
        """The same parameters, where one that is there whatever was chosen has the same path everywhere.

        `loss[mix].terms.0.weight` is there only if the loss is the mix; if each other loss has its own first weight,
        all of them become `loss.terms.0.weight`.
        """
        return {
            bare_path(path) if bare_path(path) in self._everywhere else path: value
            for path, value in parameters.items()
        }

    @cached_property
    def _everywhere(self) -> set[str]:
        """Paths without choices that every configuration of the space has."""
        all_paths = [{bare_path(path) for path in c.parameters} for c in self.configurations if c.parameters]
        return set.intersection(*all_paths) if all_paths else set()

    @property
    def judged(self) -> list[Tried]:
        """The configurations that have a value for every metric."""
        return [c for c in self.configurations if c.values is not None and all(map(is_finite, c.values))]

    def value(self, tried: Tried, metric: str | None = None) -> float:
        """By which a judged one is compared, in the first metric if none is named: a signed error by its size."""
        assert tried.values is not None
        metric = metric or self.metrics[0]
        return magnitude(METRICS[metric], float(tried.values[self.metrics.index(metric)]))

    def in_state(self, state: str) -> list[Tried]:
        """The configurations in one state."""
        return [c for c in self.configurations if c.state == state]

    def best_first(self, metric: str | None = None) -> list[Tried]:
        """The judged ones from best to worst by one metric (the first, if not said); equal ones by number.

        Those that break a constraint come after all others.
        """
        metric = metric if metric in self.metrics else self.metrics[0]
        sign = -1.0 if METRICS[metric].higher_is_better else 1.0
        return sorted(self.judged, key=lambda c: (not c.acceptable, sign * self.value(c, metric), c.number))

    def chosen(self, metric: str | None = None) -> Tried | None:
        """What the search found: the best on validation images by one metric; None before anything is judged."""
        found = [c for c in self.best_first(metric) if c.acceptable]
        return found[0] if found else None

    def front(self) -> list[Tried]:
        """The judged ones that no other one equals in all metrics and beats in one, best by the first metric first.

        Those that break a constraint are left out.
        """
        signs = np.array([1.0 if METRICS[key].higher_is_better else -1.0 for key in self.metrics])
        ordered = [c for c in self.best_first() if c.acceptable]
        points = np.array([[self.value(c, key) for key in self.metrics] for c in ordered]) * signs
        return [
            c
            for c, mine in zip(ordered, points, strict=True)
            if not ((points >= mine).all(axis=1) & (points > mine).any(axis=1)).any()
        ]


def read_search(log: SearchLog | None) -> Search | None:
    """What a study's ledger says of its search; None for a study that listed its configurations and ran them all."""
    if log is None or log.only_rates:
        return None
    ordered = sorted(log.configurations, key=lambda c: c.number)
    return Search(log.method, log.metrics, log.stopping, tuple(ordered), log.note)


def parameters_text(parameters: Parameters, loss: LossSettings | None = None) -> str:
    """Parameters as people write them: `bce weight 0.54, focal gamma 2, lr 0.001`.

    Args:
        parameters: Dotted path -> value.
        loss: The loss as a record's settings hold it; its terms are then called by their names.
    """
    return ", ".join(f"{parameter_name(path, loss)} {parameter_text(value)}" for path, value in parameters.items())


def parameter_name(path: str, loss: LossSettings | None = None) -> str:
    """A path without what every path has: `loss[mix].terms.0.weight` -> `bce weight`, `training.lr` -> `lr`.

    What stands in brackets is the choice under which a parameter is there at all; see `option_of`.
    """
    steps = [step for step in bare_path(path).split(".") if step != "settings"]
    if steps[0] in ("loss", "training", "model") and len(steps) > 1 and steps != ["loss", "name"]:
        steps = steps[1:]
    if steps[0] == "terms" and len(steps) > 1 and steps[1].isdigit():
        terms, at = loss.terms if loss else (), int(steps[1])
        # a choice of the term itself has the term's name as its value
        named = terms[at].name if at < len(terms) and len(steps) > 2 else None
        steps = [str(named) if named else f"term {at + 1}", *steps[2:]]
    return " ".join(steps)


def bare_path(path: str) -> str:
    """A path without the choices in it: `loss[mix].terms.0.weight` -> `loss.terms.0.weight`."""
    return re.sub(r"\[[^\]]*\]", "", path)


def option_of(path: str) -> str:
    """The innermost choice under which a parameter is there: `mix` of `loss[mix].terms.0.weight`; else empty."""
    found = re.findall(r"\[([^\]]*)\]", path)
    return str(found[-1]) if found else ""


def names_of_parameters(search: Search, losses: Mapping[str, LossSettings]) -> dict[str, str]:
    """A name for each parameter of a search, as `Search.merged` has them.

    Args:
        search: Whose parameters are named.
        losses: Label -> the loss as a record's settings hold it, where known.
    """
    names: dict[str, set[str]] = {}
    for c in search.configurations:
        for path in search.merged(c.parameters):
            found = names.setdefault(path, set())
            if c.label in losses:  # one that is still running has no record to name its terms
                found.add(parameter_name(path, losses[c.label]))
    plain = {path: next(iter(found)) if len(found) == 1 else parameter_name(path) for path, found in names.items()}
    return {path: f"{option_of(path)}: {name}" if option_of(path) else name for path, name in plain.items()}


def parameter_text(value: object) -> str:
    """A value with three digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

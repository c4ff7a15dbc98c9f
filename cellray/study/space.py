"""A space of configurations: a configuration in which ranges stand in the place of values.

A range is a mapping with one key: ``uniform: [low, high]``, ``log_uniform: [low, high]``, ``int: [low, high]``,
``log_int: [low, high]``, or ``choice:`` with a list of values or a mapping of named parts. What stands inside one part
of a choice is there only where that part is chosen. ``weights: {simplex: 1}`` beside the terms of a loss draws their
weights from all that add up to 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeGuard

from pydantic import JsonValue
from scipy.special import betainc, betaincinv

from cellray.errors import unknown
from cellray.study.problems import Path, Problem, SettingsError, shown

GROUPS = ("loss", "model", "training")
"""Of a configuration: what a space may describe."""
RANGES = ("uniform", "log_uniform", "int", "log_int")
DIGITS = 4
"""Significant digits of drawn numbers: enough to tell trainings apart, and the same on every machine."""

Scalar: TypeAlias = "str | int | float | bool | None"
Node: TypeAlias = "Range | Choice | Simplex | dict[str, Node] | list[Node] | Scalar"
"""A part of a space: as in the study file, with a range in the place of its mapping."""
Values = dict[str, Scalar]
"""What a sampler draws: by parameter, a number or the name of a choice; of a simplex, how the stick is broken."""


@dataclass(frozen=True)
class Range:
    """A number between two others."""

    name: str
    low: float
    high: float
    is_log: bool
    is_int: bool


@dataclass(frozen=True)
class Choice:
    """One of several parts, by name."""

    name: str
    options: dict[Scalar, Node]
    """Name, or the value itself where it is a plain one -> what stands there then."""


@dataclass(frozen=True)
class Simplex:
    """Weights of the terms of a loss, at least 0 and 1 in all: a Dirichlet distribution, uniform if all are 1."""

    name: str
    terms: tuple[Node, ...]
    concentration: tuple[float, ...]

    def cuts(self) -> list[str]:
        """Parameters, one a cut of the stick, each uniform in [0, 1]."""
        return [f"{self.name}.{i}" for i in range(len(self.terms) - 1)]

    def weights(self, cuts: Sequence[float]) -> list[float]:
        """Weights from cuts: each cut's beta quantile of what the ones before have left (stick breaking)."""
        rest, weights = 1.0, []
        for i, cut in enumerate(cuts):
            share = float(betaincinv(self.concentration[i], sum(self.concentration[i + 1 :]), cut))
            weights.append(round(rest * share, DIGITS))
            rest = max(rest - weights[-1], 0.0)
        return [*weights, round(rest, DIGITS)]

    def cut(self, weights: Sequence[float]) -> list[float] | None:
        """The cuts that give these weights, or None if they aren't weights that add up to 1."""
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            return None
        rest, cuts = 1.0, []
        for i, weight in enumerate(weights[:-1]):
            share = min(weight / rest, 1.0) if rest > 1e-9 else 0.5
            cuts.append(float(betainc(self.concentration[i], sum(self.concentration[i + 1 :]), share)))
            rest -= weight
        return cuts


class Draws(Protocol):
    """Who picks values: a trial of Optuna, or `Fixed`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar: ...


class Fixed:
    """Draws given values; the first choice and the lowest, or highest, number where none is given."""

    def __init__(self, values: Mapping[str, Scalar], *, highest: bool = False) -> None:
        self._values, self._highest = values, highest

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = self._values.get(name)
        return value if isinstance(value, int | float) else high if self._highest else low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self.suggest_float(name, low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._values.get(name, choices[0])


class Space:
    """A checked space.

    Args:
        tree: As in the study file.

    Raises:
        SettingsError: With a problem for each range that isn't one.
    """

    def __init__(self, tree: Mapping[str, object]) -> None:
        self._problems: list[Problem] = [
            Problem((key,), unknown("part of a configuration", key, GROUPS)) for key in tree if key not in GROUPS
        ]
        self._root = {key: self._parse(value, (key,), key) for key, value in tree.items() if key in GROUPS}
        if not self._problems and not any(True for _ in _ranges(self._root)):
            self._problems.append(Problem((), "there is no range in it, so there is nothing to search"))
        if self._problems:
            raise SettingsError(self._problems)

    def draw(self, draws: Draws) -> tuple[dict[str, JsonValue], Values]:
        """One configuration of the space, and its parameters for a reader.

        Returns:
            Settings as a configuration in a study file has them (loss, model, training); and by parameter its value,
            where a simplex shows the weight of each term.
        """
        shown_values: Values = {}
        return {key: _fill(node, draws, shown_values) for key, node in self._root.items()}, shown_values

    def locate(self, resolved: Mapping[str, object]) -> Iterator[Values]:
        """Values that may give a resolved configuration; whoever asks draws them and compares.

        Args:
            resolved: loss, model and training, with all defaults.
        """
        choices = [node for node in _ranges(self._root) if isinstance(node, Choice)]
        for names in itertools.product(*(choice.options for choice in choices)):
            picked = dict(zip((choice.name for choice in choices), names, strict=True))
            values: Values = {}
            if all(_match(node, resolved.get(key), picked, values) for key, node in self._root.items()):
                yield values

    def corners(self) -> Iterator[tuple[dict[str, JsonValue], Values]]:
        """Configurations that together have each choice once and each range at both its ends."""
        picks: list[Values] = [{}]
        for node in _ranges(self._root):
            if isinstance(node, Choice):
                inside = _way_to(self._root, node.name)
                picks += [{**inside, node.name: option} for option in node.options]
        for picked in picks:
            for highest in (False, True):
                yield self.draw(Fixed(picked, highest=highest))

    def describe(self) -> dict[str, str]:
        """Each parameter's range in words, for reports."""
        words = {}
        for node in _ranges(self._root):
            if isinstance(node, Range):
                words[node.name] = f"{node.low:g} to {node.high:g}" + (" (log)" if node.is_log else "")
            elif isinstance(node, Choice):
                words[node.name] = " | ".join(map(str, node.options))
            else:
                for i in range(len(node.terms)):
                    words[_weight_name(node, i)] = "share of 1"
        return words

    def _parse(self, tree: object, path: Path, name: str) -> Node:
        """The tree with ranges in the place of their mappings; names and paths differ by what is chosen."""
        if isinstance(tree, Mapping):
            special = [key for key in tree if key in (*RANGES, "choice", "simplex")]
            if special and len(tree) == 1:
                key = special[0]
                if key == "simplex":
                    return self._wrong(path, "a simplex goes with the key weights, beside the terms of a loss")
                if key == "choice":
                    return self._choice(tree[key], (*path, key), name)
                return self._range(key, tree[key], (*path, key), name)
            if special:
                return self._wrong((*path, special[0]), "a range stands alone, without other keys beside it")
            if "weights" in tree:
                return self._weighted(tree, path, name)
            return {key: self._parse(value, (*path, key), f"{name}.{key}") for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return [self._parse(value, (*path, i), f"{name}.{i}") for i, value in enumerate(tree)]
        assert tree is None or isinstance(tree, str | int | float)  # there is nothing else in a file
        return tree

    def _range(self, kind: str, ends: object, path: Path, name: str) -> Node:
        is_int, is_log = kind.endswith("int"), kind.startswith("log")
        right = isinstance(ends, list) and all(_is_number(e) and (isinstance(e, int) or not is_int) for e in ends)
        if not isinstance(ends, list) or len(ends) != 2 or not right:
            kind_of = "whole numbers" if is_int else "numbers"
            return self._wrong(path, f"must be two {kind_of}, [low, high], got {shown(ends)}")
        low, high = ends
        if low >= high:
            return self._wrong(path, f"low must be below high, got {low} and {high}")
        if is_log and low <= 0:
            return self._wrong(path, f"low must be greater than 0 on a log scale, got {low}")
        return Range(name, low, high, is_log, is_int)

    def _choice(self, given: object, path: Path, name: str) -> Node:
        if isinstance(given, Mapping):
            parts: dict[Scalar, tuple[object, Path]] = {str(key): (part, (*path, key)) for key, part in given.items()}
        elif isinstance(given, list):
            keys = [_option(value, i) for i, value in enumerate(given)]
            if len(set(map(str, keys))) < len(keys):
                words = "two options have the same name; give a mapping of names instead of a list"
                return self._wrong(path, words)
            parts = {key: (value, (*path, i)) for i, (key, value) in enumerate(zip(keys, given, strict=True))}
        else:
            return self._wrong(path, f"must be a list of values or a mapping of named parts, got {shown(given)}")
        if len(parts) < 2:
            return self._wrong(path, "a choice needs at least two options")
        return Choice(name, {key: self._parse(value, at, f"{name}[{key}]") for key, (value, at) in parts.items()})

    def _weighted(self, tree: Mapping[str, object], path: Path, name: str) -> Node:
        """A loss with `terms` and `weights: {simplex: …}`."""
        terms, weights = tree.get("terms"), tree["weights"]
        if not isinstance(terms, list) or len(terms) < 2:
            return self._wrong((*path, "weights"), "goes with a list of at least two terms beside it")
        if not isinstance(weights, Mapping) or set(weights) != {"simplex"}:
            return self._wrong((*path, "weights"), f"must be {{simplex: 1}}, got {shown(weights)}")
        given = weights["simplex"]
        each = given if isinstance(given, list) else [given] * len(terms)
        if len(each) != len(terms) or not all(_is_number(a) and a > 0 for a in each):
            words = f"must be a number greater than 0, or one for each of the {len(terms)} terms, got {shown(given)}"
            return self._wrong((*path, "weights", "simplex"), words)
        for i, term in enumerate(terms):
            if isinstance(term, Mapping) and "weight" in term:
                return self._wrong((*path, "terms", i, "weight"), "the simplex gives this term its weight")
        beside = {key: value for key, value in tree.items() if key not in ("weights", "terms")}
        parsed = {key: self._parse(value, (*path, key), f"{name}.{key}") for key, value in beside.items()}
        nodes = [self._parse(term, (*path, "terms", i), f"{name}.terms.{i}") for i, term in enumerate(terms)]
        for i, node in enumerate(nodes):
            if not _is_mapping(node) or terms[i] is None:
                return self._wrong((*path, "terms", i), f"must be a mapping, got {shown(terms[i])}")
        return {**parsed, "terms": Simplex(f"{name}.weights", tuple(nodes), tuple(map(float, each)))}

    def _wrong(self, path: Path, message: str) -> Scalar:
        """Note a problem; returns what stands in the place of a range that isn't one."""
        self._problems.append(Problem(path, message))
        return None


def _option(value: Scalar | Mapping[str, object] | list[object], i: int) -> Scalar:
    """The name of one option of a list: the value itself, or that of the loss it stands for, or its place."""
    if isinstance(value, Mapping):
        return str(value.get("name", i))
    return str(i) if isinstance(value, list) else value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_mapping(node: Node) -> bool:
    """Whether a mapping comes of it, whatever is chosen; None has its problem already."""
    return isinstance(node, dict | None) or (isinstance(node, Choice) and all(map(_is_mapping, node.options.values())))


def _weight_name(node: Simplex, i: int) -> str:
    return f"{node.name.removesuffix('.weights')}.terms.{i}.weight"


def _ranges(node: Node) -> Iterator[Range | Choice | Simplex]:
    """Every range of a tree, also those inside choices, from the top."""
    if isinstance(node, (Range, Choice, Simplex)):
        yield node
    inside: Sequence[Node] = ()
    if isinstance(node, Choice):
        inside = list(node.options.values())
    elif isinstance(node, Simplex):
        inside = node.terms
    elif isinstance(node, dict):
        inside = list(node.values())
    elif isinstance(node, list):
        inside = node
    for part in inside:
        yield from _ranges(part)


def _way_to(root: Node, name: str) -> Values:
    """The choices that must be made for the choice of this name to be there."""
    for node in _ranges(root):
        if isinstance(node, Choice) and node.name != name:
            for option, part in node.options.items():
                if any(isinstance(found, Choice) and found.name == name for found in _ranges(part)):
                    return {node.name: option, **_way_to(part, name)}
    return {}


def _fill(node: Node, draws: Draws, shown_values: Values) -> JsonValue:
    """The tree with a value in the place of each range."""
    if isinstance(node, Range):
        if node.is_int:
            value: float = draws.suggest_int(node.name, int(node.low), int(node.high), log=node.is_log)
        else:
            drawn = draws.suggest_float(node.name, node.low, node.high, log=node.is_log)
            value = min(max(float(f"{drawn:.{DIGITS}g}"), node.low), node.high)
        shown_values[node.name] = value
        return value
    if isinstance(node, Choice):
        name = draws.suggest_categorical(node.name, list(node.options))
        shown_values[node.name] = name
        return _fill(node.options[name], draws, shown_values)
    if isinstance(node, Simplex):
        weights = node.weights([draws.suggest_float(cut, 0.0, 1.0) for cut in node.cuts()])
        shown_values.update({_weight_name(node, i): weight for i, weight in enumerate(weights)})
        terms = [_fill(term, draws, shown_values) for term in node.terms]
        return [{**term, "weight": w} for term, w in zip(terms, weights, strict=True) if isinstance(term, dict)]
    if isinstance(node, dict):
        return {key: _fill(value, draws, shown_values) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, draws, shown_values) for value in node]
    return node


def _match(node: Node, value: object, picked: Values, values: Values) -> bool:
    """Read off the values of the ranges where a resolved configuration has something at their place."""
    if isinstance(node, Range):
        if not _is_number(value) or not node.low <= value <= node.high:
            return False
        values[node.name] = value
        return True
    if isinstance(node, Choice):
        values[node.name] = picked[node.name]
        return _match(node.options[picked[node.name]], value, picked, values)
    if isinstance(node, Simplex):
        if not isinstance(value, (list, tuple)) or len(value) != len(node.terms):
            return False
        cuts = node.cut([term["weight"] for term in value])
        if cuts is None:
            return False
        values.update(zip(node.cuts(), cuts, strict=True))
        return all(_match(term, given, picked, values) for term, given in zip(node.terms, value, strict=True))
    if isinstance(node, dict):
        return isinstance(value, Mapping) and all(_match(n, value.get(k), picked, values) for k, n in node.items())
    if isinstance(node, list):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(node)
            and all(_match(n, v, picked, values) for n, v in zip(node, value, strict=True))
        )
    return True  # a plain value may be a preset's name: whoever asks compares what the values give

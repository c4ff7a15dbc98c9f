"""Pydantic's findings in plain words, each with the path of the key it is about."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cellray.errors import StudyError, unknown

Path = tuple[str | int, ...]
Schema = dict[str, Any]
"""A JSON Schema, or a part of one."""

WORDS = {
    "missing": "this key is required",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "literal_error": "must be {expected}",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entry",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must begin with a letter or digit, then only letters, digits, '.', '_' and '-'",
    "none_required": "must be null",
}


class Problem(NamedTuple):
    """One thing wrong: where in the tree of settings, and the sentence about it."""

    path: Path
    message: str


class SettingsError(StudyError):
    """Several problems found by one validator, each with its path below the validated object."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "; ".join(f"{shown_path(p.path)}: {p.message}" if p.path else p.message for p in self.problems)


def shown(value: object) -> str:
    """A value as a study file would write it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shown_path(path: Path) -> str:
    """``("seeds", 1)`` as ``seeds[1]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def problems_in(error: ValidationError, model: type[BaseModel] | None = None) -> list[Problem]:
    """Every problem of a failed validation of `model` (None: of a plain value), one for each key.

    A value of a union (a number or a word) fails once for each member; those findings become one sentence.
    """
    found: dict[Path, list[str | ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        raised = detail.get("ctx", {}).get("error")
        path = _plain_path(detail["loc"], model, keep_last=detail["type"] in ("extra_forbidden", "missing"))
        if isinstance(raised, SettingsError):
            for problem in raised.problems:
                found.setdefault(path + problem.path, []).append(problem.message)
        else:
            found.setdefault(path, []).append(detail)
    problems = []
    for path, told in found.items():
        said = [words for words in told if isinstance(words, str)]
        details = [detail for detail in told if not isinstance(detail, str)]
        if told[0] in said:
            problems.append(Problem(path, "; ".join(dict.fromkeys(said))))
        # That a union also takes a word, or that a list without its bad entries is too short, is no news when
        # something inside is wrong.
        elif not (isinstance(details[0]["input"], Mapping | list) and any(_is_below(other, path) for other in found)):
            problems.append(Problem(path, _sentence(path, details, model)))
    return problems


def _is_below(path: Path, above: Path) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _sentence(path: Path, details: list[ErrorDetails], model: type[BaseModel] | None) -> str:
    """What was expected, what came, and the nearest known word."""
    first = details[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        return unknown("key", path[-1], _known_keys(path[:-1], model))
    if first["type"] == "missing":
        return WORDS["missing"]
    phrases = list(dict.fromkeys(_phrase(d) for d in details))
    text = " or ".join([phrases[0], *(p.removeprefix("must be ") for p in phrases[1:])])
    words = [w.strip("'") for d in details if d["type"] == "literal_error" for w in _quoted(d["ctx"]["expected"])]
    near = difflib.get_close_matches(str(first["input"]), words, n=1)
    return f"{text}, got {shown(first['input'])}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _phrase(detail: ErrorDetails) -> str:
    if detail["type"] in WORDS:
        limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in detail.get("ctx", {}).items()}
        return WORDS[detail["type"]].format(**limits)
    return detail["msg"].replace("Input should be", "must be").replace("Input", "the value")


def _quoted(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _plain_path(loc: Path, model: type[BaseModel] | None, *, keep_last: bool) -> Path:
    """The location without pydantic's own marks for the members of a union."""
    path: list[str | int] = []
    places: list[object] = [_schema(model)]
    for i, part in enumerate(loc):
        below = list(_step(places, part, _schema(model)))
        if below or (keep_last and i == len(loc) - 1):
            path.append(part)
            places = below
    return tuple(path)


def _known_keys(path: Path, model: type[BaseModel] | None) -> list[str]:
    places: list[object] = [_schema(model)]
    for part in path:
        places = list(_step(places, part, _schema(model)))
    return [key for place in _members(places, _schema(model)) for key in place.get("properties", {})]


@functools.cache
def _schema(model: type[BaseModel] | None) -> Schema:
    return {} if model is None else model.model_json_schema()


def _members(places: Iterable[object], root: Schema) -> Iterator[Schema]:
    """Follow references and unions of a JSON Schema down to its plain parts."""
    for place in places:
        if not isinstance(place, dict):
            continue
        yield place
        if "$ref" in place:
            yield from _members([root["$defs"][place["$ref"].rsplit("/", 1)[-1]]], root)
        for union in ("anyOf", "oneOf", "allOf"):
            yield from _members(place.get(union, []), root)


def _step(places: Iterable[object], part: str | int, root: Schema) -> Iterator[object]:
    for place in _members(places, root):
        if isinstance(part, int):
            if "items" in place:
                yield place["items"]
        elif part in place.get("properties", {}):
            yield place["properties"][part]
        elif place.get("additionalProperties"):
            more = place["additionalProperties"]
            yield more if isinstance(more, dict) else {"additionalProperties": True}

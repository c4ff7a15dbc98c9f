"""A group of settings with some of them changed, as a configuration changes those of its study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from cellray.study.group import Settings
from cellray.study.problems import Problem, problems_in

_T = TypeVar("_T", bound=Settings)


def changed(base: _T, name: str, changes: Mapping[str, object], problems: list[Problem], *, anew: bool = False) -> _T:
    """`base` with some settings changed. What is wrong joins `problems`, with paths that begin with `name`.

    With `anew` the others get their defaults, and none is taken from `base`.
    """
    if not changes:
        return base
    text = json.dumps(changes if anew else _merged(base.model_dump(mode="json"), changes))
    try:
        return type(base).model_validate_json(text, strict=True)
    except ValidationError as error:
        problems += [Problem((name, *p.path), p.message) for p in problems_in(error, type(base))]
        return base


def _merged(base: dict[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    both = dict(base)
    for key, value in changes.items():
        inner = both.get(key)
        both[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return both

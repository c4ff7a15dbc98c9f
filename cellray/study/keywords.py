"""Settings that are keywords of a function, and whether a study may run code that isn't cellray's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo

from cellray.errors import unknown
from cellray.outside import code_hash, find_outside, is_dotted
from cellray.study.problems import Path, Problem, SettingsError, problems_in

FINITE = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
AT_LEAST_0 = TypeAdapter(Annotated[float, Field(ge=0)], config=ConfigDict(allow_inf_nan=False))
"""What a plain `float` in a signature means."""


def complete_keywords(
    function: Callable[..., Any], what: str, settings: Mapping[str, object], *, leave_out: str = ""
) -> dict[str, object]:
    """Settings of a function: those given, and the defaults of its keyword-only parameters.

    The annotation of a keyword decides what it takes. A plain ``float`` means a number >= 0, since nearly all
    are weights, exponents or smoothing; another range is annotated, as ``Annotated[float, Field(ge=-1)]``.

    Args:
        function: Whose keywords they are.
        what: What errors call it, such as ``dice``.
        settings: Those given.
        leave_out: The one parameter that is no setting, though all others are, keyword-only or not.

    Raises:
        SettingsError: If a keyword is unknown or a value doesn't fit, one problem for each.
    """
    try:
        hints = get_type_hints(function if inspect.isfunction(function) else function.__init__, include_extras=True)
    except NameError:  # a user's annotations may not be importable
        hints = {}
    parameters = {
        key: p
        for key, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY or (leave_out and p.kind is p.POSITIONAL_OR_KEYWORD and key != leave_out)
    }
    complete = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    problems = []
    for key, value in settings.items():
        if key not in parameters:
            problems.append(Problem((key,), unknown(f"{what} setting", key, parameters)))
            continue
        adapter = AT_LEAST_0 if hints.get(key) is float else TypeAdapter(hints.get(key, object), config=FINITE)
        try:
            complete[key] = adapter.validate_python(value, strict=True)
        except ValidationError as error:
            problems += [Problem((key,), problem.message) for problem in problems_in(error)]
    problems += [
        Problem((key,), f"{what} has no default for this setting")
        for key in parameters
        if key not in complete and key not in settings
    ]
    if problems:
        raise SettingsError(problems)
    return {key: complete[key] for key in parameters}


def check_allowed(name: str, info: ValidationInfo) -> None:
    """Raise `ValueError` for the path of a user's own code where the study is loaded without it."""
    if (info.context or {}).get("code") == "forbidden":
        raise ValueError(f"{name!r} is code outside cellray; --allow-code runs it")


def with_code(tree: object, info: ValidationInfo, path: Path = ()) -> object:
    """A space of configurations with the hash of its file beside the name of each loss or network of the user's own.

    Raises:
        SettingsError: If such code may not run, or if its name is one of a list, where no hash can stand beside it.
    """
    if isinstance(tree, list):
        return [with_code(part, info, (*path, i)) for i, part in enumerate(tree)]
    if not isinstance(tree, Mapping):
        if isinstance(tree, str) and is_dotted(tree) and "name" in path[:-1]:
            words = f"{tree!r} is code outside cellray; give it a part of its own, choice: {{mine: {{name: …}}}}"
            raise SettingsError([Problem(path, words)])
        return tree
    done = {key: with_code(part, info, (*path, key)) for key, part in tree.items()}
    name = tree.get("name")
    if isinstance(name, str) and is_dotted(name):
        try:
            check_allowed(name, info)
        except ValueError as error:
            raise SettingsError([Problem((*path, "name"), str(error))]) from None
        if runs_code(info):
            done["code"] = code_hash(find_outside(name, "code"))
    return done


def runs_code(info: ValidationInfo) -> bool:
    """Whether a user's own code may be imported."""
    return (info.context or {}).get("code") == "allowed"

"""What part each parameter plays in a study: compared, tuned or fixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from cellray.study.keys import Recipe


class Role(NamedTuple):
    """What part a parameter plays in a study."""

    parameter: str
    """Dotted path, as in the study file."""
    role: Literal["compared", "tuned", "fixed"]
    value: object
    """Of a compared parameter: the list of its distinct values."""


def trained_roles(recipes: Iterable[Recipe], *, searched: bool, tunes_rate: bool) -> list[Role]:
    """The parts of the parameters of trainings. Networks of different names are one parameter, each a line of text.

    Args:
        recipes: Of the configurations that a study lists.
        searched: Whether further ones are suggested: then the ranges say what is compared, and differences don't.
        tunes_rate: Whether their learning rates are chosen for each: then they are tuned, and not compared.
    """
    recipes, leaves = list(recipes), []
    several = len({(recipe.model.name, recipe.model.weights) for recipe in recipes}) > 1
    for recipe in recipes:
        groups: dict[str, object] = {**recipe.decisive(neutral=True)}
        if several:
            groups["model"] = recipe.model.describe()
        elif recipe.model.weights is not None:
            groups["model"] = {**recipe.model.decisive(), "weights": recipe.model.weights}
        if recipe.loss.name is None:
            groups["loss"] = {"terms": recipe.loss.describe(reductions=True)}
        leaves.append(_leaves(groups))
    roles = []
    for path in dict.fromkeys(path for each in leaves for path in each):
        values = [each[path] for each in leaves if path in each]
        distinct = [value for i, value in enumerate(values) if value not in values[:i]]
        is_choice = path in ("loss.name", "loss.terms") and len(values) < len(leaves)
        if path == "training.lr" and tunes_rate:
            roles.append(Role(path, "tuned", distinct if len(distinct) > 1 else distinct[0]))
        elif len(distinct) > 1 or is_choice:
            if not searched:
                roles.append(Role(path, "compared", distinct))
        else:
            is_tuned = path == "training.lr" and isinstance(distinct[0], str)
            roles.append(Role(path, "tuned" if is_tuned else "fixed", distinct[0]))
    return roles


def shared_roles(settings: Mapping[str, object]) -> list[Role]:
    """The parts of the parameters that all trials share: plain settings."""
    return [
        Role(path, "tuned" if (path, value) == ("evaluation.operating_point", "validation") else "fixed", value)
        for path, value in _leaves(settings).items()
    ]


def in_order(roles: Sequence[Role]) -> list[Role]:
    """Compared first, then tuned, then fixed."""
    return [role for kind in ("compared", "tuned", "fixed") for role in roles if role.role == kind]


def _leaves(values: Mapping[str, object], above: str = "") -> dict[str, object]:
    """Dotted path -> value; an empty mapping or a list of plain values is a leaf."""
    found: dict[str, object] = {}
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found |= _leaves(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            for i, entry in enumerate(value):
                found |= _leaves(entry, f"{path}[{i}].") if isinstance(entry, Mapping) else {f"{path}[{i}]": entry}
        else:
            found[path] = value
    return found

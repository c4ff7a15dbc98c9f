"""From a YAML file to a checked study, or to one error that says what to mend and in which line."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cellray.errors import StudyError
from cellray.outside import allow_code_in
from cellray.storage import is_remote, read_plain
from cellray.study.network import OF_A_STUDY, ReadWeights
from cellray.study.problems import Path as KeyPath
from cellray.study.problems import Problem, problems_in, shown, shown_path
from cellray.study.whole import Study
from cellray.study.yaml_tree import MAX_STUDY_BYTES, line_of, read_tree

Code = Literal["allowed", "forbidden", "stored"]


def load_study(
    path: str | Path,
    *,
    seeds: Iterable[int] | None = None,
    only: Iterable[str] | None = None,
    code: Code = "forbidden",
    read_weights: ReadWeights | None = None,
) -> Study:
    """Read, check and resolve a study file.

    ``${NAME}`` in a data path is replaced from the environment, ``~`` by the home folder, and a relative path
    starts at the folder of the study file, so that the command may be given anywhere.

    Args:
        path: The YAML file.
        seeds: Instead of the file's seeds.
        only: Labels of the configurations to keep; None: all.
        code: Whether losses and networks of the user's own (``package.module:function``) are imported, refused, or
            taken as they are written; they lie in the folder of the study file, or are installed.
        read_weights: Reads what `model.weights` names, so that its hash can be filled in; None: that stays as it is.

    Raises:
        StudyError: Naming file, line, key, what was expected and what came, for each thing that is wrong.
    """
    file = Path(path)
    try:
        text = _read(file)
    except StudyError as error:
        raise StudyError(f"{file}:{error}") from None
    folder = file.resolve().parent
    if code == "allowed":
        allow_code_in(folder)
    study = read_study(text, str(file), folder=folder, code=code, read_weights=read_weights)
    return study if seeds is None and only is None else study.select(seeds=seeds, only=only)


def read_study(
    text: str,
    file: str,
    *,
    folder: Path | None = None,
    code: Code = "stored",
    read_weights: ReadWeights | None = None,
) -> Study:
    """`load_study` from a text, such as the resolved copy in a ledger.

    Args:
        text: The YAML.
        file: What errors call it.
        folder: Where relative data paths start; None: they stay as they are.
        code, read_weights: As in `load_study`.

    Raises:
        StudyError: As `load_study`.
    """
    try:
        values, node = read_tree(text)
    except StudyError as error:
        raise StudyError(f"{file}:{error}") from None
    if not isinstance(values, dict):
        got = "an empty file" if values is None else shown(values)
        raise StudyError(f"{file}:1: a study must be a mapping of keys such as name, data and seeds, got {got}")
    _read_older(values)
    problems = _resolve_paths(values, folder or Path())
    study = None
    try:
        # Through JSON, whose strict mode takes a list for a tuple and 1 for 1.0, but not '5' for 5.
        study = Study.model_validate_json(
            json.dumps(values), strict=True, context={"code": code, "read_weights": read_weights}
        )
    except ValidationError as error:
        problems += problems_in(error, Study)
    if problems or study is None:
        raise StudyError(_report(file, [(line_of(node, p.path), p) for p in problems]))
    return study


def _read(file: Path) -> str:
    try:
        return read_plain(file, MAX_STUDY_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StudyError("1: not a text file in UTF-8") from None
    except FileNotFoundError:
        beside = [f.name for f in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, beside, n=1)
        raise StudyError(" no such study file" + (f" (did you mean {near[0]!r}?)" if near else "")) from None
    except OSError as error:
        raise StudyError(f" can't be read: {error.strerror}") from None


def _read_older(values: dict[str, object]) -> None:
    """Turn the race of an older file into what decides now, in place."""
    race, lists = values.pop("racing", None), [values.get(name) for name in ("configurations", "seeds")]
    if isinstance(race, dict):
        n_all = math.prod(len(entries) for entries in lists if isinstance(entries, list))
        values.setdefault("decide", {"first": race.get("start", 3), "at_most": f"{race.get('budget') or n_all} trials"})


def _resolve_paths(values: dict[str, object], folder: Path) -> list[Problem]:
    """Make paths of data and weights absolute, in place; variables that aren't set are returned as problems."""
    problems = []
    for at, holder, key in _paths(values):
        text = holder.get(key)
        if not isinstance(text, str) or text.startswith(OF_A_STUDY):
            continue
        unset = [name for name in re.findall(r"\$\{([^}]*)\}", text) if not os.environ.get(name)]
        problems += [Problem((*at, key), f"environment variable {name} is not set, got {text!r}") for name in unset]
        if not unset:
            filled = re.sub(r"\$\{([^}]*)\}", lambda match: os.environ[match[1]], text)
            holder[key] = filled if is_remote(filled) else str(folder / os.path.expanduser(filled))
    return problems


def _paths(values: dict[str, object]) -> Iterator[tuple[KeyPath, dict[str, object], str]]:
    """Where a study may name a file or folder: the key's path, what holds it, the key."""
    for at, dataset in _datasets(values):
        yield at, dataset, "path"
    references = values.get("references")
    for i, reference in enumerate(references if isinstance(references, list) else []):
        if isinstance(reference, dict):
            yield ("references", i), reference, "path"
    if isinstance(model := values.get("model"), dict):
        yield ("model",), model, "weights"
    configurations = values.get("configurations")
    for i, configuration in enumerate(configurations if isinstance(configurations, list) else []):
        if isinstance(configuration, dict) and isinstance(model := configuration.get("model"), dict):
            yield ("configurations", i, "model"), model, "weights"


def _datasets(values: dict[str, object]) -> Iterator[tuple[KeyPath, dict[str, object]]]:
    data = values.get("data")
    if isinstance(data, dict):
        if isinstance(data.get("train"), dict):
            yield ("data", "train"), data["train"]
        external = data.get("external")
        for i, dataset in enumerate(external if isinstance(external, list) else []):
            if isinstance(dataset, dict):
                yield ("data", "external", i), dataset


def _report(file: str, found: list[tuple[int, Problem]]) -> str:
    """One line a problem, in the order of the file."""
    lines = []
    for line, problem in sorted(found, key=lambda pair: pair[0]):
        where = f"{shown_path(problem.path)}: " if problem.path else ""
        lines.append(f"{file}:{line}: {where}{problem.message}")
    return "\n".join(dict.fromkeys(lines))

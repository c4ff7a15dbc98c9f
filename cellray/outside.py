"""A user's own code, named in a study as ``package.module:name``: found, and known by the hash of its file."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from cellray.errors import StudyError, unknown

FOLDERS_VARIABLE = "CELLRAY_CODE_FOLDERS"
"""Environment variable: the folders of `allow_code_in` as a JSON list, for the processes that are started from here."""


def is_dotted(name: str) -> bool:
    """Whether a name is the path of a user's own function or class, ``package.module:name``."""
    return ":" in name


def allow_code_in(folder: Path) -> None:
    """Let a user's own code lie in a folder, here and in processes that are started from here.

    Nothing there takes the place of an installed module: these folders are looked at last, and not by `sys.path`.
    """
    mine = os.fspath(folder.resolve())
    os.environ[FOLDERS_VARIABLE] = json.dumps([mine, *(other for other in _folders() if other != mine)])


def find_module(name: str) -> ModuleSpec | None:
    """Where the package of a module is: installed, or in a folder of `allow_code_in`; runs nothing.

    Raises:
        StudyError: If the module's file lies in such a folder, but its name stands for another module.
    """
    if _CodeFolders not in sys.meta_path:
        sys.meta_path.append(_CodeFolders)
    top = name.partition(".")[0]
    found = find_spec(top)
    for folder in _folders():
        file = Path(folder, *name.split("."))
        mine = PathFinder.find_spec(top, [folder])
        if mine and found and (file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()):
            if _place(mine) != _place(found):
                raise StudyError(f"{_place(mine)} has the name of another module ({_place(found)}); rename it")
            break
    return found


def find_outside(name: str, kind: str) -> Callable[..., Any]:
    """The function or class at ``package.module:name``. Runs that module's code.

    Args:
        name: The path.
        kind: What it is to be, for errors, such as ``loss``.

    Raises:
        StudyError: If nothing is there that can be called.
    """
    module_name, _, attribute = name.partition(":")
    try:
        find_module(module_name)
        module = importlib.import_module(module_name)
    except Exception as error:
        words = str(error).split("\n", 1)[0]
        raise StudyError(f"{kind} {name!r}: module {module_name!r} can't be imported: {words}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        known = [key for key, value in public.items() if inspect.isfunction(value) or inspect.isclass(value)]
        raise StudyError(f"{kind} {name!r}: {unknown('function', attribute, known)}")
    return found


def code_hash(found: Callable[..., Any]) -> str:
    """First 16 hex digits of the SHA-256 of the file that defines a function or class."""
    try:
        file = inspect.getsourcefile(found)
        content = Path(file).read_bytes() if file else b""
    except (TypeError, OSError):
        content = b""
    return hashlib.sha256(content).hexdigest()[:16]


class _CodeFolders:
    """Finds modules in the folders of `allow_code_in`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, _folders(), target) if path is None else None


def _folders() -> list[str]:
    folders: list[str] = json.loads(os.environ.get(FOLDERS_VARIABLE) or "[]")
    return folders


def _place(spec: ModuleSpec) -> str:
    """The file of a module, or the folder of a package without one."""
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return os.path.realpath(places[0]) if spec.has_location or not spec.origin else str(spec.origin)

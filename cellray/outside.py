"""A user's own code, named in a study as ``package.module:name``: found, and known by the hash of its file."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellray.errors import StudyError, unknown


def is_dotted(name: str) -> bool:
    """Whether a name is the path of a user's own function or class, ``package.module:name``."""
    return ":" in name


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

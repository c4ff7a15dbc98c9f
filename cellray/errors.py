"""The few exceptions a user meets, and the words they are written in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NO_RAY, INTERRUPTED = 5, 130
"""Exit codes of a command whose Ray can't be started or has died, and of one that was asked to end."""


class CellrayError(ValueError):
    """Anything the user can mend: the message says where, what came and what was expected."""


class StudyError(CellrayError):
    """The study file asks for something that can't be run."""


class DataError(CellrayError):
    """Images or masks that can't be used."""


class LedgerError(CellrayError):
    """The storage can't be read or written, or another sweep holds it."""


class StorageError(LedgerError, OSError):
    """The storage gives or takes no files for now: full, without rights, away. Never a trial's own outcome."""


class ClusterError(CellrayError):
    """Ray can't be started on this machine, though nothing is wrong with what it was given."""


class CheckpointError(LedgerError):
    """A checkpoint that can't be read.

    Args:
        name: `last` or `best`.
        problem: What is wrong with it, in words.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        return f"its checkpoint `{self.name}` is damaged ({self.problem})"


class ShapeError(CellrayError):
    """Arrays whose shapes must agree don't."""


def unknown(kind: str, word: object, known: Iterable[str]) -> str:
    """The sentence for a word that isn't in a list, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {kind} {word!r}{hint}; known: {', '.join(names)}"


def one_of(kind: str, word: str, known: Iterable[str]) -> str:
    """Return `word` if it is known, else raise `StudyError` naming the nearest known one."""
    names = list(known)
    if word not in names:
        raise StudyError(unknown(kind, word, names))
    return word

"""Which configuration comes next, which is ended early, and which gets more seeds."""

from cellray.search.agenda import Agenda
from cellray.search.entries import Task

__all__ = ["Agenda", "Task"]

"""Which configuration comes next, which is ended early, and which gets more seeds."""

from cellray.search.agenda import Agenda, Task, known_study

__all__ = ["Agenda", "Task", "known_study"]

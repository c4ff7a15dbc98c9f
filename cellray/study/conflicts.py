"""Settings of a study that don't go together, though each is right by itself."""

from __future__ import annotations

from collections.abc import Sequence

from cellray.metrics import MEDIANS, METRICS
from cellray.study.adaptive import RacingConfig, SearchConfig
from cellray.study.problems import Problem


def repeated_seeds(seeds: Sequence[int]) -> list[Problem]:
    """Every seed that stands for a second time."""
    return [
        Problem(("seeds", i), f"seed {seed} is given twice; each repeat needs its own")
        for i, seed in enumerate(seeds)
        if seed in seeds[:i]
    ]


def racing_problems(
    racing: RacingConfig, others: Sequence[str], *, n_seeds: int, n_configurations: int, rank_by: str
) -> list[Problem]:
    """What keeps a race from being run.

    Args:
        racing: Its settings.
        others: Which of `search` and `stopping` the study has besides.
        n_seeds, n_configurations: How many the study lists.
        rank_by: The metric it compares by.
    """
    problems = [Problem(("racing",), f"doesn't go together with {name}: drop one of them") for name in others]
    if racing.start > n_seeds:
        words = f"starts with {racing.start} seeds, but the study has only {n_seeds}"
        problems.append(Problem(("racing", "start"), words))
    least = racing.start * n_configurations
    if racing.budget is not None and racing.budget < least:
        words = f"{racing.start} seeds of {n_configurations} configurations are {least} trials"
        problems.append(Problem(("racing", "budget"), f"is too small: {words}"))
    if rank_by in MEDIANS:
        problems.append(Problem(("racing",), f"can't compare by {rank_by!r}, a median; rank by another metric"))
    return problems


def search_problems(search: SearchConfig, *, n_configurations: int, rank_by: str) -> list[Problem]:
    """What keeps a search from being run; arguments as for `racing_problems`."""
    problems = []
    if search.budget < n_configurations:
        words = f"is smaller than the {n_configurations} configurations that the study lists"
        problems.append(Problem(("search", "budget"), words))
    if not search.metrics and METRICS[rank_by].worst is None:
        words = f"name bounded metrics here: evaluation.rank_by {rank_by!r} has no worst value"
        problems.append(Problem(("search", "metrics"), words))
    return problems

"""Settings of a study that don't go together, though each is right by itself."""

from __future__ import annotations

from collections.abc import Sequence

from cellray.metrics import MEDIANS, METRICS
from cellray.statistics import LEAST_SEEDS
from cellray.study.adaptive import DecideConfig, SearchConfig
from cellray.study.problems import Path, Problem


def repeated_seeds(seeds: Sequence[int]) -> list[Problem]:
    """Every seed that stands for a second time."""
    return [
        Problem(("seeds", i), f"seed {seed} is given twice; each repeat needs its own")
        for i, seed in enumerate(seeds)
        if seed in seeds[:i]
    ]


def repeated_labels(references: Sequence[str], configurations: Sequence[str]) -> list[Problem]:
    """Every reference that is called as another one or as a configuration."""
    return [
        Problem(("references", i, "label"), f"something else is labelled {label!r}; give each its own label")
        for i, label in enumerate(references)
        if label in (*configurations, *references[:i])
    ]


def fold_problems(choosers: Sequence[str]) -> list[Problem]:
    """What doesn't go together with `data.folds`.

    Args:
        choosers: What chooses something for all trainings by validation images, in words.
    """
    why = "it chooses by validation images, and each of them is a test image of another training"
    return [Problem(("data", "folds"), f"doesn't go together with {name}: {why}") for name in choosers]


def decide_problems(
    decide: DecideConfig, others: Sequence[str], *, n_seeds: int, n_configurations: int, rank_by: str
) -> list[Problem]:
    """What keeps a study from giving seeds where they decide.

    Args:
        decide: Its settings.
        others: Which of `search` and `stopping` the study has besides.
        n_seeds, n_configurations: How many the study lists.
        rank_by: The metric it compares by.
    """
    problems = []
    first = decide.first or n_seeds
    if first > n_seeds:
        words = f"wants {first} seeds, but the study has only {n_seeds}"
        problems.append(Problem(("decide", "first"), words))
    if decide.at_most is None:
        return problems
    at: Path = ("decide", "at_most")
    problems += [Problem(at, f"doesn't go together with {name}: drop one of them") for name in others]
    least = first * n_configurations
    if first < LEAST_SEEDS:
        problems.append(
            Problem(("seeds",), f"needs {LEAST_SEEDS} or more for decide.at_most: with fewer nothing is decided")
        )
    if decide.most_trials is not None and decide.most_trials < least:
        words = f"{first} seeds of {n_configurations} configurations are {least} trials"
        problems.append(Problem(at, f"is too small: {words}"))
    if rank_by in MEDIANS:
        problems.append(Problem(at, f"can't compare by {rank_by!r}, a median; rank by another metric"))
    return problems


def search_problems(search: SearchConfig, *, n_configurations: int, rank_by: str) -> list[Problem]:
    """What keeps a search from being run; arguments as for `decide_problems`."""
    problems = []
    if search.budget < n_configurations:
        words = f"is smaller than the {n_configurations} configurations that the study lists"
        problems.append(Problem(("search", "budget"), words))
    if not search.metrics and METRICS[rank_by].worst is None:
        words = f"name bounded metrics here: evaluation.rank_by {rank_by!r} has no worst value"
        problems.append(Problem(("search", "metrics"), words))
    return problems

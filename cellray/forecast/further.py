"""How many trials a study that gives seeds where they decide comes to: at least, at most, and by its results so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellray.ledger import Ledger
from cellray.record import PlannedTrial
from cellray.results import plan_of
from cellray.search.evidence import Evidence
from cellray.search.rules import alpha_of, by_old_rule, look_at, looks
from cellray.statistics import find_best, look_ahead, moments
from cellray.study import Study


@dataclass(frozen=True)
class Further:
    """Trials beyond those that are given already."""

    most: int | None
    """That the study allows; None where it allows hours."""
    likely: int | None = None
    """If seeds went on like those so far; None: too little is known."""
    lacks_images: bool = False
    """Whether it is test images that are lacking, by what is known so far."""


def further_trials(study: Study, plan: Sequence[PlannedTrial], ledger: Ledger) -> Further:
    """What a study that gives seeds where they decide is likely to give, by the rule that gives them.

    Args:
        study: One that `gives_seeds`.
        plan: Its trials so far, and what is done of them.
        ledger: With the records of those.
    """
    decide, log = study.decide, ledger.search()
    assert decide is not None
    most = None if decide.most_trials is None else max(decide.most_trials - len(plan), 0)
    done = [planned for planned in plan if planned.done]
    if not done:
        return Further(most)
    labels = list(dict.fromkeys(planned.label for planned in plan))
    trials = [[planned for planned in done if planned.label == label] for label in labels]
    given = [sum(planned.label == label for planned in plan) for label in labels]
    values, whole = Evidence(study, ledger).ended_runs(labels, trials, study.more_seeds(max(given)))
    planned_looks, margin = looks(len(study.first_seeds), len(labels), decide.most_trials), plan_of(study, ()).margin
    if len(done) == len(plan) and max(given) in planned_looks:
        look = look_at(values, given, planned_looks, margin, whole, given_before=max(given))
        n_next = sum(look.n_seeds - given[i] for i in look.needs)
        if not 0 < n_next <= (math.inf if most is None else most) or (log and log.note == by_old_rule(look.margin)):
            return Further(0, 0)  # it has ended
    n_looks = sum(n <= max(map(len, trials)) for n in planned_looks)
    alpha = alpha_of(max(n_looks - 1, 0), len(planned_looks))
    said = find_best(values, alpha=alpha, preferred=whole)
    if said is None:
        return Further(most)
    within = margin(float(np.nanmean(values[said.take])))
    if said.loss <= within:
        return Further(most, 0)
    view = look_ahead(said, moments(values), within, new_images=values.shape[2] > 1, alpha=alpha)
    if view is None or view.n_seeds is None:
        return Further(most, most, view is not None and view.lacks_images)
    n_more = sum(max(view.n_seeds - given[i], 0) for i in said.open_within(within))
    return Further(most, n_more if most is None else min(n_more, most))

"""What a report states about a study besides its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cellray.study import QUIRKS, EvaluationConfig, Role, Study

MOST_NAMED = 12
"""Configurations that a sentence names; of more it says how many."""


@dataclass(frozen=True)
class StudyFacts:
    """What records don't say; a report that isn't told does without."""

    roles: tuple[Role, ...] = ()
    evaluation: EvaluationConfig | None = None
    """None: as the first record has it."""
    notes: tuple[str, ...] = ()
    """Sentences."""
    sets: tuple[str, ...] = ()
    """Names of the external sets in the order to show."""
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Set -> metric -> how well human experts agree on its images, a ceiling."""
    study_yaml: str = ""
    """The resolved study file."""


def facts_of(study: Study) -> StudyFacts:
    """The facts of a study; Ray can send them."""
    return StudyFacts(
        roles=tuple(study.roles()),
        evaluation=study.judged_by,
        notes=tuple(_quirk_notes(study)),
        sets=tuple(external.name for external in study.data.external),
        agreement={"test": study.data.train.agreement, **{e.name: e.agreement for e in study.data.external}},
        study_yaml=study.dump_yaml(),
    )


def _quirk_notes(study: Study) -> Iterable[str]:
    """A sentence for each quirk that a configuration has."""
    n = len(study.configurations)
    for name, quirk in QUIRKS.items():
        who = [c.label for c in study.configurations if name in study.quirks_of(c)]
        if who:
            named = "; ".join(who) if len(who) <= MOST_NAMED else f"{len(who)} of {n} configurations"
            yield f"Quirk {name} of {'every configuration' if len(who) == n else named}: {quirk.description}."

"""What a report is about, from a study and its ledger: the planned trials and the facts that records don't state."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from cellray.report.tables import Plan, PlannedTrial
from cellray.study import QUIRKS

MOST_NAMED = 12
"""Configurations that a sentence names; of more it says how many."""


class Files(Protocol):
    """What is needed of a ledger."""

    def read(self, path: str) -> bytes: ...
    def exists(self, path: str) -> bool: ...
    def plan(self) -> list[dict[str, Any]]: ...


def plan_of(study: Any, planned: Iterable[Any]) -> Plan:
    """The plan of a report.

    Args:
        study: A `Study`.
        planned: What `Sets.plan` gives: objects with `trial` (label, seed), `key` and `evaluation_key`.
    """
    return _plan(study, (PlannedTrial(p.trial.label, p.trial.seed, p.key, p.evaluation_key) for p in planned))


def stored_plan(ledger: Files, study: Any) -> Plan:
    """The plan that the last sweep of a `Study` left in its ledger: a report needs no data to know the keys.

    Raises:
        LedgerError: If no sweep has been there.
    """
    return with_dropped(ledger, _plan(study, stored_trials(ledger)))


def stored_trials(ledger: Files) -> tuple[PlannedTrial, ...]:
    """The planned trials as the ledger has them now.

    Raises:
        LedgerError: If no sweep has been there.
    """
    return tuple(PlannedTrial(t["label"], t["seed"], t["key"], t["evaluation_key"]) for t in ledger.plan())


def with_dropped(ledger: Files, plan: Plan) -> Plan:
    """The plan with the configurations that a race has dropped so far, as the ledger's search.json names them."""
    if not ledger.exists("search.json"):
        return plan
    found = json.loads(ledger.read("search.json"))["configurations"]
    gone = {c["label"]: c["seeds"] for c in found if c["state"] == "dropped"}
    words = {label: f"dropped after {n} seed{'' if n == 1 else 's'}" for label, n in gone.items()}
    return replace(plan, dropped=words)


def _plan(study: Any, trials: Iterable[PlannedTrial]) -> Plan:
    return Plan(
        study.name,
        study.question,
        study.evaluation.rank_by,
        tuple(trials),
        skip_collapsed="skip_collapsed" in study.all_quirks,
        epochs=study.training.epochs,
    )


def facts_of(study: Any) -> dict[str, Any]:
    """What a report states about a `Study` besides its records, as plain data that Ray can send."""
    return {
        "roles": [{"parameter": r.parameter, "role": r.role, "value": r.value} for r in study.roles()],
        "evaluation": study.judged_by.model_dump(mode="json"),
        "notes": list(_quirk_notes(study)),
        "sets": [external.name for external in study.data.external],
        "agreement": {"test": study.data.train.agreement, **{e.name: e.agreement for e in study.data.external}},
        "study_yaml": study.dump_yaml(),
    }


def _quirk_notes(study: Any) -> Iterable[str]:
    """A sentence for each quirk that a configuration has."""
    n = len(study.configurations)
    for name, quirk in QUIRKS.items():
        who = [c.label for c in study.configurations if name in study.quirks_of(c)]
        if who:
            named = "; ".join(who) if len(who) <= MOST_NAMED else f"{len(who)} of {n} configurations"
            yield f"Quirk {name} of {'every configuration' if len(who) == n else named}: {quirk.description}."

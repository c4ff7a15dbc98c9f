"""Where the best weights of a three-term loss lie, by what the configurations of a study score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cellray.errors import DataError
from cellray.metrics import METRICS
from cellray.report.searched import Search, judged_value
from cellray.report.tables import Plan, Record, Tables, metric_title, rows_of, select
from cellray.statistics.simplex import SimplexFit, fit_simplex

ENOUGH_MIXTURES = 6
"""As many as the fitted surface has terms; an ablation of a few presets is no study of weights."""
ENOUGH_SEARCHED = 12
"""Where other parameters vary too, only the scatter about the surface says how far it is known: it takes some more."""


@dataclass(frozen=True)
class Mixtures:
    """The configurations that mix the same three loss terms."""

    names: tuple[str, str, str]
    """Of the terms."""
    points: pd.DataFrame
    """One row a configuration: label, a, b, c (weights), mean and se (of the test score, over seeds; NaN of one seed,
    and where other parameters vary: see `varying`)."""
    metric: str
    varying: tuple[str, ...] = ()
    """What else differs between them, in words; the surface is over the weights alone, the rest is its scatter."""
    validation: pd.DataFrame | None = None
    """The same with the validation value that a search saw in the place of the test score; None without a search."""

    def fit(self, points: pd.DataFrame | None = None) -> SimplexFit | None:
        """The surface over the test scores, or over other points; None where they don't determine one."""
        try:
            return fit_simplex(
                self.points if points is None else points, higher_is_better=METRICS[self.metric].higher_is_better
            )
        except DataError:
            return None

    def sentence(self) -> str:
        """The best weights with the range of each over the 95 % region, by test images and by validation images."""
        judged = [("test", self.points)] + ([("validation", self.validation)] if self.validation is not None else [])
        fits = [(name, self.fit(points)) for name, points in judged]
        parts = [f"by {name} images {weights_text(self.names, fit)}" for name, fit in fits if fit is not None]
        if not parts:
            return ""
        return (
            f"Best weights of {', '.join(self.names)} for {metric_title(self.metric)}, from a surface over "
            f"{len(self.points)} mixtures: {'; '.join(parts)} (in brackets the 95 % region)."
        )

    def caveat(self) -> str:
        """What else differs between the mixtures; empty where nothing does."""
        if not self.varying:
            return ""
        return (
            f"Between these mixtures {', '.join(self.varying)} differ too: the surface is over the weights alone, and "
            "what the rest does widens its ranges."
        )


def weights_text(names: tuple[str, str, str], fit: SimplexFit) -> str:
    """`bce 0.54 [0.30–0.75], dice 0.46 [0.20–0.70], focal 0.00 [0.00–0.15]`."""
    # the best is known to 0.01, the region to 0.05: the range holds both
    ends = np.concatenate([fit.region, fit.best[None]])
    parts = zip(names, fit.best, ends.min(axis=0), ends.max(axis=0), strict=True)
    return ", ".join(f"{name} {best:.2f} [{low:.2f}–{high:.2f}]" for name, best, low, high in parts)


def find_mixtures(
    records: Mapping[str, Record], tables: Tables, plan: Plan, search: Search | None = None
) -> list[Mixtures]:
    """Families of configurations that mix the same three loss terms in enough ways, by test scores.

    Args:
        records: Of the planned trials, by key.
        tables: Give the test scores.
        plan: The planned trials.
        search: Where weights were searched for; configurations without a test score (ended early) are left out.

    Returns:
        A family for each triple of terms, with at least 6 different mixtures, or 12 if something else varies too. Then
        standard errors over seeds would say too little of the scatter, and all points weigh alike.
    """
    known = {t.label: records[t.key] for t in plan.trials if t.key in records}
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    settings: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows_of(select(tables.ranking, set_name="test", metric=plan.rank_by)):
        stored = (known.get(row.label) or {}).get("settings") or {}
        terms = (stored.get("loss") or {}).get("terms") or []
        if len(terms) != 3 or not np.isfinite(row.mean):
            continue
        first, second, third = (str(term["name"] or term.get("code")) for term in terms)
        a, b, c = (float(term["weight"]) for term in terms)
        if a + b + c <= 0:
            continue
        families.setdefault((first, second, third), []).append(
            {"a": a, "b": b, "c": c, "label": row.label, "mean": row.mean, "se": row.sd / row.n**0.5}
        )
        settings.setdefault((first, second, third), []).append(other_settings(stored))
    values = {} if search is None else validation_values(search, plan.rank_by)
    found = []
    for names, rows in families.items():
        points = pd.DataFrame(rows)
        keys = sorted({key for mine in settings[names] for key in mine})
        varying = tuple(key for key in keys if len({mine.get(key) for mine in settings[names]}) > 1)
        if len(points[["a", "b", "c"]].drop_duplicates()) < (ENOUGH_SEARCHED if varying else ENOUGH_MIXTURES):
            continue
        if varying:
            points["se"] = np.nan
        seen = points.assign(mean=points.label.map(values), se=np.nan)
        seen = seen[np.isfinite(seen["mean"].astype(float))]
        found.append(Mixtures(names, points, plan.rank_by, varying, seen if len(seen) else None))
    return found


def other_settings(stored: Mapping[str, Any]) -> dict[str, str]:
    """Everything that a trial was set to but the weights, by name; what follows from the configuration's label or seed
    isn't a setting."""
    loss = stored.get("loss") or {}
    flat: dict[str, str] = {}
    for term in loss.get("terms") or []:
        flat |= {f"{term['name']} {key}": str(value) for key, value in (term.get("settings") or {}).items()}
    flat |= {key: str(value) for key, value in loss.items() if key not in ("terms", "name", "settings", "code")}
    for part in ("training", "model"):
        flat |= {key: str(value) for key, value in (stored.get(part) or {}).items()}
    return flat


def validation_values(search: Search, metric: str) -> dict[str, float]:
    """What the search saw of each configuration, by label; empty if it didn't look at that metric."""
    if metric not in search.metrics:
        return {}
    at = search.metrics.index(metric)
    return {c.label: judged_value(c, metric, at) for c in search.judged}

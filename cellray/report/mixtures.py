"""Where the best weights of a three-term loss lie, by what the configurations of a study score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from cellray.errors import DataError
from cellray.metrics import METRICS
from cellray.record import TrialSettings
from cellray.report.ranking import rows_of
from cellray.report.searched import Search
from cellray.report.text import metric_title
from cellray.statistics.simplex import SimplexFit, fit_simplex

ENOUGH_MIXTURES = 6
"""As many as the fitted surface has terms; an ablation of a few presets is no study of weights."""
ENOUGH_SEARCHED = 12
"""Where other parameters vary too, only the scatter about the surface says how far it is known: it takes some more."""


@dataclass(frozen=True)
class WeightFamily:
    """The configurations that mix the same three loss terms; each surface over their weights is fitted once."""

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

    @cached_property
    def fit(self) -> SimplexFit | None:
        """The surface over the test scores; None where the points don't determine one."""
        return self._fit_to(self.points)

    @cached_property
    def validation_fit(self) -> SimplexFit | None:
        """The surface over the validation values."""
        return None if self.validation is None else self._fit_to(self.validation)

    def _fit_to(self, points: pd.DataFrame) -> SimplexFit | None:
        try:
            return fit_simplex(points, higher_is_better=METRICS[self.metric].higher_is_better)
        except DataError:
            return None

    @cached_property
    def sentence(self) -> str:
        """The best weights with the range of each over the 95 % region, by test images and by validation images."""
        fits = {"test": self.fit, "validation": self.validation_fit}
        parts = [f"by {name} images {weights_text(self.names, fit)}" for name, fit in fits.items() if fit is not None]
        if not parts:
            return ""
        return (
            f"Best weights of {', '.join(self.names)} for {metric_title(self.metric)}, from a surface over "
            f"{len(self.points)} mixtures: {'; '.join(parts)} (in brackets the 95 % region)."
        )

    @property
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


def find_families(
    ranked: pd.DataFrame, settings: Mapping[str, TrialSettings], metric: str, search: Search | None = None
) -> list[WeightFamily]:
    """Families of configurations that mix the same three loss terms in enough ways, by test scores.

    Args:
        ranked: Rows of the ranking on the test set by the metric.
        settings: Of each configuration that has a record, by label.
        metric: A key of ``METRICS``.
        search: Where weights were searched for; configurations without a test score (ended early) are left out.

    Returns:
        A family for each triple of terms, with at least 6 different mixtures, or 12 if something else varies too. Then
        standard errors over seeds would say too little of the scatter, and all points weigh alike.
    """
    members: dict[tuple[str, str, str], list[tuple[dict[str, object], dict[str, str]]]] = {}
    for row in rows_of(ranked):
        stored = settings.get(row.label, TrialSettings())
        terms = stored.loss.terms
        if len(terms) != 3 or not np.isfinite(row.mean):
            continue
        first, second, third = (term.title for term in terms)
        a, b, c = (term.weight for term in terms)
        if a + b + c <= 0:
            continue
        point = {"a": a, "b": b, "c": c, "label": row.label, "mean": row.mean, "se": row.sd / row.n**0.5}
        members.setdefault((first, second, third), []).append((point, other_settings(stored)))
    values: dict[str, float] = {}  # what a search saw on validation images
    if search is not None and metric in search.metrics:
        values = {c.label: search.value(c, metric) for c in search.judged}
    found = []
    for names, rows in members.items():
        points, others = pd.DataFrame([point for point, _ in rows]), [other for _, other in rows]
        keys = sorted({key for other in others for key in other})
        varying = tuple(key for key in keys if len({other.get(key) for other in others}) > 1)
        if len(points[["a", "b", "c"]].drop_duplicates()) < (ENOUGH_SEARCHED if varying else ENOUGH_MIXTURES):
            continue
        if varying:
            points["se"] = np.nan
        seen = points.assign(mean=points.label.map(values), se=np.nan)
        seen = seen[np.isfinite(seen["mean"].astype(float))]
        found.append(WeightFamily(names, points, metric, varying, seen if len(seen) else None))
    return found


def other_settings(stored: TrialSettings) -> dict[str, str]:
    """Everything that a trial was set to but the weights, by name; what follows from the configuration's label or seed
    isn't a setting."""
    loss = stored.loss.plain()
    flat: dict[str, str] = {}
    for term in stored.loss.terms:
        flat |= {f"{term.name} {key}": str(value) for key, value in term.settings.items()}
    flat |= {key: str(value) for key, value in loss.items() if key not in ("terms", "name", "settings", "code")}
    for part in (stored.training, stored.model):
        flat |= {key: str(value) for key, value in part.plain().items()}
    return flat

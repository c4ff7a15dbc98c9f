"""The sections of the page: what each shows, from results; `PAGE_SECTIONS` lists them in order.

A section is one `Section` here and one template of its name beside this file, which gets what `context` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cellray.overlay import OVERLAY_COLOURS
from cellray.report.figures import Drawing
from cellray.report.findings import Findings
from cellray.report.gallery import LEGEND, ROLES, Gallery
from cellray.report.page.cost_table import cost_table
from cellray.report.page.differences import find_differences
from cellray.report.page.published_table import published_table
from cellray.report.page.ranking_tables import lead_sentence, metrics_table, ranked_table
from cellray.report.page.search_tables import SearchSection, search_section
from cellray.report.page.table_cells import agreement_note
from cellray.report.protocol import Protocol
from cellray.statistics import rate_interval

Context = dict[str, object]
"""What a template gets, by name."""


@dataclass(frozen=True)
class PageContents:
    """Everything that the page shows."""

    found: Findings
    answer: list[str]
    """Sentences that open the page."""
    drawings: Mapping[str, Drawing]
    """Figures by name."""
    gallery: Gallery
    protocol: Protocol

    @cached_property
    def searched(self) -> SearchSection:
        """What is said of a search, or of mixtures of losses."""
        return search_section(self.found)

    def figures_of(self, section: str) -> list[Drawing]:
        """The figures of a section in order, folded ones last."""
        mine = [drawing for drawing in self.drawings.values() if drawing.kind.section == section]
        return sorted(mine, key=lambda drawing: drawing.is_folded)


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    id: str
    """Also names its template."""
    title: str
    context: Callable[[PageContents], Context | None]
    """What its template gets; None: there is nothing to show, and the section is left out."""


def ranking_context(page: PageContents) -> Context:
    """The ranking on the test set, and that on validation images."""
    found = page.found
    return {
        "ranked": {n: ranked_table(found.tables, found.metric, n) for n in found.tables.sets if n in ("test", "val")},
        "agreement": agreement_note(found.agreement, "test"),
        "dots": page.drawings.get("ranking-test"),
        "every_metric": metrics_table(found.tables, found.metric, "test"),
    }


def images_context(page: PageContents) -> Context | None:
    """The overlays."""
    context: Context = {"gallery": page.gallery, "roles": ROLES, "legend": LEGEND, "colours": OVERLAY_COLOURS}
    return None if page.gallery.is_empty else context


def differences_context(page: PageContents) -> Context | None:
    """What the tests on the test set say."""
    differences = find_differences(page.found.tables, page.found.metric, "test")
    figures = page.figures_of("differences")
    return None if differences.is_empty and not figures else {"found": differences, "figures": figures}


def weights_context(page: PageContents) -> Context | None:
    """What a search or a study of weights found."""
    figures = page.figures_of("weights")
    return None if page.searched.is_empty and not figures else {"searched": page.searched, "figures": figures}


def quality_context(page: PageContents) -> Context | None:
    """How cells are found and counted: figures alone."""
    figures = page.figures_of("quality")
    return {"figures": figures} if figures else None


def generalisation_context(page: PageContents) -> Context | None:
    """The ranking and the tests of each external set."""
    found, figures = page.found, page.figures_of("generalisation")
    tables, metric = found.tables, found.metric
    sets = [
        {
            "name": name,
            "agreement": agreement_note(found.agreement, name),
            "lead": lead_sentence(tables, metric, name),
            "ranked": ranked_table(tables, metric, name),
            "dots": page.drawings.get(f"ranking-{name}"),
            "found": find_differences(tables, metric, name),
            "every_metric": metrics_table(tables, metric, name),
        }
        for name in found.external
    ]
    return {"figures": figures, "sets": sets} if figures or sets else None


def training_context(page: PageContents) -> Context:
    """Outcomes, learning curves and costs."""
    trials = page.found.tables.trials
    n_seeds = len({trial.seed for trial in page.found.plan.trials})
    # those that were ended early stand in a table of their own, where there is one
    expected = ["finished", "missing", *(["stopped"] if page.searched.stopped else [])]
    troubles = trials[~trials.outcome.isin(expected)]
    return {
        "troubles": troubles[["label", "seed", "outcome", "reason", "key"]].to_dict("records"),
        "searched": page.searched,
        "n_stopped": int((trials.outcome == "stopped").sum()),
        "n_seeds": n_seeds,
        "unseen": rate_interval(0, n_seeds)[1],
        "has_fewer": trials.groupby("label").size().min() < n_seeds,
        "nan_notes": page.found.tables.notes,
        "in_doubt": trials[trials.lr_in_doubt][["label", "seed", "lr", "range_test_ended"]].to_dict("records"),
        "figures": page.figures_of("training"),
        "costs": cost_table(page.found),
    }


def protocol_context(page: PageContents) -> Context:
    """What a reader needs to judge the report by."""
    return {"protocol": page.protocol, "published": published_table(page.found.tables)}


PAGE_SECTIONS = (
    Section("ranking", "Ranking on the test set", ranking_context),
    Section("images", "Found, missed and made up", images_context),
    Section("differences", "Which differences hold", differences_context),
    Section("weights", "Loss weights and search", weights_context),
    Section("quality", "How cells are found and counted", quality_context),
    Section("generalisation", "Beyond the test set", generalisation_context),
    Section("training", "Training, outcomes and cost", training_context),
    Section("protocol", "Protocol", protocol_context),
)
"""Every section in order; one that has nothing to show is left out."""

"""The page as text: tables, figures and images put into the templates beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cellray.overlay import OVERLAY_COLOURS
from cellray.report.exports import set_title_plain
from cellray.report.figures import Drawing
from cellray.report.gallery import ROLES, Gallery
from cellray.report.mixtures import find_mixtures
from cellray.report.page.cost_table import cost_table
from cellray.report.page.differences import find_differences
from cellray.report.page.published_table import published_table
from cellray.report.page.ranking_tables import lead_sentence, metrics_table, ranked_table
from cellray.report.page.search_tables import search_section
from cellray.report.page.sections import arrange, named
from cellray.report.page.table_cells import agreement_note
from cellray.report.protocol import Protocol
from cellray.report.searched import Search, losses_of
from cellray.report.tables import Plan, Record, Tables, metric_title
from cellray.statistics import unseen_rate

TITLES = {
    "ranking": "Ranking on the test set",
    "differences": "Which differences hold",
    "weights": "Loss weights and search",
    "quality": "How cells are found and counted",
    "generalisation": "Beyond the test set",
    "training": "Training, outcomes and cost",
    "images": "Images",
    "protocol": "Protocol",
}
"""Every section in order, by its id; one that has nothing to show is left out."""


def render_page(
    *,
    tables: Tables,
    plan: Plan,
    records: Mapping[str, Record],
    answer: list[str],
    drawings: Mapping[str, Drawing],
    gallery: Gallery,
    protocol: Protocol,
    speeds: Mapping[tuple[str, int], float] | None = None,
    agreement: Mapping[str, Mapping[str, float]] | None = None,
    search: Search | None = None,
) -> str:
    """The whole page as text.

    Args:
        tables: Scores and ranks.
        plan: The planned trials and the question.
        records: Of the planned trials, by key.
        answer: Sentences that open the page.
        drawings: Figures by name; each needs a place in `sections.PLACES`.
        gallery: Overlays.
        protocol: What the report states about how it was made.
        speeds: Training images a second by label and seed.
        agreement: Set -> metric -> how well human experts agree.
        search: What a search tried, where there was one.
    """
    metric = plan.rank_by
    external = [name for name in tables.sets if name not in ("test", "val")]
    figures = arrange(drawings)
    comparisons = {name: find_differences(tables, metric, name) for name in ("test", *external)}
    searched = search_section(
        search, tables, metric, losses_of(records, plan), find_mixtures(records, tables, plan, search)
    )
    n_seeds = len({trial.seed for trial in plan.trials})
    # those that were ended early stand in a table of their own, where there is one
    expected = ["finished", "missing", *(["stopped"] if searched.stopped else [])]
    troubles = tables.trials[~tables.trials.outcome.isin(expected)]
    shown = {
        "ranking": True,
        "differences": not comparisons["test"].is_empty or "differences" in figures,
        "quality": "quality" in figures,
        "generalisation": bool(external) or "generalisation" in figures,
        "training": True,
        "images": not gallery.is_empty,
        "protocol": True,
        "weights": "weights" in figures or not searched.is_empty,
    }
    page = environment().get_template("page.html.j2").render(
        plan=plan,
        answer=answer,
        tested=tables.inference is not None,
        provisional=bool((tables.trials.outcome == "missing").any()),
        metric_title=metric_title(metric),
        titles={key: title for key, title in TITLES.items() if shown[key]},
        sets=tables.sets,
        external=external,
        main={name: ranked_table(tables, metric, name) for name in tables.sets},
        all_metrics={name: metrics_table(tables, metric, name) for name in tables.sets},
        comparisons=comparisons,
        leads={name: lead_sentence(tables, metric, name) for name in external},
        agreement={name: agreement_note(agreement or {}, name) for name in tables.sets},
        set_title=set_title_plain,
        figures=figures,
        figure_of=named(figure for group in figures.values() for figure in group),
        costs=cost_table(records, plan, tables, speeds or {}),
        published=published_table(tables),
        gallery=gallery,
        roles=ROLES,
        legend=[
            ("hit", "found"),
            ("missed", "missed (true outline)"),
            ("spurious", "spurious (predicted outline)"),
        ],
        colours=OVERLAY_COLOURS,
        troubles=troubles[["label", "seed", "outcome", "reason", "key"]].to_dict("records"),
        searched=searched,
        nan_notes=tables.notes,
        n_seeds=n_seeds,
        has_fewer=tables.trials.groupby("label").size().min() < n_seeds,
        n_stopped=int((tables.trials.outcome == "stopped").sum()),
        unseen=unseen_rate(n_seeds),
        at_edge=tables.trials[tables.trials.lr_at_edge][["label", "seed", "lr"]].to_dict("records"),
        protocol=protocol,
        n_records=tables.n_records,
        n_planned=len(plan.trials),
    )  # fmt: skip
    return page.lstrip()


def environment() -> Environment:
    """The templates, with a function that pastes a style sheet or script as it is."""
    loader = PackageLoader("cellray.report.page", "")
    found = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    globals_: dict[str, Any] = found.globals
    globals_["paste"] = lambda name: Markup(loader.get_source(found, name)[0])
    return found

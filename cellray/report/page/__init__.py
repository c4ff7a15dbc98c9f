"""One self-contained HTML page: no network, no server, light and dark, on paper and on a phone."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cellray.report.page.sections import PAGE_SECTIONS, PageContents
from cellray.report.words import set_title_plain

__all__ = ["PAGE_SECTIONS", "PageContents", "render_page"]


def render_page(page: PageContents) -> str:
    """The whole page as text."""
    found = page.found
    templates = environment()
    templates.globals |= {"set_title": set_title_plain, "metric_title": found.title}
    shown = {section: context for section in PAGE_SECTIONS if (context := section.context(page)) is not None}
    rendered = templates.get_template("page.html.j2").render(
        plan=found.plan,
        answer=page.answer,
        tested=found.tables.inference is not None,
        provisional=bool((found.tables.trials.outcome == "missing").any()),
        external=found.external,
        sections=[
            (section, Markup(templates.get_template(f"{section.id}.html.j2").render(context)))
            for section, context in shown.items()
        ],
        n_records=found.tables.n_records,
    )
    return rendered.lstrip()


def environment() -> Environment:
    """The templates, with a function that pastes a style sheet, script or rendered section as it is."""
    loader = PackageLoader("cellray.report.page", "")
    found = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["paste"] = lambda name: Markup(loader.get_source(found, name)[0])
    return found

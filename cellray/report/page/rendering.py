"""The sections of a report put together as one page."""

from __future__ import annotations

from markupsafe import Markup

from cellray.report.page.sections import PAGE_SECTIONS, PageContents
from cellray.report.page.templates import environment
from cellray.report.words import set_title_plain


def render_page(page: PageContents) -> str:
    """The whole page as text."""
    found = page.found
    templates = environment().overlay()
    templates.globals = templates.globals | {"set_title": set_title_plain, "metric_title": found.title}
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

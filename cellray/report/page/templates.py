"""The page's templates."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
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

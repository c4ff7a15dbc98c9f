"""One self-contained HTML page: no network, no server, light and dark, on paper and on a phone."""

from cellray.report.page.render import render_page

__all__ = ["render_page"]

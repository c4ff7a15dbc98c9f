from .rendering import render_page
from .sections import PAGE_SECTIONS, PageContents

__all__ = ["PAGE_SECTIONS", "PageContents", "render_page"]

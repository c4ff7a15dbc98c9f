"""What several test files share: where real data lie, and how a test says that it lacks something."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test that lacks something (data, PostgreSQL, Chromium, root); with CI=true that is a failure.

    Args:
        reason: A sentence: what is missing and how to provide it.
    """
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def oracle(module: str) -> Any:
    """Another package's module to compare with, from the extra `test`."""
    try:
        return import_module(module)
    except ImportError:
        skip_or_fail(f"{module} is not installed; make install-test installs it.")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium, driven by Playwright."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        skip_or_fail("Pages are tested in Chromium: install chromium and the playwright package.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data: $CELLRAY_SHARED, else `shared` beside the project folder."""
    folder = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        skip_or_fail(f"There are no shared data at {folder}; set CELLRAY_SHARED to the folder that holds data/.")
    return folder

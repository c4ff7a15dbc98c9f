"""What several test files share: where real data lie, and how a test says that it lacks something."""

from __future__ import annotations

import os
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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data: $CELLRAY_SHARED, else `shared` beside the project folder."""
    folder = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        skip_or_fail(f"There are no shared data at {folder}; set CELLRAY_SHARED to the folder that holds data/.")
    return folder

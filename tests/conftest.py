"""What several test files share: where real data lie, and how a test says that it lacks something."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cellray.processes import collect_seldom

LONGEST_FIRST = (
    "test_services.py",
    "test_sweep.py",
    "test_kills.py",
    "test_submission.py",
    "test_tracking_server.py",
    "test_cli.py::TestOneStudy",
    "test_cli.py",
    "test_workers.py",
    "test_autoscaler.py",
)
"""How the names of tests begin that take longest together: each beginning is a group, and so is any other file. A group
stays on one worker of xdist, where its tests share fixtures; the longest start first, so that none is left at the end.
"""

collect_seldom()
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers wait for all that other tests compute
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; workers would fight for the processors
    os.environ.pop("COLUMNS", None)  # of the terminal in which pytest runs: commands write here as into a file


def group(nodeid: str) -> str:
    """The group of a test."""
    name = nodeid.removeprefix("tests/")
    return next((start for start in LONGEST_FIRST if name.startswith(start)), name.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(group(item.nodeid), len(order)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported and collected stays: pytest would look through it for garbage, again and again


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class LoadGroups(LoadScopeScheduling):
        """Hands out groups in the order of collection. (xdist's own `loadgroup` finds no marks with pytest 9.)"""

        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False
    return LoadGroups(config, log)


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
    from cellray.model.libraries import _imported  # torchvision from the index may lack operators beside torch for CPUs

    try:
        return _imported(module)
    except ImportError:
        skip_or_fail(f"{module} is not installed; make install-test installs it.")


def shared_by_workers(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of pytest, which all workers of xdist have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


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


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of decoded images of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn images with their masks."""
    from tiny_study import draw_images

    return draw_images(tmp_path_factory.mktemp("images") / "disks")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data: $CELLRAY_SHARED, else `shared` beside the project folder."""
    folder = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        skip_or_fail(f"There are no shared data at {folder}; set CELLRAY_SHARED to the folder that holds data/.")
    return folder

"""The licences in docs/security.md are those of the pinned packages, all of them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from conftest import skip_or_fail

ROOT = Path(__file__).parents[1]
PINNED = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
WORDS = {"PSF-2.0": ("PSF", "Python Software Foundation"), "MPL-2.0": ("MPL",), "LGPL-3.0 with exceptions": ("LGPL",)}
"""How packages may write a licence, where its first word isn't enough."""


def rows() -> list[tuple[str, list[str]]]:
    """Licence and packages of each row of the table."""
    table = (ROOT / "docs/security.md").read_text().partition("| licence | packages |\n| --- | --- |\n")[2]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [(licence, names.split(", ")) for licence, names in cells]


def test_every_pinned_package_is_listed_once_and_nothing_else():
    assert sorted(name for _, names in rows() for name in names) == sorted(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_a_package_has_the_licence_that_is_listed(name):
    try:
        facts = metadata(name)
    except PackageNotFoundError:
        skip_or_fail(f"{name} is not installed; make install-test installs it.")
    stated = [facts.get("License-Expression") or "", (facts.get("License") or "")[:200]]
    stated += [word for word in facts.get_all("Classifier", []) if word.startswith("License :: OSI Approved ::")]
    (licence,) = (licence for licence, names in rows() if name in names)
    words = WORDS.get(licence, (licence.partition("-")[0].partition(" ")[0],))
    if any(stated):
        assert any(word in text for word in words for text in stated), stated

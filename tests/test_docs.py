"""The documentation says what is: the page of keys, the help of every command, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from cellray.cli.app import app
from cellray.study import key_page, study_schema

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def commands(command: click.Command, name: str = "cellray") -> Iterator[tuple[str, click.Command]]:
    """Every command with its whole name."""
    if inside := getattr(command, "commands", None):
        for word, inner in inside.items():
            yield from commands(inner, f"{name} {word}")
    else:
        yield name, command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_page_of_keys_is_the_schemas():
    assert (PROJECT / "docs/keys.md").read_text() == key_page(), "make keys"


def test_every_key_of_a_study_file_is_described():
    schema = study_schema()
    groups = {"": schema, **schema["$defs"]}
    bare = [
        f"{name}.{key}"
        for name, group in groups.items()
        for key, place in group.get("properties", {}).items()
        if not place.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_has_an_example_of_it(name):
    """The words of the example are those of the command, and its options exist."""
    command = COMMANDS[name]
    (example,) = re.findall(r"Example: \[bold\](.*?)\[/bold\]", command.help or "")
    assert example.startswith(name)
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<= )--[a-z-]+", example)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target

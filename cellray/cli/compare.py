"""`cellray compare`: two configurations, or two studies."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cellray.cli.common import Json, Storage, find, tell_damaged
from cellray.cli.show import print_table
from cellray.errors import one_of


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A configuration's label with --study, else a study.", show_default=False)
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False)],
    study: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Compare two configurations of this study.")
    ] = None,
    storage: Storage = "studies",
    as_json: Json = False,
) -> None:
    """Compare one configuration with another, or one study with another, paired by seed and image.

    Example: [bold]cellray compare "BCE: low" Dice --study quickstart[/bold]
    """
    from cellray.report.comparing import compare_configurations, compare_studies

    if study is not None:
        found = find(study, storage)
        for label in (a, b):
            one_of("configuration", label, [c.label for c in found.study.configurations])
        studies = [found.results()]
    else:
        studies = [find(name, storage).results() for name in (a, b)]
    for results in studies:
        results.drop_damaged()
    table = compare_studies(studies) if study is None else compare_configurations(studies[0], a, b)
    if as_json:
        print(json.dumps([dict(zip(table.columns, row, strict=True)) for row in table.rows]))
    else:
        print_table(*table)
    tell_damaged(*studies)

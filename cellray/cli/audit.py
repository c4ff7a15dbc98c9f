"""``cellray audit``: published figures beside what the public files give, and what each quirk does to a ranking."""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cellray.cli.common import Json, Storage, StudyName, find, out
from cellray.cli.show import print_table
from cellray.errors import one_of

audit_app = typer.Typer(help="What was published, and why: published, quirks.", no_args_is_help=True)

NOTES = (
    "slides: mean ± SD of the published table; * where the runs give another mean or SD. runs that ended: the same "
    "from the five runs of each configuration that the quartiles in the public notebook "
    "05-results-and-visualizations.ipynb (clissa/fluocells-BVPAI) reveal, without those that have no value (NaN); n "
    "have one. SDs divide by n - 1.",
    "collapse as worst: a run that predicts nothing counts as F1 0 or, for an error, as the largest of any run.",
    "MAE, MedAE and MPE are of TP by distance - TP by IoU, as all_metrics in fluocells/utils/metrics.py "
    "(clissa/fluocells-scientific-data) computes them: false positives don't enter, and a run that predicts nothing "
    "has error 0. Detection F1 is left out: the tables hold no runs of it.",
)


@audit_app.command("published")
def audit_published(
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this metric, such as f1_iou or mae (repeatable).")
    ] = None,
    as_json: Json = False,
) -> None:
    """The published table of the twelve losses, rebuilt from the runs, and with collapsed runs counted.

    Example: [bold]cellray audit published --metric f1_iou[/bold]
    """
    from cellray.published import PUBLISHED_METRICS, recount

    keys = [one_of("metric", name, PUBLISHED_METRICS) for name in metric or ["f1_iou", "mae", "medae", "mpe"]]
    table = recount()
    table = table[table["metric"].isin(keys)]
    if as_json:
        print(json.dumps(json.loads(table.to_json(orient="records")), indent=1))
        return
    for key in keys:
        _, title, higher_is_better = PUBLISHED_METRICS[key]
        part = table[table["metric"] == key].sort_values(["all_rank", "configuration"])
        rows = [
            [
                row["configuration"],
                _spread(row["slides_mean"], row["slides_sd"]) + ("*" if row["differs"] else ""),
                _spread(row["valid_mean"], row["valid_sd"]),
                str(row["n_valid"]),
                str(row["valid_rank"]),
                _spread(row["all_mean"], row["all_sd"]),
                str(row["all_rank"]),
            ]
            for row in part.to_dict("records")
        ]
        out.print(f"[bold]{title}[/bold], {'higher' if higher_is_better else 'lower'} is better", highlight=False)
        print_table(["configuration", "slides", "runs that ended", "n", "rank", "collapse as worst", "rank"], rows, [])
        out.print()
    for note in NOTES:
        out.print(note, highlight=False)


@audit_app.command("quirks")
def audit_quirks(
    study_name: StudyName,
    storage: Storage = "studies",
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Rank by this metric (repeatable); default: f1_iou, mae.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank a finished study strictly and with each quirk of the reference study's code, from its ledger alone.

    Example: [bold]cellray audit quirks search_spaces/quirks.yaml[/bold]
    """
    from cellray.metrics import METRICS
    from cellray.report.quirk_rankings import quirk_rankings, quirk_table

    keys = [one_of("metric", name, METRICS) for name in metric or ["f1_iou", "mae"]]
    asked = find(study_name, storage)
    results = asked.results()
    found = {key: quirk_rankings(results, asked.study, key) for key in keys}
    if as_json:
        content = {
            key: [
                {"quirk": r.quirk, "order": [{"label": a, "rank": b, "mean": c} for a, b, c in r.order]}
                for r in rankings
            ]
            for key, rankings in found.items()
        }
        print(json.dumps(content, indent=1))
        return
    for key, rankings in found.items():
        columns, rows, notes = quirk_table(rankings, key)
        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table, highlight=False)
        for note in notes:
            out.print(escape(note), highlight=False)
        out.print()


def _spread(mean: float, sd: float) -> str:
    return f"{mean:.3f} ± {sd:.3f}" if math.isfinite(mean) else "–"

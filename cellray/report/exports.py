"""The ranked tables as CSV, Parquet, Markdown and LaTeX.

`ranking.csv` is long: one row a set, operating point, metric and configuration, with the columns of
`tables.rank_table`. `trials.csv` and `trials.parquet` are wide: one row a planned trial, with its outcome, budget and
every metric as stored, in columns named `point.set.metric`. Markdown and LaTeX hold one table a set.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pandas as pd
from pandas.api.types import is_numeric_dtype

from cellray.report.ranking import Tables
from cellray.report.text import TextTable, format_table, metric_title
from cellray.report.words import set_title_plain
from cellray.results import Plan

EXTRA = ("precision_iou", "recall_iou", "dice", "mae")
"""Metrics that stand beside the ranking one in Markdown and LaTeX, where there is room for a few."""


FORMULA = ("=", "+", "-", "@", "\t", "\r")
COLUMNS_OF_WORDS = ("may be best", "configuration", "else")
"""Columns of the ranked table that hold words."""


def csv_bytes(table: pd.DataFrame) -> bytes:
    """CSV with full precision; a missing value is an empty cell, and no text a formula."""
    words = {name: column.map(csv_cell) for name, column in table.items() if not is_numeric_dtype(column)}
    return table.assign(**words).to_csv(index=False, lineterminator="\n").encode()


def csv_cell(value: object) -> object:
    """A cell of a CSV; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """Parquet, the same bytes for the same table."""
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    return stream.getvalue()


def table_of_each_set(tables: Tables, plan: Plan) -> Iterator[tuple[str, TextTable]]:
    """The ranked table of each set, with a few metrics besides the one that ranks."""
    extra = [key for key in EXTRA if key != plan.rank_by]
    for name in tables.sets:
        yield set_title_plain(name), format_table(tables, metric=plan.rank_by, set_name=name, extra=extra)


def markdown(tables: Tables, plan: Plan, answer: list[str]) -> str:
    """Question, answer and one table a set."""
    parts = [f"# {md(plan.study)}", md(plan.question), " ".join(md(s) for s in answer)]
    for title, table in table_of_each_set(tables, plan):
        parts.append(f"## {md(title[:1].upper() + title[1:])}")
        head = "| " + " | ".join(md(column) for column in table.columns) + " |"
        rule = "|" + "|".join(" --- " if column in COLUMNS_OF_WORDS else " ---: " for column in table.columns) + "|"
        rows = ["| " + " | ".join(md(cell) for cell in row) + " |" for row in table.rows]
        parts.append("\n".join([head, rule, *rows]))
        parts += [md(note) for note in table.notes]
    parts.append(
        f"Means and SDs over seeds count a failed or collapsed trial as the worst value. "
        f"Built from {tables.n_records} of {len(plan.trials)} records."
    )
    return "\n\n".join(parts) + "\n"


def md(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\`*_{}[]<>#|":
        text = text.replace(mark, "\\" + mark if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text.replace("\n", " ")


def latex(tables: Tables, plan: Plan) -> str:
    r"""One `table` environment a set, with booktabs rules; needs ``\usepackage{booktabs}``."""
    parts = ["% Needs \\usepackage{booktabs}. Built by cellray from the ledger of " + tex(plan.study)]
    for name, (title, table) in zip(tables.sets, table_of_each_set(tables, plan), strict=True):
        columns = "".join("l" if column in COLUMNS_OF_WORDS else "r" for column in table.columns)
        notes = " ".join(tex(note) for note in table.notes)
        caption = f"{tex(metric_title(plan.rank_by))} by configuration, {tex(title)}. {notes}"
        lines = [
            r"\begin{table}",
            r"  \centering\small",
            rf"  \caption{{{caption.strip()}}}",
            rf"  \label{{tab:{''.join(c for c in plan.study + '-' + name if c.isalnum() or c == '-')}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            "    " + " & ".join(tex(column) for column in table.columns) + r" \\",
            r"    \midrule",
            *("    " + " & ".join(tex(cell) for cell in row) + r" \\" for row in table.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "–": "--", "−": r"$-$", "\n": " ",
}  # fmt: skip


def tex(text: str) -> str:
    """Text that LaTeX prints as it is; a leading [ is kept from being read as an option of the line break."""
    escaped = "".join(TEX.get(character, character) for character in text)
    return "{}" + escaped if escaped.startswith("[") else escaped

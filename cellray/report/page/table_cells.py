"""What the page's tables are made of: cells, columns, numbers as text, and small drawings of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from cellray.metrics import METRICS
from cellray.report.ranking import rows_of
from cellray.report.text import format_value


@dataclass(frozen=True)
class TableCell:
    """One cell of a table: what it shows, what it sorts by, and how it looks."""

    text: str
    sort: float | str
    kind: str = "number"
    """`number`, `number spare`, `text`, `words` (long text), `head` (the row's label), `strip spare` (drawn seeds),
    `moved` or `good`; spare cells are left out on a phone."""
    note: str = ""
    """Shown small below the text, a line each."""
    html: Markup | None = None
    """Instead of the text."""
    on_phone: Markup | None = None
    """Shown below all that on a phone alone."""


@dataclass(frozen=True)
class PageTable:
    """A sortable table."""

    columns: list[tuple[str, str]]
    """Title and explanation of each column."""
    rows: list[list[TableCell]]
    notes: list[str] = field(default_factory=list)

    @property
    def column_looks(self) -> list[str]:
        """How the title of each column looks: as its cells do, which may stand at the left, or be spare."""
        if not self.rows:
            return [""] * len(self.columns)
        left = {"head": "text", "strip": "text", "text": "text", "words": "text"}
        kinds = [cell.kind.partition(" ") for cell in self.rows[0]]
        return [" ".join(filter(None, (left.get(kind), look))) for kind, _, look in kinds]

    @property
    def explained(self) -> list[tuple[str, str]]:
        """The columns that have an explanation, for readers who can't hover over a title."""
        return [(title, text) for title, text in self.columns if text]


class Column(NamedTuple):
    """One column of a table in the making."""

    title: str
    explanation: str
    cell: Callable[[Any], TableCell]
    """Of a row."""


def table_of(columns: Sequence[Column], rows: Iterable[Any], notes: Sequence[str] = ()) -> PageTable:
    """The cells of each column for each row."""
    titles = [(column.title, column.explanation) for column in columns]
    return PageTable(titles, [[column.cell(row) for column in columns] for row in rows], list(notes))


def head(text: str) -> TableCell:
    """The label of a row."""
    return TableCell(text, text, "head")


def number_cell(value: float, text: str, note: str = "", kind: str = "number") -> TableCell:
    """A number; a dash, sorted last, where there is none."""
    return TableCell(text if not np.isnan(value) else "–", sort_key(value), kind, note=note)


def sort_key(value: float) -> float | str:
    """A value to sort by; empty where there is none, which sorts last."""
    return "" if np.isnan(value) else float(value)


def agreement_note(agreement: Mapping[str, Mapping[str, float]], set_name: str) -> str:
    """A sentence on how well human experts agree on a set, or nothing where it is unknown."""
    known = [(METRICS[key].title, format_value(key, v)) for key, v in agreement.get(set_name, {}).items()
             if key in METRICS]  # fmt: skip
    if not known:
        return ""
    values = ", ".join(f"{title} {value}" for title, value in known)
    return (
        f"Human experts reach {values} against this ground truth: a method above that has learned the ground truth, "
        "not found more."
    )


def strip_limits(seeds: pd.DataFrame) -> tuple[float, float]:
    """The common scale of a table's strips: the values of trials that ended, so that they can be told apart."""
    values = seeds[(seeds.outcome != "missing") & (seeds.note == "")].counted
    if values.empty:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def strip(mine: pd.DataFrame, mean: float, low: float, high: float, metric: str) -> Markup:
    """A small drawing of one configuration's seeds; worst-counted ones are crosses at the bad end."""
    width, left, right = 132, 14, 126
    if not METRICS[metric].higher_is_better:
        left, right = 6, 118
    lost_x = 5.0 if METRICS[metric].higher_is_better else width - 5.0

    def x(value: float) -> float:
        return left + (right - left) * min(max((value - low) / (high - low), 0.0), 1.0)

    parts, spoken = [], []
    for row in rows_of(mine.sort_values("seed")):
        if row.note == "stopped":
            spoken.append(f"seed {row.seed} ended early")
            continue
        if row.note:
            spoken.append(f"seed {row.seed} {row.outcome if row.note == 'worst' else 'not a number'}")
            continue
        spoken.append(f"seed {row.seed} {format_value(metric, row.counted)}")
        parts.append(f'<circle cx="{x(row.counted):.1f}" cy="10" r="3.6"/>')
    lost = int((~mine.note.isin(["", "stopped"])).sum())
    for i in range(lost):
        y = 10 + (i - (lost - 1) / 2) * min(4.0, 12 / max(lost - 1, 1))
        parts.append(f'<path d="M{lost_x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6"/>')
    if np.isfinite(mean) and low <= mean <= high:
        parts.append(f'<rect x="{x(mean) - 1:.1f}" y="1" width="2" height="18"/>')
    text = Markup.escape("; ".join(spoken) or "no result yet")
    return Markup(
        f'<svg class="strip" viewBox="0 0 {width} 20" width="{width}" height="20" role="img" aria-label="{text}">'
        f'<title>{text}</title><line x1="0" x2="{width}" y1="10" y2="10"/>{"".join(parts)}</svg>'
    )

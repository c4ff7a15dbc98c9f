"""One self-contained HTML page: no network, no server, light and dark, on paper and on a phone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cellray.metrics import METRICS
from cellray.overlay import OVERLAY_COLOURS
from cellray.report.exports import set_title_plain
from cellray.report.figures import Drawing
from cellray.report.images import ROLES, Gallery
from cellray.report.protocol import Protocol
from cellray.report.tables import (
    Plan,
    Tables,
    format_counts,
    format_rank,
    format_spread,
    format_value,
    metric_title,
    rows_of,
    select,
    table_notes,
)

SHOWN = (
    "f1_iou", "precision_iou", "recall_iou", "f1_distance", "precision_distance", "recall_distance", "miou", "dice",
    "pq", "ap_50_90", "aji", "mae", "medae", "mpe",
)  # fmt: skip
"""The metrics that the page's tables show; the exports have all of them."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what it shows, what it sorts by, and how it looks."""

    text: str
    sort: float | str
    kind: str = "number"
    """`number`, `text`, `head` (the row's label) or `strip` (drawn seeds)."""
    note: str = ""
    """Shown small below the text."""
    html: Markup | None = None
    """Instead of the text."""


@dataclass(frozen=True)
class PageTable:
    """A sortable table."""

    columns: list[tuple[str, str]]
    """Title and explanation of each column."""
    rows: list[list[Cell]]
    notes: list[str]


def render_page(
    *,
    tables: Tables,
    plan: Plan,
    answer: list[str],
    drawings: Mapping[str, Drawing],
    gallery: Gallery,
    protocol: Protocol,
) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=PackageLoader("cellray.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    metric = plan.rank_by
    troubles = tables.trials[~tables.trials.outcome.isin(["finished", "missing"])]
    order = list(select(tables.ranking, set_name="test", metric=metric).label)
    page = environment.get_template("page.html.j2").render(
        plan=plan,
        answer=answer,
        provisional=bool((tables.trials.outcome == "missing").any()),
        metric_title=metric_title(metric),
        main={name: ranked_table(tables, metric, name) for name in tables.sets},
        all_metrics={name: metrics_table(tables, metric, name) for name in tables.sets},
        set_title=set_title_plain,
        drawings={name: Markup(drawing.inline) for name, drawing in drawings.items()},
        titles={name: drawing.title for name, drawing in drawings.items()},
        ranking_figures=[name for name in drawings if name.startswith("ranking-")],
        other_figures=[name for name in drawings if not name.startswith("ranking-")],
        gallery=gallery,
        gallery_order=[label for label in order if label in gallery.by_configuration],
        roles=ROLES,
        legend=[
            ("hit", "found"),
            ("missed", "missed (true outline)"),
            ("spurious", "spurious (predicted outline)"),
        ],
        colours=OVERLAY_COLOURS,
        troubles=troubles[["label", "seed", "outcome", "reason", "key"]].to_dict("records"),
        nan_notes=tables.notes,
        protocol=protocol,
        n_records=tables.n_records,
        n_planned=len(plan.trials),
    )
    return page.lstrip()


def ranked_table(tables: Tables, metric: str, set_name: str) -> PageTable:
    """The ranking of one set: seeds, mean, survivors, worst seed, shared point, outcomes."""
    rows = select(tables.ranking, set_name=set_name, metric=metric)
    shared = select(tables.ranking, set_name=set_name, metric=metric, point="shared").set_index("label")["mean"]
    seeds = select(tables.scores, set_name=set_name, metric=metric)
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    title = metric_title(metric)
    columns = [
        ("Rank", "By the mean with failed and collapsed trials counted as worst"),
        ("Configuration", ""),
        ("Seeds", "Every seed; a cross is a failed or collapsed one at the worst value, the bar is the mean"),
        (title, "Mean ± SD over seeds, failed and collapsed counted as worst: this ranks"),
        ("Survivors", "Mean ± SD over finished trials alone, and their number"),
        ("Worst seed", ""),
        ("Shared point", "The same mean at the operating point shared by all"),
        ("Gain", "What the own operating point gains over the shared one"),
        ("Finished", "Finished of planned trials"),
    ]
    low, high = strip_limits(seeds)
    body = []
    for row in rows_of(rows):
        mine = seeds[(seeds.label == row.label) & (seeds.outcome != "missing")]
        at_shared = float(shared.get(row.label, np.nan))
        gain = sign * (row.mean - at_shared)
        place = f"rank {format_rank(row.survivors_rank)}" if row.order_differs else ""
        moved = row.order_differs and row.survivors_n < row.n
        body.append(
            [
                Cell(format_rank(row.rank), sort_key(row.rank)),
                Cell(str(row.label), str(row.label), "head"),
                Cell("", sort_key(row.mean), "strip", html=strip(mine, row.mean, low, high, metric)),
                Cell(format_spread(metric, row.mean, row.sd), sort_key(row.mean)),
                Cell(
                    format_spread(metric, row.survivors_mean, row.survivors_sd),
                    sort_key(row.survivors_mean),
                    "moved" if moved else "number",
                    note=f"n = {row.survivors_n}" + (f", {place}" if place else ""),
                ),
                Cell(format_value(metric, row.worst), sort_key(row.worst)),
                Cell(format_value(metric, at_shared), sort_key(at_shared)),
                Cell(signed(metric, gain), sort_key(gain)),
                Cell(f"{row.n_finished}/{row.n_planned}", row.n_finished, note=format_counts(row)),
            ]
        )
    notes = [note for note in table_notes(tables, rows, metric, set_name) if not note.startswith("[k]")]
    if len(rows) and rows.order_differs.any():
        notes.append("Where a rank stands below a survivors' mean, survivors alone would take that place instead.")
    return PageTable(columns, body, notes)


def metrics_table(tables: Tables, metric: str, set_name: str) -> PageTable:
    """The best-known metrics of one set, default rule, in the order of the ranking; ranking.csv has all."""
    keys = [key for key in dict.fromkeys((metric, *SHOWN)) if key in tables.metrics]
    order = select(tables.ranking, set_name=set_name, metric=metric)
    by_metric = {key: select(tables.ranking, set_name=set_name, metric=key).set_index("label") for key in keys}
    columns = [("Configuration", "")] + [(metric_title(key), METRICS[key].description) for key in keys]
    body = []
    for label in order.label:
        cells = [Cell(str(label), str(label), "head")]
        for key, table in by_metric.items():
            mean, sd = float(table["mean"][label]), float(table["sd"][label])
            spread = f"± {format_value(key, sd)}" if np.isfinite(sd) else ""
            cells.append(Cell(format_value(key, mean), sort_key(mean), note=spread))
        body.append(cells)
    return PageTable(columns, body, [])


def sort_key(value: float) -> float | str:
    """A value to sort by; empty where there is none, which sorts last."""
    return float(value) if np.isfinite(value) else ""


def signed(metric: str, value: float) -> str:
    """A difference with its sign."""
    if not np.isfinite(value):
        return "–"
    text = format_value(metric, abs(value))
    return ("+" if value >= 0 else "−") + text


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
        if row.note:
            spoken.append(f"seed {row.seed} {row.outcome if row.note == 'worst' else 'not a number'}")
            continue
        spoken.append(f"seed {row.seed} {format_value(metric, row.counted)}")
        parts.append(f'<circle cx="{x(row.counted):.1f}" cy="10" r="3.6"/>')
    lost = int((mine.note != "").sum())
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

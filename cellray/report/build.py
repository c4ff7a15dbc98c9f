"""Build the whole report of a study from its ledger alone: no training, no images, no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from cellray.report import exports, figures
from cellray.report.answer import write_answer
from cellray.report.images import make_gallery
from cellray.report.page import render_page
from cellray.report.protocol import protocol_facts
from cellray.report.tables import Plan, Record, Tables, errors_of_nothing, make_tables, metric_title, select


class Store(Protocol):
    """What a report needs of a ledger."""

    def records(self) -> list[dict[str, Any]]: ...
    def table(self, key: str, name: str) -> pd.DataFrame: ...
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def exists(self, path: str) -> bool: ...


def build_report(ledger: Store, plan: Plan, *, study_facts: Mapping[str, Any] | None = None) -> list[str]:
    """Write ``report/…`` anew: page, tables and figures. The same ledger gives the same bytes.

    Args:
        ledger: Where the records are and where the report goes.
        plan: The planned trials, the question and the metric that ranks.
        study_facts: What the records don't say; every key is optional. `roles`: the study's roles (objects or
            mappings with parameter, role, value). `evaluation`: its evaluation settings as a mapping. `sets`: names
            of the external sets in the order to show. `study_yaml`: the resolved study file. `notes`: sentences.

    Returns:
        The paths written, relative to the study's folder.
    """
    facts = dict(study_facts or {})
    everything = ledger.records()
    records = plan.planned(everything)
    tables = load_tables(ledger, everything, plan, external_order=facts.get("sets", ()))
    answer = write_answer(tables, plan)
    drawings = draw_figures(ledger, records, tables, plan)
    gallery = make_gallery(ledger, records, tables, plan)
    page = render_page(
        tables=tables,
        plan=plan,
        answer=answer,
        drawings=drawings,
        gallery=gallery,
        protocol=protocol_facts(records, plan, tables, facts),
    )
    files: dict[str, bytes] = {
        "index.html": page.encode(),
        **table_files(tables, plan, answer),
        **{f"figures/{d.name}.svg": d.svg for d in drawings.values()},
        **{f"figures/{d.name}.png": d.png for d in drawings.values()},
    }
    paths = []
    for name, data in files.items():
        ledger.write(f"report/{name}", data)
        paths.append(f"report/{name}")
    return paths


def table_files(tables: Tables, plan: Plan, answer: list[str]) -> dict[str, bytes]:
    """The tables in every format, by file name."""
    return {
        "ranking.csv": exports.csv_bytes(tables.ranking),
        "trials.csv": exports.csv_bytes(tables.trials),
        "trials.parquet": exports.parquet_bytes(tables.trials),
        "ranking.md": exports.markdown(tables, plan, answer).encode(),
        "ranking.tex": exports.latex(tables, plan).encode(),
    }


def load_tables(ledger: Store, records: Sequence[Record], plan: Plan, *, external_order: Sequence[str] = ()) -> Tables:
    """Rank a study from its ledger.

    Args:
        ledger: Read only for true counts, which give the counting errors of predicting nothing.
        records: What `ledger.records()` gave.
        plan: The planned trials.
        external_order: The order in which to show external sets.
    """
    nothing = nothing_by_set(ledger, list(plan.planned(records).values()))
    return make_tables(records, plan, nothing=nothing, external_order=external_order)


def nothing_by_set(
    ledger: Store, records: Sequence[Record], known: dict[str, dict[str, dict[str, float]]] | None = None
) -> dict[str, dict[str, float]]:
    """Worst counting errors of predicting nothing, per set.

    The images of a set are the same in every trial except on validation, so one image table for each split is read.

    Args:
        ledger: Where image tables are.
        records: Planned records.
        known: Filled with what was read, by split; pass it again to read only new splits.
    """
    known = {} if known is None else known
    for record in sorted(records, key=lambda r: str(r["key"])):
        split = str((record.get("data") or {}).get("split_hash", ""))
        if split in known or not record.get("metrics") or not ledger.exists(f"trials/{record['key']}/images.parquet"):
            continue
        images = ledger.table(record["key"], "images")
        images = images[images.point == "own"] if "point" in images else images
        known[split] = {str(name): errors_of_nothing(rows.n_true.to_numpy()) for name, rows in images.groupby("set")}
    merged: dict[str, dict[str, float]] = {}
    for sets in known.values():
        for name, errors in sets.items():
            into = merged.setdefault(name, {})
            for key, value in errors.items():
                into[key] = max(value, into.get(key, -math.inf))
    return merged


def draw_figures(
    ledger: Store, records: Mapping[str, Record], tables: Tables, plan: Plan
) -> dict[str, figures.Drawing]:
    """Every figure that the records can fill, by name."""
    metric = plan.rank_by
    labels = list(select(tables.ranking, set_name="test", metric=metric).label) or plan.labels
    title = metric_title(metric)
    drawn = [
        figures.draw(
            f"ranking-{name}",
            f"{title}, {exports.set_title_plain(name)}",
            describe_ranking(tables, metric, name),
            figures.ranking_dots,
            tables.scores,
            tables.ranking,
            set_name=name,
            metric=metric,
        )
        for name in tables.sets
        if name != "val"
    ]
    drawn.append(
        figures.draw(
            "transfer",
            f"From the test set to the external sets: {title}",
            f"Heat map of mean {title} of each configuration on each set; the numbers are in the tables by set.",
            figures.transfer_map,
            tables.ranking,
            tables.sets,
            metric=metric,
        )
    )
    histories, counts = read_series(ledger, records, plan)
    by_trial = {(t.label, t.seed): records[t.key] for t in plan.trials if t.key in records}
    outcomes = {key: str(record["outcome"]) for key, record in by_trial.items()}
    drawn += [
        figures.draw(
            "validation-dice",
            "Learning curves: Dice on validation images",
            "Validation Dice by epoch, one panel a configuration and one line a seed; crosses end collapsed trials.",
            figures.curves,
            histories,
            outcomes,
            labels,
            column="val_dice",
            title="validation Dice",
            shared_y=(0.0, 1.0),
        ),
        figures.draw(
            "training-loss",
            "Learning curves: training loss",
            "Training loss by epoch, one panel a configuration with its own scale and one line a seed.",
            figures.curves,
            histories,
            outcomes,
            labels,
            column="train_loss",
            title="training loss (own scale each)",
        ),
        figures.draw(
            "range-tests",
            "Learning-rate range tests",
            "Training loss against learning rate, one panel a configuration; a dot marks the rate that was used.",
            figures.range_tests,
            by_trial,
            labels,
        ),
        figures.draw(
            "counts",
            "Cells counted on test images",
            "Predicted against true number of cells in each test image, all seeds, with the line of equal counts.",
            figures.count_scatter,
            counts,
            labels,
        ),
    ]
    return {drawing.name: drawing for drawing in drawn if drawing is not None}


def describe_ranking(tables: Tables, metric: str, set_name: str) -> str:
    """A sentence for readers who can't see the dot plot."""
    rows = select(tables.ranking, set_name=set_name, metric=metric)
    rows = rows[np.isfinite(rows["mean"].astype(float))]
    if rows.empty:
        return "Dot plot without results yet."
    first, last = rows.iloc[0], rows.iloc[-1]
    return (
        f"Dot plot of {metric_title(metric)} for every seed of {len(rows)} configurations, best on top: from "
        f"{first.label} (mean {first['mean']:.3g}) to {last.label} (mean {last['mean']:.3g})."
    )


def read_series(
    ledger: Store, records: Mapping[str, Record], plan: Plan
) -> tuple[dict[tuple[str, int], pd.DataFrame], dict[str, pd.DataFrame]]:
    """Histories by (label, seed), and true and predicted counts of test images by label."""
    histories: dict[tuple[str, int], pd.DataFrame] = {}
    counts: dict[str, list[pd.DataFrame]] = {}
    for trial in plan.trials:
        record = records.get(trial.key)
        if record is None:
            continue
        if ledger.exists(f"trials/{trial.key}/history.parquet"):
            history = ledger.table(trial.key, "history")
            if len(history):
                histories[trial.label, trial.seed] = history
        if record["outcome"] != "failed" and ledger.exists(f"trials/{trial.key}/images.parquet"):
            images = ledger.table(trial.key, "images")
            rows = images[(images.set == "test") & (images.point == "own")]
            counts.setdefault(trial.label, []).append(rows[["n_true", "n_pred"]])
    return histories, {label: pd.concat(parts, ignore_index=True) for label, parts in counts.items()}

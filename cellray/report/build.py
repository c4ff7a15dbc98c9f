"""Build the whole report of a study from its ledger alone: no training, no images, no Ray."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cellray.ledger import Ledger
from cellray.report import exports
from cellray.report.answer import write_answer
from cellray.report.details import read_details
from cellray.report.figures import draw_figures
from cellray.report.findings import Findings, StudyFacts
from cellray.report.gallery import make_gallery
from cellray.report.inference import infer
from cellray.report.page import PageContents, render_page
from cellray.report.protocol import state_protocol
from cellray.report.searched import read_search
from cellray.report.tables import Plan, Tables, make_tables
from cellray.samples import Sample, read_samples
from cellray.scores import Record, nothing_by_set


@dataclass(frozen=True)
class Known:
    """What was read of image tables, for tables that are made again and again."""

    samples: dict[str, dict[tuple[str, str], Sample]] = field(default_factory=dict)
    nothing: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def build_report(ledger: Ledger, plan: Plan, *, study_facts: StudyFacts | None = None) -> list[str]:
    """Write ``report/…`` anew: page, tables and figures. The same ledger gives the same bytes.

    Args:
        ledger: Where the records are and where the report goes.
        plan: The planned trials, the question and the metric that ranks.
        study_facts: What the records don't say; every key is optional. `roles`: the study's roles (objects or
            mappings with parameter, role, value). `evaluation`: its evaluation settings as a mapping. `sets`: names
            of the external sets in the order to show. `study_yaml`: the resolved study file. `notes`: sentences.
            `agreement`: set -> metric -> how well human experts agree on its images, a ceiling.

    Returns:
        The paths written, relative to the study's folder.
    """
    facts = study_facts or {}
    with garbage_kept():
        found = gather(ledger, plan, facts)
        answer = write_answer(found)
        drawings = draw_figures(found)
        page = PageContents(found, answer, drawings, make_gallery(ledger, found), state_protocol(found, facts))
        files: dict[str, bytes] = {
            "index.html": render_page(page).encode(),
            **table_files(found.tables, plan, answer),
            **{f"figures/{d.name}.svg": d.svg for d in drawings.values()},
            **{f"figures/{d.name}.png": d.png for d in drawings.values()},
        }
    paths = []
    for name, data in files.items():
        ledger.write(f"report/{name}", data)
        paths.append(f"report/{name}")
    return paths


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Let the interpreter look for garbage seldom: a fifth of the time would go into tables and figures that live."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def gather(ledger: Ledger, plan: Plan, study_facts: StudyFacts) -> Findings:
    """Read a study's results from its ledger; arguments as for `build_report`."""
    everything = ledger.records()
    records = plan.planned(everything)
    return Findings(
        plan,
        load_tables(ledger, everything, plan, external_order=study_facts.get("sets", ())),
        records,
        read_details(ledger, records, plan),
        read_search(ledger),
        study_facts.get("agreement") or {},
    )


def table_files(tables: Tables, plan: Plan, answer: list[str]) -> dict[str, bytes]:
    """The tables in every format, by file name."""
    found = tables.inference
    pairs = (
        {}
        if found is None
        else {"pairs.csv": exports.csv_bytes(found.pairs), "pairs.parquet": exports.parquet_bytes(found.pairs)}
    )
    return {
        **pairs,
        "ranking.csv": exports.csv_bytes(tables.ranking),
        "trials.csv": exports.csv_bytes(tables.trials),
        "trials.parquet": exports.parquet_bytes(tables.trials),
        "ranking.md": exports.markdown(tables, plan, answer).encode(),
        "ranking.tex": exports.latex(tables, plan).encode(),
    }


def load_tables(
    ledger: Ledger,
    records: Sequence[Record],
    plan: Plan,
    *,
    external_order: Sequence[str] = (),
    known: Known | None = None,
    only_ranking: bool = False,
) -> Tables:
    """Rank a study from its ledger, with intervals.

    Args:
        ledger: Read for image tables only.
        records: What `ledger.records()` gave.
        plan: The planned trials.
        external_order: The order in which to show external sets.
        known: Pass the same again to read new trials only.
        only_ranking: Read and compare no more than the ranking needs, and few other metrics; see `infer`.
    """
    known = known or Known()
    used = list(plan.planned(records).values())
    nothing = nothing_by_set(ledger, used, known.nothing)
    only = live_metrics(plan) if only_ranking else None
    tables = make_tables(records, plan, nothing=nothing, external_order=external_order, only=only)
    samples = read_samples(ledger, used, known=known.samples, metric=plan.rank_by if only_ranking else None)
    return infer(tables, samples, plan, only_ranking=only_ranking)


def live_metrics(plan: Plan) -> tuple[str, ...]:
    """The metrics of a table that is made anew while a sweep runs."""
    return (plan.rank_by, *exports.EXTRA)

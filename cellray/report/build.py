"""Build the whole report of a study from its ledger alone: no training, no images, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cellray.ledger import Ledger
from cellray.report import exports
from cellray.report.answer import write_answer
from cellray.report.findings import Findings
from cellray.report.gallery import make_gallery
from cellray.report.inference import infer
from cellray.report.protocol import state_protocol
from cellray.report.ranking import Tables, make_tables
from cellray.report.references import add_references
from cellray.report.study_facts import StudyFacts
from cellray.results import Plan, Results
from cellray.results.details import read_details
from cellray.results.tables import package_hash

BUILT = "report/built.txt"
"""What the report was made of, as a hash."""


def build_report(results: Results, facts: StudyFacts | None = None, *, export: bool = False) -> list[str]:
    """Write ``report/…`` anew: page, tables and figures. The same ledger gives the same bytes.

    Args:
        results: Of the study; the report goes into its ledger.
        facts: What the records don't say.
        export: Write the tables as Markdown, LaTeX and Parquet, too; where they are already, they are kept current.

    Returns:
        The paths written, relative to the study's folder.
    """
    # What draws, which who asks for a table doesn't need.
    from cellray.report.figures import draw_figures
    from cellray.report.page import PageContents, render_page

    facts = facts or StudyFacts()
    details = read_details(results)  # first, as it reads every table
    found = Findings(results, load_tables(results, external_order=facts.sets), details, facts.agreement)
    with ThreadPoolExecutor(1) as beside:  # packing pictures leaves the interpreter to the figures
        gallery = beside.submit(make_gallery, found)
        answer, drawings = write_answer(found), draw_figures(found)
    page = PageContents(found, answer, drawings, gallery.result(), state_protocol(found, facts))
    files: dict[str, bytes] = {
        "index.html": render_page(page).encode(),
        **table_files(found.tables, results.plan, answer, export=export or is_exported(results.ledger)),
        **{f"figures/{d.name}.svg": d.svg for d in drawings.values()},
        **{f"figures/{d.name}.png": d.png for d in drawings.values()},
    }
    written = {f"report/{name}": data for name, data in files.items()}
    results.ledger.write_all(written)
    results.ledger.write(BUILT, _made_of(results, facts).encode())
    return list(written)


def is_built(results: Results, facts: StudyFacts) -> bool:
    """Whether the ledger has the report of these very results already, as this code makes it."""
    ledger = results.ledger
    there = ledger.exists(BUILT) and ledger.exists("report/index.html")
    return there and ledger.read(BUILT).decode() == _made_of(results, facts)


def _made_of(results: Results, facts: StudyFacts) -> str:
    """A hash of what a report is made of: facts, plan, and when each file of a trial was written."""
    files = sorted(file for file in results.ledger.files("trials") if "/checkpoints/" not in file.path)
    return hashlib.sha256(repr((package_hash(), facts, results.plan, results.log, files)).encode()).hexdigest()


def is_exported(ledger: Ledger) -> bool:
    """Whether tables as Markdown, LaTeX and Parquet were asked for: then they are kept current."""
    return ledger.exists("report/ranking.tex")


def table_files(tables: Tables, plan: Plan, answer: list[str], *, export: bool) -> dict[str, bytes]:
    """The tables as CSV and the answer, by file name; with `export` in every format."""
    pairs = {} if tables.inference is None else {"pairs": tables.inference.pairs}
    outside = tables.references
    elsewhere = {} if outside is None else {"references": outside.values, "against_references": outside.against}
    frames = {**pairs, **elsewhere, "ranking": tables.ranking, "trials": tables.trials}
    files = {f"{name}.csv": exports.csv_bytes(frame) for name, frame in frames.items()}
    files["verdict.txt"] = "\n\n".join(answer).encode()
    if export:
        files |= {f"{name}.parquet": exports.parquet_bytes(frames[name]) for name in (*pairs, "trials")}
        files["ranking.md"] = exports.markdown(tables, plan, answer).encode()
        files["ranking.tex"] = exports.latex(tables, plan).encode()
    return files


def load_tables(results: Results, *, external_order: Sequence[str] = (), only_ranking: bool = False) -> Tables:
    """Rank a study, with intervals.

    Args:
        results: Of the study.
        external_order: The order in which to show external sets.
        only_ranking: Compare no more than the ranking needs, and few other metrics; see `infer`.
    """
    results.drop_damaged()
    only = live_metrics(results.plan) if only_ranking else None
    tables = make_tables(results, external_order=external_order, only=only)
    return add_references(infer(tables, results, only_ranking=only_ranking), results)


def live_metrics(plan: Plan) -> tuple[str, ...]:
    """The metrics of a table that is made anew while a sweep runs."""
    return (plan.rank_by, *exports.EXTRA, "mpe")

"""The report of a study: ranked tables, figures and one page, from the ledger alone; live through an actor."""

from cellray.report.actor import ReportActor, actor_name, start_report_actor
from cellray.report.answer import write_answer
from cellray.report.build import build_report, load_tables
from cellray.report.findings import Findings
from cellray.report.observer import ReportObserver
from cellray.report.progress import SweepProgress
from cellray.report.ranking import Tables, ahead_on_test, make_tables
from cellray.report.study_facts import StudyFacts, facts_of
from cellray.report.text import TextTable, format_table

__all__ = [
    "Findings",
    "ReportActor",
    "ReportObserver",
    "StudyFacts",
    "SweepProgress",
    "Tables",
    "TextTable",
    "actor_name",
    "ahead_on_test",
    "build_report",
    "facts_of",
    "format_table",
    "load_tables",
    "make_tables",
    "start_report_actor",
    "write_answer",
]

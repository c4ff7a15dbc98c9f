"""The report of a study: ranked tables, figures and one page, from the ledger alone; live through an actor."""

from cellray.report.actor import ReportActor, actor_name, start_report_actor
from cellray.report.answer import write_answer
from cellray.report.build import build_report, load_tables
from cellray.report.findings import Findings
from cellray.report.observer import ReportObserver
from cellray.report.plans import facts_of, plan_of, stored_plan
from cellray.report.searched import read_search
from cellray.report.tables import Plan, PlannedTrial, Tables, TextTable, format_table, make_tables

__all__ = [
    "Findings",
    "Plan",
    "PlannedTrial",
    "ReportActor",
    "ReportObserver",
    "Tables",
    "TextTable",
    "actor_name",
    "build_report",
    "facts_of",
    "format_table",
    "load_tables",
    "make_tables",
    "plan_of",
    "read_search",
    "start_report_actor",
    "stored_plan",
    "write_answer",
]

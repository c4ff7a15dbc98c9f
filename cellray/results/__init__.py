"""The results of a study: its plan, records and samples, read once, and trials as arrays to compare."""

from cellray.results.block import Block, ended_runs, make_block
from cellray.results.core import Results
from cellray.results.plan import Plan, known_study, known_trials, plan_of
from cellray.results.samples import Sample, Samples

__all__ = [
    "Block",
    "Plan",
    "Results",
    "Sample",
    "Samples",
    "ended_runs",
    "known_study",
    "known_trials",
    "make_block",
    "plan_of",
]

"""Figures of a report: matplotlib without a display. A file a theme holds each figure whole; `FIGURES` lists them."""

import cellray.report.figures.base  # noqa: F401  first
from cellray.report.figures.budget import COSTS, TERM_SCALES
from cellray.report.figures.counting import CELL_COUNTS
from cellray.report.figures.detection import IOU_CURVES, IOU_CURVES_BY_SET, PRECISION_RECALL
from cellray.report.figures.drawing import Drawing, ReportFigure, draw
from cellray.report.figures.error_kinds import ERROR_KINDS, STRATA
from cellray.report.figures.learning import RANGE_TESTS, RATES, TRAINING_LOSS, VALIDATION_DICE
from cellray.report.figures.rank_tests import CRITICAL_DIFFERENCE, PAIR_MATRIX, RANK_STABILITY
from cellray.report.figures.search_course import IMPORTANCE, SEARCH_HISTORY, SEEDS_GIVEN
from cellray.report.figures.seed_dots import RANKING
from cellray.report.figures.transfer import DROP, TRANSFER
from cellray.report.figures.weight_surface import SIMPLEX
from cellray.report.findings import Findings

FIGURES = (
    RANKING,
    CRITICAL_DIFFERENCE,
    PAIR_MATRIX,
    RANK_STABILITY,
    IOU_CURVES,
    IOU_CURVES_BY_SET,
    PRECISION_RECALL,
    CELL_COUNTS,
    DROP,
    TRANSFER,
    STRATA,
    ERROR_KINDS,
    VALIDATION_DICE,
    TRAINING_LOSS,
    RATES,
    RANGE_TESTS,
    TERM_SCALES,
    COSTS,
    SEARCH_HISTORY,
    SEEDS_GIVEN,
    IMPORTANCE,
    SIMPLEX,
)
"""Every figure, in the order in which a section shows them."""


def draw_figures(found: Findings) -> dict[str, Drawing]:
    """Every figure that the results can fill, by name."""
    return {drawing.name: drawing for kind in FIGURES for drawing in draw(kind, found)}


__all__ = ["FIGURES", "Drawing", "ReportFigure", "draw_figures"]

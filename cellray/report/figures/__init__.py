"""Figures of a report: matplotlib without a display; a file a theme, each function gives a Figure or None."""

from cellray.report.figures.budget import costs, term_scales
from cellray.report.figures.counting import bland_altman, count_scatter
from cellray.report.figures.detection import iou_curves, iou_curves_by_set, precision_recall
from cellray.report.figures.drawing import Drawing, draw
from cellray.report.figures.error_kinds import error_kinds, strata
from cellray.report.figures.learning import collapse_epoch, curves, range_tests
from cellray.report.figures.rank_tests import critical_difference, pair_matrix, rank_stability
from cellray.report.figures.ranking import ranking_dots
from cellray.report.figures.search_course import importance_bars, pareto, search_history, seeds_given
from cellray.report.figures.transfer import drop, transfer_map
from cellray.report.figures.weight_surface import simplex_response

__all__ = [
    "Drawing",
    "bland_altman",
    "collapse_epoch",
    "costs",
    "count_scatter",
    "critical_difference",
    "curves",
    "draw",
    "drop",
    "error_kinds",
    "importance_bars",
    "iou_curves",
    "iou_curves_by_set",
    "pair_matrix",
    "pareto",
    "precision_recall",
    "range_tests",
    "rank_stability",
    "ranking_dots",
    "search_history",
    "seeds_given",
    "simplex_response",
    "strata",
    "term_scales",
    "transfer_map",
]

"""How well predicted cells agree with true ones: by cell, by count and by pixel.

One contingency table an image answers everything: it holds how many pixels each true cell shares with each
predicted one, and where the centres are. Nothing here looks at the pixels a second time, but the calibration of
probabilities.
"""

from cellray.metrics.catalogue import METRICS, Metric
from cellray.metrics.matching import MATCHINGS, Matches, length_px, match_by_distance, match_by_iou
from cellray.metrics.objects import OBJECT_COLUMNS, object_rows
from cellray.metrics.released_rules import quirk_rows
from cellray.metrics.rows import PARTS, columns_of, image_row, table_row
from cellray.metrics.strata import stratify, stratum_rows
from cellray.metrics.summary import (
    CURVE_SOURCES,
    CURVE_THRESHOLDS,
    MEDIANS,
    detected,
    image_terms,
    iou_curve,
    metrics_of,
    summarise,
    summarise_sets,
)
from cellray.metrics.table import Contingency, contingency, without_void

__all__ = [
    "CURVE_SOURCES",
    "CURVE_THRESHOLDS",
    "MATCHINGS",
    "MEDIANS",
    "METRICS",
    "OBJECT_COLUMNS",
    "PARTS",
    "Contingency",
    "Matches",
    "Metric",
    "columns_of",
    "contingency",
    "detected",
    "image_row",
    "image_terms",
    "iou_curve",
    "length_px",
    "match_by_distance",
    "match_by_iou",
    "metrics_of",
    "object_rows",
    "quirk_rows",
    "stratify",
    "stratum_rows",
    "summarise",
    "summarise_sets",
    "table_row",
    "without_void",
]

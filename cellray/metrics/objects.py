"""One row a cell: which one it was paired with, and if with none, what went wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellray.arrays import Floats, Labels
from cellray.metrics.matching import Matches, table_by_iou
from cellray.metrics.table import Contingency, contingency

OBJECT_COLUMNS = ("true_id", "pred_id", "iou", "distance_px", "area_true", "area_pred", "cy", "cx", "kind")
"""The columns of `object_rows`, for a table that stays empty."""

ERRORS = ("merged", "split", "missed", "spurious")

Names = NDArray[np.str_]


def object_rows(true: Labels, pred: Labels, *, iou_threshold: float = 0.4) -> list[dict[str, object]]:
    """One row a cell: the true ones in order of their id, then the predictions that are no one's partner.

    Columns: ``true_id pred_id`` (0 = none); ``iou`` and ``distance_px`` of the pair or, without a partner, the
    best IoU and the distance of the nearest centroid of the other kind (0 and NaN if there is none);
    ``area_true area_pred`` in pixels (0 = none); ``cy cx``, the centroid of the true cell if there is one, else
    of the predicted one; and ``kind``.

    Two cells belong together if they share more than half of the smaller one. The kinds, first that holds:

    - ``hit``: a one-to-one pair by IoU.
    - ``merged``: an unmatched true cell of a prediction that two or more true cells belong to, or that
      prediction, if it is unmatched.
    - ``split``: an unmatched true cell that two or more predictions belong to, or an unmatched one of these.
    - ``missed`` (true) or ``spurious`` (predicted): everything else.
    """
    table = contingency(true, pred)
    iou, distance = table.iou, table.distance
    matches = table_by_iou(table, iou_threshold)
    rows_hit, cols_hit = _places(table, matches)
    partner = dict(zip(rows_hit.tolist(), cols_hit.tolist(), strict=True))
    true_kinds, pred_kinds = (kinds.tolist() for kinds in _kinds(table))
    rows: list[dict[str, object]] = []
    for i in range(len(table.true_ids)):
        j = partner.get(i)
        pair = (float(iou[i, j]), float(distance[i, j])) if j is not None else _best(iou[i], distance[i])
        rows.append(_object_row(table, i, j, pair, "hit" if j is not None else true_kinds[i]))
    for j in sorted(set(range(len(table.pred_ids))) - set(partner.values())):
        rows.append(_object_row(table, None, j, _best(iou[:, j], distance[:, j]), pred_kinds[j]))
    return rows


def count_errors(table: Contingency, matches: Matches) -> dict[str, int]:
    """How many cells, true and predicted, `object_rows` calls merged, split, missed and spurious."""
    true_kinds, pred_kinds = _kinds(table)
    rows_hit, cols_hit = _places(table, matches)
    unmatched = np.concatenate([np.delete(true_kinds, rows_hit), np.delete(pred_kinds, cols_hit)])
    return {kind: int((unmatched == kind).sum()) for kind in ERRORS}


def _places(table: Contingency, matches: Matches) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the matched pairs."""
    return np.searchsorted(table.true_ids, matches.true_ids), np.searchsorted(table.pred_ids, matches.pred_ids)


def _kinds(table: Contingency) -> tuple[Names, Names]:
    """The kind of error of each true and of each predicted cell, should it be unmatched."""
    smaller = np.minimum(table.true_area[:, None], table.pred_area[None, :])
    together = table.overlap > 0.5 * smaller
    merging = together.sum(axis=0) >= 2
    divided = together.sum(axis=1) >= 2
    in_merged, of_split = (together & merging).any(axis=1), (together & divided[:, None]).any(axis=0)
    true_kinds = np.select([in_merged, divided], ["merged", "split"], "missed")
    pred_kinds = np.select([merging, of_split], ["merged", "split"], "spurious")
    return true_kinds, pred_kinds


def _best(iou: Floats, distance: Floats) -> tuple[float, float]:
    return (float(iou.max()), float(distance.min())) if len(iou) else (0.0, float("nan"))


def _object_row(
    table: Contingency, i: int | None, j: int | None, pair: tuple[float, float], kind: str
) -> dict[str, object]:
    centre = table.true_centres[i] if i is not None else table.pred_centres[j]
    return {
        "true_id": int(table.true_ids[i]) if i is not None else 0,
        "pred_id": int(table.pred_ids[j]) if j is not None else 0,
        "iou": pair[0],
        "distance_px": pair[1],
        "area_true": int(table.true_area[i]) if i is not None else 0,
        "area_pred": int(table.pred_area[j]) if j is not None else 0,
        "cy": float(centre[0]),
        "cx": float(centre[1]),
        "kind": kind,
    }

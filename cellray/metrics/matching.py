"""Which true cell is which predicted one: by IoU or by distance of centres, under a named rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from cellray.arrays import Floats, Ints, Labels
from cellray.errors import DataError, one_of
from cellray.metrics.table import Contingency, contingency, lengths

Matching = Literal["one_to_one", "greedy", "many_to_one"]


@dataclass(frozen=True)
class Matches:
    """Pairs of ids, and the IoU or the distance in pixels of each pair, in order of the true ids."""

    true_ids: Ints
    pred_ids: Ints
    values: Floats
    n_true: int
    n_pred: int
    fp: int
    """Predicted cells without a partner; under `many_to_one` those that are good enough for no true cell."""

    @property
    def tp(self) -> int:
        """True cells that were found."""
        return len(self.true_ids)

    @property
    def fn(self) -> int:
        """True cells that were missed."""
        return self.n_true - self.tp


def match_by_iou(
    true: Labels,
    pred: Labels,
    *,
    threshold: float = 0.4,
    matching: Matching = "one_to_one",
    inclusive: bool = False,
) -> Matches:
    """Pair cells whose IoU is above `threshold`.

    - ``one_to_one`` finds as many pairs as can be had together and among those the largest total IoU.
    - ``greedy`` takes the pair with the largest IoU, then the next one whose cells are both free, and so on. Above
      IoU 0.5 no cell has two candidates, so all three rules agree there.
    - ``many_to_one`` is the reference study's released rule: each true cell looks for its best partner alone, so
      that one blob over two cells counts twice, and a prediction is spurious only if it is good enough for no one.

    Where others agree and where not: StarDist's `matching` finds as many pairs as ``one_to_one`` with
    ``inclusive=True``; below IoU 0.5 it may choose others, since it adds up the IoU of pairs below the threshold too.
    TorchMetrics' and panoptica's panoptic quality pair cells above IoU 0.5 exclusively, as here by default. Two images
    without any cell score 0 with StarDist and TorchMetrics and 1 in `summarise`.

    Args:
        true: Labels of the true cells, shape (H, W).
        pred: Labels of the predicted cells, same shape.
        threshold: In [0, 1); a pair needs an IoU above it. Cells that share no pixel are never a pair.
        matching: A key of ``MATCHINGS``. Equally good pairings are decided by the order of the ids.
        inclusive: Whether an IoU equal to the threshold is enough; the threshold may then be 1.
    """
    return table_by_iou(contingency(true, pred), threshold, matching, inclusive)


def match_by_distance(
    true: Labels, pred: Labels, *, max_distance_px: float, matching: Matching = "one_to_one", inclusive: bool = True
) -> Matches:
    """Pair cells whose centroids are at most `max_distance_px` apart: most pairs, then least total distance.

    Args:
        true: Labels of the true cells, shape (H, W).
        pred: Labels of the predicted cells, same shape.
        max_distance_px: In pixels, >= 0; see `length_px` for a distance in µm or in cell diameters.
        matching: As in `match_by_iou`, the best partner being the nearest.
        inclusive: Whether a pair exactly this far apart counts.
    """
    return table_by_distance(contingency(true, pred), max_distance_px, matching, inclusive)


def length_px(length: float, unit: str, *, um_per_px: float | None = None, diameter_px: float | None = None) -> float:
    """A length in pixels.

    Args:
        length: In `unit`, >= 0.
        unit: ``px``, ``um`` or ``diameters`` (mean cell diameters of the set).
        um_per_px: Size of a pixel, for ``um``.
        diameter_px: Mean cell diameter, for ``diameters``.

    Raises:
        DataError: If the unit is unknown, or the size that it needs is missing or not above 0.
    """
    sizes = {"px": ("", 1.0), "um": ("um_per_px", um_per_px), "diameters": ("diameter_px", diameter_px)}
    if unit not in sizes:
        raise DataError(f"unit of a length: expected px, um or diameters, got {unit!r}")
    name, size = sizes[unit]
    if size is None or not size > 0:
        raise DataError(f"a length in {unit} needs {name} above 0, got {size}")
    return length / size if unit == "um" else length * size


def table_by_iou(
    table: Contingency, threshold: float, matching: str = "one_to_one", inclusive: bool = False
) -> Matches:
    """`match_by_iou` of a contingency table."""
    if not (0 <= threshold < 1 or (inclusive and threshold == 1)):
        raise DataError(f"IoU threshold: expected 0 <= threshold < 1, got {threshold}")
    iou = table.iou
    rows, cols = np.nonzero((iou >= threshold) & (iou > 0) if inclusive else iou > threshold)
    return _matches(table, rows, cols, iou[rows, cols], iou[rows, cols], matching)


def table_by_distance(
    table: Contingency, max_distance_px: float, matching: str = "one_to_one", inclusive: bool = True
) -> Matches:
    """`match_by_distance` of a contingency table."""
    rows, cols, distance = close_pairs(table, max_distance_px, inclusive)
    merit = 1 - distance / max_distance_px if max_distance_px > 0 else np.ones_like(distance)
    return _matches(table, rows, cols, distance, merit, matching)


def close_pairs(table: Contingency, max_distance_px: float, inclusive: bool = True) -> tuple[Ints, Ints, Floats]:
    """Rows, columns and distances of all pairs that lie close enough, by row and then column."""
    if not max_distance_px >= 0:
        raise DataError(f"max_distance_px: expected a number >= 0, got {max_distance_px}")
    if not len(table.true_ids) or not len(table.pred_ids):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    # a hair wider than asked, so that the comparison below and not the tree decides what "at most" means
    reach = max_distance_px * (1 + 1e-9)
    near = cKDTree(table.pred_centres).query_ball_point(table.true_centres, reach, return_sorted=True)
    counts = [len(some) for some in near]
    rows = np.repeat(np.arange(len(counts)), counts)
    cols = np.concatenate([np.asarray(some, dtype=np.int64) for some in near])
    distance = lengths(table.true_centres[rows] - table.pred_centres[cols])
    close = distance <= max_distance_px if inclusive else distance < max_distance_px
    return rows[close], cols[close], distance[close]


def n_one_to_one(rows: Ints, cols: Ints) -> int:
    """The most pairs that can be had together out of candidate pairs."""
    return len(_one_to_one(rows, cols, np.zeros(len(rows))))


def _matches(table: Contingency, rows: Ints, cols: Ints, values: Floats, merit: Floats, matching: str) -> Matches:
    pick = MATCHINGS[one_of("matching", matching, MATCHINGS)](rows, cols, merit)
    pick = pick[np.argsort(rows[pick], kind="stable")]
    taken = cols if matching == "many_to_one" else cols[pick]
    return Matches(
        true_ids=table.true_ids[rows[pick]],
        pred_ids=table.pred_ids[cols[pick]],
        values=values[pick],
        n_true=len(table.true_ids),
        n_pred=len(table.pred_ids),
        fp=len(table.pred_ids) - len(np.unique(taken)),
    )


def _one_to_one(rows: Ints, cols: Ints, merit: Floats) -> Ints:
    """Which candidate pairs to keep: most pairs first, then most total merit; merit lies in [0, 1]."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    lonely = (np.bincount(rows)[rows] == 1) & (np.bincount(cols)[cols] == 1)
    contested = np.flatnonzero(~lonely)
    if not len(contested):
        return np.flatnonzero(lonely)
    row_ids, row = np.unique(rows[contested], return_inverse=True)
    col_ids, col = np.unique(cols[contested], return_inverse=True)
    # one more pair outweighs any gain of merit, since all merits together are at most the number of pairs
    bonus = 1 + min(len(row_ids), len(col_ids))
    worth = np.zeros((len(row_ids), len(col_ids)))
    pair = np.full(worth.shape, -1, dtype=np.int64)
    worth[row, col] = bonus + merit[contested]
    pair[row, col] = contested
    chosen = pair[linear_sum_assignment(worth, maximize=True)]
    return np.concatenate([np.flatnonzero(lonely), chosen[chosen >= 0]])


def _greedy(rows: Ints, cols: Ints, merit: Floats) -> Ints:
    """The best candidate pair, then the best one of what is still free, and so on."""
    taken_rows: set[int] = set()
    taken_cols: set[int] = set()
    kept = []
    for pair in np.lexsort((cols, rows, -merit)).tolist():
        row, col = int(rows[pair]), int(cols[pair])
        if row not in taken_rows and col not in taken_cols:
            taken_rows.add(row)
            taken_cols.add(col)
            kept.append(pair)
    return np.array(kept, dtype=np.int64)


def _many_to_one(rows: Ints, cols: Ints, merit: Floats) -> Ints:
    """For each row its best candidate, whoever else takes it."""
    order = np.lexsort((-merit, rows))
    return order[np.unique(rows[order], return_index=True)[1]]


MATCHINGS: dict[str, Callable[[Ints, Ints, Floats], Ints]] = {
    "one_to_one": _one_to_one,
    "greedy": _greedy,
    "many_to_one": _many_to_one,
}

"""Choose how a model's probabilities become cells: the operating point that scores best on given images.

The search never runs the network: it works on probabilities, and sees only the images that it is given. It tries a
whole grid of thresholds, minimum sizes and watershed settings; opening and holes stay as the shared point has them.
What candidates have in common is done once: components for each threshold, distances for all watersheds, one
contingency table for each watershed, of which a minimum size only drops columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from cellray.arrays import Floats, Labels, Mask, Probs
from cellray.errors import DataError
from cellray.metrics import METRICS, contingency, image_row, quirk_rows, summarise_sets, table_row
from cellray.postprocess import Components, OperatingPoint, Pieces, find_components, postprocess, split
from cellray.study import EvaluationConfig

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.875, 0.95, 0.98, 0.995)
"""Even steps, and finer ones near 1: a loss that weighs cell pixels by w lifts even odds to w / (w + 1)."""
MIN_AREAS = (0.04, 0.08, 0.159, 0.24, 0.32)
"""In mean cell areas."""
WATERSHEDS: tuple[dict[str, float | bool], ...] = (
    {"watershed": False},
    {"watershed": True, "smoothing": 0.75, "peak_distance": 1.0},
    {"watershed": True, "smoothing": 0.5, "peak_distance": 0.8},
    {"watershed": True, "smoothing": 0.35, "peak_distance": 0.6},
)
"""From no splitting over the published windows to smaller ones, in mean cell diameters."""

_ROUNDING = 1e-9

Void = Mapping[int, Mask]
NONE: Void = MappingProxyType({})


@dataclass(frozen=True)
class ChosenPoint:
    """An operating point, and how it does on the images that it was chosen on."""

    point: OperatingPoint
    score: float
    """In the metric that was ranked by."""
    shared_score: float
    """The same of the shared point."""
    gain: float
    """How much nearer to the metric's best value `score` is than `shared_score`; a search never loses."""
    n_candidates: int
    n_ties: int
    """Candidates with the best score, the chosen one included."""


@dataclass(frozen=True)
class Grid:
    """All combinations of thresholds, minimum sizes and watershed settings, each axis in rising order."""

    base: OperatingPoint
    thresholds: tuple[float, ...]
    min_areas: tuple[float, ...]
    watersheds: tuple[dict[str, float | bool], ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Candidates along each axis."""
        return len(self.thresholds), len(self.min_areas), len(self.watersheds)

    def point(self, t: int, a: int, w: int) -> OperatingPoint:
        """The candidate at these places of the three axes."""
        changes = {"threshold": self.thresholds[t], "min_area": self.min_areas[a], **self.watersheds[w]}
        return self.base.model_copy(update=changes)


def grid_with(point: OperatingPoint) -> tuple[Grid, tuple[int, int, int]]:
    """The grid of the search with `point` on it, and where on it that is; the rest of the point is the grid's base."""
    own: dict[str, float | bool] = {"watershed": False}
    if point.watershed:
        own = {"watershed": True, "smoothing": point.smoothing, "peak_distance": point.peak_distance}
    thresholds = sorted({*THRESHOLDS, point.threshold})
    min_areas = sorted({*MIN_AREAS, point.min_area})
    watersheds = WATERSHEDS if own in WATERSHEDS else (*WATERSHEDS, own)
    place = thresholds.index(point.threshold), min_areas.index(point.min_area), watersheds.index(own)
    return Grid(point, tuple(thresholds), tuple(min_areas), watersheds), place


def choose_point(
    probs: dict[int, Probs],
    truth: dict[int, Labels],
    diameter_px: float,
    settings: EvaluationConfig,
    void: Void = NONE,
) -> ChosenPoint:
    """The operating point that scores best on the given (validation) images.

    Candidates are equal if their scores differ by no more than rounding; a score that is nearly as good doesn't count.
    Among equals `plateau_middle` decides. The shared point is a candidate.

    Args:
        probs: Probabilities (H, W) of each image, in [0, 1].
        truth: True labels (H, W) of the same images.
        diameter_px: Mean cell diameter there, in pixels.
        settings: The metric to rank by, matching limits, the shared point, and perhaps a fixed point that replaces
            the search.
        void: Pixels (H, W) of some of the images that count for nothing.

    Raises:
        DataError: If there are no images, or probabilities and labels are of different ones.
        ShapeError: If probabilities and labels of an image differ in shape.
    """
    if not probs or probs.keys() != truth.keys():
        raise DataError(
            f"operating point: expected probabilities and labels of the same images, got {len(probs)} and {len(truth)}"
        )
    metric = METRICS[settings.rank_by]
    if isinstance(settings.operating_point, OperatingPoint):
        points = (settings.operating_point, settings.shared_point)
        score, shared_score = (_score_of(point, probs, truth, diameter_px, settings, void) for point in points)
        gain = metric.shortfall(shared_score) - metric.shortfall(score)
        return ChosenPoint(settings.operating_point, score, shared_score, gain, n_candidates=1, n_ties=1)
    grid, shared = grid_with(settings.shared_point)
    scores = score_grid(grid, probs, truth, diameter_px, settings, void)
    shortfalls = np.vectorize(metric.shortfall, otypes=[np.float64])(scores)
    least = shortfalls.min()
    is_best = shortfalls <= least + _ROUNDING * max(1.0, least)
    best = plateau_middle(is_best)
    gain = float(shortfalls[shared] - shortfalls[best])
    return ChosenPoint(
        point=grid.point(*best),
        score=float(scores[best]),
        shared_score=float(scores[shared]),
        gain=max(gain, 0.0),
        n_candidates=scores.size,
        n_ties=int(is_best.sum()),
    )


def score_grid(
    grid: Grid,
    probs: dict[int, Probs],
    truth: dict[int, Labels],
    diameter_px: float,
    settings: EvaluationConfig,
    void: Void = NONE,
) -> Floats:
    """The score of every candidate in the metric that is ranked by, shape `grid.shape`; images in order of index."""
    rows = [
        row
        for index in sorted(probs)
        for row in _rows(grid, probs[index], truth[index], diameter_px, settings, void.get(index))
    ]
    n_thresholds, n_areas, n_watersheds = grid.shape
    scores = _scores(rows, settings, n_sets=n_thresholds * n_watersheds * n_areas)
    return scores.reshape(n_thresholds, n_watersheds, n_areas).swapaxes(1, 2)


def plateau_middle(is_best: NDArray[np.bool_]) -> tuple[int, int, int]:
    """The place in the middle of the largest plateau of a grid.

    A plateau is a group of places that are neighbours along an axis or diagonally. Of several plateaus the one with
    most places counts, of equally large ones the first in the grid's order; its middle is the place that is nearest to
    the mean place, in steps along the axes, of equally near ones again the first.

    Args:
        is_best: Shape of the grid, three axes; at least one is true.
    """
    plateaus, _ = ndimage.label(is_best, np.ones((3, 3, 3)))
    sizes = np.bincount(plateaus.ravel())
    sizes[0] = 0
    places = np.argwhere(plateaus == sizes.argmax())
    # whole numbers, so that equal distances are equal
    off = places * len(places) - places.sum(axis=0)
    t, a, w = places[(off**2).sum(axis=1).argmin()].tolist()
    return t, a, w


def _score_of(
    point: OperatingPoint,
    probs: dict[int, Probs],
    truth: dict[int, Labels],
    diameter_px: float,
    settings: EvaluationConfig,
    void: Void,
) -> float:
    rows = [
        image_row(
            truth[index],
            postprocess(probs[index], point, diameter_px=diameter_px),
            iou_threshold=settings.iou_threshold,
            max_distance_px=settings.max_distance * diameter_px,
            probs=probs[index],
            void=void.get(index),
            only=_parts(settings),
        )
        for index in sorted(probs)
    ]
    return float(_scores(rows, settings)[0])


def _parts(settings: EvaluationConfig) -> tuple[str, ...]:
    """What the rows must hold for the score, see `cellray.metrics.PARTS`."""
    parts = METRICS[settings.rank_by].parts
    return (*parts, "released") if settings.quirks and "released" not in parts else parts


def _scores(rows: list[dict[str, float]], settings: EvaluationConfig, n_sets: int = 1) -> Floats:
    """The metric to rank by of `n_sets` sets of rows, as for `summarise_sets`, as the study has them judged."""
    return summarise_sets(quirk_rows(pd.DataFrame(rows), settings.quirks), n_sets)[settings.rank_by]


def _rows(
    grid: Grid, probs: Probs, truth: Labels, diameter_px: float, settings: EvaluationConfig, void: Mask | None
) -> Iterator[dict[str, float]]:
    """The row of counts of one image for each candidate: by threshold, then watershed, then minimum size."""
    parts = _parts(settings)
    limits: dict[str, float] = {
        "iou_threshold": settings.iou_threshold,
        "max_distance_px": settings.max_distance * diameter_px,
    }
    # calibration is the same for all candidates
    calibration = {"calibration"} & set(parts)
    fixed = image_row(truth, np.zeros_like(truth), probs=probs, void=void, only=calibration, **limits)
    min_areas = [grid.point(0, a, 0).in_pixels(diameter_px).min_area for a in range(len(grid.min_areas))]
    for threshold in grid.thresholds:
        sizes = grid.base.in_pixels(diameter_px)
        components = find_components(probs, threshold, sizes).at_least(min(min_areas))
        whole = contingency(truth, components.sheet.to_image(components.labels), void)
        for pieces in _variants(grid, components, diameter_px):
            is_whole = len(pieces.owners) == len(components.areas)
            table = whole if is_whole else contingency(truth, components.sheet.to_image(pieces.labels), void)
            areas, n_kept, row = components.areas[pieces.owners - 1], -1, fixed
            for min_area in min_areas:
                keep = (areas >= min_area)[table.pred_ids - 1]  # void may have taken some
                if np.count_nonzero(keep) != n_kept:  # else the same ones as before
                    n_kept = int(np.count_nonzero(keep))
                    row = {**fixed, **table_row(table.keep_predicted(keep), only=parts, **limits)}
                yield row


def _variants(grid: Grid, components: Components, diameter_px: float) -> list[Pieces]:
    """What each watershed setting of the grid makes of the components."""
    points = [grid.point(0, 0, w) for w in range(len(grid.watersheds))]
    sizes = [point.in_pixels(diameter_px) for point in points]
    windows = [(s.smoothing, s.peak_window) for point, s in zip(points, sizes, strict=True) if point.watershed]
    found = iter(split(components, windows))
    whole = Pieces(components.labels, np.arange(1, len(components.areas) + 1))
    return [next(found) if point.watershed else whole for point in points]

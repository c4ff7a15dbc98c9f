"""The search for an operating point against every candidate tried one by one, and the rule among equals by hand."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cellray import operating_point
from cellray.errors import CellrayError, DataError
from cellray.metrics import METRICS, image_row, quirk_rows, summarise
from cellray.operating_point import (
    MIN_AREAS,
    THRESHOLDS,
    WATERSHEDS,
    ChosenPoint,
    Grid,
    choose_point,
    grid_with,
    plateau_middle,
    score_grid,
)
from cellray.postprocess import PUBLISHED_POINT, OperatingPoint, postprocess
from cellray.study import EvaluationConfig

DIAMETER_PX = 12.0
SMALL = Grid(PUBLISHED_POINT, (0.2, 0.45, 0.6, 0.875), (0.04, 0.5, 0.9), WATERSHEDS[:3])


def scene(seed: int, shape: tuple[int, int], n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy probabilities and true labels of discs that often touch."""
    rng, (y, x) = np.random.default_rng(seed), np.indices(shape)
    truth = np.zeros(shape, dtype=np.uint16)
    for number in range(1, n_cells + 1):
        radius = rng.uniform(4, 8)
        truth[np.hypot(y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1])) < radius] = number
    blurred = ndimage.gaussian_filter((truth > 0).astype(float), 1.5)
    probs = np.clip(blurred + ndimage.gaussian_filter(rng.normal(0, 1, shape), 2), 0, 1).astype(np.float32)
    return probs, truth


def scenes() -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Three images of different sizes, one of them without cells; read-only, not in order."""
    found = {7: scene(1, (60, 90), 9), 2: scene(2, (70, 50), 5), 4: scene(3, (40, 40), 0)}
    for images in found.values():
        for image in images:
            image.flags.writeable = False
    return {k: probs for k, (probs, _) in found.items()}, {k: truth for k, (_, truth) in found.items()}


def tried_one_by_one(grid: Grid, *quirks: str) -> dict[tuple[int, int, int], dict[str, float]]:
    """All metrics of each candidate, from label images and full rows."""
    probs, truth = scenes()
    found = {}
    for place in np.ndindex(grid.shape):
        rows = [
            image_row(
                truth[k],
                postprocess(probs[k], grid.point(*place), diameter_px=DIAMETER_PX),
                iou_threshold=0.4,
                max_distance_px=DIAMETER_PX,
                probs=probs[k],
            )
            for k in probs
        ]
        found[place] = summarise(quirk_rows(pd.DataFrame(rows), quirks))
    return found


@pytest.fixture(scope="module")
def one_by_one() -> dict[tuple[int, int, int], dict[str, float]]:
    return tried_one_by_one(SMALL)


class TestScores:
    @pytest.mark.parametrize("name", METRICS)
    def test_every_metric_equals_that_of_each_candidate_tried_alone(self, name, one_by_one):
        scores = score_grid(SMALL, *scenes(), DIAMETER_PX, EvaluationConfig(rank_by=name))
        assert scores.shape == (4, 3, 3)
        for place, metrics in one_by_one.items():
            assert scores[place] == pytest.approx(metrics[name], rel=1e-12), place

    @pytest.mark.parametrize(
        ("settings", "quirk", "name"),
        [
            ({"matching": "many_to_one"}, "many_to_one", "f1_distance"),
            ({"matching": "many_to_one"}, "many_to_one", "precision_distance"),
            ({"counts": "released"}, "released_counts", "mae"),
        ],
    )
    def test_a_study_with_quirks_is_searched_by_the_metric_that_it_is_judged_by(
        self, settings, quirk, name, one_by_one
    ):
        scores = score_grid(SMALL, *scenes(), DIAMETER_PX, EvaluationConfig(rank_by=name, **settings))
        quirky = tried_one_by_one(SMALL, quirk)
        for place, metrics in quirky.items():
            assert scores[place] == pytest.approx(metrics[name], rel=1e-12), place
        assert any(quirky[place][name] != metrics[name] for place, metrics in one_by_one.items())

    def test_the_scenes_tell_candidates_apart(self, one_by_one):
        assert len({metrics["f1_iou"] for metrics in one_by_one.values()}) > 10
        assert len({metrics["n_pred"] for metrics in one_by_one.values()}) > 10

    @pytest.mark.slow
    def test_the_choice_is_the_best_of_all_candidates(self):
        choice = choose_point(*scenes(), DIAMETER_PX, EvaluationConfig())
        grid, shared = grid_with(PUBLISHED_POINT)
        scores = {place: metrics["f1_iou"] for place, metrics in tried_one_by_one(grid).items()}
        best = max(scores.values())
        assert choice.score == pytest.approx(best)
        assert choice.n_ties == sum(score == pytest.approx(best, rel=1e-9) for score in scores.values())
        assert choice.shared_score == pytest.approx(scores[shared])
        assert choice.gain == pytest.approx(best - scores[shared])
        (place,) = (place for place in scores if grid.point(*place) == choice.point)
        assert scores[place] == pytest.approx(best)


class TestGrid:
    def test_it_has_at_least_200_candidates_the_published_point_and_one_half(self):
        grid, place = grid_with(PUBLISHED_POINT)
        assert np.prod(grid.shape) >= 200
        assert grid.shape == (len(THRESHOLDS), len(MIN_AREAS), len(WATERSHEDS))
        assert grid.point(*place) == PUBLISHED_POINT
        assert 0.5 in grid.thresholds
        for axis in (grid.thresholds, grid.min_areas):
            assert list(axis) == sorted(set(axis))

    @pytest.mark.parametrize("watershed", [True, False])
    def test_any_shared_point_is_on_it(self, watershed):
        shared = OperatingPoint(
            threshold=0.33, opening=0.1, hole_area=0.2, min_area=0.01, watershed=watershed, smoothing=0.11
        )
        grid, place = grid_with(shared)
        assert grid.point(*place) == shared
        assert grid.shape == (len(THRESHOLDS) + 1, len(MIN_AREAS) + 1, len(WATERSHEDS) + watershed)

    def test_opening_and_holes_stay_as_the_shared_point_has_them(self):
        shared = OperatingPoint(opening=0.1, hole_area=0.2)
        point = choose_point(*scenes(), DIAMETER_PX, EvaluationConfig(shared_point=shared)).point
        assert (point.opening, point.hole_area) == (0.1, 0.2)


def places(shape: tuple[int, int, int], *true: tuple[int, int, int]) -> np.ndarray:
    grid = np.zeros(shape, dtype=bool)
    grid[tuple(np.transpose(true))] = True
    return grid


class TestPlateau:
    @pytest.mark.parametrize(("first", "last", "middle"), [(0, 6, 3), (2, 4, 3), (1, 4, 2), (5, 5, 5), (3, 4, 3)])
    def test_of_a_row_the_middle_and_of_two_middles_the_lower(self, first, last, middle):
        row = places((8, 1, 1), *((k, 0, 0) for k in range(first, last + 1)))
        assert plateau_middle(row) == (middle, 0, 0)

    def test_of_a_block_its_centre(self):
        block = np.zeros((7, 5, 4), dtype=bool)
        block[2:7, 1:4, 1:4] = True
        assert plateau_middle(block) == (4, 2, 2)

    def test_of_a_hook_the_place_nearest_to_its_mean(self):
        # mean (1.4, 0.6): (2, 1) is not on it, (1, 0) is 0.52 away in squares, (2, 0) 0.72
        hook = places((3, 3, 1), (0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0))
        assert plateau_middle(hook) == (1, 0, 0)

    def test_of_two_plateaus_the_larger_and_not_what_lies_between(self):
        two = places((9, 1, 1), (0, 0, 0), (1, 0, 0), (6, 0, 0), (7, 0, 0), (8, 0, 0))
        assert plateau_middle(two) == (7, 0, 0)

    def test_of_two_equal_plateaus_the_first(self):
        assert plateau_middle(places((9, 1, 1), (7, 0, 0), (2, 0, 0))) == (2, 0, 0)

    def test_corners_connect(self):
        assert plateau_middle(places((6, 3, 3), (1, 0, 0), (2, 1, 1), (3, 2, 2), (5, 0, 0))) == (2, 1, 1)

    def chosen(
        self, monkeypatch: pytest.MonkeyPatch, at: dict[tuple[int, int, int], float], **settings: Any
    ) -> ChosenPoint:
        scores = np.full((13, 5, 4), 0.25)
        for place, score in at.items():
            scores[place] = score
        monkeypatch.setattr(operating_point, "score_grid", lambda *given: scores)
        return choose_point(*scenes(), DIAMETER_PX, EvaluationConfig(**settings))

    def test_a_rounding_error_makes_no_difference_and_anything_more_does(self, monkeypatch):
        near = {(3, 2, 1): 0.7, (4, 2, 1): 0.7 - 1e-13, (5, 2, 1): 0.7, (6, 2, 1): 0.7 - 1e-6, (7, 2, 1): 0.7 - 1e-6}
        choice = self.chosen(monkeypatch, near)
        assert choice.point.threshold == THRESHOLDS[4]
        assert choice.n_ties == 3
        assert choice.n_candidates == 260

    def test_nearest_to_the_best_value_wins_where_less_is_better_and_where_either_side_is_worse(self, monkeypatch):
        values = {(1, 0, 0): -3.0, (2, 0, 0): 0.01, (3, 0, 0): 5.0}
        for name in ("mae", "mpe"):
            choice = self.chosen(monkeypatch, values, rank_by=name)
            assert choice.point.threshold == THRESHOLDS[2]
            assert choice.score == 0.01
            assert choice.gain == pytest.approx(0.24)  # from 0.25 to 0.01


def soft(truth: np.ndarray, inside: float, outside: float) -> np.ndarray:
    return np.where(truth > 0, inside, outside).astype(np.float32)


class TestChoice:
    TRUTH = np.kron(np.array([[1, 0, 2], [0, 0, 0], [3, 0, 4]], dtype=np.int32), np.ones((12, 12), dtype=np.int32))

    def choose(self, inside: float, outside: float, **settings: Any) -> ChosenPoint:
        probs = {0: soft(self.TRUTH, inside, outside)}
        return choose_point(probs, {0: self.TRUTH}, DIAMETER_PX, EvaluationConfig(**settings))

    @pytest.mark.parametrize("rank_by", ["f1_iou", "dice", "mae", "pq"])
    def test_it_finds_the_threshold_that_parts_cells_from_ground(self, rank_by):
        choice = self.choose(inside=0.25, outside=0.15, rank_by=rank_by)
        assert choice.point.threshold == 0.2
        assert choice.gain > 0

    def test_among_equal_thresholds_the_middle_one(self):
        # 0.1, 0.2, ..., 0.6 and 0.7 part them
        assert self.choose(inside=0.75, outside=0.06).point.threshold == 0.4

    def test_a_given_point_is_taken_and_scored_beside_the_shared_one(self):
        given = OperatingPoint(threshold=0.2, min_area=0)
        choice = self.choose(inside=0.25, outside=0.15, operating_point=given)
        assert choice == ChosenPoint(given, score=1.0, shared_score=0.0, gain=1.0, n_candidates=1, n_ties=1)
        worse = OperatingPoint(threshold=0.9)
        shared = OperatingPoint(threshold=0.2)
        choice = self.choose(inside=0.25, outside=0.15, operating_point=worse, shared_point=shared)
        assert (choice.score, choice.shared_score, choice.gain) == (0.0, 1.0, -1.0)

    def test_it_sees_what_it_is_given_and_the_order_of_images_makes_no_difference(self):
        assert list(inspect.signature(choose_point).parameters) == ["probs", "truth", "diameter_px", "settings", "void"]
        probs, truth = scenes()
        turned = {k: probs[k] for k in sorted(probs)}, {k: truth[k] for k in sorted(truth, reverse=True)}
        settings = EvaluationConfig()
        assert choose_point(*turned, DIAMETER_PX, settings) == choose_point(probs, truth, DIAMETER_PX, settings)

    @pytest.mark.parametrize(
        "rank_by", ["f1_iou", "dice", "mae", "pq", "f1_iou_mean", "recall_iou", "localisation", "r2"]
    )
    def test_without_true_cells_silence_is_best(self, rank_by):
        probs, truth = {0: 0.9 * scene(5, (40, 50), 4)[0]}, {0: np.zeros((40, 50), np.uint16)}
        choice = choose_point(probs, truth, DIAMETER_PX, EvaluationConfig(rank_by=rank_by))
        assert np.isfinite([choice.score, choice.shared_score, choice.gain]).all()
        if rank_by not in ("recall_iou", "localisation", "r2"):
            assert choice.score == METRICS[rank_by].best
            assert not postprocess(probs[0], choice.point, diameter_px=DIAMETER_PX).any()

    @pytest.mark.parametrize("rank_by", ["f1_iou", "mpe", "localisation", "count_high", "ece", "mae_released"])
    @pytest.mark.parametrize("value", [np.nan, 0.0, 1.0])
    def test_probabilities_of_one_value_leave_it_sane(self, value, rank_by):
        probs = {0: np.full(self.TRUTH.shape, value, np.float32)}
        choice = choose_point(probs, {0: self.TRUTH}, DIAMETER_PX, EvaluationConfig(rank_by=rank_by))
        assert choice.n_ties == choice.n_candidates == 260
        assert np.isfinite(choice.score)
        assert choice.gain == 0
        if rank_by == "f1_iou":
            assert choice.score == 0

    def test_bad_input_is_refused(self):
        probs, truth = scenes()
        with pytest.raises(DataError, match="0 and 0"):
            choose_point({}, {}, DIAMETER_PX, EvaluationConfig())
        with pytest.raises(DataError, match="3 and 1"):
            choose_point(probs, {7: truth[7]}, DIAMETER_PX, EvaluationConfig())
        with pytest.raises(CellrayError):
            choose_point({0: probs[7]}, {0: truth[2]}, DIAMETER_PX, EvaluationConfig())

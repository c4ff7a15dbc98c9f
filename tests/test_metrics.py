"""Metrics against label images counted by eye, laws, and slow obvious versions on random images."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
from label_images import labels, masks_of, random_pair, row_of, slow_best, slow_distances, slow_ious

from cellray.errors import DataError, ShapeError, StudyError
from cellray.metrics import (
    METRICS,
    OBJECT_COLUMNS,
    contingency,
    image_row,
    length_px,
    match_by_distance,
    match_by_iou,
    object_rows,
    summarise,
    table_row,
)

NOTHING = np.zeros((6, 8), dtype=np.int32)


def summary_of(*pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    rows = [row_of(true, pred, probs=(pred > 0).astype(np.float32)) for true, pred in pairs]
    return summarise(pd.DataFrame(rows))


def test_an_image_counted_by_eye():
    true = labels(
        "11....22",
        "11....22",
        "........",
        "33......",
        "33....4.",
    )
    pred = labels(
        "111...2.",
        "111...2.",
        "........",
        "........",
        "5....66.",
    )
    # IoU: 1-1 is 4/6, 2-2 is 2/4, 3-5 is 1/4, 4-6 is 1/2; centres: 0.5, 0.5, 0.71 and 0.5 px apart
    row = row_of(true, pred, iou_threshold=0.4, max_distance_px=0.6, only=("iou", "distance"))
    assert row.pop("distance_sum") == pytest.approx(1.5)
    assert row == {
        "n_true": 4, "n_pred": 4, "reach_px": 0.6,
        "tp_iou": 3, "fp_iou": 1, "fn_iou": 1,
        "tp_distance": 3, "fp_distance": 1, "fn_distance": 1,
        "px_tp": 8, "px_fp": 3, "px_fn": 5, "px_tn": 40 - 16,
    }  # fmt: skip
    found = match_by_iou(true, pred)
    assert (found.true_ids.tolist(), found.pred_ids.tolist()) == ([1, 2, 4], [1, 2, 6])
    assert found.values == pytest.approx([4 / 6, 2 / 4, 1 / 2])


def test_iou_must_be_above_the_threshold_but_a_distance_may_be_equal():
    true, pred = labels("11..", "...."), labels("1...", "....")  # IoU 1/2, centres half a pixel apart
    assert match_by_iou(true, pred, threshold=0.5).tp == 0
    assert match_by_iou(true, pred, threshold=0.499).tp == 1
    assert match_by_distance(true, pred, max_distance_px=0.5).tp == 1
    assert match_by_distance(true, pred, max_distance_px=0.499).tp == 0
    assert match_by_distance(true, true, max_distance_px=0).tp == 1
    assert match_by_iou(true, pred, threshold=0.5, inclusive=True).tp == 1
    assert match_by_iou(true, true, threshold=1.0, inclusive=True).tp == 1
    assert match_by_iou(true, true[:, ::-1], threshold=0.0, inclusive=True).tp == 0, "no shared pixel, no pair"
    assert match_by_distance(true, pred, max_distance_px=0.5, inclusive=False).tp == 0


def test_an_exact_diagonal_distance_counts():
    true, pred = np.zeros((2, 40, 40), dtype=np.int32)
    true[2, 3], pred[5, 7] = 1, 1
    assert match_by_distance(true, pred, max_distance_px=5).tp == 1
    pred[5, 7], pred[3, 4] = 0, 1
    assert match_by_distance(true, pred, max_distance_px=np.sqrt(2)).tp == 1


def test_a_length_in_each_unit_is_so_many_pixels():
    assert length_px(40, "px") == 40
    assert length_px(12.6, "um", um_per_px=0.315) == pytest.approx(40)
    assert length_px(1.5, "diameters", diameter_px=20) == 30
    for wrong in ({"unit": "mm"}, {"unit": "um"}, {"unit": "um", "um_per_px": 0.0}, {"unit": "diameters"}):
        with pytest.raises(DataError, match="length"):
            length_px(1.0, **wrong)


def test_one_blob_over_two_cells_is_one_hit_unless_asked_otherwise():
    true, pred = labels("1122", "1122"), labels("1111", "1111")  # IoU 1/2 with each
    assert match_by_iou(true, pred).tp == 1
    twice = match_by_iou(true, pred, matching="many_to_one")
    assert (twice.tp, twice.fp, twice.fn) == (2, 0, 0)


def test_two_pieces_that_are_good_enough_are_no_spurious_cells_in_the_released_rule():
    true, pred = labels("11111.."), labels("22333..")  # IoU 2/5 and 3/5 with the same true cell
    released = match_by_iou(true, pred, threshold=0.3, matching="many_to_one")
    assert (released.tp, released.fp, released.fn) == (1, 0, 0)
    strict = match_by_iou(true, pred, threshold=0.3)
    assert (strict.tp, strict.fp, strict.fn) == (1, 1, 0)


def test_greedy_takes_the_best_pair_though_it_costs_another():
    # true 1 and pred 2 lie 1 px apart; true 1 with pred 1, and true 2 with pred 2, 2 px
    true, pred = labels("..1..2...."), labels("1..2......")
    assert match_by_distance(true, pred, max_distance_px=2, matching="greedy").values.tolist() == [1]
    assert match_by_distance(true, pred, max_distance_px=2).values.tolist() == [2, 2]


def test_many_to_one_takes_the_best_partner():
    true, pred = labels("11111.."), labels("11222..")  # IoU 2/5 and 3/5
    assert match_by_iou(true, pred, threshold=0.3, matching="many_to_one").pred_ids.tolist() == [2]
    assert match_by_distance(true, pred, max_distance_px=9, matching="many_to_one").pred_ids.tolist() == [2]


def test_as_many_pairs_as_possible_go_before_the_best_pair():
    # true 1 and pred 1 are the nearest pair, but taking it would leave true 2 and pred 2 without partners
    true, pred = labels("1..2......"), labels("..1..2....")
    assert match_by_distance(true, pred, max_distance_px=2).values.tolist() == [2, 2]


@pytest.mark.parametrize("image", [NOTHING, labels("1.2", "...")], ids=["empty", "two cells"])
def test_equal_images_agree_in_everything(image):
    summary = summary_of((image, image))
    assert all(summary[name] == metric.best for name, metric in METRICS.items())


def test_nothing_predicted_and_nothing_there():
    some = labels("11......", *["........"] * 5)
    missed, invented = summary_of((some, NOTHING)), summary_of((NOTHING, some))
    shares = [name for name, metric in METRICS.items() if metric.higher_is_better and name != "miou"]
    assert [missed[name] for name in shares] == [invented[name] for name in shares] == [0] * len(shares)
    assert missed["miou"] == invented["miou"] == pytest.approx((0 + 46 / 48) / 2)
    assert (missed["mpe"], invented["mpe"]) == (100, -100)


def test_summary_sums_counts_before_dividing():
    one, two = labels("1...", "...."), labels("1..2", "....")
    summary = summary_of((one, one), (two, one), (one, np.zeros_like(one)), (np.zeros_like(one), two))
    # tp 2, fp 2, fn 2; count errors 0, 1, 1, -2 of 1, 2, 1, 0 cells; pixels tp 2, fp 2, fn 2, tn 26
    assert summary["f1_iou"] == summary["precision_iou"] == summary["recall_iou"] == summary["dice"] == 0.5
    assert summary["f1_distance"] == 0.5
    assert summary["miou"] == pytest.approx((2 / 6 + 26 / 30) / 2)
    assert (summary["mae"], summary["medae"]) == (1, 1)
    assert summary["mpe"] == pytest.approx((0 + 50 + 100 - 200) / 4)
    assert (summary["n_images"], summary["n_true"], summary["n_pred"]) == (4, 4, 4)
    assert list(summary) == [*METRICS, "n_images", "n_true", "n_pred"]


def test_an_image_full_of_cell_has_no_background_to_lose():
    full = np.ones((3, 3), dtype=np.int32)
    assert summary_of((full, full))["miou"] == 1


def test_ranking_follows_the_distance_from_the_best_value():
    assert METRICS["mpe"].shortfall(-30) > METRICS["mpe"].shortfall(20)
    assert METRICS["f1_iou"].shortfall(0.4) > METRICS["f1_iou"].shortfall(0.9)


@pytest.mark.parametrize("block", range(20))
def test_matching_equals_the_obvious_version(block):
    for seed in range(100 * block, 100 * block + 100):
        true, pred = random_pair(seed)
        ious, distances = slow_ious(true, pred), slow_distances(true, pred)
        threshold, reach = ((0.0, 1.5), (0.2, 5.0), (0.4, 3.0))[seed % 3]
        found = match_by_iou(true, pred, threshold=threshold)
        n_pairs, worth = slow_best(ious, ious > threshold)
        assert (found.tp, found.values.sum()) == (n_pairs, pytest.approx(worth)), seed
        assert (found.fn, found.fp) == (ious.shape[0] - n_pairs, ious.shape[1] - n_pairs), seed
        near = match_by_distance(true, pred, max_distance_px=reach)
        n_pairs, worth = slow_best(-distances, distances <= reach)
        assert (near.tp, -near.values.sum()) == (n_pairs, pytest.approx(worth)), seed


def slow_greedy(scores: np.ndarray, good: np.ndarray) -> list[float]:
    """Scores of the pairs that are taken best first."""
    left, taken = np.where(good, scores, -np.inf), []
    while left.size and left.max() > -np.inf:
        i, j = np.unravel_index(left.argmax(), left.shape)
        taken.append(left[i, j])
        left[i, :] = left[:, j] = -np.inf
    return taken


@pytest.mark.parametrize("block", range(10))
def test_the_other_rules_equal_their_obvious_versions(block):
    for seed in range(200 * block, 200 * block + 200):
        true, pred = random_pair(seed)
        ious, distances = slow_ious(true, pred), slow_distances(true, pred)
        for good, scores, match in (
            (ious > 0.2, ious, partial(match_by_iou, true, pred, threshold=0.2)),
            (distances <= 3, -distances, partial(match_by_distance, true, pred, max_distance_px=3.0)),
        ):
            greedy, many = match(matching="greedy"), match(matching="many_to_one")
            assert np.sort(np.abs(greedy.values)) == pytest.approx(np.sort(np.abs(slow_greedy(scores, good)))), seed
            assert (greedy.fn, greedy.fp) == (len(good) - greedy.tp, good.shape[1] - greedy.tp), seed
            assert (many.tp, many.fp) == (good.any(axis=1).sum(), (~good.any(axis=0)).sum()), seed
            best = [max(s[g]) for s, g in zip(scores, good, strict=True) if g.any()]
            assert np.abs(many.values) == pytest.approx(np.abs(best)), seed


@pytest.mark.parametrize("block", range(10))
def test_table_equals_pairwise_masks(block):
    for seed in range(100 * block, 100 * block + 100):
        true, pred = random_pair(seed)
        table = contingency(true, pred)
        trues, preds = masks_of(true), masks_of(pred)
        assert table.overlap.tolist() == [[(t & p).sum() for p in preds] for t in trues]
        assert table.true_area.tolist() == [mask.sum() for mask in trues]
        assert table.pred_area.tolist() == [mask.sum() for mask in preds]
        np.testing.assert_array_equal(table.iou, slow_ious(true, pred))
        np.testing.assert_allclose(table.distance, slow_distances(true, pred), atol=1e-12)
        for centres, masks in ((table.true_centres, trues), (table.pred_centres, preds)):
            np.testing.assert_allclose(centres, np.array([np.argwhere(m).mean(axis=0) for m in masks]).reshape(-1, 2))


@pytest.mark.parametrize("seed", range(100))
def test_a_table_without_some_predictions_is_the_table_of_the_rest(seed):
    true, pred = random_pair(seed)
    table = contingency(true, pred)
    keep = np.random.default_rng(seed).random(len(table.pred_ids)) < 0.5
    rest = np.where(np.isin(pred, table.pred_ids[keep]), pred, 0)
    settings = {"iou_threshold": 0.4, "max_distance_px": 2.0, "diameter_px": 3.0}
    assert table_row(table.keep_predicted(keep), **settings) == image_row(true, rest, **settings)


# Exact ties between cells are decided by their ids, so only what ties can't change is compared.
TIED = {"aji_intersection", "aji_union", "merged", "split", "missed", "spurious"}


@pytest.mark.parametrize("seed", range(200))
def test_names_and_sides_of_the_labels_change_nothing(seed):
    true, pred = random_pair(seed)
    row = {name: value for name, value in row_of(true, pred).items() if name not in TIED}
    far_apart = np.append(0, np.random.default_rng(seed).permutation(60) * 10**5 + 7)
    for other in (row_of(far_apart[true], pred.astype(np.uint8)), row_of(true.astype(np.uint64), far_apart[pred])):
        assert {name: other[name] for name in row} == pytest.approx(row)
    other = row_of(pred, true)
    for part in ("iou", "distance"):
        assert other[f"tp_{part}"] == row[f"tp_{part}"]
        assert (other[f"fp_{part}"], other[f"fn_{part}"]) == (row[f"fn_{part}"], row[f"fp_{part}"])
    assert (other["px_fp"], other["px_fn"], other["px_tn"]) == (row["px_fn"], row["px_fp"], row["px_tn"])


@pytest.mark.parametrize("seed", range(0, 200, 2))
def test_object_rows_agree_with_the_counts(seed):
    true, pred = random_pair(seed)
    row, objects = row_of(true, pred), object_rows(true, pred)
    kinds = [cell["kind"] for cell in objects]
    assert all(tuple(cell) == OBJECT_COLUMNS for cell in objects)
    assert kinds.count("hit") == row["tp_iou"]
    assert all(kinds.count(kind) == row[kind] for kind in ("merged", "split", "missed", "spurious"))
    assert sum(cell["true_id"] > 0 and cell["pred_id"] == 0 for cell in objects) == row["fn_iou"]
    assert sum(cell["true_id"] == 0 for cell in objects) == row["fp_iou"]
    assert sum(cell["area_true"] for cell in objects) == (true > 0).sum()
    assert sum(cell["area_pred"] for cell in objects) == (pred > 0).sum()


def test_kinds_of_errors():
    true = labels(
        "1111....222.333.",
        "1111....222.333.",
        "................",
        "44..5...........",
    )
    pred = labels(
        "1.22....3333333.",
        "1.22....3333333.",
        "................",
        "44.........6....",
    )
    # pred 2 hits true 1 (IoU 4/8) and pred 1 is the other piece; pred 3 lies over true 2 and 3 (IoU 6/14 each)
    objects = {(cell["true_id"], cell["pred_id"]): cell for cell in object_rows(true, pred)}
    kinds = {pair: cell["kind"] for pair, cell in objects.items()}
    hit = (2, 3) if (2, 3) in kinds else (3, 3)
    other = (5 - hit[0], 0)
    assert kinds == {
        (1, 2): "hit", (0, 1): "split", hit: "hit", other: "merged", (4, 4): "hit", (5, 0): "missed",
        (0, 6): "spurious",
    }  # fmt: skip
    assert objects[1, 2] == {
        "true_id": 1, "pred_id": 2, "iou": 0.5, "distance_px": 1.0, "area_true": 8, "area_pred": 4,
        "cy": 0.5, "cx": 1.5, "kind": "hit",
    }  # fmt: skip
    assert objects[other]["iou"] == pytest.approx(6 / 14)
    assert (objects[0, 6]["cy"], objects[0, 6]["cx"], objects[0, 6]["distance_px"]) == (3, 11, np.hypot(2.5, 2))


def test_a_cell_in_pieces_and_a_blob_over_cells_that_hit_nothing():
    cell, pieces = labels("111111"), labels("112233")
    assert [found["kind"] for found in object_rows(cell, pieces)] == ["split"] * 4
    assert [found["kind"] for found in object_rows(pieces, cell)] == ["merged"] * 4
    assert np.isnan(object_rows(cell, np.zeros_like(cell))[0]["distance_px"])


def test_bad_labels_are_refused():
    good = labels("11", "..")
    with pytest.raises(ShapeError, match=r"\(2, 2\).*\(1, 2\)"):
        contingency(good, good[:1])
    with pytest.raises(ShapeError):
        contingency(good[0], good[0])
    with pytest.raises(DataError, match=r"pred labels.*float64"):
        contingency(good, good.astype(float))
    with pytest.raises(DataError, match=r"true labels.*-1"):
        contingency(-good, good)
    with pytest.raises(DataError, match="at least one image"):
        summarise(pd.DataFrame(columns=list(row_of(good, good))))
    with pytest.raises(StudyError, match="one_to_one"):
        match_by_iou(good, good, matching="one_to_on")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="IoU threshold"):
        match_by_iou(good, good, threshold=1.0)
    with pytest.raises(DataError, match="max_distance_px"):
        match_by_distance(good, good, max_distance_px=float("nan"))

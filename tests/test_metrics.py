"""Metrics against label images counted by eye, laws, and slow obvious versions on random images."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from cellray.errors import DataError, ShapeError, StudyError
from cellray.metrics import (
    METRICS,
    OBJECT_COLUMNS,
    contingency,
    image_row,
    match_by_distance,
    match_by_iou,
    object_rows,
    summarise,
)

NOTHING = np.zeros((6, 8), dtype=np.int32)


def labels(*rows: str) -> np.ndarray:
    """A label image from rows of digits, '.' = background."""
    return np.array([[0 if mark == "." else int(mark) for mark in row] for row in rows], dtype=np.int32)


def row_of(true: np.ndarray, pred: np.ndarray, **changed: float) -> dict[str, int]:
    return image_row(true, pred, **({"iou_threshold": 0.4, "max_distance_px": 2.0} | changed))


def summary_of(*pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    return summarise(pd.DataFrame([row_of(true, pred) for true, pred in pairs]))


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to five boxes each, overpainted, so touching, nested, cut or one pixel; ids in any order with gaps."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 24, 2))
    boxes = [draw_box(rng, shape) for _ in range(rng.integers(0, 6))]
    moved = [(y + rng.integers(-2, 3), x + rng.integers(-2, 3), h, w) for y, x, h, w in boxes if rng.random() < 0.8]
    invented = [draw_box(rng, shape) for _ in range(rng.integers(0, 3))]
    return paint(rng, shape, boxes), paint(rng, shape, (moved + invented)[:5])


def draw_box(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    return (*rng.integers(0, shape), *rng.integers(1, 9, 2))


def paint(rng: np.random.Generator, shape: tuple[int, ...], boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    out = np.zeros(shape, dtype=rng.choice([np.uint16, np.int32, np.int64]))
    for name, (y, x, h, w) in zip(rng.permutation(np.arange(1, 60, 3)), boxes, strict=False):
        out[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = name
    return out


def masks_of(image: np.ndarray) -> list[np.ndarray]:
    return [image == name for name in np.unique(image) if name]


def slow_best(worth: np.ndarray, allowed: np.ndarray) -> tuple[int, float]:
    """The most allowed pairs and then the most worth, over every way to pair rows with columns."""
    if worth.shape[0] > worth.shape[1]:
        worth, allowed = worth.T, allowed.T
    value, ok = worth.tolist(), allowed.tolist()
    best = (0, 0.0)
    for cols in permutations(range(worth.shape[1]), worth.shape[0]):
        kept = [value[i][j] for i, j in enumerate(cols) if ok[i][j]]
        best = max(best, (len(kept), sum(kept)))
    return best


def slow_ious(true: np.ndarray, pred: np.ndarray) -> np.ndarray:
    trues, preds = masks_of(true), masks_of(pred)
    pairs = [[(t & p).sum() / (t | p).sum() for p in preds] for t in trues]
    return np.array(pairs).reshape(len(trues), len(preds))


def slow_distances(true: np.ndarray, pred: np.ndarray) -> np.ndarray:
    trues, preds = ([np.argwhere(mask).mean(axis=0) for mask in masks_of(image)] for image in (true, pred))
    return np.array([[np.linalg.norm(t - p) for p in preds] for t in trues]).reshape(len(trues), len(preds))


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
    assert row_of(true, pred, iou_threshold=0.4, max_distance_px=0.6) == {
        "n_true": 4, "n_pred": 4,
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


def test_an_exact_diagonal_distance_counts():
    true, pred = np.zeros((2, 40, 40), dtype=np.int32)
    true[2, 3], pred[5, 7] = 1, 1
    assert match_by_distance(true, pred, max_distance_px=5).tp == 1
    pred[5, 7], pred[3, 4] = 0, 1
    assert match_by_distance(true, pred, max_distance_px=np.sqrt(2)).tp == 1


def test_one_blob_over_two_cells_is_one_hit_unless_asked_otherwise():
    true, pred = labels("1122", "1122"), labels("1111", "1111")  # IoU 1/2 with each
    assert match_by_iou(true, pred).tp == 1
    twice = match_by_iou(true, pred, matching="many_to_one")
    assert (twice.tp, twice.fp, twice.fn) == (2, 0, 0)


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


@pytest.mark.parametrize("seed", range(300))
def test_matching_equals_the_obvious_version(seed):
    true, pred = random_pair(seed)
    ious, distances = slow_ious(true, pred), slow_distances(true, pred)
    for threshold in (0.0, 0.2, 0.4):
        found = match_by_iou(true, pred, threshold=threshold)
        n_pairs, worth = slow_best(ious, ious > threshold)
        assert (found.tp, found.values.sum()) == (n_pairs, pytest.approx(worth))
        assert (found.fn, found.fp) == (ious.shape[0] - n_pairs, ious.shape[1] - n_pairs)
    for reach in (1.5, 5.0):
        near = match_by_distance(true, pred, max_distance_px=reach)
        n_pairs, worth = slow_best(-distances, distances <= reach)
        assert (near.tp, -near.values.sum()) == (n_pairs, pytest.approx(worth))


@pytest.mark.parametrize("seed", range(100))
def test_table_equals_pairwise_masks(seed):
    true, pred = random_pair(seed)
    table = contingency(true, pred)
    trues, preds = masks_of(true), masks_of(pred)
    assert table.overlap.tolist() == [[(t & p).sum() for p in preds] for t in trues]
    assert table.true_area.tolist() == [mask.sum() for mask in trues]
    assert table.pred_area.tolist() == [mask.sum() for mask in preds]
    for centres, masks in ((table.true_centres, trues), (table.pred_centres, preds)):
        np.testing.assert_allclose(centres, np.array([np.argwhere(m).mean(axis=0) for m in masks]).reshape(-1, 2))


@pytest.mark.parametrize("seed", range(0, 100, 2))
def test_names_and_sides_of_the_labels_change_nothing(seed):
    true, pred = random_pair(seed)
    row = row_of(true, pred)
    far_apart = np.append(0, np.random.default_rng(seed).permutation(60) * 10**5 + 7)
    assert row_of(far_apart[true], pred.astype(np.uint8)) == row
    assert row_of(true.astype(np.uint64), far_apart[pred]) == row
    other = row_of(pred, true)
    for part in ("iou", "distance"):
        assert other[f"tp_{part}"] == row[f"tp_{part}"]
        assert (other[f"fp_{part}"], other[f"fn_{part}"]) == (row[f"fn_{part}"], row[f"fp_{part}"])
    assert (other["px_fp"], other["px_fn"], other["px_tn"]) == (row["px_fn"], row["px_fp"], row["px_tn"])


@pytest.mark.parametrize("seed", range(0, 100, 2))
def test_object_rows_agree_with_the_counts(seed):
    true, pred = random_pair(seed)
    row, objects = row_of(true, pred), object_rows(true, pred)
    kinds = [cell["kind"] for cell in objects]
    assert all(tuple(cell) == OBJECT_COLUMNS for cell in objects)
    assert kinds.count("hit") == row["tp_iou"]
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

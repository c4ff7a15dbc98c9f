"""The columns of an image's row and the metrics of a set, against hand values and slow obvious versions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from label_images import labels, masks_of, random_pair, row_of, slow_best, slow_distances, slow_ious

from cellray.errors import DataError, ShapeError, StudyError
from cellray.metrics import (
    METRICS,
    PARTS,
    columns_of,
    image_row,
    iou_curve,
    object_rows,
    quirk_rows,
    stratify,
    summarise,
)
from cellray.metrics.rows import COLUMNS

NOTHING = np.zeros((4, 6), dtype=np.int32)

# IoU: true 1 with pred 1 is 6/8, true 2 with pred 2 is 3/6; true 3 is missed, pred 4 is spurious
TRUE = labels(
    "1111..22",
    "1111..22",
    "......22",
    "33......",
)
PRED = labels(
    "1111..2.",
    "11....2.",
    "......2.",
    "...44...",
)


def table(*rows: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def counted(n_true: list[int], n_pred: list[int]) -> dict[str, float]:
    """Metrics of images of which only the counts are known."""
    pixels = dict.fromkeys(("px_tp", "px_fp", "px_fn"), 0) | {"px_tn": 1}
    return summarise(table(*({"n_true": t, "n_pred": p, **pixels} for t, p in zip(n_true, n_pred, strict=True))))


def slow_jaccard(true: np.ndarray, pred: np.ndarray) -> tuple[int, int]:
    """Kumar et al. 2017, algorithm 1, one cell after the other."""
    preds, used = masks_of(pred), set()
    intersection = union = 0
    for cell in masks_of(true):
        scores = [((cell & p).sum() / (cell | p).sum(), (cell & p).sum(), -j) for j, p in enumerate(preds)]
        j = -max(scores)[2] if scores and max(scores)[0] > 0 else None
        if j is None:
            union += cell.sum()
        else:
            used.add(j)
            intersection += (cell & preds[j]).sum()
            union += (cell | preds[j]).sum()
    return int(intersection), int(union + sum(p.sum() for j, p in enumerate(preds) if j not in used))


def slow_calibration(true: np.ndarray, probs: np.ndarray) -> dict[str, float]:
    row = {"brier_sum": 0.0} | {f"gap_{k}": 0.0 for k in range(10)}
    for y, p in zip((true > 0).ravel().tolist(), probs.ravel().tolist(), strict=True):
        row["brier_sum"] += (p - y) ** 2
        row[f"gap_{min(int(p * 10), 9)}"] += p - y
    return row


@pytest.mark.parametrize("block", range(10))
def test_a_row_equals_pairwise_masks(block):
    for seed in range(100 * block, 100 * block + 100):
        true, pred = random_pair(seed)
        ious, distances = slow_ious(true, pred), slow_distances(true, pred)
        probs = np.random.default_rng(seed).random(true.shape)
        row = row_of(true, pred, probs=probs, iou_threshold=0.3, max_distance_px=2.5, diameter_px=2.0)
        for tenth in range(1, 10):
            assert row[f"tp_iou_{tenth}0"] == slow_best(ious, ious > tenth / 10)[0], seed
        assert row["iou_sum"] == pytest.approx(ious[ious > 0.5].sum()), seed
        assert row["distance_sum"] == pytest.approx(-slow_best(-distances, distances <= 2.5)[1]), seed
        assert (row["aji_intersection"], row["aji_union"]) == slow_jaccard(true, pred), seed
        assert row["tp_iou_many"] == (ious > 0.3).any(axis=1).sum()
        assert row["fp_iou_many"] == (~(ious > 0.3).any(axis=0)).sum()
        assert row["tp_distance_many"] == (distances <= 2.5).any(axis=1).sum()
        assert row["fp_distance_many"] == (~(distances <= 2.5).any(axis=0)).sum()
        apart = slow_distances(true, true) + np.diag(np.full(len(ious), np.inf))
        assert row["crowded"] == (apart <= 3.0).any(axis=1).sum(), seed
        slow = slow_calibration(true, probs)
        assert {name: row[name] for name in slow} == pytest.approx(slow, abs=1e-9), seed


def test_the_new_metrics_of_an_image_counted_by_eye():
    probs = np.where(PRED > 0, 0.8, 0.1)
    summary = summarise(table(row_of(TRUE, PRED, probs=probs)))
    # 3 true and 3 predicted cells; above IoU 0.5 only the pair of 6/8, since 3/6 is no more than 0.5
    assert (summary["pq"], summary["sq"], summary["rq"]) == pytest.approx((0.75 / 3, 0.75, 1 / 3))
    assert summary["ap_50"] == pytest.approx(1 / 5)
    assert summary["ap_50_90"] == pytest.approx((1 / 5 + 1 / 5 + 1 / 5 + 0 + 0) / 5)
    assert summary["aji"] == pytest.approx((6 + 3) / (8 + 6 + 2 + 2))
    # centres: (0.5, 1.5) and (1/3, 7/6); (1, 6.5) and (1, 6)
    assert summary["localisation"] == pytest.approx((np.hypot(1 / 6, 1 / 3) + 0.5) / 2)
    assert (summary["merged"], summary["split"]) == (0, 0)
    assert (summary["missed"], summary["spurious"]) == pytest.approx((1 / 3, 1 / 3))
    # 11 predicted pixels, 9 of them cell; 21 others, 7 of them cell
    assert summary["brier"] == pytest.approx((9 * 0.04 + 2 * 0.64 + 7 * 0.81 + 14 * 0.01) / 32)
    assert summary["ece"] == pytest.approx((abs(11 * 0.8 - 9) + abs(21 * 0.1 - 7)) / 32)


def test_the_curve_counts_the_same_cells_at_every_threshold():
    curve = iou_curve(table(row_of(TRUE, PRED), row_of(TRUE, TRUE)))
    assert curve["threshold"].tolist() == [k / 10 for k in range(1, 10)]
    # pairs of IoU 6/8 and 3/6 in the first image, three of IoU 1 in the second; 6 true and 6 predicted cells
    found = [5, 5, 5, 5, 4, 4, 4, 3, 3]
    assert curve["f1"].tolist() == curve["recall"].tolist() == curve["precision"].tolist() == [n / 6 for n in found]
    with pytest.raises(DataError, match="grid"):
        iou_curve(table(row_of(TRUE, PRED, only=())))


def test_means_over_images_count_each_image_alike():
    one, two = labels("11..", "...."), labels("1.2.", "....")
    empty = np.zeros_like(one)
    summary = summarise(table(row_of(one, one), row_of(two, one), row_of(empty, empty), row_of(empty, one)))
    # by IoU, of the second image: 1 TP (IoU 1/2), 0 FP, 1 FN; by pixel 1 TP, 1 FP, 1 FN
    assert summary["f1_iou_mean"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
    assert summary["f1_distance_mean"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
    assert summary["dice_mean"] == pytest.approx((1 + 1 / 2 + 1 + 0) / 4)


def test_counts_by_hand():
    summary = counted([4, 0, 2, 6], [3, 1, 2, 4])
    errors = np.array([1, -1, 0, 2])
    spread = 1.96 * np.sqrt(((errors - 0.5) ** 2).sum() / 3)
    assert summary["count_bias"] == 0.5
    assert (summary["count_low"], summary["count_high"]) == pytest.approx((0.5 - spread, 0.5 + spread))
    assert summary["r2"] == pytest.approx(1 - 6 / 20)  # the true counts lie 1, -3, -1 and 3 from their mean
    assert summary["mpe"] == pytest.approx((25 - 100 + 0 + 100 / 3) / 4)


def test_undefined_counts_have_stated_values():
    assert (counted([3, 3], [3, 3])["r2"], counted([3, 3], [3, 2])["r2"]) == (1, 0)
    assert counted([1, 2], [9, 9])["r2"] == 0, "worse than the mean count is given as 0"
    single = counted([5], [3])
    assert (single["count_low"], single["count_bias"], single["count_high"]) == (2, 2, 2)


def test_values_of_sets_with_nothing_in_them():
    def of(true: np.ndarray, pred: np.ndarray) -> dict[str, float]:
        return summarise(table(row_of(true, pred, probs=np.full(true.shape, 0.5))))

    some = labels("11....", *["......"] * 3)
    both, missed, invented = of(NOTHING, NOTHING), of(some, NOTHING), of(NOTHING, some)
    shares = ("pq", "sq", "rq", "ap_50", "ap_50_90", "aji", "f1_iou_mean", "f1_distance_mean", "dice_mean")
    assert [both[name] for name in shares] == [1] * len(shares)
    for summary in (missed, invented):
        assert [summary[name] for name in shares] == [0] * len(shares)
        assert summary["localisation"] == 2.0, "without a pair: the largest distance that would have counted"
    assert both["localisation"] == 0
    assert (both["missed"], missed["missed"], missed["spurious"]) == (0, 1, 0)
    assert (invented["missed"], invented["spurious"]) == (0, 1), "per one cell where there is none"
    for summary in (both, missed, invented):
        assert set(summary) == {*METRICS, "n_images", "n_true", "n_pred"}
        assert np.isfinite(list(summary.values())).all()


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_needs_no_more_than_its_parts(name):
    pairs = [random_pair(seed) for seed in range(6)]
    parts = METRICS[name].parts
    assert set(parts) <= set(PARTS)

    def rows(only: tuple[str, ...] | None) -> pd.DataFrame:
        return table(*(row_of(t, p, probs=np.clip(p / 60, 0, 1), only=only) for t, p in pairs))

    assert summarise(rows(parts))[name] == summarise(rows(None))[name]
    if parts:
        assert name not in summarise(rows(()))


def test_what_is_not_given_is_left_out():
    row = image_row(TRUE, PRED, iou_threshold=0.4, max_distance_px=2.0)
    assert "crowded" not in row and "brier_sum" not in row
    assert {"ece", "brier"}.isdisjoint(summarise(table(row)))
    with pytest.raises(StudyError, match="jaccard"):
        row_of(TRUE, PRED, only=("jacard",))


def test_probabilities_at_the_edges():
    true = labels("11..", "....")
    sure = row_of(true, true, probs=(true > 0).astype(np.float32))
    assert sure["brier_sum"] == 0 and all(sure[f"gap_{k}"] == 0 for k in range(10))
    wrong = row_of(true, true, probs=np.where(true > 0, np.nan, 0.0))
    assert (wrong["brier_sum"], wrong["gap_0"]) == (2, -2), "NaN counts as the worst prediction"
    tenths = np.float32([[0.1, 0.2, 0.3, 0.4], [0.6, 0.7, 0.8, 0.9]])  # each at the lower edge of its bin
    row = row_of(np.zeros_like(true), true, probs=tenths)
    assert [row[f"gap_{k}"] for k in range(10)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0, 0.6, 0.7, 0.8, 0.9])
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        row_of(true, true, probs=np.full(true.shape, 1.5))
    with pytest.raises(ShapeError, match="probs"):
        row_of(true, true, probs=np.zeros((1, 1)))


def released_rows() -> pd.DataFrame:
    """Two images worked by hand: one blob over two cells, and a model that predicts nothing."""
    blob = row_of(labels("1122.3", "1122.3"), labels("1111..", "1111.."), iou_threshold=0.4, max_distance_px=1.0)
    nothing = row_of(labels("1.2.3.", "......"), np.zeros((2, 6), dtype=np.int32))
    return table(blob, nothing)


def test_the_released_counts_compare_two_numbers_of_hits():
    rows = released_rows()
    # IoU 1/2 with each of two cells, whose centres lie 1 px off; the third is missed
    hits = ("tp_iou_many", "fp_iou_many", "tp_distance_many", "fp_distance_many")
    assert rows.loc[0, list(hits)].tolist() == [2, 0, 2, 0]
    assert (rows.loc[0, "tp_iou"], rows.loc[0, "fn_iou"]) == (1, 2)
    rows.loc[0, "tp_iou_many"] = 1  # as if one of the two had a worse contour
    summary = summarise(rows)
    # image 1: predicted 2 + 1, target 1 + 1; image 2: predicted 0 + 3, target 0 + 3, though it found nothing
    assert (summary["mae_released"], summary["medae_released"]) == (0.5, 0.5)
    assert summary["mpe_released"] == pytest.approx((100 * 1 / 2 + 0) / 2)
    assert summary["mae"] == pytest.approx((2 + 3) / 2)


def test_predicting_nothing_has_no_released_count_error():
    summary = summarise(released_rows().iloc[1:])
    assert (summary["mae_released"], summary["mpe_released"], summary["mae"]) == (0, 0, 3)


def test_quirks_give_the_metrics_as_released():
    rows = released_rows()
    rows.loc[0, "tp_iou_many"] = 1
    before = rows.copy()
    plain = summarise(rows)
    quirky = summarise(quirk_rows(rows, ["released_counts", "shared_threshold"]))
    assert [quirky[name] for name in ("mae", "medae", "mpe")] == [
        plain[f"{name}_released"] for name in ("mae", "medae", "mpe")
    ]
    assert quirky["f1_iou"] == plain["f1_iou"] and quirky["n_true"] == plain["n_true"]
    many = quirk_rows(rows, {"many_to_one"})
    assert many.loc[0, ["tp_iou", "fp_iou", "fn_iou"]].tolist() == [1, 0, 2]
    assert many.loc[0, ["tp_distance", "fp_distance", "fn_distance"]].tolist() == [2, 0, 1]
    assert summarise(many)["mae"] == plain["mae"]
    pd.testing.assert_frame_equal(quirk_rows(rows, ["skip_collapsed"]), before)
    pd.testing.assert_frame_equal(rows, before)
    with pytest.raises(DataError, match="released"):
        quirk_rows(table(row_of(TRUE, PRED, only=("iou",))), ["many_to_one"])


def strata_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    crowd = labels("1.2......3", "..........")  # 1 and 2 lie 2 px apart, 3 alone: 2 of 3 are crowded
    alone = labels("1111111111", "1111111111")
    empty = np.zeros_like(crowd)
    images, objects = [], []
    for name, true, pred in (
        ("crowd", crowd, labels("1........3", "..........")),
        ("alone", alone, alone),
        ("empty", empty, labels("1.........", "..........")),
    ):
        images.append({"image": name, **row_of(true, pred, diameter_px=2.0)})
        objects += [{"image": name, **cell} for cell in object_rows(true, pred)]
    return pd.DataFrame(images), pd.DataFrame(objects)


def test_strata_by_hand():
    strata = stratify(*strata_tables()).set_index(["stratum", "level"])
    assert strata.index.tolist() == [
        ("crowding", "empty"), ("crowding", "sparse"), ("crowding", "crowded"), ("size", "small"), ("size", "large"),
    ]  # fmt: skip
    by_image = strata.loc["crowding"]
    assert by_image[["n_images", "n_true", "n_pred"]].to_numpy().tolist() == [[1, 0, 1], [1, 1, 1], [1, 3, 2]]
    assert by_image["f1_iou"].tolist() == pytest.approx([0, 1, 4 / 5])
    assert by_image["mae"].tolist() == [1, 0, 1]
    # areas 1, 1, 1 and 20, on average 5.75: the first three are below half of it, the last above 1.5 times it
    by_size = strata.loc["size"]
    assert by_size[["n_images", "n_true", "n_pred"]].to_numpy().tolist() == [[2, 3, 3], [1, 1, 1]]
    assert by_size["recall_iou"].tolist() == by_size["hit"].tolist() == pytest.approx([2 / 3, 1])
    assert by_size["missed"].tolist() == pytest.approx([1 / 3, 0])


def test_levels_that_nothing_belongs_to_are_left_out():
    images, objects = strata_tables()
    chosen = images["image"] == "empty"
    strata = stratify(images[chosen], objects[objects["image"] == "empty"])
    assert strata["level"].tolist() == ["empty"]
    with pytest.raises(DataError, match="crowded"):
        stratify(images.drop(columns="crowded"), objects)


def test_every_column_belongs_to_its_part_and_a_metric_needs_only_its_own():
    probs = np.where(PRED > 0, 0.9, 0.2)
    row = image_row(TRUE, PRED, iou_threshold=0.4, max_distance_px=3, diameter_px=4, probs=probs)
    assert set(row) == {column for columns in COLUMNS.values() for column in columns}
    for part in PARTS:
        only = image_row(TRUE, PRED, iou_threshold=0.4, max_distance_px=3, diameter_px=4, probs=probs, only=[part])
        assert set(only) == {*COLUMNS[""], *COLUMNS[part]}
    whole = summarise(table(row))
    for metric in METRICS:
        assert summarise(table({name: row[name] for name in columns_of(metric)}))[metric] == whole[metric]

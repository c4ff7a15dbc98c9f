"""Prediction in tiles, the pixel histogram, the operating point, and what an evaluation holds."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pictures import Pictures, cells
from torch import nn

from cellray import evaluation
from cellray.evaluation import PixelHistogram, evaluate, predict_image, predict_logits, predict_set
from cellray.metrics import METRICS, OBJECT_COLUMNS
from cellray.model import CResUnet
from cellray.operating_point import ChosenPoint, choose_point
from cellray.study import EvaluationConfig

CPU = torch.device("cpu")


class ByBrightness(nn.Module):
    """Logits that grow with brightness: a pixel of `level` has logit 0, 10 levels are one unit."""

    def __init__(self, level: float = 120.0) -> None:
        super().__init__()
        self.level = level

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, :1] * 255 - self.level) / 10


class Constant(nn.Module):
    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full_like(images[:, :1], self.logit)


def noise(*shapes: tuple[int, int], channels: int = 1) -> Pictures:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, channels), dtype=np.uint8) for shape in shapes]
    return Pictures(images, [np.zeros(shape, np.uint16) for shape in shapes])


def predicted(
    model: nn.Module, dataset: Pictures, indices: list[int] | None = None, **how: Any
) -> dict[int, np.ndarray]:
    indices = list(range(len(dataset))) if indices is None else indices
    found = predict_logits(model, dataset, indices, device=CPU, precision="float32", **how)
    return {index: logits.numpy() for index, logits in found}


class TestPrediction:
    @pytest.mark.parametrize("shape", [(16, 24), (17, 23), (9, 40), (8, 1), (3, 5)])
    def test_any_size_equals_the_network_on_the_continued_image(self, shape):
        torch.manual_seed(0)
        model, dataset = CResUnet(2, 1), noise(shape)
        down, right = -shape[0] % 8, -shape[1] % 8
        mode = "reflect" if down < shape[0] and right < shape[1] else "edge"
        whole = np.pad(dataset.images[0][..., 0], ((0, down), (0, right)), mode=mode)
        with torch.inference_mode():
            expected = model.eval()(torch.from_numpy(whole).float()[None, None] / 255)
        logits = predicted(model, dataset)[0]
        assert logits.shape == shape
        np.testing.assert_allclose(logits, expected[0, 0, : shape[0], : shape[1]], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", [(64, 200), (200, 64), (136, 208), (65, 70)])
    @pytest.mark.parametrize("tile_px", [64, 128])
    def test_tiles_agree_with_the_whole_where_the_network_sees_little(self, shape, tile_px):
        torch.manual_seed(0)
        model, dataset = nn.Conv2d(1, 1, 3, padding=1), noise(shape)
        whole = predicted(model, dataset, tile_px=1024)[0]
        tiled = predicted(model, dataset, tile_px=tile_px)[0]
        # A whole image is continued to a multiple of 8 and a tile isn't: the last row and column may differ.
        np.testing.assert_allclose(tiled[:-1, :-1], whole[:-1, :-1], rtol=1e-5, atol=1e-6)
        assert np.isfinite(tiled).all()

    @pytest.mark.parametrize("tile_px", [64, 256, 264, 1024])
    @pytest.mark.parametrize("length", [1, 64, 65, 100, 264, 300, 1024, 1025, 2000, 5001])
    def test_tiles_use_every_pixel_once_and_away_from_inner_edges(self, length, tile_px):
        uses = np.zeros(length, int)
        for start, end, first, last in evaluation._tiles(length, tile_px):
            assert 0 <= start <= first < last <= end <= length
            assert end - start <= tile_px
            margin = 16 if length > tile_px else 0
            assert start == 0 or first - start >= margin
            assert end == length or end - last >= margin
            uses[first:last] += 1
        assert (uses == 1).all()

    def test_images_of_several_shapes_come_back_under_their_own_index(self):
        dataset = noise((20, 30), (16, 16), (20, 30), (16, 16), (8, 8))
        found = predicted(ByBrightness(), dataset, [4, 2, 1, 0])
        assert set(found) == {0, 1, 2, 4}
        for index, logits in found.items():
            np.testing.assert_allclose(logits, (dataset.images[index][..., 0] - 120.0) / 10, atol=1e-4)

    def test_one_image_gives_the_probabilities_that_its_dataset_gives(self):
        torch.manual_seed(0)
        model, dataset = CResUnet(2, 1), noise((20, 90), (16, 16))
        logits = predicted(model, dataset, tile_px=64)
        for index, image in enumerate(dataset.images):
            probs = predict_image(model.train(), image, device=CPU, precision="float32", tile_px=64)
            assert probs.dtype == np.float32
            np.testing.assert_allclose(probs, 1 / (1 + np.exp(-logits[index])), rtol=1e-5, atol=1e-6)

    def test_dropped_halfway_it_leaves_torch_as_it_was(self):
        halfway = predict_logits(ByBrightness(), noise((8, 8), (16, 8)), [0, 1], device=CPU, precision="float32")
        next(halfway)
        assert not torch.is_inference_mode_enabled()


class TestPixelHistogram:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("coarse", [False, True])
    def test_best_dice_against_every_threshold_tried(self, seed, coarse):
        rng = np.random.default_rng(seed)
        histogram, logits, targets = PixelHistogram(coarse=coarse), [], []
        for _ in range(3):
            target = rng.random((20, 30)) < 0.2
            logits.append(rng.normal(-2 + 3 * target, 2).astype(np.float32))
            targets.append(target)
            histogram.add(torch.from_numpy(logits[-1]), target)
        z, y = np.concatenate(logits), np.concatenate(targets)
        reach = np.log(1e4 + np.sqrt(1e8 + 1))
        with np.errstate(over="ignore"):
            fine = 1 / (1 + np.exp(-np.sinh(reach * (np.arange(2048) / 1024 - 1))))
        edges = np.arange(256) / 256 if coarse else fine
        p = torch.from_numpy(z).sigmoid().numpy() if coarse else 1 / (1 + np.exp(-z.astype(float)))
        dice = [2 * (y & (p >= edge)).sum() / ((p >= edge).sum() + y.sum()) for edge in edges]
        best, threshold = histogram.best_dice()
        assert best == pytest.approx(max(dice))
        assert threshold == pytest.approx(edges[int(np.argmax(dice))], rel=1e-9)

    def test_certain_pixels_are_told_apart(self):
        # As probabilities both are 1 in float32; as logits one is a cell and one isn't.
        target = np.array([False, False, True, True])
        for logits in ([-90.0, 17.5, 25.0, 90.0], [-90.0, 40.0, 45.0, 300.0], [-300.0, -80.0, -75.0, 0.0]):
            found = {}
            for coarse in (False, True):
                histogram = PixelHistogram(coarse=coarse)
                histogram.add(torch.tensor(logits), target)
                found[coarse], _ = histogram.best_dice()
            assert found[False] == 1 and found[True] < 0.9

    def test_logits_beyond_all_bounds_count_at_the_ends(self):
        histogram = PixelHistogram()
        histogram.add(torch.tensor([-math.inf, math.inf]), np.array([False, True]))
        assert histogram.best_dice()[0] == 1

    def test_without_cells_nothing_predicted_is_right(self):
        histogram = PixelHistogram()
        histogram.add(torch.tensor([-1.4, 0.8]), np.array([False, False]))
        assert histogram.best_dice()[0] == 1


def judged(model: nn.Module, sets: dict[str, tuple[Pictures, list[int]]], **settings: Any) -> evaluation.Evaluation:
    config = EvaluationConfig(**settings)
    return evaluate(partial(predict_set, model, sets, config, CPU, "float32"), sets, config)


def three_sets() -> dict[str, tuple[Pictures, list[int]]]:
    own, other = cells(n=8, height=64, width=64), cells(n=3, height=80, width=70, channels=1, seed=9)
    other.names = [f"other{k}" for k in range(3)]
    return {"val": (own, [0, 1, 2]), "test": (own, [3, 4, 5, 6]), "elsewhere": (other, [0, 1, 2])}


@pytest.fixture(scope="module")
def result() -> evaluation.Evaluation:
    return judged(ByBrightness(), three_sets())


class TestEvaluate:
    def test_images_of_every_set_are_scored_at_both_points(self, result):
        counts = result.images.groupby(["set", "point"]).size().to_dict()
        assert counts == {
            (name, point): len(indices) for name, (_, indices) in three_sets().items() for point in ("own", "shared")
        }
        assert not result.images.duplicated(["set", "point", "image"]).any()
        assert set(result.images.query("set == 'test'")["image"]) == {"im03", "im04", "im05", "im06"}

    def test_metrics_are_those_of_the_rows(self, result):
        for point in ("own", "shared"):
            assert set(result.metrics[point]) == {"val", "test", "elsewhere"}
            for name, values in result.metrics[point].items():
                rows = result.images[(result.images["set"] == name) & (result.images["point"] == point)]
                tp, fp, fn = (rows[f"{kind}_iou"].sum() for kind in ("tp", "fp", "fn"))
                assert values["f1_iou"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
                assert values["n_images"] == len(rows)
                assert values.keys() >= METRICS.keys()

    def test_bright_disks_are_found(self, result):
        assert result.metrics["own"]["test"]["f1_iou"] > 0.95
        assert result.choice.score == result.metrics["own"]["val"]["f1_iou"]
        assert result.choice.shared_score == result.metrics["shared"]["val"]["f1_iou"]
        assert result.collapsed is None

    def test_objects_are_listed_for_every_set(self, result):
        assert list(result.objects.columns) == ["set", "image", "group", *OBJECT_COLUMNS]
        own = result.images[result.images["point"] == "own"]
        for name, rows in own.groupby("set"):
            objects = result.objects[result.objects["set"] == name]
            assert (objects["true_id"] > 0).sum() == rows["n_true"].sum()
            assert (objects["pred_id"] > 0).sum() >= rows["tp_iou"].sum()

    def test_overlays_show_four_images_of_each_judged_set(self, result):
        assert [(o.set, o.role) for o in result.overlays] == [
            (name, role) for name in ("test", "elsewhere") for role in ("worst", "median", "best", "crowded")
        ]
        assert set(result.files) == {o.file for o in result.overlays}
        assert all(png.startswith(b"\x89PNG") for png in result.files.values())
        for name in ("test", "elsewhere"):
            by_role = {o.role: o for o in result.overlays if o.set == name}
            assert by_role["worst"].f1_iou <= by_role["median"].f1_iou <= by_role["best"].f1_iou
            rows = result.images[(result.images["set"] == name) & (result.images["point"] == "own")]
            assert by_role["crowded"].n_true == rows["n_true"].max()

    @pytest.mark.slow
    def test_only_validation_images_are_seen_before_the_point_is_chosen(self, monkeypatch):
        sets, seen = three_sets(), []

        def choose(*given: Any) -> ChosenPoint:
            seen.append((set(sets["val"][0].seen), set(sets["elsewhere"][0].seen)))
            return choose_point(*given)

        monkeypatch.setattr(evaluation, "choose_point", choose)
        judged(ByBrightness(), sets)
        assert seen == [({0, 1, 2}, set())]
        assert set(sets["val"][0].seen) == set(range(7))

    @pytest.mark.slow
    def test_other_truth_on_test_images_moves_no_point(self, result):
        sets = three_sets()
        own = sets["test"][0]
        for index in sets["test"][1]:
            own.truth[index] = np.zeros_like(own.truth[index])
        other = judged(ByBrightness(), sets)
        assert other.choice == result.choice
        assert other.metrics["own"]["test"]["f1_iou"] == 0

    def test_sizes_follow_each_sets_own_diameter(self):
        sets = three_sets()
        far = sets["elsewhere"][0]
        far.diameter_px = 60.0  # its disks of 10 px are specks now, below the smallest cell
        result = judged(ByBrightness(), sets)
        assert result.metrics["own"]["elsewhere"]["n_pred"] == 0
        assert result.metrics["own"]["test"]["n_pred"] > 0


class TestQuirks:
    """The rows hold both rules; the metrics follow the one that the study asks for."""

    def merging(self) -> dict[str, tuple[Pictures, list[int]]]:
        # two cells side by side, shown as one bright blob: one hit one-to-one, two many-to-one at a low threshold
        truth = np.zeros((40, 48), np.uint16)
        truth[14:26, 12:23], truth[14:26, 23:36] = 1, 2
        image = np.where(truth > 0, 200, 40).astype(np.uint8)[..., None]
        pictures = Pictures([image] * 2, [truth] * 2, diameter_px=14.0)
        return {"val": (pictures, [0]), "test": (pictures, [1])}

    def test_many_to_one_counts_a_blob_twice(self):
        whole = {"operating_point": {"threshold": 0.5, "watershed": False}}
        strict = judged(ByBrightness(), self.merging(), **whole).metrics["own"]["test"]
        quirky = judged(ByBrightness(), self.merging(), **whole, matching="many_to_one").metrics["own"]["test"]
        assert (strict["f1_iou"], quirky["f1_iou"]) == (pytest.approx(2 / 3), 1)
        assert strict["mae"] == quirky["mae"] == 1

    @pytest.mark.slow
    def test_the_point_is_chosen_by_the_metric_that_is_reported(self):
        result = judged(ByBrightness(), self.merging(), matching="many_to_one")
        assert result.choice.score == result.metrics["own"]["val"]["f1_iou"]

    def test_released_counts_forgive_it(self):
        whole = {"operating_point": {"threshold": 0.5, "watershed": False}}
        result = judged(ByBrightness(), self.merging(), **whole, counts="released")
        assert result.metrics["own"]["test"]["mae"] == 0
        assert result.metrics["own"]["test"]["mae_released"] == 0
        assert result.images["n_pred"].eq(1).all() and result.images["n_true"].eq(2).all()


class TestCollapse:
    def test_nothing_predicted(self):
        result = judged(Constant(-20.0), three_sets())
        assert result.collapsed == "predicts no cell on any validation image"
        assert result.metrics["own"]["test"]["f1_iou"] == 0
        assert result.metrics["own"]["test"]["n_images"] == 4
        assert list(result.objects["kind"].unique()) == ["missed"]

    def test_everything_predicted(self):
        result = judged(Constant(20.0), three_sets())
        assert result.collapsed == "predicts everything as cell on the validation images"

    def test_nothing_predicted_where_nothing_is_is_no_collapse(self):
        empty = noise((32, 32), (32, 32))
        result = judged(Constant(-20.0), {"val": (empty, [0]), "test": (empty, [1])})
        assert result.collapsed is None
        assert result.metrics["own"]["test"]["f1_iou"] == 1
        assert result.objects.empty
        assert list(result.objects.columns) == ["set", "image", "group", *OBJECT_COLUMNS]
        assert len(result.overlays) == 4

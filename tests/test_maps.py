"""Maps of the true cells: against brute force, in the cache, and in training crops."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import Pictures, cells, disks
from PIL import Image

from cellray.data import Dataset, add_maps, open_dataset
from cellray.losses.maps import LIMIT_PX, STORED, as_tensor, complete_maps, maps_of, stored_maps
from cellray.study import AugmentConfig, DatasetConfig
from cellray.training.crops import CropSampler

PLAIN = AugmentConfig(flips=False, rotation_deg=0, zoom=0, brightness=0, contrast=0)


def distances(labels: np.ndarray) -> dict[int, np.ndarray]:
    """From every pixel to each cell, by trying all pairs of pixels."""
    places = np.argwhere(np.ones(labels.shape, bool)).astype(float)
    return {
        int(n): np.linalg.norm(places[:, None] - np.argwhere(labels == n)[None], axis=2)
        .min(axis=1)
        .reshape(labels.shape)
        for n in np.unique(labels[labels > 0])
    }


def random_labels(seed: int) -> np.ndarray:
    """A few rectangles that may touch, cut each other and leave gaps in the numbers."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((rng.integers(3, 20), rng.integers(3, 20)), np.uint16)
    for number in rng.choice(9, rng.integers(0, 5), replace=False) + 1:
        y, x = rng.integers(0, labels.shape[0]), rng.integers(0, labels.shape[1])
        labels[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = number
    return labels


@pytest.mark.parametrize("seed", range(60))
def test_maps_agree_with_brute_force(seed):
    labels = random_labels(seed)
    far = distances(labels)
    if not far:
        assert not STORED["voronoi"](labels).any()
        assert (STORED["distance"](labels) == LIMIT_PX).all()
        assert (STORED["two_nearest"](labels) == 2 * LIMIT_PX).all()
        return
    stack = np.stack(list(far.values()))
    nearest = STORED["voronoi"](labels)
    reached = np.select([nearest == n for n in far], list(far.values()), np.inf)
    np.testing.assert_allclose(reached, stack.min(axis=0))  # of several equally near cells any one will do
    first, second = np.sort(np.concatenate([stack, np.full((2, *labels.shape), LIMIT_PX)]), axis=0)[:2]
    np.testing.assert_allclose(STORED["two_nearest"](labels), first + second, rtol=1e-3)
    mask = labels > 0
    if mask.all():
        assert (STORED["distance"](labels) == -LIMIT_PX).all()
        return
    outside = np.linalg.norm(np.argwhere(~mask)[:, None] - np.argwhere(mask)[None], axis=2)
    signed = np.empty(labels.shape)
    signed[~mask], signed[mask] = outside.min(axis=1) - 0.5, 0.5 - outside.min(axis=0)
    np.testing.assert_allclose(STORED["distance"](labels), signed, rtol=1e-3)


def test_distances_end_at_the_limit():
    labels = np.zeros((1, 300), np.uint16)
    labels[0, 0], labels[0, 150] = 1, 2
    assert STORED["distance"](labels)[0, 75] == LIMIT_PX
    assert STORED["two_nearest"](labels)[0, 40] == 40 + LIMIT_PX
    assert STORED["two_nearest"](labels)[0, 0] == LIMIT_PX
    assert STORED["two_nearest"](labels)[0, 100] == 50 + LIMIT_PX
    assert STORED["voronoi"](labels)[0, [74, 76]].tolist() == [1, 2]


def test_components_are_the_voronoi_map_in_the_mask():
    labels = np.stack([random_labels(3)] * 2)
    maps = maps_of(("components", "voronoi", "distance"), labels)
    assert maps["components"].shape == (2, 1, *labels.shape[1:])
    assert maps["components"].dtype == torch.int64 and maps["distance"].dtype == torch.float32
    np.testing.assert_array_equal(maps["components"][:, 0], labels)
    assert stored_maps(["components"]) == ("voronoi",)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for part in ("images", "labels"):
        (tmp_path / "set" / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k, shape in enumerate([(40, 56), (32, 32), (48, 40)]):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / "set" / "images" / f"{k}.png")
        Image.fromarray(disks(rng, *shape)).save(tmp_path / "set" / "labels" / f"{k}.png")
    config = DatasetConfig(name="set", path=str(tmp_path / "set"))
    return open_dataset(config, channels=1, normalise="none", cache_dir=tmp_path / "cache")


class TestCache:
    def test_each_image_keeps_its_maps(self, dataset):
        told = []
        add_maps(dataset, ("components", "distance"), lambda done, total: told.append((done, total)))
        assert told == [(1, 3), (2, 3), (3, 3)] * 2
        for name in ("voronoi", "distance"):
            for i in range(3):
                np.testing.assert_array_equal(dataset.map(name, i), STORED[name](dataset.labels(i)))

    def test_they_are_computed_once_however_many_ask(self, dataset, monkeypatch):
        calls = []
        plain = STORED["distance"]
        monkeypatch.setitem(STORED, "distance", lambda labels: (calls.append(1), plain(labels))[1])
        threads = [threading.Thread(target=add_maps, args=(dataset, ("distance",))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(calls) == 3


def sampler(dataset: Pictures, maps: tuple[str, ...], augment: AugmentConfig = PLAIN, **how: int) -> CropSampler:
    indices = list(range(len(dataset)))
    settings = {"crop_px": 32, "batch_size": 6, "seed": 0} | how
    return CropSampler(dataset, indices, augment=augment, device=torch.device("cpu"), maps=maps, **settings)


class TestCrops:
    def test_a_plain_crop_is_cut_from_the_map(self):
        labels = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40) + 1  # every pixel a cell of its own
        batch = sampler(Pictures([np.zeros((48, 40, 1), np.uint8)], [labels]), ("components",)).batch(0)
        for ids in batch.maps["components"][:, 0].numpy():
            assert (np.diff(ids, axis=1) == 1).all() and (np.diff(ids, axis=0) == 40).all()

    @pytest.mark.parametrize("side", [48, 24], ids=["cropped", "continued by reflection"])
    def test_maps_follow_their_image_through_every_change(self, side):
        # The image is the map itself: whatever is done to one must be done to the other.
        rng = np.random.default_rng(0)
        truth = [disks(rng, side, side, n=3) for _ in range(4)]
        nearest = [STORED["voronoi"](labels) for labels in truth]
        dataset = Pictures([(60 * ids).astype(np.uint8)[..., None] for ids in nearest], truth)
        augment = AugmentConfig(flips=True, rotation_deg=15, zoom=0.1, brightness=0, contrast=0)
        batch = sampler(dataset, ("voronoi", "components"), augment).batch(3)
        shown, ids = batch.images * 255 / 60, batch.maps["voronoi"]
        inner = shown == shown.round()  # between two regions the image is a mixture, the map one of both
        assert inner.float().mean() > 0.8
        torch.testing.assert_close(shown[inner], ids[inner].float())
        torch.testing.assert_close(batch.maps["components"], ids * batch.target.long())

    def test_distances_grow_with_the_zoom(self):
        # One straight border: inside, the distance changes by one each crop pixel, however large the zoom.
        labels = np.zeros((120, 120), np.uint16)
        labels[:, 60:] = 1
        dataset = Pictures([np.zeros((120, 120, 1), np.uint8)], [labels])
        augment = AugmentConfig(flips=True, rotation_deg=0, zoom=0.3, brightness=0, contrast=0)
        for step in range(4):
            distance = sampler(dataset, ("distance",), augment, crop_px=64).batch(step).maps["distance"]
            slope = distance.diff(dim=3).abs()
            assert ((slope - 1).abs() < 0.02).float().mean() > 0.98  # the rest lies where the image is reflected

    def test_images_do_not_depend_on_the_maps_asked_for(self):
        dataset = cells()
        with_maps = sampler(dataset, ("components", "distance"), AugmentConfig()).batch(5)
        without = sampler(dataset, (), AugmentConfig()).batch(5)
        assert torch.equal(with_maps.images, without.images) and torch.equal(with_maps.target, without.target)
        assert without.maps == {}

    def test_complete_maps_need_only_what_is_stored(self):
        target = torch.ones(1, 1, 2, 2)
        stored = {"voronoi": as_tensor(np.full((1, 2, 2), 7, np.uint16))}
        assert complete_maps(("components",), stored, target)["components"].tolist() == [[[[7, 7], [7, 7]]]]

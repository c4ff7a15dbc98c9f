"""The synthetic generator against the published annotation of the real collection, and against its promises.

Expected numbers are those of `FNC_APPEARANCE.md` and the two CSV files beside it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cellray.data.synth import draw_image, draw_labels, synthesise
from cellray.data.synth.fields import expose, smooth_noise, upsample
from cellray.data.synth.layout import draw_count, draw_layout
from cellray.data.synth.paint import paint
from cellray.errors import DataError

NATIVE = {"width_px": 1600, "height_px": 1200, "scale": 1.0}
SMALL = {"width_px": 320, "height_px": 240, "scale": 0.5}
EIGHT = np.ones((3, 3), bool)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def published(shared: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    data = shared / "data"
    return pd.read_csv(data / "fnc_yellow_v1_per_image.csv"), pd.read_csv(data / "fnc_yellow_v1_objects.csv")


@pytest.fixture(scope="module")
def drawn() -> pd.DataFrame:
    """One row a component of 60 native label maps, its contour 2 px further out as in the published masks."""
    rows = []
    disk = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2
    for index in range(60):
        mask = draw_labels(rng(7, index), **NATIVE) > 0
        if mask.any():
            pieces, _ = ndimage.label(ndimage.binary_dilation(mask, disk), EIGHT)
            areas = np.bincount(pieces.ravel())[1:]
            boxes = [[s.stop - s.start for s in box] for box in ndimage.find_objects(pieces)]
            rows += [(index, area, height, width) for area, (height, width) in zip(areas, boxes, strict=True)]
    return pd.DataFrame(rows, columns=["image", "area", "height", "width"])


@pytest.fixture(scope="module")
def pictures() -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """A dozen fields of 900 x 700 px at native resolution."""
    return [draw_image(rng(11, index), width_px=900, height_px=700, scale=1.0) for index in range(12)]


def draw_tissue(generator: np.random.Generator) -> NDArray[np.uint8]:
    """A field without labelled cells: small fields hold more of them than real ones, which would lift its mean."""
    layout = draw_layout(generator, width_px=640, height_px=480, scale=1.0)
    light, hue = paint(generator, replace(layout, labels=np.zeros_like(layout.labels), cells=[]), 1.0)
    return expose(generator, light, hue)


def each_cell(pictures: list[tuple[NDArray[np.uint8], NDArray[np.int32]]]) -> Iterator[tuple[NDArray, NDArray]]:
    """Pixels (n, 3) of every cell, and the red of its surroundings 15 to 45 px away."""
    for image, labels in pictures:
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            near = tuple(slice(max(s.start - 45, 0), s.stop + 45) for s in (rows, columns))
            far = ndimage.distance_transform_edt(labels[near] == 0) > 15
            yield image[near][labels[near] == label].astype(float), image[near][..., 0][far]


def test_counts_follow_the_published_distribution(published):
    real = published[0]["n_components"].to_numpy()
    counts = np.array([draw_count(rng(i), field_area=1600 * 1200) for i in range(4000)])
    # a tenth more cells than components, since cells that touch are one component
    assert counts.mean() == pytest.approx(1.1 * real.mean(), rel=0.1)
    assert (counts == 0).mean() == pytest.approx((real == 0).mean(), abs=0.03)
    for share in (0.25, 0.5, 0.75, 0.9, 0.95):
        assert np.quantile(counts, share) == pytest.approx(1.1 * np.quantile(real, share), rel=0.2, abs=1)
    assert real.max() <= counts.max() <= 1.2 * real.max()


@pytest.mark.slow
def test_drawn_components_are_as_many_and_as_large_as_the_published_ones(published, drawn):
    images, objects = published
    counts = drawn.groupby("image").size().reindex(range(60), fill_value=0)
    assert counts.median() == pytest.approx(images["n_components"].median(), abs=1.5)
    assert counts.quantile(0.9) == pytest.approx(images["n_components"].quantile(0.9), rel=0.5)
    assert (counts == 0).mean() == pytest.approx((images["n_components"] == 0).mean(), abs=0.1)
    for share, area in {0.25: 713, 0.5: 1136, 0.75: 1838, 0.9: 2870}.items():  # README of the data
        assert drawn["area"].quantile(share) == pytest.approx(area, rel=0.25)
    for side, published_side in {"height": "bbox_height", "width": "bbox_width"}.items():
        for share in (0.25, 0.5, 0.75):
            assert drawn[side].quantile(share) == pytest.approx(objects[published_side].quantile(share), rel=0.2)


def test_drawn_cells_cover_as_much_of_the_image_as_the_published_ones(published, drawn):
    real = published[0]["covered_area_pct"]
    covered = drawn.groupby("image")["area"].sum().reindex(range(60), fill_value=0) / (1600 * 1200) * 100
    assert covered.mean() == pytest.approx(real.mean(), rel=0.3)
    assert covered.median() == pytest.approx(real.median(), rel=0.4)
    assert covered.quantile(0.9) == pytest.approx(real.quantile(0.9), rel=0.5)


def test_cells_are_as_bright_as_measured(pictures):
    inside = [(cell[:, 0], ring) for cell, ring in each_cell(pictures)]
    means = np.array([red.mean() for red, _ in inside])
    assert len(means) > 40
    assert np.quantile(means, [0.05, 0.5, 0.95]) == pytest.approx([55, 91, 134], rel=0.2)
    assert np.median([np.quantile(red, 0.99) for red, _ in inside]) == pytest.approx(194, rel=0.15)
    assert np.median([red.std() / red.mean() for red, _ in inside]) == pytest.approx(0.52, abs=0.12)
    assert max((red == 255).mean() for red, _ in inside) <= 0.02  # 0.5 % as measured, with room for one bad cell


def test_cells_stand_out_from_their_surroundings_as_measured(pictures):
    ratios = [
        np.median([cell[:, 0].mean() / max(np.median(ring), 1) for cell, ring in each_cell([picture])])
        for picture in pictures
        if picture[1].any()
    ]
    assert 4.8 < np.median(ratios) < 14.7


def test_light_falls_off_across_the_contour_as_measured(pictures):
    red_at: dict[int, list[NDArray]] = {-8: [], -4: [], -2: [], 2: [], 4: [], 8: []}
    for image, labels in pictures:
        if labels.any():
            signed = ndimage.distance_transform_edt(labels == 0) - ndimage.distance_transform_edt(labels > 0)
            for distance, found in red_at.items():
                found.append(image[..., 0][abs(signed - distance) < 1])
    profile = {distance: np.concatenate(found).mean() for distance, found in red_at.items()}
    measured = {-8: 110, -4: 82, -2: 63, 2: 31, 4: 20, 8: 13}
    assert profile == pytest.approx(measured, rel=0.25, abs=6)


def test_hue_belongs_to_the_image_and_green_gains_on_red_with_brightness(pictures):
    cells = np.concatenate([cell for cell, _ in each_cell(pictures)])
    red, green, blue = cells.T
    assert 0.4 < green.sum() / red.sum() < 0.85
    assert blue.sum() / red.sum() == pytest.approx(0.07, abs=0.015)
    assert (green[red > 180] / red[red > 180]).mean() > (green[red < 80] / np.maximum(red[red < 80], 1)).mean()
    hues = [np.mean([c[:, 1].sum() / c[:, 0].sum() for c, _ in each_cell([p])]) for p in pictures if p[1].any()]
    assert np.std(hues) > 0.05


@pytest.mark.slow
def test_background_and_noise_are_as_measured():
    images = [draw_tissue(rng(13, i)) for i in range(40)]
    medians = np.array([np.median(image[..., 0]) for image in images])
    assert np.median(medians) == pytest.approx(7, abs=2.5)
    assert (medians <= 8.5).mean() == pytest.approx(2 / 3, abs=0.15)
    assert np.mean([image[..., 0].mean() for image in images]) == pytest.approx(10.6, rel=0.35)
    noise: dict[tuple[int, int], list[float]] = {(2, 5): [], (5, 8): [], (8, 12): []}
    for image in images:
        red = image[..., 0].astype(np.float32)
        smooth = ndimage.gaussian_filter(red, 3)
        flat = ndimage.gaussian_gradient_magnitude(red, 5) < 0.15
        for (low, high), found in noise.items():
            here = flat & (smooth >= low) & (smooth < high)
            if here.sum() > 3000:
                found.append((red - smooth)[here].std())
    spread = [np.median(found) for found in noise.values()]
    assert spread == pytest.approx([0.6, 0.8, 1.0], rel=0.3)
    assert spread == sorted(spread)


def test_small_fields_hold_several_cells_and_some_are_empty():
    counts = [draw_labels(rng(17, i), **SMALL).max() for i in range(150)]
    assert 3 < np.mean(counts) < 8
    assert np.mean([n == 0 for n in counts]) == pytest.approx(0.18, abs=0.1)
    assert max(counts) <= 25  # one cell in 12 000 px of a native 640 x 480 field


def test_scale_shrinks_cells_and_not_the_noise():
    def median_area(scale: float) -> float:
        maps = [draw_labels(rng(19, i), width_px=800, height_px=600, scale=scale) for i in range(25)]
        return float(np.median(np.concatenate([np.bincount(m.ravel())[1:] for m in maps])))

    # a field of twice the side holds more cells, which are smaller then: not exactly a quarter
    assert median_area(0.5) == pytest.approx(median_area(1.0) / 4, rel=0.35)


def test_labels_are_numbered_from_one_and_each_is_one_piece(pictures):
    for _, labels in pictures:
        assert set(np.unique(labels)) == set(range(labels.max() + 1))
        assert all(ndimage.label(labels == k, EIGHT)[1] == 1 for k in range(1, labels.max() + 1))


def test_some_cells_touch(pictures):
    merged = sum(labels.max() - ndimage.label(labels > 0, EIGHT)[1] for _, labels in pictures)
    assert merged >= 2


def test_labels_alone_are_those_of_the_image():
    image, labels = draw_image(rng(23), **SMALL)
    assert image.shape == (240, 320, 3)
    assert image.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, draw_labels(rng(23), **SMALL))


def test_label_noise_moves_contours_and_drops_the_dimmest_but_leaves_the_picture():
    seed = next(i for i in range(50) if draw_labels(rng(i), **SMALL).max() >= 8)
    image, labels = draw_image(rng(seed), **SMALL)
    same, wide = draw_image(rng(seed), **SMALL, label_dilation_px=2)
    _, fewer = draw_image(rng(seed), **SMALL, unmarked_share=0.25)
    np.testing.assert_array_equal(image, same)
    np.testing.assert_array_equal(labels[labels > 0], wide[labels > 0])
    iou = (labels > 0).sum() / (wide > 0).sum()
    assert 0.6 < iou < 0.9  # 0.80 to 0.86 at full size, where pixels are finer
    assert fewer.max() == labels.max() - int(0.25 * labels.max())
    red = image[..., 0].astype(float)
    dropped = (labels > 0) & (fewer == 0)
    assert red[dropped].mean() < red[fewer > 0].mean()


def test_folder_holds_binary_masks_and_labels_of_every_image(tmp_path):
    seen = []
    synthesise(tmp_path / "set", n_trainval=3, n_test=2, seed=1, progress=lambda *a: seen.append(a), **SMALL)
    assert seen == [(i, 5) for i in range(1, 6)]
    for split, count in {"trainval": 3, "test": 2}.items():
        truths = tmp_path / "set" / split / "ground_truths"
        images = sorted((tmp_path / "set" / split / "images").glob("*.png"))
        assert len(images) == count
        for path in images:
            mask = np.asarray(Image.open(truths / "masks" / path.name))
            labels = np.asarray(Image.open(truths / "labels" / path.name))
            assert np.asarray(Image.open(path)).shape == (240, 320, 3)
            assert mask.dtype == np.uint8
            assert labels.dtype == np.uint16
            np.testing.assert_array_equal(mask, np.where(labels > 0, 255, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_same_seed_writes_same_bytes_whatever_the_number_of_images(tmp_path):
    for name, n_trainval, seed in (("a", 2, 3), ("b", 2, 3), ("more", 4, 3), ("other", 2, 4)):
        synthesise(tmp_path / name, n_trainval=n_trainval, n_test=1, seed=seed, **SMALL)
    a, b, more, other = (digests(tmp_path / name) for name in ("a", "b", "more", "other"))
    assert a == b
    assert a.items() <= more.items()
    assert not {v for k, v in a.items() if "/images/" in k} & set(other.values())


def test_label_noise_spares_the_test_set(tmp_path):
    synthesise(tmp_path / "clean", n_trainval=3, n_test=3, seed=5, **SMALL)
    synthesise(tmp_path / "noisy", n_trainval=3, n_test=3, seed=5, label_dilation_px=2, **SMALL)
    clean, noisy = digests(tmp_path / "clean"), digests(tmp_path / "noisy")
    changed = {k for k in clean if clean[k] != noisy[k]}
    assert changed
    assert all(k.startswith("trainval/ground_truths") for k in changed)


def test_folder_with_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="holds files already"):
        synthesise(tmp_path, n_trainval=1, n_test=0, seed=0, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "wrong", [{"width_px": 8}, {"scale": 0.0}, {"unmarked_share": 1.0}, {"label_dilation_px": -1}], ids=str
)
def test_impossible_sizes_are_named(wrong):
    with pytest.raises(DataError, match="got"):
        draw_image(rng(0), **{**SMALL, **wrong})


def test_small_image_is_quick():
    best = np.inf
    for index in range(6):
        start = time.process_time()
        draw_image(rng(29, index), **SMALL)
        best = min(best, time.process_time() - start)
    assert best < 0.1


def test_smooth_noise_keeps_its_spread():
    for sigma in (0.9, 3.0, 8.0):
        assert smooth_noise(rng(31), (400, 400), sigma).std() == pytest.approx(1, rel=0.12)


def test_upsampling_keeps_a_plane():
    grid = np.add.outer(np.arange(9.0), 2 * np.arange(11.0))
    fine = upsample(grid, (20, 24), 4.0)
    # the first output pixel lies on the second grid point
    expected = np.add.outer(np.arange(20) / 4 + 1, 2 * (np.arange(24) / 4 + 1))
    np.testing.assert_allclose(fine, expected, atol=1e-5)

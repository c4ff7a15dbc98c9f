"""Post-processing against hand-drawn masks and the same chain written with plain full-image filters."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage
from skimage.morphology import disk
from skimage.segmentation import watershed
from whole_image import whole_image_postprocess

from cellray.data.synth import draw_labels
from cellray.errors import CellrayError, ShapeError
from cellray.postprocess import (
    PUBLISHED_POINT,
    OperatingPoint,
    close_mask,
    components,
    fill_holes,
    find_components,
    open_mask,
    postprocess,
    split,
)
from cellray.postprocess.sheet import cut_out, lay_out

TOUCHING = np.ones((3, 3), dtype=bool)
PLAIN = OperatingPoint(opening=0, hole_area=0, min_area=0, watershed=False)


def slow_postprocess(probs: np.ndarray, point: OperatingPoint, diameter_px: float) -> np.ndarray:
    """Each step on the whole image with the library's own filters, each object on its own copy of the image."""
    sizes = point.in_pixels(diameter_px)
    mask = probs >= point.threshold
    if sizes.opening_radius > 0:
        footprint = disk(sizes.opening_radius)
        mask = ndimage.binary_dilation(ndimage.binary_erosion(mask, footprint, border_value=1), footprint)
        mask = ndimage.binary_erosion(ndimage.binary_dilation(mask, footprint), footprint, border_value=1)
    background, n_regions = ndimage.label(~mask)
    for hole in (background == number for number in range(1, n_regions + 1)):
        inside = not (hole[0].any() or hole[-1].any() or hole[:, 0].any() or hole[:, -1].any())
        if inside and hole.sum() < sizes.hole_area:
            mask = mask | hole
    components, n_components = ndimage.label(mask, TOUCHING)
    out, n_cells = np.zeros(mask.shape, dtype=np.int32), 0
    for component in (components == number for number in range(1, n_components + 1)):
        if component.sum() < sizes.min_area:
            continue
        markers, n_markers = component.astype(int), 1
        if point.watershed and not mask.all():
            distance = np.where(component, ndimage.distance_transform_edt(mask), 0)
            smoothed = ndimage.maximum_filter(distance, size=sizes.smoothing, mode="constant")
            highest = ndimage.maximum_filter(smoothed, size=sizes.peak_window, mode="constant")
            markers, n_markers = ndimage.label(component & (smoothed == highest), TOUCHING)
            markers = watershed(-distance, markers, connectivity=2, mask=component)
        out[component] = markers[component] + n_cells
        n_cells += n_markers
    return out


def random_case(seed: int) -> tuple[np.ndarray, OperatingPoint, float]:
    """A blobby map of any shape, an operating point and a diameter, often extreme."""
    rng = np.random.default_rng(seed)
    probs = ndimage.gaussian_filter(rng.random(rng.integers(1, 80, 2)), rng.uniform(0, 4))
    probs = (probs - probs.min()) / (np.ptp(probs) + 1e-9)
    point = OperatingPoint(
        threshold=rng.uniform(0, 1),
        opening=rng.choice([0, 0.075, 0.2]),
        hole_area=rng.choice([0, 0.04, 0.5]),
        min_area=rng.choice([0, 0.159]),
        watershed=rng.random() < 0.9,
        smoothing=rng.uniform(0, 1),
        peak_distance=rng.uniform(0, 1),
    )
    return probs.astype(np.float32), point, rng.uniform(3, 30)


def discs(shape: tuple[int, int], radius: float, *centres: tuple[float, float]) -> np.ndarray:
    y, x = np.indices(shape)
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 <= radius**2 for cy, cx in centres], axis=0).astype(np.float32)


def rings(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Rings within rings, discs in their holes, some beyond the border, and specks."""
    y, x = np.indices(shape)
    mask = rng.random(shape) < 0.002
    for _ in range(rng.integers(1, 8)):
        distance = np.hypot(y - rng.uniform(-10, shape[0] + 10), x - rng.uniform(-10, shape[1] + 10))
        radius = rng.uniform(2, 60)
        mask |= (distance < radius) & (distance > radius - rng.uniform(1, 15))
    return mask.astype(float)


def touching_boxes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    probs = (rng.random(shape) < rng.choice([0, 0.01, 0.1])).astype(float)
    for _ in range(rng.integers(1, 12)):
        y, x, height, width = rng.integers(0, [*shape, 25, 25])
        probs[y : y + height, x : x + width] = 1
    return probs


def blobs(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    probs = ndimage.gaussian_filter(rng.random(shape), rng.uniform(0, 5))
    return ((probs - probs.min()) / (np.ptp(probs) + 1e-9)) ** rng.choice([1, 3])


def few_blobs_and_nan(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    probs = ndimage.gaussian_filter((rng.random(shape) > 0.995).astype(float), rng.uniform(1, 6))
    return np.where(rng.random(shape) < 0.01, np.nan, probs / (probs.max() + 1e-9))


def noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return (rng.random(shape) > rng.choice([0.5, 0.9, 0.99, 0.999])).astype(float)


def one_value(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.full(shape, rng.choice([0, 1, np.nan]))


MASKS = (rings, touching_boxes, blobs, few_blobs_and_nan, noise, one_value)


def odd_case(seed: int) -> tuple[np.ndarray, OperatingPoint, float]:
    """A map of any kind in `MASKS` and size up to 260 px, with settings up to extremes."""
    rng = np.random.default_rng(seed)
    probs = MASKS[seed % len(MASKS)](rng, tuple(rng.integers(1, rng.choice([12, 80, 260]), 2)))
    point = OperatingPoint(
        threshold=rng.choice([0, 0.3, 0.5, 0.6, 0.8, 1]),
        opening=rng.choice([0, 0.075, 0.2, 0.5]),
        hole_area=rng.choice([0, 0.04, 0.5, 5]),
        min_area=rng.choice([0, 0.02, 0.159]),
        watershed=rng.random() < 0.8,
        smoothing=rng.uniform(0, 1),
        peak_distance=rng.uniform(0, 1),
    )
    return probs.astype(np.float32), point, float(rng.choice([3, 8, 20, 40]))


def fnc_like(seed: int, *, width: int = 1600, height: int = 1200, noise: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cells = draw_labels(rng, width_px=width, height_px=height) > 0
    blurred = ndimage.gaussian_filter(cells.astype(np.float32), 2)
    return np.clip(blurred + rng.normal(0, noise, blurred.shape), 0, 1).astype(np.float32)


def test_published_point_has_the_published_pixel_sizes():
    assert PUBLISHED_POINT.threshold == 0.875
    assert PUBLISHED_POINT.in_pixels(40) == (3, 50, 200, 30, 40)


@pytest.mark.parametrize("seed", range(250))
def test_equals_the_obvious_version(seed):
    probs, point, diameter_px = random_case(seed)
    fast = postprocess(probs, point, diameter_px=diameter_px)
    np.testing.assert_array_equal(fast, slow_postprocess(probs, point, diameter_px))
    assert fast.dtype == np.int32
    assert np.unique(np.append(fast, 0)).tolist() == list(range(fast.max(initial=0) + 1))


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_obvious_version_on_touching_cells(seed):
    rng = np.random.default_rng(seed)
    cells = discs((120, 150), 10, *rng.uniform(0, 120, (25, 2)))
    np.testing.assert_array_equal(
        postprocess(cells, PUBLISHED_POINT, diameter_px=20), slow_postprocess(cells, PUBLISHED_POINT, 20)
    )


@pytest.mark.parametrize("chunk", [*range(6), *(pytest.param(k, marks=pytest.mark.slow) for k in range(6, 40))])
@pytest.mark.parametrize("in_boxes", [True, False], ids=["always in boxes", "as it pays"])
@pytest.mark.slow
def test_boxes_change_nothing(chunk, in_boxes, monkeypatch):
    if in_boxes:
        monkeypatch.setattr(components, "lay_out", cut_out)
    for seed in range(60 * chunk, 60 * chunk + 60):
        probs, point, diameter_px = odd_case(seed)
        expected = whole_image_postprocess(probs, point, diameter_px=diameter_px)
        np.testing.assert_array_equal(postprocess(probs, point, diameter_px=diameter_px), expected, str(seed))


@pytest.mark.parametrize("seed", [*range(20), 2984, 8765, 18637])  # the last ones tell windows apart by one pixel
def test_peaks_at_the_edge_of_a_window_are_found(seed):
    rng = np.random.default_rng(seed)
    probs = np.zeros(rng.integers(6, 40, 2))
    for _ in range(rng.integers(1, 5)):
        probs = np.maximum(probs, discs(probs.shape, rng.uniform(1, 8), rng.uniform(0, probs.shape)))
    point = PLAIN.model_copy(update={"watershed": True, "smoothing": rng.uniform(), "peak_distance": rng.uniform()})
    diameter_px = float(rng.integers(4, 24))
    expected = whole_image_postprocess(probs, point, diameter_px=diameter_px)
    np.testing.assert_array_equal(postprocess(probs, point, diameter_px=diameter_px), expected)


@pytest.mark.parametrize("threshold", [0.12, 0.5, 0.875])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_boxes_change_nothing_on_images_like_fnc(seed, threshold):
    probs, point = fnc_like(seed), OperatingPoint(threshold=threshold)
    assert lay_out(probs >= threshold, 3).mask.size < probs.size / 2
    expected = whole_image_postprocess(probs, point, diameter_px=40)
    np.testing.assert_array_equal(postprocess(probs, point, diameter_px=40), expected)


def test_the_sheet_holds_what_a_disk_fits_into_and_leaves_out_the_rest():
    mask = discs((600, 800), 20, (100, 100), (400, 700), (300, 0)) > 0
    cells = mask.copy()
    # at the border a speck may be what is left of a disk
    mask[24:-24, 24:-24] |= np.random.default_rng(0).random((552, 752)) < 0.001
    sheet = lay_out(mask, 3)
    back = sheet.to_image(sheet.mask.astype(np.int32)) > 0
    assert (back & ~mask).sum() == 0
    assert (cells & ~back).sum() == 0
    assert len(sheet.slots) == 3
    assert sheet.mask.size < mask.size / 10


def test_a_small_or_full_image_is_its_own_sheet():
    for mask in (np.eye(100) > 0, np.random.default_rng(0).random((500, 500)) < 0.3, np.ones((500, 500), bool)):
        sheet = lay_out(mask, 3)
        assert sheet.mask is mask
        assert sheet.inside is None


def test_a_ring_and_what_lies_in_it_share_a_box():
    y, x = np.indices((400, 500))
    distance = np.hypot(y - 200, x - 250)
    mask = ((distance > 90) & (distance < 100)) | (distance < 10)
    (slot,) = cut_out(mask, 3).slots
    assert (slot.height, slot.width) >= (200, 200)


@pytest.mark.slow
def test_stages_called_apart_give_what_the_chain_gives():
    probs = fnc_like(7, width=640, height=480)
    point = OperatingPoint(threshold=0.6)
    sizes = point.in_pixels(40)
    windows = [(sizes.smoothing, sizes.peak_window), (14, 24), (1, 3)]
    found = find_components(probs, point.threshold, sizes)
    for min_area in (0, 200, 800, 10**6):
        kept = found.at_least(min_area)
        assert (kept.areas >= min_area).all()
        for (smoothing, peak_window), pieces in zip(windows, split(kept, windows), strict=True):
            changed = {"min_area": min_area / (np.pi / 4 * 40**2), "smoothing": smoothing / 40}
            same = point.model_copy(update={**changed, "peak_distance": peak_window / 40})
            labels = kept.sheet.to_image(pieces.labels)
            np.testing.assert_array_equal(labels, whole_image_postprocess(probs, same, diameter_px=40))
            whole = kept.sheet.to_image(kept.labels)
            for piece, owner in enumerate(pieces.owners, start=1):
                assert (whole[labels == piece] == owner).all()
            assert len(pieces.owners) == labels.max()


@pytest.mark.parametrize("seed", range(60))
def test_every_component_keeps_a_cell(seed):
    probs, point, diameter_px = random_case(seed)
    whole = postprocess(probs, point.model_copy(update={"watershed": False}), diameter_px=diameter_px)
    split = postprocess(probs, point.model_copy(update={"watershed": True}), diameter_px=diameter_px)
    np.testing.assert_array_equal(split > 0, whole > 0)
    pairs = np.unique(np.stack([whole.ravel(), split.ravel()]), axis=1)
    assert len(set(pairs[1])) == pairs.shape[1]  # no piece lies in two components


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
def test_morphology_equals_scipy(radius):
    mask = ndimage.gaussian_filter(np.random.default_rng(radius).random((40, 55)), 1) > 0.5
    footprint, inside = disk(radius), np.s_[2 * radius : -2 * radius, 2 * radius : -2 * radius]
    np.testing.assert_array_equal(open_mask(mask, radius)[inside], ndimage.binary_opening(mask, footprint)[inside])
    np.testing.assert_array_equal(close_mask(mask, radius)[inside], ndimage.binary_closing(mask, footprint)[inside])


def test_threshold_is_inclusive():
    probs = np.array([[0.5, 0.499, 0.0, 0.875]], dtype=np.float32)
    assert postprocess(probs, PLAIN, diameter_px=10).tolist() == [[1, 0, 0, 2]]
    assert postprocess(probs, PLAIN.model_copy(update={"threshold": 0.875}), diameter_px=10).tolist() == [[0, 0, 0, 1]]


def test_opening_removes_a_filament_and_leaves_a_cell_at_the_border():
    probs = discs((60, 60), 12, (30, 0))
    probs[45:47, :] = 1
    opened = postprocess(probs, OperatingPoint(min_area=0), diameter_px=24)
    assert opened.max() == 1
    assert (opened > 0).sum() == pytest.approx(discs((60, 60), 12, (30, 0)).sum(), rel=0.03)


def test_only_small_holes_are_filled_and_never_a_bay_at_the_border():
    mask = np.ones((12, 20), dtype=bool)
    mask[0, 2] = mask[3:5, 3:5] = mask[3:6, 10:13] = False
    filled = fill_holes(mask, 9)
    assert filled[3:5, 3:5].all()
    assert not filled[3:6, 10:13].any()
    assert not filled[0, 2]
    assert fill_holes(mask, 10).sum() == mask.size - 1


def test_an_object_as_large_as_the_limit_stays():
    probs = np.zeros((30, 50), dtype=np.float32)
    probs[2:22, 2:12] = 1  # 200 px, the published limit at 40 px
    probs[2:22, 20:30] = 1
    probs[2, 20] = 0
    point = PUBLISHED_POINT.model_copy(update={"opening": 0})
    assert np.unique(postprocess(probs, point, diameter_px=40)[:, :15]).tolist() == [0, 1]
    assert not postprocess(probs, point, diameter_px=40)[:, 15:].any()


def test_watershed_splits_two_cells_that_touch_and_not_one_alone():
    pair = discs((120, 180), 20, (60, 60), (60, 98))
    split = postprocess(pair, OperatingPoint(), diameter_px=40)
    assert split.max() == 2
    assert {split[60, 78], split[60, 80]} == {1, 2}  # the cut is at the neck, x = 79
    assert postprocess(discs((120, 180), 20, (60, 60)), OperatingPoint(), diameter_px=40).max() == 1
    assert postprocess(pair, OperatingPoint(watershed=False), diameter_px=40).max() == 1


def test_a_small_cell_next_to_a_large_one_is_not_lost():
    # two components: the published peak search over the whole image would find no peak in the small one
    probs = np.maximum(discs((90, 120), 20, (45, 40)), discs((90, 120), 6, (45, 68)))
    found = postprocess(probs, OperatingPoint(opening=0, min_area=0), diameter_px=40)
    assert found[45, 68] > 0
    assert found.max() == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (9, 11), (0, 5)])
@pytest.mark.parametrize("fill", [0.0, 1.0, np.nan])
@pytest.mark.parametrize("diameter_px", [1, 6, 500])
def test_images_of_one_value(shape, fill, diameter_px):
    point = OperatingPoint(min_area=0)
    found = postprocess(np.full(shape, fill, dtype=np.float32), point, diameter_px=diameter_px)
    assert found.shape == shape
    assert (found == int(fill == 1.0)).all()


def test_tiny_cells_are_found():
    found = postprocess(discs((40, 40), 3, (10, 10), (10, 25), (28, 18)), OperatingPoint(), diameter_px=6)
    assert found.max() == 3


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match=r"\(H, W\).*\(1, 4, 4\)"):
        postprocess(np.zeros((1, 4, 4)), PUBLISHED_POINT, diameter_px=40)
    for diameter_px in (0, -3, float("nan"), float("inf")):
        with pytest.raises(CellrayError, match="diameter_px"):
            postprocess(np.zeros((4, 4)), PUBLISHED_POINT, diameter_px=diameter_px)
    with pytest.raises(ValidationError, match="thresold"):
        OperatingPoint(thresold=0.3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        OperatingPoint(threshold=1.5)

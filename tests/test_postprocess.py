"""Post-processing against hand-drawn masks and the same chain written with plain full-image filters."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage
from skimage.morphology import disk
from skimage.segmentation import watershed

from cellray.errors import CellrayError, ShapeError
from cellray.postprocess import (
    PUBLISHED_POINT,
    OperatingPoint,
    close_mask,
    fill_holes,
    open_mask,
    postprocess,
)

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

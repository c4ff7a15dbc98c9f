"""The overlay shows every kind of cell in its colour, whatever the size of the image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cellray.errors import ShapeError
from cellray.overlay import OVERLAY_COLOURS, draw_overlay, encode_png


def scene(height: int, width: int, cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A gray image with a hit at the top left, a missed cell at the top right and a spurious one at the bottom left."""
    true, pred = np.zeros((2, height, width), dtype=np.int32)
    true[2 : 2 + cell, 2 : 2 + cell] = 1
    true[2 : 2 + cell, -2 - cell : -2] = 2
    pred[2 : 2 + cell, 2 : 2 + cell] = 9
    pred[-2 - cell : -2, 2 : 2 + cell] = 4
    image = np.random.default_rng(0).integers(0, 60, (height, width, 1), dtype=np.uint8)
    return image, true, pred


def painted(picture: np.ndarray, kind: str) -> np.ndarray:
    return (picture == tuple(bytes.fromhex(OVERLAY_COLOURS[kind][1:]))).all(axis=2)


@pytest.mark.parametrize(
    ("size", "shown"), [((1200, 1600), (480, 640)), ((256, 256), (512, 512)), ((200, 640), (200, 640))]
)
def test_each_kind_is_where_it_belongs(size, shown):
    picture = draw_overlay(*scene(*size, cell=40))
    assert picture.shape == (*shown, 3)
    assert picture.dtype == np.uint8
    half_y, half_x = shown[0] // 2, shown[1] // 2
    corners = {"hit": np.s_[:half_y, :half_x], "missed": np.s_[:half_y, half_x:], "spurious": np.s_[half_y:, :half_x]}
    for kind, corner in corners.items():
        seen = painted(picture, kind)
        assert seen[corner].sum() == seen.sum() > 0


def test_lines_are_two_pixels_wide():
    picture = draw_overlay(*scene(640, 640, cell=40))
    across = painted(picture, "hit")[20]  # enters the cell at x = 2 and leaves it at 42
    assert np.flatnonzero(across).tolist() == [1, 2, 41, 42]


def test_a_one_pixel_cell_survives_reduction():
    image, true, pred = scene(1200, 1600, cell=1)
    picture = draw_overlay(image, true, pred)
    assert all(painted(picture, kind).any() for kind in OVERLAY_COLOURS)


@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,)])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (701, 2)])
def test_any_image_is_drawn(size, channels):
    empty = np.zeros(size, dtype=np.uint16)
    picture = draw_overlay(np.full(size + channels, 7, dtype=np.uint8), empty, empty)
    assert picture.shape[2] == 3
    assert max(picture.shape) <= 640


def test_a_dim_image_is_stretched_and_keeps_its_hue():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[16:48, 16:48] = (40, 20, 0)
    empty = np.zeros((64, 64), dtype=np.int32)
    assert draw_overlay(image, empty, empty, max_side_px=64)[32, 32].tolist() == [255, 127, 0]


def test_png_holds_the_picture():
    picture = draw_overlay(*scene(80, 60, cell=10))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(picture)))), picture)


def test_sizes_must_agree():
    image, true, pred = scene(30, 40, cell=4)
    with pytest.raises(ShapeError, match=r"\(20, 40, 1\)"):
        draw_overlay(image[:20], true, pred)

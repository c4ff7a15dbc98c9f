"""Cells marked in ImageJ and Cellpose become label images; nothing in their files is run."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_here
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi
from tifffile import imread

from cellray.data import find_marked, read_foreign
from cellray.errors import DataError

MASKS = np.array([[0, 0, 0, 0], [1, 1, 0, 5], [1, 1, 0, 5]], np.uint16)
"""Two cells; numbered anew they are 1 and 2."""


def region(kind: ROI_TYPE, left: int, top: int, right: int, bottom: int) -> ImagejRoi:
    found = ImagejRoi()
    found.roitype, found.left, found.top, found.right, found.bottom = kind, left, top, right, bottom
    return found


def polygon(*points: tuple[float, float]) -> ImagejRoi:
    return ImagejRoi.frompoints(np.array(points, np.float32))


def regions(file: Path, *rois: ImagejRoi) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for i, roi in enumerate(rois):
            archive.writestr(f"{i:04}.roi", roi.tobytes())
    return file


def image(file: Path, width: int = 8, height: int = 6) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 90, (height, width), dtype=np.uint8)).save(file)
    return file


def seg(file: Path, **changed: Any) -> Path:
    """A file as Cellpose leaves it."""
    content = {
        "outlines": MASKS * 0,
        "masks": MASKS,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(2, bool),
        "filename": "a.tif",
        "flows": [np.zeros((3, 4), np.float32), [np.ones(3, np.uint8)]],
        "est_diam": np.float64(12.5),
    }
    np.save(file, np.array(content | changed, dtype=object), allow_pickle=True)
    return file


def labels_at(path: Path) -> tuple[np.ndarray, list[str]]:
    (marked,) = find_marked(path)
    return read_foreign(marked)


def test_regions_cover_the_pixels_whose_centres_they_enclose(tmp_path):
    image(tmp_path / "a.tif")
    regions(
        tmp_path / "a.zip",
        region(ROI_TYPE.RECT, 1, 0, 3, 2),  # columns 1 and 2, rows 0 and 1
        polygon((4, 3), (8, 3), (8, 6), (4, 6)),  # columns 4 to 7, rows 3 to 5
        region(ROI_TYPE.OVAL, 0, 2, 4, 6),  # 4 x 4 pixels; the centres of its corners are 2.12 from the middle, above 2
        region(ROI_TYPE.LINE, 0, 0, 5, 5),
    )
    labels, notes = labels_at(tmp_path)
    expected = np.zeros((6, 8), int)
    expected[0:2, 1:3], expected[3:6, 4:8], expected[2:6, 0:4] = 1, 2, 3
    expected[[2, 2, 5, 5], [0, 3, 0, 3]] = 0
    assert labels.tolist() == expected.tolist()
    assert notes == ["1 lines, points or angles enclose nothing and are left out"]


def test_of_overlapping_regions_the_later_has_the_pixels(tmp_path):
    image(tmp_path / "a.tif")
    regions(tmp_path / "a.zip", region(ROI_TYPE.RECT, 0, 0, 4, 4), region(ROI_TYPE.RECT, 2, 2, 6, 6))
    labels, notes = labels_at(tmp_path)
    assert [np.count_nonzero(labels == k) for k in (1, 2)] == [12, 16]
    assert notes == ["regions overlap in 4 pixels: these count to the later one"]


@pytest.mark.parametrize(
    ("picture", "marks", "target"),
    [
        ("a.tif", "a.zip", "a_label.tif"),
        ("a.tif", "a_ROIs.zip", "a_label.tif"),
        ("a.tif", "A-RoiSet.zip", "a_label.tif"),
        ("only.png", "RoiSet.zip", "only_label.tif"),
        ("images/a.tif", "rois/a.zip", "labels/a.tif"),
        ("images/a.tif", "images/a.roi", "labels/a.tif"),
    ],
)
def test_regions_find_their_image_and_labels_a_place_where_studies_look(picture, marks, target, tmp_path):
    image(tmp_path / picture)
    (tmp_path / marks).parent.mkdir(exist_ok=True)
    roi = region(ROI_TYPE.RECT, 1, 1, 3, 3)
    if marks.endswith(".roi"):
        (tmp_path / marks).write_bytes(roi.tobytes())
    else:
        regions(tmp_path / marks, roi)
    (marked,) = find_marked(tmp_path)
    assert (marked.image, marked.target) == (tmp_path / picture, tmp_path / target)
    assert read_foreign(marked).labels.sum() == 4


def test_cellposes_masks_are_read(tmp_path):
    seg(tmp_path / "a_seg.npy")
    labels, notes = labels_at(tmp_path)
    assert (labels.tolist(), notes) == ([[0, 0, 0, 0], [1, 1, 0, 2], [1, 1, 0, 2]], [])


class Planted:
    """Leaves a file if it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_nothing_in_a_file_is_run(tmp_path):
    seg(tmp_path / "a_seg.npy", model_path=Planted(tmp_path / "ran"))
    assert labels_at(tmp_path)[0].max() == 2
    seg(tmp_path / "a_seg.npy", masks=Planted(tmp_path / "ran"))
    with pytest.raises(DataError, match="save its masks as PNG or TIFF in Cellpose"):
        labels_at(tmp_path)
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "a_seg.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists()  # so it would have been


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a_seg.npy", b"no such thing", "no masks can be read"),
        ("a.zip", b"PK\x03\x04", "no cells marked in Cellpose or ImageJ"),
        ("a.roi", b"Iout" + bytes(10), "no region of ImageJ"),
    ],
)
def test_what_is_damaged_is_named(name, content, words, tmp_path):
    image(tmp_path / "a.tif")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        labels_at(tmp_path)


def test_masks_of_a_volume_and_of_fractions_are_refused(tmp_path):
    seg(tmp_path / "a_seg.npy", masks=np.stack([MASKS, MASKS]))
    with pytest.raises(DataError, match="masks of 3 dimensions"):
        labels_at(tmp_path)
    seg(tmp_path / "a_seg.npy", masks=MASKS.astype(float))
    with pytest.raises(DataError, match="no array of whole numbers"):
        labels_at(tmp_path)


def test_an_image_that_is_missing_and_labels_that_are_there_are_named(tmp_path):
    regions(tmp_path / "a.zip", region(ROI_TYPE.RECT, 1, 1, 3, 3))
    with pytest.raises(DataError, match=r"isn't beside it; expected a\.tif"):
        find_marked(tmp_path)
    image(tmp_path / "a.tif")
    image(tmp_path / "a_label.tif")
    with pytest.raises(DataError, match=r"a_label\.tif is there already; name another folder with --out"):
        find_marked(tmp_path)
    (marked,) = find_marked(tmp_path, tmp_path / "elsewhere")
    assert marked.target == tmp_path / "elsewhere" / "a.tif"


def test_init_names_the_command_and_takes_what_it_makes(tmp_path):
    """A folder as Cellpose leaves it: refused with the command, which makes it one that can be read."""
    for name in "abc":
        image(tmp_path / "mine" / f"{name}.tif", 4, 3)
        seg(tmp_path / "mine" / f"{name}_seg.npy")
    told = run_here("init", "mine", cwd=tmp_path, env={})
    assert told.returncode == 2
    assert "a_seg.npy and 2 more: cells marked in Cellpose" in told.stderr
    command = told.stderr.partition("make label images of them with: ")[2].split(";")[0].split()
    done = run_here(*command[1:], cwd=tmp_path, env={})
    assert done.returncode == 0, done.stderr
    assert "a_seg.npy: 2 cells, written to " in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: cellray init {tmp_path / 'mine'}"
    np.testing.assert_array_equal(imread(tmp_path / "mine" / "b_label.tif") > 0, MASKS > 0)
    checked = run_here("data", "check", "mine", cwd=tmp_path, env={})
    assert "3 images" in checked.stdout and "6 cells" in checked.stdout

"""Notes about masks that can't be right, and about pictures that are in training and test."""

from __future__ import annotations

import numpy as np
import pytest
from scenes import N_CELLS, mask_saved, save_all, save_png, save_tiff, scene, white
from skimage.segmentation import find_boundaries
from tiny_study import tiny_study

from cellray.data import Reading, check_dataset, open_dataset, preview_dataset, twin_notes
from cellray.data.duplicates import look_of, twins
from cellray.data.plausible import contrast, doubts, signs_of
from cellray.errors import DataError
from cellray.study import DatasetConfig
from cellray.trial import Sets


def with_void(labels: np.ndarray) -> np.ndarray:
    """A strip of 255 over the left border, cells above it."""
    return np.where((np.arange(labels.shape[1]) < 8) & (labels == 0), 255, labels).astype(np.uint8)


def with_specks(labels: np.ndarray) -> np.ndarray:
    mask = white(labels)
    mask[::19, ::19] = 255
    return mask


def with_border(labels: np.ndarray) -> np.ndarray:
    """Numbers of cells, and one label for all borders."""
    return np.where(find_boundaries(labels, mode="inner"), N_CELLS + 1, labels).astype(np.uint8)


def one_number_twice(labels: np.ndarray) -> np.ndarray:
    """The two cells furthest from each other share a number."""
    centres = np.array([np.argwhere(labels == n).mean(axis=0) for n in range(1, N_CELLS + 1)])
    apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    a, b = np.unravel_index(apart.argmax(), apart.shape)
    return np.where(labels == a + 1, b + 1, labels).astype(np.uint8)


DOUBTFUL = {
    "one number twice": (
        lambda k, m: one_number_twice(m),
        "labels",
        "one label, many pieces",
        "11 label(s) lie in 12 distant pieces",
    ),
    "inverted": (lambda k, m: 255 - white(m), "masks", "signal above half", "86% of the pixels are marked"),
    "another image's": (lambda k, m: white(scene(k + 1)[1]), "masks", "cells not brighter", "no brighter"),
    "turned": (lambda k, m: np.rot90(white(m)).copy(), "masks", "cells not brighter", "turned"),
    "shifted": (lambda k, m: np.roll(white(m), 14, 1), "masks", "cells not brighter", "shifted"),
    "classes": (
        lambda k, m: np.where(m > 0, m % 2 + 1, 0).astype(np.uint8),
        "labels",
        "one label, many pieces",
        "2 label(s) lie in 12 distant pieces",
    ),
    "outlines": (
        lambda k, m: white(find_boundaries(m, mode="inner")),
        "masks",
        "outlines, not filled",
        "if the mask holds outlines, fill them",
    ),
    "borders as a label": (
        lambda k, m: with_border(m),
        "labels",
        "one label touches most",
        "one label touches 100% of the others",
    ),
    "void": (lambda k, m: with_void(m), "labels", "a label far above", "set data.ignore: 255"),
    "specks": (lambda k, m: with_specks(m), "masks", "sizes differ 100-fold", "are there specks?"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_wrong_mask_is_named_and_drawn(tmp_path, case):
    change, folder, short, words = DOUBTFUL[case]

    def save(root, k, image, labels):
        save_png(root / "images" / f"a{k}.png", image)
        save_png(
            root / folder / f"a{k}.png",
            change(k, labels) if k in (1, 2) else white(labels) if folder == "masks" else labels,
        )

    settings = DatasetConfig(name="cells", path=str(save_all(tmp_path, save)), diameter_px=12.0)
    report = check_dataset(settings)
    assert report.is_usable
    (note,) = (n for n in report.notes if words in n)
    assert note.startswith("in 'a1' ")
    assert note.endswith("(and alike in 1 more of 4 images: 'a2')")
    data = open_dataset(settings, channels=1, normalise="none", cache_dir=tmp_path / "cache")
    assert f"dataset 'cells': {note}" in data.notes
    (doubt,) = (d for d in data.doubts if d.short == short)
    assert doubt.images == [1, 2]
    captions = preview_dataset(data, 4)[:16].astype(int)
    red = (captions[..., 0] - captions[..., 1] > 60).any(axis=0)
    assert red[:324].any() and red[324:648].any() and not red[648:].any()  # the captions of the first two pictures


def test_right_masks_raise_no_doubt():
    signs = [signs_of(*scene(k)) for k in range(8)]
    assert doubts(signs) == []
    assert [s["labels"] for s in signs] == [N_CELLS] * 8


def test_an_image_of_specks_among_others_of_cells():
    specks = np.zeros((96, 96), np.uint8)
    specks[::19, ::19] = np.arange(1, 37).reshape(6, 6)
    signs = [signs_of(*scene(k)) for k in range(4)]
    area = int(signs[0]["area"])
    assert area > 100
    (doubt,) = doubts([*signs, signs_of(specks * 5 + 20, specks)])
    assert (doubt.short, doubt.images) == ("cells of another size", [4])
    assert doubt.sentence.startswith(f"the median cell has 1 px, in the whole set {area} px")


def test_a_dense_culture_raises_no_doubt():
    """Squares that fill 70 % of the image and touch each other."""
    labels = np.zeros((96, 96), np.uint8)
    labels[8:88, 8:88] = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((16, 16))).astype(np.uint8)
    assert doubts([signs_of(np.where(labels > 0, 150, 10).astype(np.uint8), labels)]) == []


def test_a_cell_in_two_parts_at_the_edge_raises_no_doubt():
    image, labels = scene(0)
    labels[8:16, :2], labels[40:48, :2] = 13, 13
    image[labels == 13] = 170
    assert signs_of(image, labels)["scattered"] == 0


def test_contrast_by_hand():
    """Cells at 10, a ring of two pixels at 0: 9 pixels of 10 among 49, so the spread is 10 sqrt(9 * 40) / 49."""
    labels = np.zeros((11, 11), np.uint8)
    labels[4:7, 4:7] = 1
    assert contrast(labels * 10, labels) == pytest.approx(10 / (10 * np.sqrt(9 * 40) / 49))
    assert contrast(labels * 10, labels * 0) is None


class TestTwins:
    def test_the_same_field_is_known_by_a_new_contrast_and_a_new_depth(self):
        image, other = scene(0)[0], scene(1)[0]
        brighter = (image.astype(np.uint16) * 200 + 300).astype(np.uint16)
        blurred = np.clip(image * 0.8 + np.random.default_rng(0).normal(9, 3, image.shape), 0, 255).astype(np.uint8)
        first = [look_of(image)]
        found = twins(first, [look_of(p) for p in (other, brighter, image.copy(), blurred)])
        assert [(t.second, t.is_identical) for t in found] == [(1, False), (2, True), (3, False)]

    def test_dark_images_are_not_alike(self):
        rng = np.random.default_rng(0)
        dark = [look_of(rng.normal(10, 3, (200, 300)).clip(0, 255).astype(np.uint8)) for _ in range(20)]
        assert twins(dark[:10], dark[10:]) == []
        flat = look_of(np.zeros((50, 50), np.uint8))
        assert twins([flat], [flat]) == []

    def test_the_note_names_a_pair(self):
        looks = {f"t{k}": look_of(scene(k)[0]) for k in range(3)}
        (note,) = twin_notes("training", looks, "test", {"new": look_of(scene(9)[0]), "old": looks["t2"]})
        assert note.startswith("1 of 2 test images show what a training image shows: 'old' is identical to 't2'")
        assert twin_notes("training", looks, "test", {"new": look_of(scene(9)[0])}) == []

    def test_a_study_and_a_check_say_it(self, tmp_path):
        for part, ids in {"trainval": (0, 1, 2, 3), "test": (1, 8)}.items():
            for k in ids:
                save_png(tmp_path / part / "images" / f"{part}{k}.png", scene(k)[0])
                save_png(tmp_path / part / "masks" / f"{part}{k}.png", white(scene(k)[1]))
        words = "1 of 2 test images show what a training image shows: 'test1' is identical to 'trainval1'"
        assert any(words in n for n in check_dataset(DatasetConfig(name="x", path=str(tmp_path))).notes)
        study = tiny_study(tmp_path)
        assert any(words in n for n in Sets.open(study.data).notes(study.data))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache of its own"))


def test_a_study_without_a_cell_in_one_of_its_parts_is_refused(tmp_path):
    for part, ids in {"trainval": (0, 1, 2, 3), "test": (4, 5)}.items():
        for k in ids:
            save_png(tmp_path / part / "images" / f"{part}{k}.png", scene(k)[0])
            save_png(tmp_path / part / "masks" / f"{part}{k}.png", white(scene(k)[1]) * (part == "trainval"))
    study = tiny_study(tmp_path)
    with pytest.raises(DataError, match=r"its 2 test image\(s\) hold no cell at all"):
        Sets.open(study.data).check(study.trials())


def test_channels_that_differ_are_compared(tmp_path):
    def save(root, k, image, labels):
        save_tiff(root / "images" / f"a{k}.tif", np.dstack([image * 0, image // 9, image]), photometric="rgb")
        save_png(root / "masks" / f"a{k}.png", white(labels))

    found = check_dataset(DatasetConfig(name="x", path=str(save_all(tmp_path, save)))).channel_contrast
    assert found[0] == 0 and found[2] > 1.5


def test_ignored_pixels_leave_no_doubt(tmp_path):
    root = save_all(tmp_path, mask_saved(lambda p, m: save_png(p, with_void(m)), "labels/a{k}.png"))
    report = check_dataset(DatasetConfig(name="x", path=str(root)), reading=Reading(ignore=255))
    assert report.notes == []
    assert report.n_objects == 4 * N_CELLS

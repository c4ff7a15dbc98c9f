"""Readers, the cache, splits and checks, on small files drawn here and on the real packs."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellray.data import (
    check_dataset,
    image_from_bytes,
    list_images,
    opening,
    preview_dataset,
    split_dataset,
)
from cellray.data import open_dataset as open_any
from cellray.errors import DataError


def config(path: Path | None, **changes):
    """The settings of one dataset as a study has them, without the study."""
    settings = {
        "name": "cells",
        "path": None if path is None else str(path),
        "format": "auto",
        "synthetic": None,
        "where": {},
        "where_not": {},
        "groups": None,
        "diameter_px": None,
        "diameter_um": None,
        "pixel_size_um": None,
        "max_value": None,
        "rescale": False,
    }
    return SimpleNamespace(**(settings | changes))


@pytest.fixture
def open_dataset(tmp_path_factory):
    """`open_dataset` with a cache folder of the test's own."""
    cache_dir = tmp_path_factory.mktemp("cache")

    def opened(path, *, channels=3, normalise="none", cache_dir=cache_dir, target_diameter_px=None, **changes):
        require = changes.pop("require_diameter", False)
        return open_any(
            config(path, **changes),
            channels=channels,
            normalise=normalise,
            target_diameter_px=target_diameter_px,
            require_diameter=require,
            cache_dir=cache_dir,
        )

    opened.cache_dir = cache_dir
    return opened


TWO_SQUARES = np.zeros((24, 32), np.uint8)
TWO_SQUARES[2:8, 2:8] = 1
TWO_SQUARES[10:20, 10:20] = 1
GRAY = (np.arange(24 * 32).reshape(24, 32) % 200).astype(np.uint8)


def save(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.startswith(".tif"):
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def save_pairs(root: Path, n: int = 4, *, masks: str = "masks", image=GRAY, mask=TWO_SQUARES * 255) -> Path:
    """A folder of n different images, each with the same mask."""
    for k in range(n):
        save(root / "images" / f"im{k}.png", np.roll(image, k, axis=0))
        save(root / masks / f"im{k}.png", mask)
    return root


def zipped(folder: Path, to: Path, *, top: str = "") -> Path:
    """The files of a folder in a zip, in reverse order."""
    with zipfile.ZipFile(to, "w") as pack:
        for file in sorted((f for f in folder.rglob("*") if f.is_file()), reverse=True):
            pack.write(file, top + file.relative_to(folder).as_posix())
    return to


class TestLayouts:
    def test_pairs_of_images_and_masks(self, tmp_path, open_dataset):
        data = open_dataset(save_pairs(tmp_path / "a", 2))
        assert data.names == ["im0", "im1"]
        assert data.splits == ["", ""]
        assert data.image(1).shape == (24, 32, 3)
        assert (data.image(1) == np.roll(GRAY, 1, axis=0)[..., None]).all()
        assert data.labels(0).max() == 2
        assert ((data.labels(0) > 0) == (TWO_SQUARES > 0)).all()

    def test_labels_are_preferred_to_masks(self, tmp_path, open_dataset):
        root = save_pairs(tmp_path / "a", 2)
        touching = np.zeros((24, 32), np.uint16)
        touching[4:8, 4:8], touching[4:8, 8:12] = 7, 300
        for k in range(2):
            save(root / "labels" / f"im{k}.png", touching)
        labels = open_dataset(root).labels(0)
        assert labels[5, 5] == 1
        assert labels[5, 9] == 2
        assert labels.max() == 2

    def test_fnc_v2_has_its_split_in_its_folders(self, tmp_path, open_dataset):
        root = tmp_path / "yellow"
        for split, names in {"trainval": "ab", "test": "c"}.items():
            for name in names:
                save(root / split / "images" / f"{name}.png", GRAY)
                save(root / split / "ground_truths" / "masks" / f"{name}.png", TWO_SQUARES * 255)
        save(root / "unlabelled" / "images" / "u.png", GRAY)
        for path in (root, tmp_path):  # the collection, or the folder around a single one
            data = open_dataset(path)
            assert data.names == ["a", "b", "c"]
            assert data.splits == ["trainval", "trainval", "test"]

    def test_fnc_with_several_collections_asks_for_one(self, tmp_path, open_dataset):
        for collection in ("red", "yellow"):
            save(tmp_path / collection / "test" / "images" / "a.png", GRAY)
            save(tmp_path / collection / "test" / "ground_truths" / "masks" / "a.png", TWO_SQUARES)
        with pytest.raises(DataError, match="collections red, yellow"):
            open_dataset(tmp_path)

    @pytest.mark.parametrize("folders", [("images", "masks"), ("all_images/images", "all_masks/masks")])
    def test_fnc_v1_flat(self, tmp_path, open_dataset, folders):
        save(tmp_path / folders[0] / "x_y.png", GRAY)
        save(tmp_path / folders[1] / "x_y.png", TWO_SQUARES * 255)
        assert open_dataset(tmp_path, format="fnc").names == ["x_y"]

    def test_the_same_name_in_two_splits_is_told_apart(self, tmp_path, open_dataset):
        for split in ("trainval", "test"):
            save(tmp_path / split / "images" / "a.png", GRAY)
            save(tmp_path / split / "masks" / "a.png", TWO_SQUARES)
        data = open_dataset(tmp_path)
        assert list(zip(data.names, data.splits, strict=True)) == [("test/a", "test"), ("trainval/a", "trainval")]

    def test_files_that_are_no_images_are_ignored_and_mentioned(self, tmp_path, open_dataset):
        root = save_pairs(tmp_path / "a", 2)
        for clutter in ("Thumbs.db", ".DS_Store", "._im0.png"):
            (root / "images" / clutter).write_bytes(b"x")
        data = open_dataset(root)
        assert data.names == ["im0", "im1"]
        assert any("Thumbs.db" in note for note in data.notes)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".jpg"])
    def test_formats(self, tmp_path, open_dataset, suffix):
        save(tmp_path / "images" / f"a{suffix}", GRAY)
        save(tmp_path / "masks" / "a.tif", TWO_SQUARES)
        exact = suffix != ".jpg"
        difference = np.abs(open_dataset(tmp_path, channels=1).image(0)[..., 0].astype(int) - GRAY)
        assert difference.max() == 0 if exact else difference.mean() < 30


@pytest.fixture
def manifest(tmp_path):
    """Six images, two of them of one group, with a column to filter by."""
    root = save_pairs(tmp_path / "pack", 6, masks="labels", mask=TWO_SQUARES.astype(np.uint16) * 3)
    rows = ["file,split,group,lab"]
    rows += [
        f"im{k}.png,{'test' if k == 5 else 'train'},{'g' if k < 2 else ''},{'x' if k < 4 else 'y'}" for k in range(6)
    ]
    (root / "manifest.csv").write_text("\n".join(rows))
    return root


class TestManifest:
    def test_gives_splits_and_groups(self, manifest, open_dataset):
        data = open_dataset(manifest)
        assert data.splits == ["trainval"] * 5 + ["test"]
        assert data.groups == ["g", "g", "", "", "", ""]
        assert data.labels(0).max() == 1  # one value in a folder of labels is one object, even in two pieces

    def test_can_be_named_itself(self, manifest, open_dataset):
        (manifest / "manifest.csv").rename(manifest / "mine.csv")
        assert len(open_dataset(manifest / "mine.csv")) == 6

    def test_rows_can_be_chosen(self, manifest, open_dataset):
        assert open_dataset(manifest, where={"lab": ["x"]}).names == ["im0", "im1", "im2", "im3"]
        assert open_dataset(manifest, where_not={"lab": ["x"]}).names == ["im4", "im5"]

    @pytest.mark.parametrize(
        ("filters", "message"),
        [
            ({"where": {"lba": ["x"]}}, "where: unknown column 'lba'; known: file, group, lab, split"),
            ({"where_not": {"lab": ["z"]}}, "where_not: no row has lab = 'z'; known: 'x', 'y'"),
            ({"where": {"lab": ["x"]}, "where_not": {"split": ["train"]}}, "leave no image of 6"),
        ],
    )
    def test_a_filter_that_fits_nothing(self, manifest, open_dataset, filters, message):
        with pytest.raises(DataError, match=message):
            open_dataset(manifest, **filters)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("gone.png,train,,x", r"line 8: file 'gone.png': no such image"),
            ("../im0.png,train,,x", r"line 8: file '../im0.png': expected a path below images/"),
            ("im0.png,tset,,x", r"line 8: unknown split 'tset' \(did you mean 'test'\?\)"),
            ("im0.png,train,,x", r"lists 'images/im0.png' 2 times"),
        ],
    )
    def test_bad_rows(self, manifest, open_dataset, row, message):
        with (manifest / "manifest.csv").open("a") as file:
            file.write(f"\n{row}")
        with pytest.raises(DataError, match=message):
            open_dataset(manifest)

    def test_a_row_without_labels_file(self, manifest, open_dataset):
        (manifest / "labels" / "im3.png").unlink()
        with pytest.raises(DataError, match=r"'im3\.png': image without mask"):
            open_dataset(manifest)

    def test_unlabelled_rows_and_collections(self, tmp_path, open_dataset):
        for name in ("red", "green"):
            save(tmp_path / name / "images" / f"{name}.png", GRAY)
        save(tmp_path / "red" / "masks" / "red.png", TWO_SQUARES)
        (tmp_path / "manifest.csv").write_text("collection,file,labelled\nred,red.png,1\ngreen,green.png,0\n")
        data = open_dataset(tmp_path)
        assert data.names == ["red"]
        assert any("1 unlabelled" in note for note in data.notes)

    def test_without_the_column_file(self, manifest, open_dataset):
        (manifest / "manifest.csv").write_text("image,split\na.png,test\n")
        with pytest.raises(DataError, match="expected rows with a column 'file', got the columns image, split"):
            open_dataset(manifest)

    def test_a_group_on_both_sides_of_the_official_split_is_mentioned(self, manifest, open_dataset):
        text = (manifest / "manifest.csv").read_text().replace("im5.png,test,,", "im5.png,test,g,")
        (manifest / "manifest.csv").write_text(text)
        assert any("'g'" in note and "both" in note for note in open_dataset(manifest).notes)


class TestConversion:
    def pair(self, root, image, mask=TWO_SQUARES):
        save(root / "images" / "a.tif", image)
        save(root / "masks" / "a.png", mask)
        return root

    def test_one_channel_is_the_brightest_of_each_pixel(self, tmp_path, open_dataset):
        rgb = np.stack([GRAY, GRAY // 2, 100 - GRAY // 2], axis=2)
        image = open_dataset(self.pair(tmp_path, rgb), channels=1).image(0)
        assert image.shape == (24, 32, 1)
        assert (image[..., 0] == rgb.max(axis=2)).all()

    def test_alpha_is_dropped(self, tmp_path, open_dataset):
        rgba = np.dstack([GRAY, GRAY, GRAY, np.full_like(GRAY, 255)])
        save(tmp_path / "images" / "a.png", rgba)
        save(tmp_path / "masks" / "a.png", TWO_SQUARES)
        assert (open_dataset(tmp_path, channels=1).image(0)[..., 0] == GRAY).all()

    def test_sixteen_bits_by_full_scale_or_by_the_cameras(self, tmp_path, open_dataset):
        deep = np.zeros((24, 32), np.uint16)
        deep[0, :3] = 4095, 2048, 65535
        root = self.pair(tmp_path, deep)
        assert open_dataset(root, channels=1).image(0)[0, :3, 0].tolist() == [16, 8, 255]
        clipped = open_dataset(root, channels=1, max_value=4095.0)
        assert clipped.image(0)[0, :3, 0].tolist() == [255, 128, 255]
        assert any("above max_value 4095" in note for note in clipped.notes)

    def test_dark_sixteen_bit_images_are_mentioned(self, tmp_path, open_dataset):
        root = self.pair(tmp_path, GRAY.astype(np.uint16) * 16)
        assert any("max_value" in note for note in open_dataset(root).notes)
        assert open_dataset(root, max_value=4095.0).notes == []

    def test_tiffs_whose_zero_is_white_and_with_a_palette(self, tmp_path, open_dataset):
        tifffile.imwrite(tmp_path / "white.tif", 255 - GRAY, photometric="miniswhite")
        Image.fromarray(np.dstack([GRAY] * 3)).quantize(256).save(tmp_path / "palette.tif")
        for name in ("white", "palette"):
            image = image_from_bytes((tmp_path / f"{name}.tif").read_bytes(), name, channels=1, normalise="none")
            assert np.abs(image[..., 0].astype(int) - GRAY).max() <= 1

    def test_percentiles_of_each_image(self, tmp_path, open_dataset):
        ramp = np.arange(1000, 1000 + 24 * 32, dtype=np.uint16).reshape(24, 32)
        image = open_dataset(self.pair(tmp_path, ramp), channels=1, normalise="percentile").image(0)
        low, high = np.percentile(ramp, [1, 99.8])
        expected = np.clip((ramp - low) / (high - low) * 255, 0, 255)
        assert np.abs(image[..., 0] - expected).max() <= 0.51

    def test_a_constant_image_stays_dark(self, tmp_path, open_dataset):
        root = self.pair(tmp_path, np.full((24, 32), 500, np.uint16))
        assert open_dataset(root, normalise="percentile").image(0).max() == 0

    def test_resampling_to_the_training_sets_diameter(self, tmp_path, open_dataset):
        mask = np.zeros((60, 80), np.uint8)
        mask[10:30, 10:30], mask[40, 51] = 1, 1  # a cell, and a speck that vanishes at a quarter of the size
        image = np.zeros((60, 80), np.uint8)
        image[::2] = 200  # stripes one pixel wide: their mean is left, not one of them
        save_pairs(tmp_path, 1, image=image, mask=mask)
        data = open_dataset(tmp_path, rescale=True, diameter_px=20.0, target_diameter_px=5.0)
        assert data.diameter_px == pytest.approx(5)
        assert data.image(0).shape == (15, 20, 3)
        assert np.abs(data.image(0)[2:-2].astype(int) - 100).max() <= 15
        assert data.labels(0).max() == 1
        assert (data.labels(0) == 1).sum() == pytest.approx(25, abs=11)
        assert any("1 of 2 objects" in note for note in data.notes)

    def test_touching_corners_are_one_component(self, tmp_path, open_dataset):
        mask = np.zeros((24, 32), np.uint8)
        mask[2, 2] = mask[3, 3] = 255
        assert open_dataset(self.pair(tmp_path, GRAY, mask)).labels(0).max() == 1

    @pytest.mark.parametrize("value", [1, 255])
    def test_binary_masks(self, tmp_path, open_dataset, value):
        assert open_dataset(self.pair(tmp_path, GRAY, TWO_SQUARES * value)).labels(0).max() == 2

    def test_an_empty_mask_is_an_image_without_cells(self, tmp_path, open_dataset):
        data = open_dataset(self.pair(tmp_path, GRAY, TWO_SQUARES * 0), diameter_px=10.0)
        assert data.labels(0).max() == 0

    def test_instance_labels_in_a_masks_folder_keep_touching_cells_apart(self, tmp_path, open_dataset):
        mask = np.zeros((24, 32), np.uint8)
        mask[4:8, 4:8], mask[4:8, 8:12], mask[12:20, 4:12] = 1, 2, 3
        assert open_dataset(self.pair(tmp_path, GRAY, mask)).labels(0).max() == 3

    def test_more_objects_than_sixteen_bits_can_number(self, tmp_path, open_dataset):
        mask = np.zeros((600, 600), np.uint8)
        mask[::2, ::2] = 255  # 90,000 single pixels
        data = open_dataset(save_pairs(tmp_path, 1, image=np.zeros((600, 600), np.uint8), mask=mask))
        assert data.labels(0).dtype == np.int32
        assert data.labels(0).max() == 90_000

    def test_a_single_image_is_converted_like_those_of_a_dataset(self, tmp_path, open_dataset):
        root = self.pair(tmp_path, GRAY.astype(np.uint16) * 20)
        (path,) = list_images(root)
        for normalise in ("none", "percentile"):
            image = image_from_bytes(path.read_bytes(), path.name, channels=3, normalise=normalise, max_value=4095.0)
            assert (image == open_dataset(root, normalise=normalise, max_value=4095.0).image(0)).all()


class TestDiameter:
    def test_measured_over_the_training_rows(self, tmp_path, open_dataset):
        for split, side in {"trainval": 4, "test": 10}.items():
            mask = np.zeros((24, 32), np.uint8)
            mask[:side, :side] = 255
            save(tmp_path / split / "images" / f"{split}.png", GRAY)
            save(tmp_path / split / "masks" / f"{split}.png", mask)
        assert open_dataset(tmp_path).diameter_px == pytest.approx(np.sqrt(4 / np.pi * 16))

    def test_given_in_pixels_or_micrometres(self, tmp_path, open_dataset):
        root = save_pairs(tmp_path)
        assert open_dataset(root, diameter_px=9.0).diameter_px == 9
        assert open_dataset(root, diameter_um=12.6, pixel_size_um=0.315).diameter_px == pytest.approx(40)

    def test_a_set_that_only_judges_must_bring_its_own(self, tmp_path, open_dataset):
        with pytest.raises(DataError, match="add diameter_px, or diameter_um and pixel_size_um"):
            open_dataset(save_pairs(tmp_path), require_diameter=True)

    def test_no_cell_to_measure(self, tmp_path, open_dataset):
        with pytest.raises(DataError, match="no cell in its training images"):
            open_dataset(save_pairs(tmp_path, mask=TWO_SQUARES * 0))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(side: int) -> bytes:
    """A small PNG that says it is side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + png_chunk(b"IEND", b"")
    )


def blurred_mask() -> np.ndarray:
    """All gray levels 0..255, as a mask saved with loss or resampled has."""
    return (np.hypot(*np.mgrid[-60:60, -60:60]) * 4).clip(0, 255).astype(np.uint8)


def replace_mask(pixels, suffix=".png"):
    def spoil(root: Path) -> None:
        (root / "masks" / "im1.png").unlink()
        save(root / "masks" / f"im1{suffix}", pixels)

    return spoil


def write_image(data: bytes):
    return lambda root: (root / "images" / "im1.png").write_bytes(data)


def halve(root: Path) -> None:
    rng = np.random.default_rng(0)
    path = save(root / "images" / "im1.png", rng.integers(0, 255, (24, 32), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "image without mask": (lambda r: (r / "masks/im1.png").unlink(), r"images/im1\.png: image without mask"),
    "mask without image": (lambda r: (r / "images/im1.png").unlink(), r"masks/im1\.png: mask without image"),
    "size mismatch": (replace_mask(TWO_SQUARES[:20]), r"masks/im1\.png: mask of 32x20 pixels, expected 32x24"),
    "truncated PNG": (halve, r"images/im1\.png: a damaged or truncated PNG"),
    "0 bytes": (write_image(b""), r"images/im1\.png: the file is empty"),
    "unknown format": (write_image(b"BM this is a bitmap"), r"im1\.png: unknown format .*expected PNG, TIFF or JPEG"),
    "image bomb": (write_image(png_bomb(9_440)), r"im1\.png: 9440x9440 pixels, expected at most 89000000"),
    "larger image bomb": (write_image(png_bomb(60_000)), r"im1\.png: .*expected at most 89000000"),
    "all foreground": (
        replace_mask(np.full((24, 32), 255, np.uint8)),
        r"im1\.png: every pixel is marked as cell \(value 255\)",
    ),
    "gray levels": (replace_mask(blurred_mask()), r"im1\.png: .*gray levels .*neither a binary mask"),
    "sparse gray levels": (replace_mask(TWO_SQUARES * 100 + GRAY // 199 * 31), r"im1\.png: .*neither a binary mask"),
    "resampled mask": (
        replace_mask(np.asarray(Image.fromarray(TWO_SQUARES * 255).resize((320, 240), Image.Resampling.BILINEAR))),
        r"im1\.png: .*neither a binary mask",
    ),
    "strange single value": (
        replace_mask(TWO_SQUARES * 7),
        r"im1\.png: the mask's one value is 7, expected 0/1, 0/255",
    ),
    "JPEG mask": (replace_mask(TWO_SQUARES * 255, ".jpg"), r"im1\.jpg: a JPEG mask is blurred"),
    "float labels": (
        replace_mask(TWO_SQUARES.astype(np.float32), ".tif"),
        r"im1\.tif: labels of float32",
    ),
    "negative labels": (replace_mask(-TWO_SQUARES.astype(np.int16), ".tif"), r"im1\.tif: label -1"),
    "coloured mask": (
        replace_mask(np.dstack([TWO_SQUARES, TWO_SQUARES * 0, TWO_SQUARES])),
        r"im1\.png: a colour",
    ),
    "stack": (
        replace_mask(np.zeros((5, 24, 32), np.uint8), ".tif"),
        r"im1\.tif: a stack of 5 pictures .* set data\.plane to max",
    ),
    "two images of one name": (lambda r: save(r / "images/im1.tif", GRAY), r"a second image called 'im1'"),
    "no images": (lambda r: [f.unlink() for f in (r / "images").iterdir()], "no known layout"),
    "no masks": (lambda r: [f.unlink() for f in (r / "masks").iterdir()], "images/ without masks"),
}


class TestBadInput:
    @pytest.mark.parametrize("case", BAD)
    def test_is_one_clear_error(self, tmp_path, open_dataset, case):
        root = save_pairs(tmp_path / "set", 3)
        spoil, message = BAD[case]
        spoil(root)
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(root)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        report = check_dataset(config(root))
        assert not report.is_usable
        assert str(caught.value) in report.problems

    def test_missing_folder(self, tmp_path, open_dataset):
        with pytest.raises(DataError, match="nowhere: no such folder or file"):
            open_dataset(tmp_path / "nowhere")

    def test_variable_that_is_not_set(self, open_dataset, monkeypatch):
        monkeypatch.delenv("CELLRAY_NOT_SET", raising=False)
        with pytest.raises(DataError, match="environment variable in it isn't set"):
            open_dataset("${CELLRAY_NOT_SET}/yellow")

    def test_empty_folder(self, tmp_path, open_dataset):
        with pytest.raises(DataError, match="no files in it, expected images with masks"):
            open_dataset(tmp_path)

    def test_a_file_that_is_no_zip(self, tmp_path, open_dataset):
        (tmp_path / "pack.zip").write_text("hello")
        with pytest.raises(DataError, match="not a zip"):
            open_dataset(tmp_path / "pack.zip")

    def test_float_image(self, tmp_path, open_dataset):
        save(tmp_path / "images" / "a.tif", GRAY.astype(np.float32))
        save(tmp_path / "masks" / "a.png", TWO_SQUARES)
        with pytest.raises(DataError, match=r"a\.tif: image of float32, expected 8 or 16 bits"):
            open_dataset(tmp_path)

    def test_labels_that_are_binary_masks_are_mentioned(self, tmp_path, open_dataset):
        data = open_dataset(save_pairs(tmp_path, 3, masks="labels", mask=TWO_SQUARES))
        assert any("binary masks belong in a folder called masks" in note for note in data.notes)

    def test_check_collects_every_problem(self, tmp_path):
        root = save_pairs(tmp_path, 5)
        (root / "masks" / "im0.png").unlink()
        (root / "images" / "im1.png").write_bytes(b"")
        save(root / "masks" / "im2.png", np.full((24, 32), 255, np.uint8))
        report = check_dataset(config(root))
        assert len(report.problems) == 3
        assert report.n_images == 4
        assert report.n_objects == 4  # of the two that can be read


class TestCheck:
    def test_statistics(self, manifest):
        report = check_dataset(config(manifest))
        assert report.is_usable
        assert (report.n_images, report.n_groups, report.n_objects) == (6, 5, 6)
        assert report.sizes == {"32x24": 6}
        assert report.dtypes == {"uint8 gray": 6}
        assert report.splits == {"trainval": 5, "test": 1}
        assert report.objects_per_image == (1, 1, 1)
        assert report.foreground_percent == pytest.approx([100 * 136 / 768] * 2)
        assert report.diameter_px == pytest.approx([np.sqrt(4 / np.pi * 136)] * 3)
        assert report.study_split is not None
        assert sum(report.study_split) == 6

    def test_a_set_too_small_to_train_on_can_still_judge(self, tmp_path):
        report = check_dataset(config(save_pairs(tmp_path, 1)))
        assert report.is_usable
        assert report.study_split is None
        assert any("not for training" in note for note in report.notes)

    def test_preview_shows_contours(self, tmp_path, open_dataset):
        sheet = preview_dataset(open_dataset(save_pairs(tmp_path, 5)), 3, columns=2, side_px=100)
        assert sheet.dtype == np.uint8
        assert sheet.shape[1] == 208
        assert (sheet == (86, 180, 233)).all(axis=2).sum() > 3 * 50


class TestFingerprint:
    def test_is_of_the_content_not_of_the_place(self, manifest, tmp_path, open_dataset):
        copy = tmp_path / "elsewhere"
        for file in sorted((f for f in manifest.rglob("*") if f.is_file()), reverse=True):  # another listing order
            target = copy / file.relative_to(manifest)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        rows = (manifest / "manifest.csv").read_text().splitlines()
        (copy / "manifest.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]))
        expected = open_dataset(manifest).fingerprint
        assert len(expected) == 16
        assert open_dataset(copy).fingerprint == expected
        assert open_dataset(zipped(manifest, tmp_path / "flat.zip")).fingerprint == expected
        assert open_dataset(zipped(manifest, tmp_path / "deep.zip", top="pack/")).fingerprint == expected
        assert open_dataset(manifest, name="other", diameter_px=5.0).fingerprint == expected

    def test_changes_with_what_is_fed_to_the_model(self, manifest, open_dataset):
        seen = [open_dataset(manifest).fingerprint]
        seen.append(open_dataset(manifest, channels=1).fingerprint)
        seen.append(open_dataset(manifest, normalise="percentile").fingerprint)
        seen.append(open_dataset(manifest, max_value=200.0).fingerprint)
        seen.append(open_dataset(manifest, where={"lab": ["x"]}).fingerprint)
        seen.append(open_dataset(manifest, rescale=True, diameter_px=8.0, target_diameter_px=4.0).fingerprint)
        save(manifest / "images" / "im2.png", GRAY + 1)
        seen.append(open_dataset(manifest).fingerprint)
        text = (manifest / "manifest.csv").read_text()
        (manifest / "manifest.csv").write_text(text.replace(",g,", ",h,"))
        seen.append(open_dataset(manifest).fingerprint)
        assert len(set(seen)) == len(seen)


@pytest.fixture
def n_decoded(monkeypatch):
    """How many images have been decoded so far."""
    count = SimpleNamespace(value=0)
    load_item = opening.load_item

    def counted(*args):
        count.value += 1
        return load_item(*args)

    monkeypatch.setattr(opening, "load_item", counted)
    return count


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from cellray.data import open_dataset, opening
load_item, count = opening.load_item, 0
def slow(*args):
    global count
    count += 1
    time.sleep(0.2)
    return load_item(*args)
opening.load_item = slow
facts = dict(name="cells", format="auto", synthetic=None, where={}, where_not={}, diameter_px=None, diameter_um=None)
config = SimpleNamespace(path=sys.argv[1], pixel_size_um=None, max_value=None, rescale=False, groups=None, **facts)
print("ready", flush=True)
sys.stdin.readline()
data = open_dataset(config, channels=3, normalise="none", cache_dir=Path(sys.argv[2]))
print(count, data.fingerprint, sum(int(data.image(i).sum()) for i in range(len(data))))
"""


class TestCache:
    def test_the_second_time_nothing_is_decoded(self, tmp_path, open_dataset, n_decoded):
        root = save_pairs(tmp_path, 4)
        first = open_dataset(root)
        assert n_decoded.value == 4
        second = open_dataset(root, name="again", diameter_px=3.0)
        assert n_decoded.value == 4
        assert (second.name, second.diameter_px) == ("again", 3)
        assert (first.image(3) == second.image(3)).all()

    @pytest.mark.parametrize("file", ["images.u8", "labels.u16", "index.json"])
    @pytest.mark.parametrize("damage", ["truncated", "gone"])
    def test_a_damaged_cache_is_built_again(self, tmp_path, open_dataset, n_decoded, file, damage):
        root = save_pairs(tmp_path, 2)
        first = open_dataset(root)
        expected = first.image(1).copy()
        victim = first.folder / file
        if damage == "gone":
            victim.unlink()
        else:
            victim.write_bytes(victim.read_bytes()[:-5])
        assert (open_dataset(root).image(1) == expected).all()
        assert n_decoded.value == 4

    @pytest.mark.slow
    def test_two_processes_at_once_decode_once(self, tmp_path):
        root = save_pairs(tmp_path / "set", 3)
        command = [sys.executable, "-c", TWO_AT_ONCE, str(root), str(tmp_path / "cache")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, **pipes, cwd=Path(__file__).parents[1]) for _ in range(2)]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=30)[0].split() for process in processes]
        assert sorted(int(result[0]) for result in results) == [0, 3]
        assert results[0][1:] == results[1][1:]
        assert not list((tmp_path / "cache" / "datasets").glob("*.partial"))

    def test_a_failure_leaves_nothing_behind(self, tmp_path, open_dataset):
        root = save_pairs(tmp_path, 2)
        save(root / "masks" / "im1.png", np.full((24, 32), 255, np.uint8))
        with pytest.raises(DataError):
            open_dataset(root)
        assert not [p for p in (open_dataset.cache_dir / "datasets").iterdir() if p.is_dir()]

    def test_a_cache_that_cannot_be_written(self, tmp_path, open_dataset):
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(DataError, match=r"the cache can't be written.*set CELLRAY_CACHE"):
            open_dataset(save_pairs(tmp_path / "set"), cache_dir=tmp_path / "file")

    def test_is_small_to_send_and_read_only(self, tmp_path, open_dataset):
        data = open_dataset(save_pairs(tmp_path, 3))
        sent = pickle.dumps(data)
        again = pickle.loads(sent)
        assert len(sent) < 1000
        assert (again.names, again.fingerprint, again.diameter_px) == (data.names, data.fingerprint, data.diameter_px)
        assert (again.labels(2) == data.labels(2)).all()
        with pytest.raises(ValueError, match="read-only"):
            again.image(0)[0, 0] = 1

    @pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="This system has no smaps_rollup.")
    def test_reading_it_all_takes_no_memory_of_its_own(self, tmp_path, open_dataset):
        image = np.zeros((2000, 2000), np.uint8)
        mask = np.zeros_like(image)
        mask[5, 5] = 255
        data = open_dataset(save_pairs(tmp_path, 2, image=image, mask=mask))

        def anonymous_mb() -> float:
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

        before = anonymous_mb()
        assert sum(int(data.image(i).max()) + int(data.labels(i).max()) for i in range(2)) == 2  # 40 MB
        assert anonymous_mb() - before < 5

    def test_progress_is_told_while_decoding_only(self, tmp_path):
        root, told = save_pairs(tmp_path / "set", 3), []
        for _ in range(2):
            open_any(
                config(root),
                channels=1,
                normalise="none",
                cache_dir=tmp_path / "cache",
                progress=lambda done, total: told.append((done, total)),
            )
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_hashes_are_remembered_until_a_file_changes(self, tmp_path, open_dataset, monkeypatch):
        root = save_pairs(tmp_path, 2)
        first = open_dataset(root).fingerprint
        read, names = opening.Source.read, []
        monkeypatch.setattr(opening.Source, "read", lambda self, name: names.append(name) or read(self, name))
        assert open_dataset(root).fingerprint == first
        assert names == []
        (memo,) = (open_dataset.cache_dir / "hashes").iterdir()
        memo.write_text("{broken")
        assert open_dataset(root).fingerprint == first


@dataclass
class Names:
    """As much of a dataset as a split needs."""

    names: list[str]
    splits: list[str]
    groups: list[str]
    name: str = "cells"

    @classmethod
    def of(cls, n: int, *, n_test: int = 0, group_size: int = 0) -> Names:
        names = [f"im{k:03}" for k in range(n)]
        splits = ["test" if k >= n - n_test else "trainval" for k in range(n)]
        groups = [str(k // group_size) if group_size else "" for k in range(n)]
        return cls(names, splits, groups)

    def shuffled(self) -> Names:
        order = np.random.default_rng(1).permutation(len(self.names))
        return Names([self.names[k] for k in order], [self.splits[k] for k in order], [self.groups[k] for k in order])

    def called(self, indices) -> set[str]:
        return {self.names[k] for k in indices}


def split(dataset, seed=0, **changes):
    return split_dataset(dataset, **({"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": seed} | changes))


class TestSplit:
    def test_official_test_rows_are_the_test_set(self):
        parts = split(Names.of(20, n_test=5))
        assert parts.test == [15, 16, 17, 18, 19]
        assert len(parts.val) == 3  # a fifth of the other 15
        assert sorted(parts.train + parts.val + parts.test) == list(range(20))

    def test_a_drawn_test_set_never_varies_and_validation_does(self):
        dataset = Names.of(50)
        parts = [split(dataset, seed) for seed in (0, 5, 25)]
        assert parts[0].test == parts[1].test == parts[2].test
        assert len({tuple(p.val) for p in parts}) == 3
        assert len({p.hash for p in parts}) == 3
        assert (len(parts[0].train), len(parts[0].val), len(parts[0].test)) == (32, 8, 10)

    def test_the_same_seed_gives_the_same_split_whatever_the_order_of_files(self):
        dataset = Names.of(40, group_size=3)
        other = dataset.shuffled()
        one, two = split(dataset, 7), split(other, 7)
        assert one == split(dataset, 7)
        assert one.hash == two.hash
        for part in ("train", "val", "test"):
            assert dataset.called(getattr(one, part)) == other.called(getattr(two, part))

    @pytest.mark.parametrize("seed", range(5))
    def test_a_group_is_never_divided(self, seed):
        dataset = Names.of(60, group_size=4)
        parts = split(dataset, seed)
        sides = [{dataset.groups[k] for k in part} for part in (parts.train, parts.val, parts.test)]
        assert sum(len(side) for side in sides) == len(set().union(*sides))

    def test_groups_larger_than_the_part(self):
        dataset = Names.of(30, group_size=10)
        parts = split(dataset, val_fraction=0.1, test_fraction=0.1)
        assert [len(parts.train), len(parts.val), len(parts.test)] == [10, 10, 10]

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            (Names.of(1), r"its 1 image\(s\).* leave no validation and no test"),
            (Names.of(2), "no validation"),
            (Names.of(4, n_test=4), "no training and no validation"),
            (Names.of(8, n_test=4, group_size=4), "no validation"),
        ],
        ids=["one image", "two images", "all test", "one group besides the test set"],
    )
    def test_too_few_images(self, dataset, message):
        with pytest.raises(DataError, match=message):
            split(dataset)


class TestSynthetic:
    def test_is_drawn_once_for_its_settings(self, tmp_path, n_decoded):
        synth = pytest.importorskip("cellray.data.synth")
        assert synth.synthesise
        small = SimpleNamespace(n_trainval=3, n_test=1, width_px=96, height_px=80, scale=0.3, seed=1)
        opened = [
            open_any(
                config(None, synthetic=small, format="synthetic", diameter_px=11.0),
                channels=3,
                normalise="none",
                cache_dir=tmp_path,
            )
            for _ in range(2)
        ]
        assert n_decoded.value == 4
        assert sorted(opened[0].splits) == ["test", "trainval", "trainval", "trainval"]
        assert opened[0].image(0).shape == (80, 96, 3)
        assert opened[0].fingerprint == opened[1].fingerprint


class TestRealPacks:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("pack", "changes", "n_images", "n_objects", "diameter_px"),
        [
            ("bbbc039_test", {"max_value": 4095.0, "diameter_px": 28.3}, 52, 5720, 28.3),
            ("cfos_multilab", {"where": {"lab": ["inns1"]}}, 4, None, 10.1),
            ("sbsst265_neuroblastoma", {"where": {"official_split": ["test"]}}, 4, None, None),
            ("fnc_real_samples", {"where": {"collection": ["yellow"]}}, 4, 45, None),
            ("fnc_real_samples", {"where": {"collection": ["red"]}, "diameter_px": 48.3}, 3, 183, 48.3),
        ],
    )
    def test_opens(self, shared, open_dataset, pack, changes, n_images, n_objects, diameter_px):
        data = open_dataset(shared / "data" / f"{pack}.zip", **changes)
        assert len(data) == n_images
        assert n_objects is None or sum(data.n_objects) == n_objects
        assert diameter_px is None or data.diameter_px == pytest.approx(diameter_px, abs=0.06)

    @pytest.mark.slow
    def test_dsb2018_keeps_its_groups_together(self, shared, open_dataset):
        data = open_dataset(shared / "data" / "dsb2018_fluo.zip", where_not={"size_class": ["696x520"]}, channels=1)
        assert len(data) == 384
        parts = split(data, 5)
        assert len(parts.test) == 72
        assert not {data.groups[k] for k in parts.train} & {data.groups[k] for k in parts.val}

    @pytest.mark.slow
    def test_the_whole_statistics_agree_with_the_packs_own(self, shared):
        report = check_dataset(config(shared / "data" / "sbsst265_neuroblastoma.zip"))
        assert (report.n_images, report.n_objects) == (15, 644)
        assert report.objects_per_image == (12, 30, 114)
        assert report.diameter_px == pytest.approx([49.4, 95.9, 129.3], abs=0.05)
        assert report.foreground_percent == pytest.approx([23.8, 20.1], abs=0.05)

    def test_every_count_agrees_with_the_manifest(self, shared, open_dataset):
        data = open_dataset(shared / "data" / "cfos_multilab.zip", where={"lab": ["mue", "wue2"]}, channels=1)
        with zipfile.ZipFile(shared / "data" / "cfos_multilab.zip") as pack:
            rows = [line.split(",") for line in pack.read("manifest.csv").decode().splitlines()]
        column = rows[0].index("n_objects")
        expected = {row[0].removesuffix(".png"): int(row[column]) for row in rows[1:]}
        assert dict(zip(data.names, data.n_objects, strict=True)) == {name: expected[name] for name in data.names}


def test_an_index_is_readable_by_people(tmp_path, open_dataset):
    index = json.loads((open_dataset(save_pairs(tmp_path, 2)).folder / "index.json").read_text())
    assert index["names"] == ["im0", "im1"]
    assert index["sizes"] == {"images.u8": 2 * 24 * 32 * 3, "labels.u16": 2 * 24 * 32 * 2}

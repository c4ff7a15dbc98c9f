"""Images, masks and names as people have them: read as meant, or refused with what to set."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from scenes import (
    N_CELLS,
    image_saved,
    mask_saved,
    noise,
    palette_picture,
    png_of_4_bits,
    save_all,
    save_png,
    save_tiff,
    scene,
    turned_tag,
    white,
)
from skimage.segmentation import find_boundaries

from cellray.data import Reading, check_dataset, open_dataset
from cellray.data.decode import decode_image, decode_mask
from cellray.data.pairing import pair_stems
from cellray.errors import DataError
from cellray.study import DatasetConfig

VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
WHITE_IS_INDEX_0 = np.zeros((3, 256), np.uint16)
WHITE_IS_INDEX_0[:, 0] = 65535


def deep(image: np.ndarray) -> np.ndarray:
    """RGB of 16 bits whose lower bits matter."""
    return np.dstack([image.astype(np.uint16) * 16 + k for k in range(3)])


def stack(image: np.ndarray) -> np.ndarray:
    """Five planes, each dimmer than the one before."""
    return np.stack([image // (z + 1) for z in range(5)])


def opened(root: Path, **reading):
    settings = DatasetConfig(name="cells", path=str(root), diameter_px=12.0)
    return open_dataset(settings, channels=1, normalise="none", reading=Reading(**reading), cache_dir=root / "cache")


def checked(root: Path, **reading):
    return check_dataset(DatasetConfig(name="cells", path=str(root)), reading=Reading(**reading))


MASKS = {
    "zstd": mask_saved(lambda p, m: Image.fromarray(m).save(p, compression="zstd"), "labels/a{k}.tif"),
    "packbits": mask_saved(lambda p, m: save_tiff(p, m, compression="packbits"), "labels/a{k}.tif"),
    "1 bit": mask_saved(lambda p, m: save_png(p, m > 0)),
    "4 bits": mask_saved(lambda p, m: p.write_bytes(png_of_4_bits((m > 0).astype(np.uint8)))),
    "4 bits, labels": mask_saved(lambda p, m: p.write_bytes(png_of_4_bits(m)), "labels/a{k}.png"),
    "alpha is the mask": mask_saved(
        lambda p, m: save_png(p, np.dstack([np.full((*m.shape, 3), 255, np.uint8), white(m)]))
    ),
    "alpha of gray is the mask": mask_saved(lambda p, m: save_png(p, np.dstack([np.zeros_like(m), white(m)]))),
    "palette, black is index 1": mask_saved(lambda p, m: save_png(p, palette_picture(m == 0, [255] * 3 + [0] * 3))),
    "palette, white is index 1": mask_saved(lambda p, m: save_png(p, palette_picture(m > 0, [0] * 3 + [255] * 3))),
    "palette, white ground": mask_saved(lambda p, m: save_png(p, palette_picture(m > 0, [255] * 3 + [0] * 3))),
    "palette of instances": mask_saved(lambda p, m: save_png(p, palette_picture(m, VOC)), "labels/a{k}.png"),
    "palette TIFF": mask_saved(
        lambda p, m: save_tiff(p, (m == 0).astype(np.uint8), photometric="palette", colormap=WHITE_IS_INDEX_0),
        "masks/a{k}.tif",
    ),
    "white is zero": mask_saved(lambda p, m: save_tiff(p, 255 - white(m), photometric="miniswhite"), "masks/a{k}.tif"),
    "ImageJ's inverting look-up table": mask_saved(
        lambda p, m: save_tiff(p, white(m), photometric="miniswhite", description="ImageJ=1.54f\n", metadata=None),
        "masks/a{k}.tif",
    ),
    "turned by its tag": mask_saved(lambda p, m: save_png(p, np.rot90(white(m), 2).copy(), exif=turned_tag(3))),
    "Cellpose's suffix": mask_saved(lambda p, m: save_png(p, m), "labels/a{k}_cp_masks.png"),
    "another case": mask_saved(lambda p, m: save_png(p, white(m)), "masks/A{k}.PNG"),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_is_read_as_it_was_meant(tmp_path, case):
    data = opened(save_all(tmp_path, MASKS[case]))
    assert data.n_objects == [N_CELLS] * 4
    for k in range(4):
        assert ((data.labels(k) > 0) == (scene(k)[1] > 0)).all()


IMAGES = {
    "16-bit RGB, LZW": image_saved(
        lambda p, k, i: save_tiff(p, deep(i), photometric="rgb", compression="lzw"), "a{k}.tif"
    ),
    "16-bit RGB, planar": image_saved(
        lambda p, k, i: save_tiff(p, np.moveaxis(deep(i), 2, 0), photometric="rgb", planarconfig="separate"), "a{k}.tif"
    ),
    "16-bit RGB, PNG": image_saved(lambda p, k, i: p.write_bytes(imagecodecs.png_encode(deep(i))), "a{k}.png"),
    "16-bit RGB, deflate and predictor": image_saved(
        lambda p, k, i: save_tiff(p, deep(i), photometric="rgb", compression="zlib", predictor=2), "a{k}.tif"
    ),
}


@pytest.mark.parametrize("case", IMAGES)
def test_sixteen_bits_of_colour_are_kept(tmp_path, case):
    save_all(tmp_path, IMAGES[case], n=1)
    (path,) = (tmp_path / "images").iterdir()
    decoded = decode_image(path.read_bytes(), "it").pixels
    assert decoded.dtype == np.uint16
    assert (decoded == deep(scene(0)[0])).all()


TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, -1),
}
"""How a camera stored what a viewer shows, by the number of the tag: the table of the TIFF 6.0 specification."""


@pytest.mark.parametrize("number", TURNS)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_an_image_is_turned_as_viewers_show_it(tmp_path, number, suffix):
    shown = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    stored, path = np.ascontiguousarray(TURNS[number](shown)), tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, stored, extratags=[(274, 3, 1, number, True)])
    else:
        Image.fromarray(stored).save(path, exif=turned_tag(number), **({"quality": 100} if suffix == "jpg" else {}))
    decoded = decode_image(path.read_bytes(), "it")
    assert decoded.pixels.shape == (3, 4)
    assert np.abs(decoded.pixels.astype(int) - shown).max() <= (3 if suffix == "jpg" else 0)
    assert decoded.reread == ("turned",)


def test_a_look_up_table_of_imagejs_display_changes_no_intensity(tmp_path):
    save_tiff(tmp_path / "a.tif", scene(0)[0], photometric="miniswhite", description="ImageJ=1.54f\n", metadata=None)
    save_tiff(tmp_path / "b.tif", 255 - scene(0)[0], photometric="miniswhite")
    for name in "ab":
        assert (decode_image((tmp_path / f"{name}.tif").read_bytes(), "it").pixels == scene(0)[0]).all()


def channels(*order: int, **settings):
    """Planes of which only number 1 shows cells."""

    def save(path: Path, k: int, image: np.ndarray) -> None:
        planes = np.stack([image if which else noise(10 * k + n) for n, which in enumerate(order)])
        save_tiff(path, planes, photometric="minisblack", **settings)

    return image_saved(save, "a{k}.tif")


CHANNELS = {
    "two": (channels(0, 1, planarconfig="separate", metadata=None), 2),
    "four": (channels(0, 0, 0, 1, planarconfig="separate", metadata=None), 4),
    "five, ImageJ": (channels(0, 1, 0, 0, 0, imagej=True, metadata={"axes": "CYX"}), 2),
    "two, OME": (channels(1, 0, ome=True, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "cFos"]}}), 1),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_channels_are_never_dropped_in_silence(tmp_path, case):
    save, which = CHANNELS[case]
    root = save_all(tmp_path, save)
    with pytest.raises(DataError, match=r"channels.*set data\.channel to a number from 1 to"):
        opened(root)
    report = checked(root)
    assert not report.is_usable
    assert all(f"the masks fit channel {which} best" in problem for problem in report.problems)
    assert (opened(root, channel=which).image(0)[..., 0] == scene(0)[0]).all()
    assert checked(root, channel=which).is_usable
    brightest = opened(root, channel="max").image(0)[..., 0]
    assert (brightest >= scene(0)[0]).all() and (brightest[scene(0)[1] > 0] == scene(0)[0][scene(0)[1] > 0]).all()
    with pytest.raises(DataError, match=r"data\.channel is 9, but the image has"):
        opened(root, channel=9)


def test_a_channel_can_be_named(tmp_path):
    root = save_all(tmp_path, CHANNELS["two, OME"][0])
    assert opened(root, channel="dapi").fingerprint != opened(root, channel="cFos").fingerprint
    assert (opened(root, channel="DAPI").image(0)[..., 0] == scene(0)[0]).all()
    with pytest.raises(DataError, match=r"2 channels \(DAPI, cFos\)"):
        opened(root, channel="GFP")


@pytest.mark.parametrize("extra", ["unspecified", "unassalpha"])
def test_a_fourth_sample_is_dropped_only_if_it_is_opacity_or_says_nothing(tmp_path, extra):
    image, rgb = scene(0)[0], np.dstack([noise(0)] * 3)
    save_tiff(tmp_path / "a.tif", np.dstack([rgb, image]), photometric="rgb", extrasamples=[extra])
    save_tiff(tmp_path / "b.tif", np.dstack([rgb, image * 0 + 7]), photometric="rgb", extrasamples=[extra])
    assert (decode_image((tmp_path / "b.tif").read_bytes(), "it").pixels == rgb).all()
    if extra == "unspecified":
        with pytest.raises(DataError, match=r"4 channels \(red, green, blue, extra\)"):
            decode_image((tmp_path / "a.tif").read_bytes(), "it")
    else:
        assert (decode_image((tmp_path / "a.tif").read_bytes(), "it").pixels == rgb).all()


STACKS = {
    "ImageJ, one IFD": {"imagej": True, "truncate": True, "metadata": {"axes": "ZYX"}},
    "ImageJ": {"imagej": True, "metadata": {"axes": "TYX"}},
    "OME": {"ome": True, "metadata": {"axes": "ZYX"}},
    "plain pages": {},
}


@pytest.mark.parametrize("case", STACKS)
def test_a_stack_is_refused_until_something_is_said(tmp_path, case):
    root = save_all(
        tmp_path,
        image_saved(lambda p, k, i: save_tiff(p, stack(i), photometric="minisblack", **STACKS[case]), "a{k}.tif"),
    )
    with pytest.raises(
        DataError, match=r"a stack of 5 pictures.*set data\.plane to max, mean, a number from 1 to 5, or all"
    ):
        opened(root)
    planes = stack(scene(1)[0])
    assert (opened(root, plane="max").image(1)[..., 0] == planes[0]).all()
    assert (opened(root, plane=3).image(1)[..., 0] == planes[2]).all()
    assert np.abs(opened(root, plane="mean").image(1)[..., 0] - planes.mean(axis=0)).max() <= 0.5
    with pytest.raises(DataError, match=r"data\.plane is 6, but the stack has 5 planes"):
        opened(root, plane=6)
    every = opened(root, plane="all")
    assert every.names == [f"a{k}_{z}" for k in range(4) for z in range(1, 6)]
    assert every.groups == [f"a{k}" for k in range(4) for _ in range(5)]
    assert (every.image(9)[..., 0] == stack(scene(1)[0])[4]).all()
    assert every.n_objects == [N_CELLS] * 20


def test_a_stack_of_masks_goes_plane_by_plane(tmp_path):
    def save(root, k, image, labels):
        save_tiff(root / "images" / f"a{k}.tif", stack(image), photometric="minisblack")
        planes = np.stack([np.where(labels == z + 1, labels, 0) for z in range(5)])
        save_tiff(root / "labels" / f"a{k}.tif", planes, photometric="minisblack")

    root = save_all(tmp_path, save, n=3)
    assert opened(root, plane="all").n_objects == [1] * 15
    assert opened(root, plane="max").n_objects == [5] * 3
    assert opened(root, plane="mean").n_objects == [5] * 3


def test_a_plane_is_not_called_as_another_image(tmp_path):
    def save(root, k, image, labels):
        name = ("a", "a_2", "b")[k]
        save_tiff(root / "images" / f"{name}.tif", image if k else stack(image), photometric="minisblack")
        save_tiff(root / "labels" / f"{name}.tif", labels, photometric="minisblack")

    root = save_all(tmp_path, save, n=3)
    with pytest.raises(DataError, match="2 images are called 'a_2', one a plane of a file; rename the file"):
        opened(root, plane="all")


REFUSED = {
    "random colours": (
        mask_saved(lambda p, m: save_png(p, np.random.default_rng(0).integers(9, 255, (13, 3)).astype(np.uint8)[m])),
        "a colour picture.*save each cell's number",
    ),
    "void among cells": (
        mask_saved(lambda p, m: save_png(p, np.where(np.arange(96) < 8, 255, m > 0).astype(np.uint8))),
        r"set data\.ignore: 255",
    ),
    "inside and border": (
        mask_saved(lambda p, m: save_png(p, np.where(find_boundaries(m, mode="outer"), 2, m > 0).astype(np.uint8))),
        "numbers of classes or of borders don't tell cells apart",
    ),
    "palette without black": (
        mask_saved(lambda p, m: save_png(p, palette_picture(2 - (m > 0), [9, 9, 9, 0, 255, 0, 255, 255, 255]))),
        "a palette picture of 2 colours without black",
    ),
    "alpha hides a part": (
        mask_saved(lambda p, m: save_png(p, np.dstack([white(m), white(m == 1) * 0 + white(m > 1)]))),
        "its alpha channel hides a part of the mask",
    ),
    "two samples": (
        mask_saved(
            lambda p, m: save_tiff(p, np.dstack([white(m), white(m)]), photometric="minisblack", planarconfig="contig"),
            "masks/a{k}.tif",
        ),
        "a picture of 2 channels, expected a mask",
    ),
    "float image": (image_saved(lambda p, k, i: save_tiff(p, i.astype(np.float32)), "a{k}.tif"), "image of float32"),
    "signed image": (image_saved(lambda p, k, i: save_tiff(p, i.astype(np.int16)), "a{k}.tif"), "image of int16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_understood_is_refused_with_what_to_do(tmp_path, case):
    save, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        opened(save_all(tmp_path, save, n=1))


def test_a_missing_codec_is_named_as_such(tmp_path, monkeypatch):
    save_tiff(tmp_path / "a.tif", scene(0)[0], compression="zstd")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: (_ for _ in ()).throw(ImportError("no zstd")))
    with pytest.raises(
        DataError, match=r"compressed with ZSTD, which can't be read here \(no zstd\); save it with LZW"
    ):
        decode_image((tmp_path / "a.tif").read_bytes(), "it")


class TestNames:
    def test_composed_and_decomposed_letters_are_equal(self, tmp_path):
        names = [f"h\u00fchner_{k}" for k in range(4)]
        for k, name in enumerate(names):
            image, labels = scene(k)
            save_png(tmp_path / "images" / f"{unicodedata.normalize('NFD', name)}.png", image)
            save_png(tmp_path / "masks" / f"{unicodedata.normalize('NFC', name)}.png", white(labels))
        assert opened(tmp_path).n_objects == [N_CELLS] * 4
        (tmp_path / "manifest.csv").write_text("file\n" + "\n".join(f"{name}.png" for name in names))
        assert opened(tmp_path).n_objects == [N_CELLS] * 4

    @pytest.mark.parametrize(
        ("images", "masks", "affixes"),
        [
            (["a00", "a01"], ["a00_masks", "a01_masks"], ("*", "*_masks")),
            (["img_001", "img_002"], ["mask_001", "mask_002"], ("img*", "mask*")),
            (["a1_img", "a2_img"], ["a1_cp_masks", "a2_cp_masks"], ("*img", "*cp_masks")),
            (["x_c1", "y_c1"], ["x", "y"], ("*_c1", "*")),
            (["one"], ["one_mask"], ("*", "*_mask")),
            (["A", "b"], ["a", "B"], ("", "")),
        ],
    )
    def test_a_common_affix_is_found(self, images, masks, affixes):
        found = pair_stems(images, masks)
        assert found == (dict(zip(images, masks, strict=True)), [], [], affixes)

    @pytest.mark.parametrize(
        ("images", "masks"),
        [
            (["a10", "a11"], ["b20", "b21"]),  # the stripped beginnings hold numbers of images
            (["fish0", "fish1"], ["bird7", "bird8"]),
            (["s1_a", "s1_b"], ["s2_a", "s2_b"]),
            (["cat"], ["dog"]),
        ],
    )
    def test_names_that_only_look_alike_are_not_paired(self, images, masks):
        assert pair_stems(images, masks).pairs == {}

    def test_equal_names_go_before_alike_ones(self):
        assert pair_stems(["a", "A"], ["A", "a"]).pairs == {"a": "a", "A": "A"}

    def test_an_affix_is_told_once_and_so_are_names_that_do_not_fit(self, tmp_path):
        root = save_all(tmp_path / "a", MASKS["Cellpose's suffix"])
        notes = checked(root).notes
        assert [n for n in notes if "*_cp_masks is taken as the mask of *" in n] and len(notes) == 1
        for path in (root / "labels").iterdir():
            path.rename(path.with_name(f"b{9 - int(path.stem[1])}.png"))
        assert [p.rpartition(" (and ")[2] for p in checked(root).problems] == [
            "3 more images without mask)",
            "3 more masks without image)",
        ]

    def test_two_rows_of_one_stem_have_names_of_their_own_or_share_no_mask(self, tmp_path):
        image, labels = scene(0)
        save_png(tmp_path / "images" / "a.png", image)
        save_tiff(tmp_path / "images" / "a.tif", image)
        save_png(tmp_path / "masks" / "a.png", white(labels))
        (tmp_path / "manifest.csv").write_text("file\na.png\na.tif\n")
        with pytest.raises(DataError, match=r"masks/a\.png: the mask of images/a\.png and images/a\.tif"):
            opened(tmp_path)


def test_files_that_are_read_otherwise_than_before_have_another_fingerprint(tmp_path):
    """The folder in the cache is named by the files' contents: the fingerprint of old records."""
    plain = opened(save_all(tmp_path / "plain", mask_saved(lambda p, m: save_png(p, white(m)))))
    assert plain.fingerprint == plain.folder.name
    for case in (
        "turned by its tag",
        "palette, black is index 1",
        "alpha is the mask",
        "ImageJ's inverting look-up table",
    ):
        data = opened(save_all(tmp_path / case, MASKS[case]))
        assert data.fingerprint != data.folder.name
    for case in ("palette of instances", "white is zero", "1 bit"):
        data = opened(save_all(tmp_path / case, MASKS[case]))
        assert data.fingerprint == data.folder.name


def test_void_pixels_are_neither_cell_nor_background():
    values = np.zeros((6, 8), np.uint8)
    values[1:3, 1:3], values[4, 4:6], values[:, 7] = 1, 1, 255
    data = imagecodecs.png_encode(values)
    truth = decode_mask(data, "it", is_labels=False, reading=Reading(ignore=255))
    assert truth.labels.max() == 2
    assert truth.void is not None
    assert (truth.void == (values == 255)).all()
    with pytest.raises(DataError, match=r"set data\.ignore: 255"):
        decode_mask(data, "it", is_labels=False)

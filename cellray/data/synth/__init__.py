"""Drawn images that look like the yellow FNC collection, with their true labels.

They stand in for the real collection where it can't be had: quickstart, tests, benchmarks. A layout (how many
cells, where, which outline) is drawn first, then painted, then photographed; each step has its own stream of
random numbers, so that labels alone can be drawn without the cost of the picture.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import expand_labels

from cellray.arrays import Labels
from cellray.data.synth.fields import expose
from cellray.data.synth.layout import Layout, draw_layout
from cellray.data.synth.paint import paint
from cellray.errors import DataError

SPLITS = ("trainval", "test")


def draw_labels(rng: np.random.Generator, *, width_px: int, height_px: int, scale: float = 1.0) -> Labels:
    """The labels that `draw_image` would return for the same generator, without painting the image."""
    return _draw_layout(rng, width_px, height_px, scale)[0].labels


def draw_image(
    rng: np.random.Generator,
    *,
    width_px: int,
    height_px: int,
    scale: float = 1.0,
    label_dilation_px: float = 0.0,
    unmarked_share: float = 0.0,
) -> tuple[NDArray[np.uint8], Labels]:
    """Draw one image and its labels.

    Args:
        rng: Decides everything; the same state gives the same image.
        width_px: Width of the image, at least 32.
        height_px: Height of the image, at least 32.
        scale: 1 draws at the native resolution (a cell is about 40 px wide), 0.5 half as large. Noise and hot
            pixels belong to the camera and stay one pixel wide. The field holds as many cells as a native
            field of its area would, but never fewer than half of a native field does on average, as far as
            they fit.
        label_dilation_px: Annotation noise: contours drawn so far outside the true ones, in native px. The
            published v1 masks lie about 2 px outside the cleaned ones.
        unmarked_share: Annotation noise: this share of cells, the dimmest first, is left unmarked, in [0, 1).

    Returns:
        The image, uint8 (H, W, 3), and its labels, int32 (H, W), 0 = background, cells numbered 1 to n.

    Raises:
        DataError: If a size or share is out of range.
    """
    _check(width_px, height_px, scale)
    if not 0 <= unmarked_share < 1 or label_dilation_px < 0:
        raise DataError(
            f"label noise: unmarked_share must be in [0, 1) and label_dilation_px >= 0, "
            f"got {unmarked_share} and {label_dilation_px}"
        )
    layout, brush, camera = _draw_layout(rng, width_px, height_px, scale)
    light, hue = paint(brush, layout, scale)
    image = expose(camera, light, hue)
    labels: Labels = layout.labels
    if unmarked_share and layout.cells:
        labels = _unmark_dim(labels, light, unmarked_share)
    if label_dilation_px:
        labels = expand_labels(labels, label_dilation_px * scale).astype(np.int32)
    return image, labels


def synthesise(
    out: Path,
    *,
    n_trainval: int,
    n_test: int,
    width_px: int,
    height_px: int,
    scale: float,
    seed: int,
    label_dilation_px: float = 0.0,
    unmarked_share: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a folder of drawn images in the layout of FNC v2.

    `<split>/images/*.png` (RGB), `<split>/ground_truths/masks/*.png` (0 and 255) and
    `<split>/ground_truths/labels/*.png` (16-bit instances) for the splits trainval and test. The same seed
    writes the same bytes, and an image doesn't depend on how many others are drawn. Label noise touches
    trainval only: a test set is scored against the truth.

    Args:
        out: A folder that doesn't exist yet or is empty. It appears whole or not at all.
        n_trainval: Number of images for training and validation.
        n_test: Number of test images.
        width_px: See `draw_image`, as for the following ones.
        height_px: Likewise.
        scale: Likewise.
        seed: Any integer >= 0.
        label_dilation_px: Likewise, in trainval.
        unmarked_share: Likewise, in trainval.
        progress: Called with (images written, images in all).

    Raises:
        DataError: If `out` holds files already, or a number is out of range.
    """
    _check(width_px, height_px, scale)
    if n_trainval < 0 or n_test < 0 or seed < 0:
        raise DataError(f"n_trainval, n_test and seed must be >= 0, got {n_trainval}, {n_test} and {seed}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: holds files already; expected a new or empty folder for drawn images")
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    noise = {"label_dilation_px": label_dilation_px, "unmarked_share": unmarked_share}
    written = 0
    try:
        for number, (split, count) in enumerate(zip(SPLITS, (n_trainval, n_test), strict=True)):
            folders = [aside / split / sub for sub in ("images", "ground_truths/masks", "ground_truths/labels")]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, index)))
                image, labels = draw_image(
                    rng, width_px=width_px, height_px=height_px, scale=scale, **(noise if number == 0 else {})
                )
                mask = np.where(labels > 0, 255, 0).astype(np.uint8)
                arrays: tuple[NDArray[np.integer], ...] = (image, mask, labels.astype(np.uint16))
                for folder, array in zip(folders, arrays, strict=True):
                    Image.fromarray(array).save(folder / f"{split}_{index:04d}.png", compress_level=4)
                written += 1
                if progress is not None:
                    progress(written, n_trainval + n_test)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _draw_layout(
    rng: np.random.Generator, width_px: int, height_px: int, scale: float
) -> tuple[Layout, np.random.Generator, np.random.Generator]:
    plan, brush, camera = rng.spawn(3)
    return draw_layout(plan, width_px=width_px, height_px=height_px, scale=scale), brush, camera


def _unmark_dim(labels: Labels, light: NDArray[np.float32], share: float) -> Labels:
    """Take the dimmest cells off the labels and number the others anew; at least one stays."""
    total = np.bincount(labels.ravel(), light.ravel())[1:]
    mean = total / np.maximum(np.bincount(labels.ravel())[1:], 1)
    gone = np.argsort(mean, kind="stable")[: int(share * len(mean))]
    keep = np.ones(len(mean) + 1, bool)
    keep[0] = False
    keep[gone + 1] = False
    return (np.cumsum(keep) * keep).astype(np.int32)[labels]


def _check(width_px: int, height_px: int, scale: float) -> None:
    if min(width_px, height_px) < 32 or not 0.1 <= scale <= 4:
        raise DataError(
            f"drawn images: sides must be at least 32 px and scale in [0.1, 4], "
            f"got {width_px} x {height_px} px at scale {scale}"
        )

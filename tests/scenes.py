"""Images of bright disks with their labels, and folders that hold them as people save theirs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

Saver = Callable[[Path, int, np.ndarray, np.ndarray], None]
"""Saves image and mask number k below a folder."""
SIDE, N_CELLS, RADIUS = 96, 12, 6


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 of disks on a dim ground and their labels 1..12, in no two of which are disks nearer than 4 px."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    placed: list[tuple[int, int]] = []
    while len(placed) < N_CELLS:
        y, x = (int(v) for v in rng.integers(RADIUS + 2, SIDE - RADIUS - 2, 2))
        if all((y - a) ** 2 + (x - b) ** 2 > (2 * RADIUS + 4) ** 2 for a, b in placed):
            placed.append((y, x))
            labels[(rows - y) ** 2 + (columns - x) ** 2 < RADIUS**2] = len(placed)
    image = rng.normal(20, 4, labels.shape) + 150 * (labels > 0)
    return image.clip(0, 255).astype(np.uint8), labels


def noise(seed: int) -> np.ndarray:
    """A channel that shows nothing."""
    return np.random.default_rng(1000 + seed).normal(20, 4, (SIDE, SIDE)).clip(0, 255).astype(np.uint8)


def white(labels: np.ndarray) -> np.ndarray:
    """A binary mask, 0 and 255."""
    return ((labels > 0) * 255).astype(np.uint8)


def save_png(path: Path, pixels: np.ndarray | Image.Image, **settings: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **settings)


def save_tiff(path: Path, pixels: np.ndarray, **settings: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **settings)


def turned_tag(number: int) -> Image.Exif:
    """EXIF data whose orientation is `number`."""
    exif = Image.Exif()
    exif[274] = number
    return exif


def png_of_4_bits(values: np.ndarray) -> bytes:
    """A gray PNG of 4 bits a pixel; the width is even."""
    packed = (values[:, ::2] << 4 | values[:, 1::2]).astype(np.uint8)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 4, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def palette_picture(indices: np.ndarray, colours: list[int]) -> Image.Image:
    """A picture of indices, with red, green and blue of each."""
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette(colours)
    return picture


def save_all(root: Path, save: Saver, n: int = 4) -> Path:
    """A dataset of n scenes."""
    for k in range(n):
        save(root, k, *scene(k))
    return root


def image_saved(save: Callable[[Path, int, np.ndarray], None], name: str) -> Saver:
    """A saver of images, beside plain masks; `name` is the image's, with ``{k}``."""

    def saver(root: Path, k: int, image: np.ndarray, labels: np.ndarray) -> None:
        path = root / "images" / name.format(k=k)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, k, image)
        save_png(root / "masks" / f"{Path(name.format(k=k)).stem}.png", white(labels))

    return saver


def mask_saved(save: Callable[[Path, np.ndarray], None], name: str = "masks/a{k}.png") -> Saver:
    """A saver of masks, beside plain images; `name` is the mask's, with ``{k}``."""

    def saver(root: Path, k: int, image: np.ndarray, labels: np.ndarray) -> None:
        save_png(root / "images" / f"a{k}.png", image)
        path = root / name.format(k=k)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, labels)

    return saver

"""Images without ground truth, for prediction."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellray.data.convert import convert_image
from cellray.data.decode import PLAIN, Reading, check_depth, decode_image
from cellray.data.image_file import read_header
from cellray.data.listing import IMAGE_SUFFIXES
from cellray.data.source import MAX_FILE_BYTES, plain_name
from cellray.errors import DataError
from cellray.storage import open_plain, read_plain


def list_images(path: Path) -> list[Path]:
    """The image files of a folder (or of its images/ if it has none itself), or the one file, sorted.

    Raises:
        DataError: If there are none.
    """
    if path.is_file():
        return [path]
    for folder in (path, path / "images"):
        if folder.is_dir():
            found = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != ".")
            if found:
                return found
    state = "no image in it" if path.is_dir() else "no such file or folder"
    raise DataError(f"{path}: {state}, expected {', '.join(IMAGE_SUFFIXES)} files")


def outputs_of(files: list[Path]) -> list[str]:
    """A name for what is made of each file: its stem, or where several share one, the whole name."""
    stems = Counter(plain_name(file.stem) for file in files)
    return [file.stem if stems[plain_name(file.stem)] == 1 else file.name for file in files]


def planes_of(path: Path, reading: Reading) -> list[int | None]:
    """The planes of a file that are images of their own, by its header: their numbers from 1 on, or one None.

    Raises:
        DataError: If the file is no image of 8 or 16 bits, or its header is damaged.
    """
    try:
        with open_plain(path) as file:
            n, dtype = read_header(file, str(path))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    check_depth(dtype, str(path))
    return list(range(1, n + 1)) if reading.plane == "all" and n > 1 else [None]


def file_content(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: If it can't be read, is no plain file or too large.
    """
    try:
        return read_plain(path, MAX_FILE_BYTES)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error


def image_from_bytes(
    data: bytes,
    where: str,
    *,
    channels: int,
    normalise: str,
    max_value: float | None = None,
    reading: Reading = PLAIN,
    plane: int | None = None,
) -> NDArray[np.uint8]:
    """An image as the model is fed it, uint8, shape (H, W, channels); converted like those of a dataset.

    Args:
        data: Content of the file.
        where: Names it in errors.
        channels, normalise, reading: As in the study.
        max_value: Full-scale intensity; None: that of the file's type.
        plane: Of a stack: which one, from 1 on.
    """
    pixels = decode_image(data, where, reading.at(plane)).pixels
    full_scale = max_value or np.iinfo(pixels.dtype).max
    converted = convert_image(pixels, channels=channels, normalise=normalise, max_value=full_scale)
    return np.require(converted, requirements="W")  # a decoder's own memory can't be handed to torch

"""One image file or mask file to an array, with every way it can be unusable told apart."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.measure import label as label_regions

from cellray.errors import DataError

PIXEL_LIMIT = 89_000_000
"""Larger pictures are refused before they are decoded; just below the size at which Pillow suspects a bomb."""
MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
}
EIGHT_CONNECTED = np.ones((3, 3), bool)

UInt = NDArray[np.uint8] | NDArray[np.uint16]
Array = NDArray[Any]


def decode_image(data: bytes, where: str) -> UInt:
    """A microscopy image, shape (H, W) or (H, W, 3), uint8 or uint16; an alpha channel is dropped.

    Raises:
        DataError: If the file is damaged, too large, of another format, or not 8 or 16 bits.
    """
    pixels, _ = _decode(data, where, palette=False)
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] <= 2 else pixels[..., :3]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{where}: image of {pixels.dtype}, expected 8 or 16 bits (uint8 or uint16)")
    return pixels


def decode_mask(data: bytes, where: str, *, is_labels: bool) -> NDArray[np.int32]:
    """Ground truth as labels, shape (H, W): 0 background, cells numbered 1..n without gaps.

    A binary mask (0/1, 0/255) becomes its 8-connected components. A mask of several consecutive whole
    numbers is taken as instance labels, as is everything from a labels folder (`is_labels`).

    Raises:
        DataError: If it is neither, is not of whole numbers, or has no background at all.
    """
    pixels, kind = _decode(data, where, palette=True)
    if pixels.ndim == 3:
        pixels = _one_channel(pixels, where)
    if pixels.dtype.kind == "f":
        raise DataError(f"{where}: labels of {pixels.dtype}, expected whole numbers (8 or 16 bits)")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "i" and pixels.size and pixels.min() < 0:
        raise DataError(f"{where}: label {pixels.min()}, expected 0 for background and cells from 1")
    values = _present(pixels)
    values = values[values > 0]
    single = len(values) == 1
    binary = single and int(values[0]) in ((255, 65535) if is_labels else (1, 255, 65535))
    if single and not binary and not is_labels:
        raise DataError(f"{where}: the mask's one value is {values[0]}, expected 0/1, 0/255 or instance labels 1..n")
    if kind == "JPEG" and len(values) and not binary:
        raise DataError(
            f"{where}: a JPEG mask is blurred by its compression ({len(values)} gray levels), expected PNG or TIFF"
        )
    if binary:
        labels, _ = ndimage.label(pixels, structure=EIGHT_CONNECTED)
    else:
        if len(values) > 1 and not is_labels:
            _check_instances(pixels, values, where)
        labels = consecutive(pixels)
    if labels.size and labels.all():
        raise DataError(f"{where}: every pixel is marked as cell (value {pixels.max()}), expected background (0) too")
    return labels.astype(np.int32, copy=False)


def consecutive(labels: Array) -> NDArray[np.int32]:
    """The same objects numbered 1..n in the order of their old numbers, 0 kept."""
    values = _present(labels)
    values = values[values > 0]
    if len(values) == 0:
        return np.zeros(labels.shape, np.int32)
    if int(values[-1]) == len(values):
        return labels.astype(np.int32)
    if int(values[-1]) < 2**24:
        table = np.zeros(int(values[-1]) + 1, np.int32)
        table[values] = np.arange(1, len(values) + 1)
        renumbered: NDArray[np.int32] = table[labels]
        return renumbered
    return np.where(labels > 0, np.searchsorted(values, labels) + 1, 0).astype(np.int32)


def _present(pixels: Array) -> Array:
    """The distinct values, sorted."""
    if pixels.size and int(pixels.max()) < 2**24:
        return np.flatnonzero(np.bincount(pixels.ravel()))
    return np.unique(pixels)


def _check_instances(pixels: Array, values: Array, where: str) -> None:
    """Refuse gray levels: gaps between the values, one region in many values, or one value in many regions."""
    top = int(values[-1])
    has_gaps = len(values) < 0.5 * top
    # a blurred or resampled mask is mostly white; no label that happens to be 255 covers so much
    is_white = top in (255, 65535) and np.count_nonzero(pixels == top) > 0.3 * np.count_nonzero(pixels)
    areas = np.bincount(label_regions(pixels, background=0).ravel())[1:]
    is_strewn = len(areas) > 3 * len(values) + 10 or np.median(areas) < 3
    if has_gaps or is_white or is_strewn:
        raise DataError(
            f"{where}: {len(values) + 1} gray levels from 0 to {values[-1]} are neither a binary mask (0/1, 0/255) "
            f"nor instance labels (1..n, one region each); labels with gaps belong in a folder called labels"
        )


def _one_channel(pixels: Array, where: str) -> Array:
    channels = pixels.shape[2]
    colours = pixels[..., : 1 if channels <= 2 else 3]
    if not (colours == colours[..., :1]).all():
        raise DataError(f"{where}: a colour picture, expected a mask or labels with one value a pixel")
    return colours[..., 0]


def _decode(data: bytes, where: str, *, palette: bool) -> tuple[Array, str]:
    """Pixels (H, W) or (H, W, C) and the format; `palette` keeps the indices of a palette picture."""
    if not data:
        raise DataError(f"{where}: the file is empty (0 bytes), expected an image")
    kind = MAGIC.get(data[:4]) or MAGIC.get(data[:3])
    if kind is None:
        raise DataError(f"{where}: unknown format (starts with {data[:4]!r}), expected PNG, TIFF or JPEG")
    try:
        return (_decode_tiff(data, where, palette) if kind == "TIFF" else _decode_pillow(data, where, palette)), kind
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {error}; expected at most {PIXEL_LIMIT} pixels") from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise DataError(f"{where}: a damaged or truncated {kind}: {error}") from error


def _check_size(height: int, width: int, where: str) -> None:
    if height * width > PIXEL_LIMIT:
        raise DataError(f"{where}: {width}x{height} pixels, expected at most {PIXEL_LIMIT} in all")


def _decode_pillow(data: bytes, where: str, palette: bool) -> Array:
    with Image.open(io.BytesIO(data)) as picture:
        _check_size(picture.height, picture.width, where)
        if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise DataError(f"{where}: a {picture.mode} picture, expected gray or RGB")
        n_frames = getattr(picture, "n_frames", 1)
        if n_frames > 1:
            raise DataError(f"{where}: {n_frames} pictures in one file, expected one")
        deep = data[:4] == b"\x89PNG" and data[24] == 16 and data[25] != 0
        if deep:  # Pillow keeps only the upper 8 of its 16 bits without a word
            raise DataError(f"{where}: a colour PNG of 16 bits a channel, expected 8 bits (or save it as TIFF)")
        is_palette = picture.mode in ("P", "PA")
        pixels = np.asarray(picture.convert("RGB") if is_palette and not palette else picture)
    if pixels.dtype == np.int32 and data[:4] == b"\x89PNG":
        pixels = pixels.astype(np.uint16)
    return pixels


def _decode_tiff(data: bytes, where: str, palette: bool) -> Array:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) != 1:
            raise DataError(f"{where}: a TIFF of {len(file.pages)} pages (a stack), expected one picture")
        page: Any = file.pages[0]
        _check_size(page.imagelength, page.imagewidth, where)
        if page.samplesperpixel > 4:
            raise DataError(f"{where}: a TIFF of {page.samplesperpixel} channels, expected gray or RGB")
        axes, shape, colours = page.axes, page.shape, getattr(page.photometric, "name", str(page.photometric))
        if colours in ("SEPARATED", "CIELAB", "ICCLAB", "ITULAB", "CFA", "LINEAR_RAW"):
            raise DataError(f"{where}: a TIFF of {colours} colours, expected gray or RGB")
        if colours == "PALETTE" and not palette:
            return _decode_pillow(data, where, palette)
        try:
            pixels: Array = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _decode_pillow(data, where, palette)  # it knows LZW and JPEG compression by itself
    if colours == "MINISWHITE" and pixels.dtype.kind in "bu":
        pixels = ~pixels
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise DataError(f"{where}: a TIFF with axes {axes} and shape {shape}, expected one gray or RGB picture")
    return pixels

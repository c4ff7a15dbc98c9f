"""The bytes of an image file as an array with its planes, channels and palette; nothing is chosen or guessed here."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cellray.errors import DataError

PIXEL_LIMIT = 89_000_000
"""Larger pictures are refused before they are decoded; just below the size at which Pillow suspects a bomb."""
STACK_LIMIT = 4 * PIXEL_LIMIT
"""Of all planes and channels of a file together."""
MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
}
ORIENTATION = 274
"""Number of the tag of TIFF and EXIF that says how a viewer turns a picture; 1 is as stored."""
AXES = {"Z": "depths", "T": "times"}
"""Axes of a stack in words; others are pages."""
OPACITY_SAMPLES = (1, 2)
"""What a TIFF calls an extra sample that is opacity."""

Array = NDArray[Any]


@dataclass(frozen=True)
class ImageFile:
    """What a file holds. Values are as stored, but for TIFFs whose zero is white."""

    pixels: Array
    """Shape (planes, H, W, channels), turned as viewers show it."""
    kind: str
    """PNG, JPEG or TIFF."""
    has_alpha: bool = False
    """Whether the last channel is opacity."""
    palette: NDArray[np.uint8] | None = None
    """Colour of each index, shape (n, 4), red, green, blue and opacity; the pixels are indices."""
    gray_step: int = 1
    """Of a PNG of 2 or 4 bits: what one gray level has become on the way to 8 bits."""
    channel_names: tuple[str, ...] = ()
    planes_said: str = ""
    """Such as ``5 depths``: the axes of a stack."""
    reread: tuple[str, ...] = ()
    """Rules that changed the pixels and that cellray didn't know at first: they are part of fingerprints."""

    @property
    def n_planes(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def n_colours(self) -> int:
        """Channels besides opacity."""
        return int(self.pixels.shape[3]) - self.has_alpha


def read_picture(data: bytes, where: str) -> ImageFile:
    """Decode a PNG, JPEG or TIFF.

    Args:
        data: The file's content.
        where: How errors call the file.

    Raises:
        DataError: If the file is damaged, too large, of another format or colour space, or compressed unreadably.
    """
    kind = _kind(data, where)
    try:
        return _read_tiff(data, where) if kind == "TIFF" else _read_pillow(data, where, kind)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {error}; expected at most {PIXEL_LIMIT} pixels") from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise DataError(f"{where}: a damaged or truncated {kind}: {error}") from error


def count_planes(data: bytes, where: str) -> int:
    """Planes of a file, by its header alone."""
    if _kind(data, where) != "TIFF":
        return 1
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            return int(np.prod([n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXCS"]))
    except Exception as error:
        raise DataError(f"{where}: a damaged or truncated TIFF: {error}") from error


def _kind(data: bytes, where: str) -> str:
    if not data:
        raise DataError(f"{where}: the file is empty (0 bytes), expected an image")
    kind = MAGIC.get(data[:4]) or MAGIC.get(data[:3])
    if kind is None:
        raise DataError(f"{where}: unknown format (starts with {data[:4]!r}), expected PNG, TIFF or JPEG")
    return kind


def _check_size(height: int, width: int, where: str) -> None:
    if height * width > PIXEL_LIMIT:
        raise DataError(f"{where}: {width}x{height} pixels, expected at most {PIXEL_LIMIT} in all")


def _read_pillow(data: bytes, where: str, kind: str) -> ImageFile:
    with Image.open(io.BytesIO(data)) as picture:
        _check_size(picture.height, picture.width, where)
        if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise DataError(f"{where}: a {picture.mode} picture, expected gray or RGB")
        n_frames = getattr(picture, "n_frames", 1)
        if n_frames > 1:
            raise DataError(f"{where}: {n_frames} pictures in one file, expected one")
        is_png = kind == "PNG"
        n_bits, colour_type = (data[24], data[25]) if is_png else (8, -1)
        # Pillow keeps only the upper 8 of the 16 bits of a colour without a word
        deep = is_png and n_bits == 16 and colour_type != 0
        pixels = imagecodecs.png_decode(data) if deep else np.asarray(picture)
        palette = _pillow_palette(picture) if picture.mode in ("P", "PA") else None
        orientation = picture.getexif().get(ORIENTATION, 1)
        has_alpha = picture.mode in ("LA", "RGBA", "PA") or colour_type in (4, 6)
    if pixels.dtype == np.int32 and is_png:
        pixels = pixels.astype(np.uint16)
    pixels = pixels[None, ..., None] if pixels.ndim == 2 else pixels[None]
    if palette is not None and has_alpha:
        pixels, has_alpha = pixels[..., :1], False
    found = ImageFile(
        pixels,
        kind,
        has_alpha=has_alpha,
        palette=palette,
        gray_step={2: 85, 4: 17}.get(n_bits, 1) if colour_type == 0 else 1,
        channel_names=("red", "green", "blue") if pixels.shape[3] - has_alpha == 3 else (),
    )
    return _turned(found, orientation)


def _pillow_palette(picture: Image.Image) -> NDArray[np.uint8]:
    """Colours of all 256 indices, with their opacity."""
    swatches = Image.new("P", (256, 1))
    swatches.putdata(range(256))
    swatches.putpalette(picture.palette or b"", picture.palette.mode if picture.palette else "RGB")
    colours = np.full((256, 4), 255, np.uint8)
    colours[:, :3] = np.asarray(swatches.convert("RGB"))[0]
    opacity = picture.info.get("transparency")
    if isinstance(opacity, bytes):
        colours[: len(opacity), 3] = np.frombuffer(opacity, np.uint8)
    elif isinstance(opacity, int):
        colours[opacity, 3] = 0
    return colours


def _read_tiff(data: bytes, where: str) -> ImageFile:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.series) != 1:
            raise DataError(f"{where}: {len(file.series)} pictures of unlike sizes or kinds in one file, expected one")
        series: Any = file.series[0]
        page: Any = file.pages[0]
        _check_size(page.imagelength, page.imagewidth, where)
        axes, shape = series.axes, series.shape
        if "Y" not in axes or "X" not in axes:
            raise DataError(f"{where}: a TIFF with axes {axes} and shape {shape}, expected pictures")
        if int(np.prod(shape, dtype=np.int64)) > STACK_LIMIT:
            raise DataError(f"{where}: a stack of {shape} values, expected at most {STACK_LIMIT} in all")
        colours = getattr(page.photometric, "name", str(page.photometric))
        if colours in ("SEPARATED", "CIELAB", "ICCLAB", "ITULAB", "CFA", "LINEAR_RAW"):
            raise DataError(f"{where}: a TIFF of {colours} colours, expected gray or RGB")
        pixels = _decompress(series, page, where)
        if pixels.shape != tuple(shape):
            raise DataError(f"{where}: a damaged or truncated TIFF: {pixels.shape} values of {tuple(shape)}")
        by_imagej = bool(file.is_imagej)
        names = _channel_names(file)
        palette = _tiff_palette(page) if colours == "PALETTE" else None
    # ImageJ writes "zero is white" for a look-up table that only its display inverts
    is_inverted = colours == "MINISWHITE" and pixels.dtype.kind in "bu"
    reread: tuple[str, ...] = ("imagej_white",) if is_inverted and by_imagej else ()
    if is_inverted and not by_imagej:
        pixels = ~pixels
    if page.bitspersample > 8 and (page.samplesperpixel > 2 or is_inverted) and _was_cut(page):
        reread += ("deep",)
    others = [axis for axis in axes if axis not in "YXCS"]
    order = [axes.index(axis) for axis in (*others, "Y", "X", *(a for a in "CS" if a in axes))]
    sizes = dict(zip(axes, shape, strict=True))
    pixels = pixels.transpose(order)
    pixels = pixels.reshape(-1, sizes["Y"], sizes["X"], sizes.get("C", 1) * sizes.get("S", 1))
    is_rgb = colours in ("RGB", "YCBCR")
    found = ImageFile(
        pixels,
        "TIFF",
        has_alpha=any(int(kind) in OPACITY_SAMPLES for kind in page.extrasamples) and "C" not in axes,
        palette=palette,
        channel_names=("red", "green", "blue") if is_rgb and "C" not in axes else names,
        planes_said=" x ".join(f"{sizes[axis]} {AXES.get(axis, 'pages')}" for axis in others),
        reread=reread,
    )
    tag = page.tags.get(ORIENTATION)
    return _turned(found, tag.value if tag else 1)


def _decompress(series: Any, page: Any, where: str) -> Array:
    try:
        return np.asarray(series.asarray())
    except (ImportError, ValueError, KeyError) as error:
        packed = getattr(page.compression, "name", str(page.compression))
        words = str(error)
        if not isinstance(error, ImportError) and "imagecodecs" not in words and "COMPRESSION" not in words:
            raise
        raise DataError(
            f"{where}: compressed with {packed}, which can't be read here ({words}); "
            f"save it with LZW, deflate or no compression"
        ) from error


def _was_cut(page: Any) -> bool:
    """Whether Pillow used to read this compression, which knows 8 bits a colour only."""
    return getattr(page.compression, "name", "") not in ("NONE", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "LZMA")


def _channel_names(file: tifffile.TiffFile) -> tuple[str, ...]:
    """What OME calls the channels."""
    return tuple(re.findall(r'<(?:\w+:)?Channel\b[^>]*?\bName="([^"]*)"', file.ome_metadata or ""))


def _tiff_palette(page: Any) -> NDArray[np.uint8]:
    colours = np.asarray(page.colormap)
    opaque = np.full((colours.shape[1], 1), 255, np.uint8)
    return np.hstack([(colours.T >> 8).astype(np.uint8), opaque])


def _turned(picture: ImageFile, orientation: object) -> ImageFile:
    """As a viewer shows it: rows and columns swapped for 5 to 8, then mirrored."""
    number = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    if number == 1:
        return picture
    pixels = picture.pixels.swapaxes(1, 2) if number >= 5 else picture.pixels
    if number in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    if number in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    return replace(picture, pixels=np.ascontiguousarray(pixels), reread=(*picture.reread, "turned"))

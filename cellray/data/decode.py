"""Decoded files as images and as ground truth, with every way they can be unusable told apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label as label_regions

from cellray.arrays import Mask, brightest
from cellray.data.image_file import Array, ImageFile, read_picture
from cellray.errors import DataError

EIGHT_CONNECTED = np.ones((3, 3), bool)
MIXES = ("max", "mean")
"""Ways to make one of several channels or planes; a mask's planes are always joined by their maximum."""

UInt = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Reading:
    """What a study says about files that hold more than one picture; nothing of it touches files that hold one."""

    channel: int | str | None = None
    """A channel from 1 on, its name in the file, or one of `MIXES`."""
    plane: int | str | None = None
    """A plane from 1 on, one of `MIXES`, or ``all``: then `decode_image` is asked for each by its number."""
    ignore: int | None = None
    """The value of mask pixels that are neither cell nor background."""

    def facts(self) -> dict[str, object]:
        """What has been said, for a fingerprint."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def at(self, plane: int | None) -> Reading:
        """The same for one plane of a stack, if a number is given."""
        return self if plane is None else replace(self, plane=plane)


PLAIN = Reading()


class ChannelsError(DataError):
    """An image of several channels, of which none was chosen."""

    def __init__(self, message: str, n_channels: int) -> None:
        super().__init__(message)
        self.n_channels = n_channels


class Decoded(NamedTuple):
    """An image."""

    pixels: UInt
    """Shape (H, W) or (H, W, 3)."""
    reread: tuple[str, ...]
    """As `ImageFile.reread`."""


class Truth(NamedTuple):
    """Ground truth."""

    labels: NDArray[np.int32]
    """Shape (H, W): 0 background, cells numbered 1..n without gaps."""
    void: Mask | None
    """Pixels that count as neither, same shape; None if there are none."""
    reread: tuple[str, ...]
    """As `ImageFile.reread`."""
    odd_label: int | None
    """255 or 65535 if it is a label far above all others: perhaps no cell, but pixels to leave out."""
    tells_apart: bool = False
    """Whether cells have numbers of their own, so that those that touch are known."""


def decode_image(data: bytes, where: str, reading: Reading = PLAIN) -> Decoded:
    """A microscopy image, uint8 or uint16; an alpha channel is dropped.

    Raises:
        DataError: If the file is damaged, too large, of another format, not 8 or 16 bits, or holds several planes
            (or, as `ChannelsError`, channels) of which none was chosen.
    """
    picture = read_picture(data, where)
    if picture.palette is not None:
        colours = picture.palette[picture.pixels[..., 0], :3]
        picture = replace(picture, pixels=colours, channel_names=("red", "green", "blue"))
    pixels = _one_plane(picture, where, reading.plane, mix=None)
    pixels = _chosen_channels(pixels, picture, where, reading.channel)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    check_depth(pixels.dtype, where)
    return Decoded(pixels, picture.reread)


def check_depth(dtype: np.dtype[Any], where: str) -> None:
    """Raise `DataError` for values that images can't have."""
    if dtype not in (np.bool_, np.uint8, np.uint16):
        raise DataError(f"{where}: image of {dtype}, expected 8 or 16 bits (uint8 or uint16)")


def decode_mask(data: bytes, where: str, *, is_labels: bool, reading: Reading = PLAIN) -> Truth:
    """Ground truth.

    A binary mask (0/1, 0/255) becomes its 8-connected components. A mask of several consecutive whole
    numbers is taken as instance labels, as is everything from a labels folder (`is_labels`).

    Raises:
        DataError: If it is neither, is not of whole numbers, or has no background at all.
    """
    picture = read_picture(data, where)
    pixels = _one_plane(picture, where, reading.plane, mix="max")
    pixels, reread = _one_value(pixels, picture, where)
    if pixels.dtype.kind == "f":
        raise DataError(f"{where}: labels of {pixels.dtype}, expected whole numbers (8 or 16 bits)")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "i" and pixels.size and pixels.min() < 0:
        raise DataError(f"{where}: label {pixels.min()}, expected 0 for background and cells from 1")
    void = None if reading.ignore is None else pixels == reading.ignore
    if void is not None and void.any():
        pixels = np.where(void, pixels.dtype.type(0), pixels)
    else:
        void = None
    odd_label = _odd_label(pixels)
    labels, tells_apart = _labels(pixels, where, is_labels=is_labels, is_jpeg=picture.kind == "JPEG")
    if void is None and labels.size and labels.all():
        raise DataError(f"{where}: every pixel is marked as cell (value {pixels.max()}), expected background (0) too")
    return Truth(labels.astype(np.int32, copy=False), void, picture.reread + reread, odd_label, tells_apart)


def decode_void(data: bytes, where: str, reading: Reading) -> Mask:
    """A file of its own that marks the pixels that count as neither cell nor background, shape (H, W)."""
    picture = read_picture(data, where)
    pixels, _ = _one_value(_one_plane(picture, where, reading.plane, mix="max"), picture, where)
    return np.asarray(pixels == reading.ignore)


def _labels(pixels: Array, where: str, *, is_labels: bool, is_jpeg: bool) -> tuple[Array, bool]:
    """Cells numbered from 1, and whether the file tells them apart."""
    values = _present(pixels)
    values = values[values > 0]
    single = len(values) == 1
    binary = single and int(values[0]) in ((255, 65535) if is_labels else (1, 255, 65535))
    if single and not binary and not is_labels:
        raise DataError(f"{where}: the mask's one value is {values[0]}, expected 0/1, 0/255 or instance labels 1..n")
    if is_jpeg and len(values) and not binary:
        raise DataError(
            f"{where}: a JPEG mask is blurred by its compression ({len(values)} gray levels), expected PNG or TIFF"
        )
    if binary:
        return ndimage.label(pixels, structure=EIGHT_CONNECTED)[0], False
    if len(values) > 1 and not is_labels:
        _check_instances(pixels, values, where)
    return consecutive(pixels), len(values) > 0


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


def _odd_label(pixels: Array) -> int | None:
    values = _present(pixels)
    values = values[values > 0]
    if len(values) < 2 or int(values[-1]) not in (255, 65535):
        return None
    return int(values[-1]) if 2 * int(values[-2]) < int(values[-1]) and values[-2] <= 2 * len(values) else None


def _check_instances(pixels: Array, values: Array, where: str) -> None:
    """Refuse gray levels: gaps between the values, one region in many values, or one value in many regions."""
    top = int(values[-1])
    has_gaps = len(values) < 0.5 * top
    # a blurred or resampled mask is mostly white; no label that happens to be 255 covers so much
    is_white = top in (255, 65535) and np.count_nonzero(pixels == top) > 0.3 * np.count_nonzero(pixels)
    areas = np.bincount(label_regions(pixels, background=0).ravel())[1:]
    is_strewn = len(areas) > 3 * len(values) + 10 or np.median(areas) < 3
    if not (has_gaps or is_white or is_strewn):
        return
    if _odd_label(pixels):
        hint = f"if {top} marks pixels that are neither cell nor background, set data.ignore: {top}"
    elif is_strewn and not has_gaps and len(values) <= 4:
        hint = "numbers of classes or of borders don't tell cells apart: save a mask of the cells alone as 0/255"
    else:
        hint = "labels with gaps belong in a folder called labels"
    raise DataError(
        f"{where}: {len(values) + 1} gray levels from 0 to {values[-1]} are neither a binary mask (0/1, 0/255) "
        f"nor instance labels (1..n, one region each); {hint}"
    )


def _one_plane(picture: ImageFile, where: str, plane: int | str | None, mix: str | None) -> Array:
    """Pixels (H, W, C) of the plane that was asked for; `mix` replaces a mix that was."""
    n = picture.n_planes
    if n == 1:
        return picture.pixels[0]
    if isinstance(plane, int):
        if not 1 <= plane <= n:
            raise DataError(f"{where}: data.plane is {plane}, but the stack has {n} planes, counted from 1")
        return picture.pixels[plane - 1]
    if plane in MIXES:
        return _mixed(picture.pixels, mix or str(plane), axis=0)
    raise DataError(
        f"{where}: a stack of {n} pictures ({picture.planes_said}), expected one; "
        f"set data.plane to max, mean, a number from 1 to {n}, or all (each plane an image of one group)"
    )


def _mixed(pixels: Array, mix: str, axis: int) -> Array:
    if mix == "max":
        return brightest(pixels) if axis == 2 else np.asarray(pixels.max(axis=axis))
    mean = pixels.mean(axis=axis, dtype=np.float64)
    return (mean + 0.5).astype(pixels.dtype) if pixels.dtype.kind == "u" else mean.astype(pixels.dtype)


def _chosen_channels(pixels: Array, picture: ImageFile, where: str, channel: int | str | None) -> Array:
    """Pixels (H, W) or (H, W, 3) of an image (H, W, C)."""
    n, names = picture.n_colours, picture.channel_names
    if picture.has_alpha and n:
        opacity, pixels = pixels[..., n], pixels[..., :n]
        if not _varies(pixels) and _varies(opacity):
            raise DataError(f"{where}: one plain colour; the picture is in its alpha channel, expected gray or RGB")
    if n == 1:
        return pixels[..., 0]
    if channel is None and n == 4 and names[:1] == ("red",) and not _varies(pixels[..., 3]):
        n, pixels = 3, pixels[..., :3]  # a fourth sample that says nothing
    if channel is None and n == 3:
        return pixels
    if channel in MIXES:
        return _mixed(pixels, str(channel), axis=2)
    if isinstance(channel, int) and 1 <= channel <= n:
        return pixels[..., channel - 1]
    known = [name.casefold() for name in names]
    if isinstance(channel, str) and channel.casefold() in known:
        return pixels[..., known.index(channel.casefold())]
    named = f" ({', '.join(names)})" if names else ""
    if channel is not None:
        raise DataError(f"{where}: data.channel is {channel!r}, but the image has {n} channels{named}")
    raise ChannelsError(
        f"{where}: an image of {n} channels{named}, expected one or three; "
        f"set data.channel to a number from 1 to {n}{' or a name' if names else ''}, or to max or mean of all",
        n,
    )


def _varies(pixels: Array) -> bool:
    return bool(pixels.size) and bool(pixels.min() != pixels.max())


def _one_value(pixels: Array, picture: ImageFile, where: str) -> tuple[Array, tuple[str, ...]]:
    """Mask pixels (H, W) with one value each, and the rules that cellray didn't know at first."""
    if picture.palette is not None:
        return _by_colour(pixels[..., 0], picture.palette, where)
    n = picture.n_colours
    if n == 4 and not _varies(pixels[..., 3]):
        n = 3  # a fourth sample that says nothing
    colours = pixels[..., :n]
    if picture.has_alpha and _varies(pixels[..., -1]):
        opacity = pixels[..., -1]
        if not _varies(brightest(colours)):
            return opacity, ("alpha",)
        if (colours.any(axis=2) & (opacity == 0)).any():
            raise DataError(f"{where}: its alpha channel hides a part of the mask, expected a mask without one")
    if n not in (1, 3):
        raise DataError(f"{where}: a picture of {n} channels, expected a mask or labels with one value a pixel")
    if not (colours == colours[..., :1]).all():
        raise DataError(
            f"{where}: a colour picture, expected a mask or labels with one value a pixel: "
            f"save each cell's number, or 0/255"
        )
    return (colours[..., 0] // picture.gray_step if picture.gray_step > 1 else colours[..., 0]), ()


def _by_colour(indices: Array, palette: NDArray[np.uint8], where: str) -> tuple[Array, tuple[str, ...]]:
    """Mask values of a palette picture: what it looks like decides, since the order of a palette means nothing.

    The background is index 0 if that is the most frequent one or black, else what is black or transparent.
    """
    used = np.bincount(indices.ravel(), minlength=len(palette))
    present = np.flatnonzero(used)
    shown = np.where(palette[:, 3:] > 0, palette[:, :3], 0)
    black = present[~shown[present].any(axis=1)]
    if used[0] and (used[0] == used.max() or not shown[0].any()):
        return indices, ()
    if not len(black):
        raise DataError(
            f"{where}: a palette picture of {len(present)} colours without black, "
            f"so its background can't be told; expected cells on black, or gray levels"
        )
    cells = np.setdiff1d(present, black)
    values = np.zeros(len(palette), np.uint16)
    values[cells] = 255 if len(cells) == 1 else np.arange(1, len(cells) + 1)
    return values[indices], ("palette",)

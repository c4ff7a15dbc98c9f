"""Cells marked in Cellpose (``_seg.npy``) and ImageJ (``.roi`` files and zips of them), as label images.

Nothing that a file names is imported or run: Cellpose's files are pickles, of which only plain values and arrays of
whole numbers are built, by the classes below.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon as fill_polygon

from cellray.data.decode import consecutive
from cellray.data.image_file import read_picture
from cellray.data.listing import is_image
from cellray.data.source import MAX_FILE_BYTES, Source, plain_name
from cellray.errors import DataError
from cellray.storage import read_plain

CELLPOSE = "_seg.npy"
ROI_ENDING = re.compile(r"(?:^|[-_ ])(?:roi(?:_?set)?s?)$", re.IGNORECASE)
"""How the stem of an ImageJ file may go on after the name of its image."""
AREAS = ("RECT", "OVAL", "POLYGON", "FREEHAND", "TRACED")
"""ImageJ's regions that enclose pixels; lines, points and angles don't."""


class Marked(NamedTuple):
    """A file with marked cells, and where its label image goes."""

    file: Path
    image: Path | None
    """The image that it belongs to; None of Cellpose's, which know their size."""
    target: Path


class ForeignLabels(NamedTuple):
    """What a file holds."""

    labels: NDArray[np.int32]
    """Shape (H, W), 0 background, cells 1 to n."""
    notes: list[str]
    """What couldn't be taken over, in sentences."""


def find_marked(path: Path, output: Path | None = None) -> list[Marked]:
    """The files of Cellpose and ImageJ at a path, each with the name of the label image to make of it.

    Args:
        path: A folder, searched with its inner ones, or one file.
        output: Folder for the label images, named as the images; None: where `cellray init` finds them, in labels/
            beside images/, else beside the image as NAME_label.tif.

    Raises:
        DataError: If there are none, the image of one can't be found, or a label image is there already.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = []
    for file in filter(is_foreign, files):
        image = None if file.name.endswith(CELLPOSE) else _image_of(file)
        stem = file.name.removesuffix(CELLPOSE) if image is None else image.stem
        folder = (image or file).parent
        if output is not None:
            target = output / f"{stem}.tif"
        elif folder.name == "images":
            target = folder.parent / "labels" / f"{stem}.tif"
        else:
            target = folder / f"{stem}_label.tif"
        found.append(Marked(file, image, target))
    if not found:
        state = "no such file or folder" if not path.exists() else "no cells marked in Cellpose or ImageJ"
        raise DataError(f"{path}: {state}; expected NAME{CELLPOSE}, or NAME.zip with ImageJ's regions beside NAME.tif")
    targets = [marked.target for marked in found]
    for marked in found:
        if marked.target.exists() or targets.count(marked.target) > 1:
            why = "is there already" if marked.target.exists() else "would be made of several files"
            raise DataError(f"{marked.file}: its label image {marked.target} {why}; name another folder with --out")
    return found


def is_foreign(file: Path) -> bool:
    """Whether a file is one of Cellpose or ImageJ with marked cells, by its name and, of a zip, what lies in it."""
    if file.name.endswith(CELLPOSE) or file.suffix.lower() == ".roi":
        return not file.name.startswith(".")
    if file.suffix.lower() != ".zip":
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return bool(names) and all(name.lower().endswith(".roi") for name in names)


def foreign_note(source: Source) -> str:
    """What to do with marked cells that lie where masks were expected; empty without any."""
    is_folder = source.path.is_dir()
    names = [n for n in source.sizes if (is_foreign(source.path / n) if is_folder else n.lower().endswith(".roi"))]
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{source.where(names[0])}{more}: cells marked in {'Cellpose' if names[0].endswith(CELLPOSE) else 'ImageJ'}; "
        f"make label images of them with: cellray data convert {source.path}"
    )


def _image_of(file: Path) -> Path:
    """The image that ImageJ's regions were drawn on: by its name, in the same folder or in images/ beside it."""
    stem = plain_name(ROI_ENDING.sub("", file.stem))
    folders = [file.parent, file.parent.parent / "images", file.parent.parent]
    for folder in folders:
        images = [each for each in sorted(folder.iterdir()) if is_image(each.name)] if folder.is_dir() else []
        named = [each for each in images if plain_name(each.stem) == stem]
        if not stem and len(images) == 1:  # RoiSet.zip
            named = images
        if len(named) == 1:
            return named[0]
    raise DataError(f"{file}: the image that these regions were drawn on isn't beside it; expected {stem or 'one'}.tif")


def read_foreign(marked: Marked) -> ForeignLabels:
    """The cells of one file.

    Raises:
        DataError: If it can't be read, with what to do instead.
    """
    if marked.image is None:
        return _read_cellpose(marked.file)
    return _read_imagej(marked.file, marked.image)


def _content(file: Path) -> bytes:
    try:
        return read_plain(file, MAX_FILE_BYTES)
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror or error}") from error


# ImageJ


def _read_imagej(file: Path, image: Path) -> ForeignLabels:
    from roifile import ImagejRoi  # here, since nothing else needs it

    _, height, width, _ = read_picture(_content(image), str(image)).pixels.shape
    labels, notes = np.zeros((height, width), np.int32), []
    others, covered, planes = 0, 0, set()
    for number, (name, data) in enumerate(_regions(file), start=1):
        try:
            region = ImagejRoi.frombytes(data)
            inside = _inside(region, (height, width))
        except Exception as error:  # roifile has many names for a damaged file
            raise DataError(f"{file}: {name} is no region of ImageJ ({error})") from error
        planes.add((region.position, region.c_position, region.z_position, region.t_position))
        if inside is None:
            others += 1
            continue
        covered += int(np.count_nonzero(labels[inside]))
        labels[inside] = number
    if len(planes) > 1:
        raise DataError(f"{file}: its regions lie on several planes of a stack, expected one flat image")
    if others:
        notes.append(f"{others} lines, points or angles enclose nothing and are left out")
    if covered:
        notes.append(f"regions overlap in {covered} pixels: these count to the later one")
    return ForeignLabels(consecutive(labels), notes)


def _regions(file: Path) -> Iterator[tuple[str, bytes]]:
    if file.suffix.lower() == ".roi":
        yield file.name, _content(file)
        return
    try:
        with zipfile.ZipFile(io.BytesIO(_content(file))) as archive:
            for member in archive.infolist():
                if member.file_size > MAX_FILE_BYTES:
                    raise DataError(f"{file}: {member.filename} has {member.file_size} bytes, too many for a region")
                yield member.filename, archive.read(member)
    except (zipfile.BadZipFile, RuntimeError, EOFError, NotImplementedError) as error:
        raise DataError(f"{file}: damaged ({error})") from error


def _inside(region: Any, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """The pixels (H, W) whose centres lie inside a region; None of one that encloses nothing."""
    if region.roitype.name not in AREAS:
        return None
    inside = np.zeros(shape, bool)
    if region.roitype.name == "OVAL":
        y, x = np.ogrid[: shape[0], : shape[1]]
        middle = (region.top + region.bottom) / 2, (region.left + region.right) / 2
        half = max(region.bottom - region.top, 1) / 2, max(region.right - region.left, 1) / 2
        return ((y + 0.5 - middle[0]) / half[0]) ** 2 + ((x + 0.5 - middle[1]) / half[1]) ** 2 <= 1
    for outline in region.coordinates(multi=True):
        part = np.zeros(shape, bool)
        # ImageJ's coordinates are of pixels' corners
        part[fill_polygon(outline[:, 1] - 0.5, outline[:, 0] - 0.5, shape)] = True
        inside ^= part  # an inner outline is a hole
    return inside


# Cellpose


def _read_cellpose(file: Path) -> ForeignLabels:
    remedy = "save its masks as PNG or TIFF in Cellpose (File menu, or --save_tif) and use these"
    try:
        stream = io.BytesIO(_content(file))
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(stream)
        if not dtype.hasobject:
            masks: Any = np.load(io.BytesIO(stream.getvalue()), allow_pickle=False)
        else:
            content = _Plain(stream).load()
            masks = content.values[0]["masks"].values
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file}: no masks can be read without running what is in it ({error}); {remedy}") from error
    if not isinstance(masks, np.ndarray) or masks.dtype.kind not in "iu":
        raise DataError(f"{file}: its masks are no array of whole numbers; {remedy}")
    masks = masks[0] if masks.ndim == 3 and len(masks) == 1 else masks
    if masks.ndim != 2:
        raise DataError(f"{file}: masks of {masks.ndim} dimensions {masks.shape}, expected one flat image")
    return ForeignLabels(consecutive(masks), [])


class _Plain(pickle.Unpickler):
    """Builds plain values, and in the place of everything else one of the classes below."""

    def find_class(self, module: str, name: str) -> Any:
        kind = {"_reconstruct": _PickledArray, "dtype": _PickledType, "encode": _encoded}.get(name, _Left)
        return kind if module.split(".")[0] in ("numpy", "_codecs") else _Left


class _Left:
    """What isn't needed."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


@dataclass(init=False)
class _PickledType:
    """An array's type: `kind` and size in bytes, such as ``u2``."""

    code: str
    order: str = "|"

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


@dataclass(init=False)
class _PickledArray:
    """An array of whole numbers, or the list of what one of objects holds; any other is None."""

    values: Any = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        if isinstance(content, list):
            self.values = content
        elif re.fullmatch(r"[iu][1248]", kind.code) and kind.order in ("<", ">", "|", "="):
            flat = np.frombuffer(content, np.dtype(kind.order + kind.code))
            self.values = flat.reshape(shape, order="F" if is_fortran else "C")


def _encoded(text: str, _: str = "latin1") -> bytes:
    """How older pickles write bytes."""
    return text.encode("latin1")

"""Cells that another tool or a person has marked on images of a dataset: one label image for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellray.data.cache import default_cache_dir
from cellray.data.dataset import Dataset
from cellray.data.decode import EIGHT_CONNECTED, decode_mask
from cellray.data.listing import MASK_ENDING, MASK_FOLDERS, is_image, join, single_root
from cellray.data.pairing import pair_stems
from cellray.data.readers import expand
from cellray.data.remote import fetch_dataset
from cellray.data.source import Source, open_source, plain_name
from cellray.errors import DataError
from cellray.storage import is_remote


def read_predictions(path: str, dataset: Dataset, indices: Sequence[int]) -> list[NDArray[np.int32]]:
    """The predicted cells of some images of a dataset, in the order of `indices`.

    A file belongs to the image of its name, also if that is followed by an ending such as ``_cp_masks``; where some
    files of the folder have such an ending, only those count. Files of other images are left alone. If no file holds
    more than one label, they are read as masks, whose cells are their 8-connected regions.

    Args:
        path: A folder, zip or ``s3://…`` of label images, or one that holds them in labels/ or masks/.
        dataset: With images of the size that they have in their files.
        indices: Which of its images.

    Returns:
        Labels (H, W) of each: 0 background, cells 1 to n.

    Raises:
        DataError: Naming the first image that has no file, several or one of another size, or the file that can't be
            read.
    """
    source = open_source(fetch_dataset(path, default_cache_dir()) if is_remote(path) else expand(path))
    files = _files(source, [dataset.names[i] for i in indices])
    found = []
    for index, file in zip(indices, files, strict=True):
        labels = decode_mask(source.read(file), source.where(file), is_labels=True).labels
        height, width = dataset.shapes[index]
        if labels.shape != (height, width):
            raise DataError(
                f"{source.where(file)}: labels of {labels.shape[1]}x{labels.shape[0]} pixels, expected "
                f"{width}x{height} like the image {dataset.names[index]!r}"
            )
        found.append(labels)
    if all(labels.max(initial=0) <= 1 for labels in found):
        return [ndimage.label(labels, structure=EIGHT_CONNECTED)[0].astype(np.int32) for labels in found]
    return found


def _files(source: Source, names: Sequence[str]) -> list[str]:
    """The file of each image."""
    top = single_root(source)
    folders = ("", top, *(join(top, name) for name in MASK_FOLDERS))
    folder = next((f for f in folders if any(map(is_image, source.files(f)))), None)
    if folder is None:
        raise DataError(
            f"{source.path}: no label images in it, expected one PNG or TIFF for each of {len(names)} images"
        )
    files = {file: PurePosixPath(file).stem for file in source.files(folder) if is_image(file)}
    if any(MASK_ENDING.search(stem) for stem in files.values()):
        files = {file: MASK_ENDING.sub("", stem) for file, stem in files.items() if MASK_ENDING.search(stem)}
    by_stem: dict[str, list[str]] = {}
    for file, stem in files.items():
        by_stem.setdefault(plain_name(stem), []).append(file)
    # an image whose name is in several parts of its dataset is called part/name
    stems = {name: plain_name(PurePosixPath(name).name) for name in names}
    if len(set(stems.values())) < len(stems):
        stems = {name: plain_name(name.replace("/", "_")) for name in names}
    if not by_stem.keys() & set(stems.values()):
        pairs = pair_stems(stems.values(), by_stem).pairs
        stems = {name: pairs.get(stem, stem) for name, stem in stems.items()}
    where = source.where(folder) if folder else str(source.path)
    lacking = [name for name, stem in stems.items() if stem not in by_stem]
    if lacking:
        more = f" (and {len(lacking) - 1} more of {len(names)} test images)" if len(lacking) > 1 else ""
        raise DataError(
            f"{where}: no label image for the test image {lacking[0]!r}{more}, expected {lacking[0]}.tif or "
            f"{lacking[0]}_cp_masks.png there"
        )
    for name, stem in stems.items():
        if len(by_stem[stem]) > 1:
            several = " and ".join(PurePosixPath(file).name for file in by_stem[stem][:2])
            raise DataError(f"{where}: {several} are both of the test image {name!r}, expected one label image")
    return [by_stem[stem][0] for stem in stems.values()]

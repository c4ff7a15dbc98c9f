"""Readers: which image belongs to which mask, split and group, in each layout that is understood."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from cellray.data.foreign import foreign_note
from cellray.data.grouping import grouped
from cellray.data.listing import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    MASK_ENDING,
    MASK_FOLDERS,
    SPLIT_WORDS,
    VOID_FOLDER,
    DatasetLike,
    Item,
    Listing,
    chosen_rows,
    is_image,
    join,
    single_root,
)
from cellray.data.manifest import find_manifest, read_manifest
from cellray.data.pairing import pair_stems
from cellray.data.source import Source, open_source, plain_name
from cellray.errors import DataError

MOST_TOLD = 3
"""Files of one problem that are named one by one."""


def list_dataset(config: DatasetLike, path: Path, ignore: int | None = None) -> Listing:
    """Find the images of a dataset and filter them; nothing is decoded.

    Args:
        config: Format and filters; its own path is not used.
        path: Folder, zip pack or manifest CSV.
        ignore: `Reading.ignore`; the files that mark such pixels are looked for if it is given.

    Raises:
        DataError: If there is nothing there that could be a dataset, or a filter fits nothing.
    """
    manifest = ""
    if path.suffix.lower() == ".csv" and path.is_file():
        manifest, path = path.name, path.parent
    listing = Listing(open_source(path))
    kind = "manifest" if manifest else config.format
    if kind in ("auto", "synthetic"):
        try:
            kind = _recognise(listing.source)
        except DataError as error:
            raise DataError("; ".join(filter(None, (foreign_note(listing.source), str(error))))) from None
    if kind == "manifest":
        read_manifest(listing, manifest or find_manifest(listing.source), config)
    else:
        READERS[kind](listing)
        kept = chosen_rows(listing.source, [item.attributes for item in listing.items], config)
        listing.items = [listing.items[k] for k in kept]
    _tell_names_apart(listing)
    _find_void(listing, ignore)
    if config.groups:
        listing.items = grouped(listing.items, config.groups, str(path))
    listing.items.sort(key=lambda item: item.name)
    _note_leaks(listing)
    if listing.problems and (note := foreign_note(listing.source)):
        listing.problems.insert(0, note)
    if not listing.items and not listing.problems:
        raise DataError(f"{path}: no image with a mask found, expected {'/'.join(IMAGE_SUFFIXES)} files in images/")
    return listing


def _recognise(source: Source) -> str:
    if find_manifest(source):
        return "manifest"
    if _split_folders(source) or _collections(source):
        return "fnc"
    if _has_images(source, "") or _has_masks(source, single_root(source)):
        return "pairs"
    found = ", ".join([*source.folders(), *source.files("")][:8])
    raise DataError(
        f"{source.path}: no known layout; expected manifest.csv, images/ beside masks/ or labels/, trainval/ and test/ "
        f"with these, or a.tif beside a_mask.tif or a_label.tif, found {found}"
    )


def _first_folder(source: Source, root: str, candidates: Sequence[str]) -> str | None:
    for candidate in candidates:
        folder = join(root, candidate)
        if any(is_image(f) for f in source.files(folder)):
            return folder
    for candidate in candidates:  # one without images is worth a message of its own
        if source.files(join(root, candidate)):
            return join(root, candidate)
    return None


def _has_masks(source: Source, folder: str) -> bool:
    """Whether a folder holds masks that lie beside their images."""
    return any(is_image(f) and MASK_ENDING.search(PurePosixPath(f).stem) for f in source.files(folder))


def _has_images(source: Source, folder: str) -> bool:
    """Whether a folder holds images, in a folder of their own or beside their masks."""
    return _first_folder(source, folder, IMAGE_FOLDERS) is not None or _has_masks(source, folder)


def _images_by_stem(listing: Listing, folder: str) -> dict[str, str]:
    """Image files of a folder by stem; what isn't an image is noted."""
    found: dict[str, str] = {}
    ignored = []
    for name in listing.source.files(folder):
        stem = PurePosixPath(name).stem
        if not is_image(name):
            ignored.append(PurePosixPath(name).name)
        elif stem in found:
            listing.problems.append(
                f"{listing.source.where(name)}: a second image called {stem!r} "
                f"beside {PurePosixPath(found[stem]).name}, expected one"
            )
        else:
            found[stem] = name
    if ignored:
        more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
        listing.notes.append(
            f"{listing.source.where(folder)}: ignored {', '.join(ignored[:3])}{more} (not PNG, TIFF or JPEG by name)"
        )
    return found


def _pair(listing: Listing, root: str, split: str, attributes: dict[str, str]) -> None:
    """Add the images below `root` that have a mask of the same stem; report the ones that don't pair up."""
    source = listing.source
    images_folder = _first_folder(source, root, IMAGE_FOLDERS)
    masks_folder = _first_folder(source, root, MASK_FOLDERS)
    at = source.where(root) if root else str(source.path)
    if images_folder is None and _has_masks(source, root):
        _pair_beside(listing, root, split, attributes)
        return
    if images_folder is None:
        listing.problems.append(f"{at}: no images/ folder with files, expected one beside masks/ or labels/")
        return
    images = _images_by_stem(listing, images_folder)
    if not images:
        listing.problems.append(f"{source.where(images_folder)}: no PNG, TIFF or JPEG files in it")
        return
    if masks_folder is None:
        listing.problems.append(f"{at}: images/ without masks, expected one of {', '.join(MASK_FOLDERS[:4])} beside it")
        return
    masks = _images_by_stem(listing, masks_folder)
    paired = pair_stems(images, masks)
    if paired.affixes != ("", ""):
        listing.notes.append(
            f"{source.where(masks_folder)}: {paired.affixes[1]} is taken as the mask of {paired.affixes[0]} "
            f"in {PurePosixPath(images_folder).name}/"
        )
    missing = [
        f"{source.where(images[stem])}: image without mask, expected {source.where(masks_folder)}/{stem}.png"
        for stem in paired.images_alone
    ]
    spare = [
        f"{source.where(masks[stem])}: mask without image, expected {source.where(images_folder)}/{stem}.png"
        for stem in paired.masks_alone
    ]
    listing.problems += _shortened(missing, "images without mask") + _shortened(spare, "masks without image")
    for stem in sorted(paired.pairs):
        mask = masks[paired.pairs[stem]]
        listing.items.append(Item(stem, split, "", dict(attributes), images[stem], mask))


def _pair_beside(listing: Listing, folder: str, split: str, attributes: dict[str, str]) -> None:
    """Add the images of a folder whose masks lie beside them, under the same stem and an ending."""
    source = listing.source
    found = _images_by_stem(listing, folder)
    masks = {plain_name(MASK_ENDING.sub("", stem)): file for stem, file in found.items() if MASK_ENDING.search(stem)}
    images = {stem: file for stem, file in found.items() if not MASK_ENDING.search(stem)}
    missing = [
        f"{source.where(file)}: image without mask, expected {source.where(join(folder, stem))}_mask.png"
        for stem, file in images.items()
        if plain_name(stem) not in masks
    ]
    known = {plain_name(stem) for stem in images}
    spare = [f"{source.where(file)}: mask without image" for stem, file in masks.items() if stem not in known]
    listing.problems += _shortened(missing, "images without mask") + _shortened(spare, "masks without image")
    for stem in sorted(images):
        if plain_name(stem) in masks:
            listing.items.append(Item(stem, split, "", dict(attributes), images[stem], masks[plain_name(stem)]))


def _shortened(problems: list[str], what: str) -> list[str]:
    """The first problems of a kind, and how many more there are."""
    if len(problems) <= MOST_TOLD:
        return problems
    return [f"{problems[0]} (and {len(problems) - 1} more {what})"]


def _read_pairs(listing: Listing) -> None:
    """images/ beside labels/ or masks/ (FNC v1 too: it has no splits in its folders)."""
    root = ""
    if not _has_images(listing.source, ""):
        root = single_root(listing.source)
    _pair(listing, root, "", {})


def _split_folders(source: Source, root: str = "") -> list[tuple[str, str]]:
    """Folders named for a split that hold images, with the split they stand for."""
    found = []
    for folder in source.folders(root):
        split = SPLIT_WORDS.get(PurePosixPath(folder).name.lower())
        if split and _has_images(source, folder):
            found.append((folder, split))
    return found


def _collections(source: Source) -> list[str]:
    return [folder for folder in source.folders() if _split_folders(source, folder)]


def _read_fnc(listing: Listing) -> None:
    """FNC v2's {trainval,test}/images with ground_truths/; v1's images/ and masks/."""
    source = listing.source
    root = ""
    if not _split_folders(source):
        collections = _collections(source)
        if len(collections) > 1:
            raise DataError(
                f"{source.path}: holds the collections {', '.join(collections)}; "
                f"expected the path of one, such as {source.path / collections[0]}"
            )
        if not collections:
            _read_pairs(listing)
            return
        root = collections[0]
    for folder, split in _split_folders(source, root):
        _pair(listing, folder, split, {"split": split})


def _tell_names_apart(listing: Listing) -> None:
    """Put the folder in front where two images share a name, as in trainval and test or in two collections."""
    counts = Counter(item.name for item in listing.items)
    for index, item in enumerate(listing.items):
        if counts[item.name] > 1:
            above = PurePosixPath(item.image_file).parent.parent.name or item.split
            listing.items[index] = replace(item, name=f"{above}/{item.name}")
    counts = Counter(item.name for item in listing.items)
    for index, item in enumerate(listing.items):
        if counts[item.name] > 1:
            listing.items[index] = replace(item, name=item.image_file)


def _find_void(listing: Listing, ignore: int | None) -> None:
    """Give each image the file that marks what is left out of it, if the set has such files."""
    source = listing.source

    def beside(mask: PurePosixPath) -> str | None:
        return source.find((mask.parent.parent / VOID_FOLDER / mask.name).as_posix())

    files = [beside(PurePosixPath(item.mask_file)) for item in listing.items]
    if not any(files):
        return
    if ignore is None:
        listing.notes.append(
            f"{source.path}: {VOID_FOLDER}/ is not used: its regions are judged like any other; "
            f"set data.ignore: 255 to leave out what is 255 there"
        )
        return
    listing.items = [
        replace(item, void_file=file or "", looks_in_mask=False)
        for item, file in zip(listing.items, files, strict=True)
    ]


def _note_leaks(listing: Listing) -> None:
    splits: dict[str, set[str]] = {}
    for item in listing.items:
        if item.group:
            splits.setdefault(item.group, set()).add("test" if item.split == "test" else "trainval")
    leaking = sorted(group for group, found in splits.items() if len(found) > 1)
    if leaking:
        listing.notes.append(
            f"{listing.source.path}: {len(leaking)} group(s) lie in both trainval and test, such as {leaking[0]!r}"
        )


READERS: dict[str, Callable[[Listing], None]] = {"fnc": _read_fnc, "pairs": _read_pairs}
"""Layouts by their word in the study file; a manifest is read by `read_manifest`, which needs its name."""


def expand(path: str) -> Path:
    """A path of a study file with ``~`` and environment variables replaced."""
    return Path(os.path.expanduser(os.path.expandvars(path)))

"""Opening a dataset: found, hashed, and decoded into the cache if this machine hasn't done so yet."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellray.arrays import Floats, Mask, Numbers
from cellray.data.cache import default_cache_dir, filling
from cellray.data.convert import convert_image, resample_image, resample_labels, resample_void
from cellray.data.dataset import CACHE_VERSION, LAYOUT, VOID_NAME, CacheIndex, Dataset, read_index
from cellray.data.decode import PLAIN, Reading
from cellray.data.duplicates import Likeness, look_of
from cellray.data.items import list_items, load_item
from cellray.data.listing import DatasetLike, Item, Listing
from cellray.data.plausible import Signs, signs_of
from cellray.data.readers import expand
from cellray.data.remote import fetch_dataset
from cellray.data.source import Source
from cellray.errors import DataError
from cellray.storage import is_remote

WORKERS = min(8, os.cpu_count() or 1)
OnImage = Callable[[int, int], None]


def open_dataset(
    config: DatasetLike,
    *,
    channels: int,
    normalise: str,
    reading: Reading = PLAIN,
    target_diameter_px: float | None = None,
    require_diameter: bool = False,
    cache_dir: Path | None = None,
    progress: OnImage | None = None,
) -> Dataset:
    """Open a dataset, decoding it if this machine hasn't yet.

    Args:
        config: A `DatasetConfig` of the study, or anything with its attributes.
        channels: 1 or 3, see `convert_image`.
        normalise: `none` or `percentile`, see `convert_image`.
        reading: What the study says about channels, planes and pixels to leave out.
        target_diameter_px: What a set with `rescale` is resampled to: the training set's diameter.
        require_diameter: Refuse to measure the diameter: it must be given (sets that are only judged).
        cache_dir: Default: ``$CELLRAY_CACHE``, else ``~/.cache/cellray``.
        progress: Called with images done and in all while decoding; not at all if the cache is there.

    Raises:
        DataError: Naming the first file that can't be used, what came and what was expected.
    """
    cache_dir = cache_dir or default_cache_dir()
    listing = list_items(config, locate(config, cache_dir), reading)
    if listing.problems:
        more = f" (and {len(listing.problems) - 1} more: see `cellray data check`)" if len(listing.problems) > 1 else ""
        raise DataError(listing.problems[0] + more)
    given = given_diameter(config)
    if given is None and (require_diameter or (config.rescale and target_diameter_px)):
        raise DataError(
            f"dataset {config.name!r}: its mean cell diameter is not given; "
            f"add diameter_px, or diameter_um and pixel_size_um, to it in the study file"
        )
    factor = target_diameter_px / given if config.rescale and target_diameter_px and given else None
    conversion = Conversion(channels, normalise, config.max_value, factor, reading)
    files = [f for i in listing.items for f in (i.image_file, i.mask_file, i.void_file) if f]
    hashes = listing.source.hashes(dict.fromkeys(files), cache_dir / "hashes")
    contents = _contents(listing.items, hashes, conversion)
    folder = cache_dir / "datasets" / contents
    index = read_index(folder) or _build(folder, contents, listing, conversion, progress)
    diameter_px = given * (factor or 1) if given else index["measured_diameter_px"]
    if diameter_px is None:
        raise DataError(
            f"dataset {config.name!r}: no cell in its training images to measure a diameter from; "
            f"add diameter_px to it in the study file"
        )
    notes = listing.notes + [f"dataset {config.name!r}: {note}" for note in index["notes"]]
    return Dataset(folder, name=config.name, diameter_px=float(diameter_px), notes=notes)


@dataclass(frozen=True)
class Conversion:
    """How decoded files become cached arrays; part of the fingerprint."""

    channels: int
    normalise: str
    max_value: float | None
    factor: float | None
    reading: Reading

    def facts(self) -> dict[str, object]:
        return {
            "version": CACHE_VERSION,
            "channels": self.channels,
            "normalise": self.normalise,
            "max_value": self.max_value if self.normalise == "none" else None,
            "factor": None if self.factor is None else round(self.factor, 6),
            **self.reading.facts(),
        }


def given_diameter(config: DatasetLike) -> float | None:
    """The mean cell diameter in pixels that the facts in the study file say, or None."""
    if config.diameter_px:
        return float(config.diameter_px)
    if config.diameter_um and config.pixel_size_um:
        return float(config.diameter_um) / float(config.pixel_size_um)
    return None


def locate(config: DatasetLike, cache_dir: Path) -> Path:
    """Path of the dataset; one in a bucket is fetched into the cache first, a synthetic one is drawn there."""
    if config.synthetic is None:
        if not config.path:
            raise DataError(f"dataset {config.name!r}: neither a path nor synthetic, expected one")
        return fetch_dataset(config.path, cache_dir) if is_remote(config.path) else expand(config.path)
    from cellray.data import synth  # here, since drawing needs filters that reading doesn't

    names = ("n_trainval", "n_test", "width_px", "height_px", "scale", "seed")
    settings = {name: getattr(config.synthetic, name) for name in names}
    code = Path(synth.__file__)
    files = sorted(code.parent.glob("*.py")) if code.name == "__init__.py" else [code]
    recipe = json.dumps(settings, sort_keys=True).encode() + b"".join(file.read_bytes() for file in files)
    folder = cache_dir / "synthetic" / hashlib.sha256(recipe).hexdigest()[:16]
    if not folder.is_dir():
        with filling(folder) as aside:
            if aside is not None:
                synth.synthesise(aside, **settings)
    return folder


def object_diameters(labels: NDArray[np.int32]) -> Floats:
    """Diameter in pixels of the disk with each object's area."""
    return np.sqrt(4 / np.pi * np.bincount(labels.ravel())[1:])


def _contents(items: list[Item], hashes: dict[str, str], conversion: Conversion) -> str:
    """Hash of all files and how they are converted: names the folder in the cache."""
    rows: list[list[object]] = []
    for i in sorted(items, key=lambda item: item.name):
        row: list[object] = [i.name, i.split, i.group, hashes[i.image_file], hashes[i.mask_file], i.is_labels]
        row += [hashes[i.void_file]] if i.void_file else []
        rows.append(row + ([i.plane] if i.plane else []))
    return _short_hash([conversion.facts(), rows])


def _fingerprint(contents: str, reread: list[tuple[str, ...]]) -> str:
    """The contents' own hash, unless files are read otherwise than when fingerprints began."""
    return _short_hash([contents, reread]) if any(reread) else contents


def _short_hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _build(
    folder: Path, contents: str, listing: Listing, conversion: Conversion, progress: OnImage | None
) -> CacheIndex:
    with filling(folder, is_good=lambda: read_index(folder) is not None) as aside:
        if aside is not None:
            try:
                index = _fill(aside, contents, listing, conversion, np.dtype(np.uint16), progress)
            except _TooManyObjectsError:
                index = _fill(aside, contents, listing, conversion, np.dtype(np.int32), progress)
            (aside / "index.json").write_text(json.dumps(index))
    found = read_index(folder)
    if found is None:
        raise DataError(f"{folder}: the cache just written can't be read back; is the disk full?")
    return found


class _TooManyObjectsError(Exception):
    """An image has more objects than 16 bits can number."""


@dataclass(frozen=True)
class _Made:
    """One item as it goes into the cache, and the facts of its files that the notes and the diameter need."""

    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    void: Mask | None
    diameters: NDArray[np.float64]
    vanished: int
    peak: int
    dtype: str
    reread: tuple[str, ...]
    signs: Signs
    look: Likeness


def _fill(
    aside: Path,
    contents: str,
    listing: Listing,
    conversion: Conversion,
    dtype: np.dtype[np.integer],
    progress: OnImage | None,
) -> CacheIndex:
    """Decode and convert every item into flat files, in order; return the index."""
    items = listing.items
    labels_name = f"labels.{'u16' if dtype == np.uint16 else 'i32'}"
    shapes, n_objects, diameters, facts = [], [], [], Facts(conversion.reading)
    void_at, reread, signs, looks = [], [], [], []
    has_training = any(item.split != "test" for item in items)
    with (
        open(aside / "images.u8", "wb") as images_file,
        open(aside / labels_name, "wb") as labels_file,
        open(aside / VOID_NAME, "wb") as void_file,
    ):
        for done, (item, made) in enumerate(zip(items, _converted(listing, conversion), strict=True), start=1):
            n = int(made.labels.max(initial=0))
            if n > np.iinfo(dtype).max:
                (aside / labels_name).unlink()
                raise _TooManyObjectsError
            images_file.write(made.image.data)
            labels_file.write(np.ascontiguousarray(made.labels.astype(dtype)).data)
            void_at.append(void_file.tell() if made.void is not None else None)
            if made.void is not None:
                void_file.write(made.void.tobytes())
            shapes.append(made.labels.shape)
            n_objects.append(n)
            reread.append(made.reread)
            signs.append(made.signs)
            looks.append(list(made.look))
            facts.add(made.dtype, made.peak, len(made.diameters), made.vanished, item.is_labels)
            if item.split != "test" or not has_training:
                diameters.append(made.diameters)
            if progress is not None:
                progress(done, len(items))
    has_void = any(at is not None for at in void_at)
    if not has_void:
        (aside / VOID_NAME).unlink()
    files = ("images.u8", labels_name, *([VOID_NAME] if has_void else []))
    measured = np.concatenate(diameters)
    return {
        "fingerprint": _fingerprint(contents, reread),
        "version": CACHE_VERSION,
        "layout": LAYOUT,
        "channels": conversion.channels,
        "names": [item.name for item in items],
        "splits": [item.split for item in items],
        "groups": [item.group for item in items],
        "shapes": shapes,
        "n_objects": n_objects,
        "labels": labels_name,
        "labels_dtype": dtype.name,
        "measured_diameter_px": float(np.median(measured)) if len(measured) else None,
        "void_at": void_at,
        "signs": signs,
        "looks": looks,
        "sizes": {name: (aside / name).stat().st_size for name in files},
        "notes": facts.notes(conversion.max_value, conversion.normalise),
    }


def _converted(listing: Listing, conversion: Conversion) -> Iterator[_Made]:
    """The items' arrays in order; threads decode only a few ahead of the writer, so memory stays small."""
    pool = ThreadPoolExecutor(WORKERS)
    pending: deque[Future[_Made]] = deque()
    try:
        for item in listing.items:
            pending.append(pool.submit(_convert_item, listing.source, item, conversion))
            if len(pending) > 2 * WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _convert_item(source: Source, item: Item, conversion: Conversion) -> _Made:
    decoded, labels, void, reread, odd_label, _ = load_item(source, item, conversion.reading)
    signs, look = signs_of(decoded, labels, odd_label), look_of(decoded)
    dtype, peak, vanished = decoded.dtype, int(decoded.max(initial=0)), 0
    diameters = object_diameters(labels)
    pixels: Numbers = decoded
    if conversion.factor is not None:
        try:
            pixels = resample_image(decoded, conversion.factor)
        except DataError as error:
            raise DataError(f"{source.where(item.image_file)}: {error}") from error
        labels, vanished = resample_labels(labels, conversion.factor)
        void = None if void is None else resample_void(void, conversion.factor)
    image = convert_image(
        pixels,
        channels=conversion.channels,
        normalise=conversion.normalise,
        max_value=conversion.max_value or np.iinfo(dtype).max,
    )
    image = np.ascontiguousarray(image)
    return _Made(image, labels, void, diameters, vanished, peak, dtype.name, reread, signs, look)


class Facts:
    """What is summed up over the images for the notes; opening and checking a dataset say the same."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.dtypes: set[str] = set()
        self.peak = 0
        self.n_images = self.n_objects = self.most_objects = self.vanished = 0
        self.has_labels = False

    def add(self, dtype: str, peak: int, n_objects: int, vanished: int, is_labels: bool) -> None:
        """Count one image in, with its objects before resampling."""
        self.dtypes.add(dtype)
        self.peak = max(self.peak, peak)
        self.n_images += 1
        self.n_objects += n_objects
        self.most_objects = max(self.most_objects, n_objects)
        self.vanished += vanished
        self.has_labels |= is_labels

    def notes(self, max_value: float | None, normalise: str) -> list[str]:
        """Sentences about what could be a mistake."""
        notes = []
        if self.vanished:
            notes.append(f"{self.vanished} of {self.n_objects} objects were too small to survive the resampling")
        if normalise == "none" and max_value is None and "uint16" in self.dtypes and self.peak < 2**14:
            notes.append(
                f"16-bit images whose brightest pixel is {self.peak} of 65535 come out dark; "
                f"give max_value (4095 for 12 bits) or normalise: percentile"
            )
        if normalise == "none" and max_value is not None and self.peak > max_value:
            notes.append(f"the brightest pixel is {self.peak}, above max_value {max_value:g}: such pixels are clipped")
        if normalise == "none" and max_value is None and len(self.dtypes) > 1:
            notes.append(f"images of {' and '.join(sorted(self.dtypes))} are each scaled by their own full scale")
        if self.has_labels and self.n_images > 1 and self.most_objects == 1:
            notes.append("no label image holds more than one object; binary masks belong in a folder called masks")
        if self.n_objects == 0:
            ignore = self.reading.ignore
            left_out = f"; data.ignore: {ignore} leaves out every pixel of that value" if ignore is not None else ""
            notes.append(f"there is no cell in any image{left_out}")
        return notes

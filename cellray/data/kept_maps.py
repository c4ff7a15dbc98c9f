"""Maps of the true cells beside a decoded dataset: computed once, then mapped read-only like the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from cellray.data.cache import filling
from cellray.data.dataset import Dataset
from cellray.data.opening import WORKERS
from cellray.losses.maps import STORED, stored_maps


def add_maps(dataset: Dataset, names: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
    """Make sure that `dataset.map` can give what is needed for the maps called `names`.

    Args:
        dataset: An open dataset.
        names: Of `cellray.losses.maps.MAPS`.
        progress: Called with images done and in all, for each map that this machine hasn't computed yet.

    Raises:
        DataError: If the cache can't be written.
    """
    for name in stored_maps(names):
        folder = dataset.map_folder(name)
        if folder.is_dir():
            continue
        with filling(folder) as aside, ThreadPoolExecutor(WORKERS) as pool:
            if aside is None:
                continue
            labels = (dataset.labels(i) for i in range(len(dataset)))
            with open(aside / "values", "wb") as file:
                for done, values in enumerate(pool.map(STORED[name], labels), start=1):
                    file.write(values.tobytes())
                    if progress is not None:
                        progress(done, len(dataset))

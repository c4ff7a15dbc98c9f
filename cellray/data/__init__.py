"""Images with ground truth: readers, a decoded cache that all processes share, splits, and checks."""

from cellray.data.cache import default_cache_dir
from cellray.data.check import DatasetReport, check_dataset, preview_dataset
from cellray.data.dataset import Dataset
from cellray.data.decode import Reading
from cellray.data.duplicates import Likeness, twin_notes
from cellray.data.folder import file_content, image_from_bytes, list_images, outputs_of, planes_of
from cellray.data.foreign import find_marked, read_foreign
from cellray.data.kept_maps import add_maps
from cellray.data.listing import DatasetLike, Item
from cellray.data.opening import open_dataset
from cellray.data.splits import Split, fold_dataset, split_dataset

__all__ = [
    "Dataset",
    "DatasetLike",
    "DatasetReport",
    "Item",
    "Likeness",
    "Reading",
    "Split",
    "add_maps",
    "check_dataset",
    "default_cache_dir",
    "file_content",
    "find_marked",
    "fold_dataset",
    "image_from_bytes",
    "list_images",
    "open_dataset",
    "outputs_of",
    "planes_of",
    "preview_dataset",
    "read_foreign",
    "split_dataset",
    "twin_notes",
]

"""How well crowded images and small cells fare, beside the whole set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cellray.arrays import Floats
from cellray.errors import DataError
from cellray.metrics.summary import image_terms, metrics_of

CROWDED_SHARE = 0.5
SMALL_AREA, LARGE_AREA = 0.5, 1.5
"""In mean areas of the set's true cells."""

STRATUM_COLUMNS = (
    "stratum", "level", "n_images", "n_true", "n_pred", "f1_iou", "precision_iou", "recall_iou", "mae",
    "hit", "merged", "split", "missed",
)  # fmt: skip


def stratify(images: pd.DataFrame, objects: pd.DataFrame) -> pd.DataFrame:
    """The scores of parts of one set, at one operating point.

    - stratum ``crowding``, of images: ``empty`` (no true cell), ``sparse`` and ``crowded`` (at least half of the true
      cells have the centre of another one within 1.5 mean diameters). F1, precision, recall and MAE as in `summarise`.
    - stratum ``size``, of cells: ``small``, ``medium`` and ``large`` (area below 0.5, up to 1.5, above 1.5 mean areas
      of the set's true cells). Recall, and how the true cells fared: the shares ``hit merged split missed`` sum to 1.
      A prediction counts in the level of its own area.

    Levels that nothing belongs to are left out. A number that a level doesn't define is NaN: F1, precision and MAE of
    a size, shares of an image level or of a size without true cells.

    Args:
        images: Rows of `image_row` with the parts iou and crowding.
        objects: Rows of `object_rows` of the same images, with a column ``image``.

    Returns:
        A row a level, with the columns of `STRATUM_COLUMNS`.

    Raises:
        DataError: If a column is missing.
    """
    _need("image rows", images, (*_COUNTED, "crowded"))
    _need("object rows", objects, ("image", "true_id", "pred_id", "area_true", "area_pred", "kind"))
    rows = stratum_rows(*({str(name): table[name].to_numpy() for name in table} for table in (images, objects)))
    return pd.DataFrame(rows, columns=list(STRATUM_COLUMNS))


def stratum_rows(images: Mapping[str, np.ndarray], objects: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
    """The rows of `stratify` from the columns of both tables, without what isn't defined."""
    return _by_crowding(images) + _by_size(objects)


_COUNTED = ("n_true", "n_pred", "tp_iou", "fp_iou", "fn_iou")


def _need(what: str, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{what}: strata need the columns {', '.join(missing)}, which aren't there")


def _by_crowding(images: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
    is_empty = images["n_true"] == 0
    is_crowded = ~is_empty & (images["crowded"] >= CROWDED_SHARE * images["n_true"])
    level = np.where(is_empty, 0, np.where(is_crowded, 2, 1))
    columns = (*_COUNTED, *(name for name in ("count_error", "count_true") if name in images))
    terms = image_terms({name: images[name].astype(np.float64) for name in columns})
    sums: dict[str, Floats] = {name: np.bincount(level, values, 3).astype(float) for name, values in terms.items()}
    there = np.flatnonzero(sums["n_images"])
    scores = metrics_of({name: values[there] for name, values in sums.items()})
    return [
        {
            "stratum": "crowding",
            "level": ("empty", "sparse", "crowded")[k],
            **{name: int(sums[name][k]) for name in ("n_images", "n_true", "n_pred")},
            **{name: float(scores[name][i]) for name in ("f1_iou", "precision_iou", "recall_iou", "mae")},
        }
        for i, k in enumerate(there)
    ]


def _by_size(objects: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
    is_true, is_pred = objects["true_id"] > 0, objects["pred_id"] > 0
    if not is_true.any():
        return []
    mean_area = float(objects["area_true"][is_true].mean())
    true_level, pred_level = (_levels(objects[f"area_{side}"], mean_area) for side in ("true", "pred"))
    rows: list[dict[str, object]] = []
    for k, level in enumerate(("small", "medium", "large")):
        cells, blobs = is_true & (true_level == k), is_pred & (pred_level == k)
        n_cells, n_blobs = int(cells.sum()), int(blobs.sum())
        if not n_cells and not n_blobs:
            continue
        kinds = objects["kind"][cells]
        fared = {kind: float((kinds == kind).sum() / max(n_cells, 1)) for kind in ("hit", "merged", "split", "missed")}
        rows.append(
            {
                "stratum": "size",
                "level": level,
                "n_images": len({*objects["image"][cells], *objects["image"][blobs]}),
                "n_true": n_cells,
                "n_pred": n_blobs,
                **({"recall_iou": fared["hit"], **fared} if n_cells else {}),
            }
        )
    return rows


def _levels(areas: np.ndarray, mean_area: float) -> np.ndarray:
    """0 for small, 1 for medium, 2 for large."""
    return np.where(areas < SMALL_AREA * mean_area, 0, np.where(areas > LARGE_AREA * mean_area, 2, 1))

"""How well crowded images and small cells fare, beside the whole set."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cellray.errors import DataError
from cellray.metrics.summary import summarise

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
    _need("image rows", images, ("n_true", "n_pred", "tp_iou", "fp_iou", "fn_iou", "crowded"))
    _need("object rows", objects, ("image", "true_id", "pred_id", "area_true", "area_pred", "kind"))
    rows = _by_crowding(images) + _by_size(objects)
    return pd.DataFrame(rows, columns=list(STRATUM_COLUMNS))


def _need(what: str, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{what}: strata need the columns {', '.join(missing)}, which aren't there")


def _by_crowding(images: pd.DataFrame) -> list[dict[str, object]]:
    is_empty = images["n_true"] == 0
    is_crowded = ~is_empty & (images["crowded"] >= CROWDED_SHARE * images["n_true"])
    levels = {"empty": is_empty, "sparse": ~is_empty & ~is_crowded, "crowded": is_crowded}
    rows = []
    for level, chosen in levels.items():
        if chosen.any():
            summary = summarise(images[chosen])
            scores = {name: summary[name] for name in ("f1_iou", "precision_iou", "recall_iou", "mae")}
            counts = {name: int(summary[name]) for name in ("n_images", "n_true", "n_pred")}
            rows.append({"stratum": "crowding", "level": level, **counts, **scores})
    return rows


def _by_size(objects: pd.DataFrame) -> list[dict[str, object]]:
    true, pred = objects[objects["true_id"] > 0], objects[objects["pred_id"] > 0]
    if true.empty:
        return []
    mean_area = float(true["area_true"].mean())
    true_level, pred_level = _levels(true["area_true"], mean_area), _levels(pred["area_pred"], mean_area)
    rows = []
    for level in ("small", "medium", "large"):
        cells, blobs = true[true_level == level], pred[pred_level == level]
        if cells.empty and blobs.empty:
            continue
        shares = cells["kind"].value_counts(normalize=True)
        fared = {kind: float(shares.get(kind, 0.0)) for kind in ("hit", "merged", "split", "missed")}
        rows.append(
            {
                "stratum": "size",
                "level": level,
                "n_images": pd.concat([cells["image"], blobs["image"]]).nunique(),
                "n_true": len(cells),
                "n_pred": len(blobs),
                **({"recall_iou": fared["hit"], **fared} if len(cells) else {}),
            }
        )
    return rows


def _levels(areas: pd.Series, mean_area: float) -> np.ndarray:
    return np.select([areas < SMALL_AREA * mean_area, areas > LARGE_AREA * mean_area], ["small", "large"], "medium")

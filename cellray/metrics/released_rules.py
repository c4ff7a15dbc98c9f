"""The counting formula and the matching of the reference study's released code, from the columns of `image_row`.

There (``all_metrics`` in ``fluocells/utils/metrics.py``, called for distances) an image's predicted count is
TP_distance + FN_distance, which is the number of true cells, and its target count TP_iou + FN_distance. Their
difference is TP_distance - TP_iou: no spurious cell enters, and a model that predicts nothing has no error at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from cellray.arrays import Floats
from cellray.errors import DataError

ROW_QUIRKS = ("many_to_one", "released_counts")
"""The quirks of the released protocol that live in the metrics."""


def released_counts(columns: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """Count error (predicted - target, the released sign) and target count of each image, as released."""
    error = columns["tp_distance_many"] - columns["tp_iou_many"]
    return error, columns["n_true"] - error


def quirk_rows(rows: pd.DataFrame, quirks: Collection[str]) -> pd.DataFrame:
    """Image rows as the released code would have counted them; `summarise` of these gives its metrics.

    - ``many_to_one``: tp, fp and fn by IoU and by distance become those of many-to-one matching.
    - ``released_counts``: the columns ``count_error`` and ``count_true`` are added, which `summarise` takes for its
      counting metrics, so that MAE, MedAE and MPE equal ``mae_released`` and so on, the sign of MPE included.

    Args:
        rows: Of `image_row`, with the part released.
        quirks: Names; others than those of `ROW_QUIRKS` are ignored.

    Raises:
        DataError: If the rows lack the part released.
    """
    wanted = set(quirks) & set(ROW_QUIRKS)
    if wanted and "tp_iou_many" not in rows:
        raise DataError(
            f"image rows: the quirks {', '.join(sorted(wanted))} need the part 'released', which isn't there"
        )
    changed = rows.copy()
    if "many_to_one" in wanted:
        for rule in ("iou", "distance"):
            changed[f"tp_{rule}"] = rows[f"tp_{rule}_many"]
            changed[f"fp_{rule}"] = rows[f"fp_{rule}_many"]
            changed[f"fn_{rule}"] = rows["n_true"] - rows[f"tp_{rule}_many"]
    if "released_counts" in wanted:
        names = ("n_true", "tp_iou_many", "tp_distance_many")
        error, target = released_counts({name: rows[name].to_numpy(dtype=np.float64) for name in names})
        changed["count_error"], changed["count_true"] = error, target
    return changed

"""What MLflow loads of a registered model: image files in; cells and counts out, as `cellray predict` gives them."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cellray.record import parse_ensemble, parse_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from cellray.prediction import TrainedModel

RECORD, CHECKPOINT, ENSEMBLE = "trial.json", "best.pt", "ensemble.json"
"""The files of the model's data folder: a trial's record and its weights, as the ledger holds them. Those of an
ensemble lie in a folder for each member's key, beside what they are together."""


class CellFinder:
    """A trained network, operating point and post-processing behind MLflow's `predict`."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, float] | None = None) -> pd.DataFrame:
        """Find the cells of images.

        Args:
            model_input: Column `image`: contents of image files of any kind that a study can read.
            params: `diameter_px`: mean cell diameter on them; `max_value`: full-scale intensity, 0 for that of the
                file's type.

        Returns:
            One row an image: `count`; `labels`: a TIFF of the label image, base64; `cells`: the table of its cells as a
            list of rows, see `Cells.table`.

        Raises:
            CellrayError: If an image can't be read, naming its place in the input.
        """
        import pandas as pd

        asked = params or {}
        rows = []
        for number, data in enumerate(model_input["image"]):
            image = self._model.converted(data, f"image {number}", max_value=asked.get("max_value") or None)
            cells = self._model.find_cells(image, asked.get("diameter_px") or None)
            table = cells.table().to_dict(orient="records")
            rows.append({"count": cells.count, "labels": base64.b64encode(cells.tiff()).decode(), "cells": table})
        return pd.DataFrame(rows, columns=["count", "labels", "cells"])


def _load_pyfunc(data_path: str) -> CellFinder:
    """What MLflow calls: the model of a data folder. A network of the user's own lies beside it, as it was judged."""
    import torch

    from cellray.device import prepare
    from cellray.prediction import TrainedModel

    prepare(torch.device("cpu"), os.cpu_count() or 1)

    def model_in(folder: Path) -> TrainedModel:
        record = parse_record((folder / RECORD).read_bytes(), str(folder / RECORD))
        return TrainedModel.of(record, (folder / CHECKPOINT).read_bytes(), allow_code=True)

    folder = Path(data_path)
    file = folder / ENSEMBLE
    if not file.exists():
        return CellFinder(model_in(folder))
    ensemble = parse_ensemble(file.read_bytes(), str(file))
    return CellFinder(TrainedModel.together([model_in(folder / key) for key in ensemble.members], ensemble))

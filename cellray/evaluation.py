"""Judge one trained model: predict, choose the operating point on validation, score every set by pixel and by cell."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
from scipy.special import expit

from cellray.data import Dataset
from cellray.device import autocast
from cellray.metrics import OBJECT_COLUMNS, image_row, object_rows, quirk_rows, summarise, without_void
from cellray.operating_point import ChosenPoint, choose_point
from cellray.overlay import draw_overlay, encode_png
from cellray.postprocess import OperatingPoint, postprocess
from cellray.record import OverlayFile
from cellray.study import EvaluationConfig
from cellray.torch_later import Tensor, functional, nn, torch

_T = TypeVar("_T")

JudgedSets = Mapping[str, tuple[Dataset, list[int]]]
"""By name, a dataset and the images that belong to the set."""
LogitsOf = Callable[[str], Iterator[tuple[int, Tensor]]]
"""Gives what a network predicts for a set, by its name: index and logits (H, W), float32 on the CPU, of each image."""

TILE_OVERLAP_PX = 64
BATCH_PX = 2**21  # pixels predicted at once


def predict_logits(
    model: nn.Module,
    dataset: Dataset,
    indices: list[int],
    *,
    device: torch.device,
    precision: str,
    tile_px: int = 1024,
) -> Iterator[tuple[int, Tensor]]:
    """Logits of whole images, any size: (index, float32 tensor (H, W) on the CPU), grouped by shape.

    Images are continued by reflection to multiples of what the network takes (its `size_multiple`); larger ones than a
    tile are predicted in overlapping tiles.
    """
    model.eval()
    for members in same_shapes(dataset, indices):
        height, width, _ = dataset.image(members[0]).shape
        size = 1 if max(height, width) > tile_px else max(BATCH_PX // (height * width), 1)
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            images = np.stack([dataset.image(i) for i in chosen])
            yield from zip(chosen, _logits(model, images, device, precision, tile_px), strict=True)


def same_shapes(dataset: Dataset, indices: list[int]) -> list[list[int]]:
    """Images in groups of one shape, in the order in which `predict_logits` comes to them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        groups.setdefault(dataset.image(index).shape, []).append(index)
    return list(groups.values())


def ahead(items: Iterator[_T], n: int = 2) -> Iterator[_T]:
    """The same items, computed by a thread up to n of them ahead: a GPU predicts the next while one is judged."""
    made: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(n)
    is_over = threading.Event()

    def put(item: _T | None, error: BaseException | None = None) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                made.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if is_over.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    threading.Thread(target=make, daemon=True, name="cellray-ahead").start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield cast(_T, item)
    finally:
        is_over.set()


def predict_image(
    model: nn.Module, image: np.ndarray, *, device: torch.device, precision: str, tile_px: int = 1024
) -> np.ndarray:
    """Cell probabilities (H, W), float32, of one uint8 image (H, W, C) of any size."""
    model.eval()
    return _logits(model, image[None], device, precision, tile_px)[0].sigmoid().numpy()


def _logits(model: nn.Module, images: np.ndarray, device: torch.device, precision: str, tile_px: int) -> Tensor:
    """Logits (N, H, W), on the CPU, of uint8 images (N, H, W, C)."""
    # Left before anything is yielded: a generator that is dropped halfway would leave the mode on for its caller.
    with torch.inference_mode(), autocast(device, precision):
        batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        logits = _predict_tiled(model, batch, tile_px) if len(batch) == 1 else _predict(model, batch)
        return logits[:, 0].float().cpu()


def _predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, 1, H, W) of images (N, C, H, W) of any size."""
    height, width = images.shape[-2:]
    multiple = getattr(model, "size_multiple", 8)
    down, right = -height % multiple, -width % multiple
    if down or right:
        mode = "reflect" if down < height and right < width else "replicate"
        images = functional.pad(images, (0, right, 0, down), mode=mode)
    return model(images.contiguous(memory_format=torch.channels_last))[..., :height, :width]


def _predict_tiled(model: nn.Module, images: Tensor, tile_px: int) -> Tensor:
    """As `_predict`, in tiles whose inner parts are put together."""
    height, width = images.shape[-2:]
    if max(height, width) <= tile_px:
        return _predict(model, images)
    out = images.new_empty((len(images), 1, height, width), dtype=torch.float32)
    for top, bottom, y0, y1 in _tiles(height, tile_px):
        for left, right, x0, x1 in _tiles(width, tile_px):
            tile = _predict(model, images[..., top:bottom, left:right])
            out[..., y0:y1, x0:x1] = tile[..., y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def _tiles(length: int, tile_px: int) -> Iterator[tuple[int, int, int, int]]:
    """Start and end of each tile along one axis, and of its part that is used."""
    if length <= tile_px:
        yield 0, length, 0, length
        return
    stride = tile_px - 2 * TILE_OVERLAP_PX if tile_px > 4 * TILE_OVERLAP_PX else tile_px // 2
    margin = (tile_px - stride) // 2
    starts = [*range(0, length - tile_px, stride), length - tile_px]
    used = 0
    for k, start in enumerate(starts):
        end = length if k == len(starts) - 1 else start + tile_px - margin
        yield start, start + tile_px, used, end
        used = end


class PixelHistogram:
    """Counts of cell and background pixels by logit: Dice at every threshold in one pass.

    Args:
        coarse: Thresholds in 256 even steps of probability, of which a confident network uses the first and last only.
    """

    REACH = math.asinh(1e4)
    """Thresholds go in even steps of the logit's inverse hyperbolic sine, from minus this to this: fine about 0, and so
    far out that a network trained by overlap alone, whose logits go beyond 32, doesn't pass them."""

    def __init__(self, *, coarse: bool = False) -> None:
        self.coarse, self.bins = coarse, 256 if coarse else 2048
        self.counts = np.zeros((2, self.bins), np.int64)

    def add(self, logits: Tensor, target: np.ndarray, void: np.ndarray | None = None) -> None:
        """Add one image: logits, none of them NaN, and true cell mask of the same shape, without void pixels."""
        places = logits.sigmoid() if self.coarse else logits.asinh() / (2 * self.REACH) + 0.5
        bins = (places * self.bins).clamp_(0, self.bins - 1).long().numpy() + self.bins * target
        if void is not None:
            bins = bins[~void]
        self.counts += np.bincount(bins.ravel(), minlength=2 * self.bins).reshape(2, self.bins)

    def best_dice(self) -> tuple[float, float]:
        """Highest pixel Dice of all images together over the thresholds, and its threshold as a probability.

        Without a true cell pixel it is 1 where some threshold predicts none, which is always so.
        """
        background, cells = self.counts[:, ::-1].cumsum(axis=1)[:, ::-1]
        true = self.counts[1].sum()
        if true == 0:
            return 1.0, 1.0
        dice = 2 * cells / (cells + background + true)
        best = int(np.argmax(dice))
        place = best / self.bins
        return float(dice[best]), place if self.coarse else float(expit(math.sinh(self.REACH * (2 * place - 1))))


@dataclass
class Evaluation:
    """A trained model's scores on every set."""

    choice: ChosenPoint
    """The operating point, and how it does on validation."""
    metrics: dict[str, dict[str, dict[str, float]]]
    """By point (own, shared), set and metric."""
    images: pd.DataFrame
    objects: pd.DataFrame
    overlays: list[OverlayFile] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    collapsed: str | None = None
    """Why the model counts as collapsed, if it does."""


def predict_set(
    model: nn.Module,
    sets: JudgedSets,
    settings: EvaluationConfig,
    device: torch.device,
    precision: str,
    name: str,
) -> Iterator[tuple[int, Tensor]]:
    """As `predict_logits`, of one of the sets by its name; a GPU predicts ahead of who takes them."""
    dataset, indices = sets[name]
    predicted = predict_logits(model, dataset, indices, device=device, precision=precision, tile_px=settings.tile_px)
    return predicted if device.type == "cpu" else ahead(predicted)


def evaluate(logits_of: LogitsOf, sets: JudgedSets, settings: EvaluationConfig) -> Evaluation:
    """Score a trained model on every set, at its own operating point and at the shared one.

    The operating point sees the set called `val` and nothing else.

    Args:
        logits_of: What the model predicts; `val` is asked for once.
        sets: By name, a dataset and the images that belong to the set; `val` first.
        settings: The study's.
    """

    def predict(name: str) -> Iterator[tuple[int, np.ndarray]]:
        for index, logits in logits_of(name):
            yield index, logits.sigmoid().numpy()

    validation, indices = sets["val"]
    val_probs = dict(predict("val"))
    truth: dict[int, np.ndarray] = {index: validation.labels(index) for index in indices}
    void = {index: mask for index in indices if (mask := validation.void(index)) is not None}
    choice = choose_point(val_probs, truth, validation.diameter_px, settings, void)
    rows: list[dict[str, object]] = []
    objects: list[dict[str, object]] = []
    overlays: list[OverlayFile] = []
    files: dict[str, bytes] = {}
    for name, (dataset, _) in sets.items():
        probs_of = iter(val_probs.items()) if name == "val" else predict(name)
        packed: dict[int, bytes] = {}
        drawn: list[dict[str, object]] = []
        for index, probs in probs_of:
            about = {"set": name, "image": dataset.names[index], "group": dataset.groups[index]}
            own, row = _judge(probs, dataset, index, choice.point, settings)
            _, shared_row = _judge(probs, dataset, index, settings.shared_point, settings)
            packed[index] = zlib.compress(own.astype(np.int32).tobytes(), level=1)
            drawn.append({**about, "point": "own", **row})
            rows += [drawn[-1], {**about, "point": "shared", **shared_row}]
            true = dataset.labels(index)
            objects += [{**about, **o} for o in object_rows(true, own, iou_threshold=settings.iou_threshold)]
        if name != "val":
            for entry, png in _draw(name, dataset, packed, pd.DataFrame(drawn), settings.iou_threshold):
                overlays.append(entry)
                files[entry.file] = png
    images = pd.DataFrame(rows)
    metrics = {
        point_name: {
            name: as_judged(images[(images["set"] == name) & (images["point"] == point_name)], settings)
            for name in sets
        }
        for point_name in ("own", "shared")
    }
    on_val = images[(images["set"] == "val") & (images["point"] == "own")]
    table = pd.DataFrame(objects, columns=["set", "image", "group", *OBJECT_COLUMNS])
    return Evaluation(choice, metrics, images, table, overlays, files, _collapse(on_val))


class SetScores(NamedTuple):
    """How a model does on one dataset."""

    metrics: dict[str, float]
    images: pd.DataFrame
    """One row an image, see `image_row`."""
    objects: pd.DataFrame
    """One row a cell, see `object_rows`."""


def evaluate_set(
    model: nn.Module,
    dataset: Dataset,
    point: OperatingPoint,
    settings: EvaluationConfig,
    *,
    device: torch.device,
    precision: str,
) -> SetScores:
    """Score a trained model on all images of one dataset at a given operating point."""
    rows: list[dict[str, object]] = []
    objects: list[dict[str, object]] = []
    for index, logits in predict_logits(
        model, dataset, list(range(len(dataset))), device=device, precision=precision, tile_px=settings.tile_px
    ):
        labels, row = _judge(logits.sigmoid().numpy(), dataset, index, point, settings)
        about = {"image": dataset.names[index]}
        rows.append({**about, **row})
        true = dataset.labels(index)
        objects += [{**about, **o} for o in object_rows(true, labels, iou_threshold=settings.iou_threshold)]
    images = pd.DataFrame(rows).sort_values("image", ignore_index=True)
    return SetScores(as_judged(images, settings), images, pd.DataFrame(objects, columns=["image", *OBJECT_COLUMNS]))


def as_judged(rows: pd.DataFrame, settings: EvaluationConfig) -> dict[str, float]:
    """The metrics of one set's rows, by the matching and the counting formula that the study asks for."""
    return summarise(quirk_rows(rows, settings.quirks))


def _judge(
    probs: np.ndarray, dataset: Dataset, index: int, point: OperatingPoint, settings: EvaluationConfig
) -> tuple[np.ndarray, dict[str, float]]:
    """Predicted labels of one image at an operating point, and its row of counts."""
    labels = postprocess(probs, point, diameter_px=dataset.diameter_px)
    return judge_labels(labels, dataset, index, settings, probs)


def judge_labels(
    labels: np.ndarray, dataset: Dataset, index: int, settings: EvaluationConfig, probs: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, float]]:
    """Predicted labels of one image without its void pixels, and their row of counts.

    Args:
        labels: Shape (H, W), 0 and 1..n.
        dataset: Holds the image.
        index: Its number.
        settings: The study's.
        probs: Probabilities (H, W) in [0, 1]; without them calibration isn't judged.
    """
    true, void = dataset.labels(index), dataset.void(index)
    if void is not None:
        labels = without_void(true, labels, void)
    row = image_row(
        true,
        labels,
        iou_threshold=settings.iou_threshold,
        max_distance_px=settings.max_distance * dataset.diameter_px,
        diameter_px=dataset.diameter_px,
        probs=probs,
        void=void,
    )
    return labels, row


def _collapse(rows: pd.DataFrame) -> str | None:
    """Why validation rows at the model's own point show a collapse: nothing or everything predicted."""
    predicted = (rows["px_tp"] + rows["px_fp"]).sum()
    pixels = rows[["px_tp", "px_fp", "px_fn", "px_tn"]].to_numpy().sum()
    if rows["n_true"].sum() and rows["n_pred"].sum() == 0:
        return "predicts no cell on any validation image"
    if predicted >= 0.99 * pixels:
        return "predicts everything as cell on the validation images"
    return None


def _draw(
    name: str, dataset: Dataset, packed: dict[int, bytes], rows: pd.DataFrame, iou_threshold: float
) -> Iterator[tuple[OverlayFile, bytes]]:
    """Overlays of a set's worst, median and best image by F1, and of its most crowded one."""
    rows = rows.assign(f1_iou=2 * rows["tp_iou"] / (rows["n_true"] + rows["n_pred"]).clip(lower=1))
    rows.loc[(rows["n_true"] + rows["n_pred"]) == 0, "f1_iou"] = 1.0
    ranked = rows.sort_values(["f1_iou", "image"], ignore_index=True)
    crowded = rows.sort_values(["n_true", "image"], ascending=[False, True]).iloc[0]
    chosen = {"worst": ranked.iloc[0], "median": ranked.iloc[len(ranked) // 2], "best": ranked.iloc[-1]}
    index_of = {dataset.names[index]: index for index in packed}
    for role, row in {**chosen, "crowded": crowded}.items():
        index = index_of[row["image"]]
        true = dataset.labels(index)
        own = np.frombuffer(zlib.decompress(packed[index]), np.int32).reshape(true.shape)
        picture = draw_overlay(dataset.image(index), true, own, iou_threshold=iou_threshold)
        entry = OverlayFile(
            set=name,
            role=role,
            image=row["image"],
            file=f"overlays/{name}.{role}.png",
            f1_iou=float(row["f1_iou"]),
            n_true=int(row["n_true"]),
            n_pred=int(row["n_pred"]),
        )
        yield entry, encode_png(picture)

"""Label images for the tests of the metrics, and what pairs of masks say about them."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from cellray.metrics import image_row


def labels(*rows: str) -> np.ndarray:
    """A label image from rows of digits, '.' = background."""
    return np.array([[0 if mark == "." else int(mark) for mark in row] for row in rows], dtype=np.int32)


def row_of(true: np.ndarray, pred: np.ndarray, **changed: object) -> dict[str, float]:
    settings = {"iou_threshold": 0.4, "max_distance_px": 2.0, "diameter_px": 3.0} | changed
    return image_row(true, pred, **settings)


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to five boxes each, overpainted, so touching, nested, cut or one pixel; ids in any order with gaps."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 24, 2))
    boxes = [draw_box(rng, shape) for _ in range(rng.integers(0, 6))]
    moved = [(y + rng.integers(-2, 3), x + rng.integers(-2, 3), h, w) for y, x, h, w in boxes if rng.random() < 0.8]
    invented = [draw_box(rng, shape) for _ in range(rng.integers(0, 3))]
    return paint(rng, shape, boxes), paint(rng, shape, (moved + invented)[:5])


def draw_box(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    return (*rng.integers(0, shape), *rng.integers(1, 9, 2))


def paint(rng: np.random.Generator, shape: tuple[int, ...], boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    out = np.zeros(shape, dtype=rng.choice([np.uint16, np.int32, np.int64]))
    for name, (y, x, h, w) in zip(rng.permutation(np.arange(1, 60, 3)), boxes, strict=False):
        out[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = name
    return out


def masks_of(image: np.ndarray) -> list[np.ndarray]:
    return [image == name for name in np.unique(image) if name]


def slow_best(worth: np.ndarray, allowed: np.ndarray) -> tuple[int, float]:
    """The most allowed pairs and then the most worth, over every way to pair rows with columns."""
    if worth.shape[0] > worth.shape[1]:
        worth, allowed = worth.T, allowed.T
    value, ok = worth.tolist(), allowed.tolist()
    best = (0, 0.0)
    for cols in permutations(range(worth.shape[1]), worth.shape[0]):
        kept = [value[i][j] for i, j in enumerate(cols) if ok[i][j]]
        best = max(best, (len(kept), sum(kept)))
    return best


def slow_ious(true: np.ndarray, pred: np.ndarray) -> np.ndarray:
    trues, preds = masks_of(true), masks_of(pred)
    pairs = [[(t & p).sum() / (t | p).sum() for p in preds] for t in trues]
    return np.array(pairs).reshape(len(trues), len(preds))


def slow_distances(true: np.ndarray, pred: np.ndarray) -> np.ndarray:
    trues, preds = ([np.argwhere(mask).mean(axis=0) for mask in masks_of(image)] for image in (true, pred))
    return np.array([[np.linalg.norm(t - p) for p in preds] for t in trues]).reshape(len(trues), len(preds))

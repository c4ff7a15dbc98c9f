"""Evaluate one 1600x1200 image with 35 cells: cellray against the obvious version, which is kept here.

    python benchmarks/evaluation.py [--rounds N]

The labels are a real FNC image where the shared data is at hand ($CELLRAY_SHARED, or `shared` beside the project), else
a drawing of the same size and number; the probabilities are the blurred mask. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gauge import gauge
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.morphology import closing, disk, opening, remove_small_holes, remove_small_objects
from skimage.segmentation import watershed

from cellray.metrics import match_by_distance, match_by_iou
from cellray.postprocess import OperatingPoint, postprocess

MOST_MS, LEAST_RATIO = 150.0, 25.0
DIAMETER_PX = 40.0
IOU_THRESHOLD = 0.4
POINT = OperatingPoint()
SAMPLE = "yellow/labels/Mar32bS2C2R2_DMl_200x.png"

Labels = NDArray[np.integer]
Steps = dict[str, Callable[..., Any]]


def true_labels() -> tuple[str, Labels]:
    """Where the labels come from, and 35 labelled cells on 1600x1200 pixels."""
    shared = Path(os.environ.get("CELLRAY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    pack = shared / "data" / "fnc_real_samples.zip"
    if pack.exists():
        with zipfile.ZipFile(pack) as files:
            name = next(name for name in files.namelist() if name.endswith(SAMPLE))
            return SAMPLE, np.asarray(Image.open(io.BytesIO(files.read(name)))).astype(np.int32)
    drawing = np.zeros((1200, 1600), dtype=np.int32)
    rng, (y, x) = np.random.default_rng(0), np.indices(drawing.shape)
    for number in range(1, 36):
        cy, cx, radius = *rng.uniform(30, 1170, 2), rng.uniform(13, 26)
        drawing[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return "a drawing", drawing


def obvious_postprocess(probs: NDArray[np.float32]) -> Labels:
    """The chain in library calls on the whole image, with the published sizes in pixels."""
    mask = probs >= POINT.threshold
    mask = closing(opening(mask, disk(3)), disk(3))
    mask = remove_small_holes(mask, max_size=49)
    mask = remove_small_objects(mask, max_size=199, connectivity=2)
    distance = ndimage.distance_transform_edt(mask)
    smoothed = ndimage.maximum_filter(distance, size=30, mode="constant")
    peaks = peak_local_max(smoothed, footprint=np.ones((40, 40)), labels=label(mask), exclude_border=False)
    at_peak = np.zeros_like(mask)
    at_peak[tuple(peaks.T)] = True
    return watershed(-distance, label(at_peak), mask=mask)


def obvious_match_by_iou(true: Labels, pred: Labels) -> int:
    """Found cells, from one pair of full-size masks after the other."""
    names = np.unique(true)[1:], np.unique(pred)[1:]
    iou = np.zeros((len(names[0]), len(names[1])))
    for i, t in enumerate(names[0]):
        for j, p in enumerate(names[1]):
            intersection = np.logical_and(true == t, pred == p).sum()
            iou[i, j] = intersection / np.logical_or(true == t, pred == p).sum()
    found = iou > IOU_THRESHOLD
    return int(found[linear_sum_assignment(found * (1000 + iou), maximize=True)].sum())


def obvious_match_by_distance(true: Labels, pred: Labels) -> int:
    """Found cells, from the mean position of each full-size mask."""
    centres = [[np.argwhere(image == n).mean(axis=0) for n in np.unique(image)[1:]] for image in (true, pred)]
    distance = np.array([[np.linalg.norm(t - p) for p in centres[1]] for t in centres[0]])
    found = distance <= DIAMETER_PX
    return int(found[linear_sum_assignment(found * (1e6 - distance), maximize=True)].sum())


CELLRAY: Steps = {
    "postprocess": lambda probs: postprocess(probs, POINT, diameter_px=DIAMETER_PX),
    "IoU matching": lambda true, pred: match_by_iou(true, pred, threshold=IOU_THRESHOLD).tp,
    "distance matching": lambda true, pred: match_by_distance(true, pred, max_distance_px=DIAMETER_PX).tp,
}
OBVIOUS: Steps = {
    "postprocess": obvious_postprocess,
    "IoU matching": obvious_match_by_iou,
    "distance matching": obvious_match_by_distance,
}


def measure(steps: Steps, probs: NDArray[np.float32], true: Labels) -> tuple[dict[str, float], dict[str, int]]:
    """Milliseconds of each step, and what came out: predicted cells and found ones."""
    took, found = {}, {}
    pred: Labels | None = None
    for name, step in steps.items():
        start = time.perf_counter()
        result = step(probs) if pred is None else step(true, pred)
        took[name] = (time.perf_counter() - start) * 1e3
        if pred is None:
            pred = result
        found[name] = int(np.max(result))
    return took, found


def main() -> int:
    """Run both versions in turn, print the table, say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of the obvious version")
    rounds = parser.parse_args().rounds
    source, true = true_labels()
    probs = ndimage.gaussian_filter((true > 0).astype(np.float32), 2)
    print(gauge())
    print(f"labels: {source}, {true.shape[1]}x{true.shape[0]}, {len(np.unique(true)) - 1} cells")
    fast: list[tuple[dict[str, float], dict[str, int]]] = []
    slow: list[tuple[dict[str, float], dict[str, int]]] = []
    for _ in range(rounds):
        slow.append(measure(OBVIOUS, probs, true))
        fast.extend(measure(CELLRAY, probs, true) for _ in range(5))
    total_fast = total_slow = 0.0
    for name in CELLRAY:
        a, b = (statistics.median(took[name] for took, _ in runs) for runs in (fast, slow))
        total_fast, total_slow = total_fast + a, total_slow + b
        print(f"{name:<18} cellray {a:7.1f} ms   obvious {b:8.1f} ms   {b / a:6.1f}x")
    ratio = total_slow / total_fast
    print(f"{'together':<18} cellray {total_fast:7.1f} ms   obvious {total_slow:8.1f} ms   {ratio:6.1f}x")
    print(f"cells predicted and found: cellray {fast[0][1]}, obvious {slow[0][1]}")
    reached = total_fast <= MOST_MS and ratio >= LEAST_RATIO
    print(f"bars (at most {MOST_MS:.0f} ms, at least {LEAST_RATIO:.0f}x): {'reached' if reached else 'MISSED'}")
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Post-processing in boxes against the same chain on whole images, and the search for an operating point.

    python benchmarks/postprocess.py [--rounds N] [--images N]

Images are 1600x1200 pixels. The labels are a real FNC image with 35 cells where the shared data is at hand
($CELLRAY_SHARED, or `shared` beside the project), and drawings in the likeness of FNC; probabilities are the blurred
mask plus noise. The search sees images with softer edges and blotchy noise, so that candidates differ. Exit code 1 if a
bar is missed or a result differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
from evaluation import DIAMETER_PX, true_labels
from gauge import gauge
from numpy.typing import NDArray
from scipy import ndimage

from cellray.data.synth import draw_labels
from cellray.operating_point import ChosenPoint, choose_point
from cellray.postprocess import PUBLISHED_POINT, OperatingPoint, components, postprocess
from cellray.postprocess.sheet import Sheet
from cellray.study import EvaluationConfig

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from whole_image import whole_image_postprocess  # the oracle of the tests

LEAST_RATIO, LEAST_RATIO_DENSE = 3.0, 1 / 1.1
NOTHING_MS = 0.1  # what an empty image may cost more: it takes 0.3 ms, so a ratio would measure the call itself
MOST_SEARCH_S, LEAST_CANDIDATES = 60.0, 200
WIDTH_PX, HEIGHT_PX = 1600, 1200

Probs = NDArray[np.float32]
Labels = NDArray[np.integer]


def drawn_labels(seed: int) -> Labels:
    """Labels of a drawing; the number of cells varies from image to image as in FNC."""
    return draw_labels(np.random.default_rng(seed), width_px=WIDTH_PX, height_px=HEIGHT_PX)


def soft(labels: Labels, noise: float) -> Probs:
    """Blurred mask plus noise of single pixels, in [0, 1]."""
    blurred = ndimage.gaussian_filter((labels > 0).astype(np.float32), 2)
    grain = np.random.default_rng(0).normal(0, noise, blurred.shape)
    return np.clip(blurred + grain, 0, 1).astype(np.float32)


def blotchy(labels: Labels, seed: int, noise: float) -> Probs:
    """As a network's: logits from about -4 to 4 with soft edges and noise a few pixels wide."""
    blotches = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(labels.shape, dtype=np.float32), 3)
    logits = 8 * ndimage.gaussian_filter((labels > 0).astype(np.float32), 3) - 4 + noise * blotches / blotches.std()
    return 1 / (1 + np.exp(-logits))


def cases() -> list[tuple[str, Probs, OperatingPoint, float]]:
    """Name, probabilities, operating point and bar of the comparison with whole images."""
    source, real = true_labels()
    # drawings with few and with many cells
    few, many = sorted((drawn_labels(seed) for seed in range(8)), key=lambda labels: int((labels > 0).sum()))[2:8:5]
    usual, low = OperatingPoint(), OperatingPoint(threshold=0.5)
    grain = np.random.default_rng(0).random((HEIGHT_PX, WIDTH_PX), dtype=np.float32)
    clouds = ndimage.gaussian_filter(grain, 3)
    clouds = (clouds - clouds.min()) / np.ptp(clouds)
    return [
        (f"{source.rpartition('/')[2]}, threshold 0.5", soft(real, 0.05), usual, LEAST_RATIO),
        ("the same, threshold 0.875", soft(real, 0.05), PUBLISHED_POINT, LEAST_RATIO),
        ("drawing with few cells", soft(few, 0.05), usual, LEAST_RATIO),
        ("drawing with many cells", soft(many, 0.05), usual, LEAST_RATIO),
        ("the same with specks", soft(many, 0.2), usual, LEAST_RATIO),
        ("empty", np.zeros((HEIGHT_PX, WIDTH_PX), np.float32), usual, LEAST_RATIO_DENSE),
        ("specks over 8 %", grain, OperatingPoint(threshold=0.92), LEAST_RATIO_DENSE),
        ("noise, half of it signal", grain, low, LEAST_RATIO_DENSE),
        ("clouds, half of it signal", clouds, low, LEAST_RATIO_DENSE),
        ("everything signal", np.ones((HEIGHT_PX, WIDTH_PX), np.float32), usual, LEAST_RATIO_DENSE),
    ]


def without_boxes(probs: Probs, point: OperatingPoint, *, diameter_px: float) -> Labels:
    """As `postprocess`, the whole image being the sheet."""
    with mock.patch.object(components, "lay_out", lambda mask, _: Sheet(mask.shape, mask)):
        return postprocess(probs, point, diameter_px=diameter_px)


def compare(rounds: int) -> bool:
    """Run both versions in turn on every case, print a line each; whether bars hold and results are equal."""
    good = True
    for name, probs, point, bar in cases():
        took: dict[str, list[float]] = {"boxes": [], "whole": []}
        found: dict[str, Labels] = {}
        for k in range(rounds):
            versions = [("boxes", postprocess), ("whole", without_boxes)]
            for version, function in versions if k % 2 else versions[::-1]:
                start = time.perf_counter()
                found[version] = function(probs, point, diameter_px=DIAMETER_PX)
                took[version].append((time.perf_counter() - start) * 1e3)
        oracle = whole_image_postprocess(probs, point, diameter_px=DIAMETER_PX)
        equal = all(np.array_equal(labels, oracle) for labels in found.values())
        boxes, whole = (statistics.median(took[version]) for version in ("boxes", "whole"))
        reached = equal and (whole / boxes >= bar or boxes - whole <= NOTHING_MS)
        good &= reached
        share, n_cells = float((probs >= point.threshold).mean()), int(found["boxes"].max())
        print(
            f"{name:<48} signal {share:6.2%}  {n_cells:4d} cells  boxes {boxes:7.2f} ms  whole {whole:7.2f} ms"
            f"  {whole / boxes:5.2f}x (bar {bar:.2f}) {'reached' if reached else 'MISSED' if equal else 'DIFFERS'}"
        )
    return good


def search(n_images: int, noise: float) -> tuple[float, ChosenPoint]:
    """Seconds of one search on as many drawings, and what it chose."""
    truth = {seed: drawn_labels(seed) for seed in range(n_images)}
    probs = {seed: blotchy(labels, seed, noise) for seed, labels in truth.items()}
    start = time.perf_counter()
    choice = choose_point(probs, truth, DIAMETER_PX, EvaluationConfig())
    return time.perf_counter() - start, choice


def main() -> int:
    """Compare, search, say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="runs of each version")
    parser.add_argument("--images", type=int, default=20, help="images of the search")
    args = parser.parse_args()
    print(gauge())
    good = compare(args.rounds)
    for words, noise in (("clear", 0.3), ("noisy", 1.0), ("very noisy", 2.0)):
        took, choice = search(args.images, noise)
        reached = took <= MOST_SEARCH_S and choice.n_candidates >= LEAST_CANDIDATES
        good &= reached
        print(
            f"search, {words}: {choice.n_candidates} candidates on {args.images} images in {took:.1f} s"
            f" (bars {LEAST_CANDIDATES}, {MOST_SEARCH_S:.0f} s) {'reached' if reached else 'MISSED'};"
            f" F1 {choice.score:.3f}, shared {choice.shared_score:.3f}, {choice.n_ties} alike"
        )
    print(f"bars: {'reached' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())

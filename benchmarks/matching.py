"""Match the cells of one 1600x1200 image with 35 cells: cellray, the pairwise version, StarDist, and a whole row.

    python benchmarks/matching.py [--rounds N]

The labels are those of `evaluation.py`: a real FNC image where the shared data is at hand, else a drawing; predicted
are the pieces of the blurred mask. StarDist comes with the test tools; its compilation is not timed. Exit code 1 if a
bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from evaluation import DIAMETER_PX, IOU_THRESHOLD, POINT, Labels, obvious_match_by_iou, true_labels
from gauge import gauge
from scipy import ndimage

from cellray.metrics import contingency, image_row, match_by_iou, table_row
from cellray.postprocess import postprocess

OVER_PAIRWISE, OVER_STARDIST = 300.0, 3.0


def milliseconds(work: Callable[[], int]) -> tuple[float, int]:
    """How long it took, and what it found."""
    start = time.perf_counter()
    found = work()
    return (time.perf_counter() - start) * 1e3, found


def stardist_version(true: Labels, pred: Labels) -> Callable[[], int] | None:
    """StarDist's matching at the same threshold, compiled; None where it isn't installed."""
    try:
        from stardist.matching import matching
    except ImportError:
        return None

    def work() -> int:
        return int(matching(true, pred, thresh=IOU_THRESHOLD).tp)

    work()
    return work


def main() -> int:
    """Run the versions in turn, print the table, say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of the pairwise version")
    rounds = parser.parse_args().rounds
    source, true = true_labels()
    probs = ndimage.gaussian_filter((true > 0).astype(np.float32), 2)
    pred = postprocess(probs, POINT, diameter_px=DIAMETER_PX)
    limits = {"iou_threshold": IOU_THRESHOLD, "max_distance_px": DIAMETER_PX, "diameter_px": DIAMETER_PX}
    table = contingency(true, pred)
    print(gauge())
    print(
        f"labels: {source}, {true.shape[1]}x{true.shape[0]}, {len(np.unique(true)) - 1} cells, {pred.max()} predicted"
    )

    versions: dict[str, Callable[[], int] | None] = {
        "cellray": lambda: match_by_iou(true, pred, threshold=IOU_THRESHOLD).tp,
        "StarDist": stardist_version(true, pred),
        "a whole row": lambda: int(image_row(true, pred, **limits)["tp_iou"]),
        "with calibration": lambda: int(image_row(true, pred, probs=probs, **limits)["tp_iou"]),
        "row of a table": lambda: int(table_row(table, **limits)["tp_iou"]),
        "its IoU part only": lambda: int(table_row(table, only=("iou",), **limits)["tp_iou"]),
    }
    took: dict[str, list[float]] = {name: [] for name in ("pairwise", *versions)}
    found: dict[str, int] = {}
    for _ in range(rounds):
        once, found["pairwise"] = milliseconds(lambda: obvious_match_by_iou(true, pred))
        took["pairwise"].append(once)
        for _ in range(7):
            for name, work in versions.items():
                if work is not None:
                    once, found[name] = milliseconds(work)
                    took[name].append(once)
    medians = {name: statistics.median(times) for name, times in took.items() if times}
    for name, median in medians.items():
        print(f"{name:<18} {median:9.2f} ms   {median / medians['cellray']:8.2f} x cellray   found {found[name]}")
    reached = len(set(found.values())) == 1 and medians["pairwise"] / medians["cellray"] >= OVER_PAIRWISE
    bars = f"at least {OVER_PAIRWISE:.0f}x the pairwise version"
    if "StarDist" in medians:
        reached = reached and medians["StarDist"] / medians["cellray"] >= OVER_STARDIST
        bars += f", at least {OVER_STARDIST:.0f}x StarDist"
    else:
        print("StarDist is not installed: that bar was not checked")
    print(f"bars ({bars}, equal numbers found): {'reached' if reached else 'MISSED'}")
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())

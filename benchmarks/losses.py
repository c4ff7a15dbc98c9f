"""Every loss forwards and backwards on 8 crops of 512x512 pixels, in one thread, against BCE with a cell weight of 50.

    python benchmarks/losses.py [--rounds N]

A loss that needs nothing but logits and mask may cost 1.5 times as much as that; those with maps of the cells are shown
without a bar. Logits are those of a network that is right about most pixels. Rounds are interleaved, since shared
machines drift. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from gauge import gauge
from torch import Tensor

from cellray.losses import LOSSES
from cellray.losses.bound import map_names
from cellray.losses.maps import maps_of

MOST_RATIO = 1.5
N_IMAGES, SIDE, N_CELLS, RADIUS_PX = 8, 512, 6, 20.0
YARDSTICK = "bce"


def crops() -> tuple[Tensor, Tensor, np.ndarray]:
    """Logits and mask (N, 1, H, W), and labels (N, H, W): disks 40 px across, 3 % of the pixels."""
    rng, (y, x) = np.random.default_rng(0), np.indices((SIDE, SIDE))
    labels = np.zeros((N_IMAGES, SIDE, SIDE), dtype=np.int64)
    for image in labels:
        for number in range(1, N_CELLS + 1):
            cy, cx = rng.uniform(RADIUS_PX, SIDE - RADIUS_PX, 2)
            image[(y - cy) ** 2 + (x - cx) ** 2 <= RADIUS_PX**2] = number
    target = torch.from_numpy(labels > 0)[:, None].float()
    noise = torch.from_numpy(rng.normal(0, 2, target.shape).astype(np.float32))
    return 4 * target - 2 + noise, target, labels


def step(function: Callable[..., Tensor], logits: Tensor, inputs: tuple[Tensor, ...]) -> float:
    """Milliseconds of a value and its gradient."""
    leaf = logits.clone().requires_grad_()
    start = time.perf_counter()
    function(leaf, *inputs).backward()
    return (time.perf_counter() - start) * 1e3


def main() -> int:
    """Time all losses in turn, print the table, say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    logits, target, labels = crops()
    maps = maps_of(("components", "voronoi", "distance", "two_nearest"), labels)
    functions: dict[str, Callable[..., Tensor]] = {
        YARDSTICK: lambda z, y: LOSSES["bce"](z, y, cell_weight=50.0),
        **{name: function for name, function in LOSSES.items() if name != YARDSTICK},
    }
    needs = {name: map_names(LOSSES[name]) for name in functions}
    took: dict[str, list[float]] = {name: [] for name in functions}
    print(gauge())
    for _ in range(rounds + 1):
        for name, function in functions.items():
            took[name].append(step(function, logits, (target, *(maps[key] for key in needs[name]))))
    medians = {name: statistics.median(times[1:]) for name, times in took.items()}  # the first round warms up
    reached = True
    print(f"{N_IMAGES} crops of {SIDE}x{SIDE}, {target.mean():.1%} cells, {rounds} rounds")
    for name, ms in medians.items():
        ratio = ms / medians[YARDSTICK]
        verdict = f"with {', '.join(needs[name])}" if needs[name] else "" if ratio <= MOST_RATIO else "MISSED"
        reached = reached and verdict != "MISSED"
        print(f"{name:<14} {ms:7.1f} ms, fastest {min(took[name]):7.1f}   {ratio:5.2f}x   {verdict}".rstrip())
    print(f"bar (without maps at most {MOST_RATIO}x {YARDSTICK}): {'reached' if reached else 'MISSED'}")
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())

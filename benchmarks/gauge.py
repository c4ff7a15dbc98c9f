"""How fast this machine is right now: printed with every benchmark, since shared machines drift twofold."""

from __future__ import annotations

import mmap
import platform
import time
from collections.abc import Callable

import numpy as np

_SIDE = 768
_BYTES = 64 << 20


def gauge() -> str:
    """One line with matrix product, page-fault and copy rates of one process; takes about a second."""
    a = np.random.default_rng(0).random((_SIDE, _SIDE), dtype=np.float32)
    product = 2 * _SIDE**3 / _best_s(lambda: a @ a) / 1e9
    faults = _BYTES / mmap.PAGESIZE / _best_s(_touch_new_pages) / 1e6
    source, target = np.ones(_BYTES, dtype=np.uint8), np.ones(_BYTES, dtype=np.uint8)
    copy = _BYTES / _best_s(lambda: np.copyto(target, source)) / 1e9
    return (
        f"gauge: matrix product {product:.0f} GFLOP/s, page faults {faults:.2f} M/s, copy {copy:.1f} GB/s"
        f" ({platform.machine()}, Python {platform.python_version()})"
    )


def _best_s(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _touch_new_pages() -> None:
    with mmap.mmap(-1, _BYTES) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        pages = np.frombuffer(memory, dtype=np.uint8)
        pages[:: mmap.PAGESIZE] = 1
        del pages  # or the map can't be closed


if __name__ == "__main__":
    print(gauge())

"""The order of an image's pixels, for losses that need it; NumPy sorts and selects faster than torch on a CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellray.losses.contract import on_cpu
from cellray.torch_later import Tensor, torch

SAMPLE_EVERY = 128
"""Of so many pixels one is looked at first, to know roughly where the others lie."""


def hardest_pixels(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k-th largest of values (P,), and the places of all that are at least as large: k or, with equals, more.

    On a GPU the places of all values: to know how many are that large, it would have to be waited for.
    """
    if not on_cpu(values):
        return values.kthvalue(len(values) - k + 1).values, torch.arange(len(values), device=values.device)
    array = values.numpy()
    least = kth_largest(array, k)
    return torch.tensor(least), torch.from_numpy(np.flatnonzero(array >= least))


def descending(values: Tensor) -> Tensor:
    """Places of values (P,), from the largest value to the smallest."""
    if not on_cpu(values):
        return values.argsort(descending=True)
    return torch.from_numpy(np.argsort(-values.numpy()))


def kth_largest(values: NDArray[np.float32], k: int) -> np.float32:
    """The k-th largest value, exactly; from 1.

    A sample says between which two bounds it must lie, five standard errors around its own rank; then only the values
    between them are looked at. Where that fails, which costs nothing but time, all are.
    """
    sample = np.sort(values[::SAMPLE_EVERY])
    share = k / len(values)
    reach = 5 * np.sqrt(share * (1 - share) / len(sample))
    low, high = np.clip([(1 - share - reach) * len(sample), (1 - share + reach) * len(sample)], 0, len(sample) - 1)
    least, most = sample[int(low)], sample[int(high)]
    between = values[(values >= least) & (values <= most)]
    place = len(between) - k + int(np.count_nonzero(values > most))
    if not 0 <= place < len(between):
        between, place = values, len(values) - k
    return np.partition(between, place)[place]

"""What each image adds to a set's metric: the jackknife makes means over images of sums, ratios and limits alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cellray.arrays import Floats


def contributions(
    terms: Mapping[str, Floats], units: np.ndarray, metrics_of: Callable[[Mapping[str, Floats]], Mapping[str, Floats]]
) -> dict[str, Floats]:
    """Jackknife pseudo-values of every metric, one for each image or cluster of images.

    The pseudo-value of a unit is n · (metric of all) - (n - 1) · (metric without the unit), moved so that the mean
    over units is the metric of all; their scatter is that of the metric over new images (Tukey 1958; Efron and
    Stein 1981). A median is no smooth function of sums and is no business of this function.

    Args:
        terms: What the metrics are sums of, by name, each of shape (…, n_images).
        units: For each image the number of its cluster, 0 to n_units - 1.
        metrics_of: Metrics of sums; arrays in, arrays out.

    Returns:
        By metric, shape (…, n_units).
    """
    n = int(units.max()) + 1
    by_unit = {name: _sums(values, units, n) for name, values in terms.items()}
    sums = {name: values.sum(-1, keepdims=True) for name, values in by_unit.items()}
    whole = metrics_of(sums)
    if n == 1:
        return dict(whole)
    without = metrics_of({name: sums[name] - values for name, values in by_unit.items()})
    found = {}
    for key, value in whole.items():
        pseudo = n * value - (n - 1) * without[key]
        found[key] = pseudo + (value - pseudo.mean(-1, keepdims=True))
    return found


def _sums(values: Floats, units: np.ndarray, n: int) -> Floats:
    """Sums over the images of each unit, shape (…, n_units)."""
    rows = values.reshape(-1, values.shape[-1])
    place = n * np.arange(len(rows))[:, None] + units
    sums: Floats = np.bincount(place.ravel(), rows.ravel(), n * len(rows)).astype(float)
    return sums.reshape(*values.shape[:-1], n)

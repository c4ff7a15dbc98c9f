"""The mean over seeds × images with an interval that holds for other seeds and other images.

Each seed is judged on the same images, so a score has three sources of chance: the seed, the image, and the two
together. Their variances come from the two-way analysis of variance of random effects (Cornfield and Tukey 1956). The
variance of the mean is the sum of what seeds bring (with the rest) and what images bring, known with n_seeds - 1 and
n_images - 1 degrees of freedom; each part has its own Student's half-width, and their squares add up (MOVER, Zou and
Donner 2008; with one part it is Student's interval). Satterthwaite's single number of degrees of freedom and the mean
of both critical values (Cochran and Cox 1950) are too bold in the far tails that an adjustment over 66 pairs looks at,
and a percentile bootstrap over five seeds and the images is too narrow where seeds dominate and too wide where the
rest does: `benchmarks/calibration.py` shows it.

References:
    Cornfield and Tukey 1956, Ann. Math. Stat. 27:907; Zou and Donner 2008, Stat. Med. 27:1693;
    Owen 2007, Ann. Appl. Stat. 1:386 (what crossed resampling does instead).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from cellray.arrays import Floats

LEVEL = 0.95
ALPHA = 1 - LEVEL
LEAST_P = 1e-16


@dataclass(frozen=True)
class CrossedMean:
    """Means of seeds × images, all arrays of one shape."""

    mean: Floats
    by_seed: Floats
    """What seeds, and the rest, add to the variance of the mean."""
    by_image: Floats
    """What images add, >= 0."""
    rest: Floats
    """Variance of one image with one seed beyond what both explain; part of `by_seed` too."""
    n_seeds: int
    n_images: int

    @property
    def se(self) -> Floats:
        """Standard error over new seeds and new images; NaN if there is one seed and one image only."""
        return np.sqrt(self.by_seed + self.by_image)

    def critical(self, p: float | Floats) -> Floats:
        """How many standard errors are exceeded with the (two-sided) probability p."""
        return weighted_t(p, self.by_seed, self.by_image, self.n_seeds, self.n_images)

    def interval(self, alpha: float = ALPHA) -> tuple[Floats, Floats]:
        """Low and high ends of the interval that misses with probability alpha, by default 5 %."""
        half = self.critical(alpha) * self.se
        return self.mean - half, self.mean + half

    @property
    def t(self) -> Floats:
        """|mean| over its error; 0 if both are 0, infinite if the error alone is."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((self.mean == 0) & (self.se == 0), 0.0, np.abs(self.mean) / self.se)

    @property
    def p(self) -> Floats:
        """Two-sided p of the mean being 0, not below 1e-16."""
        # halve the interval of log p: the critical value falls as p grows
        low, high = np.full_like(self.mean, np.log(LEAST_P)), np.zeros_like(self.mean)
        t = self.t
        for _ in range(50):
            middle = (low + high) / 2
            above = self.critical(np.exp(middle)) > t
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(np.isnan(t), np.nan, np.exp(high))

    @property
    def df(self) -> Floats:
        """Degrees of freedom of the variance as a whole, after Satterthwaite: for effect sizes, not for tests."""
        below = self.by_seed**2 / max(self.n_seeds - 1, 1) + self.by_image**2 / max(self.n_images - 1, 1)
        least = max(self.n_seeds - 1.0, 1.0)
        return np.divide(self.se**4, below, out=np.full_like(self.mean, least), where=below > 0)

    @property
    def run_variance(self) -> Floats:
        """Of the mean that one new seed would have on as many new images."""
        seed = np.maximum(self.n_seeds * self.by_seed - self.rest / self.n_images, 0.0)
        return seed + self.by_image + self.rest / self.n_images

    def resized(self, n_seeds: int, n_images: int) -> CrossedMean:
        """The same differences with other numbers of seeds and images, and the same variances of one of each."""
        if (n_seeds, n_images) == (self.n_seeds, self.n_images):
            return self
        seed = np.maximum(self.by_seed * self.n_seeds - self.rest / self.n_images, 0)
        by_seed, by_image = (seed + self.rest / n_images) / n_seeds, self.by_image * self.n_images / n_images
        return CrossedMean(self.mean, by_seed, by_image, self.rest, n_seeds, n_images)


class CrossedDifference(NamedTuple):
    """A difference of means, and the ends of its interval."""

    difference: float
    low: float
    high: float


def crossed_mean(values: Floats) -> CrossedMean:
    """Mean over both axes, with its standard error over new seeds and new images.

    With one seed the error is that over images alone, and with one image (or values without images, shape (…, S, 1))
    that over seeds alone.

    Args:
        values: Shape (…, n_seeds, n_images), no NaN.
    """
    n_seeds, n_images = values.shape[-2:]
    size = n_seeds * n_images
    mean = values.mean((-2, -1))
    of_seed, of_image = values.mean(-1), values.mean(-2)
    # mean squares; their expectations are rest + I seed, rest + S image, and rest
    ms_seed = n_images * ((of_seed - mean[..., None]) ** 2).sum(-1) / max(n_seeds - 1, 1)
    ms_image = n_seeds * ((of_image - mean[..., None]) ** 2).sum(-1) / max(n_images - 1, 1)
    if size == 1:
        ms_seed = np.full_like(mean, np.nan)
    rest = np.zeros_like(mean)
    if n_seeds > 1 and n_images > 1:
        left = values - of_seed[..., :, None] - of_image[..., None, :] + mean[..., None, None]
        rest = (left**2).sum((-2, -1)) / ((n_seeds - 1) * (n_images - 1))
    return CrossedMean(mean, ms_seed / size, np.maximum(ms_image - rest, 0) / size, rest, n_seeds, n_images)


def difference_from(values: Floats, fixed: Floats, *, n_chosen_from: int, alpha: float = ALPHA) -> CrossedDifference:
    """The mean of one configuration's trials less that of predictions that are what they are, whatever the seed.

    Paired image by image; new seeds change the trials alone, new images both. That the configuration may have been
    chosen among several by the same scores is allowed for by Bonferroni's adjustment: the intervals of all of them hold
    together, and so does that of whichever is chosen.

    Args:
        values: Of the trials, shape (n_seeds, n_images), no NaN.
        fixed: Of the predictions on the same images, shape (n_images,).
        n_chosen_from: Configurations among which it was chosen.
        alpha: Probability that one of their intervals misses.

    Returns:
        The difference, and the ends of its interval; these are NaN with one seed and one image.
    """
    found = crossed_mean(values - fixed)
    low, high = found.interval(alpha / n_chosen_from)
    return CrossedDifference(float(found.mean), float(low), float(high))


def weighted_t(
    p: float | Floats, by_seed: Floats, by_image: Floats, n_seeds: int | Floats, n_images: int | Floats
) -> Floats:
    """How many standard errors make the half-width: the root of the mean of Student's two squared critical values,
    weighted by the two parts of the variance.

    Args:
        p: Two-sided probability.
        by_seed: Part of the variance known with n_seeds - 1 degrees of freedom.
        by_image: Part known with n_images - 1.
        n_seeds: Where it is 1, the seeds have no say.
        n_images: Likewise.
    """
    whole = by_seed + by_image
    share = np.divide(by_seed, whole, out=np.ones_like(whole), where=whole > 0)
    share = np.where(np.asarray(n_seeds) == 1, 0.0, np.where(np.asarray(n_images) == 1, 1.0, share))
    seeds, images = (-stdtrit(np.maximum(n - 1.0, 1.0), np.asarray(p) / 2) for n in (n_seeds, n_images))
    return np.sqrt(share * seeds**2 + (1 - share) * images**2)

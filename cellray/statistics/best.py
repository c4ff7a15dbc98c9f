"""Which configuration to take, and what that can cost at most; which may be the best; which pairs are told apart.

Of k configurations with a few seeds each on the same images, the statement is: take A; it is the best, or loses at
most L to whichever is best; the best is among these. Each configuration b is tested at 5 % as *the* best, by the
largest studentised lead of any rival over it; only one can be the best, so nothing is shared out (Gupta 1965). If the
test of the true best doesn't err, no rival leads it by more than chance explains, which bounds every rival's loss
(Hsu 1984). The critical values come from a parametric bootstrap of means, spreads and correlations, so that unequal
spreads over few seeds are allowed for. The same draws give step-down tests of all pairs (Romano and Wolf 2005).

Spreads are of seeds (with the rest) and of images, as in `crossed`. With the image part the statement is about new
images, without it about this test set. `benchmarks/calibration.py` counts how often both are wrong.

References:
    Gupta 1965, Technometrics 7:225; Hsu 1984, Ann. Stat. 12:1136; Romano and Wolf 2005, Econometrica 73:1237.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cellray.arrays import Floats
from cellray.statistics.crossed import ALPHA, crossed_mean

LEAST_SEEDS = 3
"""With fewer, nothing is decided: two seeds that happen to agree would look like certainty."""
WIDE = 3.0
"""Times the lower quartile of the spreads over seeds: beyond, a configuration is no rival that one can plan with."""
SEED_LOOKS = (5, 7, 10, 14, 20, 28, 40)
"""Numbers of seeds at which a study looks whether more are needed."""
WITHOUT_END = 400
"""Seeds that leave what images add, and next to nothing else."""
BOOTSTRAP_DRAWS = 2000
MOST_IMAGES = 200
"""Degrees of freedom that are drawn at most for images."""
ROUNDING = 1e-9
"""Share of a mean below which a difference is none."""
AT_ONCE = 4_000_000
"""Numbers drawn at once."""


@dataclass(frozen=True)
class Statement:
    """What may be said with 1 - alpha confidence; arrays of shape (k,)."""

    may_be_best: np.ndarray
    """Of the others, another does at least as well."""
    take: int
    """The recommended one."""
    losses: Floats
    """What each rival loses at most to whichever is best; NaN for one that can't be planned with, or has few seeds."""
    ahead: Floats
    """By how much each may be better than the recommended one, at most; 0 for those that can't be the best."""

    @property
    def loss(self) -> float:
        """What the recommended one loses at most; 0 if it is the best."""
        return float(self.losses[self.take])

    @property
    def is_best(self) -> bool:
        """Whether the recommended one is the only one that may be the best."""
        return bool(self.may_be_best[self.take] and self.may_be_best.sum() == 1)

    def open_within(self, margin: float) -> list[int]:
        """Those that need seeds: that may be ahead by more than a margin, and the recommended one."""
        return [i for i, ahead in enumerate(self.ahead) if i == self.take or ahead > margin]


@dataclass(frozen=True)
class Outlook:
    """What more seeds would do for a statement, if all went on like those at hand."""

    n_seeds: int | None
    """Of each, that would bring the loss within a margin; None: no number that a study gives would."""
    loss: float
    """What would be left of the loss then, or with the most seeds that a study gives."""
    of_images: float
    """What images alone would leave, with seeds without end; where those of `n_seeds` do, `loss` again."""
    lacks_images: bool
    """Whether seeds would do on these very test images, and no number of them on new ones."""


@dataclass(frozen=True)
class Moments:
    """Means and spreads of k configurations, from which everything else follows.

    Those with fewer than three runs have NaN throughout.
    """

    mean: Floats
    sd: Floats
    """Over seeds, of the means over images; shape (k,)."""
    correlation: Floats
    """Over seeds, halfway to the mean one; shape (k, k)."""
    has: np.ndarray
    """Which seeds each has; shape (k, n_seeds)."""
    n_images: int
    by_image: Floats
    """What images add to the variance of each difference; shape (k, k). 0 where they aren't compared."""
    spread_image: Floats
    """Covariance over images of what each configuration adds there beyond its mean; shape (k, k)."""
    rest: Floats
    """Variance of one image with one seed beyond what both explain; shape (k,)."""

    def with_seeds(self, n: int) -> Moments:
        """The same spreads with at least n seeds of each: what more of them would show, if nothing else changed."""
        counts = np.maximum(self.has.sum(1), np.where(np.isnan(self.mean), 0, n))
        return replace(self, has=np.arange(counts.max()) < counts[:, None])


def moments(values: Floats) -> Moments:
    """Means and spreads of trials.

    Args:
        values: What each image adds to each trial's score, higher is better; shape (k, n_seeds, n_images). A trial
            that is missing is NaN throughout.
    """
    # seeds in an order that depends on who has them alone, so that the draws do too
    values = values[:, np.lexsort(_there(values))] if len(values) else values
    has = _there(values)
    k, n_images = len(values), values.shape[2]
    n = np.maximum(has.sum(1), 1)
    known = np.where(has[..., None], values, 0.0)
    of_seed, of_image = known.mean(2), known.sum(1) / n[:, None]
    mean, sd, correlation = _over_seeds(of_seed, has)
    few = has.sum(1) < LEAST_SEEDS
    rest = np.zeros(k)
    spread, by_image = np.zeros((k, k)), np.zeros((k, k))
    if n_images > 1:
        left = (known - of_seed[..., None] - of_image[:, None] + mean[:, None, None]) * has[..., None]
        rest = (left**2).sum((1, 2)) / np.maximum((n - 1) * (n_images - 1), 1)
        by_image = _image_part(np.atleast_2d(np.cov(of_image)), rest / n, n_images)
        own = of_image[~few]
        if len(own) > 1:
            covariance = np.cov(own - own.mean(0))
            variance = np.maximum(np.diag(covariance) * len(own) / (len(own) - 1) - (rest / n)[~few], 0)
            shrunk = _half_shrunk(_correlation(covariance))
            spread[np.ix_(~few, ~few)] = shrunk * np.sqrt(np.outer(variance, variance))
    lost = np.where(few, np.nan, 1.0)
    return Moments(mean * lost, sd * lost, correlation, has, n_images, by_image, spread, rest)


class Bootstrap:
    """Draws of how k configurations that don't differ would come out, with the spreads of those at hand.

    Args:
        of: Of the configurations at hand.
        alpha: Probability of a wrong statement; of one look of several, which share out 5 %.
        n_draws: From a fixed seed, so that the same trials give the same statement; three times as many for a small
            alpha.
    """

    def __init__(self, of: Moments, *, alpha: float = ALPHA, n_draws: int = BOOTSTRAP_DRAWS) -> None:
        self.of, self.alpha = of, alpha
        self._n_draws = n_draws if alpha > 0.02 else 3 * n_draws
        self._who = np.flatnonzero(~np.isnan(of.mean))

    def statement(
        self, *, new_images: bool, preferred: np.ndarray | None = None, best: int | None = None
    ) -> Statement | None:
        """Which to take and what may be best; None with fewer than two configurations of enough seeds.

        Args:
            new_images: Of new images, or of this test set.
            preferred: Which are to be recommended, if any of these can be; shape (k,).
            best: The `winner`, if there is one: no other may be the best then.
        """
        of, who = self.of, self._who
        if len(who) < 2:
            return None
        mean, half = of.mean[who], self._chance(new_images)
        rivals = _rivals(mean, of.sd[who])
        possible = (mean[rivals] - mean[:, None] <= half[:, rivals]).all(1) if best is None else who == best
        # how far each that may be the best is ahead of every other one, at most
        ahead = np.where(possible[:, None], np.maximum(mean[:, None] - mean + half, 0.0), 0.0)
        bound = np.where(rivals, ahead.max(0), np.inf)
        chosen = rivals if preferred is None or not (rivals & preferred[who]).any() else rivals & preferred[who]
        take = int(np.where(chosen, bound, np.inf).argmin())
        k = len(of.mean)
        may_be_best, losses, over = np.zeros(k, dtype=bool), np.full(k, np.nan), np.zeros(k)
        may_be_best[who], losses[who], over[who] = possible, np.where(rivals, bound, np.nan), ahead[:, take]
        return Statement(may_be_best, int(who[take]), losses, over)

    def pair_p(self) -> Floats:
        """Step-down adjusted p of the row being better than the column, over all pairs; NaN without enough seeds.

        Returns:
            Shape (k, k).
        """
        found = np.full((len(self.of.mean),) * 2, np.nan)
        who, new_images = self._who, self.of.n_images > 1
        if len(who) < 2:
            return found
        lead = _leads(self.of.mean[who], self._errors(new_images))
        behind, better = np.nonzero(~np.eye(len(who), dtype=bool))
        order = np.argsort(-lead[behind, better], kind="stable")
        behind, better = behind[order], better[order]
        # of the leads that aren't rejected before, the largest by chance
        drawn = self._draws[new_images][:, behind, better]
        largest = np.maximum.accumulate(drawn[:, ::-1], axis=1)[:, ::-1]
        reached = (largest >= lead[behind, better].astype(np.float32)).sum(0)
        found[who[better], who[behind]] = np.maximum.accumulate((reached + 1) / (len(drawn) + 1))
        return found

    def _chance(self, new_images: bool) -> Floats:
        """How far the column may be ahead of the row by chance, if the row is the best; shape (k, k), 0 with itself."""

        def part(new: bool, alpha: float) -> Floats:
            largest = np.where(self._draws[2][:, None], self._draws[new], -np.inf).max(2)
            # without a rival there is none, and of two without scatter one is infinitely far ahead
            critical = np.quantile(np.clip(largest, 0.0, 1e4), 1 - alpha, axis=0)
            errors = self._errors(new)
            return np.multiply(critical[:, None], errors, out=np.zeros_like(errors), where=errors > 0) ** 2

        square = part(False, self.alpha)
        if new_images:
            # looking again brings new seeds, but the same images: what those add isn't shared out over the looks
            square = square + np.maximum(part(True, ALPHA) - part(False, ALPHA), 0.0)
        np.fill_diagonal(square, 0.0)
        return np.sqrt(square)

    def _errors(self, new_images: bool) -> Floats:
        of, at = self.of, np.ix_(self._who, self._who)
        seeds = _seed_part(of.sd[self._who], of.correlation[at], of.has[self._who])
        return np.sqrt(seeds + (of.by_image[at] if new_images else 0.0))

    @cached_property
    def _draws(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Leads on this test set and on new images, shape (n_draws, k, k), and who are rivals, (n_draws, k)."""
        k, most = len(self._who), max(self.of.has.shape[1], min(self.of.n_images, MOST_IMAGES), len(self._who))
        rng = np.random.default_rng(0)
        sizes = [len(part) for part in np.array_split(np.empty(self._n_draws), -(-self._n_draws * k * most // AT_ONCE))]
        parts = [self._draw(rng, n) for n in sizes]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))  # type: ignore[return-value]

    def _draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The leads of n studies without differences."""
        of, who = self.of, self._who
        at, has, k, n_images = np.ix_(who, who), of.has[who], len(who), of.n_images
        root = _root(of.correlation[at]) * of.sd[who][:, None]
        mean, sd, correlation = _over_seeds(root @ rng.standard_normal((n, k, has.shape[1])), has)
        seeds = _seed_part(sd, correlation, has)
        rivals = _rivals(mean, sd)
        here = _leads(mean, np.sqrt(seeds)).astype(np.float32)
        if n_images < 2:
            return here, here, rivals
        cover, n_seeds = of.spread_image[at], has.sum(1)
        rest = of.rest[who] / n_seeds
        df = min(n_images - 1, MOST_IMAGES)  # more than this is as good as known
        scatter = _root(cover + np.diag(rest)) @ rng.standard_normal((n, k, df))
        covariance = scatter @ scatter.transpose(0, 2, 1) / df
        df_rest = np.maximum((n_seeds - 1) * (n_images - 1), 1)
        images = _image_part(covariance, rest * rng.chisquare(df_rest, (n, k)) / df_rest, n_images)
        mean = mean + rng.standard_normal((n, k)) @ _root(cover).T / np.sqrt(n_images)
        return here, _leads(mean, np.sqrt(seeds + images)).astype(np.float32), rivals


def look_ahead(now: Statement, of: Moments, margin: float, *, new_images: bool, alpha: float = ALPHA) -> Outlook | None:
    """What more seeds of each would do for a statement whose loss is above a margin.

    Args:
        now: The statement.
        of: What it comes from.
        margin: A difference that doesn't matter.
        new_images: As for `Bootstrap.statement`.
        alpha: Probability of the later statement being wrong.

    Returns:
        None if the recommended one has as many seeds as a study gives.
    """
    only = np.arange(len(of.mean)) == now.take

    def left(n: int, new: bool) -> float:
        later = Bootstrap(of.with_seeds(n), alpha=alpha).statement(new_images=new, preferred=only)
        return np.inf if later is None else float(later.losses[now.take])

    numbers = [n for n in SEED_LOOKS if n > of.has[now.take].sum()]
    if not numbers:
        return None
    most = left(numbers[-1], new_images)
    if most <= margin:
        n, loss = next((n, loss) for n in numbers if (loss := left(n, new_images)) <= margin)
        return Outlook(n, loss, loss, False)
    of_images = left(WITHOUT_END, True) if new_images else 0.0
    return Outlook(None, most, of_images, of_images > margin >= left(numbers[-1], False))


def find_best(values: Floats, *, alpha: float = ALPHA, preferred: np.ndarray | None = None) -> Statement | None:
    """The statement on new images (on this test set, where images can't be told apart), with the leader's rule.

    Args:
        values: As for `moments`.
        alpha: Probability of a wrong statement.
        preferred: As for `Bootstrap.statement`.
    """
    return Bootstrap(moments(values), alpha=alpha).statement(
        new_images=values.shape[2] > 1, preferred=preferred, best=winner(values, alpha)
    )


def winner(values: Floats, alpha: float = ALPHA) -> int | None:
    """The leader, if each other configuration is worse by a two-sided p below alpha over the seeds that both have.

    To name one the best claims all of its comparisons at once, so none needs an adjustment (Berger 1982).

    Args:
        values: As for `moments`.
    """
    has = _there(values)
    who = np.flatnonzero(has.sum(1) >= LEAST_SEEDS)
    if len(who) < 2:
        return None
    first = who[np.argmax([values[c][has[c]].mean() for c in who])]
    for other in who[who != first]:
        common = has[first] & has[other]
        lead = crossed_mean(values[first, common] - values[other, common])
        if common.sum() < LEAST_SEEDS or lead.mean <= 0 or lead.p >= alpha:
            return None
    return int(first)


def _there(values: Floats) -> np.ndarray:
    return np.asarray(~np.isnan(values).any(2))


def _rivals(mean: Floats, sd: Floats) -> np.ndarray:
    """Configurations whose spread is no wider than three times the lower quartile; all, if the leader's is."""
    narrow = sd <= WIDE * np.quantile(sd, 0.25, axis=-1, keepdims=True)
    leads = np.take_along_axis(narrow, mean.argmax(-1)[..., None], axis=-1)
    return np.asarray(narrow | ~leads)


def _leads(mean: Floats, error: Floats) -> Floats:
    """By how many standard errors the column is better than the row; shape (…, k, k), -inf on the diagonal."""
    ahead = mean[..., None, :] - mean[..., :, None]
    rounding = ROUNDING * np.abs(mean).max(-1, initial=0.0)[..., None, None]
    ahead = np.where(np.abs(ahead) <= rounding, 0.0, ahead)  # of equals, whose error is as small
    with np.errstate(divide="ignore", invalid="ignore"):
        lead = np.where(ahead == 0, 0.0, ahead / error)
    lead[..., np.arange(mean.shape[-1]), np.arange(mean.shape[-1])] = -np.inf
    return lead


def _over_seeds(of_seed: Floats, has: np.ndarray) -> tuple[Floats, Floats, Floats]:
    """Mean, SD and half-shrunk correlation over the seeds that each has; of_seed has shape (…, k, n_seeds)."""
    there = has.astype(float)
    n = np.maximum(there.sum(1), 1)
    mean = (of_seed * there).sum(-1) / n
    off = (of_seed - mean[..., None]) * there
    square = off**2
    sd = np.sqrt(square.sum(-1) / np.maximum(n - 1, 1))
    common = square @ there.T  # of the row, over the seeds that the column has too
    return mean, sd, _half_shrunk(_ratio(off @ off.swapaxes(-1, -2), np.sqrt(common * common.swapaxes(-1, -2))))


def _half_shrunk(correlation: Floats) -> Floats:
    """Halfway to the mean correlation, if that is above 0; ones on the diagonal."""
    k = correlation.shape[-1]
    apart = ~np.eye(k, dtype=bool)
    middle = np.maximum((correlation * apart).sum((-2, -1)) / max(k * (k - 1), 1), 0.0)
    return np.where(apart, (correlation + middle[..., None, None]) / 2, 1.0)


def _seed_part(sd: Floats, correlation: Floats, has: np.ndarray) -> Floats:
    """What seeds add to the variance of each difference of means; shape (…, k, k)."""
    there = has.astype(float)
    n = there.sum(1)
    own = sd**2 / n
    shared = correlation * (there @ there.T / np.outer(n, n)) * sd[..., :, None] * sd[..., None, :]
    return np.maximum(own[..., :, None] + own[..., None, :] - 2 * shared, 0.0)


def _image_part(covariance: Floats, rest: Floats, n_images: int) -> Floats:
    """What images add, from the covariance over images of the means over seeds, and what `rest` is in its diagonal."""
    left = np.diagonal(covariance, axis1=-2, axis2=-1) - rest
    return np.maximum(left[..., :, None] + left[..., None, :] - 2 * covariance, 0.0) / n_images


def _correlation(covariance: Floats) -> Floats:
    sd = np.sqrt(np.diag(covariance))
    return _ratio(covariance, np.outer(sd, sd))


def _ratio(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _root(covariance: Floats) -> Floats:
    """A matrix whose product with its transpose is the covariance; where that isn't one, the nearest that is."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))

"""Learning rates: the course of a run, and the range test that finds its peak."""

from __future__ import annotations

import math

import numpy as np

from cellray.errors import one_of

WARMUP = 0.3
"""Share of a one-cycle run in which the rate rises."""
START_DIVISOR = 25.0
"""A cycle starts at peak / 25."""
END_DIVISOR = 1e4
"""A one-cycle run ends at peak / 10,000."""
TRIANGLES = 4
"""Cycles of a triangular run."""


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Cosine rise to the peak over the first 30 % of the run, cosine fall to almost nothing (Smith 2018)."""
    rise = max(round(WARMUP * steps), 1)
    if step < rise:
        return _cosine(peak / START_DIVISOR, peak, step / rise)
    return _cosine(peak, peak / END_DIVISOR, (step - rise) / max(steps - rise - 1, 1))


def triangular(step: int, steps: int, peak: float) -> float:
    """Four linear rises and falls between peak / 25 and the peak (Smith 2017)."""
    height = 1 - abs(2 * ((step * TRIANGLES / steps) % 1) - 1)
    return peak / START_DIVISOR + (peak - peak / START_DIVISOR) * height


def constant(step: int, steps: int, peak: float) -> float:
    """The peak at every step."""
    return peak


SCHEDULES = {"one_cycle": one_cycle, "triangular": triangular, "constant": constant}


def rate_at(schedule: str, step: int, steps: int, peak: float) -> float:
    """Learning rate of step `step` (from 0) of a run of `steps`."""
    one_of("schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule](step, steps, peak)


def smoothing_width(steps: int) -> int:
    """Steps over which the losses of a range test are averaged."""
    return max(steps // 9, 1)


def choose_rate(rates: list[float], losses: list[float], width: int) -> float:
    """Peak learning rate that a range test's curve recommends.

    The losses are smoothed; the answer is the rate of the smoothed minimum divided by 10, the usual margin below
    divergence, but not below the lowest rate tried.

    Args:
        rates: Rising rates, one a step.
        losses: Training loss at each; the test may have ended early by divergence, with NaN or inf last.
        width: Steps over which they are averaged.

    References:
        Smith 2017, https://arxiv.org/abs/1506.01186
    """
    finite = np.asarray([loss for loss in losses if math.isfinite(loss)])
    if finite.size == 0:
        return rates[0]
    padded = np.pad(finite, (width // 2, width - 1 - width // 2), mode="edge")
    smoothed = np.convolve(padded, np.ones(width) / width, mode="valid")
    return max(rates[int(np.argmin(smoothed))] / 10, rates[0])


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

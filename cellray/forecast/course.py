"""When trials are done that run one beside another, and what they hold until then."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Seconds of a trial."""

    held: float
    """With all that it asks for."""
    beside: float = 0.0
    """In which it is judged, which needs no GPU and the processors of one worker."""

    @property
    def whole(self) -> float:
        """From its start to its record, if nothing is waited for."""
        return self.held + self.beside


def makespan(spans: Sequence[Span], n_at_once: int, n_beside: int = 0, between_s: float = 0.0) -> float:
    """Seconds until all are done, if each begins in its order as soon as a place is free.

    Args:
        spans: Of the trials.
        n_at_once: Places for trials.
        n_beside: Places for trials that gave theirs up and are judged; 0: they keep it.
        between_s: Between two trials of a place.
    """
    places, beside, trained = [0.0] * max(n_at_once, 1), [0.0] * n_beside, list[tuple[float, float]]()
    for span in spans:
        end = places[0] + between_s + (span.held if beside else span.whole)
        heapq.heapreplace(places, end)
        trained.append((end, span.beside))
    for end, seconds in sorted(trained) if beside else ():
        heapq.heapreplace(beside, max(beside[0], end) + seconds)
    return max([*places, *beside])

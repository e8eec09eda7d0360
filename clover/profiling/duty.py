"""How busy a worker is kept while it is measured, and what follows from its power at several duty cycles.

A GPU's power is sampled, and its counter moves, about every 100 ms, on some boards for a quarter of that time only
(arXiv:2312.02741).  If the period of batches divided that interval, every sample would see the same phase of a batch:
random rests between batches keep the two apart.

Power is taken to be a straight line of the part of the time in which the worker is busy,

    watts = resident + slope x duty,

where `resident` is known (a context at rest).  The slope is the least-squares one through what was measured at each
duty.  A batch that takes t seconds costs slope x t joules.  The error is how far the points are from the line.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import NamedTuple

LIGHT = 0.3
"""The lighter of two duty cycles."""
_JITTER_EVERY_S = 0.1
_JITTER_S = 0.01


class Pauses:
    """Seconds of rest before each batch: `fixed_s`, or random ones from `seed` such that the worker is busy for the
    part `duty` of the time."""

    def __init__(self, *, fixed_s: float = 0.0, duty: float | None = None, seed: int = 1) -> None:
        self._fixed_s = fixed_s
        self._duty = duty
        self._random = random.Random(seed)
        self._since_s = 0.0

    def before(self, service_s: float) -> float:
        """Return the seconds to rest before the next batch; the last one took `service_s`."""
        if self._duty is None:
            return self._fixed_s
        if self._duty < 1.0:
            mean_s = service_s * (1.0 / self._duty - 1.0)
            return min(self._random.expovariate(1.0 / mean_s), 3.0 * mean_s) if mean_s > 0.0 else 0.0
        self._since_s += service_s
        if self._since_s < _JITTER_EVERY_S:
            return 0.0
        self._since_s = 0.0
        return self._random.uniform(0.0, _JITTER_S)


NO_PAUSES = Pauses()


class DutyPoint(NamedTuple):
    """A stretch of `seconds` in which a worker was busy for `busy_s` with `rows`, and a GPU drew `active_j` above what
    it draws with a context at rest."""

    seconds: float
    busy_s: float
    rows: int
    active_j: float


class LineFit(NamedTuple):
    """Joules a row by the line, and how far the points are off it, as a part of that."""

    joules: float
    error: float


def fit(points: Iterable[DutyPoint]) -> LineFit:
    """Return joules a row from stretches of one cell at several duty cycles; they need not be positive."""
    usable = [point for point in points if point.seconds > 0.0 and point.busy_s > 0.0]
    if not usable:
        return LineFit(0.0, 0.0)
    pairs = [(point.busy_s / point.seconds, point.active_j / point.seconds) for point in usable]
    slope = sum(duty * watts for duty, watts in pairs) / sum(duty * duty for duty, _ in pairs)
    service_s = sum(point.busy_s for point in usable) / sum(point.rows for point in usable)
    if slope <= 0.0:
        return LineFit(slope * service_s, 0.0)
    # Each point's own slope beside that of the line: light ones weigh less in it, as they do in the fit.
    squares = sum((watts - slope * duty) ** 2 for duty, watts in pairs) / sum(duty * duty for duty, _ in pairs)
    return LineFit(slope * service_s, math.sqrt(squares) / slope)

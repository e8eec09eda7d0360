"""What a joule cost in grams over a stretch of time: the intensity as it was then, and how it was known.

Energy may become known late (a counter that hung, a GPU that was lost).  Its grams follow from the intensities of its
own time.  So the integral of the intensity over time is kept, by how it was known; a stretch costs the difference of
the integral between its ends.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from clover.types import Reading

_JOULES_PER_KWH = 3.6e6
_KEPT = 600
"""Readings whose time can still be looked up within: ten minutes at one a second."""

Mark = dict[str, tuple[int, float]]
"""Nanoseconds and g/kWh x nanoseconds until some moment, by method of the intensity."""


class Price(NamedTuple):
    """A part of a stretch: the `part` whose intensity was known as `method` says (`Reading.known`), and grams a joule
    in it."""

    method: str
    part: float
    grams_per_j: float


class Prices:
    """The price of energy over time, PUE included.  A reading holds for the time since the one before."""

    def __init__(self, pue: float) -> None:
        self._scale = pue / _JOULES_PER_KWH
        self._points: deque[tuple[int, Mark]] = deque(maxlen=_KEPT)
        self._last: Reading | None = None

    def record(self, reading: Reading, at_ns: int) -> None:
        """Record that `reading` was in force until `at_ns` (monotonic)."""
        if not self._points:
            self._points.append((at_ns, {}))
        since_ns, mark = self._points[-1]
        self._last = reading
        if at_ns > since_ns:
            spent_ns, total = mark.get(reading.known, (0, 0.0))
            more_ns = at_ns - since_ns
            self._points.append(
                (at_ns, mark | {reading.known: (spent_ns + more_ns, total + more_ns * reading.g_per_kwh)})
            )

    def at(self, at_ns: int) -> Mark:
        """Return the integral until `at_ns`, which must be no later than the last reading.  At a time before all that
        is kept it is that of the first."""
        if not self._points:
            return {}
        later = self._points[-1]
        for earlier in reversed(self._points):
            if earlier[0] <= at_ns:
                break
            later = earlier
        else:
            return self._points[0][1]
        (since_ns, before), (until_ns, after) = earlier, later
        if since_ns >= until_ns:
            return before
        part = min((at_ns - since_ns) / (until_ns - since_ns), 1.0)
        return {
            method: (
                (was := before.get(method, (0, 0.0)))[0] + round(part * (spent_ns - was[0])),
                was[1] + part * (total - was[1]),
            )
            for method, (spent_ns, total) in after.items()
        }

    def between(self, before: Mark, after: Mark) -> tuple[Price, ...]:
        """Return what a joule cost that was used evenly between two marks.  The parts sum to 1.  If no time lies
        between the marks, it is the last reading's price; before the first reading, nothing."""
        stretches = []
        for method, (spent_ns, total) in after.items():
            was_ns, was = before.get(method, (0, 0.0))
            if spent_ns > was_ns:
                stretches.append((method, spent_ns - was_ns, total - was))
        whole_ns = sum(ns for _, ns, _ in stretches)
        if whole_ns:
            return tuple(Price(method, ns / whole_ns, total / ns * self._scale) for method, ns, total in stretches)
        last = self._last
        return () if last is None else (Price(last.known, 1.0, last.g_per_kwh * self._scale),)

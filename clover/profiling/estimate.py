"""Estimates how much time a measurement still takes, from the steps that are done."""

from __future__ import annotations

import time
from collections.abc import Callable

from clover.hints import duration

_WEIGHT = 0.5
"""Part by which a step moves the estimate towards what all steps so far say."""


class TimeLeft:
    """Estimates the seconds that are left from the steps done so far.

    Some steps take several times as long as others.  So the estimate falls with the clock, and each step moves it only
    by a part of its error, unless the number of steps was corrected.  Compiling and measuring count their own steps:
    the estimate is for the one under way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._last = (0, 0)
        self._end_s: float | None = None

    def left_s(self, done: int, total: int) -> float | None:
        """Return the seconds left after `done` of `total` steps; None before the first is done."""
        now_s = self._clock()
        last_done, last_total = self._last
        if done < last_done or (done == 0 and total != last_total):
            self._began_s = now_s
        self._last = (done, total)
        if not done:
            self._end_s = None
            return None
        end_s = now_s + (now_s - self._began_s) / done * (total - done)
        if self._end_s is not None and total == last_total:
            before_s = max(self._end_s, now_s)  # an end that has passed can only be now
            end_s = before_s + _WEIGHT * (end_s - before_s)
        self._end_s = end_s
        return end_s - now_s

    def text(self, done: int, total: int) -> str:
        """Return "3 of 17 steps, about 25 s left"."""
        left_s = self.left_s(done, total)
        return f"{done} of {total} steps{'' if left_s is None else f', about {duration(left_s, rough=True)} left'}"

"""How much time a measurement still takes, from the steps that are done."""

from __future__ import annotations

import time
from collections.abc import Callable

from clover.hints import duration


class TimeLeft:
    """Estimates the seconds that are left from the steps done so far, which take about as long as each other.

    Compiling and measuring count their own steps: the estimate is of the one that is under way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._last = (0, 0)

    def left_s(self, done: int, total: int) -> float | None:
        """Return the seconds left after `done` of `total` steps; None before the first is done."""
        last_done, last_total = self._last
        if done < last_done or (done == 0 and total != last_total):
            self._began_s = self._clock()
        self._last = (done, total)
        return (self._clock() - self._began_s) / done * (total - done) if done else None

    def text(self, done: int, total: int) -> str:
        """Return "3 of 17 steps, about 25 s left"."""
        left_s = self.left_s(done, total)
        return f"{done} of {total} steps{'' if left_s is None else f', about {duration(left_s, rough=True)} left'}"

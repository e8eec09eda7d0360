"""How many rows a second to plan for, from counts that chance moves.

A server counts the rows of the last `WINDOW_S` seconds.  If 11 arrive a second that count is off by a tenth in every
third window and by a fifth in every twentieth, so that a plan for what the newest window says is too tight every other
time.  What is planned for is therefore

    the mean of the windows since the rate last changed  +  `SURE` standard deviations of that mean

(arrivals taken as Poisson), and never less than the newest window says at its low end: a rise counts at once.  The rate
changed if the newest 1, 2 or 4 windows differ from those before by more than `CHANGED` standard deviations of that
difference, which happens by chance once in 16,000 comparisons; what was before is then forgotten.  `LONGEST` windows
are kept, so that a rate that drifts through a day is followed.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 10.0
"""Seconds that a count of arrivals covers: the trailing window of the router."""
SURE = 2.0
CHANGED = 4.0
LONGEST = 12
_SUFFIXES = (1, 2, 4)


class ArrivalRate:
    """The arrival rate of one family, window by window."""

    def __init__(self) -> None:
        self._windows: deque[float] = deque(maxlen=LONGEST)
        self._kept_s = -math.inf
        self._newest = 0.0
        self._exact = False

    def note(self, now_s: float, rate: float, window_s: float = WINDOW_S) -> None:
        """Note the count of the window that ends at `now_s` (monotonic seconds) as `rate` rows a second.

        Windows that overlap the last one that was kept add nothing to the mean; they only show a change.  An infinite
        `window_s` says that the rate is known exactly, as in a simulation."""
        self._newest = rate
        self._exact = math.isinf(window_s)
        if now_s - self._kept_s >= WINDOW_S:
            self._kept_s = now_s
            self._windows.append(rate)
            for newest in _SUFFIXES:
                if self._changed(newest):
                    self._forget_all_but(newest)
                    return
        elif self._differs(rate, 1, sum(self._windows) / len(self._windows), len(self._windows)):
            self._windows.clear()
            self._windows.append(rate)
            self._kept_s = now_s

    def rows_per_s(self) -> float:
        """Return the rows a second to plan for; 0 before the first window and while nothing arrives."""
        if not self._windows or self._exact:
            return self._newest
        mean = self._mean()
        sure = mean + SURE * deviation(mean, len(self._windows))
        return max(sure, self._newest - deviation(self._newest, 1))

    def counted(self) -> float:
        """Return the rows a second as they were counted since the rate last changed, without a margin for chance."""
        if not self._windows or self._exact:
            return self._newest
        return max(self._mean(), self._newest - deviation(self._newest, 1))

    def _mean(self) -> float:
        return sum(self._windows) / len(self._windows)

    def _changed(self, newest: int) -> bool:
        """Return whether the rate of the `newest` windows differs from that of the windows before them."""
        windows = list(self._windows)
        before = windows[:-newest]
        if not before:
            return False
        return self._differs(sum(windows[-newest:]) / newest, newest, sum(before) / len(before), len(before))

    def _differs(self, rate: float, count: int, before: float, of: int) -> bool:
        together = (rate * count + before * of) / (count + of)
        off = math.hypot(deviation(together, count), deviation(together, of))
        return abs(rate - before) > CHANGED * off

    def _forget_all_but(self, newest: int) -> None:
        kept = list(self._windows)[-newest:]
        self._windows.clear()
        self._windows.extend(kept)


def deviation(rate: float, windows: int = 1) -> float:
    """Return the standard deviation of a mean over so many windows of Poisson arrivals."""
    return math.sqrt(rate / (windows * WINDOW_S))

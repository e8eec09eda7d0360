"""How many rows a second to plan for, from counts that chance moves.

A server counts the rows of the last `WINDOW_S` seconds.  If 11 arrive a second that count is off by a tenth in every
third window and by a fifth in every twentieth, so that a plan for what the newest window says is too tight every other
time.  What is planned for is therefore

    the highest rate of which so few rows in the windows since the rate last changed are not beyond `SURE` deviations

(arrivals taken as Poisson; n rows in T seconds: (n + z^2 / 2 + z sqrt(n + z^2 / 4)) / T, z = `SURE`), and never less
than the newest window says at its low end: a rise counts at once.

`SURE` is what a server needs that plans for weeks: a plan that uses up the SLO misses it until the next one if chance
had it that too few rows were counted.  A week has 60,480 windows, that is 2,016 times `LONGEST` which share none, and
one time in 9,300 a count is beyond 3.7 deviations.  At 2 deviations, one in 44, it was seen within a week.

The rate changed if the newest 1, 2, 4 or 8 windows are above those before by more than `RISEN` standard deviations of
that difference, or below by more than `FALLEN`; what was before is then forgotten.  By chance that happens once in
32,000 comparisons up and once in 3,500,000 down: a rise that was none costs some room, a fall that was none the SLO.
`LONGEST` windows are kept, none for longer than `KEPT_S`, so that a rate that drifts through a day is followed.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 10.0
"""Seconds that a count of arrivals covers: the trailing window of the router."""
SURE = 3.7
"""Deviations by which what is planned for may differ from what was counted."""
RISEN = 4.0
FALLEN = 5.0
LONGEST = 30
KEPT_S = 3600.0
"""Seconds after which a window says nothing any more (if looks are rare; else `LONGEST` of them are younger)."""
_SUFFIXES = (1, 2, 4, 8)
_LEAST_ROWS = 5.0
"""In a window: differences are judged as if there were so many at least, as one row after quiet minutes is none."""


class ArrivalRate:
    """The arrival rate of one family, window by window."""

    def __init__(self) -> None:
        self._windows: deque[float] = deque(maxlen=LONGEST)
        self._ends: deque[float] = deque(maxlen=LONGEST)
        self._kept_s = -math.inf
        self._newest = 0.0
        self._exact = False

    def record(self, now_s: float, rate: float, window_s: float = WINDOW_S) -> None:
        """Note the count of the window that ends at `now_s` (monotonic seconds) as `rate` rows a second.

        Windows that overlap the last one that was kept add nothing to the mean; they only show a change.  An infinite
        `window_s` says that the rate is known exactly, as in a simulation."""
        self._newest = rate
        self._exact = math.isinf(window_s)
        while self._ends and self._ends[0] < now_s - KEPT_S:
            self._ends.popleft()
            self._windows.popleft()
        if now_s - self._kept_s >= WINDOW_S:
            self._kept_s = now_s
            self._windows.append(rate)
            self._ends.append(now_s)
            for newest in _SUFFIXES:
                if self._changed(newest):
                    self._forget_all_but(newest)
                    return
        elif self._differs(rate, 1, self._mean(), len(self._windows)):
            self._windows.append(rate)
            self._ends.append(now_s)
            self._forget_all_but(1)
            self._kept_s = now_s

    def rows_per_s(self) -> float:
        """Return the rows a second to plan for; 0 before the first window and while nothing arrives."""
        if not self._windows or self._exact:
            return self._newest
        sure = most(sum(self._windows) * WINDOW_S, len(self._windows) * WINDOW_S, SURE)
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
        off = max(off, deviation(_LEAST_ROWS / WINDOW_S))
        return rate - before > RISEN * off or before - rate > FALLEN * off

    def _forget_all_but(self, newest: int) -> None:
        for kept in (self._windows, self._ends):
            last = list(kept)[-newest:]
            kept.clear()
            kept.extend(last)


def most(rows: float, seconds: float, deviations: float) -> float:
    """Return the highest rate (rows/s) at which no more than `rows` in `seconds` is within so many `deviations` of what
    is expected; 0 if nothing arrived."""
    if rows <= 0.0:
        return 0.0
    half = deviations**2 / 2.0
    return (rows + half + deviations * math.sqrt(rows + half / 2.0)) / seconds


def deviation(rate: float, windows: int = 1) -> float:
    """Return the standard deviation of a mean over so many windows of Poisson arrivals."""
    return math.sqrt(rate / (windows * WINDOW_S))

"""How many rows a second to plan for, from counts that vary by chance.

A server counts the rows of the last `WINDOW_S` seconds.  At 11 rows a second, that count is off by a tenth in every
third window and by a fifth in every twentieth.  A plan for exactly what the newest window says would be too tight every
other time.  So the rate to plan for is the highest one that the windows since the rate last changed do not rule out at
`SURE` deviations.  With arrivals taken as Poisson, n rows in T seconds and z = `SURE`, that is

    (n + z^2 / 2 + z sqrt(n + z^2 / 4)) / T

Example, z = 3.7: one window of 110 rows in 10 s gives 15.6 rows a second; ten such windows give 12.3.  The rate is
never less than the newest window's less one deviation, so a rise counts at once.

**Why 3.7.**  A server plans for weeks.  If by chance too few rows are counted, a plan that uses up the SLO misses it
until the next plan.  A week has 60,480 windows, or 2,016 times `LONGEST` windows that share none.  A count is beyond
3.7 deviations one time in 9,300.  It is beyond 2 deviations one time in 44, and that was seen within a week.

**When the rate changed.**  The newest 1, 2, 4 or 8 windows are compared with those before.  If they are above by more
than `RISEN` standard deviations of the difference, or below by more than `FALLEN`, the rate changed, and the earlier
windows are forgotten.  By chance that happens once in 32,000 comparisons up and once in 3,500,000 down: a false rise
costs some room, a false fall costs the SLO.  `LONGEST` windows are kept, none for longer than `KEPT_S`, so that a rate
that drifts through a day is followed.
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
"""Seconds after which a window says nothing any more (if polls are rare; else `LONGEST` of them are younger)."""
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
        """Record the count of the window that ends at `now_s` (monotonic seconds) as `rate` rows a second.

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
    """Return the highest rate (rows/s) at which `rows` or fewer in `seconds` are still within that many `deviations` of
    what is expected; 0 if nothing arrived."""
    if rows <= 0.0:
        return 0.0
    half = deviations**2 / 2.0
    return (rows + half + deviations * math.sqrt(rows + half / 2.0)) / seconds


def deviation(rate: float, windows: int = 1) -> float:
    """Return the standard deviation of a mean over that many windows of Poisson arrivals."""
    return math.sqrt(rate / (windows * WINDOW_S))

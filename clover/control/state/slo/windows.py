"""How long the SLO was held: the last hour of one family in windows of ten seconds.

A window is held if the p95 of what was answered in it, as clients see it, was within the SLO of that time.  It is
missed if that p95 was above, or if rows waited and none was answered.  A window without requests counts for neither.
The share of the last hour is the windows held over the windows that count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from clover.control.state.arrivals import WINDOW_S

HORIZON_S = 3600.0
_WITHIN = 0.95
"""The part of the windows that an SLO which is said to be within reach would have held in."""


@dataclass(frozen=True)
class SloWindow:
    """A window that ended at `end_s` (monotonic): its p95 in milliseconds (infinite: nothing was answered), and whether
    the SLO was held."""

    end_s: float
    p95_ms: float
    held: bool


class SloWindows:
    """The windows of one family."""

    def __init__(self) -> None:
        self.held = 0
        """Windows held so far, since the start."""
        self.missed = 0
        self._ring: deque[SloWindow] = deque()
        self._end_s = math.nan

    def observe(self, now_s: float, p95_ms: float | None, waiting: bool, slo_ms: float) -> bool:
        """Record the p95 of what was answered lately (None: nothing was), and whether rows are `waiting`; return
        whether a window ended."""
        if math.isnan(self._end_s):
            self._end_s = now_s
        if now_s - self._end_s < WINDOW_S:
            return False
        self._end_s = now_s
        if p95_ms is not None or waiting:
            window = SloWindow(now_s, math.inf if p95_ms is None else p95_ms, p95_ms is not None and p95_ms <= slo_ms)
            self._ring.append(window)
            self.held += window.held
            self.missed += not window.held
        while self._ring and self._ring[0].end_s <= now_s - HORIZON_S:
            self._ring.popleft()
        return True

    def share(self) -> tuple[int, int]:
        """Return how many windows of the last hour were held, and how many count."""
        return sum(window.held for window in self._ring), len(self._ring)

    def spanned_s(self, now_s: float) -> float:
        """Return the seconds that the windows go back, at most an hour."""
        return min(HORIZON_S, now_s - self._ring[0].end_s + WINDOW_S) if self._ring else 0.0

    def best_ms(self, since_s: float = -math.inf) -> float | None:
        """Return the lowest p95 of a window that began after `since_s`; None if nothing was answered in any."""
        best = min(self._since(since_s), default=math.inf)
        return best if math.isfinite(best) else None

    def usual_ms(self, since_s: float = -math.inf) -> float | None:
        """Return the SLO that 95 % of the windows that began after `since_s` would have held; None without such
        windows."""
        p95s_ms = sorted(self._since(since_s))
        usual = p95s_ms[math.ceil(_WITHIN * len(p95s_ms)) - 1] if p95s_ms else math.inf
        return usual if math.isfinite(usual) else None

    def within(self, limit_ms: float, since_s: float) -> tuple[float, int]:
        """Return the part of the windows that began after `since_s` whose p95 was at most `limit_ms`, and their
        number."""
        held = [p95_ms <= limit_ms for p95_ms in self._since(since_s)]
        return (sum(held) / len(held) if held else 0.0), len(held)

    def _since(self, since_s: float) -> Iterator[float]:
        return (window.p95_ms for window in self._ring if window.end_s - WINDOW_S >= since_s)

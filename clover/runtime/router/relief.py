"""Relief: while more rows come than the plan's workers can serve in time, standby workers take them.

A burst is over before a configuration has changed.  So on every slice a *standby* worker may wait: a second process
with a cheaper variant, loaded and warm, that gets no rows and costs nothing but memory.  Once a row that is queued now
would wait longer than `longest_wait_ns`, the rows that wait and all that come go to that variant, on the same slices.
Once no more rows come than `_CALM` of what the plan's workers can serve, the plan's routing is restored.

`Relief` decides which of both holds, by times and figures that it is given, so that the simulation can use it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clover.runtime.router.lanes import Entry

WAIT_OF_SLO = 0.5
"""Share of the SLO that a row may wait for a worker; the rest is for its service, and for the rows ahead of it."""
RELIEF_TIMES = 3.0
"""A standby variant that is chosen automatically shall serve so many times what the plan's workers serve."""
MEASURED_NS = 250_000_000
"""How long rows are counted at a time while relief is on, to find out whether the burst is over."""
_CALM = 0.9


@dataclass(frozen=True)
class StandbyWorkers:
    """The standby workers of a family: `entries` are workers of `lane`, which take rows once a row would wait longer
    than `longest_wait_ns`, as the plan's workers of `lane` do (`entries` may be empty then).  `rates` are the rows a
    second that the plan's workers serve, by lane (0: unknown)."""

    lane: int
    entries: tuple[Entry, ...]
    longest_wait_ns: int
    rates: tuple[float, ...]


def capacity(rates: Sequence[float], shares: Sequence[float], groups: Sequence[Sequence[int]] = ()) -> float:
    """Return the rows a second that lanes of these rates serve if rows are split by `shares`; infinite if none is
    known.  The same workers serve all lanes of one of the `groups` (of none: workers of its own), and each rate is what
    they serve of that lane alone."""
    spent_s = [share / rate if share > 0.0 and rate > 0.0 else 0.0 for rate, share in zip(rates, shares, strict=True)]
    longest_s = longest(spent_s, groups)
    return 1.0 / longest_s if longest_s > 0.0 else float("inf")


def longest(times: Sequence[float], groups: Sequence[Sequence[int]] = ()) -> float:
    """Return the longest of the `times` of lanes, after those of one of the `groups` were added up."""
    return max(
        (sum(times[lane] for lane in lanes) for lanes in groups or [[lane] for lane in range(len(times))]), default=0.0
    )


class Relief:
    """Decides whether relief is on (`active`).  `count` is how often it came on."""

    __slots__ = ("_capacity", "_longest_wait_ns", "_rows", "_since_ns", "active", "count")

    def __init__(self) -> None:
        self.active = False
        self.count = 0
        self._longest_wait_ns = 0
        self._capacity = 0.0
        self._rows = 0
        self._since_ns = 0

    def set(self, longest_wait_ns: int, capacity: float) -> None:
        """Set the wait that calls for relief, and the rows a second that the plan's workers can serve."""
        self._longest_wait_ns, self._capacity = longest_wait_ns, capacity

    def update(self, now_ns: int, wait_ns: float, rows: int, waiting: int) -> bool:
        """Turn relief on or off if it is time to; return whether it turned.  A row queued now would wait `wait_ns` for
        one of the plan's workers; `rows` came since the start, `waiting` of them wait."""
        if not self.active:
            if wait_ns <= self._longest_wait_ns:
                return False
            self.active = True
            self.count += 1
            self._rows, self._since_ns = rows, now_ns
            return True
        passed_ns = now_ns - self._since_ns
        if passed_ns < MEASURED_NS:
            return False
        rate = (rows - self._rows) * 1e9 / passed_ns
        self._rows, self._since_ns = rows, now_ns
        if waiting or wait_ns > self._longest_wait_ns or rate > _CALM * self._capacity:
            return False
        self.active = False
        return True

"""Fast downgrade: while more rows come than the plan can serve in time, a cheaper variant takes them.

A burst is over before a configuration has changed.  So on every slice a *relief* worker may stand by: a second process
with a cheaper variant, loaded and warm, that gets no rows and costs nothing but memory.  Once a row that is queued now
would wait longer than `wait_ns`, the rows that wait and all that come go to the relief variant, on the same slices.
Once no more comes than `_CALM` of what the plan's workers can serve, everything is as before.

Which of both holds is decided here, by time and figures that are handed in: the simulation asks the same question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clover.runtime.router.lanes import Entry

WAIT_OF_SLO = 0.5
"""Part of the SLO that a row may wait for a worker: what is left is for its service, and for what waited before it."""
RELIEF_TIMES = 3.0
"""Relief that nobody chose shall serve so many times what the plan's workers serve."""
SLOT_NS = 250_000_000
"""Over so long the rate is counted that says whether a burst is over."""
_CALM = 0.9


@dataclass(frozen=True)
class Standby:
    """The relief of a family: `entries` are the workers of lane `lane` that stand by; a row that waits longer than
    `wait_ns` calls for them.  `rates` are the rows a second of the plan's workers, by lane (0: unknown)."""

    lane: int
    entries: tuple[Entry, ...]
    wait_ns: int
    rates: tuple[float, ...]


def capacity(rates: Sequence[float], shares: Sequence[float]) -> float:
    """Return rows a second that lanes of these rates serve when rows are dealt by `shares`; infinite where none is
    known."""
    known = [rate / share for rate, share in zip(rates, shares, strict=True) if share > 0.0 and rate > 0.0]
    return min(known, default=float("inf"))


class Relief:
    """Whether relief is on.  `count` is how often it came on."""

    __slots__ = ("_capacity", "_rows", "_since_ns", "_wait_ns", "active", "count")

    def __init__(self) -> None:
        self.active = False
        self.count = 0
        self._wait_ns = 0
        self._capacity = 0.0
        self._rows = 0
        self._since_ns = 0

    def set(self, wait_ns: int, capacity: float) -> None:
        """What calls for relief, and the rows a second that the plan's workers can serve."""
        self._wait_ns, self._capacity = wait_ns, capacity

    def turn(self, now_ns: int, wait_ns: float, rows: int, waiting: int) -> bool:
        """Return whether relief came on or went off.  A row queued now would wait `wait_ns` for a worker of the plan;
        `rows` came in all since the start, `waiting` of them wait."""
        if not self.active:
            if wait_ns <= self._wait_ns:
                return False
            self.active = True
            self.count += 1
            self._rows, self._since_ns = rows, now_ns
            return True
        passed_ns = now_ns - self._since_ns
        if passed_ns < SLOT_NS:
            return False
        rate = (rows - self._rows) * 1e9 / passed_ns
        self._rows, self._since_ns = rows, now_ns
        if waiting or wait_ns > self._wait_ns or rate > _CALM * self._capacity:
            return False
        self.active = False
        return True

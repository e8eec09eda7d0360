"""Relief: while more rows come than the plan's workers can serve in time, standby workers take them.

A burst is over before a configuration has changed.  So on every slice a *standby* worker may wait: a second process
with a cheaper variant, loaded and warm, that gets no rows and costs nothing but memory.  Once a row that is queued now
would wait longer than `longest_wait_ns`, the rows that wait and all that come go to that variant, on the same slices.
Once no more rows come than `_CALM` of what the plan's workers can serve, the plan's routing is restored.

`Relief` decides which of both holds, by times and figures that it is given, so that the simulation can use it too;
`StandbyRouting` routes accordingly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clover.runtime.router.lanes import Entry
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.retry import Retry
from clover.runtime.router.state import RouterState

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


class StandbyRouting:
    """Sends rows to the standby workers of one family while relief is on.  `rows` counts all rows that were submitted;
    the router adds to it when it submits rows."""

    def __init__(self, state: RouterState, retry: Retry) -> None:
        self.standby: StandbyWorkers | None = None
        self.rows = 0
        self._state = state
        self._relief = Relief()
        self._retry = retry

    @property
    def on(self) -> bool:
        """Whether rows go to standby workers."""
        return self._relief.active

    @property
    def at_hand(self) -> bool:
        """Whether there are standby workers that no rows go to yet."""
        return self.standby is not None and not self._relief.active

    def set(self, standby: StandbyWorkers | None) -> None:
        """Use `standby` from now on; relief that is on stays on while there are standby workers."""
        if self._relief.active:
            self._state.lanes.end_relief()
        groups = self._state.lanes.groups()
        if standby is not None and not standby.entries and [standby.lane] in groups:
            standby = None  # nobody relieves: the plan's workers of that lane serve nothing else
        self.standby = standby
        if self.standby is None:
            self._relief.active = False
            return
        shares = [self._state.lanes.routing.shares.get(variant, 0.0) for variant in self._state.traffic.variants]
        most = capacity(self.standby.rates, shares, groups)
        self._relief.set(self.standby.longest_wait_ns, most)
        if self._relief.active:
            self._state.lanes.begin_relief(self.standby.entries, self.standby.lane)

    def forget(self, worker: WorkerHandle, lane: int = -1) -> None:
        """Remove a worker that is gone, or leaves `lane` (-1: all), from the standby workers."""
        standby = self.standby
        if standby is None:
            return
        left = tuple(entry for entry in standby.entries if entry[0] is not worker or lane not in (-1, entry[1]))
        if len(left) < len(standby.entries):
            self.standby = replace(standby, entries=left) if left else None
            if not left and self._relief.active:
                self._relief.active = False
                self._state.lanes.end_relief()

    def update(self, now_ns: int) -> bool:
        """Turn relief on or off if it is time to, after batches were formed; return whether it turned."""
        standby = self.standby
        if standby is None or not (self._relief.active or self._state.lanes.waiting()):
            return False
        waiting = 0
        for lane in range(len(standby.rates)):
            if self._state.lanes.is_live(lane):  # rows of other lanes wait for a worker to come
                waiting += self._state.lanes.waiting(lane)
        waits_ns = list(map(self._wait_ns, standby.rates, range(len(standby.rates))))
        if not self._relief.update(now_ns, longest(waits_ns, self._state.lanes.groups()), self.rows, waiting):
            return False
        if self._relief.active:
            self._state.traffic.reliefs += 1
            self._state.lanes.begin_relief(standby.entries, standby.lane)
            self._retry.shift(standby.lane, now_ns)
        else:
            self._state.lanes.end_relief()
            self._retry.move_rows(now_ns)
        return True

    def _wait_ns(self, rate: float, lane: int) -> float:
        """Return how long a row that is queued now waits for one of the plan's workers in `lane`."""
        waiting = self._state.lanes.waiting(lane)
        if not waiting or rate <= 0.0:
            return 0.0
        links = (link for link in self._state.lanes.links if link.lane == lane and not link.standby)
        return (waiting + sum(len(batch.slots) for link in links for batch in link.batches.values())) * 1e9 / rate

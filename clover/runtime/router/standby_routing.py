"""When rows go to standby workers: begins and ends relief as `runtime.router.relief` decides."""

from __future__ import annotations

from dataclasses import replace

from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.relief import Relief, StandbyWorkers, capacity, longest
from clover.runtime.router.retry import Retry
from clover.runtime.router.state import RouterState


class StandbyRouting:
    """Sends rows to the standby workers of one family while relief is on.  `rows` counts all rows that were submitted;
    whoever submits rows adds to it."""

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
            self._retry.stranded(now_ns)
        return True

    def _wait_ns(self, rate: float, lane: int) -> float:
        """Return how long a row that is queued now waits for one of the plan's workers in `lane`."""
        waiting = self._state.lanes.waiting(lane)
        if not waiting or rate <= 0.0:
            return 0.0
        links = (link for link in self._state.lanes.links if link.lane == lane and not link.standby)
        return (waiting + sum(len(batch.slots) for link in links for batch in link.batches.values())) * 1e9 / rate

"""Hot spares of one family: worker processes without weights that stand ready where workers are.

A start at a placement with a hot spare is its adoption of the order: no context to make, no libraries to load
(`clover.worker.hot_spare`).  The next one is started once the change is over, in the background.  Before an instance is
unmade or a GPU is parked, its hot spare ends (`leave`).  One on a GPU that is lost is killed (`forget`): its context is
of no use once the GPU is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Literal

from clover.errors import CloverError
from clover.types import Placement

log = logging.getLogger("clover.fleet")

SLOW_S = 2.0
"""A start without a hot spare from which on `auto` keeps one."""

AGAIN_NS = 60_000_000_000
"""After one that did not start, or died, so long none is started at its placement."""


class HotSpares:
    """At most one hot spare at each placement.  `start` starts one; `taken` counts those that became workers."""

    def __init__(
        self,
        name: str,
        mode: Literal["off", "on", "auto"],
        start: Callable[[Placement], Awaitable[Any]],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.taken = 0
        self.cold_s: dict[str, float] = {}
        """Seconds that the last start without one took, by profile of the slice."""
        self._mode = mode
        self._name = name
        self._start = start
        self._clock = clock
        self._ready: dict[Placement, Any] = {}
        self._tasks: dict[Placement, asyncio.Task[None]] = {}
        """What starts or ends the one at a placement."""
        self._ending: set[Placement] = set()
        self._not_before_ns: dict[Placement, int] = {}

    @property
    def places(self) -> frozenset[Placement]:
        """The placements at which one is ready."""
        return frozenset(self._ready)

    def pids(self, device: str) -> frozenset[int]:
        """Return the processes on `device` that are ready."""
        return frozenset(worker.pid for place, worker in self._ready.items() if place.device == device)

    def take(self, placement: Placement) -> Any | None:
        """Return the one at `placement`, which is the caller's from now on; None if none is ready."""
        worker = self._ready.pop(placement, None)
        if worker is None:
            return None
        worker.on_death = None
        if worker.state != "spare":
            return None
        self.taken += 1
        return worker

    def wanted(self, workers: Mapping[Placement, Any], left_bytes: Callable[[Placement], int | None]) -> set[Placement]:
        """Return the placements of `workers`, which are ready, at which one pays: all by `on`; by `auto` those where a
        start took `SLOW_S` without one, and where `left_bytes`, if that is known, has room for a second context."""
        if self._mode != "auto":
            return set(workers) if self._mode == "on" else set()
        found = set()
        for place, worker in workers.items():
            left = left_bytes(place)
            slow = self.cold_s.get(place.profile, 0.0) >= SLOW_S
            if slow and (left is None or place in self._ready or left >= 2 * int(worker.context_bytes)):
                found.add(place)
        return found

    def tend(self, wanted: Collection[Placement]) -> None:
        """Start those that are missing at the placements of `wanted`, and end those elsewhere."""
        now_ns, loop = self._clock(), asyncio.get_running_loop()
        for place in [place for place in self._ready if place not in wanted]:
            if place not in self._tasks:
                self._keep(place, loop.create_task(self._end(place)))
        for place in wanted:
            busy = place in self._ready or place in self._tasks
            if not busy and now_ns >= self._not_before_ns.get(place, 0):
                self._keep(place, loop.create_task(self._bring(place)))

    async def leave(self, placement: Placement) -> None:
        """End the one at `placement`, also one that is being started; return once it is gone."""
        if (task := self._tasks.get(placement)) is not None:
            self._break_off(placement)
            await asyncio.wait((task,))
        await self._end(placement)

    def forget(self, placement: Placement) -> None:
        """Kill the one at `placement`, and break a start there off, without waiting."""
        self._break_off(placement)
        worker = self._ready.pop(placement, None)
        if worker is not None:
            worker.on_death = None
            worker.kill()

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(self.leave(place) for place in {*self._ready, *self._tasks}))

    def _break_off(self, placement: Placement) -> None:
        """Cancel a start at `placement`; one that is ending there goes on to."""
        if placement in self._tasks and placement not in self._ending:
            self._tasks[placement].cancel()

    def _keep(self, place: Placement, task: asyncio.Task[None]) -> None:
        self._tasks[place] = task
        task.add_done_callback(lambda _: self._tasks.pop(place, None))

    async def _bring(self, place: Placement) -> None:
        try:
            worker = await self._start(place)
        except CloverError as error:
            self._not_before_ns[place] = self._clock() + AGAIN_NS
            log.warning("%s: no hot spare at %s for a minute: %s", self._name, place.id, error)
            return
        worker.on_death = lambda _, reason: self._died(place, reason)
        self._ready[place] = worker

    async def _end(self, place: Placement) -> None:
        worker = self._ready.pop(place, None)
        if worker is not None:
            worker.on_death = None
            self._ending.add(place)
            try:
                await worker.drain_and_exit()
            finally:
                self._ending.discard(place)

    def _died(self, place: Placement, reason: str) -> None:
        if self._ready.pop(place, None) is not None:
            self._not_before_ns[place] = self._clock() + AGAIN_NS
            log.warning("%s: the hot spare at %s is gone, the next comes in a minute: %s", self._name, place.id, reason)

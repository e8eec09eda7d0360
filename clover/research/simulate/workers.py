"""Simulated workers for the server's own router and fleet: they only take time, on a virtual clock.

A worker holds a batch for as long as its profile says, and draws what its profile says.  Workers that share a placement
(during a swap, or one that stands by) take turns on it, batch by batch.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clover.planning.model.queueing import Service
from clover.runtime.router.links import WorkerHandle


class Slice:
    """A placement, on which one batch runs at a time, in the order in which workers ask."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = False

    def ask(self, start: Callable[[], None]) -> None:
        """Call `start` once it is the caller's turn."""
        self._waiting.append(start)
        if not self._busy:
            self.give()

    def give(self) -> None:
        """End the caller's turn and start the next one."""
        self._busy = bool(self._waiting)
        if self._waiting:
            self._waiting.popleft()()


class SimulatedWorker:
    """Implements `clover.runtime.workers.members.FleetWorker`, and is its own ring.  `rng` spreads service times as the
    profile's coefficient of variation says; `score` is called with the slots that it answered.  `joules` is what its
    batches took above idle, by the profile."""

    device_lost = False
    overruns = 0
    sandbox = ""
    cores = 1
    resident: ClassVar[dict[str, int]] = {}
    held = ()
    context_bytes = 0

    def __init__(
        self,
        pid: int,
        service: Service,
        where: Slice,
        *,
        clock: Callable[[], int],
        later: Callable[[float, Callable[[], None]], Any],
        reap: Callable[[], None],
        rng: random.Random,
        score: Callable[[NDArray[np.uint32]], None] = lambda slots: None,
    ) -> None:
        self.pid = pid
        self.state = "ready"
        self.on_death: Callable[[WorkerHandle, str], None] | None = None
        self.on_end_asked: Callable[[WorkerHandle], None] | None = None
        self.joules = 0.0
        self._service = service
        self._where = where
        self._clock = clock
        self._later = later
        self._reap = reap
        self._rng = rng
        self._score = score
        self._taken: deque[tuple[int, NDArray[np.uint32]]] = deque()
        self._done: deque[tuple[int, int, int, int, int, int]] = deque()
        self._running = False

    @property
    def ring(self) -> SimulatedWorker:
        """The worker itself."""
        return self

    def submit(self, batch_id: int, slots: Any, n: int, lane: int = 0) -> int:
        """Accept a batch (see `Ring.submit`)."""
        self._taken.append((batch_id, np.array(slots[:n], np.uint32)))
        if not self._running:
            self._running = True
            self._where.ask(self._begin)
        return 1

    def untaken(self) -> int:
        """Return batches that were not taken yet (see `Ring.untaken`)."""
        return max(0, len(self._taken) - self._running)

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        """Return the next finished batch (see `Ring.reap`)."""
        return self._done.popleft() if self._done else None

    def backend_of(self, variant: str) -> str:
        """Return nothing: what else it holds is not simulated."""
        return ""

    def bell(self) -> None:
        """Do nothing: a simulated worker is always awake."""

    def kill(self) -> None:
        """Die at once."""
        self.state = "dead"
        if self.on_death is not None:
            self.on_death(self, "killed")

    async def drain_and_exit(self) -> None:
        """End at once: all batches are done."""
        self.state = "dead"

    def _begin(self) -> None:
        batch_id, slots = self._taken[0]
        begun_ns = self._clock()
        self._later(self._seconds(len(slots)), lambda: self._end(batch_id, slots, begun_ns))

    def _seconds(self, rows: int) -> float:
        mean_s, cv = self._service.seconds(rows), self._service.cv
        return mean_s if cv <= 0.0 else mean_s * self._rng.gammavariate(cv**-2, cv**2)

    def _end(self, batch_id: int, slots: NDArray[np.uint32], begun_ns: int) -> None:
        now_ns, rows = self._clock(), len(slots)
        self._taken.popleft()
        self._running = bool(self._taken)
        if self._running:
            self._where.ask(self._begin)
        self._where.give()
        if self.state == "ready":
            self.joules += rows * self._service.energy_j(rows)
            self._score(slots)
            self._done.append((batch_id, 0, rows, begun_ns, now_ns, now_ns - begun_ns))
            self._reap()

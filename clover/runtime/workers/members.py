"""What a fleet is made of: members, their workers, and who comes to whose relief."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from clover.accounting import WorkerMeter
from clover.runtime.router.links import RingLike
from clover.types import Assignment

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0


class FleetWorker(Protocol):
    """What the fleet needs of a worker of the pool."""

    on_death: Callable[[Any, str], None] | None
    on_end_asked: Callable[[Any], None] | None

    @property
    def pid(self) -> int: ...
    @property
    def ring(self) -> RingLike: ...
    @property
    def state(self) -> str: ...
    @property
    def device_lost(self) -> bool: ...
    @property
    def overruns(self) -> int: ...
    def bell(self) -> None: ...
    def kill(self) -> None: ...
    async def drain_and_exit(self) -> None: ...


class StandbyChooser(Protocol):
    """Who comes to the relief of whom."""

    def beside(self, routed: Sequence[Assignment]) -> tuple[Assignment, ...]:
        """Return who stands by where `routed` work: one a placement, all of one variant."""

    def rows_per_s(self, assignment: Assignment) -> float:
        """Return what a worker serves within the SLO; 0 where that is not known."""

    def wait_ms(self) -> float:
        """Return a row that waits longer calls for relief; 0 where nothing does."""


class Member:
    """An assignment that shall have a worker."""

    __slots__ = (
        "assignment",
        "failures",
        "given_up",
        "meter",
        "ready_ns",
        "relief",
        "respawn",
        "restarts",
        "worker",
    )

    def __init__(self, assignment: Assignment, *, relief: bool = False) -> None:
        self.assignment = assignment
        self.relief = relief
        self.worker: FleetWorker | None = None
        self.meter: WorkerMeter | None = None
        self.respawn: asyncio.Task[None] | None = None
        self.restarts = 0
        self.failures = 0
        self.given_up = False
        self.ready_ns = 0

    @property
    def ready(self) -> bool:
        return self.worker is not None

    @property
    def backoff_s(self) -> float:
        """How long to wait before the next start."""
        return float(min(FIRST_BACKOFF_S * 2.0 ** min(self.failures, 16), LONGEST_BACKOFF_S))

    def set_aside(self) -> Member | None:
        """Give its worker to a member of its own, which is to be let go; None where there is no worker."""
        if self.worker is None:
            return None
        left = Member(self.assignment, relief=self.relief)
        left.worker, left.meter, left.ready_ns, left.restarts = self.worker, self.meter, self.ready_ns, self.restarts
        self.worker = self.meter = None
        return left

    def state(self, *, leaving: bool) -> str:
        """Return how it is, for people."""
        if leaving:
            return "draining"
        if self.worker is None:
            return "starting"
        return "standing by" if self.relief else "ready"

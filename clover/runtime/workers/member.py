"""A member of a fleet: an assignment that was spawned, and the worker that it has, or shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from clover.accounting import WorkerMeter
from clover.errors import WorkerError
from clover.planning.transition.memory import MemoryNeeds
from clover.runtime.router.links import RingLike
from clover.types import Assignment
from clover.worker.frames import HeldMemory

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
    @property
    def sandbox(self) -> str: ...
    @property
    def cores(self) -> int: ...
    @property
    def resident(self) -> Mapping[str, int]: ...
    @property
    def held(self) -> tuple[HeldMemory, ...]: ...
    @property
    def context_bytes(self) -> int: ...
    def backend_of(self, variant: str) -> str: ...
    def bell(self) -> None: ...
    def kill(self) -> None: ...
    async def drain_and_exit(self) -> None: ...


class DrainedInStart(WorkerError):
    """No member is left that needs the worker which is being started."""


def holds(worker: FleetWorker, assignment: Assignment) -> bool:
    """Return whether `worker` holds the variant of `assignment`, by its backend."""
    return worker.backend_of(assignment.variant) == assignment.backend


def learn(needs: MemoryNeeds, item: Assignment, worker: FleetWorker, *, alone: bool = True) -> None:
    """Let `needs` know what a worker that was started for `item`, `alone` on its slice or not, holds, if it said so."""
    for held in worker.held:
        cell = (held.variant, item.placement.profile, worker.backend_of(held.variant))
        needs.learn(cell, held.weights_bytes + held.peak_bytes, worker.context_bytes, alone=alone)


def held_bytes(workers: Iterable[FleetWorker], context: Callable[[FleetWorker], int] | None = None) -> int:
    """Return the bytes that `workers` hold together; 0 if one of them did not say.  `context`: what one holds beside
    its variants, by default what it said."""
    total = 0
    for worker in workers:
        if not worker.held:
            return 0
        beside = context(worker) if context is not None else worker.context_bytes
        total += beside + sum(held.weights_bytes + held.peak_bytes for held in worker.held)
    return total


class Member:
    """An assignment that was spawned, with its worker while that is ready.  `standby`: it gets no rows by the plan: it
    is a standby worker, or (`background`) answers audits."""

    __slots__ = (
        "assignment",
        "background",
        "dying",
        "failures",
        "given_up",
        "gone",
        "meter",
        "ready_ns",
        "respawn",
        "restarts",
        "standby",
        "worker",
    )

    def __init__(self, assignment: Assignment, *, standby: bool = False, background: bool = False) -> None:
        self.assignment = assignment
        self.standby = standby
        self.background = background
        self.worker: FleetWorker | None = None
        self.meter: WorkerMeter | None = None
        self.respawn: asyncio.Task[None] | None = None
        """The task that starts, replaces or ends its worker, if there is one; members that share it have one task."""
        self.restarts = 0
        self.failures = 0
        self.given_up = False
        self.dying = False
        """Its worker was killed, and may be there still."""
        self.gone = asyncio.Event()
        """Set once it has left, and its worker or lane is gone."""
        self.ready_ns = 0

    @property
    def ready(self) -> bool:
        """Whether it has a worker that can take rows."""
        return self.worker is not None

    @property
    def serving(self) -> bool:
        """Whether it has a worker that takes rows or could, and not one that is about to be replaced."""
        return self.worker is not None and not self.dying

    @property
    def backoff_s(self) -> float:
        """How long to wait before the next start."""
        return float(min(FIRST_BACKOFF_S * 2.0 ** min(self.failures, 16), LONGEST_BACKOFF_S))

    def split_off(self) -> Member | None:
        """Move its worker to a new member, which is to be drained; return that, or None if there is no worker."""
        if self.worker is None:
            return None
        left = Member(self.assignment, standby=self.standby, background=self.background)
        left.worker, left.meter, left.ready_ns, left.restarts = self.worker, self.meter, self.ready_ns, self.restarts
        left.dying = self.dying
        self.worker = self.meter = None
        return left

    def plan(self) -> None:
        """Make it a member of the plan, which may get rows."""
        self.standby = self.background = False
        if self.meter is not None:
            self.meter.holds = True

    def state(self, *, leaving: bool) -> str:
        """Return its state for people."""
        if leaving:
            return "draining"
        if self.worker is None:
            return "starting"
        return "standing by" if self.standby else "ready"

"""What the router keeps of one worker: its places in the batcher, one for each variant that it serves, and the batches
that it holds.

A worker process computes one batch at a time, whatever their variants are, and has one ring.  So what is true of the
process is kept once (`WorkerLinks`): its group in the batcher, its progress, and the end of its last batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from clover.accounting import WorkerMeter


class RingLike(Protocol):
    """The server's side of `clover._native.ring.Ring`."""

    def submit(self, batch_id: int, slots: Any, n: int, lane: int = 0) -> int: ...
    def untaken(self) -> int: ...
    def reap(self) -> tuple[int, int, int, int, int, int] | None: ...


class WorkerHandle(Protocol):
    """What the router needs of a worker of the pool."""

    @property
    def pid(self) -> int: ...
    @property
    def ring(self) -> RingLike: ...
    @property
    def resident(self) -> Mapping[str, int]:
        """The variants that it holds, each with its lane of the ring; without any it serves what it is given in lane
        0."""

    def bell(self) -> None: ...


class Batch:
    """Rows sent to a worker under one number.  `tenants` has the name of the tenant of each row (empty: none); None if
    no tenant sent anything yet.  `waiting`: its rows are those of batch jobs (`runtime.router.waiting`)."""

    __slots__ = ("id", "sent_ns", "slots", "tenants", "waiting")

    def __init__(self, number: int, slots: list[int], sent_ns: int) -> None:
        self.id = number
        self.slots = slots
        self.sent_ns = sent_ns
        self.tenants: list[str] | None = None
        self.waiting = False


class WorkerLinks:
    """The links of one worker process, which is the group `group` of the batcher.  `held`: how many batches it has, of
    all its links; `shared`: it serves several lanes now; `broken`: it broke the protocol of its ring."""

    __slots__ = ("_progress_ns", "broken", "ended_ns", "group", "held", "links", "shared", "worker")

    def __init__(self, worker: WorkerHandle, group: int) -> None:
        self.worker = worker
        self.group = group
        self.links: list[Link] = []
        self.held = 0
        self.shared = False
        self.broken = False
        self._progress_ns = 0
        self.ended_ns = 0
        """When its last completed batch ended; it computes one at a time."""

    def silent_ns(self, now_ns: int) -> int:
        """Return how long the worker has held a batch without completing one; 0 if it holds none."""
        return now_ns - self._progress_ns if self.held else 0

    def excuse(self, paused_ns: int, now_ns: int) -> None:
        """Leave `paused_ns` out of what `silent_ns` returns from now on: the server took no completions meanwhile."""
        self._progress_ns = min(self._progress_ns + paused_ns, now_ns)


class Link:
    """A worker of `process` at `index` of the batcher, serving `lane`, which its ring knows as lane `place`.  Exists
    from its first attach until it is detached and holds nothing.  `standby`: it is a standby worker
    (`runtime.router.relief`).  `background`: it answers audits only.  `leaving`: no new row is routed to it, but it
    takes up to `remaining` more of those that wait, because no other worker serves its lane."""

    __slots__ = (
        "attached",
        "background",
        "batches",
        "index",
        "lane",
        "leaving",
        "max_batch",
        "meter",
        "on_idle",
        "place",
        "process",
        "remaining",
        "standby",
        "worker",
    )

    def __init__(
        self, process: WorkerLinks, index: int, lane: int, place: int, max_batch: int, meter: WorkerMeter
    ) -> None:
        self.process = process
        self.worker = process.worker
        self.index = index
        self.lane = lane
        self.place = place
        self.max_batch = max_batch
        self.meter = meter
        self.attached = False
        self.standby = False
        self.background = False
        self.leaving = False
        self.remaining = 0
        self.batches: dict[int, Batch] = {}
        self.on_idle: list[Callable[[], None]] = []

    def record_sent(self, batch: Batch, now_ns: int) -> None:
        """Note that `batch` is with the worker."""
        process = self.process
        if not process.held:
            process._progress_ns = now_ns
        process.held += 1
        self.batches[batch.id] = batch
        if self.leaving:
            self.remaining -= len(batch.slots)

    def record_done(self, batch: Batch, now_ns: int) -> None:
        """Note that the worker completed `batch`."""
        del self.batches[batch.id]
        process = self.process
        process.held -= 1
        process._progress_ns = now_ns

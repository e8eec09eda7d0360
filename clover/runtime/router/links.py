"""What the router keeps of one worker: its place in the batcher, and the batches that it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from clover.accounting import WorkerMeter


class RingLike(Protocol):
    """The server's side of `clover._native.ring.Ring`."""

    def submit(self, batch_id: int, slots: Any, n: int) -> int: ...
    def untaken(self) -> int: ...
    def reap(self) -> tuple[int, int, int, int, int, int] | None: ...


class WorkerHandle(Protocol):
    """What the router needs of a worker of the pool."""

    @property
    def pid(self) -> int: ...
    @property
    def ring(self) -> RingLike: ...
    def bell(self) -> None: ...


class Batch:
    """Rows sent to a worker under one number.  `epoch` is that of its link when it was sent: a batch from before the
    worker was last attached holds none of its credits.  `tenants` has the name of the tenant of each row (empty: none);
    None if no tenant sent anything yet."""

    __slots__ = ("epoch", "id", "sent_ns", "slots", "tenants")

    def __init__(self, number: int, slots: list[int], sent_ns: int, epoch: int) -> None:
        self.id = number
        self.slots = slots
        self.sent_ns = sent_ns
        self.epoch = epoch
        self.tenants: list[str] | None = None


class Link:
    """One worker at `index` of the batcher, serving `lane`.  Exists from its first attach until it is detached and
    holds nothing.  `standby`: it is a standby worker (`runtime.router.relief`).  `leaving`: no new row is
    routed to it, but it takes up to `remaining` more of those that wait, because no other worker serves its lane."""

    __slots__ = (
        "_progress_ns",
        "attached",
        "batches",
        "broken",
        "ended_ns",
        "epoch",
        "index",
        "lane",
        "leaving",
        "max_batch",
        "meter",
        "on_idle",
        "remaining",
        "standby",
        "worker",
    )

    def __init__(self, worker: WorkerHandle, index: int, lane: int, max_batch: int, meter: WorkerMeter) -> None:
        self.worker = worker
        self.index = index
        self.lane = lane
        self.max_batch = max_batch
        self.meter = meter
        self.attached = False
        self.standby = False
        self.leaving = False
        self.remaining = 0
        self.broken = False
        self.epoch = 0
        self.batches: dict[int, Batch] = {}
        self.on_idle: list[Callable[[], None]] = []
        self._progress_ns = 0
        self.ended_ns = 0
        """When its last completed batch ended; it computes one at a time."""

    def sent(self, batch: Batch, now_ns: int) -> None:
        """Note that `batch` is with the worker."""
        if not self.batches:
            self._progress_ns = now_ns
        self.batches[batch.id] = batch
        if self.leaving:
            self.remaining -= len(batch.slots)

    def landed(self, batch: Batch, now_ns: int) -> None:
        """Note that the worker completed `batch`."""
        del self.batches[batch.id]
        self._progress_ns = now_ns

    def silent_ns(self, now_ns: int) -> int:
        """Return how long the worker has held a batch without completing one; 0 if it holds none."""
        return now_ns - self._progress_ns if self.batches else 0

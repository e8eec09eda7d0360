"""How much memory the processes at a placement hold, by what they said when they became ready."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from clover.planning.transition.memory import MemoryNeeds
from clover.types import Assignment
from clover.worker.frames import HeldMemory


@runtime_checkable
class HoldingWorker(Protocol):
    """A worker that said what it holds when it became ready (`clover.runtime.workers.handle.WorkerProcess`)."""

    held: tuple[HeldMemory, ...]
    context_bytes: int

    def backend_of(self, variant: str) -> str:
        """Return the backend by which it holds `variant`."""


def learn(needs: MemoryNeeds, item: Assignment, worker: object) -> None:
    """Let `needs` know what a worker that was started for `item` holds, if it said so."""
    if isinstance(worker, HoldingWorker):
        for one in worker.held:
            cell = (one.variant, item.placement.profile, worker.backend_of(one.variant))
            needs.learn(cell, one.weights_bytes + one.peak_bytes, worker.context_bytes)


def held_bytes(workers: Iterable[object]) -> int:
    """Return the bytes that `workers` hold together; 0 if one of them did not say."""
    total = 0
    for worker in workers:
        if not isinstance(worker, HoldingWorker) or not worker.held:
            return 0
        total += worker.context_bytes + sum(one.weights_bytes + one.peak_bytes for one in worker.held)
    return total

"""What the processes at a placement hold: which variants they could serve at once, and how much memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from clover.planning.transition.memory import MemoryNeeds
from clover.types import Assignment
from clover.worker.frames import HeldMemory, WorkerOrder


@runtime_checkable
class HoldingWorker(Protocol):
    """A worker that said what it holds when it became ready (`clover.runtime.workers.handle.WorkerProcess`)."""

    order: WorkerOrder
    resident: Mapping[str, int]
    held: tuple[HeldMemory, ...]
    context_bytes: int


def holds(worker: object, item: Assignment) -> bool:
    """Return whether a ready worker at the placement of `item` holds its variant, by its backend."""
    if not isinstance(worker, HoldingWorker):
        return False
    return _backend(worker, item.variant) == item.backend


def learn(needs: MemoryNeeds, item: Assignment, worker: object) -> None:
    """Let `needs` know what a worker that was started for `item` holds, if it said so."""
    if isinstance(worker, HoldingWorker):
        for one in worker.held:
            cell = (one.variant, item.placement.profile, _backend(worker, one.variant))
            needs.learn(cell, one.weights_bytes + one.peak_bytes, worker.context_bytes)


def _backend(worker: HoldingWorker, variant: str) -> str:
    """Return the backend by which a worker holds `variant`; empty if it does not."""
    lane = worker.resident.get(variant)
    backends = (worker.order.backend, *(one.backend for one in worker.order.also))
    return backends[lane] if lane is not None and lane < len(backends) else ""


def held_bytes(workers: Iterable[object]) -> int:
    """Return the bytes that `workers` hold together; 0 if one of them did not say."""
    total = 0
    for worker in workers:
        if not isinstance(worker, HoldingWorker) or not worker.held:
            return 0
        total += worker.context_bytes + sum(one.weights_bytes + one.peak_bytes for one in worker.held)
    return total

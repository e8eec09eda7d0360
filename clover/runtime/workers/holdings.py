"""What the processes at a placement hold: which variants they could serve at once, and how much memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

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
    lane = worker.resident.get(item.variant)
    if lane is None:
        return False
    backends = (worker.order.backend, *(one.backend for one in worker.order.also))
    return lane < len(backends) and backends[lane] == item.backend


def held_bytes(workers: Iterable[object]) -> int:
    """Return the bytes that `workers` hold together; 0 if one of them did not say."""
    total = 0
    for worker in workers:
        if not isinstance(worker, HoldingWorker) or not worker.held:
            return 0
        total += worker.context_bytes + sum(one.weights_bytes + one.peak_bytes for one in worker.held)
    return total

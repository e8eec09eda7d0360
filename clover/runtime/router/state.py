"""What the parts of one family's router share: slots, queue, lanes, deadlines, counters, and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from clover._native.batcher import Batcher
from clover._native.wire import monotonic_ns
from clover.config import FamilyConfig
from clover.errors import Overloaded, RequestError
from clover.runtime.memory.rows import Memory
from clover.runtime.memory.slab import Layout
from clover.runtime.router.company import Company
from clover.runtime.router.demand import AccuracyDemand
from clover.runtime.router.lanes import MAX_LINKS, Lanes
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.tickets import Deadlines, SlotTable
from clover.runtime.router.traffic import Traffic
from clover.types import FamilySpec

FOREVER_NS = 1 << 60
"""A deadline further away is this far away: 36 years."""
_GROUPS = 2
"""Batches whose rows single requests put side by side before they use their slots again: one that is computed, and one
that gathers.  More would leave the caches sooner."""
_TURN_BYTES = 64 << 20
"""The most memory of a slab that they touch so, however few of them there are at a time, unless one batch is larger:
few caches hold more than that."""


def _ignore(worker: WorkerHandle, reason: str) -> None:
    """Do nothing about a lost worker, until the router says what to do."""


def slots_in_turn(spec: FamilySpec) -> int:
    """Return how many slots rows that come one by one take in turn: those of two batches, or of as many rows as fit
    into 64 MiB, but at least of one batch."""
    fitting: int = _TURN_BYTES // Layout(spec, 1).row_bytes
    return min(_GROUPS * spec.max_batch, max(spec.max_batch, fitting))


class RouterState:
    """The state that admission, dispatch and completion work on.

    `accuracy` is the expected accuracy (percent) of each variant and may be changed in place; `queue_rows` bounds the
    rows that wait, `timeout_ns` the time that a row without a timeout of its own may take; `lost` is called with a
    worker that broke the protocol of its ring, and why.  `coming` has bit i set while a worker of lane i is being
    restarted; `stranded` is true if rows may wait for a lane that has no worker.  `tenanted`: some row so far was a
    tenant's.
    """

    def __init__(
        self,
        spec: FamilySpec,
        memory: Memory,
        slots: int,
        config: FamilyConfig,
        accuracy: list[float],
        clock: Callable[[], int],
    ) -> None:
        self.name = config.name or spec.name
        self.spec = spec
        self.memory = memory
        self.accuracy = accuracy
        self.traffic = Traffic([variant.name for variant in spec.variants])
        self.timeout_ns = int(min(config.timeout_ms * 1e6, FOREVER_NS))
        self.queue_rows = min(config.queue_rows or slots, slots)
        self.demand = AccuracyDemand(self.traffic.variants, accuracy, self.queue_rows)
        self.batcher = Batcher(len(accuracy), MAX_LINKS, slots, int(config.max_queue_delay_ms * 1e6))
        self.lanes = Lanes(self.batcher, self.traffic.variants, accuracy, spec.max_batch, config.max_queue_delay_ms)
        self.table = SlotTable(slots, self.batcher, slots_in_turn(spec))
        self.deadlines = Deadlines()
        self.coming = 0
        self.stranded = False
        self.tenanted = False
        self.clock = clock
        self.lost: Callable[[WorkerHandle, str], None] = _ignore
        self._real = clock is time.monotonic_ns
        self.company = Company(clock())

    def now_ns(self) -> int:
        """Return the time of the router's clock, without a Python call if that is the machine's."""
        return monotonic_ns() if self._real else self.clock()

    def overloaded(self, why: str, message: str, retry_after_s: float) -> RequestError:
        """Count a request that is refused because of overload, for the reason `why`; return the error to raise."""
        self.traffic.overloaded(why)
        return self.refused(Overloaded(message, retry_after_s=retry_after_s))

    def refused(self, error: RequestError) -> RequestError:
        """Count a refused request by its status; return `error`, to be raised."""
        self.traffic.refused(error.status)
        return error

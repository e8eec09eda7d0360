"""What the parts of one family's router share: slots, queue, lanes, deadlines, counters, the requests
that are here, and the clock."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable

from clover._native.batcher import Batcher
from clover._native.wire import monotonic_ns
from clover.config import FamilyConfig
from clover.errors import Overloaded, RequestError
from clover.runtime.memory.rows import Memory
from clover.runtime.memory.slab import Layout
from clover.runtime.router.demand import AccuracyDemand
from clover.runtime.router.lanes import MAX_LINKS, Lanes
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.tickets import Deadlines, SlotTable
from clover.runtime.router.traffic import Traffic
from clover.types import Declined, FamilySpec

FOREVER_NS = 1 << 60
"""A deadline further away is this far away: 36 years."""
_GROUPS = 2
"""Batches whose rows single requests put side by side before they use their slots again: one that is computed, and one
that gathers.  More would leave the caches sooner."""
_TURN_BYTES = 64 << 20
"""The most memory of a slab that they touch so, however few of them there are at a time, unless one batch is larger:
few caches hold more than that."""
MOST_HERE = 256
_HALF_LIFE = 128
_PAUSE_NS = 1_000_000_000
_MOST = MOST_HERE  # as a number of C


def _ignore(worker: WorkerHandle, reason: str) -> None:
    """Do nothing about a lost worker, until the router says what to do."""


class Asleep:
    """A family without workers, which wakes when it is asked: until then rows wait, each within its own deadline.

    `wanted` is called with each request that waits; `awake` is set once a worker is there.  `refusal`: the answer (503)
    to requests whose deadline passes before.
    """

    def __init__(self, wanted: Callable[[], None]) -> None:
        self.wanted = wanted
        self.awake = asyncio.Event()
        self.refusal = Declined(why="the model is being loaded", retry_after_s=1.0)
        self.requests = 0
        """Requests that waited, and were answered or refused by now or wait still."""

    def ask(self) -> None:
        """Count a request that waits."""
        self.requests += 1
        self.wanted()


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
    tenant's.  `asleep`: what is known of a family whose workers were ended because nobody asked it, until one is there
    again; `awake_ns`: when that was.
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
        self.asleep: Asleep | None = None
        self.awake_ns = 0
        self.stranded = False
        self.tenanted = False
        self.clock = clock
        self.lost: Callable[[WorkerHandle, str], None] = _ignore
        self._real = clock is time.monotonic_ns
        self.company = Company(clock())

    def now_ns(self) -> int:
        """Return the time of the router's clock, without a Python call if that is the machine's."""
        return monotonic_ns() if self._real else self.clock()

    def record_overload(self, why: str, message: str, retry_after_s: float) -> RequestError:
        """Count a request that is refused because of overload, for the reason `why`; return the error to raise."""
        self.traffic.record_overload(why)
        return self.record_refusal(Overloaded(message, retry_after_s=retry_after_s))

    def record_refusal(self, error: RequestError) -> RequestError:
        """Count a refused request by its status; return `error`, to be raised."""
        self.traffic.record_refusal(error.status)
        return error


class Company:
    """The requests of one family that are here, and arrivals by the number of requests here: whether another one may be
    expected, so that it makes sense to wait for company.

    Theory.  With k requests *here* (submitted and not answered) the next one comes at some rate r(k).  Of clients that
    send whatever becomes of their other requests, r(k) is the same for all k.  A client that sends a request when the
    last one is answered sends none while one of its own is here: of n such clients r(n) is zero, and of one r(1).  So
    r(k) is measured: arrivals with k here, over the time with k here.  Company is *expected* with k here unless r(k) is
    less than half of the overall rate.  Too few arrivals by chance do not look like none: two further ones, at the
    overall rate, are counted for every k.

    What was counted weighs half after `_HALF_LIFE` further requests, however long they take: a client that comes to be
    alone is noticed after some of its requests, be they sent with pauses or without (with pauses, about one in ten then
    tries again whether that still holds).  A night without requests counts as a pause of `_PAUSE_NS`.  Requests above
    `MOST_HERE` are counted as that many.
    """

    __slots__ = ("_came", "_came_with", "_since_ns", "_spent_ns", "_spent_ns_with", "_unfaded", "here")

    def __init__(self, now_ns: int) -> None:
        self.here = 0
        self._since_ns = now_ns
        self._unfaded = 0
        self._came = 0.0
        self._spent_ns = 0.0
        self._came_with = array("d", [0.0]) * (MOST_HERE + 1)
        self._spent_ns_with = array("d", [0.0]) * (MOST_HERE + 1)

    def record_arrival(self, now_ns: int) -> None:
        """Count a request that was submitted."""
        here = self._spend(now_ns)
        self._came_with[here] += 1.0
        self._came += 1.0
        self.here += 1
        self._unfaded += 1
        if self._unfaded == _HALF_LIFE:
            self._halve()

    def record_departure(self, now_ns: int) -> None:
        """Count a request that was answered, or given up."""
        self._spend(now_ns)
        self.here = max(self.here - 1, 0)

    def expects_more(self, now_ns: int) -> bool:
        """Return whether, with as many requests here as now, further ones come about as often as usual."""
        here = self._spend(now_ns)
        if self._spent_ns <= 0.0:
            return True
        return self._came_with[here] + 1.0 >= 0.5 * self._came / self._spent_ns * self._spent_ns_with[here]

    def _spend(self, now_ns: int) -> int:
        """Count the time since the last call; return the number of requests here, `MOST_HERE` at most."""
        here = min(self.here, _MOST)
        if now_ns > self._since_ns:
            spent_ns = float(now_ns - self._since_ns if here else min(now_ns - self._since_ns, _PAUSE_NS))
            self._since_ns = now_ns
            self._spent_ns_with[here] += spent_ns
            self._spent_ns += spent_ns
        return here

    def _halve(self) -> None:
        """Have everything that was counted weigh half."""
        self._unfaded = 0
        self._came *= 0.5
        self._spent_ns *= 0.5
        for here in range(MOST_HERE + 1):
            self._came_with[here] *= 0.5
            self._spent_ns_with[here] *= 0.5

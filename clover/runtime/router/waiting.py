"""Rows of batch jobs: work that can wait, computed by workers that have nothing else to do.

They are below all clients' rows, audits included, by where they wait: outside the queue.  At the end of a turn of the
event loop, when the queue is empty, each worker without a batch is given one batch of them, and no second one behind
it.  So a client's row waits for at most one batch of waiting rows, and no such row shares a batch with a client's.

A batch of waiting rows is to take at most `PART` of the SLO, and of the p95 that clients have now: where answers are
much faster than they need be, they stay so.  How long batches take is known by the profile, times the ratio of what was
seen to it (`BatchPace`).  Without a profile a batch begins with one row, and without an SLO it stays at that.  If
one row takes longer than `PART` of the SLO, one of several workers is left free while clients ask, unless a job is
about to be late.

A row is answered by the most accurate variant that a worker holds.  One that asks for an accuracy is answered by the
least accurate variant that reaches it, and waits as long as no worker holds such a variant.

Whatever is counted of clients (arrivals, latencies, accuracy, the guard's tests, demand) does not know these rows.  The
meters do: their joules are the account's line `waiting`, and have receipts.

`SpareTime` is the `Model` through which such a row is written, submitted, read and closed: the same code reads its
request and writes its answer as for a client's (`clover.http.waiting`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from clover.errors import BadRequest, Overloaded, TooLarge, Unavailable
from clover.interfaces import Model
from clover.planning.model.queueing import Service
from clover.quantities import IN_PERCENT
from clover.runtime.memory.rows import RowWeights, ShapeKeys
from clover.runtime.memory.slab import NO_MEMORY
from clover.runtime.router.links import Batch, Link, WorkerLinks
from clover.runtime.router.router import Router
from clover.runtime.router.tickets import CLOSED, DONE, HELD, OPEN, RouterTicket
from clover.tenants import Tenant
from clover.types import Receipt

log = logging.getLogger("clover.waiting")

PART = 0.1
"""Part of the SLO that a batch of waiting rows is to take at most."""
_LIMIT_NS = 1_000_000_000
_RISE, _FALL = 0.25, 0.05
"""Weights of a new batch in what is expected of the next one: of one that took longer, and of a shorter one."""
_AHEAD = 3
"""Rows are held ready for so many batches of each worker."""
_TRIES = 3
"""So often a row is computed for which its worker has no memory, or whose batch failed beside others."""
_DEADLY = 2
"""A row that was being computed in so many deaths is taken for their cause."""
_AGAIN_S = 1.0
_SLOTS_PART = 4
"""Waiting rows have one slot in so many, and clients at least as many."""


class BatchPace:
    """How long batches take on one kind of worker: as `service` says, times what was seen.  None: nothing is known
    until a batch was seen, and then rows are taken for equally long."""

    def __init__(self, service: Service | None) -> None:
        self.service = service
        self.ratio = 1.0 if service is not None else 0.0
        """Seen over expected; 0: nothing is known."""
        self._fitting: tuple[float, float, int, int] = (0.0, 0.0, 0, 0)

    def _expected_s(self, rows: int) -> float:
        return self.service.seconds(rows) if self.service is not None else float(rows)

    def seconds(self, rows: int) -> float:
        """Return how long a batch of `rows` rows is expected to take; infinite if nothing is known."""
        return self._expected_s(rows) * self.ratio if self.ratio else math.inf

    def record(self, rows: int, busy_s: float) -> None:
        """Take note of a batch.  One that took longer weighs more, so that the next is rather too short."""
        seen = busy_s / max(self._expected_s(rows), 1e-9)
        if not self.ratio:
            self.ratio = seen
        else:
            self.ratio += (_RISE if seen > self.ratio else _FALL) * (seen - self.ratio)

    def fitting(self, limit_s: float, most: int) -> int:
        """Return the most rows, up to `most`, that are expected to take at most `limit_s`; at least one."""
        limit, ratio, of, fitting = self._fitting
        if (limit, of) == (limit_s, most) and abs(self.ratio - ratio) <= 0.02 * ratio:
            return fitting
        fitting = 1
        while fitting < most and self.seconds(fitting + 1) <= limit_s:
            fitting += 1
        self._fitting = limit_s, self.ratio, most, fitting
        return fitting


def _ignore() -> None:
    """Do nothing about room for rows, until somebody wants to know."""


class SpareTime(Model):
    """Computes waiting rows of one family.  `services` returns how a variant serves on a shape of slice, by the
    profile; `slo_ms` the SLO in force, 0 for none.

    `hungry` is called when there is room for rows again.  `on`: rows of this family are to run, so that a worker that
    holds the best variant is asked to answer them.  `urgent`: a job may be late if they run more slowly than they can.
    """

    def __init__(
        self,
        router: Router,
        services: Callable[[str, str], Service | None],
        slo_ms: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        state = router.state
        self.spec = router.spec
        self.closed_reason = ""
        self.most_rows = max(1, len(state.table.state) // 2)
        self.timeout_ns = state.timeout_ns
        self.on = self.urgent = False
        self.hungry: Callable[[], None] = _ignore
        self.answered = 0
        """Rows answered."""
        self.energy_j = 0.0
        """Joules in the receipts of answered rows."""
        self.busy_s = 0.0
        """Seconds that workers computed waiting rows, all workers together."""
        self.latest: Receipt | None = None
        """The receipt that was made last."""
        self._router = router
        self._state = state
        self._services = services
        self._slo_ms = slo_ms
        self._loop = loop
        self._keys = ShapeKeys(state.memory, router.spec)
        self._weights = RowWeights(state.memory, router.spec)
        self._paces: dict[tuple[int, str], BatchPace] = {}
        self._ready: dict[float, deque[tuple[RouterTicket, int]]] = {}
        """Rows that are with no worker, by the accuracy that they ask for; of tickets that have ended, too."""
        self._open: set[RouterTicket] = set()
        self._held = 0
        self._left = 0
        self._tries: dict[RouterTicket, int] = {}
        self._alone = 0
        self._limited_s = self._part_s = 0.0
        self._has_clients = False
        self._limited_until_ns = 0
        self._finished: deque[RouterTicket] = deque()
        self._delivering = False
        router.use_spare(self)

    # --- the front end's side: see `clover.interfaces.Model` ----------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._router.ready

    def take_late(self, on: bool) -> None:
        """Do nothing: no waiting row is refused for being late."""

    def open(self, rows: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> RouterTicket:
        """Reserve slots; raises BadRequest, TooLarge, Unavailable, or Overloaded if clients need the slots now."""
        state = self._state
        if rows < 1:
            raise BadRequest("a request needs at least one row")
        if rows > self.most_rows:
            raise TooLarge(f"a request carries at most {self.most_rows} rows, and this one has {rows}")
        if self._router.closed_reason:
            raise Unavailable(self._router.closed_reason, retry_after_s=_AGAIN_S)
        part = len(state.table.state) // _SLOTS_PART
        ticket = None
        # Alone, a request may have more than its part.
        if (not self._held or self._held + rows <= part) and state.table.free.free - rows >= part:
            ticket = state.table.reserve(rows, state.clock())
        if ticket is None:
            raise Overloaded("no slots are free for rows that can wait", retry_after_s=_AGAIN_S)
        ticket.tenant = tenant
        self._held += rows
        return ticket

    def write(self, ticket: Any, index: int, rows: NDArray[Any] | Sequence[bytes]) -> None:
        """See `Model.write`."""
        self._router.write(ticket, index, rows)

    def write_elements(self, ticket: Any, index: int, rows: Sequence[bytes], dims: tuple[int, ...]) -> None:
        """See `Model.write_elements`."""
        self._router.write_elements(ticket, index, rows, dims)

    def submit(
        self,
        ticket: Any,
        on_done: Callable[[Any], None],
        timeout_ns: int = 0,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        context: Any = None,
    ) -> None:
        """Have the rows wait for workers.  `timeout_ns` and `cascade` say nothing about rows that can wait."""
        if 0.0 < min_accuracy <= 1.0:
            raise BadRequest(f"clover_min_accuracy {IN_PERCENT}")
        if self._router.admission.unmeasured:
            min_accuracy = 0.0
        if min_accuracy > 0.0 and max(self._state.accuracy) < min_accuracy:
            raise BadRequest(f"no variant of this model reaches an accuracy of {min_accuracy:g} %")
        slots = ticket.slots
        ticket.key = self._keys.number_of(slots)
        ticket.min_accuracy = min_accuracy
        ticket.variants = [0] * len(slots)
        ticket.outstanding = len(slots)
        ticket.context, ticket.on_done = context, on_done
        ticket.submit_ns = self._state.clock()
        self._open.add(ticket)
        self._left += len(slots)
        self._router.dispatch.spare = self.offer
        self._ready.setdefault(min_accuracy, deque()).extend((ticket, row) for row in range(len(slots)))
        self._router.dispatch.wake()

    def read(self, ticket: Any, index: int) -> NDArray[Any] | list[bytes]:
        """See `Model.read`."""
        return self._router.read(ticket, index)

    def text(self, ticket: Any, index: int) -> bytes | None:
        """See `Model.text`."""
        return self._router.text(ticket, index)

    def receipt(self, ticket: Any) -> Receipt:
        """Bill an answered ticket; return its receipt."""
        router, lanes = self._router, ticket.variants
        accuracy = sum(router.accuracy[lane] for lane in lanes) / len(lanes)
        name = "+".join(router.traffic.variants[lane] for lane in sorted(set(lanes)))
        tenant = ticket.tenant.name if ticket.tenant is not None else ""
        self.latest = receipt = router.account.receipt(
            router.name, name, accuracy, len(lanes), ticket.energy_j, tenant
        )
        self.energy_j += receipt.energy_j
        return receipt

    def remember(self, number: int, ticket: Any) -> None:
        """Do nothing: no labels are taken for rows of batch jobs."""

    def close(self, ticket: Any) -> None:
        """Give the slots back; those that are with a worker return when it is done."""
        if ticket.phase == CLOSED:
            return
        if ticket.phase == OPEN and ticket in self._open:
            self._open.discard(ticket)
            self._left -= ticket.outstanding
        ticket.phase = CLOSED
        ticket.on_done = None
        self._tries.pop(ticket, None)
        self._held -= len(ticket.slots)
        self._state.table.close(ticket)

    # --- the runner's side --------------------------------------------------------------------------------------------

    @property
    def blocked(self) -> str:
        """Why no waiting row of this family runs now; empty if they may."""
        lanes = self._state.lanes
        if self._router.closed_reason:
            return self._router.closed_reason
        if self._state.asleep is not None:
            return "it sleeps, and is woken for them"
        if not lanes.live:
            return "no worker is ready"
        return "its workers are being changed" if lanes.leaving else ""

    @property
    def waiting_rows(self) -> int:
        """Rows that were submitted and are not answered yet."""
        return self._left

    def rows_wanted(self) -> int:
        """Return how many rows should be submitted now, so that workers do not wait for any."""
        return max(self._rows_ahead() - self._left, 0)

    def _rows_ahead(self) -> int:
        """Return how many rows workers should have ahead of them, as far as there are slots."""
        workers, most = 0, 1
        for process in self._state.lanes.processes:
            sizes = [self._size(link) for link in process.links if link.attached and not link.standby]
            workers += bool(sizes)
            most = max([most, *sizes])
        part = max(len(self._state.table.state) // _SLOTS_PART, 1)
        return min(_AHEAD * workers * most, part - self._held + self._left)

    def lanes_wanted(self) -> set[int]:
        """See `SpareWorkers.lanes_wanted`."""
        if not self.on:
            return set()
        wanted = {max(range(len(self._state.accuracy)), key=lambda lane: (self._state.accuracy[lane], lane))}
        for need, rows in self._ready.items():
            lane = self._state.demand.variant_needed(need) if rows and need > 0.0 else -1
            wanted |= {lane} if lane >= 0 else set()
        return wanted

    def give_up(self, why: str) -> None:
        """Give the rows that are with no worker back: their requests end with 503, to be tried again."""
        flying = {slot for link in self._state.lanes.links for batch in link.batches.values() for slot in batch.slots}
        for ticket in list(self._open):
            if ticket.phase == OPEN and flying.isdisjoint(ticket.slots):
                self._end(ticket, 503, why, _AGAIN_S)

    # --- the router's side --------------------------------------------------------------------------------------------

    def offer(self, now_ns: int) -> None:
        """Give each worker that has nothing to do a batch, unless clients' rows wait."""
        state = self._state
        lanes = state.lanes
        if self._open and not (state.batcher.depth() or lanes.relieved or self.blocked):
            free = [process for process in lanes.processes if not process.held and not process.broken]
            for process in free[self._left_free() :]:
                self._fill(process, now_ns)
        if self._finished and not self._delivering:
            self._delivering = True
            self._loop.call_soon(self._deliver)
        if self.on and 2 * self._left < self._rows_ahead():
            self.hungry()
        elif not (self.on or self._open or self._finished):
            self._router.dispatch.spare = None  # clients' turns take no longer than before the first job

    def _left_free(self) -> int:
        """Return how many workers without a batch get none."""
        lanes = self._state.lanes
        self._limit_s()
        if self.urgent or not self._has_clients or len(lanes.processes) < 2:
            return 0
        links = [link for link in lanes.links if link.attached and not link.standby]
        return int(any(self._pace(link).seconds(1) > self._part_s for link in links))

    def _fill(self, process: WorkerLinks, now_ns: int) -> None:
        """Give a worker without a batch the rows that come first of those that it may compute."""
        for need, rows in self._ready.items():
            lane = self._lane(need) if rows else -1
            for link in process.links:
                if link.lane == lane and link.attached and not link.leaving and not link.standby:
                    chosen = self._gather(rows, self._size(link))
                    slots = [ticket.slots[row] for ticket, row in chosen]
                    if slots and not self._router.dispatch.send_waiting(link, slots, now_ns):
                        rows.extendleft(reversed(chosen))
                    if slots:
                        return

    def _lane(self, need: float) -> int:
        """Return the lane that is to answer rows which ask for the accuracy `need`; -1 if no worker can."""
        state = self._state
        asked = [lane for lane in range(len(state.accuracy)) if state.lanes.is_asked(lane)]
        if need <= 0.0:
            return max(asked, key=lambda lane: (state.accuracy[lane], lane), default=-1)
        able = [lane for lane in asked if state.accuracy[lane] >= need]
        return min(able, key=lambda lane: (state.accuracy[lane], lane), default=-1)

    def _gather(self, rows: deque[tuple[RouterTicket, int]], most: int) -> list[tuple[RouterTicket, int]]:
        """Take the next rows that may share a batch: of one shape, and together no heavier than `most` ordinary
        ones."""
        chosen: list[tuple[RouterTicket, int]] = []
        weight = 0
        while rows and len(chosen) < most:
            ticket, row = rows[0]
            if ticket.phase == OPEN:
                if chosen and ticket.key != chosen[0][0].key:
                    break
                weight += self._weights.weigh(ticket.slots[row]) if self._weights.on else 1
                if chosen and weight > most:
                    break
                chosen.append((ticket, row))
            rows.popleft()
        return chosen

    def _size(self, link: Link) -> int:
        """Return the rows of a batch for a worker."""
        return self._pace(link).fitting(self._limit_s(), link.max_batch)

    def _limit_s(self) -> float:
        """Return how long a batch may take, which is found anew each second."""
        now_ns = self._state.clock()
        if now_ns >= self._limited_until_ns:
            self._limited_until_ns = now_ns + _LIMIT_NS
            slo_ms, p95_ms = self._slo_ms(), self._router.traffic.p95_ms(now_ns)
            self._has_clients, self._part_s = p95_ms is not None, PART * slo_ms / 1e3
            self._limited_s = PART * (slo_ms if p95_ms is None else min(slo_ms, p95_ms)) / 1e3
        return self._limited_s

    def _pace(self, link: Link) -> BatchPace:
        shape = link.meter.shape
        service = self._services(self._router.traffic.variants[link.lane], shape)
        pace = self._paces.get((link.lane, shape))
        if pace is None or pace.service != service:
            pace = self._paces[link.lane, shape] = BatchPace(service)
        return pace

    def complete(
        self, link: Link, batch: Batch, status: int, refused: Mapping[int, str], busy_ns: int, energy_j: float
    ) -> None:
        """See `WaitingBatches.complete`."""
        table = self._state.table
        self.busy_s += busy_ns / 1e9
        self._pace(link).record(len(batch.slots), busy_ns / 1e9)
        owners = [table.owner[slot] for slot in batch.slots]
        names = [each.tenant.name if each is not None and each.tenant is not None else "" for each in owners]
        link.meter.record_waiting(names)
        several = len(set(owners)) > 1
        for slot, ticket, name in zip(batch.slots, owners, names, strict=True):
            table.state[slot] = HELD
            if ticket is None or ticket.phase == CLOSED:
                table.release(slot)
                continue
            if ticket.phase != OPEN:
                continue
            ticket.energy_j += energy_j
            if slot in refused:
                row = f"row {ticket.row_of(slot)}: " if len(ticket.slots) > 1 else ""
                self._end(ticket, 400, f"{row}{refused[slot]}")
            elif status:
                self._failed(ticket, slot, status, several)
            else:
                ticket.variants[ticket.row_of(slot)] = link.lane
                ticket.outstanding -= 1
                self._left -= 1
                self.answered += 1
                self._router.account.count_waiting(link.meter, name, 1)
                if not ticket.outstanding:
                    self._end(ticket, 200, "")

    def _failed(self, ticket: RouterTicket, slot: int, status: int, several: bool) -> None:
        """Try a row of a failed batch again: alone, if requests shared it; or else if its worker was short of
        memory."""
        tries = self._tries[ticket] = self._tries.get(ticket, 0) + 1
        if several or (status == NO_MEMORY and tries < _TRIES * len(ticket.slots)):
            self._isolate(ticket)
            self._again(ticket, slot)
        elif status == NO_MEMORY:
            self._end(ticket, 413, "its worker had no memory for this request each time: send fewer or smaller rows")
        else:
            self._end(ticket, 500, "the model failed on this request")

    def lose(self, batch: Batch, *, blame: bool) -> None:
        """See `WaitingBatches.lose`.  Its rows are tried again, each request by itself; one that was being computed in
        two deaths fails."""
        table = self._state.table
        guilty: set[RouterTicket] = set()
        for slot in batch.slots:
            table.state[slot] = HELD
            ticket = table.owner[slot]
            if ticket is None or ticket.phase == CLOSED:
                table.release(slot)
            elif ticket.phase == OPEN:
                guilty.add(ticket)
                self._again(ticket, slot)
        for ticket in guilty if blame else ():
            ticket.deaths += 1
            self._isolate(ticket)
            if ticket.deaths >= _DEADLY:
                self._end(ticket, 503, "the request was being computed by two workers that died")

    def _again(self, ticket: RouterTicket, slot: int) -> None:
        self._ready.setdefault(ticket.min_accuracy, deque()).appendleft((ticket, ticket.row_of(slot)))

    def _isolate(self, ticket: RouterTicket) -> None:
        """Keep the rows of other requests out of this one's batches from now on."""
        if ticket.key >= 0:
            self._alone -= 1  # keys of shapes are never negative
            ticket.key = self._alone

    def _end(self, ticket: RouterTicket, status: int, error: str, retry_after_s: float | None = None) -> None:
        """End a ticket; who submitted it is called back later, one ticket a turn, so that clients do not wait while
        answers are written."""
        ticket.phase = DONE
        ticket.status, ticket.error, ticket.retry_after_s = status, error, retry_after_s
        ticket.done_ns = self._state.clock()
        self._open.discard(ticket)
        self._left -= ticket.outstanding
        ticket.outstanding = 0
        self._finished.append(ticket)
        self._router.dispatch.wake()

    def _deliver(self) -> None:
        """Call back for the next ticket that has ended."""
        ticket = self._finished.popleft()
        try:
            if ticket.on_done is not None:
                ticket.on_done(ticket)
        except Exception:
            log.exception("%s: the answer of a waiting row could not be kept", self._router.name)
        if self._finished:
            self._loop.call_soon(self._deliver)
        else:
            self._delivering = False

"""One request inside the data plane: its ticket, the slots that it holds, and its place among the deadlines.

A ticket is opened with slots, written, submitted, answered (or refused, or missed) and closed.  Its rows travel apart:
each may run in another batch on another variant, so the ticket only counts how many are still out.

Slots.  `SlotTable` has the state and owner of every slot; it is the one place where slots change hands.

    reserve -> HELD -> (queued) QUEUED -> (dispatched) FLYING -> landed -> HELD -> release -> FREE

A slot that is FLYING belongs to its worker.  Whatever becomes of its ticket meanwhile (deadline missed, failed, closed
by a client that went away), it returns to the free list only when the worker has completed the batch or is dead.

Deadlines.  `Deadlines` is a timing wheel of all pending tickets.  Nearly every ticket is answered long before its
deadline, so entering and leaving must be cheap and must leave little behind: a ticket is linked with the others of its
bucket, and the heap holds one number a bucket, not one a ticket.  A bucket falls due after the deadlines in it, never
before: up to one tick (2^20 ns, 1.05 ms) later, up to sixteen ticks for deadlines that were more than a second away,
and up to 1/512 of the distance for those more than 17 seconds away.  A bucket stays until it falls due, also when
empty, so that last rule bounds their number: clients choose deadlines.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

import numpy as np

from clover._native.batcher import Batcher
from clover._native.slots import SlotAllocator
from clover.interfaces import Ticket as Base
from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.answer_reader import RowAnswer
from clover.runtime.guard.clients import Sender
from clover.tenants import Tenant

StageAnswers = tuple[tuple[int, RowAnswer], ...]
"""The lanes that answered a row, in the order in which they were asked, each with its answer."""

OPEN, PENDING, DONE, CLOSED = range(4)
"""Phases of a ticket."""

BACKGROUND = -1
"""The flow of audits: their rows are behind those of all clients."""

FREE, HELD, QUEUED, FLYING = range(4)
"""States of a slot: on the free list; held by an open or answered ticket; in the batcher; with a worker."""


# Most tickets keep these empty containers, so all share them; one is replaced before anything is put in.
_NO_LANES: list[int] = []
_NO_PATHS: dict[int, tuple[int, ...]] = {}
_NO_ROWS: set[int] = set()
_NO_ENDS: dict[int, int] = {}
_NO_ANSWERS: dict[int, StageAnswers] = {}


class RouterTicket(Base):
    """A `clover.interfaces.Ticket` with what the router keeps of it."""

    __slots__ = (
        "audit",
        "awaits",
        "batch_rows",
        "billed",
        "bucket",
        "chain",
        "connection",
        "cut_short",
        "deadline_ns",
        "deaths",
        "earlier",
        "energy_j",
        "flow",
        "group",
        "key",
        "later",
        "lent",
        "limited",
        "marked",
        "min_accuracy",
        "on_done",
        "outstanding",
        "paths",
        "phase",
        "planned",
        "recalled",
        "repeats",
        "request",
        "sender",
        "stage_answers",
        "submit_ns",
        "tenant",
        "torn",
        "unanswered",
    )

    def __init__(self, slots: list[int], arrival_ns: int) -> None:
        self.slots = slots
        self.flow = 0
        """Rows of one flow take turns with those of others: a tenant's or a connection's number, 0 for callers in this
        process."""
        self.connection = 0
        """The number of the connection, whoever's it is."""
        self.tenant: Tenant | None = None
        """Who sent it, if that is a tenant."""
        self.request = 0
        """The number of the id that the client gave its request; if it gave none 0, or less: a tenant's connection."""
        self.status = 0
        self.error = ""
        self.retry_after_s: float | None = None
        self.context: Any = None
        self.client = ""
        self.uncached = 0
        self.arrival_ns = arrival_ns
        self.waited_ns = 0
        self.submit_ns = 0
        self.done_ns = 0
        self.queue_ns = 0
        self.compute_ns = 0
        self.batch_rows = 0
        """Rows of the batch that took longest (`compute_ns`), those of other requests included."""
        self.variants = _NO_LANES
        self.chain: RoutedChain | None = None
        self.paths = _NO_PATHS
        """By row, the lanes that answered it before the one it is at; rows that were never escalated have none."""
        self.cut_short = _NO_ROWS
        """Rows that keep an answer although they should have been escalated."""
        self.marked: tuple[int, ...] = ()
        """Rows that are audited once they are answered (`runtime.router.audits`)."""
        self.stage_answers = _NO_ANSWERS
        """Of escalated rows whose answers are compared later, by row: the answers of the earlier lanes."""
        self.planned = _NO_ENDS
        """Of escalated rows that are audited: the lane at which the plan's thresholds would have ended them."""
        self.repeats = _NO_ROWS
        """Slots that the guard does not count: their input came before, or their client is left out."""
        self.sender: Sender | None = None
        """Who sent it, as the guard counts clients; None while it counts no row of it."""
        self.group = 0
        """The group of that client."""
        self.limited = 0
        """Rows that keep an answer because the client is over its limit of escalations."""
        self.audit: object | None = None
        """The `Audit` whose second answer this ticket asks for; None for a client's ticket."""
        self.torn: tuple[int, ...] = ()
        """Rows whose slot may not hold the answer of the last lane of their path: their worker died while it computed
        them, or they were sent back to an earlier lane, and no lane has answered since."""
        self.awaits = -1
        """The lane whose worker it waits or waited for, as none that is accurate enough was there; -1: none."""
        self.unanswered: object | None = None
        """The `Unanswered` whose rows are kept in the cache of answers once they are there."""
        self.recalled: object | None = None
        """The `Recalled` that answered it from there."""
        self.billed: Any = None
        """Its `Receipt` once that was made: what it cost is billed once, also if a span shows it again."""
        self.lent = False  # a client is still sending its rows
        self.phase = OPEN
        self.outstanding = 0
        self.deadline_ns = 0
        self.bucket: Any = None
        self.later: RouterTicket | None = None
        self.earlier: RouterTicket | None = None
        """Its place among the deadlines (`Deadlines`)."""
        self.deaths = 0
        self.key = 0
        self.min_accuracy = 0.0
        self.energy_j = 0.0
        self.on_done: Callable[[RouterTicket], None] | None = None

    def row_of(self, slot: int) -> int:
        """Return the row that lies in `slot`, one of the ticket's."""
        slots = self.slots
        first = slots[0]
        if slots[-1] - first == len(slots) - 1:  # slots of a ticket are ascending, so these are neighbours
            return slot - first
        return bisect.bisect_left(slots, slot)


class SlotTable:
    """States and owners of `slots` slots; `batcher` holds those that are QUEUED.  Rows that come one by one take turns
    in the first `window` slots."""

    __slots__ = ("_batcher", "free", "owner", "state")

    def __init__(self, slots: int, batcher: Batcher, window: int = 0) -> None:
        self.free = SlotAllocator(slots, window)
        self.state = bytearray(slots)
        self.owner: list[RouterTicket | None] = [None] * slots
        self._batcher = batcher

    def reserve(self, rows: int, now_ns: int) -> RouterTicket | None:
        """Return a new ticket that holds `rows` slots; None if too few are free."""
        slots = self.free.take(rows)
        if slots is None:
            return None
        ticket = RouterTicket(slots, now_ns)
        for slot in slots:
            self.state[slot] = HELD
            self.owner[slot] = ticket
        return ticket

    def take_back(self, slot: int) -> RouterTicket | None:
        """Take back a slot that a worker is done with; return its ticket if that still waits, else None (a closed
        ticket's slot is freed)."""
        ticket = self.owner[slot]
        self.state[slot] = HELD
        if ticket is None or ticket.phase == CLOSED:
            self.release(slot)
            return None
        return ticket if ticket.phase == PENDING else None

    def cancel(self, ticket: RouterTicket) -> None:
        """Take the queued rows of `ticket` out of the queue; its slots stay held."""
        for slot in ticket.slots:
            if self.state[slot] == QUEUED:
                self._batcher.cancel(slot)
                self.state[slot] = HELD

    def close(self, ticket: RouterTicket) -> None:
        """Free the slots of a closed ticket, except those that are FLYING or were handed over."""
        for slot in ticket.slots:
            if self.state[slot] != FLYING and self.owner[slot] is ticket:
                self.release(slot)

    def hand_over(self, slot: int, ticket: RouterTicket) -> None:
        """Give a held slot, with its contents, to another ticket."""
        self.owner[slot] = ticket

    def tenants(self, slots: list[int]) -> list[str]:
        """Return the name of the tenant whose row lies in each of `slots`, empty for rows of none."""
        found = []
        for slot in slots:
            owner = self.owner[slot]
            found.append(owner.tenant.name if owner is not None and owner.tenant is not None else "")
        return found

    def release(self, slot: int) -> None:
        """Put `slot` on the free list."""
        self.owner[slot] = None
        self.state[slot] = FREE
        self.free.give(slot)

    def list_queued(self) -> Iterator[tuple[int, RouterTicket]]:
        """Yield every queued slot, with its ticket."""
        for slot in np.flatnonzero(np.frombuffer(self.state, np.uint8) == QUEUED).tolist():
            ticket = self.owner[slot]
            if ticket is not None:
                yield slot, ticket

    def pending(self) -> set[RouterTicket]:
        """Return the tickets that wait for an answer."""
        return {ticket for ticket in self.owner if ticket is not None and ticket.phase == PENDING}


class Bucket:
    """Tickets that fall due together: a linked list from `first` on, by `later`."""

    __slots__ = ("first", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.first: RouterTicket | None = None


class Deadlines:
    """Tickets by deadline."""

    __slots__ = ("_buckets", "_heap", "_last")

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket] = {}
        self._heap: list[int] = []
        self._last: Bucket | None = None  # the bucket of the last ticket, mostly also that of the next one

    def add(self, ticket: RouterTicket, now_ns: int) -> None:
        """Watch `ticket.deadline_ns`."""
        bucket = (ticket.deadline_ns >> 20) + 1
        distance = (ticket.deadline_ns - now_ns) >> 20
        if distance > 953:  # ticks: a second
            coarse = 15
            while distance >> 10 > coarse:  # a far deadline is kept to about ten binary digits
                coarse = 2 * coarse + 1
            bucket = (bucket + coarse) & ~coarse
        found = self._last
        if found is None or found.number != bucket:
            found = self._buckets.get(bucket)
            if found is None:
                found = self._buckets[bucket] = Bucket(bucket)
                heappush(self._heap, bucket)
            self._last = found
        first = found.first
        if first is not None:
            first.earlier = ticket
        ticket.later, ticket.earlier, ticket.bucket = first, None, found
        found.first = ticket

    def discard(self, ticket: RouterTicket) -> None:
        """Stop watching; does nothing for a ticket that is not watched."""
        bucket = ticket.bucket
        if bucket is None:
            return
        later, earlier = ticket.later, ticket.earlier
        if later is not None:
            later.earlier = earlier
        if earlier is not None:
            earlier.later = later
        else:
            bucket.first = later
        ticket.bucket = ticket.later = ticket.earlier = None

    def due(self, now_ns: int) -> list[RouterTicket]:
        """Return the tickets whose bucket is past, and stop watching them."""
        out: list[RouterTicket] = []
        tick = now_ns >> 20
        heap = self._heap
        while heap and heap[0] <= tick:
            bucket = self._pop()
            while bucket.first is not None:
                ticket = bucket.first
                out.append(ticket)
                self.discard(ticket)
        return out

    def _pop(self) -> Bucket:
        """Remove and return the nearest bucket."""
        bucket = self._buckets.pop(heappop(self._heap))
        if bucket is self._last:
            self._last = None
        return bucket

    def next_ns(self) -> int:
        """Return when the next bucket falls due; 0 if nothing is watched."""
        heap, buckets = self._heap, self._buckets
        while heap and buckets[heap[0]].first is None:
            self._pop()
        return heap[0] << 20 if heap else 0

"""Rows in: whether a request is taken, the slots that it gets, and the variant whose queue each of its rows joins.

Requests that find the queue or the slots full are refused (429), after workers were given a chance to make room; those
that no worker can serve are refused too (503), unless one is on its way (`RouterState.coming`).

Overload.  While a lane is saturated, the rows ahead of a new one and the pace of the lane (`lane_pace`) tell when it
would be answered.  One that would miss its deadline, by that and a margin, is refused at once (429), so that what is
taken is answered in time.  The rows ahead are those that fair queueing (`csrc/batcher.pyx`) lets leave before it: of
another flow (a connection), no more than its own.  For the same reason the last eighth of the queue and of the slots is
kept for flows that have less than that waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clover.config import FamilyConfig
from clover.errors import BadRequest, DeadlineMissed, TooLarge, Unavailable
from clover.runtime.memory.rows import FixedRows, ShapeKeys
from clover.runtime.router.completion import Completion
from clover.runtime.router.dispatch import MIN_TIMER_S, Dispatch
from clover.runtime.router.monitor import Monitor
from clover.runtime.router.standby_routing import StandbyRouting
from clover.runtime.router.state import FOREVER_NS, MAX_RETRY_AFTER_S, RouterState
from clover.runtime.router.tickets import OPEN, PENDING, QUEUED, RouterTicket

_CROWDED_NS = 50_000_000
"""For so long all refused requests get the same Retry-After."""
_MARGIN = 1.25
"""A predicted wait is taken for so many times longer: others may come, and workers may slow down."""
_PART = 8
"""One part in so many of the queue, and of the slots, is kept for flows that have less than that waiting."""
_SHORT = 32
"""Of a queue, or slots, that hold fewer rows, nothing is kept."""


class Admission:
    """Takes requests in.  `lent`: slots that clients still write to.  The argument `closed` of methods: why nothing new
    is taken, empty while something is."""

    def __init__(
        self,
        state: RouterState,
        dispatch: Dispatch,
        completion: Completion,
        monitor: Monitor,
        standby: StandbyRouting,
        config: FamilyConfig,
    ) -> None:
        self.lent = 0
        self._state = state
        self._dispatch = dispatch
        self._completion = completion
        self._monitor = monitor
        self._audits = monitor.audits
        self._standby = standby
        self._batcher = state.batcher
        self._lanes = state.lanes
        self._table = state.table
        self._deadlines = state.deadlines
        self._traffic = state.traffic
        self._demand = state.demand
        self._accuracy = state.accuracy
        self._paces = state.lanes.paces
        self._slot_states = state.table.state
        self._queue_rows = state.queue_rows
        self._timeout_ns = state.timeout_ns
        self._keys = ShapeKeys(state.memory, state.spec)
        self._varies = any(tensor.variable for tensor in state.spec.inputs)
        self._picked = np.zeros(len(state.table.state), np.uint32)
        self._crowded_ns = -_CROWDED_NS - 1
        self._crowded_s = 0.0
        self._max_batch = state.spec.max_batch
        self._margin = _MARGIN  # read with each row of a busy lane: an attribute has its C type
        slots = len(state.table.state)
        self._kept_rows = self._queue_rows // _PART if self._queue_rows >= _SHORT else 0
        self._kept_slots = slots // _PART if slots >= _SHORT else 0

    # --- slots --------------------------------------------------------------------------------------------------------

    def open(self, rows: int, flow: int, closed: str) -> RouterTicket:
        """Reserve slots for `rows` rows of `flow`; raises BadRequest, TooLarge, Unavailable or Overloaded."""
        now_ns = self._state.now_ns()
        if rows != 1 and not 1 <= rows <= self._queue_rows:
            if rows < 1:
                raise self._state.refused(BadRequest("a request needs at least one row"))
            most = self._queue_rows
            raise self._state.refused(TooLarge(f"a request carries at most {most} rows, and this one has {rows}"))
        self._admit(rows, flow, now_ns, closed)
        kept = self._table.free.free - rows < self._kept_slots and self._has_much(flow, rows, self._kept_slots)
        ticket = self._table.reserve(rows, now_ns) if not kept else None
        if ticket is None and not kept and self._completion.give_up(self._audits.queued(), "full"):
            ticket = self._table.reserve(rows, now_ns)
        if ticket is None:
            self._dispatch.make_room(now_ns)  # for the next one: slots come back once clients have their answers
            retry_after_s = self._state.retry_after_s(now_ns)
            raise self._state.overloaded("slots", "no room for more rows", retry_after_s)
        ticket.flow = flow
        return ticket

    def crowded(self, flow: int) -> float:
        """Return 0 if a request may find room, else count it as refused and return the seconds after which to retry."""
        if not self._full(1, flow):
            return self._behind_s(flow) if self._dispatch.busy else 0.0
        now_ns = self._state.now_ns()
        self._dispatch.make_room(now_ns)
        if not self._full(1, flow):
            return 0.0
        self._traffic.overloaded("queue")
        self._traffic.arrivals.add(now_ns, 1)
        self._traffic.refused(429)
        if now_ns - self._crowded_ns > _CROWDED_NS:
            self._crowded_ns, self._crowded_s = now_ns, self._state.retry_after_s(now_ns)
        return max(self._crowded_s, MIN_TIMER_S)

    def _behind_s(self, flow: int) -> float:
        """Return 0 if one more row of `flow` may be answered within the family's timeout, else count it as refused
        and return the seconds after which to retry."""
        now_ns = self._state.now_ns()
        late_ns = 0.0
        for lane in range(len(self._accuracy)):
            if self._lanes.live >> lane & 1:
                lane_ns = self._needs_ns(lane, flow, 1, now_ns) - self._timeout_ns
                if lane_ns <= 0.0:
                    return 0.0
                late_ns = min(late_ns, lane_ns) if late_ns else lane_ns
        if not late_ns:
            return 0.0
        self._traffic.arrivals.add(now_ns, 1)
        self._traffic.refused(429)
        self._traffic.overloaded("late")
        return max(min(late_ns / 1e9, MAX_RETRY_AFTER_S), MIN_TIMER_S)

    def lend(
        self, rows: int, flow: int, fixed: FixedRows | None, closed: str
    ) -> tuple[RouterTicket, memoryview] | None:
        """Return a ticket for `rows` rows that a flow is still sending, and the memory of their `fixed` input to
        receive them into; None if that cannot be.

        Slow clients never hold more than an eighth of the slots, and get none while fewer than half are free."""
        if fixed is None or rows < 1 or closed or not (self._lanes.live or self._state.coming):
            return None
        free = self._table.free
        if 8 * (self.lent + rows) > free.slots or 2 * (free.free - rows) < free.slots:
            return None
        if self._batcher.depth() + rows > self._queue_rows:
            return None
        ticket = self._table.reserve(rows, self._state.now_ns())
        if ticket is None:
            return None
        view = fixed.view(ticket.slots)
        if view is None:
            self._table.close(ticket)
            return None
        ticket.flow = flow
        ticket.lent = True
        self.lent += rows
        return ticket, view

    def arrived(self, ticket: RouterTicket, closed: str) -> None:
        """Admit a lent ticket whose rows are all there; raises Unavailable or Overloaded, and the ticket stays open
        then."""
        ticket.arrival_ns = self._state.now_ns()
        self.returned(ticket)
        self._admit(len(ticket.slots), ticket.flow, ticket.arrival_ns, closed)

    def returned(self, ticket: RouterTicket) -> None:
        """Count the slots of a ticket as no longer lent, if they were."""
        if ticket.lent:
            ticket.lent = False
            self.lent -= len(ticket.slots)

    def _admit(self, rows: int, flow: int, now_ns: int, closed: str) -> None:
        """Count `rows` of `flow` that arrive; raises Unavailable or Overloaded if they cannot be taken."""
        self._traffic.arrivals.add(now_ns, rows)
        if closed or not (self._lanes.live or self._state.coming):
            raise self._state.refused(Unavailable(closed or "no worker of this model is ready", retry_after_s=1.0))
        if self._full(rows, flow):
            self._dispatch.make_room(now_ns)
            if self._full(rows, flow):
                raise self._state.overloaded("queue", "the queue is full", self._state.retry_after_s(now_ns))
        if self._batcher.depth() + rows > self._queue_rows:
            self._completion.give_up(self._audits.queued(), "full")

    def _full(self, rows: int, flow: int) -> bool:
        """Return whether clients' rows leave no room in the queue for `rows` more of `flow`; audits would give
        way."""
        wanted = self._batcher.depth() + rows
        if wanted <= self._queue_rows - self._kept_rows:
            return False
        # Without audits both counts are the same, and the first one is cheap.
        if wanted > self._queue_rows and self._lanes.waiting() + rows > self._queue_rows:
            return True
        return self._has_much(flow, rows, self._kept_rows)

    def _has_much(self, flow: int, rows: int, kept: int) -> bool:
        """Return whether `rows` more rows of `flow` would take what is kept for others.  Nothing is kept while no row
        waits: a single request may be as long as the queue."""
        return kept > 0 and self._batcher.depth() > 0 and self._batcher.waiting_of(flow) + rows > kept

    def _needs_ns(self, lane: int, flow: int, rows: int, now_ns: int) -> float:
        """Return how long `rows` more rows of `flow` in `lane` would take until they are answered, with the margin; 0
        if that is not known."""
        pace = self._paces[lane]
        wait_ns = pace.wait_ns(now_ns, self._batcher.ahead(lane, flow, rows))
        return wait_ns * self._margin + pace.expected_ns if wait_ns > 0.0 else 0.0

    def _check_in_time(self, lane: int, flow: int, rows: int, timeout_ns: int, now_ns: int) -> None:
        """Raise Overloaded if `rows` more rows of `flow` in `lane` would not be answered within `timeout_ns`."""
        late_ns = self._needs_ns(lane, flow, rows, now_ns) - timeout_ns
        if late_ns > 0.0:
            why = "too many rows wait: the answer would come after the deadline"
            raise self._state.overloaded("late", why, late_ns / 1e9)

    # --- the queue ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        ticket: RouterTicket,
        on_done: Callable[[Any], None],
        timeout_ns: int,
        min_accuracy: float,
        cascade: bool,
        context: Any,
    ) -> None:
        """Queue the rows of a ticket; see `Model.submit`."""
        if ticket.phase != OPEN:
            raise ValueError("a ticket is submitted once, while it is open")
        now_ns = self._state.now_ns()
        if timeout_ns < 0:
            raise self._state.refused(DeadlineMissed("the deadline has passed already"))
        if min_accuracy <= 1.0:
            min_accuracy *= 100.0  # a fraction, as receipts give it
        chain = self._lanes.chain_for(min_accuracy) if cascade and not self._standby.on else None
        if chain is not None and not self._lanes.live >> chain.lanes[0] & 1:
            chain = None
        mask = 1 << chain.lanes[0] if chain is not None else self._lanes.mask(min_accuracy)
        variant = self._demand.ask(min_accuracy, len(ticket.slots), now_ns) if min_accuracy > 0.0 else -1
        key = self._shape_key(ticket) if self._varies else 0
        if not mask:
            self._await(ticket, min_accuracy, variant)
            mask = self._lanes.able(min_accuracy)
        if ticket.awaits >= 0 and timeout_ns > self._timeout_ns:
            # Rows that wait for a worker that may not come hold their slots no longer than others.
            timeout_ns = self._timeout_ns
        timeout_ns = min(timeout_ns or self._timeout_ns, FOREVER_NS)
        ticket.key = key
        ticket.min_accuracy = min_accuracy
        ticket.deadline_ns = now_ns + timeout_ns
        ticket.submit_ns = now_ns
        ticket.chain = chain
        slots = ticket.slots
        if len(slots) == 1:
            lane = self._lanes.choose(mask)
            if ticket.awaits < 0 and self._dispatch.busy and self._batcher.saturated(lane):
                self._check_in_time(lane, ticket.flow, 1, timeout_ns, now_ns)
            ticket.variants = [lane]
            self._slot_states[slots[0]] = QUEUED
            self._batcher.push(lane, slots[0], ticket.deadline_ns, now_ns, key, ticket.flow)
        else:
            self._push_rows(ticket, mask, timeout_ns, now_ns)
        self._standby.rows += len(slots)
        ticket.context = context
        ticket.on_done = on_done
        ticket.outstanding = len(slots)
        if self._monitor.auditing:
            self._audits.mark(ticket, now_ns)
        ticket.phase = PENDING
        self._deadlines.add(ticket, now_ns)
        self._dispatch.wake()

    def _await(self, ticket: RouterTicket, min_accuracy: float, variant: int) -> None:
        """Let a ticket wait for a worker of `variant` (or a better one), as none that is accurate enough is there;
        raises BadRequest or Unavailable if it cannot."""
        if min_accuracy > 0.0 and max(self._accuracy) < min_accuracy:
            raise self._state.refused(BadRequest(f"no variant of this model reaches an accuracy of {min_accuracy:g} %"))
        if variant < 0:
            if not self._state.coming:
                why = "no worker that is accurate enough is ready"
                raise self._state.refused(Unavailable(why, retry_after_s=1.0))
            return
        rows = len(ticket.slots)
        coming = bool(self._state.coming & self._lanes.able(min_accuracy))
        declined = self._demand.declined_to_wait(variant, rows, coming=coming)
        if declined is not None:
            self._demand.count_declined(variant, rows)
            raise self._state.refused(Unavailable(declined.why, retry_after_s=declined.retry_after_s))
        ticket.awaits = variant
        self._demand.wait(variant, rows)

    def _push_rows(self, ticket: RouterTicket, mask: int, timeout_ns: int, now_ns: int) -> None:
        """Queue several rows, all or none.  Quotas are kept row by row; rows of one variant stay neighbours in the
        slab."""
        slots = ticket.slots
        self._lanes.choose_many(mask, len(slots), self._picked)
        lanes = np.sort(self._picked[: len(slots)])
        ticket.variants = lanes.tolist()
        stops = [*(np.flatnonzero(np.diff(lanes)) + 1).tolist(), len(slots)]
        start = 0
        for stop in stops if ticket.awaits < 0 else ():
            lane = ticket.variants[start]
            if stop - start > self._max_batch or self._batcher.saturated(lane):
                self._check_in_time(lane, ticket.flow, stop - start, timeout_ns, now_ns)
            start = stop
        start = 0
        for stop in stops:
            lane, part = ticket.variants[start], slots[start:stop]
            self._batcher.push_many(lane, part, ticket.deadline_ns, now_ns, ticket.key, ticket.flow)
            start = stop
        for slot in slots:
            self._slot_states[slot] = QUEUED

    def _shape_key(self, ticket: RouterTicket) -> int:
        """Return the number of the shape of a ticket's rows; raises BadRequest if they differ in shape."""
        try:
            return self._keys.of(ticket.slots)
        except BadRequest as error:
            raise self._state.refused(error) from None

"""Rows in: whether a request is taken, the slots that it gets, and the variant whose queue each of its rows joins.

Requests that find the queue or the slots full are refused (429), after workers were given a chance to make room; those
that no worker can serve are refused too (503), unless one is on its way (`RouterState.coming`).

Overload.  While a lane is saturated, the number of rows ahead of a new row and the pace of the lane (`lane_pace`)
predict when it would be answered.  If it would miss its deadline by this prediction and a margin, it is refused at once
(429), so that every row that is taken is answered in time.  The rows ahead are those that fair queueing
(`csrc/batcher.pyx`) lets leave first: of each other flow (a connection), no more than the new row's own flow has.  For
the same reason the last eighth of the queue and of the slots is kept for flows with fewer rows waiting than that.

A row that would be answered later than `max_wait_slo` SLOs is refused too, unless its wait in the queue is less than a
third of that: the batch that runs and the one behind it take no longer than the queue did, since they were formed from
it.  The queue always has room for the shortest batch with which the workers serve nearly as many rows as they can, even
if the SLO is too short for it: that costs no goodput.  A request longer than a batch counts as one batch.  In a cascade
all variants of the chain must have room.  Without a cascade, a row that would be refused goes to another variant that
runs, has room and keeps the accuracy floor by itself: the most accurate one.
A refused request gets a place in the `RetryBook`.  While some requests have a place, others find half of the room.

Refused for good.  A request is asked to come back only if it may find room then.  These are not asked:

- a request whose rows would miss its deadline even if no row were before them, by the pace of the lane and by what the
  devices serve at most (`limit`): 413;
- a request with an id that was refused `_TRIES` times although it came when it was asked to, and that only an idle
  server could answer: it has more rows than a batch (413), or a timeout shorter than the fastest of the lane's latest
  batches (504).  A server under load need never be idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clover.config import FamilyConfig
from clover.errors import BadRequest, DeadlineMissed, RequestError, TooLarge, Unavailable
from clover.interfaces import LATE_ROOM, NO_ROOM, ROOM
from clover.quantities import IN_PERCENT
from clover.runtime.memory.rows import FixedRows, RowWeights, ShapeKeys
from clover.runtime.router.cached_answers import CachedAnswers
from clover.runtime.router.completion import Completion
from clover.runtime.router.dispatch import Dispatch
from clover.runtime.router.monitor import Monitor
from clover.runtime.router.relief import StandbyRouting, capacity
from clover.runtime.router.retry_book import BIN_NS, HORIZON_S, RetryBook
from clover.runtime.router.state import FOREVER_NS, RouterState
from clover.runtime.router.tickets import OPEN, PENDING, QUEUED, RouterTicket

_MARGIN = 1.25
"""A predicted wait is taken for so many times longer: others may come, and workers may slow down."""
_PART = 8
"""One part in so many of the queue, and of the slots, is kept for flows that have less than that waiting."""
_NEWEST = 1.0 / 32.0
"""The weight of a request in the mean number of rows."""
_SHORT = 32
"""Of a queue, or slots, that hold fewer rows, nothing is kept."""
_BATCHES = 2
"""The queue always has room for so many batches of a useful size, half of it for who has a place in the retry book."""
_CREDITS = 2
"""So many batches go to a worker at once."""
_LATE, _SLOW, _FULL = 1, 2, 3
_WHY = ("", "late", "slo", "queue")
"""Why rows are refused: their deadline, the longest wait, or the queue."""
_QUEUED = 1 / 3
"""Part of the longest wait that rows may always spend in the queue."""
_TRIES = 3
"""So often a request that needs a server with little to do is asked to come back."""
_FRACTION = f"clover_min_accuracy {IN_PERCENT}"
_OTHERS = 0.5
"""Part of the room in the queue that others find while some have a place in the retry book."""


class Admission:
    """Takes requests in.  `lent`: slots that clients still write to.  `takes_late`: none is refused for the longest
    wait.  `unmeasured`: no accuracy is known yet; the best variant alone runs, and answers rows that ask for one too.
    The argument `closed` of methods: why nothing new is taken, empty while something is."""

    def __init__(
        self,
        state: RouterState,
        dispatch: Dispatch,
        completion: Completion,
        monitor: Monitor,
        standby: StandbyRouting,
        config: FamilyConfig,
        cached: CachedAnswers | None = None,
    ) -> None:
        self.lent = 0
        self.takes_late = False
        self.unmeasured = False
        self._state = state
        self._cached = cached
        self._dispatch = dispatch
        self._completion = completion
        self._monitor = monitor
        self._standby = standby
        self._keys = ShapeKeys(state.memory, state.spec)
        self._weights = RowWeights(state.memory, state.spec)
        self._varies = any(tensor.variable for tensor in state.spec.inputs)
        self._picked = np.zeros(len(state.table.state), np.uint32)
        self._book = RetryBook(lambda: sum(state.traffic.rows), self._rows_per_s)
        self._max_wait_slo = config.max_wait_slo
        self._slo_ms = 0.0
        self._floor = 101.0  # percent: no variant reaches that, so rows go to another one only once there is a floor
        self._longest_ns = 0.0  # until the answer; 0: no limit
        self._most_rows_per_s = 0.0  # of the devices, whatever is planned; 0: not known
        self._max_batch = state.spec.max_batch
        self._sent_at_once = _CREDITS * self._max_batch
        self._usual_rows = 1.0  # of a request
        slots = len(state.table.state)
        self._kept_rows = state.queue_rows // _PART if state.queue_rows >= _SHORT else 0
        self._kept_slots = slots // _PART if slots >= _SHORT else 0

    def aim(self, slo_ms: float, floor: float) -> None:
        """Use this SLO (0: there is none) and accuracy floor (percent) from now on."""
        self._slo_ms, self._floor, self._longest_ns = slo_ms, floor, self._max_wait_slo * slo_ms * 1e6
        queued_ns = (self._longest_ns or self._state.timeout_ns) * _QUEUED
        self._book.together = max(1, int(min(queued_ns, HORIZON_S * 1e9) / BIN_NS))

    def limit(self, rows_per_s: float) -> None:
        """Take note of the rows a second that the devices serve at most at the accuracy floor; 0: not known."""
        self._most_rows_per_s = rows_per_s

    # --- slots --------------------------------------------------------------------------------------------------------

    def open(self, rows: int, flow: int, request: int, closed: str) -> RouterTicket:
        """Reserve slots for `rows` rows of `flow`; raises BadRequest, TooLarge, Unavailable or Overloaded."""
        state = self._state
        now_ns = state.now_ns()
        if rows != 1 and not 1 <= rows <= state.queue_rows:
            if rows < 1:
                raise state.record_refusal(BadRequest("a request needs at least one row"))
            most = state.queue_rows
            raise state.record_refusal(TooLarge(f"a request carries at most {most} rows, and this one has {rows}"))
        self._admit(rows, flow, request, now_ns, closed)
        kept = state.table.free.free - rows < self._kept_slots and self._has_much(flow, rows, self._kept_slots)
        ticket = state.table.reserve(rows, now_ns) if not kept else None
        if ticket is None and not kept and self._completion.give_up(self._monitor.audits.list_queued(), "full"):
            ticket = state.table.reserve(rows, now_ns)
        if ticket is None:
            self._dispatch.make_room(now_ns, False)  # for the next one: slots come back once clients have their answers
            raise self._refuse("slots", "no room for more rows", rows, flow, request, now_ns)
        ticket.flow = ticket.connection = flow
        ticket.request = request
        return ticket

    def retry_in_s(self, flow: int, request: int) -> float:
        """Return 0 if a request may find room, else count it as refused and return the seconds after which to retry."""
        now_ns = self._state.now_ns()
        part = self._part(flow, request, now_ns)
        why = self._crowd(flow, part, now_ns)
        if not why:
            return 0.0
        if self._dispatch.make_room(now_ns, why != _FULL):
            now_ns = self._state.now_ns()
            why = self._crowd(flow, part, now_ns)
        return self._refuse_unread(_WHY[why], flow, request, now_ns) if why else 0.0

    def room(self, flow: int, request: int) -> int:
        """Return whether a request would find room now, as the queue is; nothing is counted."""
        now_ns = self._state.now_ns()
        part = self._part(flow, request, now_ns)
        taken, self.takes_late = self.takes_late, False
        why = self._crowd(flow, part, now_ns)
        if why and why != _FULL:
            self.takes_late = True
            why = -1 if self._crowd(flow, part, now_ns) == 0 else why
        self.takes_late = taken
        return ROOM if why == 0 else LATE_ROOM if why < 0 else NO_ROOM

    def _crowd(self, flow: int, part: float, now_ns: int) -> int:
        """Return why one more row of `flow` finds no room in the queue, or would not be answered within the family's
        timeout and the longest wait; 0 if it may."""
        if self._full(1, flow, part):
            return _FULL
        if not self._dispatch.busy:
            return 0
        found = 0
        for lane in range(len(self._state.accuracy)):
            if self._state.lanes.is_live(lane):
                found = self._too_long(lane, flow, 1, self._state.timeout_ns, part, now_ns)
                if not found or (found == _SLOW and self._standby.at_hand):
                    return 0
        return found

    def _refuse_unread(self, why: str, flow: int, request: int, now_ns: int) -> float:
        """Count a request that is refused before its rows are known, as one of the usual number; return the seconds
        after which to retry."""
        rows = int(self._usual_rows + 0.5)
        self._state.traffic.arrivals.add(now_ns, rows)  # plans are made for all that came
        self._state.traffic.record_refusal(429)
        self._state.traffic.record_overload(why)
        return float(self._book.book(request, flow, rows, now_ns, self._refused_before(flow, request, now_ns)))

    def _refuse(
        self, why: str, message: str, rows: int, flow: int, request: int, now_ns: int, too_short: bool = False
    ) -> RequestError:
        """Count `rows` rows that are refused, give them a place in the retry book unless they had enough of them;
        return the error to raise.  `too_short`: no worker that has something to do meets their timeout."""
        before = self._refused_before(flow, request, now_ns)
        if before >= _TRIES and (too_short or rows > self._max_batch):
            self._state.traffic.record_overload(why)
            message += ", each time that this request came back: "
            if rows > self._max_batch:
                return self._state.record_refusal(TooLarge(f"{message}send fewer than {rows} rows at once"))
            return self._state.record_refusal(DeadlineMissed(f"{message}set a longer timeout"))
        return self._state.record_overload(why, message, float(self._book.book(request, flow, rows, now_ns, before)))

    def _refused_before(self, flow: int, request: int, now_ns: int) -> int:
        """Return how often a request that is refused was before, if it comes when it was asked to; 0 otherwise."""
        before = self._book.use(request or flow, now_ns) if self._book.places else 0
        if before:
            self._state.traffic.record_return("refused")
        return before

    def _part(self, flow: int, request: int, now_ns: int) -> float:
        """Return the part of the room in the queue that a request finds."""
        if not self._book.places or not self._book.expecting(now_ns) or self._book.due(request or flow, now_ns):
            return 1.0
        return _OTHERS

    def _rows_per_s(self, now_ns: int) -> float:
        """Return the rows a second that can be served, by the pace of the lanes; 0 if it is not known."""
        state = self._state
        times_ns = [pace.wait_ns(now_ns, 1) for pace in state.lanes.paces]
        rates = [1e9 / row_ns if row_ns > 0.0 else 0.0 for row_ns in times_ns]
        lanes = state.lanes
        if lanes.chain is not None:  # as if every row went all the way
            return min([rates[lane] for lane in lanes.chain.lanes if rates[lane] > 0.0], default=0.0)
        rows_per_s = capacity(rates, [lanes.routing.shares.get(variant, 0.0) for variant in state.traffic.variants])
        return rows_per_s if rows_per_s < float("inf") else 0.0

    def lend(
        self, rows: int, flow: int, request: int, fixed: FixedRows | None, closed: str
    ) -> tuple[RouterTicket, memoryview] | None:
        """Return a ticket for `rows` rows that a flow is still sending, and the memory of their `fixed` input to
        receive them into; None if that cannot be.

        At most half of the slots are lent.  Those of a client that sends slowly are taken back (`Incoming._vacate`)."""
        state = self._state
        if fixed is None or rows < 1 or closed or not (state.lanes.live or state.coming):
            return None
        if 2 * (self.lent + rows) > state.table.free.slots:
            return None
        if state.batcher.depth() + rows > state.queue_rows:
            return None
        ticket = state.table.reserve(rows, state.now_ns())
        if ticket is None:
            return None
        view = fixed.view(ticket.slots)
        if view is None:
            state.table.close(ticket)
            return None
        ticket.flow = ticket.connection = flow
        ticket.request = request
        ticket.lent = True
        self.lent += rows
        return ticket, view

    def admit_lent(self, ticket: RouterTicket, closed: str) -> None:
        """Admit a lent ticket whose rows are all there; raises Unavailable or Overloaded, and the ticket stays open
        then."""
        ticket.arrival_ns = self._state.now_ns()
        self.end_loan(ticket)
        self._admit(len(ticket.slots), ticket.flow, ticket.request, ticket.arrival_ns, closed)

    def end_loan(self, ticket: RouterTicket) -> None:
        """Count the slots of a ticket as no longer lent, if they were."""
        if ticket.lent:
            ticket.lent = False
            self.lent -= len(ticket.slots)

    def _admit(self, rows: int, flow: int, request: int, now_ns: int, closed: str) -> None:
        """Count `rows` of `flow` that arrive; raises Unavailable or Overloaded if they cannot be taken."""
        self._state.traffic.arrivals.add(now_ns, rows)
        self._usual_rows += (rows - self._usual_rows) * _NEWEST
        if closed or not (self._state.lanes.live or self._state.coming):
            raise self._state.record_refusal(
                Unavailable(closed or "no worker of this model is ready", retry_after_s=1.0)
            )
        part = self._part(flow, request, now_ns)
        if self._full(rows, flow, part):
            self._dispatch.make_room(now_ns, False)
            if self._full(rows, flow, part):
                raise self._refuse("queue", "the queue is full", rows, flow, request, now_ns)
        if self._state.batcher.depth() + rows > self._state.queue_rows:
            self._completion.give_up(self._monitor.audits.list_queued(), "full")

    def _full(self, rows: int, flow: int, part: float) -> bool:
        """Return whether clients' rows leave no room in the queue for `rows` more of `flow`, which find `part` of it;
        audits would give way.  A request that comes when it was asked to finds room, as long as others leave half."""
        state = self._state
        wanted = state.batcher.depth() + rows
        if part < 1.0 and self._kept_rows > 0 and wanted > part * state.queue_rows and wanted > rows:
            return True
        if wanted <= state.queue_rows - self._kept_rows:
            return False
        # Without audits both counts are the same, and the first one is cheap.
        if wanted > state.queue_rows and state.lanes.waiting() + rows > state.queue_rows:
            return True
        return self._has_much(flow, rows, self._kept_rows)

    def _has_much(self, flow: int, rows: int, kept: int) -> bool:
        """Return whether `rows` more rows of `flow` would take what is kept for others.  Nothing is kept while no row
        waits: a single request may be as long as the queue."""
        return kept > 0 and self._state.batcher.depth() > 0 and self._state.batcher.waiting_of(flow) + rows > kept

    def _too_long(self, lane: int, flow: int, rows: int, timeout_ns: int, part: float, now_ns: int) -> int:
        """Return why `rows` more rows of `flow` in `lane` would take too long until they are answered, with the margin:
        `_LATE` or `_SLOW`; 0 if they would not, or if that is not known.  They find `part` of the room."""
        pace = self._state.lanes.paces[lane]
        ahead = self._state.batcher.rows_ahead(lane, flow, rows)
        alone = rows > self._max_batch and ahead <= rows  # none before them: what `_never` lets pass finds room
        wait_ns = pace.wait_ns(now_ns, ahead) * (1.0 if alone else _MARGIN)
        if wait_ns <= 0.0:
            return 0
        if wait_ns + pace.expected_ns > timeout_ns * part:
            return _LATE
        longest_ns = self._longest_ns * part
        if longest_ns <= 0.0 or self.takes_late:
            return 0
        if rows > self._max_batch:
            ahead = self._state.batcher.rows_ahead(lane, flow, self._max_batch)
            wait_ns = pace.wait_ns(now_ns, ahead) * _MARGIN
        if ahead <= _BATCHES * part * pace.useful_rows:
            return 0
        if wait_ns > longest_ns * _QUEUED and wait_ns + pace.expected_ns > longest_ns:
            return _SLOW
        return 0

    def _behind(self, lane: int, chained: bool) -> bool:
        """Return whether a row in `lane` has to wait for a worker: the lane is saturated, or will be after this turn;
        if `chained`, some later variant may be."""
        if self._dispatch.busy and (chained or self._state.batcher.saturated(lane)):
            return True
        return self._state.batcher.depth(lane) >= self._sent_at_once

    def _in_time(self, ticket: RouterTicket, lane: int, rows: int, timeout_ns: int, now_ns: int) -> int:
        """Return `lane` if `rows` more rows of a ticket in it would be answered within `timeout_ns` and the longest
        wait, else another lane in which all of its rows would be; raises Overloaded if there is none."""
        state = self._state
        flow, request = ticket.flow, ticket.request
        part = self._part(flow, request, now_ns)
        found = self._too_long(lane, flow, rows, timeout_ns, part, now_ns)
        if ticket.chain is not None:
            for later in ticket.chain.lanes[1:]:
                if not found and state.batcher.saturated(later):
                    found = self._too_long(later, flow, 1, timeout_ns, part, now_ns)
        if not found or (found == _SLOW and self._standby.at_hand):  # standby workers take over after this turn
            return lane
        if self._dispatch.make_room(now_ns, True) and state.lanes.is_live(lane):
            return self._in_time(ticket, lane, rows, timeout_ns, now_ns)  # once: at one time it makes room once
        other = self._with_room(ticket, timeout_ns, part, now_ns) if ticket.chain is None else -1
        if other >= 0:
            state.traffic.diverted_rows += len(ticket.slots)
            return other
        if found == _LATE:
            never = self._never(lane, rows, timeout_ns, now_ns)
            if never is not None:
                raise state.record_refusal(never)
            why = "too many rows wait: the answer would come after the deadline"
            too_short = state.lanes.paces[lane].least_ns > timeout_ns
            raise self._refuse("late", why, len(ticket.slots), flow, request, now_ns, too_short)
        limit = f"{self._max_wait_slo:g} x the SLO of {self._slo_ms:.4g} ms"
        why = f"too many rows wait: the answer would come later than {limit}"
        raise self._refuse("slo", why, len(ticket.slots), flow, request, now_ns)

    def _never(self, lane: int, rows: int, timeout_ns: int, now_ns: int) -> RequestError | None:
        """Return the error of a request of which `rows` rows in `lane` would not be answered within `timeout_ns` if no
        other row waited either; None if they might be."""
        if rows <= self._max_batch:
            return None  # an idle worker takes them, whatever it is believed to need
        pace = self._state.lanes.paces[lane]
        wait_ns = pace.wait_ns(now_ns, rows)
        if self._most_rows_per_s > 0.0:
            wait_ns = min(wait_ns, rows * 1e9 / self._most_rows_per_s)
        wait_ns += pace.expected_ns
        if wait_ns <= timeout_ns:
            return None
        why = f"{rows} rows take {wait_ns / 1e9:.2g} s though no other row waits, and the timeout is "
        return TooLarge(f"{why}{timeout_ns / 1e9:.2g} s: send fewer rows at once, or set a longer timeout")

    def _with_room(self, ticket: RouterTicket, timeout_ns: int, part: float, now_ns: int) -> int:
        """Return the most accurate lane in which the rows of a ticket would be answered in time, of those that keep the
        accuracy floor; -1 if there is none."""
        mask = self._state.lanes.mask(max(ticket.min_accuracy, self._floor))
        best = -1
        for lane in range(len(self._state.accuracy)):
            better = mask >> lane & 1 and (best < 0 or self._state.accuracy[lane] > self._state.accuracy[best])
            if better and not self._too_long(lane, ticket.flow, len(ticket.slots), timeout_ns, part, now_ns):
                best = lane
        return best

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
        state = self._state
        if ticket.phase != OPEN:
            raise ValueError("a ticket is submitted once, while it is open")
        now_ns = state.now_ns()
        if timeout_ns < 0:
            raise state.record_refusal(DeadlineMissed("the deadline has passed already"))
        if 0.0 < min_accuracy <= 1.0:
            raise state.record_refusal(BadRequest(_FRACTION))
        if self.unmeasured:
            min_accuracy = 0.0
        if self._cached is not None and self._cached.answer(ticket, min_accuracy, cascade, now_ns):
            ticket.context, ticket.on_done = context, on_done
            self._completion.recall(ticket)
            self._dispatch.wake()
            return
        asleep = state.asleep
        if asleep is not None:
            asleep.ask()
        live = state.lanes.live
        chain = state.lanes.chain_for(min_accuracy) if cascade and not self._standby.on else None
        if chain is not None and not state.lanes.is_live(chain.lanes[0]):
            chain = chain if asleep is not None and state.coming >> chain.lanes[0] & 1 else None
        mask = 1 << chain.lanes[0] if chain is not None else state.lanes.mask(min_accuracy)
        variant = state.demand.ask(min_accuracy, len(ticket.slots), now_ns) if min_accuracy > 0.0 else -1
        key = self._shape_key(ticket) if self._varies else 0
        if not mask:
            self._await(ticket, min_accuracy, variant)
            mask = state.lanes.able(min_accuracy)
        if ticket.awaits >= 0 and timeout_ns > state.timeout_ns:
            # Rows that wait for a worker that may not come hold their slots no longer than others.
            timeout_ns = state.timeout_ns
        timeout_ns = min(timeout_ns or state.timeout_ns, FOREVER_NS) - ticket.waited_ns
        if timeout_ns <= 0:
            raise state.record_refusal(DeadlineMissed("the deadline has passed already"))
        ticket.key, ticket.min_accuracy = key, min_accuracy
        ticket.deadline_ns = now_ns + timeout_ns
        ticket.submit_ns = now_ns
        ticket.chain = chain
        slots = ticket.slots
        if self._weights.on:
            for slot in slots:
                state.batcher.weigh(slot, self._weights.weigh(slot))
        if len(slots) == 1:
            lane = state.lanes.choose(mask)
            if ticket.awaits < 0 and asleep is None and self._behind(lane, chain is not None):
                lane = self._in_time(ticket, lane, 1, timeout_ns, now_ns)
            ticket.variants = [lane]
            state.table.state[slots[0]] = QUEUED
            state.batcher.push(lane, slots[0], ticket.deadline_ns, now_ns, key, ticket.flow)
        else:
            self._push_rows(ticket, mask, timeout_ns, now_ns)
        if self._book.places and self._book.use(ticket.request or ticket.flow, now_ns):
            state.traffic.record_return("taken")
        self._standby.rows += len(slots)
        ticket.context, ticket.on_done = context, on_done
        ticket.outstanding = len(slots)
        if self._monitor.auditing:
            self._monitor.audits.mark(ticket, now_ns)
        ticket.phase = PENDING
        state.company.record_arrival(now_ns)
        state.deadlines.add(ticket, now_ns)
        self._dispatch.wake()
        if len(slots) > 1 and ticket.awaits < 0 and mask & live & ~state.lanes.live:
            self._completion.move_stranded(now_ns)  # a worker was lost while room was made for other rows of it

    def _await(self, ticket: RouterTicket, min_accuracy: float, variant: int) -> None:
        """Let a ticket wait for a worker of `variant` (or a better one), as none that is accurate enough is there;
        raises BadRequest or Unavailable if it cannot."""
        state = self._state
        if min_accuracy > 0.0 and max(state.accuracy) < min_accuracy:
            raise state.record_refusal(
                BadRequest(f"no variant of this model reaches an accuracy of {min_accuracy:g} %")
            )
        if state.asleep is not None and state.coming & state.lanes.able(min_accuracy):
            return
        if variant < 0:
            if not state.coming:
                raise state.record_refusal(Unavailable("no worker that is accurate enough is ready", retry_after_s=1.0))
            return
        rows = len(ticket.slots)
        coming = bool(state.coming & state.lanes.able(min_accuracy))
        declined = state.demand.declined_to_wait(variant, rows, coming=coming)
        if declined is not None:
            state.demand.count_declined(variant, rows)
            raise state.record_refusal(Unavailable(declined.why, retry_after_s=declined.retry_after_s))
        ticket.awaits = variant
        state.demand.wait(variant, rows)

    def _push_rows(self, ticket: RouterTicket, mask: int, timeout_ns: int, now_ns: int) -> None:
        """Queue several rows, all or none.  Quotas are kept row by row; rows of one variant stay neighbours in the
        slab."""
        slots = ticket.slots
        self._state.lanes.choose_many(mask, len(slots), self._picked)
        lanes = np.sort(self._picked[: len(slots)])
        ticket.variants = lanes.tolist()
        stops = [*(np.flatnonzero(np.diff(lanes)) + 1).tolist(), len(slots)]
        start = 0
        for stop in stops if ticket.awaits < 0 and self._state.asleep is None else ():
            lane = ticket.variants[start]
            if stop - start > self._max_batch or self._behind(lane, ticket.chain is not None):
                found = self._in_time(ticket, lane, stop - start, timeout_ns, now_ns)
                if found != lane:
                    ticket.variants, stops = [found] * len(slots), [len(slots)]
                    break
            start = stop
        start = 0
        for stop in stops:
            lane, part = ticket.variants[start], slots[start:stop]
            self._state.batcher.push_many(lane, part, ticket.deadline_ns, now_ns, ticket.key, ticket.flow)
            start = stop
        for slot in slots:
            self._state.table.state[slot] = QUEUED

    def _shape_key(self, ticket: RouterTicket) -> int:
        """Return the number of the shape of a ticket's rows; raises BadRequest if they differ in shape."""
        try:
            return self._keys.number_of(ticket.slots)
        except BadRequest as error:
            raise self._state.record_refusal(error) from None

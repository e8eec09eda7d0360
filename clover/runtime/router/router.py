"""The router of one family: admission, routing, dispatch, completion, deadlines, and what happens when a worker dies.

Turns.  `submit` only queues; a batch forms in `_pump`, which runs once at the end of the loop turn in which rows came
in.  All requests read in one turn therefore share batches, and an idle server adds no delay: the turn ends at once.
Completions pump first and call their tickets' `on_done` after, so that workers compute while answers are written.
Where requests are refused, turns are long: then batches are taken and formed in the middle of one too (`_make_room`).

Routing.  The plan's quotas are kept row by row over the variants that have a worker now and meet the request's minimum
accuracy; where the plan gives none of those a share, the cheapest of them serves.  Where it gives a variant a wait,
rows of that variant are held until they fill a batch, the first has waited so long, or a deadline asks for haste.

Cascades.  Where the plan has a chain (`runtime.cascade`), a row whose score is below the threshold goes on to the next
variant's queue with what is left of its deadline; what one variant could not do about it, it keeps from the one before.

Guard.  What variants say and how sure they are of it is watched (`runtime.guard.guard`); a share of the rows is asked
of a better variant too, once the client has its answer (`runtime.router.audits`).

Demand.  Rows that need a variant without a worker wait for one that may come (`runtime.router.demand`), or are refused.

Relief.  Where cheaper workers stand by (`runtime.router.relief`), they take what the plan's workers cannot serve in
time.

Death.  Rows being computed by a worker that died are queued again, once, on the same variant or (where it has no worker
left) on another that is good enough; a ticket that was being computed in two deaths is poison: 503, no Retry-After.
Deaths that no row can have caused, as of workers whose GPU is lost, do not count.

Everything runs on the loop's thread; nothing here awaits, and a request costs neither a Task nor a Future.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover._native.batcher import Batcher
from clover._native.wire import monotonic_ns
from clover.accounting.account import Account
from clover.config import FamilyConfig
from clover.errors import BadRequest, DeadlineMissed, Overloaded, RequestError, TooLarge, Unavailable
from clover.interfaces import Model
from clover.runtime.guard.answer_reader import Sayings
from clover.runtime.guard.feedback import Feedback
from clover.runtime.guard.guard import ASIDE, OK, Guard
from clover.runtime.memory.input_digest import Inputs
from clover.runtime.memory.rows import FixedRows, Memory, ShapeKeys, read_rows, write_array, write_bytes
from clover.runtime.router.audits import Audits
from clover.runtime.router.deadlines import Deadlines
from clover.runtime.router.demand import Demand
from clover.runtime.router.escalation import Escalation
from clover.runtime.router.lanes import MAX_WORKERS, Entry, Lanes, expected_accuracy
from clover.runtime.router.links import Batch, Link, WorkerHandle
from clover.runtime.router.relief import Standby
from clover.runtime.router.retry import Retry
from clover.runtime.router.slots import SlotTable
from clover.runtime.router.standby_routing import Reliefs
from clover.runtime.router.tickets import CLOSED, DONE, FLYING, OPEN, PENDING, QUEUED, Ticket
from clover.runtime.router.traffic import Traffic
from clover.types import Declined, FamilyProfile, FamilySpec, Receipt, Routing

log = logging.getLogger("clover.router")

_MAX_RETRY_AFTER_S = 60.0
_MIN_TIMER_S = 0.001
_CROWDED_NS = 50_000_000
"""For so long those that are refused are told the same."""
_ROOM_NS = 100_000
"""So often, while requests are refused, workers are let make room."""
_FOREVER_NS = 1 << 60
"""A deadline further away is this far away: 36 years."""
_FEW = 8
_ARRAY = np.ndarray  # a module's attribute is looked up again and again
_DUST = 1e-6  # rows x percent: rounding


class Router(Model):
    """The `Model` of one family; the fleet attaches and detaches workers.

    `slots` rows may be held at once.  `lost` is called with a worker that broke the rules (unknown batch, corrupt
    ring); whoever owns it must kill it and call `died` once it is dead.  `hold`: rows wait (within queue and deadline)
    while no worker that may serve them is there, because one is on its way; otherwise they are refused with 503.
    Once there is a `closed_reason`, nothing new is taken; what was taken is answered.
    """

    def __init__(
        self,
        spec: FamilySpec,
        memory: Memory,
        slots: int,
        config: FamilyConfig,
        profile: FamilyProfile | None,
        account: Account,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.spec = spec
        self.name = config.name or spec.name
        self.accuracy = expected_accuracy(spec, profile)
        self.traffic = Traffic([variant.name for variant in spec.variants])
        self.lost: Callable[[WorkerHandle, str], None] = self.died
        self.closed_reason = ""
        self.hold = False
        self._memory = memory
        self._account = account
        self._loop = loop
        self._clock = clock
        self._real = clock is time.monotonic_ns
        self._timeout_ns = min(int(config.timeout_ms * 1e6), _FOREVER_NS)
        self._queue_rows = self.most_rows = min(config.queue_rows or slots, slots)
        self.demand = Demand(self.traffic.variants, self.accuracy, self._queue_rows)
        lanes = len(spec.variants)
        self._batcher = Batcher(lanes, MAX_WORKERS, slots, int(config.max_queue_delay_ms * 1e6))
        self._lanes = Lanes(
            self._batcher, self.traffic.variants, self.accuracy, spec.max_batch, config.max_queue_delay_ms
        )
        self._table = SlotTable(slots, self._batcher)
        self._state = self._table.state
        self._retry = Retry(self._table, self._batcher, self._lanes, self.traffic)
        self._reliefs = Reliefs(self._batcher, self._lanes, self._retry, self.traffic)
        self._cascade = Escalation(self._table, self._batcher, self._lanes, self.traffic, self._reliefs, spec.max_batch)
        self._deadlines = Deadlines()
        self._said = Sayings(memory, spec)
        self.guard = Guard(self.name, self.traffic.variants, self._guarded, acts=config.guard == "act", clock=clock)
        self._inputs = Inputs(memory, spec)
        self.audits = Audits(
            self.guard,
            self._said,
            self._table,
            self._batcher,
            self._lanes,
            self._deadlines,
            self._inputs,
            share=config.audit if config.guard != "off" else 0.0,
            most=self._queue_rows,
            wake=self._wake,
        )
        self._lanes.behind = self.audits.behind
        self.feedback = Feedback(spec, config.feedback_rows)
        self._guarded_by = config.guard
        self._auditing = False
        self._watching = False
        self._finished: list[Ticket] = []
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._crowded_ns = -_CROWDED_NS - 1
        self._crowded_s = 0.0
        self._room_ns = 0
        self._lent = 0  # slots that clients still write to
        self._batch_id = 0
        self._out = np.zeros(max(spec.max_batch, 1), np.uint32)
        self._picked = np.zeros(slots, np.uint32)
        self._keys = ShapeKeys(memory, spec)
        self._varies = any(tensor.variable for tensor in spec.inputs)
        self._fixed_in = FixedRows.of(memory, "input", spec.inputs)
        self._fixed_out = FixedRows.of(memory, "output", spec.outputs)
        self.expect(profile)

    # --- the front end's side -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether some worker takes rows."""
        return self._lanes.live != 0

    @property
    def idle(self) -> bool:
        """Whether no row waits and none is being computed."""
        return not self._lanes.waiting() and not any(link.batches for link in self._lanes.links)

    def open(self, rows: int) -> Ticket:
        """See `Model.open`; also raises BadRequest for no rows and TooLarge for more rows than could ever wait."""
        now_ns = self._now()
        if rows != 1 and not 1 <= rows <= self._queue_rows:
            if rows < 1:
                raise self._refuse(BadRequest("a request needs at least one row"))
            raise self._refuse(TooLarge(f"a request carries at most {self.most_rows} rows, and this one has {rows}"))
        self._admit(rows, now_ns)
        ticket = self._table.reserve(rows, now_ns)
        if ticket is None and self._give_up(self.audits.queued(), "full"):
            ticket = self._table.reserve(rows, now_ns)
        if ticket is None:
            self._make_room(now_ns)  # for the next one: slots come back once clients have their answers
            raise self._refuse(Overloaded("no room for more rows", retry_after_s=self._retry_after_s(now_ns)))
        return ticket

    def write(self, ticket: Any, index: int, rows: NDArray[Any] | Sequence[bytes]) -> None:
        """See `Model.write`.  Rows of a BYTES tensor with one variable axis carry their count themselves."""
        fixed = self._fixed_in[index]
        if fixed is not None and isinstance(rows, _ARRAY) and fixed.put(ticket.slots, rows):
            return
        tensor = self.spec.inputs[index]
        if isinstance(rows, np.ndarray):
            write_array(self._memory, tensor, index, ticket.slots, rows)  # or says what is wrong with them
        else:
            write_bytes(self._memory, tensor, index, ticket.slots, rows, None)

    def crowded(self) -> float:
        """See `Model.crowded`: where more come than are served, most of the work would go into reading what is refused
        in the end."""
        if not self._full(1):
            return 0.0
        now_ns = self._now()
        self._make_room(now_ns)
        if not self._full(1):
            return 0.0
        self.traffic.arrivals.add(now_ns, 1)
        self.traffic.refused(429)
        if now_ns - self._crowded_ns > _CROWDED_NS:
            self._crowded_ns, self._crowded_s = now_ns, self._retry_after_s(now_ns)
        return max(self._crowded_s, _MIN_TIMER_S)

    def ahead(self, rows: int, index: int) -> tuple[Ticket, memoryview] | None:
        """See `Model.ahead`.  Clients that take their time never hold more than an eighth of the slots, and none while
        fewer than half are free."""
        fixed = self._fixed_in[index]
        if fixed is None or rows < 1 or self.closed_reason or not (self._lanes.live or self.hold):
            return None
        free = self._table.free
        if 8 * (self._lent + rows) > free.slots or 2 * (free.free - rows) < free.slots:
            return None
        if self._batcher.depth() + rows > self._queue_rows:
            return None
        ticket = self._table.reserve(rows, self._now())
        if ticket is None:
            return None
        view = fixed.view(ticket.slots)
        if view is None:
            self._table.close(ticket)
            return None
        ticket.lent = True
        self._lent += rows
        return ticket, view

    def arrived(self, given: Any) -> None:
        """See `Model.arrived`; raises what `open` raises, and the ticket stays open then."""
        ticket: Ticket = given
        ticket.arrival_ns = self._now()
        self._returned(ticket)
        self._admit(len(ticket.slots), ticket.arrival_ns)

    def _returned(self, ticket: Ticket) -> None:
        """Its client holds it no longer."""
        if ticket.lent:
            ticket.lent = False
            self._lent -= len(ticket.slots)

    def _admit(self, rows: int, now_ns: int) -> None:
        """Count `rows` that arrive, and raise Unavailable or Overloaded where they cannot be taken."""
        self.traffic.arrivals.add(now_ns, rows)
        if self.closed_reason or not (self._lanes.live or self.hold):
            raise self._refuse(Unavailable(self.closed_reason or "no worker of this model is ready", retry_after_s=1.0))
        if self._full(rows):
            self._make_room(now_ns)
            if self._full(rows):
                raise self._refuse(Overloaded("the queue is full", retry_after_s=self._retry_after_s(now_ns)))
        if self._batcher.depth() + rows > self._queue_rows:
            self._give_up(self.audits.queued(), "full")

    def _full(self, rows: int) -> bool:
        """Return whether clients' rows leave no room in the queue for so many more; audits would give way."""
        return self._batcher.depth() + rows > self._queue_rows and self._lanes.waiting() + rows > self._queue_rows

    def _make_room(self, now_ns: int) -> None:
        """Before a request is refused, now and then: let workers run, take what they completed, and hand out more.

        Those that are refused come again, and a loop that is busy refusing has long turns.  A worker on the same core
        would get to what it has at the end of one, and then have nothing until the end of the next.  Answers wait for
        the end of the turn: nobody is called back in the middle of somebody else's request (but where a worker is found
        to have broken its ring)."""
        if now_ns - self._room_ns <= _ROOM_NS:
            return
        os.sched_yield()
        self._room_ns = now_ns = self._now()
        self._collect(now_ns)
        self._expire(now_ns)
        self._pump(now_ns)
        self._wake()

    def write_elements(self, ticket: Ticket, index: int, rows: Sequence[bytes], dims: tuple[int, ...]) -> None:
        """As `write` for BYTES rows whose elements have the shape `dims`."""
        write_bytes(self._memory, self.spec.inputs[index], index, ticket.slots, rows, dims)

    def submit(
        self,
        given: Any,
        on_done: Callable[[Any], None],
        timeout_ns: int = 0,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        context: Any = None,
    ) -> None:
        """See `Model.submit`; also raises Unavailable where no worker that is good enough is there now."""
        ticket: Ticket = given
        if ticket.phase != OPEN:
            raise ValueError("a ticket is submitted once, while it is open")
        now_ns = self._now()
        if timeout_ns < 0:
            raise self._refuse(DeadlineMissed("the deadline has passed already"))
        if min_accuracy <= 1.0:
            min_accuracy *= 100.0  # a fraction, as receipts give it
        chain = self._lanes.chain_for(min_accuracy) if cascade and not self._reliefs.on else None
        if chain is not None and not self._lanes.live >> chain.lanes[0] & 1:
            chain = None
        mask = 1 << chain.lanes[0] if chain is not None else self._lanes.mask(min_accuracy)
        rung = self.demand.ask(min_accuracy, len(ticket.slots), now_ns) if min_accuracy > 0.0 else -1
        key = self._shape_key(ticket) if self._varies else 0
        if not mask:
            self._await(ticket, min_accuracy, rung)
            mask = self._lanes.able(min_accuracy)
        ticket.key = key
        ticket.min_accuracy = min_accuracy
        if ticket.awaits >= 0 and timeout_ns > self._timeout_ns:
            timeout_ns = self._timeout_ns  # who waits for a worker that may not come holds slots no longer than others
        ticket.deadline_ns = now_ns + min(timeout_ns or self._timeout_ns, _FOREVER_NS)
        ticket.context = context
        ticket.on_done = on_done
        ticket.submit_ns = now_ns
        ticket.chain = chain
        if self._auditing:
            self.audits.mark(ticket, now_ns)
        slots = ticket.slots
        ticket.outstanding = len(slots)
        self._reliefs.rows += len(slots)
        if len(slots) == 1:
            lane = self._lanes.choose(mask)
            ticket.variants = [lane]
            self._state[slots[0]] = QUEUED
            self._batcher.push(lane, slots[0], ticket.deadline_ns, now_ns, key)
        else:
            self._push_rows(ticket, mask, now_ns)
        ticket.phase = PENDING
        self._deadlines.add(ticket, now_ns)
        self._wake()

    def _await(self, ticket: Ticket, min_accuracy: float, rung: int) -> None:
        """Let a ticket wait for a worker that is good enough, as none is there; raises BadRequest or Unavailable."""
        if min_accuracy > 0.0 and max(self.accuracy) < min_accuracy:
            raise self._refuse(BadRequest(f"no variant of this model reaches an accuracy of {min_accuracy:g} %"))
        if rung < 0:
            if not self.hold:
                raise self._refuse(Unavailable("no worker that is good enough is ready", retry_after_s=1.0))
            return
        rows = len(ticket.slots)
        declined = self.demand.refusal(rung, rows, hold=self.hold)
        if declined is not None:
            self.demand.refuse(rung, rows)
            raise self._refuse(Unavailable(declined.why, retry_after_s=declined.retry_after_s))
        ticket.awaits = rung
        self.demand.wait(rung, rows)

    def decline(self, declined: Mapping[str, Declined], wanted: Callable[[], None]) -> None:
        """See `Fleet.decline`."""
        self.demand.decline(declined, wanted)
        if not self.demand.waiting:
            return
        now_ns = self._now()
        for ticket in {owner for owner in self._table.owner if owner is not None and owner.phase == PENDING}:
            why = self.demand.declined(ticket.awaits) if ticket.awaits >= 0 else None
            if why is not None and not why.waits and not self._lanes.mask(ticket.min_accuracy):
                self._unserved(ticket, now_ns)
        self._flush()

    def _unserved(self, ticket: Ticket, now_ns: int) -> None:
        """End a ticket whose worker did not come: 503 if it is known why, else 504."""
        why = self.demand.declined(ticket.awaits)
        if why is None:
            self._finish(ticket, 504, "the deadline passed before a worker that is accurate enough was there", now_ns)
            return
        self.demand.refuse(ticket.awaits, len(ticket.slots))
        self._finish(ticket, 503, why.why, now_ns, why.retry_after_s)

    def _answered(self, ticket: Ticket) -> None:
        """A ticket waits for no worker any more."""
        if ticket.awaits >= 0:
            self.demand.leave(ticket.awaits, len(ticket.slots))

    def read(self, given: Any, index: int) -> NDArray[Any] | list[bytes]:
        """See `Model.read`; raises ModelFailed where the rows cannot be one array."""
        ticket: Ticket = given
        if ticket.phase != DONE or ticket.status != 200:
            raise ValueError("only an answered ticket can be read")
        fixed = self._fixed_out[index]
        return fixed.get(ticket.slots) if fixed is not None else read_rows(self._memory, self.spec, index, ticket.slots)

    def text(self, given: Any, index: int) -> bytes | None:
        """See `Model.text`."""
        ticket: Ticket = given
        if ticket.phase != DONE or ticket.status != 200:
            raise ValueError("only an answered ticket can be read")
        fixed = self._fixed_out[index]
        if fixed is None or fixed.floats is None:
            return None
        text: bytes | None = fixed.floats.text(ticket.slots)
        return text

    def receipt(self, given: Any) -> Receipt:
        """See `Model.receipt`.  Variants of a request that was split are joined by "+", cheapest first."""
        ticket: Ticket = given
        lanes = ticket.variants
        rows = len(lanes)
        path: tuple[str, ...] = ()
        if ticket.chain is not None:
            path = self._cascade.paths(ticket)
            name, accuracy = self._joined(lanes), self._cascade.accuracy(ticket, ticket.chain)
        elif rows == 1:
            name, accuracy = self.traffic.variants[lanes[0]], self.accuracy[lanes[0]]
        else:
            name, accuracy = self._joined(lanes), sum([self.accuracy[lane] for lane in lanes]) / rows
        return self._account.receipt(self.name, name, accuracy, rows, ticket.energy_j, ticket.done_ns, path)

    def _joined(self, lanes: list[int]) -> str:
        return "+".join([self.traffic.variants[lane] for lane in sorted(set(lanes))])

    def close(self, given: Any) -> None:
        """See `Model.close`; closing twice does nothing."""
        ticket: Ticket = given
        phase = ticket.phase
        if phase == CLOSED:
            return
        ticket.phase = CLOSED
        if phase == PENDING:
            self._deadlines.discard(ticket)
            self._answered(ticket)
            self._table.cancel(ticket)
            self.traffic.refused(499)
            self.audits.given_up("lost", len(ticket.marked))
        elif ticket.status == 200:
            now_ns = self._now()
            self.traffic.answered(now_ns - ticket.done_ns)
            if ticket.chain is not None and ticket.chain.overruled_rows and self._cascade.audits is not None:
                self.audits.followed(ticket, ticket.chain)
            if ticket.marked:
                self.audits.closed(ticket, now_ns)
        else:
            self._returned(ticket)
            self.audits.given_up("lost", len(ticket.marked))
        ticket.on_done = None
        self._table.close(ticket)

    def stats(self) -> dict[str, Any]:
        """See `Model.stats`."""
        return self.traffic.report(self.name, self.spec.version, self._now())

    def expect(self, profile: FamilyProfile | None) -> None:
        """Take the accuracy of each variant, and what cascades are worth, from `profile`."""
        self.accuracy[:] = expected_accuracy(self.spec, profile)
        cascade = profile.cascade if profile is not None else None
        self._lanes.points = sorted(cascade.points, key=lambda point: point.cost) if cascade is not None else ()
        self._lanes.profiled_rows = cascade.held_out_rows if cascade is not None else 0
        self._lanes.accuracy_changed()
        self.guard.expect(profile if self._guarded_by != "off" else None)
        self._auditing = self.audits.on
        self._watching = self.guard.watches
        self._cascade.audits = self.audits if self.guard.watches else None

    def remember(self, number: int, given: Any) -> None:
        """See `Model.remember`."""
        ticket: Ticket = given
        if ticket.status != 200 or not self.feedback.on:
            return
        slots = ticket.slots
        if len(slots) == 1:
            self.feedback.remember_row(number, ticket.variants[0], self._said.of(slots[0]))
        else:
            self.feedback.remember(number, ticket.variants, [self._said.of(slot) for slot in slots])

    def labelled(self, number: int, labels: Sequence[Any], client: str) -> dict[str, Any]:
        """See `Model.labelled`."""
        return self.feedback.take(number, labels, client, self._now())

    def guarded(self) -> dict[str, Any]:
        """Return what the guard saw and did, the audits (their joules with the method), and late labels."""
        audits = self.audits.report() | {"method": self._account.method_of(self.name)}
        feedback = self.feedback.report(self.traffic.variants)
        return {**self.guard.report(), "audits": audits, "feedback": feedback}

    def _guarded(self) -> None:
        """The guard stands on another step."""
        rung = self.guard.rung
        self._lanes.guard(self.guard.tightened if rung != OK else None, aside=rung == ASIDE)

    # --- the fleet's side ---------------------------------------------------------------------------------------------

    def route(self, workers: Iterable[Entry], routing: Routing, standby: Standby | None = None) -> None:
        """Make exactly `workers` those that receive rows, dealt and batched as `routing` says, and `standby` those
        that come to their relief.

        Atomic between two requests: new workers are attached before old ones are let go, rows that wait for a variant
        which no longer has a worker move to one that has, and those that need wait no longer leave at once."""
        self._lanes.set(workers, routing)
        self._reliefs.set(standby)
        self._stranded(self._now())
        self._turn()

    @property
    def standby(self) -> Standby | None:
        """Those that come to the relief of the workers; None where nobody stands by."""
        return self._reliefs.standby

    def stand_by(self, standby: Standby | None) -> None:
        """Make `standby` those that come to the relief of the workers which receive rows now."""
        self._reliefs.set(standby)
        self._stranded(self._now())
        self._turn()

    def join(self, entry: Entry) -> None:
        """Let one more worker (a respawned one) receive rows, under the routing that stands."""
        self.route([*self._lanes.entries(), entry], self._lanes.routing, self.standby)

    def leave(self, worker: WorkerHandle, on_idle: Callable[[], None]) -> None:
        """No new batch for `worker`; `on_idle` is called once it holds none (at once where it holds none now)."""
        self._reliefs.forget(worker)
        link = self._lanes.find(worker)
        if link is not None:
            link.on_idle.append(on_idle)
            self._lanes.detach(link)
            self._stranded(self._now())
            self._turn()
        else:
            on_idle()

    def died(self, worker: WorkerHandle, reason: str, *, blame: bool = True) -> None:
        """`worker` is gone: take what it still completed, and queue the rows it held again, once.  `blame` False: no
        row can have caused it (its GPU was lost, say), and none counts a death."""
        self._reliefs.forget(worker)
        link = self._lanes.find(worker)
        if link is None:
            return
        now_ns = self._now()
        untaken = 0
        try:
            if not link.broken:
                self._take_completions(link, now_ns)
                untaken = worker.ring.untaken()
        except ValueError as error:
            log.warning("%s: the ring of worker %d is corrupt: %s", self.name, worker.pid, error)
        batches = list(link.batches.values())
        self.traffic.lost_workers += 1
        log.warning("%s: worker %d died (%s) with %d batches in flight", self.name, worker.pid, reason, len(batches))
        link.batches.clear()
        for batch in batches:
            if batch.epoch == link.epoch:
                self._batcher.credit(link.index)
        self._lanes.detach(link)

        def poisoned(ticket: Ticket) -> None:
            self._finish(ticket, 503, "the request was being computed by two workers that died", now_ns)

        self._retry.after_death(batches, untaken, now_ns, poisoned, blame=blame)
        self._stranded(now_ns)
        self._turn()

    def reap(self) -> None:
        """Take every completion there is, hand out new batches, then answer.  All families are told when any worker
        of any rings: those that wait for no batch, and workers that hold none, cost next to nothing."""
        if self._collect(self._now()):
            self._turn()

    def _collect(self, now_ns: int) -> bool:
        """Take every completion there is; whether any worker held a batch."""
        found = False
        for link in self._lanes.links[:]:
            if link.broken or not link.batches:
                continue
            found = True
            try:
                self._take_completions(link, now_ns)
            except ValueError as error:
                link.broken = True
                self.lost(link.worker, f"it broke the protocol of its ring: {error}")
        return found

    def silent(self, limit_ns: int) -> list[WorkerHandle]:
        """Return workers that hold a batch and have completed nothing for longer than `limit_ns`."""
        now_ns = self._now()
        return [link.worker for link in self._lanes.links if link.silent_ns(now_ns) > limit_ns]

    def observe(self) -> dict[str, float]:
        """Return live figures; `p95_ms` only where something was answered lately."""
        now_ns = self._now()
        traffic = self.traffic
        rows = sum(traffic.rows)
        out = {
            "arrival_rate": traffic.arrivals.per_s(now_ns),
            "served_rate": traffic.served.per_s(now_ns),
            "queue_rows": float(self._lanes.waiting()),
            "in_flight_rows": float(
                sum(len(batch.slots) for link in self._lanes.links for batch in link.batches.values())
            ),
            "free_slots": float(self._table.free.free),
            "rows": float(rows),
            "awaiting_rows": float(self.demand.waiting),
        }
        if rows:
            out["accuracy_served"] = traffic.accuracy_rows / rows
        if self.guard.watches:
            out["guard"] = float(self.guard.rung)
        if self._auditing:
            out["audit_share"] = self.audits.sampler.share
        if self.standby is not None:
            out["relief"] = float(self._reliefs.on)
            out["relieved_rows"] = float(traffic.relieved_rows)
        p95_ms = traffic.p95_ms(now_ns)
        if p95_ms is not None:
            out["p95_ms"] = p95_ms
        return out

    def fail_waiting(self, message: str) -> None:
        """Answer everything that waits with 503 (unload, and the end of a drain that took too long)."""
        now_ns = self._now()
        for ticket in {owner for owner in self._table.owner if owner is not None and owner.phase == PENDING}:
            self._finish(ticket, 503, message, now_ns, 1.0)
        self._flush()

    def stop(self) -> None:
        """Cancel the timer; nothing may be submitted afterwards."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- turns --------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Expire, form batches, answer, and set the timer to what comes next."""
        self._scheduled = False
        now_ns = self._now()
        self._expire(now_ns)
        self._pump(now_ns)
        if self._reliefs.turn(now_ns):
            self._give_up(self.audits.queued(), "relief")
            self._pump(now_ns)
        self._flush()
        self._arm(now_ns)

    def _pump(self, now_ns: int) -> None:
        batcher, out = self._batcher, self._out
        broken: list[tuple[WorkerHandle, str]] = []
        formed = batcher.dispatch(now_ns, out)
        while formed is not None:
            index, count = formed
            link = self._lanes.by_index(index)
            self._batch_id += 1
            slots: list[int] = out[:count].tolist()
            for slot in slots:
                self._state[slot] = FLYING
            link.sent(Batch(self._batch_id, slots, now_ns, link.epoch), now_ns)
            try:
                # Credits are fewer than frames, so a full ring is a worker that wrote where it must not.
                sent = link.worker.ring.submit(self._batch_id, out, count)
                if sent == 2:
                    link.worker.bell()
                elif sent == 0:
                    broken.append((link.worker, "its ring is full"))
            except (ValueError, OSError) as error:
                broken.append((link.worker, f"its ring cannot be written: {error}"))
            formed = batcher.dispatch(now_ns, out)
        for worker, reason in broken:
            self.lost(worker, reason)

    def _wake(self) -> None:
        """Have a turn soon."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _stranded(self, now_ns: int) -> None:
        """Rows that wait for a lane without a worker go elsewhere; audits are given up."""
        self._give_up(self.audits.stranded(), "nobody")
        self._retry.stranded(now_ns)

    def _give_up(self, audits: list[Ticket], why: str) -> bool:
        """End audits that wait; whether there were any."""
        for ticket in audits:
            ticket.error = why
            self._finish(ticket, 503, why, self._now())
        return bool(audits)

    def _flush(self) -> None:
        """Call `on_done` of what has finished.  A callback may open, submit and close."""
        while self._finished:
            finished, self._finished = self._finished, []
            for ticket in finished:
                callback = ticket.on_done
                ticket.on_done = None
                if callback is not None and ticket.phase == DONE:
                    try:
                        callback(ticket)
                    except Exception:
                        log.exception("%s: a completion callback failed", self.name)

    def _expire(self, now_ns: int) -> None:
        for ticket in self._deadlines.due(now_ns):
            if ticket.paths and self._cascade.keep_all(ticket):
                self._finish(ticket, 200, "", now_ns)
            elif ticket.awaits >= 0 and not self._lanes.mask(ticket.min_accuracy):
                self._unserved(ticket, now_ns)
            else:
                self._finish(ticket, 504, "the deadline passed before an answer was there", now_ns)

    def _arm(self, now_ns: int) -> None:
        """One timer, for the nearest deadline or (where batches wait to fill) the nearest delay to run out."""
        next_ns = self._deadlines.next_ns()
        if self._lanes.delayed:
            delay_ns = self._batcher.next_event_ns(now_ns)
            if delay_ns and (not next_ns or delay_ns < next_ns):
                next_ns = delay_ns
        timer = self._timer
        if timer is not None:
            # An early timer costs one idle turn, so it is only moved when something nearer came.
            if not next_ns or (now_ns < self._timer_ns <= next_ns):
                return
            timer.cancel()
            self._timer = None
        if next_ns:
            self._timer_ns = next_ns
            self._timer = self._loop.call_later(max((next_ns - now_ns) / 1e9, _MIN_TIMER_S), self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._turn()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _push_rows(self, ticket: Ticket, mask: int, now_ns: int) -> None:
        """Queue several rows: quotas are kept row by row, and rows of one variant stay neighbours in the slab."""
        slots = ticket.slots
        self._lanes.choose_many(mask, len(slots), self._picked)
        lanes = np.sort(self._picked[: len(slots)])
        ticket.variants = lanes.tolist()
        start = 0
        for stop in [*(np.flatnonzero(np.diff(lanes)) + 1).tolist(), len(slots)]:
            lane = ticket.variants[start]
            self._batcher.push_many(lane, slots[start:stop], ticket.deadline_ns, now_ns, ticket.key)
            start = stop
        for slot in slots:
            self._state[slot] = QUEUED

    def _take_completions(self, link: Link, now_ns: int) -> None:
        """Everything a worker completed; raises ValueError where it breaks the protocol."""
        reap = link.worker.ring.reap
        frame = reap()
        while frame is not None:
            self._complete(link, frame, now_ns)
            frame = reap()

    def _complete(self, link: Link, frame: tuple[int, int, int, int, int, int], now_ns: int) -> None:
        batch_id, status, count, start_ns, end_ns, cpu_ns = frame
        batch = link.batches.get(batch_id)
        if batch is None or count != len(batch.slots):
            raise ValueError(f"completion of batch {batch_id} with {count} rows, which it was never given")
        link.landed(batch, now_ns)
        if batch.epoch == link.epoch:
            self._batcher.credit(link.index)
        # The worker's clock is ours, but its word is not: times stay within what we saw ourselves.
        end_ns = min(max(end_ns, batch.sent_ns), now_ns)
        start_ns = min(max(start_ns, batch.sent_ns), end_ns)
        busy_ns = end_ns - start_ns
        energy_j = link.meter.add(count, busy_ns, cpu_ns)
        if not status or not self._retry.after_failure(batch, now_ns):
            right = self.traffic.accuracy_rows
            gone_on, audits = self._settle(link, batch, status, start_ns, busy_ns, energy_j, now_ns)
            right = self.traffic.accuracy_rows - right - count * self.accuracy[link.lane]
            if not status:
                self._cascade.busy_ns[link.lane] = busy_ns
                self.traffic.batch(link.lane, count, gone_on, busy_ns, now_ns, audits)
                if link.relief:
                    self.traffic.relieved_rows += count - gone_on - audits
                self._account.rows_done(self.name, count - gone_on - audits, now_ns)
                if gone_on or audits or abs(right) > _DUST:
                    link.meter.cascaded(gone_on + audits, right)
        self._lanes.forget_idle(link)

    def _settle(
        self, link: Link, batch: Batch, status: int, start_ns: int, busy_ns: int, energy_j: float, now_ns: int
    ) -> tuple[int, int]:
        """Hand the rows of a completed batch back to their tickets, send those on that go on, and finish tickets that
        have all of theirs; how many rows went on, and how many were audits."""
        lane, gone_on, audits = link.lane, 0, 0
        watching = not status and self._watching
        watched = watching and self.guard.edges[lane] is not None
        scores = self._scores(batch.slots) if watched else []
        for at, slot in enumerate(batch.slots):
            ticket = self._table.landed(slot)
            if ticket is None:
                if not status:
                    self.traffic.accuracy_rows += self.accuracy[lane]
                continue
            ticket.energy_j += energy_j
            if ticket.audit is not None:
                audits += 1
                self._finish(ticket, 500 if status else 200, "", now_ns)
                continue
            counts = watched or (watching and ticket.chain is not None)
            if counts and not (ticket.paths and ticket.slots.index(slot) in ticket.paths):
                evidence = self.guard.fresh(self._inputs.digest(slot))
                if evidence:
                    if watched:
                        self.guard.score(lane, scores[at], evidence)
                elif ticket.repeats:
                    ticket.repeats.add(slot)
                else:
                    ticket.repeats = {slot}
            waited_ns = start_ns - ticket.submit_ns
            if waited_ns > ticket.queue_ns:
                ticket.queue_ns = waited_ns
            if busy_ns > ticket.compute_ns:
                ticket.compute_ns = busy_ns
            if status:
                if not self._cascade.keep(ticket, ticket.slots.index(slot), "failed"):
                    self._finish(ticket, 500, "the model failed on this request", now_ns)
                    continue
            elif ticket.chain is None:
                self.traffic.accuracy_rows += self.accuracy[lane]
            else:
                scores = scores or self._scores(batch.slots)
                if self._cascade.goes_on(ticket, ticket.chain, slot, lane, scores[at], now_ns):
                    gone_on += 1
                    continue
            ticket.outstanding -= 1
            if not ticket.outstanding:
                self._finish(ticket, 200, "", now_ns)
        return gone_on, audits

    def _scores(self, slots: list[int]) -> list[float]:
        """Return how sure the answers in `slots` are."""
        scores = self._memory.score
        if len(slots) <= _FEW:  # an array for an index costs more than they do
            return [scores.item(slot) for slot in slots]
        found: list[float] = scores[slots].tolist()
        return found

    # --- the end of a ticket ------------------------------------------------------------------------------------------

    def _finish(
        self, ticket: Ticket, status: int, error: str, now_ns: int, retry_after_s: float | None = None
    ) -> None:
        if ticket.phase != PENDING:
            return
        self._deadlines.discard(ticket)
        if status != 200:
            self._table.cancel(ticket)
        if ticket.audit is not None:
            self.audits.finished(ticket, status)
            ticket.phase = CLOSED
            self._table.close(ticket)
            return
        self._answered(ticket)
        ticket.phase = DONE
        ticket.status = status
        ticket.error = error
        ticket.retry_after_s = retry_after_s
        ticket.done_ns = now_ns
        self.traffic.finished(
            status, ticket.arrival_ns, ticket.submit_ns, now_ns, ticket.queue_ns, ticket.compute_ns, ticket.awaits < 0
        )
        self._finished.append(ticket)

    # --- small things -------------------------------------------------------------------------------------------------

    def _shape_key(self, ticket: Ticket) -> int:
        try:
            return self._keys.of(ticket.slots)
        except BadRequest as error:
            raise self._refuse(error) from None

    def _retry_after_s(self, now_ns: int) -> float:
        """Return how long the queue takes to drain at the rate measured lately."""
        rate = self.traffic.served.per_s(now_ns)
        return min(self._lanes.waiting() / rate, _MAX_RETRY_AFTER_S) if rate > 0.0 else 1.0

    def _now(self) -> int:
        """Return the clock, without a call of Python where it is the machine's."""
        return monotonic_ns() if self._real else self._clock()

    def _refuse(self, error: RequestError) -> RequestError:
        self.traffic.refused(error.status)
        return error


__all__ = ["MAX_WORKERS", "Router", "expected_accuracy"]

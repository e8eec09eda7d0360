"""Rows that go back to the queue: after a death, after a failed batch, and where their lane lost its last worker.

Who is to blame.  When a worker dies or a model fails, one row of the batch may have done it, and its neighbours must
not pay for it.  So rows that were being computed are queued again with a key of their ticket's own, which keeps them
out of any batch with others: the guilty request meets its second death (or its failure) alone.

A batch that the dead worker had not taken from its ring was not being computed; its rows count no death.  One that it
had may have been half written: what a variant before said of these rows cannot be kept any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from clover._native.batcher import Batcher
from clover.runtime.router.lanes import Lanes
from clover.runtime.router.links import Batch
from clover.runtime.router.slots import SlotTable
from clover.runtime.router.tickets import BEHIND_NS, PENDING, QUEUED, Ticket
from clover.runtime.router.traffic import Traffic

log = logging.getLogger("clover.router")


class Retry:
    """Queues rows again, within their deadlines and without regard to the queue's bound."""

    def __init__(self, table: SlotTable, batcher: Batcher, lanes: Lanes, traffic: Traffic) -> None:
        self._table = table
        self._batcher = batcher
        self._lanes = lanes
        self._traffic = traffic
        self._alone = 0

    def after_death(
        self, batches: list[Batch], untaken: int, now_ns: int, poisoned: Callable[[Ticket], None], *, blame: bool = True
    ) -> None:
        """The rows of `batches`, the last `untaken` of which were never begun.  `poisoned` ends a ticket that was being
        computed in two deaths; with `blame` False this one does not count."""
        begun_batches = max(len(batches) - untaken, 0)
        begun = {slot for batch in batches[:begun_batches] for slot in batch.slots}
        landed = [(slot, self._table.landed(slot)) for batch in batches for slot in batch.slots]
        guilty = set()
        for slot, ticket in landed:
            if ticket is not None and slot in begun:
                ticket.torn += (ticket.slots.index(slot),)
                guilty.add(ticket)
        for ticket in guilty if blame else ():
            ticket.deaths += 1
            if ticket.audit is not None:
                poisoned(ticket)  # nobody waits for it: it shall not kill another one
            elif ticket.deaths >= 2:
                self._traffic.poisoned += 1
                poisoned(ticket)
            else:
                self._isolate(ticket)
        for slot, owner in landed:
            if owner is not None and owner.phase == PENDING:
                self._traffic.retried_rows += 1
                self.again(owner, slot, now_ns)

    def after_failure(self, batch: Batch, now_ns: int) -> bool:
        """Return a batch on which the model failed, whose slots have not landed yet: queue its rows again, each ticket
        by itself; False where one ticket had it to itself, so that it is known who failed."""
        table = self._table
        tickets = {table.owner[slot] for slot in batch.slots}
        if len(tickets) < 2:
            return False
        for ticket in tickets:
            if ticket is not None and ticket.phase == PENDING:
                self._isolate(ticket)
        for slot in batch.slots:
            ticket = table.landed(slot)
            if ticket is not None:
                self._traffic.retried_rows += 1
                self.again(ticket, slot, now_ns)
        return True

    def stranded(self, now_ns: int) -> None:
        """Rows that wait for a lane without a worker move to a live lane that is good enough, if there is one."""
        live = self._lanes.live
        lanes = range(len(self._lanes.accuracy))
        stranded = {lane for lane in lanes if not live >> lane & 1 and self._batcher.depth(lane)}
        if not live or not stranded:
            return
        for slot, ticket in self._table.queued():
            if ticket.variants[ticket.slots.index(slot)] in stranded:
                self._batcher.cancel(slot)
                self.again(ticket, slot, now_ns)

    def shift(self, lane: int, now_ns: int) -> None:
        """Rows that wait for another lane move to `lane` where it is good enough for them; what went on in a cascade
        has an answer, and moves to no worse variant."""
        accuracy = self._lanes.accuracy[lane]
        for slot, ticket in self._table.queued():
            row = ticket.slots.index(slot)
            if ticket.variants[row] != lane and accuracy >= ticket.min_accuracy and row not in ticket.paths:
                self._batcher.cancel(slot)
                ticket.variants[row] = lane
                self.again(ticket, slot, now_ns)

    def again(self, ticket: Ticket, slot: int, now_ns: int) -> None:
        """Queue one row of a ticket that waits."""
        row = ticket.slots.index(slot)
        lane = ticket.variants[row]
        if ticket.chain is not None:
            lane = ticket.chain.from_on(lane, self._lanes.live)
        lane = self._lanes.lane_for(lane, ticket.min_accuracy)
        ticket.variants[row] = lane
        if lane in (path := ticket.paths.get(row, ())):
            ticket.paths[row] = path[: path.index(lane)]  # it is asked there once more
            ticket.torn += (row,)  # and what lies in its slot is not of the last one of its path
        due_ns = ticket.deadline_ns if ticket.audit is None else now_ns + BEHIND_NS
        self._batcher.requeue(lane, [slot], due_ns, now_ns, ticket.key)
        self._table.state[slot] = QUEUED

    def _isolate(self, ticket: Ticket) -> None:
        """From now on no row of others joins this ticket's batches: keys of shapes are never negative."""
        if ticket.key >= 0:
            self._alone -= 1
            ticket.key = self._alone

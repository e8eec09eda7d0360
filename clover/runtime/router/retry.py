"""Rows that return to the queue: after a death, after a failed batch, and after their lane lost its last worker.

Who is to blame.  When a worker dies or a model fails, one row of the batch may be the cause, and its neighbours must
not suffer for it.  So rows that were being computed are queued again with a key of their ticket's own, which keeps them
out of batches with others: the request that is the cause meets its second death (or its failure) alone.

A batch that the dead worker had not taken from its ring was not being computed; its rows count no death.  The outputs
of one that it had taken may be half written, so the answers of earlier stages in those slots are not kept.
"""

from __future__ import annotations

from collections.abc import Callable

from clover.runtime.router.links import Batch
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import PENDING, QUEUED, RouterTicket


class Retry:
    """Queues rows again, within their deadlines and without regard to the queue's bound."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._alone = 0
        self._retried: dict[int, int] = {}
        """By slot, its ticket's key when it was last queued again after a failed batch: keys that keep tickets apart
        are never used twice, so another ticket in that slot has another one."""

    def after_death(
        self,
        batches: list[Batch],
        untaken: int,
        now_ns: int,
        poisoned: Callable[[RouterTicket], None],
        *,
        blame: bool = True,
    ) -> None:
        """Queue the rows of a dead worker's `batches` again, the last `untaken` of which were never begun.  `poisoned`
        is called to end a ticket that was being computed in two deaths; with `blame` False this death does not
        count."""
        begun_batches = max(len(batches) - untaken, 0)
        begun = {slot for batch in batches[:begun_batches] for slot in batch.slots}
        landed = [(slot, self._state.table.take_back(slot)) for batch in batches for slot in batch.slots]
        guilty = set()
        for slot, ticket in landed:
            if ticket is not None and slot in begun:
                ticket.torn += (ticket.row_of(slot),)
                guilty.add(ticket)
        for ticket in guilty if blame else ():
            ticket.deaths += 1
            if ticket.audit is not None:
                poisoned(ticket)  # no client waits for an audit, so it is not retried
            elif ticket.deaths >= 2:
                self._state.traffic.poisoned += 1
                poisoned(ticket)
            else:
                self._isolate(ticket)
        for slot, owner in landed:
            if owner is not None and owner.phase == PENDING:
                self._state.traffic.retried_rows += 1
                self.again(owner, slot, now_ns)

    def after_failure(self, batch: Batch, now_ns: int, *, by_chance: bool = False) -> bool:
        """Queue the rows of a failed batch again, each ticket in batches of its own, before their slots are taken back.
        Return False, and do nothing, if all rows are of one ticket: that ticket failed.  If the batch failed
        `by_chance`, even these are tried a second time, whatever happened to other batches of their ticket."""
        table = self._state.table
        tickets = {table.owner[slot] for slot in batch.slots}
        if len(tickets) < 2 and not (by_chance and self._first_try(batch.slots)):
            return False
        for ticket in tickets:
            if ticket is not None and ticket.phase == PENDING:
                self._isolate(ticket)
        for slot in batch.slots:
            ticket = table.take_back(slot)
            if ticket is not None:
                self._state.traffic.retried_rows += 1
                self._retried[slot] = ticket.key
                self.again(ticket, slot, now_ns)
        return True

    def _first_try(self, slots: list[int]) -> bool:
        """Return whether no row in `slots` was queued again after a failed batch before."""
        owners = [(slot, self._state.table.owner[slot]) for slot in slots]
        return all(owner is None or self._retried.get(slot) != owner.key for slot, owner in owners)

    def move_rows(self, now_ns: int) -> None:
        """Move rows that wait for a lane without a worker to a live lane that is accurate enough, if there is one."""
        lanes, batcher = self._state.lanes, self._state.batcher
        every = range(len(lanes.accuracy))
        stranded = {lane for lane in every if not lanes.is_live(lane) and batcher.depth(lane)}
        if not stranded:
            return
        for slot, ticket in self._waiting():
            row = ticket.row_of(slot)
            if ticket.variants[row] not in stranded:
                continue
            lane = self._lane(ticket, row)
            if lanes.is_live(lane):
                batcher.cancel(slot)
                self._queue(ticket, slot, lane, now_ns)
            elif not lanes.is_staffed(lane):
                self._state.stranded = True

    def shift(self, lane: int, now_ns: int) -> None:
        """Move rows that wait for other lanes to `lane` if it is accurate enough for them.  Escalated rows have an
        answer already, and do not move."""
        accuracy = self._state.lanes.accuracy[lane]
        for slot, ticket in self._waiting():
            row = ticket.row_of(slot)
            if ticket.variants[row] != lane and accuracy >= ticket.min_accuracy and row not in ticket.paths:
                self._state.batcher.cancel(slot)
                ticket.variants[row] = lane
                self.again(ticket, slot, now_ns)

    def _waiting(self) -> list[tuple[int, RouterTicket]]:
        """Return every queued slot with its ticket, those that were submitted first in front: rows that move to another
        lane take new places there."""
        return sorted(self._state.table.list_queued(), key=lambda queued: queued[1].submit_ns)

    def again(self, ticket: RouterTicket, slot: int, now_ns: int) -> None:
        """Queue one row of a pending ticket again."""
        lane = self._lane(ticket, ticket.row_of(slot))
        if not self._state.lanes.is_staffed(lane):
            self._state.stranded = True
        self._queue(ticket, slot, lane, now_ns)

    def _lane(self, ticket: RouterTicket, row: int) -> int:
        """Return the lane that a row is to wait for: its own if that is live, or if no live one may serve it."""
        lane = ticket.variants[row]
        if ticket.chain is not None:
            lane = ticket.chain.from_on(lane, self._state.lanes.live)
        return self._state.lanes.lane_for(lane, ticket.min_accuracy)

    def _queue(self, ticket: RouterTicket, slot: int, lane: int, now_ns: int) -> None:
        """Queue one row for `lane`."""
        row = ticket.row_of(slot)
        ticket.variants[row] = lane
        if lane in (path := ticket.paths.get(row, ())):
            ticket.paths[row] = path[: path.index(lane)]  # it is asked there again
            ticket.torn += (row,)  # its slot does not hold the answer of its path's last lane
        self._state.batcher.requeue(lane, [slot], ticket.deadline_ns, now_ns, ticket.key, ticket.flow)
        self._state.table.state[slot] = QUEUED

    def _isolate(self, ticket: RouterTicket) -> None:
        """Keep the rows of other tickets out of this ticket's batches from now on."""
        if ticket.key >= 0:
            self._alone -= 1  # keys of shapes are never negative
            ticket.key = self._alone

"""The state and owner of every slot: the one place where slots change hands.

    reserve -> HELD -> (queued) QUEUED -> (dispatched) FLYING -> landed -> HELD -> release -> FREE

A slot that is FLYING belongs to its worker.  Whatever becomes of its ticket meanwhile (deadline missed, failed, closed
by a client that went away), it returns to the free list only when the worker has completed the batch or is dead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clover._native.batcher import Batcher
from clover._native.slots import SlotAllocator
from clover.runtime.router.tickets import CLOSED, FLYING, FREE, HELD, PENDING, QUEUED, RouterTicket


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

    def landed(self, slot: int) -> RouterTicket | None:
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

    def queued(self) -> Iterator[tuple[int, RouterTicket]]:
        """Yield every queued slot, with its ticket."""
        for slot in np.flatnonzero(np.frombuffer(self.state, np.uint8) == QUEUED).tolist():
            ticket = self.owner[slot]
            if ticket is not None:
                yield slot, ticket

    def pending(self) -> set[RouterTicket]:
        """Return the tickets that wait for an answer."""
        return {ticket for ticket in self.owner if ticket is not None and ticket.phase == PENDING}

"""Deadlines of everything in flight: a timing wheel.

Nearly every ticket is answered long before its deadline, so entering and leaving must be cheap and must leave little
behind: a ticket sits in the set of its bucket, and the heap holds one number a bucket, not one a ticket.  A bucket
falls due after the deadlines in it, never before: up to one tick (2^20 ns, 1.05 ms) later, up to sixteen ticks for
deadlines that were more than a second away, and up to 1/512 of the distance for those more than 17 seconds away.
A bucket stays until it falls due, also when empty, so that last rule bounds their number: clients choose deadlines.
"""

from __future__ import annotations

import heapq

from clover.runtime.tickets import Ticket

_TICK_BITS = 20
_COARSE = 15
_FAR_NS = 1_000_000_000
_DIGITS = 10
"""Binary digits that are kept of the distance of a far deadline, in ticks."""


class Deadlines:
    """Tickets by deadline."""

    __slots__ = ("_buckets", "_heap")

    def __init__(self) -> None:
        self._buckets: dict[int, set[Ticket]] = {}
        self._heap: list[int] = []

    def add(self, ticket: Ticket, now_ns: int) -> None:
        """Watch `ticket.deadline_ns`."""
        bucket = (ticket.deadline_ns >> _TICK_BITS) + 1
        distance_ns = ticket.deadline_ns - now_ns
        if distance_ns > _FAR_NS:
            coarse = max(_COARSE, (1 << max((distance_ns >> _TICK_BITS).bit_length() - _DIGITS, 0)) - 1)
            bucket = (bucket + coarse) & ~coarse
        ticket.bucket = bucket
        tickets = self._buckets.get(bucket)
        if tickets is None:
            self._buckets[bucket] = {ticket}
            heapq.heappush(self._heap, bucket)
        else:
            tickets.add(ticket)

    def discard(self, ticket: Ticket) -> None:
        """Stop watching; does nothing for a ticket that is not watched."""
        tickets = self._buckets.get(ticket.bucket)
        if tickets is not None:
            tickets.discard(ticket)

    def due(self, now_ns: int) -> list[Ticket]:
        """The tickets whose bucket is past; they are no longer watched."""
        out: list[Ticket] = []
        tick = now_ns >> _TICK_BITS
        heap = self._heap
        while heap and heap[0] <= tick:
            out.extend(self._buckets.pop(heapq.heappop(heap)))
        return out

    def next_ns(self) -> int:
        """When the next bucket falls due; 0 where nothing is watched."""
        heap, buckets = self._heap, self._buckets
        while heap and not buckets[heap[0]]:
            del buckets[heapq.heappop(heap)]
        return heap[0] << _TICK_BITS if heap else 0

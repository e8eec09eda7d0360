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

_FAR = 1_000_000_000 >> 20


class Deadlines:
    """Tickets by deadline."""

    __slots__ = ("_buckets", "_heap")

    def __init__(self) -> None:
        self._buckets: dict[int, set[Ticket]] = {}
        self._heap: list[int] = []

    def add(self, ticket: Ticket, now_ns: int) -> None:
        """Watch `ticket.deadline_ns`."""
        bucket = (ticket.deadline_ns >> 20) + 1
        distance = (ticket.deadline_ns - now_ns) >> 20
        if distance > _FAR:
            coarse = 15
            while distance >> 10 > coarse:  # of a far deadline's distance, so many digits are kept
                coarse = 2 * coarse + 1
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
        tick = now_ns >> 20
        heap = self._heap
        while heap and heap[0] <= tick:
            out.extend(self._buckets.pop(heapq.heappop(heap)))
        return out

    def next_ns(self) -> int:
        """When the next bucket falls due; 0 where nothing is watched."""
        heap, buckets = self._heap, self._buckets
        while heap and not buckets[heap[0]]:
            del buckets[heapq.heappop(heap)]
        return heap[0] << 20 if heap else 0

"""Deadlines of all pending tickets: a timing wheel.

Nearly every ticket is answered long before its deadline, so entering and leaving must be cheap and must leave little
behind: a ticket is linked with the others of its bucket, and the heap holds one number a bucket, not one a ticket.  A
bucket falls due after the deadlines in it, never before: up to one tick (2^20 ns, 1.05 ms) later, up to sixteen ticks
for deadlines that were more than a second away, and up to 1/512 of the distance for those more than 17 seconds away.
A bucket stays until it falls due, also when empty, so that last rule bounds their number: clients choose deadlines.
"""

from __future__ import annotations

from heapq import heappop, heappush

from clover.runtime.router.tickets import RouterTicket


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

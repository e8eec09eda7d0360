"""Whether another request may be expected while some are here: whether it makes sense to wait for company.

Theory.  With k requests *here* (submitted and not answered) the next one comes at some rate r(k).  Of clients that send
whatever becomes of their other requests, r(k) is the same for all k.  A client that sends a request when the last one
is answered sends none while one of its own is here: of n such clients r(n) is zero, and of one r(1).  So r(k) is
measured: arrivals with k here, over the time with k here.  Company is *expected* with k here unless r(k) is less than
half of the overall rate.  Too few arrivals by chance do not look like none: two further ones, at the overall rate, are
counted for every k.

What was counted weighs half after `_HALF_LIFE` further requests, however long they take: a client that comes to be
alone is noticed after some of its requests, be they sent with pauses or without (with pauses, about one in ten then
tries again whether that still holds).  A night without requests counts as a pause of `_PAUSE_NS`.  Requests above
`MOST_HERE` are counted as that many.
"""

from __future__ import annotations

from array import array

MOST_HERE = 256
_HALF_LIFE = 128
_PAUSE_NS = 1_000_000_000
_MOST = MOST_HERE  # as a number of C


class Company:
    """The requests of one family that are here, and what was seen of arrivals by their number."""

    __slots__ = ("_came", "_came_with", "_since_ns", "_spent_ns", "_spent_ns_with", "_unfaded", "here")

    def __init__(self, now_ns: int) -> None:
        self.here = 0
        self._since_ns = now_ns
        self._unfaded = 0
        self._came = 0.0
        self._spent_ns = 0.0
        self._came_with = array("d", [0.0]) * (MOST_HERE + 1)
        self._spent_ns_with = array("d", [0.0]) * (MOST_HERE + 1)

    def came(self, now_ns: int) -> None:
        """Count a request that was submitted."""
        here = self._spend(now_ns)
        self._came_with[here] += 1.0
        self._came += 1.0
        self.here += 1
        self._unfaded += 1
        if self._unfaded == _HALF_LIFE:
            self._halve()

    def left(self, now_ns: int) -> None:
        """Count a request that was answered, or given up."""
        self._spend(now_ns)
        self.here = max(self.here - 1, 0)

    def expected(self, now_ns: int) -> bool:
        """Return whether further requests come about as often as ever while those are here that are here."""
        here = self._spend(now_ns)
        if self._spent_ns <= 0.0:
            return True
        return self._came_with[here] + 1.0 >= 0.5 * self._came / self._spent_ns * self._spent_ns_with[here]

    def _spend(self, now_ns: int) -> int:
        """Count the time since the last call; return the number of requests here, `MOST_HERE` at most."""
        here = min(self.here, _MOST)
        if now_ns > self._since_ns:
            spent_ns = float(now_ns - self._since_ns if here else min(now_ns - self._since_ns, _PAUSE_NS))
            self._since_ns = now_ns
            self._spent_ns_with[here] += spent_ns
            self._spent_ns += spent_ns
        return here

    def _halve(self) -> None:
        """Have everything that was counted weigh half."""
        self._unfaded = 0
        self._came *= 0.5
        self._spent_ns *= 0.5
        for here in range(MOST_HERE + 1):
            self._came_with[here] *= 0.5
            self._spent_ns_with[here] *= 0.5

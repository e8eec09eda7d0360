"""Whether another request may be expected while some are here: whether it makes sense to wait for company.

Theory.  With k requests *here* (submitted and not answered) the next one comes at some rate r(k).  Of clients that send
whatever becomes of their other requests, r(k) is the same for all k.  A client that sends a request when the last one
is answered sends none while one of its own is here: of n such clients r(n) is zero, and of one r(1).  So r(k) is
measured: arrivals with k here, over the time with k here.  Company is *expected* with k here unless r(k) is less than
half of the overall rate.  Too few arrivals by chance do not look like none: two further ones, at the overall rate, are
counted for every k.

What was counted weighs half after `_HALF_LIFE_NS`, so that a client that comes to be alone is noticed soon; it takes a
handful of its requests.  Requests above `MOST_HERE` are counted as that many.
"""

from __future__ import annotations

MOST_HERE = 256
_HALF_LIFE_NS = 1_000_000_000


class Company:
    """The requests of one family that are here, and what was seen of arrivals by their number."""

    __slots__ = ("_came", "_came_with", "_fade_ns", "_since_ns", "_spent_ns", "_spent_ns_with", "here")

    def __init__(self, now_ns: int) -> None:
        self.here = 0
        self._since_ns = self._fade_ns = now_ns
        self._came = 0.0
        self._spent_ns = 0.0
        self._came_with = [0.0] * (MOST_HERE + 1)
        self._spent_ns_with = [0.0] * (MOST_HERE + 1)

    def came(self, now_ns: int) -> None:
        """Count a request that was submitted."""
        here = self._spend(now_ns)
        self._came_with[here] += 1.0
        self._came += 1.0
        self.here += 1

    def left(self, now_ns: int) -> None:
        """Count a request that was answered, or given up."""
        self._spend(now_ns)
        self.here -= 1

    def expected(self, now_ns: int) -> bool:
        """Return whether further requests come about as often as ever while those are here that are here."""
        here = self._spend(now_ns)
        if self._spent_ns <= 0.0:
            return True
        return self._came_with[here] + 1.0 >= 0.5 * self._came / self._spent_ns * self._spent_ns_with[here]

    def _spend(self, now_ns: int) -> int:
        """Count the time since the last call; return the number of requests here, `MOST_HERE` at most."""
        here = min(self.here, MOST_HERE)
        if now_ns > self._since_ns:
            spent_ns = float(now_ns - self._since_ns)
            self._since_ns = now_ns
            self._spent_ns_with[here] += spent_ns
            self._spent_ns += spent_ns
            if now_ns - self._fade_ns >= _HALF_LIFE_NS:
                self._fade(0.5 ** ((now_ns - self._fade_ns) / _HALF_LIFE_NS))
                self._fade_ns = now_ns
        return here

    def _fade(self, part: float) -> None:
        """Keep `part` of everything that was counted."""
        self._came *= part
        self._spent_ns *= part
        for here in range(MOST_HERE + 1):
            self._came_with[here] *= part
            self._spent_ns_with[here] *= part

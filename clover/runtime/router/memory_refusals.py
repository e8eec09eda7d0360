"""Requests for which workers had no memory: whether to ask them to come again, or to tell them that it is of no use.

Want of memory may pass, so a request that met it is answered 503 and when to come back.  One whose rows are too large
for the memory of a worker meets it every time, and its client, if it does as it is told, would ask without end.  So it
is remembered which rows were refused: by a digest, as a client need not name its requests or keep its connection.  Only
a request that came when it had been asked to counts as another try, so that many equal ones at a time do not condemn
each other.  What is remembered is forgotten `_KEPT_NS` after the last refusal: a want that comes so much later than the
last one is another, and equal rows that meet it are not to pay for the first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from clover.runtime.memory.input_digest import InputDigests

WAITS_S = (1.0, 4.0)
"""When a request shall come back after its first refusal for want of memory, and after its second; the next is its
last."""
_KEPT_NS = 60_000_000_000
_MOST = 1024
"""So many requests are remembered, those that were refused last."""


@dataclass(slots=True)
class _Refusal:
    """How often a request was refused, and when the last time was."""

    times: int
    at_ns: int


class MemoryRefusals:
    """The requests of one family for which workers had no memory lately."""

    def __init__(self, digests: InputDigests) -> None:
        self._digests = digests
        self._refusals: OrderedDict[tuple[int, int], _Refusal] = OrderedDict()

    def retry_after_s(self, slots: list[int], arrival_ns: int, now_ns: int) -> float | None:
        """Count a request whose rows are in `slots`, which arrived at `arrival_ns` and found no memory; return the
        seconds after which it shall come back, None if it was refused too often."""
        while self._refusals and now_ns - next(iter(self._refusals.values())).at_ns > _KEPT_NS:
            self._refusals.popitem(last=False)
        key = self._digests.digest(slots[0]), len(slots)  # the first row tells requests apart well enough
        refusal = self._refusals.get(key)
        if refusal is None:
            refusal = self._refusals[key] = _Refusal(1, now_ns)
            if len(self._refusals) > _MOST:
                self._refusals.popitem(last=False)
        elif refusal.times > len(WAITS_S) or arrival_ns >= refusal.at_ns + WAITS_S[refusal.times - 1] * 1e9:
            refusal.times, refusal.at_ns = refusal.times + 1, now_ns
            self._refusals.move_to_end(key)
        return WAITS_S[refusal.times - 1] if refusal.times <= len(WAITS_S) else None

"""Whether the SLO is held while rows wait for fuller batches.

The plan chooses a wait by what the profile says batches take.  If the machine is slower, because other programs use its
cores for instance, the p95 misses the SLO.  Waiting is then the first thing to give up, before a faster plan.

The p95 that clients see covers the last `WINDOW_S`.  So it counts from that long after rows began to wait, and once
`SLO_LOOKS` polls in a row saw it above the SLO.  Then no row of the family waits for `FIRST_HOLD_S`.  After that the
wait is tried again, if the p95 meanwhile is at most `ROOM` of the SLO.  The next hold is twice as long, up to
`LONGEST_HOLD_S`; after waits that went well for `WELL_S` it is the first one again.  If the next deployment is rolled
back, one from before the hold comes back with its waits: that is a reason to plan too.

(If no other row can come, the router lets no row wait: `clover.runtime.router.state.Company`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from clover.control.state.arrivals import WINDOW_S
from clover.control.state.slo.keeper import SLO_LOOKS
from clover.types import Routing

FIRST_HOLD_S = 300.0
LONGEST_HOLD_S = 3600.0
WELL_S = 1800.0
ROOM = 0.5


@dataclass(frozen=True, kw_only=True)
class WaitSight:
    """What is known of a family in one poll: its routing in force (None: nothing is), the p95 that clients see (None:
    nobody was answered), and whether it surely misses the SLO (`late`)."""

    now_s: float
    routing: Routing | None
    p95_ms: float | None
    slo_ms: float
    late: bool

    @property
    def wait_ms(self) -> dict[str, float]:
        """How long rows wait, by variant, of those that do."""
        waits = self.routing.wait_ms if self.routing is not None else {}
        return {variant: wait_ms for variant, wait_ms in waits.items() if wait_ms > 0.0}


class WaitWatch:
    """The waits of one family: whether they are `held` back for now."""

    def __init__(self) -> None:
        self.held = False
        self._until_s = 0.0
        self._hold_s = FIRST_HOLD_S
        self._wait_ms: Mapping[str, float] = {}
        self._waiting_s = math.inf  # since when some row or other waits
        self._late = 0

    def observe(self, seen: WaitSight) -> str:
        """Judge the waits in force by what is seen; return why to plan, in words, empty if there is no reason."""
        begin = bool(seen.wait_ms) and not self._wait_ms
        if seen.wait_ms != self._wait_ms:
            self._wait_ms = seen.wait_ms
            self._waiting_s = min(self._waiting_s, seen.now_s) if self._wait_ms else math.inf
        self._late = self._late + 1 if seen.late and seen.now_s >= self._waiting_s + WINDOW_S else 0
        if self.held:
            again = f"rows of {', '.join(self._wait_ms)} wait again" if begin else ""  # a plan was rolled back, say
            return self._held(seen) or again
        if not self._wait_ms:
            return ""
        if self._late >= SLO_LOOKS:
            self.held, self._until_s = True, seen.now_s + self._hold_s
            self._hold_s = min(2.0 * self._hold_s, LONGEST_HOLD_S)
            return f"rows of {', '.join(self._wait_ms)} waited while the SLO was missed"
        if seen.now_s >= self._waiting_s + WELL_S:
            self._hold_s = FIRST_HOLD_S
        return ""

    def _held(self, seen: WaitSight) -> str:
        if seen.now_s < self._until_s:
            return ""
        if seen.p95_ms is not None and seen.p95_ms > ROOM * seen.slo_ms:
            self._until_s = seen.now_s + self._hold_s
            return ""
        self.held = False
        self._waiting_s = seen.now_s if self._wait_ms else math.inf
        return "rows may wait for company again"

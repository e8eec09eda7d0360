"""Whether rows should wait for fuller batches: whether that gathers company, and whether the SLO is held all the same.

**Company.**  A wait gathers the rows that come meanwhile, and they come if many clients send theirs whatever becomes of
the others.  A client that sends its next request once the last one is answered (a loop over a data set, most load
tests) sends none meanwhile.  N such clients have N rows here at most, which are soon together; the rest of the wait
then slows all of them down for nothing.  Both kinds are told apart by the sizes of the batches of the variant whose
rows wait.  Of clients that send independently 1 + K rows are in a batch, K of Poisson's distribution with the mean
*rate x wait*:

- *too few*: the mean of K is less than `LEAST` of that, at the rate of the same batches;
- *too alike*: the variance of K is less than `ALIKE` of its mean, where it should be as large.

Either has to be said by `BATCHES` batches.  Batches that are mostly as large as they may be say nothing, as they do not
wait to the end.

**The SLO.**  A wait is planned into what the profile says batches take.  If the machine is slower, for other programs
on its cores say, the p95 misses the SLO; rows that need not wait are the first thing to give up then, before a faster
plan.  What clients see trails behind by `WINDOW_S`, so it counts from then on after rows began to wait, and once
`SLO_LOOKS` looks in a row saw it.

For either reason no row of the family waits for `FIRST_HOLD_S`.  Then it is tried again, if the p95 meanwhile is at
most `ROOM` of the SLO, and the next hold is twice as long, up to `LONGEST_HOLD_S`; the first one again after waits that
went well for `WELL_S`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from clover.control.arrivals import WINDOW_S
from clover.control.triggers import SLO_LOOKS
from clover.types import Routing

BATCHES = 300
LEAST = 0.5
ALIKE = 0.35
"""Over `BATCHES` batches of independent clients the measured part is off by 0.13 (one sigma), of few rows too."""
LEAST_S = 3.0
FIRST_HOLD_S = 300.0
LONGEST_HOLD_S = 3600.0
WELL_S = 1800.0
ROOM = 0.5
_FULL = 0.8  # of the largest batch: above it in the mean, batches often leave because they are full


@dataclass(frozen=True, kw_only=True)
class WaitSight:
    """What is known of a family at one look: its routing in force (None: nothing is), the rows that any batch holds at
    most, the p95 that clients see (None: nobody was answered), and whether it surely misses the SLO (`late`)."""

    now_s: float
    routing: Routing | None
    largest: int
    p95_ms: float | None
    slo_ms: float
    late: bool

    @property
    def wait_ms(self) -> dict[str, float]:
        """How long rows wait, by variant."""
        return self.routing.wait_ms if self.routing is not None else {}


class WaitWatch:
    """The waits of one family: whether they are `held` back for now, and the batches that were counted."""

    def __init__(self) -> None:
        self.held = False
        self._until_s = 0.0
        self._hold_s = FIRST_HOLD_S
        self._wait_ms: Mapping[str, float] = {}
        self._waiting_s = math.inf  # since when some row or other waits
        self._late = 0
        self._since_s = 0.0
        self._sizes: dict[str, dict[int, float]] = {}

    def count(self, served: Mapping[tuple[str, str, int], tuple[float, float]]) -> None:
        """Count the batches of `WorkReport.served` since the last look."""
        for (variant, _, rows), (batches, _) in served.items():
            if variant in self._sizes:
                sizes = self._sizes[variant]
                sizes[rows] = sizes.get(rows, 0.0) + batches

    def look(self, seen: WaitSight) -> str:
        """Judge the waits in force by what was counted and is seen; return why to plan, in words, empty if there is no
        reason."""
        if seen.wait_ms != self._wait_ms:
            self._wait_ms = seen.wait_ms
            self._begin(seen.now_s)
            self._waiting_s = min(self._waiting_s, seen.now_s) if self._sizes else math.inf
        self._late = self._late + 1 if seen.late and seen.now_s >= self._waiting_s + WINDOW_S else 0
        if self.held:
            return self._held(seen)
        if not self._sizes:
            return ""
        if self._late >= SLO_LOOKS:
            return self._hold(seen, "while the SLO was missed")
        if seen.now_s >= self._waiting_s + WELL_S:
            self._hold_s = FIRST_HOLD_S
        for variant, sizes in self._sizes.items():
            if sum(sizes.values()) >= BATCHES and seen.now_s >= self._since_s + LEAST_S:
                most = seen.routing.largest.get(variant, 0) if seen.routing is not None else 0
                seconds = seen.now_s - self._since_s
                why = _futile(sizes, 1e-3 * seen.wait_ms[variant], seconds, most or seen.largest)
                self._begin(seen.now_s)
                return self._hold(seen, f"in vain: {why}") if why else ""
        return ""

    def _hold(self, seen: WaitSight, why: str) -> str:
        self.held, self._until_s = True, seen.now_s + self._hold_s
        self._hold_s = min(2.0 * self._hold_s, LONGEST_HOLD_S)
        return f"rows of {', '.join(self._sizes)} waited {why}"

    def _held(self, seen: WaitSight) -> str:
        if seen.now_s < self._until_s:
            return ""
        if seen.p95_ms is not None and seen.p95_ms > ROOM * seen.slo_ms:
            self._until_s = seen.now_s + self._hold_s
            return ""
        self.held = False
        self._waiting_s = seen.now_s if self._sizes else math.inf
        return "rows may wait for company again"

    def _begin(self, now_s: float) -> None:
        self._since_s = now_s
        self._sizes = {variant: {} for variant, wait_ms in self._wait_ms.items() if wait_ms > 0.0}


def _futile(sizes: Mapping[int, float], wait_s: float, seconds: float, most: int) -> str:
    """Return why a wait that led to batches of `sizes` in `seconds` brought nothing, in words; empty if it did."""
    batches = sum(sizes.values())
    rows = sum(size * count for size, count in sizes.items())
    mean = rows / batches
    if mean > _FULL * most:
        return ""
    company, expected = mean - 1.0, rows / seconds * wait_s
    if company < LEAST * expected:
        return f"{company:.2f} others came in {1e3 * wait_s:.3g} ms, and not {expected:.2f}"
    spread = sum(count * (size - mean) ** 2 for size, count in sizes.items()) / batches
    return f"batches had {mean:.1f} rows each time, as clients wait for answers" if spread < ALIKE * company else ""

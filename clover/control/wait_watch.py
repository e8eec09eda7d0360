"""Whether rows that wait gather company.  Those of clients that wait for each answer do not.

A wait gathers the rows that come meanwhile, and they come if many clients send theirs whatever becomes of the others.
A client that sends its next request once the last one is answered (a loop over a data set, most load tests) sends none
meanwhile.  N such clients have N rows here at most, which are soon together; the rest of the wait then slows all of
them down for nothing.  Both kinds are told apart by the sizes of the batches of the variant whose rows wait.  Of
clients that send independently 1 + K rows are in a batch, K of Poisson's distribution with the mean *rate x wait*:

- *too few*: the mean of K is less than `LEAST` of that, at the rate of the same batches;
- *too alike*: the variance of K is less than `ALIKE` of its mean, where it should be as large.

If `BATCHES` batches say either, no row of the family waits for `FIRST_HOLD_S`; then it is tried again, and the next
hold is twice as long, up to `LONGEST_HOLD_S`.  Batches that are mostly as large as they may be say nothing, as they do
not wait to the end.
"""

from __future__ import annotations

from collections.abc import Mapping

from clover.types import Routing

BATCHES = 300
LEAST = 0.5
ALIKE = 0.35
"""Over `BATCHES` batches of independent clients the measured part is off by 0.13 (one sigma), of few rows too."""
LEAST_S = 3.0
FIRST_HOLD_S = 60.0
LONGEST_HOLD_S = 3600.0
_FULL = 0.8  # of the largest batch: above it in the mean, batches often leave because they are full


class WaitWatch:
    """The waits of one family: whether they are `held` back for now, and the batches that were counted."""

    def __init__(self) -> None:
        self.held = False
        self._until_s = 0.0
        self._hold_s = FIRST_HOLD_S
        self._wait_ms: Mapping[str, float] = {}
        self._since_s = 0.0
        self._sizes: dict[str, dict[int, float]] = {}

    def count(self, served: Mapping[tuple[str, str, int], tuple[float, float]]) -> None:
        """Count the batches of `WorkReport.served` since the last look."""
        for (variant, _, rows), (batches, _) in served.items():
            if variant in self._sizes:
                sizes = self._sizes[variant]
                sizes[rows] = sizes.get(rows, 0.0) + batches

    def look(self, now_s: float, routing: Routing | None, largest: int) -> str:
        """Judge the waits of `routing`, which is in force (None: nothing is), by what was counted until `now_s`
        (monotonic); return why to plan, in words, empty if there is no reason.  `largest`: rows that any batch holds at
        most."""
        wait_ms = routing.wait_ms if routing is not None else {}
        if wait_ms != self._wait_ms:
            self._wait_ms = wait_ms
            self._begin(now_s)
        if self.held:
            self.held = now_s < self._until_s
            return "" if self.held else "rows may wait for company again"
        for variant, sizes in self._sizes.items():
            if sum(sizes.values()) < BATCHES or now_s < self._since_s + LEAST_S:
                continue
            most = routing.largest.get(variant, largest) if routing is not None else largest
            why = _futile(sizes, 1e-3 * wait_ms[variant], now_s - self._since_s, most or largest)
            self._begin(now_s)
            if why:
                self.held, self._until_s = True, now_s + self._hold_s
                self._hold_s = min(2.0 * self._hold_s, LONGEST_HOLD_S)
                return f"rows of {variant} waited in vain: {why}"
            self._hold_s = FIRST_HOLD_S
            break
        return ""

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

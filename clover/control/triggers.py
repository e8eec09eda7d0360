"""When to plan again: what has to move, by how much, and for how long.

Everything is compared with what the last plan was made for, not with the last look, so a slow drift counts in full and
noise around a planned value never does.  A change of intensity or rate counts once it exceeds its relative limit (a
rate also has to move by a row a second: a trickle doubles by chance).  A p95 above the SLO has to last `SLO_LOOKS`
looks, a queue has to grow for `QUEUE_LOOKS` looks, a missing worker has to stay away `WORKER_LOOKS` looks: workers that
die are restarted by the fleet, and short bursts pass.  After a trigger those counts start anew.

An SLO that stays at risk is planned for ever more rarely: after the first plan for it the next one comes in
`FIRST_SPACING_S` (what clients see of a plan trails by most of that), then after four times as long each time, up to
`LONGEST_SPACING_S`, so that an SLO that cannot be met makes at most ten plans an hour (`decided`).  Another outcome
starts that anew; another reason to plan, or `MET_LOOKS` looks in a row that saw no risk, end it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from clover.types import Reading

SLO_LOOKS = 3
QUEUE_LOOKS = 5
WORKER_LOOKS = 5
LEAST_RATE_CHANGE = 1.0
LEAST_QUEUE = 16.0
RETRY_S = 10.0
RISK = "SLO at risk"
FIRST_SPACING_S = 15.0
LONGEST_SPACING_S = 900.0
_SPARSER = 4.0
MET_LOOKS = 10
_AGAIN = "held back before"


@dataclass(frozen=True)
class Observation:
    """What the controller saw of a family at one look.  `missing`: workers of the deployment that are not ready.

    `p95_ms` is None also if it is not surely above the SLO; with `awaited` the SLO's pressure will plan for it."""

    now_s: float
    g_per_kwh: float
    rate: float
    p95_ms: float | None
    queue_rows: float
    missing: int
    awaited: bool = False


class Triggers:
    """The triggers of one family, with what its last plan was made for."""

    def __init__(self) -> None:
        self.planned_intensity: Reading | None = None
        self.planned_rate = 0.0
        self.planned_missing = 0
        self.again_s: float | None = None
        self._late = 0
        self._growing = 0
        self._away = 0
        self._queue_rows = 0.0
        self._calm = 0
        self._outcome: Hashable = None
        """What the last plan for an SLO at risk came to; None if another reason to plan came since."""
        self._spacing_s = 0.0
        self._spaced_until_s = -math.inf

    def planned(self, intensity: Reading, rate: float, missing: int = 0) -> None:
        """Note what a plan was made for: the intensity, the rate (rows/s) and the number of missing workers."""
        self.planned_intensity = intensity
        self.planned_rate = rate
        self.planned_missing = missing
        self.again_s = None
        self._late = self._growing = self._away = 0

    def again(self, at_s: float) -> None:
        """Ask for a plan at `at_s` (monotonic) even if nothing moves: something was held back or failed."""
        self.again_s = at_s if self.again_s is None else min(self.again_s, at_s)

    def decided(self, trigger: str, outcome: Hashable, now_s: float) -> None:
        """Note the outcome of the plan that was made for `trigger`."""
        same = outcome == self._outcome
        if not trigger.startswith(RISK):
            if trigger != _AGAIN or not same:  # another reason, or the same reason with another outcome
                self._unspace()
            return
        self._outcome = outcome
        self._spacing_s = min(_SPARSER * self._spacing_s, LONGEST_SPACING_S) if same else FIRST_SPACING_S
        self._spaced_until_s = now_s + self._spacing_s

    def _unspace(self) -> None:
        self._outcome = None
        self._spacing_s = 0.0
        self._spaced_until_s = -math.inf

    def _moved(self, rate: float, rate_change: float) -> bool:
        moved = abs(rate - self.planned_rate)
        return moved > rate_change * self.planned_rate and moved >= LEAST_RATE_CHANGE

    def check(self, seen: Observation, *, slo_ms: float, intensity_change: float, rate_change: float) -> str:
        """Return why to plan now, in words; empty if there is no reason."""
        late = seen.p95_ms is not None and seen.p95_ms > slo_ms
        self._late = self._late + 1 if late else 0
        grows = seen.queue_rows > self._queue_rows and seen.queue_rows >= LEAST_QUEUE
        self._growing = self._growing + 1 if grows else 0
        self._queue_rows = seen.queue_rows
        self._calm = 0 if late or grows else self._calm + 1
        if self._calm >= MET_LOOKS:
            self._unspace()
        spaced = seen.now_s < self._spaced_until_s
        self._away = self._away + 1 if seen.missing != self.planned_missing else 0
        if self.planned_intensity is None:
            return "start"
        if self._away >= WORKER_LOOKS:
            return f"worker capacity changed: {seen.missing} missing"
        if self._late >= SLO_LOOKS and not spaced and not seen.awaited:
            self._late = 0
            return f"{RISK}: p95 {seen.p95_ms:.2f} ms exceeds {slo_ms:.2f} ms"
        if self._growing >= QUEUE_LOOKS and not spaced:
            self._growing = 0
            return f"{RISK}: the queue grows ({seen.queue_rows:.0f} rows)"
        planned_g = self.planned_intensity.g_per_kwh
        if abs(seen.g_per_kwh - planned_g) > intensity_change * max(planned_g, 1.0):
            return f"intensity moved from {planned_g:.1f} to {seen.g_per_kwh:.1f} g/kWh"
        if self._moved(seen.rate, rate_change):
            return f"rate moved from {self.planned_rate:.1f} to {seen.rate:.1f} rows/s"
        if self.again_s is not None and seen.now_s >= self.again_s:
            return _AGAIN
        return ""

"""When to plan again: what has to move, by how much, and for how long.

Everything is compared with what the last plan was made for, not with the last poll.  So a slow drift counts in full,
and noise around a planned value never does.  A change of intensity or rate counts once it exceeds its relative limit; a
rate also has to move by a row a second, because a trickle doubles by chance.  A worker has to be missing in
`WORKER_LOOKS` polls, because the fleet restarts workers that die; after a trigger that count starts anew.

A missed SLO is answered by its pressure (`clover.control.state.slo.pressure`).
"""

from __future__ import annotations

from dataclasses import dataclass

from clover.types import Reading

WORKER_LOOKS = 5
INTENSITY_CHANGE = 0.05
"""Relative: it follows every step of a grid of half hours, and plans nothing for what a provider corrects later."""
RATE_CHANGE = 0.25
"""Relative: chance moves a steady rate by less, and plans leave workers time to spare."""
LEAST_RATE_CHANGE = 1.0
RETRY_S = 10.0


@dataclass(frozen=True)
class Observation:
    """What the controller saw of a family in one poll.  `missing`: workers of the deployment that are not ready."""

    now_s: float
    g_per_kwh: float
    rate: float
    missing: int


class Triggers:
    """The triggers of one family, with what its last plan was made for."""

    def __init__(self) -> None:
        self.planned_intensity: Reading | None = None
        self.planned_rate = 0.0
        self.planned_missing = 0
        self.again_s: float | None = None
        self._away = 0

    def record_plan(self, intensity: Reading, rate: float, missing: int = 0) -> None:
        """Record what a plan was made for: the intensity, the rate (rows/s) and the number of missing workers."""
        self.planned_intensity = intensity
        self.planned_rate = rate
        self.planned_missing = missing
        self.again_s = None
        self._away = 0

    def again(self, at_s: float) -> None:
        """Ask for a plan at `at_s` (monotonic) even if nothing moves, because the last plan was held back or failed."""
        self.again_s = at_s if self.again_s is None else min(self.again_s, at_s)

    def _moved(self, rate: float) -> bool:
        moved = abs(rate - self.planned_rate)
        return moved > RATE_CHANGE * self.planned_rate and moved >= LEAST_RATE_CHANGE

    def check(self, seen: Observation, *, follows_grid: bool = True) -> str:
        """Return why to plan now, in words; empty if there is no reason.  Unless the family `follows_grid`, a change of
        intensity is none."""
        self._away = self._away + 1 if seen.missing != self.planned_missing else 0
        if self.planned_intensity is None:
            return "start"
        if self._away >= WORKER_LOOKS:
            return f"worker capacity changed: {seen.missing} missing"
        planned_g = self.planned_intensity.g_per_kwh
        if follows_grid and abs(seen.g_per_kwh - planned_g) > INTENSITY_CHANGE * max(planned_g, 1.0):
            return f"intensity moved from {planned_g:.1f} to {seen.g_per_kwh:.1f} g/kWh"
        if self._moved(seen.rate):
            return f"rate moved from {self.planned_rate:.1f} to {seen.rate:.1f} rows/s"
        if self.again_s is not None and seen.now_s >= self.again_s:
            return "the last plan was held back or failed"
        return ""

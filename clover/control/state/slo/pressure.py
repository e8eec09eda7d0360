"""The pressure of a missed SLO: plans take services to be slower than profiled, and load workers less.

A plan is made for what the profile says, and a profile may be wrong.  If the p95 stays above the SLO although the plan
in force predicts otherwise, a factor rises, and the next plan takes every service to be slower by it.  The highest
utilisation falls by the square root of the factor.  Example: at a factor of 1.21 every batch is planned to take 21 %
longer, and a limit of 80 % becomes 80 % / 1.1 = 73 %.  If a faster plan exists, the next plan is that one.

*Raised* only on evidence: in a row of `SURE_S` the p95 was above the SLO, all of it later than a trailing window after
the last change of what runs, at no more load than was planned for, and while no earlier queue is worked off.  It rises
by as much as the p95 exceeds the prediction, within `STEPS`, up to `MOST`.

*Not raised* if the plan in force is known to miss the SLO: it is the least bad one already.  Nor after `FUTILE` raises
that brought nothing, that is, no other plan or none with a lower p95.  So the factor does not wind up.

*Lowered* halfway to 1, no sooner than `FIRST_HOLD_S` after the last change, once 95 % of the windows since then leave
room for it.  If the SLO is missed after that, the next hold is twice as long, up to `LONGEST_HOLD_S`, so that too low a
factor is tried ever more rarely.  If the corrected profile itself comes to say that services are slower, the factor
falls by as much at once.  It does not survive a restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from clover.control.state.arrivals import WINDOW_S
from clover.control.state.slo.windows import SloWindows
from clover.types import Assignment, Plan, Routing

RISK = "SLO at risk"
LEAST_QUEUE = 16.0
"""Rows: fewer that wait are no queue."""
SURE_S = WINDOW_S
STEPS = (1.15, 1.5)
MOST = 3.0
FUTILE = 2
FIRST_HOLD_S = 3600.0
LONGEST_HOLD_S = 8 * 3600.0
_BETTER = 0.95
_DRAINED = 0.9
_NONE = 1.1  # a factor no higher than this is given up
_ROOM = 0.95
_LEAST_WINDOWS = 30


@dataclass(frozen=True, kw_only=True)
class SloSight:
    """What is known of a family in one poll: the p95 that clients see, whether it is surely `late`, what runs, and
    whether no more arrives than was planned for.  `plan` is None if nothing runs; `service_ms`: mean milliseconds of a
    row by itself on the workers that run, as plans know them; `bound`: why no plan may change what runs, empty if one
    may."""

    now_s: float
    slo_ms: float
    p95_ms: float | None
    late: bool
    queue_rows: float
    as_planned: bool
    deployment: tuple[Assignment, ...]
    routing: Routing | None
    plan: Plan | None
    service_ms: float
    bound: str

    @property
    def promised(self) -> bool:
        """Whether the plan in force is predicted to meet the SLO."""
        return self.plan is not None and (self.plan.feasible or self.plan.prediction.p95_ms <= self.slo_ms)


class SloPressure:
    """The factor of one family, and when it changes."""

    def __init__(self) -> None:
        self.factor = 1.0
        """By how much plans take services to be slower than profiled."""
        self._runs: tuple[tuple[Assignment, ...], Routing | None] = ((), None)
        self._service_ms = math.nan
        self._changed_s = -math.inf
        self._late_s = math.nan  # since when the evidence lasts
        self._late_rows = 0.0
        self._raised: tuple[float, float] | None = None  # p95 (milliseconds) and time of the last raise of this miss
        self._futile = 0
        self._moved_s = -math.inf  # when the factor last changed
        self._lowered = False  # whether that was down
        self._hold_s = FIRST_HOLD_S

    @property
    def exhausted(self) -> bool:
        """Whether raising the factor brought nothing, or it cannot rise further."""
        return self._futile >= FUTILE or self.factor >= MOST

    def observe(self, seen: SloSight, windows: SloWindows, closed: bool) -> str:
        """Raise or lower the factor if it is time (`closed`: a window ended just now); return why to plan, in words,
        empty if it stays."""
        if self._runs[0] is not seen.deployment or self._runs[1] is not seen.routing:
            self._runs = seen.deployment, seen.routing
            self._changed_s = seen.now_s
            self._late_s = math.nan
            self._service_ms = seen.service_ms
        elif seen.service_ms > self._service_ms:  # slower than ever with these workers
            self.factor = _worth(self.factor * self._service_ms / seen.service_ms)
            self._service_ms = seen.service_ms
        able = seen.promised and not seen.bound and seen.as_planned
        if not able or not seen.late:
            self._late_s = math.nan
            return self._ease(seen, windows) if closed and not seen.late and not seen.bound else ""
        if seen.now_s < self._changed_s + WINDOW_S:
            return ""
        if math.isnan(self._late_s):
            self._late_s, self._late_rows = seen.now_s, seen.queue_rows
        if seen.now_s - self._late_s < SURE_S:
            return ""
        drains = self._late_rows >= LEAST_QUEUE and seen.queue_rows < _DRAINED * self._late_rows
        self._late_s = math.nan
        return "" if drains else self._raise(seen)

    def forget_misses(self) -> None:
        """Record that the SLO is met again: what the last miss showed no longer counts."""
        self._futile, self._raised = 0, None

    def _raise(self, seen: SloSight) -> str:
        assert seen.plan is not None
        p95_ms = math.inf if seen.p95_ms is None else seen.p95_ms
        if self._raised is not None:
            before_ms, at_s = self._raised
            self._futile = 0 if self._changed_s >= at_s and p95_ms < _BETTER * before_ms else self._futile + 1
        if self.exhausted:
            return ""
        expected_ms = seen.plan.prediction.p95_ms
        step = min(max(p95_ms / max(expected_ms, 1e-6), STEPS[0]), STEPS[1])
        if self._lowered:
            self._hold_s = min(2.0 * self._hold_s, LONGEST_HOLD_S)
        self.factor = min(self.factor * step, MOST)
        self._moved_s, self._lowered = seen.now_s, False
        self._raised = p95_ms, seen.now_s
        p95 = "no answer" if seen.p95_ms is None else f"p95 {p95_ms:.2f} ms"
        return (
            f"{RISK}: {p95} within {seen.slo_ms:.2f} ms, of which {expected_ms:.2f} ms was predicted; services are "
            f"taken to be {self.factor:.2f} x as slow as profiled from now"
        )

    def _ease(self, seen: SloSight, windows: SloWindows) -> str:
        """Lower the factor if it was held long enough and there is room; return why to plan."""
        if seen.now_s - self._moved_s < self._hold_s:
            return ""
        if self.factor == 1.0:
            self._hold_s, self._lowered = FIRST_HOLD_S, False
            return ""
        lower = _worth(1.0 + (self.factor - 1.0) / 2.0)
        part, count = windows.within(seen.slo_ms * lower / self.factor, self._moved_s + WINDOW_S)
        if count < _LEAST_WINDOWS or part < _ROOM:
            return ""
        self.factor, self._moved_s, self._lowered = lower, seen.now_s, True
        return f"SLO held with room: services are taken to be {lower:.2f} x as slow as profiled from now"


def _worth(factor: float) -> float:
    """Return `factor`, or 1 if it is hardly more."""
    return factor if factor > _NONE else 1.0

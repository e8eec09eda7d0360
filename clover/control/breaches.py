"""What a plan is predicted to break, in words for an operator: the accuracy floor, the SLO, the load they hold at.

The prediction is compared with the targets themselves, not with what plans aim at: neither the margin above the floor
nor a floor that the guard has raised stops an operator.
"""

from __future__ import annotations

from clover.control.state.request import Targets
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.types import Plan

_LEAST_POINTS = 5e-3
"""Percent of accuracy that is ignored: it is lost in printing and in the rounding of shares."""

FORCE = '`--force` ("force": true) does it all the same'


def breaches(plan: Plan, targets: Targets, max_utilisation: float) -> str:
    """Return what `plan` is predicted to break, each with its limit; empty if nothing."""
    expected, found = plan.prediction, []
    if expected.accuracy < targets.accuracy_floor - _LEAST_POINTS:
        found.append(
            f"an accuracy of {expected.accuracy:.2f} % is predicted, below the floor of {targets.accuracy_floor:.2f} %"
        )
    if expected.p95_ms > targets.slo_ms:
        p95 = "without bound" if expected.p95_ms >= UNBOUNDED_MS else f"of {expected.p95_ms:.3g} ms"
        found.append(f"a p95 {p95} is predicted, above the SLO of {targets.slo_ms:.3g} ms")
    elif expected.utilisation > max_utilisation + 1e-6:
        found.append(
            f"a utilisation of {expected.utilisation:.0%} is predicted, above the limit of {max_utilisation:.0%} that "
            "the SLO is counted on"
        )
    return " and ".join(found)


def stricter(one: Targets, other: Targets) -> Targets:
    """Return `one`, with the limits of `other` if these are stricter."""
    return Targets(
        slo_ms=min(one.slo_ms, other.slo_ms),
        accuracy_floor=max(one.accuracy_floor, other.accuracy_floor),
        form=one.form,
        lam=one.lam,
    )


def tightened(before: Targets, after: Targets) -> bool:
    """Return whether a limit of `after` is stricter than in `before`.  If none is, `after` cannot be why plans fail."""
    return after.slo_ms < before.slo_ms or after.accuracy_floor > before.accuracy_floor

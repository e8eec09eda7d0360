"""What a device can do for a family, as the planner of one machine plans it: the frontier that a cluster plans with.

The frontier of accuracy and joules a row is searched (`planning.budget.frontiers`) at some rates, from the most that
such a device serves within the SLO down to a twentieth of that.  Lower rates follow as long as a device could be more
accurate with fewer rows.  The search is that of a server's own controller, with MIG layouts, core-sets, mixes and
cascades.  Each plan found is an operating point, with its p95.  A point is dropped if another one beats it in rate,
accuracy, joules a row and p95.

Joules are active ones, since a cluster adds the watts of points to those of idle devices.  What a plan may spare by
putting slices to sleep is left to the node.  Frontiers are kept for as long as the process lives: they depend on the
profile, the kind of device and the objective, and not on the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from clover.cluster.planning.records import DeviceFrontier, OperatingPoint
from clover.planning.budget.frontiers import FrontierPlan, frontier
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import accuracies, problem_of, services_of
from clover.types import DeviceShape, FamilyProfile, ObjectiveConfig, Reading, State

RATES = 12
"""Rates at which a frontier is searched."""
_LOWEST = 1.0 / 20.0  # of the highest rate
_LOWER = 8  # times that the lowest rate is halved, at most, until the best variant answers everything
_NEAR = 0.01  # points
_HALVINGS = 7  # steps by which the highest rate is found
_SAME = 1e-6


def device_frontier(
    profile: FamilyProfile,
    device: DeviceShape,
    objective: ObjectiveConfig,
    *,
    kind: str,
    idle_w: float,
    rates: int = RATES,
) -> DeviceFrontier:
    """Return the operating points of a profile's family on one device, within the SLO of `objective`.

    `kind`: what the cluster calls devices like this one; `idle_w`: the watts of one without rows.  The accuracy
    floor of `objective` does not matter: a cluster has one for all its nodes together.  No points if no rate is served
    within the SLO; PlanError if the profile does not cover the device."""
    key = _Key(profile=profile, device=device, objective=objective, rates=rates)
    return DeviceFrontier(kind=kind, family=profile.family, points=_points(msgspec.json.encode(key)), idle_w=idle_w)


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    """All that the points of a frontier depend on."""

    profile: FamilyProfile
    device: DeviceShape
    objective: ObjectiveConfig
    rates: int


@lru_cache(maxsize=64)
def _points(encoded: bytes) -> tuple[OperatingPoint, ...]:
    key = msgspec.json.decode(encoded, type=_Key)
    highest = _highest_rate(key)
    if highest <= 0.0:
        return ()
    step = _LOWEST ** (1.0 / max(1, key.rates - 1))
    points: list[OperatingPoint] = []
    rate = highest
    for at in range(key.rates):
        rate = highest * step**at
        points += (_point(rate, plan) for plan in _plans(key, rate))
    best = max(accuracies(key.profile).values(), default=0.0)
    for _ in range(_LOWER):
        if max((point.accuracy for point in points), default=0.0) >= best - _NEAR:
            break
        rate *= 0.5
        points += (_point(rate, plan) for plan in _plans(key, rate))
    return drop_dominated(points)


def _state(key: _Key) -> State:
    """Return the state of a machine with one such device, asked for no accuracy of its own."""
    free = msgspec.structs.replace(
        key.objective, accuracy_floor=0.0, accuracy_margin=0.0, cascade_margin=None, accuracy_budget=None, spared_w=None
    )
    return State(
        family=key.profile.family,
        grid_s=0.0,
        intensity=Reading(g_per_kwh=free.reference_g_per_kwh, at_s=0.0, provider="frontier"),
        arrival_rate=1.0,
        p95_ms=None,
        queue_rows=0,
        objective=free,
        profile=key.profile,
        devices=(key.device,),
        running=(),
        routing=None,
    )


def _plans(key: _Key, rate: float) -> Sequence[FrontierPlan]:
    state = _state(key)
    return frontier(problem_of(state), objective_of(state), rate)


def _highest_rate(key: _Key) -> float:
    """Return about the most rows/s that the device serves within the SLO, at whatever accuracy; 0 if none."""
    services = services_of(key.profile)
    capacity = max(
        (
            sum(
                max(
                    (service.capacity() for (_, name), service in services.items() if name == place.profile),
                    default=0.0,
                )
                for place in layout
            )
            for layout in key.device.layouts
        ),
        default=0.0,
    )
    low, high = 0.0, capacity * key.objective.max_utilisation
    if _plans(key, high):
        return high
    for _ in range(_HALVINGS):
        # Where nothing is known yet, rates are tried by their size: the SLO may leave a tenth of the capacity.
        middle = math.sqrt(low * high) if low > 0.0 else high / 3.0
        if _plans(key, middle):
            low = middle
        else:
            high = middle
    return low


def _point(rate: float, plan: FrontierPlan) -> OperatingPoint:
    expected = plan.candidate.prediction
    return OperatingPoint(
        rate=rate, accuracy=plan.point.accuracy, watts=rate * plan.point.grams, p95_ms=expected.p95_ms
    )


def drop_dominated(points: Iterable[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """Return the points that no other one is at least as good as in rate, accuracy, joules a row and p95, by accuracy
    and rate."""
    kept: list[OperatingPoint] = []
    ordered = sorted(points, key=lambda p: (-p.rate, -p.accuracy, p.watts / p.rate, p.p95_ms))
    for point in ordered:
        joules = point.watts / point.rate
        if not any(
            other.rate >= point.rate * (1.0 - _SAME)
            and other.accuracy >= point.accuracy - _SAME
            and other.watts / other.rate <= joules * (1.0 + _SAME)
            and other.p95_ms <= point.p95_ms * (1.0 + _SAME)
            for other in kept
        ):
            kept.append(point)
    return tuple(sorted(kept, key=lambda point: (point.accuracy, point.rate)))

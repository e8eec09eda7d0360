"""The operating points of a node's devices, from what its server says of its profiles.

For each kind of device and family the server's own planner is asked what it would do with one such device: at several
parts of the most rows that the device serves, and at several accuracies from the cheapest variant's to the best one's.
What it answers keeps the SLO by the planner's own model of queues and batches, so that what the cluster plans with is
what the node does.  Points that another one dominates are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from clover.cluster.node import kind_of
from clover.errors import CloverError
from clover.planning.cluster.records import DeviceFrontier, OperatingPoint
from clover.planning.model.problem import accuracies, base_capacity
from clover.policies.demanded import proposed
from clover.types import DeviceShape, FamilyProfile, ObjectiveConfig, Reading, State

log = logging.getLogger("clover.cluster")

RATES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Parts of the most rows/s that a device serves at an accuracy, for which the planner is asked."""
ACCURACIES = (0.0, 0.5, 1.0)
"""Parts of the way from the cheapest accuracy to the best one."""
_STEPS = 7
_MOST = 64.0
_READING = Reading(g_per_kwh=300.0, at_s=0.0, provider="none", method="configured")


def frontiers(told: Mapping[str, Any]) -> tuple[DeviceFrontier, ...]:
    """Return the operating points of every kind of device and family, from a server's answer to `profiles`; blocks for
    seconds.  A family that no plan can be made for on a device is left out, and logged."""
    kinds: dict[str, tuple[DeviceShape, float]] = {}
    for item in told["devices"]:
        shape = msgspec.convert(item, DeviceShape)
        kinds.setdefault(kind_of(shape), (shape, float(told["idle_w"].get(shape.device, 0.0))))
    found = []
    for name, model in told["models"].items():
        profile = msgspec.convert(model["profile"], FamilyProfile)
        objective = msgspec.convert(model["objective"], ObjectiveConfig)
        for kind, (shape, idle_w) in kinds.items():
            points = _points(name, profile, objective, shape)
            if points:
                found.append(DeviceFrontier(kind=kind, family=name, points=points, idle_w=idle_w))
            else:
                log.warning("%s: no plan can be made for it on %s", name, kind)
    return tuple(found)


def _points(
    name: str, profile: FamilyProfile, objective: ObjectiveConfig, shape: DeviceShape
) -> tuple[OperatingPoint, ...]:
    known = sorted(set(accuracies(profile).values()))
    if not known:
        return ()
    asked = msgspec.structs.replace(objective, form="floor", accuracy_budget=None, accuracy_margin=0.0)

    def point(floor: float, rate: float) -> OperatingPoint | None:
        state = State(
            family=name,
            grid_s=0.0,
            intensity=_READING,
            arrival_rate=rate,
            p95_ms=None,
            queue_rows=0,
            objective=msgspec.structs.replace(asked, accuracy_floor=floor),
            profile=profile,
            devices=(msgspec.structs.replace(shape, sleep_w=None, core_sleep_w=None),),
            running=(),
            routing=None,
        )
        try:
            plan = proposed("objective", state)
        except CloverError:
            return None
        seen = plan.prediction
        if not plan.feasible:
            return None
        return OperatingPoint(rate=rate, accuracy=seen.accuracy, watts=seen.energy_j_per_row * rate, p95_ms=seen.p95_ms)

    found: list[OperatingPoint] = []
    for part in ACCURACIES:
        floor = known[0] + part * (known[-1] - known[0])
        most = _most(lambda rate, floor=floor: point(floor, rate), profile, shape)  # type: ignore[misc]
        found += [one for share in RATES if most > 0.0 and (one := point(floor, share * most)) is not None]
    return undominated(found)


def _most(point: Any, profile: FamilyProfile, shape: DeviceShape) -> float:
    """Return about the most rows/s that a device serves within the SLO, by halving between what it does and does not;
    0 if it serves nothing."""
    start = max(base_capacity(profile, (shape,)), 1.0)
    low, high = 0.0, start / 4.0
    while high <= start * _MOST and point(high) is not None:
        low, high = high, 2.0 * high
    if low == 0.0:  # the least that is tried is too much already
        while high > start / 1024.0 and point(high) is None:
            high /= 2.0
        if point(high) is None:
            return 0.0
        low, high = high, 2.0 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if point(middle) is not None else (low, middle)
    return low


def undominated(points: Iterable[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """Return the points that no other one beats in rate, accuracy, watts and p95 at once, by rate; of equal ones, one."""
    kept: list[OperatingPoint] = []
    for one in sorted(set(points), key=lambda p: (-p.rate, -p.accuracy, p.watts, p.p95_ms)):
        if not any(_beats(other, one) for other in kept):
            kept = [other for other in kept if not _beats(one, other)] + [one]
    return tuple(sorted(kept, key=lambda p: (p.rate, p.accuracy)))


def _beats(one: OperatingPoint, other: OperatingPoint) -> bool:
    return (
        one.rate >= other.rate
        and one.accuracy >= other.accuracy
        and one.watts <= other.watts
        and one.p95_ms <= other.p95_ms
    )

"""The operating points of a device that simulations of a cluster take: what the production planner makes of one GPU.

A family of the paper on one A100 with MIG is planned by the production policy for several loads and accuracy floors, as
by a server with that GPU alone; what is predicted of each plan is a point.  Modelled: the profile is the paper's table
(`clover.simulate.families`).
"""

from __future__ import annotations

from collections.abc import Iterator

from clover.planning.cluster.records import DeviceFrontier, OperatingPoint
from clover.planning.model.problem import accuracies, base_capacity
from clover.policies.objective import ObjectivePolicy
from clover.simulate import families, world
from clover.types import ObjectiveConfig, Plan, Reading, State

KIND = "a100-mig"
_PARTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0, 10.0, 14.0, 20.0)
"""Loads that are planned for, as parts of what the best variant on a whole GPU serves."""
_STEPS = 5
_SLO = 1.5
"""Times the p95 of a whole GPU with the best variant at 60 % load."""


def frontier(family: str = "efficientnet") -> DeviceFrontier:
    """Return the points of a family on one GPU that no other point beats in rate, accuracy and watts."""
    machine = world.gpus(1)
    known = families.load(family, machine.shapes)
    found = [point for point in _points(family, machine, known) if point.rate > 0.0]
    kept = [point for at, point in enumerate(found) if not any(_beats(found, other, at) for other in range(len(found)))]
    ordered = sorted(kept, key=lambda point: (point.accuracy, point.rate))
    return DeviceFrontier(kind=KIND, family=family, points=tuple(ordered), idle_w=machine.idle_w)


def _points(family: str, machine: world.SimulatedMachine, known: families.Known) -> Iterator[OperatingPoint]:
    profile = known.profile
    accuracy = accuracies(profile)
    low, high = min(accuracy.values()), max(accuracy.values())
    slo_ms = _SLO * (profile.base.p95_ms or 0.0)
    for part in _PARTS:
        for step in range(_STEPS):
            plan = _plan(family, machine, known, part, low + (high - low) * step / (_STEPS - 1), slo_ms)
            if plan.feasible:
                rate = part * base_capacity(profile, machine.shapes)
                said = plan.prediction
                watts = said.energy_j_per_row * rate
                yield OperatingPoint(rate=rate, accuracy=said.accuracy, watts=watts, p95_ms=said.p95_ms)


def _plan(
    family: str, machine: world.SimulatedMachine, known: families.Known, part: float, floor: float, slo_ms: float
) -> Plan:
    objective = ObjectiveConfig(form="floor", slo_ms=slo_ms, accuracy_floor=floor, lam=None, reference_g_per_kwh=250.0)
    return ObjectivePolicy().propose(
        State(
            family=family,
            grid_s=0.0,
            intensity=Reading(g_per_kwh=250.0, at_s=0.0, provider="none"),
            arrival_rate=part * base_capacity(known.profile, machine.shapes),
            p95_ms=None,
            queue_rows=0,
            objective=objective,
            profile=known.profile,
            devices=machine.shapes,
            running=(),
            routing=None,
        )
    )


def _beats(points: list[OperatingPoint], one: int, other: int) -> bool:
    """Return whether point `one` of the list is no worse than `other`, in joules a row too."""
    a, b = points[one], points[other]
    first, second = ((-own.rate, -own.accuracy, own.watts / own.rate, own.p95_ms) for own in (a, b))
    return (
        one != other
        and all(x <= y + 1e-9 for x, y in zip(first, second, strict=True))
        and (first != second or one < other)
    )

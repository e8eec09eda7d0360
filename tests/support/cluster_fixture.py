"""Small clusters for tests: regions, nodes, a frontier of three variants, and scenarios of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clover.cluster.controller.records import ClusterTerms
from clover.cluster.planning.records import ClusterNode, DeviceFrontier, FamilyTerms, OperatingPoint
from clover.cluster.simulate.scenario import START_S, ClusterScenario
from clover.cluster.simulate.world import ClusterFault, SimulatedRegion

FAMILY = "digits"
REGIONS = ("north", "south", "west")


def frontier(kind: str = "gpu", family: str = FAMILY) -> DeviceFrontier:
    """Return what a device does: 100 rows/s at 92 % to 400 at 88 %, at 40 to 200 W beside 50 W idle."""
    points = [
        OperatingPoint(rate=100.0, accuracy=92.0, watts=160.0, p95_ms=40.0),
        OperatingPoint(rate=50.0, accuracy=92.0, watts=80.0, p95_ms=30.0),
        OperatingPoint(rate=200.0, accuracy=90.0, watts=170.0, p95_ms=30.0),
        OperatingPoint(rate=400.0, accuracy=88.0, watts=180.0, p95_ms=20.0),
    ]
    return DeviceFrontier(kind=kind, family=family, points=tuple(points), idle_w=50.0)


def node(name: str, region: str, devices: int = 2, **other: Any) -> ClusterNode:
    """Return a machine that takes a minute and 6 kJ to wake."""
    given = {"awake_w": 100.0, "wake_s": 60.0, "wake_j": 6000.0, **other}
    return ClusterNode(name=name, region=region, devices={"gpu": devices}, **given)


def terms(nodes: Sequence[ClusterNode], **other: Any) -> ClusterTerms:
    """Return the terms of a family of 90 % within 100 ms."""
    family = FamilyTerms(family=FAMILY, accuracy_floor=90.0, slo_p95_ms=100.0)
    given: dict[str, Any] = {"families": (family,), "frontiers": (frontier(),), "look_s": 60.0, **other}
    return ClusterTerms(nodes=tuple(nodes), **given)


def wave(low: float, high: float, worst_h: float) -> Callable[[float], float]:
    """Return a figure that goes up and down once a day, highest at hour `worst_h`."""

    def at(at_s: float) -> float:
        swing = math.cos(2.0 * math.pi * (at_s / 3600.0 - worst_h) / 24.0)
        return low + 0.5 * (high - low) * (1.0 + swing)

    return at


def region(
    name: str, intensity: Callable[[float], float] | float = 300.0, rate: Callable[[float], float] | float = 200.0
) -> SimulatedRegion:
    """Return a region with an intensity and a demand, each a figure or a function of time."""

    def demand(at_s: float) -> Mapping[str, float]:
        return {FAMILY: rate(at_s) if callable(rate) else rate}

    return SimulatedRegion(name, intensity if callable(intensity) else lambda _: float(intensity), demand)


def scenario(
    hours: float = 6.0, each: int = 3, faults: Sequence[ClusterFault] = (), step_s: float = 60.0, **other: Any
) -> ClusterScenario:
    """Return three regions of `each` nodes, whose grids and loads are highest at different hours."""
    nodes = [node(f"{name}{number}", name) for name in REGIONS for number in range(each)]
    regions = [
        region(name, wave(80.0, 500.0, 8.0 * at), wave(60.0, 240.0, 8.0 * at + 4.0)) for at, name in enumerate(REGIONS)
    ]
    own = terms(nodes, look_s=step_s, **other)
    return ClusterScenario(own, regions, hours * 3600.0, step_s, START_S, tuple(faults))

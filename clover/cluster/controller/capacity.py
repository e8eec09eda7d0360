"""How many rows a second nodes can serve, and whether those that stay can take over what others leave.

A device that mixes operating points of its frontier over time serves, at a mean accuracy of its rows of `floor`,

    most  x r1 + (1 - x) r2     so that     x r1 (a1 - floor) + (1 - x) r2 (a2 - floor) >= 0

which two points reach: all of the time at one that is accurate enough, or a mix of a faster one below and one above.

Families share devices, so capacities of families do not add up.  The **load** of a set of nodes is a sum over families:
demand divided by what all their devices could serve of that family alone.  Up to a load of 1 everything is served.
With rules about regions it is the highest load of any group of origins that may use the same regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from clover.cluster.planning.records import ClusterNode, DeviceFrontier, FamilyTerms, OperatingPoint

Demands = Mapping[tuple[str, str], float]
"""Rows/s by family and origin."""


class Reach:
    """Which regions may answer rows of a family from an origin: by residency, and by latency within the SLO.

    `fastest_ms`: by family, the p95 of its fastest operating point."""

    def __init__(
        self,
        families: Iterable[FamilyTerms],
        regions: Iterable[str],
        latency_ms: Mapping[str, Mapping[str, float]],
        fastest_ms: Mapping[str, float],
    ) -> None:
        self.terms = {own.family: own for own in families}
        self._regions = tuple(regions)
        self._latency_ms = latency_ms
        self._fastest_ms = fastest_ms
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}

    def latency_ms(self, origin: str, region: str) -> float:
        """Return what the way to a region and back adds to an answer; 0 if it is not declared."""
        return self._latency_ms.get(origin, {}).get(region, 0.0)

    def regions(self, family: str, origin: str) -> tuple[str, ...]:
        """Return the regions that may answer, the nearest first; empty if none may."""
        key = (family, origin)
        if key not in self._known:
            own = self.terms[family]
            permitted = own.regions.get(origin, self._regions)
            limit_ms = own.slo_p95_ms - self._fastest_ms.get(family, 0.0)
            near = [name for name in permitted if self.latency_ms(origin, name) <= limit_ms + 1e-9]
            self._known[key] = tuple(sorted(near, key=lambda name: (self.latency_ms(origin, name), name != origin)))
        return self._known[key]

    def least_latency_ms(self, family: str, region: str) -> float:
        """Return the latency from the nearest origin that may use a region."""
        origins = [name for name in self._regions if region in self.regions(family, name)]
        return min((self.latency_ms(name, region) for name in origins), default=0.0)


class Capacity:
    """What nodes can serve by the frontiers of their devices, within the SLO of each family."""

    def __init__(self, frontiers: Iterable[DeviceFrontier], reach: Reach, floors: Mapping[str, float]) -> None:
        self.reach = reach
        self.floors = dict(floors)
        self._points = {(own.kind, own.family): own.points for own in frontiers}
        self._most: dict[tuple[str, str, str, bool], float] = {}

    def node_rate(self, node: ClusterNode, family: str, *, degraded: bool = False) -> float:
        """Return rows/s that all devices of a node serve of one family; `degraded` without regard to its accuracy."""
        return sum(
            count * self._device_rate(kind, family, node.region, degraded) for kind, count in node.devices.items()
        )

    def _device_rate(self, kind: str, family: str, region: str, degraded: bool) -> float:
        key = (kind, family, region, degraded)
        if key not in self._most:
            terms = self.reach.terms[family]
            limit_ms = terms.slo_p95_ms - self.reach.least_latency_ms(family, region)
            points = [item for item in self._points.get((kind, family), ()) if item.p95_ms <= limit_ms + 1e-9]
            self._most[key] = most_rows(points, -math.inf if degraded else self.floors[family])
        return self._most[key]


def keeps(cover: Cover, before: frozenset[str]) -> Callable[[frozenset[str]], bool]:
    """Return what tells whether a part of the nodes `before` keeps every group of origins served: its load is at most
    1, or no higher than it is with all of them."""
    limits = [max(1.0, load) + 1e-9 for load in cover.loads(before)]
    return lambda names: all(load <= limit for load, limit in zip(cover.loads(names), limits, strict=True))


class Cover:
    """The load of changing sets of nodes under `demands`, `survive`: after the loss of the node or region that would be
    missed most.  A set that differs little from the last one costs little."""

    def __init__(
        self, capacity: Capacity, nodes: Iterable[ClusterNode], demands: Demands, survive: str = "none"
    ) -> None:
        self._capacity = capacity
        self._nodes = {node.name: node for node in nodes}
        self._survive = survive
        self._degraded = survive != "none"  # a loss may cost accuracy for a while, no rows
        self._groups = _groups(capacity.reach, demands)
        self._sizes: list[dict[str, dict[str, float]]] = [{family: {} for family in rates} for _, rates in self._groups]
        self._names: frozenset[str] = frozenset()

    def load(self, names: frozenset[str]) -> float:
        """Return the highest load of these nodes (module docstring); infinite if rows have no node at all."""
        return max(self.loads(names), default=0.0)

    def loads(self, names: frozenset[str]) -> list[float]:
        """Return the load of each group of origins that may use the same regions."""
        for name in self._names - names:
            self._count(self._nodes[name], -1.0)
        for name in names - self._names:
            self._count(self._nodes[name], 1.0)
        self._names = names
        return [self._load(rates, sizes) for (_, rates), sizes in zip(self._groups, self._sizes, strict=True)]

    def _count(self, node: ClusterNode, sign: float) -> None:
        part = node.region if self._survive == "region" else node.name
        for (regions, _), sizes in zip(self._groups, self._sizes, strict=True):
            if node.region in regions:
                for family, own in sizes.items():
                    rate = self._capacity.node_rate(node, family, degraded=self._degraded)
                    own[part] = own.get(part, 0.0) + sign * rate

    def _load(self, rates: Mapping[str, float], sizes: Mapping[str, Mapping[str, float]]) -> float:
        total = 0.0
        for family, rate in rates.items():
            size = sizes[family].values()
            room = sum(size) - (max(size, default=0.0) if self._degraded else 0.0)
            total += rate / room if room > 1e-6 else math.inf
        return total


def _groups(reach: Reach, demands: Demands) -> list[tuple[frozenset[str], dict[str, float]]]:
    """Return demand by family of each group of regions: of all origins that may use no other region."""
    sets = {key: frozenset(reach.regions(*key)) for key, rate in demands.items() if rate > 0.0}
    groups = []
    for regions in dict.fromkeys(sets.values()):
        rates: dict[str, float] = {}
        for key, own in sets.items():
            if own <= regions and bool(own) == bool(regions):  # what no region may answer is no load of any other
                rates[key[0]] = rates.get(key[0], 0.0) + demands[key]
        groups.append((regions, rates))
    return groups


def most_rows(points: Collection[OperatingPoint], floor: float) -> float:
    """Return the rows/s of the fastest mix of two points whose rows have a mean accuracy of `floor` points; 0 if none
    reaches it."""
    above = [(item.rate, item.accuracy - floor) for item in points if item.accuracy >= floor - 1e-9]
    best = max((rate for rate, _ in above), default=0.0)
    for fast, short in ((item.rate, floor - item.accuracy) for item in points if item.accuracy < floor - 1e-9):
        for slow, spare in above:
            if fast > slow and spare > 0.0:
                part = slow * spare / (slow * spare + fast * short)
                best = max(best, part * fast + (1.0 - part) * slow)
    return best


def fastest_ms(frontiers: Iterable[DeviceFrontier]) -> dict[str, float]:
    """Return by family the p95 of its fastest operating point on any device."""
    fastest: dict[str, float] = {}
    for frontier in frontiers:
        for point in frontier.points:
            fastest[frontier.family] = min(fastest.get(frontier.family, math.inf), point.p95_ms)
    return fastest

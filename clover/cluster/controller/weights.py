"""From a plan's flows to the shares that the ingress gives to nodes, whatever became of the nodes meanwhile.

A plan says how many rows a second of a family go from clients of an origin to a region, and what each node there
serves.  If all nodes are as planned, the shares follow the plan.  If a node is not ready yet, dead, or slower than
planned, other nodes take its part, and no row goes to a node that cannot answer it:

 1. awake nodes of the same region that the plan does not use, then the region's other nodes, as far as they have room;
 2. nodes of other regions that may answer rows of that origin, in the same order;
 3. if there is no room anywhere: all of them in proportion to what they can serve.  `ClusterShares.missing` says how
    much they cannot serve.

So capacity is never lowered before what replaces it is ready: rows stay on the old nodes until then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clover.cluster.controller.capacity import Reach
from clover.cluster.planning.records import RegionFlow

_LEAST = 1e-9
Rates = dict[str, float]


@dataclass
class Seat:
    """A node as far as shares are concerned.

    `planned`: rows/s by family that the plan gives it; `most`: what it can serve of each at the floor, `peak` without
    regard to accuracy.  `ready`: whether it may be given rows.  `steady`: it may have no more than `kept`, because it
    does not follow the newest target."""

    name: str
    region: str
    planned: Mapping[str, float]
    most: Mapping[str, float]
    ready: bool
    pace: float = 1.0
    steady: bool = False
    kept: Mapping[str, float] = field(default_factory=dict)
    peak: Mapping[str, float] = field(default_factory=dict)

    def limit(self, family: str) -> float:
        """Return the rows/s of a family that it may be given."""
        if not self.ready:
            return 0.0
        planned = min(self.planned.get(family, 0.0), self.peak.get(family, math.inf))
        # A slow node gives up a part of what it has, and takes nothing over from others.
        most = (planned if self.pace < 1.0 and planned else max(self.most.get(family, 0.0), planned)) * self.pace
        return min(most, self.kept.get(family, 0.0)) if self.steady else most


@dataclass
class ClusterShares:
    """Rows/s by (family, origin) and node, and rows/s by family that no node has room for."""

    rates: dict[tuple[str, str], Rates]
    missing: Rates

    def weights(self) -> dict[tuple[str, str], Rates]:
        """Return the rates as parts of 1, without nodes that get nothing."""
        weights = {}
        for key, rates in self.rates.items():
            total = sum(rates.values())
            weights[key] = {name: rate / total for name, rate in rates.items() if rate > _LEAST * total}
        return weights


def share(
    seats: Sequence[Seat],
    flows: Iterable[RegionFlow] | None,
    demands: Mapping[tuple[str, str], float],
    origins: Sequence[str],
    reach: Reach,
) -> ClusterShares:
    """Return the shares of every family and origin.

    `flows`: None if there is no plan, so that all nodes share all rows.  `demands`: rows/s now; more than was planned
    is laid on all."""
    planned: dict[tuple[str, str], Rates] = {}
    for flow in flows or ():
        if flow.rate > 0.0:
            own = planned.setdefault((flow.family, flow.origin), {})
            own[flow.region] = own.get(flow.region, 0.0) + flow.rate
    shares = ClusterShares({}, {})
    for family in reach.terms:
        _Sharing(family, seats, reach, shares, planned=flows is not None).run(
            {origin: planned.get((family, origin), {}) for origin in origins},
            {origin: demands.get((family, origin), 0.0) for origin in origins},
        )
    return shares


class _Sharing:
    """The shares of one family."""

    def __init__(
        self, family: str, seats: Sequence[Seat], reach: Reach, found: ClusterShares, *, planned: bool
    ) -> None:
        self.family, self.reach, self.found, self.planned = family, reach, found, planned
        self.ready = [seat for seat in seats if seat.ready]
        self.seats: dict[str, list[Seat]] = {}
        for seat in seats:
            self.seats.setdefault(seat.region, []).append(seat)
        self.room = {seat.name: seat.limit(family) for seat in self.ready}
        self.left: list[tuple[str, str, float]] = []

    def run(self, planned: Mapping[str, Mapping[str, float]], demands: Mapping[str, float]) -> None:
        """Place the rows of all origins."""
        pieces: list[tuple[str, str, float]] = []
        for origin, flows in planned.items():
            self.found.rates[self.family, origin] = {}
            total = sum(flows.values())
            rise = max(1.0, demands[origin] / total) if total > _LEAST else 0.0
            pieces += [(origin, region, rate * rise) for region, rate in flows.items()]
            if total <= _LEAST and demands[origin] > 0.0:
                self.left.append((origin, origin, demands[origin]))
        self._as_planned(pieces)
        for origin, region, rate in self.left:
            self._lay_on_others(origin, region, rate)
        for origin, flows in planned.items():  # nothing comes from there now; what comes next must go somewhere
            if not self.found.rates[self.family, origin]:
                self._without_rows(origin, flows)

    def _as_planned(self, pieces: Sequence[tuple[str, str, float]]) -> None:
        """Give each region's rows to its nodes in proportion to their plan; what they cannot take is left."""
        into: Rates = {}
        for _, region, rate in pieces:
            into[region] = into.get(region, 0.0) + rate
        parts: dict[str, list[tuple[str, float]]] = {}
        for region, rate in into.items():
            region_seats = self.seats.get(region, [])
            total = sum(seat.planned.get(self.family, 0.0) for seat in region_seats)
            parts[region] = []
            for seat in region_seats:
                wish = rate * seat.planned.get(self.family, 0.0) / total if total > _LEAST else 0.0
                given = min(wish * seat.pace, self.room.get(seat.name, 0.0))
                if given > 0.0:
                    self.room[seat.name] -= given
                    parts[region].append((seat.name, given / rate))
        for origin, region, rate in pieces:
            rates = self.found.rates[self.family, origin]
            for name, part in parts[region]:
                rates[name] = rates.get(name, 0.0) + rate * part
            rest = rate * (1.0 - sum(part for _, part in parts[region]))
            if rest > 1e-6 * rate:
                self.left.append((origin, region, rest))

    def _lay_on_others(self, origin: str, region: str, rate: float) -> None:
        rates = self.found.rates[self.family, origin]
        regions = self.reach.regions(self.family, origin)
        ordered = [region] if region in regions else []
        ordered += [name for name in regions if name != region]
        for name in ordered:
            ready = [seat for seat in self.seats.get(name, []) if seat.ready]
            leaving = [seat for seat in ready if seat.planned.get(self.family, 0.0) <= _LEAST]
            for group in (leaving, [seat for seat in ready if seat not in leaving] if leaving else ready):
                rate -= self._fill(rates, group, rate)
                if rate <= _LEAST:
                    return
        self.found.missing[self.family] = self.found.missing.get(self.family, 0.0) + rate
        able = [seat for seat in self.ready if seat.region in regions]
        self._spread(rates, able, rate)

    def _fill(self, rates: Rates, group: Sequence[Seat], rate: float) -> float:
        """Give up to `rate` rows/s to a group, in proportion to its room; return what was given."""
        room = sum(self.room[seat.name] for seat in group)
        given = min(rate, room)
        if given <= _LEAST:
            return 0.0
        part = given / room
        for seat in group:
            taken = part * self.room[seat.name]
            if taken > 0.0:
                self.room[seat.name] -= taken
                rates[seat.name] = rates.get(seat.name, 0.0) + taken
        return given

    def _spread(self, rates: Rates, group: Sequence[Seat], rate: float) -> None:
        """Give all of `rate` to a group by what its nodes can serve, although they have no room."""
        sizes = {seat.name: max(seat.most.get(self.family, 0.0) * seat.pace, _LEAST) for seat in group}
        total = sum(sizes.values())
        for name, size in sizes.items():
            rates[name] = rates.get(name, 0.0) + rate * size / total

    def _without_rows(self, origin: str, flows: Mapping[str, float]) -> None:
        regions = self.reach.regions(self.family, origin)
        able = [seat for seat in self.ready if seat.region in regions]
        busy = [seat for seat in able if seat.planned.get(self.family, 0.0) > _LEAST and not seat.steady]
        if self.planned and not busy:  # the one node that stays for what may come
            busy = sorted(able, key=lambda seat: (-seat.most.get(self.family, 0.0), seat.name))[:1]
        self._spread(self.found.rates[self.family, origin], busy or able, max(1.0, sum(flows.values())))

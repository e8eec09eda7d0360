"""How many rows a second a family can be served with: what autoscalers that count servers or pods read.

running    what the workers that run serve with the routing in force.  Lane v gets f_v of the rows (in a chain, the part
           that reaches the stage), spread over its workers by their capacity, c_vw.  Of a rate r, worker w is busy for
           r x sum over its variants of f_v / sum over the workers of v of c_vw; the busiest one is the limit.
floor      what the devices serve at most at the accuracy floor: on each device by the layout that takes most rows, and
           on each slice by a variant, by two in shares that meet the floor, or by a chain of the profile.  If variant v
           is asked for f_v of the rows, a slice serves 1 / (sum of f_v / c_v) rows a second.

Example of `floor`: if a slice serves 100 rows/s of `small` or 20 rows/s of `large`, and both get half of the rows, it
serves 1 / (0.5 / 100 + 0.5 / 20) = 33.3 rows/s.

Capacities are those at the best batch size, by the corrected profile.  Neither figure knows the SLO.  At this load rows
wait, so an autoscaler should act at a part of it; 0.7 is a good start.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product

from clover.planning.model.problem import accuracies, services_of
from clover.types import Assignment, DeviceShape, FamilyProfile, Placement, Routing

RowShares = Mapping[str, float]
"""Which part of the rows each variant is asked for; more than one together in a chain."""


def running_capacity(
    workers: Iterable[Assignment],
    capacity: Callable[[Assignment], float],
    routing: Routing,
    reach: Sequence[float] = (),
) -> float:
    """Return the rows a second that `workers` serve with `routing`; 0 if a lane that gets rows has none.

    `capacity` returns rows a second of a worker that serves one variant.  `reach`: the part of the rows that comes to
    each stage of the chain; without it, all that is answered there or later."""
    at: dict[str, dict[Placement, float]] = defaultdict(dict)
    for item in workers:
        at[item.variant][item.placement] = capacity(item)
    busy: dict[Placement, float] = defaultdict(float)
    for variant, part in _flows(routing, reach).items():
        whole = sum(at[variant].values())
        if whole <= 0.0:
            return 0.0
        for placement in at[variant]:
            busy[placement] += part / whole
    return 1.0 / max(busy.values()) if busy else 0.0


def _flows(routing: Routing, reach: Sequence[float]) -> dict[str, float]:
    """Return which part of the rows each variant is asked for, among rows for which any variant is asked."""
    flows = dict(routing.shares)
    if routing.chain:
        later = 0.0
        for stage, variant in reversed(list(enumerate(routing.chain))):
            later += routing.shares.get(variant, 0.0)
            flows[variant] = reach[stage] if reach else later
    return {variant: part for variant, part in flows.items() if part > 0.0}


class FloorCapacity:
    """The rows a second that devices serve at most at an accuracy floor.  It is asked every second and keeps what it
    found for the last profile and floor."""

    def __init__(self) -> None:
        self._profile: FamilyProfile | None = None
        self._asked: tuple[float, float, bool] = (0.0, 0.0, False)
        self._rates: dict[str, float] = {}

    def rows_per_s(
        self,
        profile: FamilyProfile,
        devices: Iterable[DeviceShape],
        *,
        share: float,
        accuracy_floor: float,
        cascades: bool,
    ) -> float:
        """Return the rows a second that `devices` serve, `share` of their time being the family's; `cascades`: chains
        may be used.  0 if nothing reaches the floor, or nothing was measured on a slice of theirs."""
        asked = (share, accuracy_floor, cascades)
        if profile is not self._profile or asked != self._asked:
            self._profile, self._asked = profile, asked
            self._rates = slice_rates(profile, share, list(shares_at(profile, accuracy_floor, cascades=cascades)))
        return sum(
            max(
                (sum(self._rates.get(place.profile, 0.0) for place in layout) for layout in device.layouts), default=0.0
            )
            for device in devices
        )


def shares_at(profile: FamilyProfile, accuracy_floor: float, *, cascades: bool) -> Iterator[RowShares]:
    """Yield the parts of the rows that variants may be asked for, such that answers have `accuracy_floor` percent or
    more on average."""
    accuracy = accuracies(profile)
    above = [variant for variant, percent in accuracy.items() if percent >= accuracy_floor]
    below = [variant for variant, percent in accuracy.items() if percent < accuracy_floor]
    yield from ({variant: 1.0} for variant in above)
    for good, cheap in product(above, below):
        part = (accuracy_floor - accuracy[cheap]) / (accuracy[good] - accuracy[cheap])
        yield {good: part, cheap: 1.0 - part}
    if cascades and profile.cascade is not None:
        for point in profile.cascade.points:
            if point.accuracy >= accuracy_floor:
                yield dict(zip(point.chain, point.reach, strict=True))


def slice_rates(profile: FamilyProfile, share: float, found: Iterable[RowShares]) -> dict[str, float]:
    """Return, by the profile of a slice, the rows a second that a slice serves at most with one of the shares
    `found`."""
    capacity = {key: service.capacity() for key, service in services_of(profile, share).items()}
    shapes = {shape for _, shape in capacity}
    rates = dict.fromkeys(shapes, 0.0)
    for shares in found:
        for shape in shapes:
            seconds = sum(
                part / capacity[variant, shape] if capacity.get((variant, shape)) else math.inf
                for variant, part in shares.items()
                if part > 0.0
            )
            rates[shape] = max(rates[shape], 1.0 / seconds if seconds > 0.0 else 0.0)
    return rates

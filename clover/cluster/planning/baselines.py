"""What a plan of a cluster is compared with, by the same model.

`alone`  Each region serves its own clients: rows stay in their origin's region, or, if that has no nodes or may not be
         used, go to the nearest one that may.  A region's nodes share its rows in proportion to what each can serve;
         each keeps the accuracy floors for its own rows and chooses the modes that emit least.  No node is released,
         so all nodes that are not lost are awake and draw their idle watts.
`awake`  The same without regions: all nodes share all rows in proportion to what each can serve, as a load balancer
         does that knows nothing of grids.  An origin's rows still go only where they may.

Devices are taken as divisible here, so both figures are rather too low than too high.  Rows that a region's nodes have
no room for are not served and emit nothing.  `Baseline.unserved` counts them; unless it is 0 the comparison is unfair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from clover.cluster.planning.arrays import Floats, NodeGroup, ProblemArrays
from clover.cluster.planning.reserve import spare_rates
from clover.cluster.planning.simplex import Columns, LinearProgram

_UNSERVED = 1e4

Shares = dict[tuple[str, int], float]
"""Rows/s by origin and stream."""


@dataclass
class Baseline:
    """Grams/h of all nodes, and rows/s by family that had no room."""

    grams_h: float
    unserved: dict[str, float] = field(default_factory=dict)


@dataclass
class _OwnPlan:
    """What a node does with its share: joules a second of its rows, and rows/s left by family."""

    watts: float
    left: Floats


def alone(instance: ProblemArrays) -> Baseline:
    """Return what each region emits that serves its own clients."""
    spare = spare_rates(instance)
    regions: dict[int, Shares] = defaultdict(dict)
    stranded: dict[str, float] = defaultdict(float)
    for number, stream in enumerate(instance.streams):
        for origin, rate in stream.rates.items():
            home = _home(instance, spare, number, origin)
            if home is None:
                stranded[instance.families[stream.family]] += rate
            else:
                regions[home][origin, number] = rate
    total = Baseline(_idle(instance), dict(stranded))
    for region, shares in regions.items():
        groups = [group for group in instance.groups if group.region == region]
        _share(instance, spare, groups, shares, total)
    return total


def awake(instance: ProblemArrays) -> Baseline:
    """Return what all nodes emit that share all rows in proportion to what each can serve."""
    spare = spare_rates(instance)
    total = Baseline(_idle(instance))
    shares = {(origin, at): rate for at, stream in enumerate(instance.streams) for origin, rate in stream.rates.items()}
    _share(instance, spare, instance.groups, shares, total)
    return total


def _idle(instance: ProblemArrays) -> float:
    return sum(instance.idle_grams(node, waking=False) for group in instance.groups for node in group.nodes)


def _home(instance: ProblemArrays, spare: Floats, stream: int, origin: str) -> int | None:
    """Return the region that serves an origin if each is alone: its own, else the nearest that may."""
    able = {group.region for group in instance.groups if _capacity(instance, spare, group, stream) > 0.0}
    latency = instance.problem.latency_ms.get(origin, {})
    ways = sorted(
        (instance.regions[at] != origin, latency.get(instance.regions[at], 0.0), instance.regions[at], at)
        for at in able
    )
    return ways[0][-1] if ways else None


def _capacity(instance: ProblemArrays, spare: Floats, group: NodeGroup, stream: int) -> float:
    return sum(
        count * float(spare[group.region, instance.kinds.index(kind), stream]) for kind, count in group.devices.items()
    )


def _share(
    instance: ProblemArrays,
    spare: Floats,
    groups: tuple[NodeGroup, ...] | list[NodeGroup],
    shares: Mapping[tuple[str, int], float],
    total: Baseline,
) -> None:
    """Add to `total` what `groups` emit for rows that they share by capacity."""
    capacity = np.array(
        [[_capacity(instance, spare, group, s) for s in range(len(instance.streams))] for group in groups]
    )
    room = (capacity * np.array([[group.size] for group in groups])).sum(axis=0) if len(groups) else np.zeros(0)
    rates = np.zeros(len(instance.streams))
    for (_, stream), rate in shares.items():
        rates[stream] += rate
    known: dict[tuple[object, ...], _OwnPlan] = {}
    for stream in map(int, np.flatnonzero(rates)):
        if not len(groups) or room[stream] <= 0.0:
            family = instance.families[instance.streams[stream].family]
            total.unserved[family] = total.unserved.get(family, 0.0) + float(rates[stream])
            rates[stream] = 0.0
    for at, group in enumerate(groups):
        share = np.divide(rates * capacity[at], room, out=np.zeros_like(rates), where=room > 0.0)
        # Intensity and a correction common to all families only scale what a node emits, so nodes with equal shares
        # have equal plans.
        scale = float(group.correction.max(initial=0.0))
        relative = group.correction / scale if scale > 0.0 else group.correction
        allowed = tuple(stream.allowed[group.region].tobytes() for stream in instance.streams)
        key = (tuple(sorted(group.devices.items())), share.round(9).tobytes(), relative.round(12).tobytes(), allowed)
        if key not in known:
            known[key] = _own(instance, replace(group, correction=relative), share)
        plan = known[key]
        total.grams_h += group.size * scale * plan.watts * float(instance.intensity[group.region]) / 1000.0
        for number in np.flatnonzero(plan.left > 1e-7 * max(1.0, float(share.sum()))):
            family = instance.families[number]
            total.unserved[family] = total.unserved.get(family, 0.0) + group.size * float(plan.left[number])


def _own(instance: ProblemArrays, group: NodeGroup, share: Floats) -> _OwnPlan:
    """Return the plan of one node for its share (rows/s by stream) that uses least energy at its own floors."""
    families, streams = len(instance.families), [int(s) for s in np.flatnonzero(share > 0.0)]
    if not streams:
        return _OwnPlan(0.0, np.zeros(families))
    watts = np.array([mode.joules * group.correction[mode.family] for mode in instance.modes])
    kinds = list(group.devices)
    columns = Columns()
    dear = _UNSERVED * max(1e-6, float(watts.max(initial=0.0)))
    short = [columns.add(dear, [(at, 1.0)]) for at in range(len(streams))]
    surplus = [columns.add(0.0, [(len(streams) + family, -1.0)]) for family in range(families)]
    first = len(streams) + families
    free = [columns.add(0.0, [(first + at, 1.0)]) for at in range(len(kinds))]
    used = []
    for at, number in enumerate(streams):
        stream = instance.streams[number]
        for m in np.flatnonzero(stream.allowed[group.region]):
            mode = instance.modes[m]
            if mode.kind in kinds:
                points = mode.accuracy - float(instance.floors[mode.family])
                device = first + kinds.index(mode.kind)
                columns.add(
                    float(watts[m]), [(at, 1.0), (len(streams) + mode.family, points), (device, 1.0 / mode.rate)]
                )
                used.append(float(watts[m]))
    right = [*(float(share[s]) for s in streams), *[0.0] * families, *(float(group.devices[kind]) for kind in kinds)]
    program = LinearProgram(columns, right, [*short, *surplus, *free])
    program.solve()
    x = program.x
    plan = _OwnPlan(0.0, np.zeros(families))
    for at, number in enumerate(streams):
        plan.left[instance.streams[number].family] += x[at]
    for joules, rate in zip(used, x[first + len(kinds) :], strict=True):
        plan.watts += joules * rate
    return plan

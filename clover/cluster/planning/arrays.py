"""The problem of a cluster as the solver sees it: groups of equal nodes, modes of a device, streams of rows.

`group`   nodes of one region with the same devices, the same idle watts, the same cost of being woken and nearly the
          same correction (mean over families, in steps of 1.5 %, or more if that made too many groups), which are
          planned as one and told apart only when targets are given out.
`mode`    an operating point of a family on a kind of device.  A device in a mode serves up to `rate` rows/s; every row
          costs watts / rate joules, so that one that gets fewer rows uses as many times less beyond its idle watts.
          A point that another one of the same family and kind beats in rate, joules a row, accuracy and for whom it is
          fast enough, is left out.
`stream`  rows of a family whose origins may use the same modes in the same regions.

Rows are those of the busiest moment until a node that is woken at the end of the horizon would be there; intensities
are means over the horizon.  Grams are per hour: watts x g/kWh / 1000.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clover.cluster.planning.records import ClusterNode, ClusterProblem, OperatingPoint
from clover.errors import PlanError

EPSILON = 1e-9
_CORRECTION_STEPS = (math.log(1.015), math.log(1.03), math.log(1.08), math.log(1.2), math.inf)
_MOST_GROUPS = 80  # more are made fewer by coarser steps of the correction
_DEVICES_TOLD_APART = 64  # with more, modes that a mixture of two others beats are left out

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Shape = tuple[int, tuple[tuple[str, int], ...]]
"""A region and how many devices of which kinds a node has there."""


@dataclass(frozen=True)
class Mode:
    """An operating point on a kind of device: rows/s, percent, joules a row, ms; `family` is an index."""

    kind: str
    family: int
    rate: float
    accuracy: float
    joules: float
    p95_ms: float


@dataclass(frozen=True)
class Stream:
    """Rows/s of a family (an index) from origins that may use the same modes in the same regions.

    `rates`: by origin.  `allowed[region, mode]`: whether the promises to these origins let the mode answer there."""

    family: int
    rates: Mapping[str, float]
    allowed: Flags

    @property
    def rate(self) -> float:
        """The rows/s of all its origins."""
        return sum(self.rates.values())


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that are planned as one, in the order in which they are woken.

    `idle_g_h`: grams per hour of one awake node without rows, including its wake-up (spread over the horizon).
    `correction`: the mean correction of its nodes, by family index."""

    region: int
    nodes: tuple[ClusterNode, ...]
    devices: Mapping[str, int]
    idle_g_h: float
    correction: Floats

    @property
    def size(self) -> int:
        """The number of nodes."""
        return len(self.nodes)

    @property
    def shape(self) -> Shape:
        """What the loss of one of its nodes takes away."""
        return self.region, tuple(sorted(self.devices.items()))


@dataclass(frozen=True)
class ProblemArrays:
    """A cluster's problem in arrays; `floors` are the accuracies asked for, `asked` what the terms say."""

    problem: ClusterProblem
    families: tuple[str, ...]
    regions: tuple[str, ...]
    kinds: tuple[str, ...]
    intensity: Floats
    floors: Floats
    asked: Floats
    modes: tuple[Mode, ...]
    streams: tuple[Stream, ...]
    groups: tuple[NodeGroup, ...]
    idle_w: Mapping[str, float]

    @cached_property
    def joules(self) -> Floats:
        """Joules a row by mode, as profiled."""
        return np.array([mode.joules for mode in self.modes])

    @cached_property
    def mode_family(self) -> NDArray[np.int64]:
        """The family of each mode."""
        return np.array([mode.family for mode in self.modes], dtype=np.int64)

    @cached_property
    def mode_kind(self) -> NDArray[np.int64]:
        """The kind of each mode, as an index of `kinds`."""
        return np.array([self.kinds.index(mode.kind) for mode in self.modes], dtype=np.int64)

    @cached_property
    def grams(self) -> Floats:
        """Grams an hour for one row/s, by group and mode."""
        scale = np.array([self.intensity[group.region] / 1000.0 for group in self.groups])
        corrections = np.array([group.correction for group in self.groups]).reshape(
            len(self.groups), len(self.families)
        )
        return np.asarray(scale[:, None] * self.joules[None, :] * corrections[:, self.mode_family])

    def row_grams(self, node: ClusterNode, mode: Mode) -> float:
        """Return grams an hour for one row/s on a node, by its own correction."""
        intensity = self.intensity[self.regions.index(node.region)]
        return float(intensity / 1000.0 * mode.joules * node.correction.get(self.families[mode.family], 1.0))

    def idle_grams(self, node: ClusterNode, *, waking: bool = True) -> float:
        """Return grams an hour of a node that is awake without rows; `waking`: with what waking it costs, spread over
        the horizon, if it is released now."""
        watts = node.awake_w + sum(count * self.idle_w[kind] for kind, count in node.devices.items())
        if waking and node.state == "released":
            watts += node.wake_j / self.problem.horizon_s
        return float(self.intensity[self.regions.index(node.region)] / 1000.0 * watts)


def read(problem: ClusterProblem) -> ProblemArrays:
    """Return the arrays of a problem; PlanError says what in it contradicts itself."""
    _check(problem)
    regions = tuple(grid.name for grid in problem.regions)
    families = tuple(terms.family for terms in problem.terms)
    usable = [node for node in problem.nodes if node.state != "lost"]
    kinds = tuple(sorted({kind for node in usable for kind, count in node.devices.items() if count}))
    idle_w = _idle(problem, kinds)
    modes = _modes(problem, families, kinds, idle_w, sum(sum(node.devices.values()) for node in usable))
    intensity = np.array([mean_intensity(problem, region) for region in range(len(regions))])
    asked = np.array([terms.accuracy_floor for terms in problem.terms])
    reachable = [
        max((mode.accuracy for mode in modes if mode.family == f), default=np.inf) for f in range(len(families))
    ]
    shell = ProblemArrays(
        problem=problem,
        families=families,
        regions=regions,
        kinds=kinds,
        intensity=intensity,
        floors=np.minimum(asked, np.array(reachable)) if families else asked,
        asked=asked,
        modes=modes,
        streams=(),
        groups=(),
        idle_w=idle_w,
    )
    groups = _groups(shell, usable)
    streams = _streams(problem, families, regions, modes)
    return replace(shell, groups=groups, streams=streams)


def mean_intensity(problem: ClusterProblem, region: int) -> float:
    """Return a region's mean gCO2/kWh over the horizon: each value holds until the next one."""
    grid = problem.regions[region]
    end = problem.at_s + problem.horizon_s
    steps = [(problem.at_s, grid.intensity), *((at, value) for at, value in grid.forecast if problem.at_s < at < end)]
    ends = [at for at, _ in steps[1:]] + [end]
    return sum(value * (until - at) for (at, value), until in zip(steps, ends, strict=True)) / problem.horizon_s


def peak_rate(now: float, forecast: Sequence[tuple[float, float]], at_s: float, until_s: float) -> float:
    """Return the most rows/s from now until `until_s`."""
    return max([now, *(rate for at, rate in forecast if at_s < at <= until_s)])


def _check(problem: ClusterProblem) -> None:
    regions = {grid.name for grid in problem.regions}
    families = {terms.family for terms in problem.terms}
    for what, names in (
        ("region", [grid.name for grid in problem.regions]),
        ("node", [node.name for node in problem.nodes]),
        ("family", [terms.family for terms in problem.terms]),
    ):
        twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        if twice:
            raise PlanError(f"the cluster's problem names the {what} {min(twice)!r} twice")
    for node in problem.nodes:
        if node.region not in regions:
            raise PlanError(f"node {node.name!r} is in region {node.region!r}, whose grid is not given")
        if min(node.devices.values(), default=0) < 0 or min(node.awake_w, node.wake_j, node.wake_s) < 0.0:
            raise PlanError(f"node {node.name!r} has a negative count of devices, watts, seconds or joules")
        if any(not value > 0.0 for value in node.correction.values()):
            raise PlanError(f"node {node.name!r} has a correction that is not positive")
    for grid in problem.regions:
        values = [grid.intensity, *(value for _, value in grid.forecast)]
        if not all(math.isfinite(value) and value >= 0.0 for value in values):
            raise PlanError(f"the intensity of region {grid.name!r} is not a number of at least 0")
    for demand in problem.demands:
        if demand.family not in families:
            raise PlanError(f"rows of {demand.family!r} are asked for, but no terms of that family are given")
        values = [demand.rate, *(value for _, value in demand.forecast)]
        if not all(math.isfinite(value) and value >= 0.0 for value in values):
            raise PlanError(f"the demand for {demand.family!r} of {demand.origin!r} is not a number of at least 0")
    for frontier in problem.frontiers:
        for point in frontier.points:
            good = all(map(math.isfinite, (point.rate, point.accuracy, point.watts, point.p95_ms)))
            if not good or point.rate <= 0.0 or point.watts < 0.0:
                where = f"{frontier.family!r} on {frontier.kind!r}"
                raise PlanError(f"the frontier of {where} has a point without rows or with negative watts")
    if not problem.horizon_s > 0.0:
        raise PlanError("the horizon of a cluster's plan must be longer than 0 s")


def _idle(problem: ClusterProblem, kinds: Sequence[str]) -> dict[str, float]:
    """Return the watts of a device without rows by kind: the least that a frontier says, 0 if there is none."""
    idle_w: dict[str, float] = {}
    for frontier in problem.frontiers:
        idle_w[frontier.kind] = min(idle_w.get(frontier.kind, math.inf), frontier.idle_w)
    return {kind: idle_w.get(kind, 0.0) for kind in kinds}


def _modes(
    problem: ClusterProblem, families: Sequence[str], kinds: Sequence[str], idle_w: Mapping[str, float], devices: int
) -> tuple[Mode, ...]:
    """Return the modes of all kinds that no other one beats.  A family whose frontier says more idle watts than that
    of another on the same kind pays the difference with its rows."""
    points: dict[tuple[str, int], list[tuple[OperatingPoint, float]]] = defaultdict(list)
    for frontier in problem.frontiers:
        if frontier.family in families and frontier.kind in kinds:
            extra = frontier.idle_w - idle_w[frontier.kind]
            where = points[frontier.kind, families.index(frontier.family)]
            where += [(point, extra) for point in frontier.points]
    modes = []
    for (kind, family), kind_points in sorted(points.items()):
        slo = problem.terms[family].slo_p95_ms
        limits = sorted(_limits_ms(problem, family))
        rows = [
            Mode(kind, family, point.rate, point.accuracy, (point.watts + extra) / point.rate, point.p95_ms)
            for point, extra in kind_points
            if point.p95_ms <= slo
        ]
        # Of p95 it only matters whose limits it keeps.
        keys = [
            (-mode.rate, -mode.accuracy, mode.joules, float(bisect.bisect_left(limits, mode.p95_ms - EPSILON)))
            for mode in rows
        ]
        kept = [at for at in range(len(rows)) if not any(_beats(keys, other, at) for other in range(len(rows)))]
        if devices > _DEVICES_TOLD_APART:
            kept = _drop_mixed(rows, [key[3] for key in keys], kept)
        modes += [rows[at] for at in kept]
    return tuple(modes)


def _drop_mixed(rows: Sequence[Mode], tiers: Sequence[float], kept: Sequence[int]) -> list[int]:
    """Return the modes of `kept` that no two others beat if devices are divided between them: as many rows, as
    accurate, for no more joules, and as fast."""
    left = list(kept)
    for at in kept:
        others = [other for other in left if other != at and tiers[other] <= tiers[at]]
        if not others:
            continue
        rate = np.array([rows[other].rate for other in others])
        mode = rows[at]
        # Each must be at least 0 of the mixture: linear in the part t of the one device, 1 - t of the other.
        needs = [
            rate - mode.rate,
            rate * (np.array([rows[other].accuracy for other in others]) - mode.accuracy),
            rate * (mode.joules - np.array([rows[other].joules for other in others])),
        ]
        low, high = np.zeros((len(others), len(others))), np.ones((len(others), len(others)))
        for need in needs:
            one, two = need[:, None], need[None, :]
            slope = one - two
            with np.errstate(divide="ignore", invalid="ignore"):
                edge = -two / slope
            low = np.where(slope > 0.0, np.maximum(low, edge), low)
            high = np.where(slope < 0.0, np.minimum(high, edge), high)
            high = np.where((slope == 0.0) & (two < 0.0), -1.0, high)
        if (low <= high).any():
            left.remove(at)
    return left


def _limits_ms(problem: ClusterProblem, family: int) -> set[float]:
    """Return the p95 that devices may have for rows of a family, of all origins in all regions."""
    terms = problem.terms[family]
    origins = {demand.origin for demand in problem.demands if demand.family == terms.family}
    regions = [grid.name for grid in problem.regions]
    return {
        terms.slo_p95_ms - problem.latency_ms.get(origin, {}).get(region, 0.0)
        for origin in origins
        for region in terms.regions.get(origin, tuple(regions))
    }


def _beats(keys: Sequence[tuple[float, ...]], one: int, other: int) -> bool:
    """Say whether one mode is no worse than another in all; of two that are equal the first one beats."""
    first, second = keys[one], keys[other]
    return one != other and all(x <= y for x, y in zip(first, second, strict=True)) and (first != second or one < other)


def _groups(shell: ProblemArrays, usable: Sequence[ClusterNode]) -> tuple[NodeGroup, ...]:
    for step in _CORRECTION_STEPS:
        gathered = _group_nodes(shell, usable, step)
        if len(gathered) <= _MOST_GROUPS:
            break
    return _in_order(shell, gathered)


def _group_nodes(
    shell: ProblemArrays, usable: Sequence[ClusterNode], step: float
) -> dict[tuple[object, ...], list[ClusterNode]]:
    groups: dict[tuple[object, ...], list[ClusterNode]] = defaultdict(list)
    for node in usable:
        logs = [math.log(node.correction.get(family, 1.0)) for family in shell.families]
        at = round(sum(logs) / len(logs) / step) if logs else 0
        devices = tuple(sorted((kind, count) for kind, count in node.devices.items() if count))
        groups[(node.region, devices, round(shell.idle_grams(node), 9), node.state == "released", at)].append(node)
    return groups


def _in_order(shell: ProblemArrays, gathered: Mapping[tuple[object, ...], list[ClusterNode]]) -> tuple[NodeGroup, ...]:
    awake_before = {target.node for target in shell.problem.before if target.awake}
    groups = []
    for (region, devices, *_), nodes in sorted(gathered.items(), key=lambda item: repr(item[0])):
        table = np.array([[node.correction.get(family, 1.0) for family in shell.families] for node in nodes])
        means = table.mean(axis=1) if shell.families else np.zeros(len(nodes))
        order = sorted(
            range(len(nodes)), key=lambda at: (nodes[at].name not in awake_before, means[at], nodes[at].name)
        )
        groups.append(
            NodeGroup(
                region=shell.regions.index(str(region)),
                nodes=tuple(nodes[at] for at in order),
                devices=dict(devices),  # type: ignore[call-overload]
                idle_g_h=shell.idle_grams(nodes[0]),
                correction=table.mean(axis=0),
            )
        )
    return tuple(groups)


def _streams(
    problem: ClusterProblem, families: Sequence[str], regions: Sequence[str], modes: Sequence[Mode]
) -> tuple[Stream, ...]:
    until = problem.at_s + problem.horizon_s + max((node.wake_s for node in problem.nodes), default=0.0)
    rates: dict[tuple[int, str], float] = defaultdict(float)
    for demand in problem.demands:
        key = families.index(demand.family), demand.origin
        rates[key] += peak_rate(demand.rate, demand.forecast, problem.at_s, until)
    gathered: dict[tuple[int, bytes], tuple[dict[str, float], Flags]] = {}
    for (family, origin), rate in sorted(rates.items()):
        if rate <= EPSILON:
            continue
        terms = problem.terms[family]
        permitted = terms.regions.get(origin, tuple(regions))
        allowed = np.zeros((len(regions), len(modes)), dtype=bool)
        for at, region in enumerate(regions):
            if region in permitted:
                left_ms = terms.slo_p95_ms - problem.latency_ms.get(origin, {}).get(region, 0.0)
                for number, mode in enumerate(modes):
                    allowed[at, number] = mode.family == family and mode.p95_ms <= left_ms + EPSILON
        gathered.setdefault((family, allowed.tobytes()), ({}, allowed))[0][origin] = rate
    return tuple(Stream(family, origins, allowed) for (family, _), (origins, allowed) in gathered.items())

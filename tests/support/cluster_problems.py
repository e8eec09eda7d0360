"""Problems of clusters made by chance, the best plan of a small one, and a check of a plan: none of it the planner's
code.

Both the check and the best plan are written as mixed integer programs for SciPy's HiGHS, a node at a time, without
groups, streams, or a list of modes from which the beaten ones are gone.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from clover.cluster.planning.records import (
    ClusterNode,
    ClusterPlan,
    ClusterProblem,
    DeviceFrontier,
    FamilyTerms,
    OperatingPoint,
    RegionDemand,
    RegionGrid,
)

TOLERANCE = 1e-5


def random_problem(
    seed: int,
    *,
    nodes: int = 3,
    devices: int = 2,
    regions: int = 2,
    families: int = 1,
    kinds: int = 1,
    load: float = 0.4,
    survive: Literal["none", "node", "region"] = "none",
    spread: float = 0.0,
    confined: float = 0.0,
    far: float = 0.3,
) -> ClusterProblem:
    """Return a problem; `load`: of what all devices serve at about the floor, `spread`: of corrections, `confined`:
    part of origins that may only use some regions, `far`: latency between regions as a part of the SLO, at most."""
    draw = np.random.default_rng(seed)
    names = [f"region{at}" for at in range(regions)]
    frontiers = [
        _frontier(draw, f"kind{kind}", f"family{family}") for kind in range(kinds) for family in range(families)
    ]
    made = tuple(
        ClusterNode(
            name=f"node{at:04d}",
            region=names[at % regions] if at < regions else names[int(draw.integers(regions))],
            devices={f"kind{int(draw.integers(kinds))}": devices},
            awake_w=float(draw.uniform(100.0, 400.0)) if spread else 250.0,
            wake_j=40_000.0,
            state="ready" if draw.random() < 0.7 else "released",
            correction={
                f"family{family}": float(np.exp(draw.normal(0.0, spread))) for family in range(families) if spread
            },
        )
        for at in range(nodes)
    )
    terms, demands = [], []
    for family in range(families):
        own = [frontier for frontier in frontiers if frontier.family == f"family{family}"]
        accuracies = sorted(point.accuracy for point in own[0].points)
        floor = float(draw.uniform(accuracies[1], accuracies[-2]))
        within = {name: tuple(sorted({name, names[int(draw.integers(regions))]})) for name in names}
        terms.append(
            FamilyTerms(
                family=f"family{family}",
                accuracy_floor=floor,
                slo_p95_ms=200.0,
                regions={name: allowed for name, allowed in within.items() if draw.random() < confined},
            )
        )
        serves = min(
            max((point.rate for point in frontier.points if point.accuracy >= floor), default=math.inf)
            for frontier in own
        )
        rows = load * nodes * devices / families * (serves if math.isfinite(serves) else 50.0)
        for name, part in zip(names, draw.dirichlet(np.full(regions, 2.0)), strict=True):
            demands.append(RegionDemand(family=f"family{family}", origin=name, rate=float(rows * part)))
    return ClusterProblem(
        at_s=0.0,
        regions=tuple(RegionGrid(name=name, intensity=float(draw.uniform(20.0, 700.0))) for name in names),
        nodes=made,
        frontiers=tuple(frontiers),
        demands=tuple(demands),
        terms=tuple(terms),
        latency_ms={
            one: {other: 0.0 if one == other else float(draw.uniform(5.0, 200.0 * far)) for other in names}
            for one in names
        },
        survive=survive,
    )


def _frontier(draw: np.random.Generator, kind: str, family: str) -> DeviceFrontier:
    """Return three or four variants, each at its highest rate and, faster to answer, at half of it."""
    base, joules, accuracy = draw.uniform(200.0, 1200.0), draw.uniform(0.1, 0.5), draw.uniform(70.0, 85.0)
    points = []
    for _ in range(int(draw.integers(3, 5))):
        points.append(OperatingPoint(rate=base, accuracy=accuracy, watts=base * joules, p95_ms=140.0))
        points.append(OperatingPoint(rate=base / 2, accuracy=accuracy, watts=base / 2 * joules * 1.1, p95_ms=70.0))
        slower = draw.uniform(0.35, 0.8)
        base, joules, accuracy = (
            base * slower,
            joules / slower * draw.uniform(0.9, 1.1),
            accuracy + draw.uniform(0.5, 4.0),
        )
    return DeviceFrontier(kind=kind, family=family, points=tuple(points), idle_w=55.0)


class _Program:
    """A mixed integer program that is written down by names."""

    def __init__(self) -> None:
        self.names: dict[object, int] = {}
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.whole: list[int] = []
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def variable(self, name: object, *, cost: float = 0.0, upper: float = np.inf, whole: bool = False) -> int:
        """Add a variable from 0 to `upper`."""
        self.names[name] = len(self.cost)
        self.cost.append(cost)
        self.upper.append(upper)
        self.whole.append(int(whole))
        return self.names[name]

    def keep(self, terms: Sequence[tuple[int, float]], *, least: float = -np.inf, most: float = np.inf) -> None:
        """Add a constraint on a sum."""
        row: dict[int, float] = defaultdict(float)
        for column, value in terms:
            row[column] += value
        self.rows.append((row, least, most))

    def solve(self) -> Any:
        """Return SciPy's result, whose `fun` is None if there is no solution; skip the test without SciPy."""
        pytest.importorskip("scipy", reason="HiGHS comes with SciPy: pip install 'clover-inference[analysis]'")
        from scipy import optimize, sparse

        if not self.cost:
            return None
        entries = [(at, column, value) for at, (row, _, _) in enumerate(self.rows) for column, value in row.items()]
        at, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
        matrix = sparse.csr_matrix((values, (at, columns)), shape=(len(self.rows), len(self.cost)))
        limits = optimize.LinearConstraint(matrix, [row[1] for row in self.rows], [row[2] for row in self.rows])
        return optimize.milp(
            np.array(self.cost),
            integrality=np.array(self.whole),
            bounds=optimize.Bounds(0.0, np.array(self.upper)),
            constraints=limits if self.rows else None,
            options={"mip_rel_gap": 1e-7},
        )


def points_of(problem: ClusterProblem, kind: str, family: str) -> list[OperatingPoint]:
    """Return all points of a family on a kind of device."""
    return [point for item in problem.frontiers if (item.kind, item.family) == (kind, family) for point in item.points]


def idle_w(problem: ClusterProblem, node: ClusterNode) -> float:
    """Return the watts of a node that is awake without rows, what waking it costs spread over the horizon."""
    watts = node.awake_w + (node.wake_j / problem.horizon_s if node.state == "released" else 0.0)
    for kind, count in node.devices.items():
        watts += count * next(item.idle_w for item in problem.frontiers if item.kind == kind)
    return watts


def left_ms(problem: ClusterProblem, terms: FamilyTerms, origin: str, region: str) -> float:
    """Return the p95 that devices of a region may have for an origin's rows; below 0 if they may not go there."""
    if region not in terms.regions.get(origin, tuple(grid.name for grid in problem.regions)):
        return -1.0
    return terms.slo_p95_ms - problem.latency_ms.get(origin, {}).get(region, 0.0)


def spare_rate(problem: ClusterProblem, kind: str, terms: FamilyTerms, p95_ms: float) -> float:
    """Return the rows/s that one device divides its time for at the accuracy floor."""
    usable = [point for point in points_of(problem, kind, terms.family) if point.p95_ms <= p95_ms + 1e-9]
    best = 0.0
    for one, other in itertools.product(usable, repeat=2):
        for part in _parts(one, other, terms.accuracy_floor):
            served = part * one.rate + (1.0 - part) * other.rate
            points = part * one.rate * one.accuracy + (1.0 - part) * other.rate * other.accuracy
            if points >= terms.accuracy_floor * served - 1e-9:
                best = max(best, served)
    return best


def _parts(one: OperatingPoint, other: OperatingPoint, floor: float) -> Iterator[float]:
    yield from (0.0, 1.0)
    a, b = one.rate * (one.accuracy - floor), other.rate * (other.accuracy - floor)
    if a * b < 0.0:
        yield b / (b - a)


def best_plan(problem: ClusterProblem) -> float | None:
    """Return the least grams/h of any plan that keeps every promise; None if there is none."""
    program = _Program()
    intensity = {grid.name: grid.intensity / 1000.0 for grid in problem.regions}
    terms = {item.family: item for item in problem.terms}
    served: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    awake = {}
    most = sum(demand.rate for demand in problem.demands)
    for node in problem.nodes:
        here = intensity[node.region]
        awake[node.name] = program.variable(
            ("awake", node.name), cost=here * idle_w(problem, node), upper=1, whole=True
        )
        for kind, count in node.devices.items():
            counts = []
            for family, at in _all_points(problem, kind):
                point = points_of(problem, kind, family)[at]
                number = program.variable((node.name, kind, family, at), upper=count, whole=True)
                counts.append((number, 1.0))
                used = ("used", family, node.region, kind, at)
                if used not in program.names:
                    program.variable(used, upper=1, whole=True)
                program.keep([(number, 1.0), (program.names[used], -float(count))], most=0.0)
                joules = point.watts / point.rate * node.correction.get(family, 1.0)
                loads = []
                for demand in problem.demands:
                    if demand.family != family or left_ms(problem, terms[family], demand.origin, node.region) < 0.0:
                        continue
                    load = program.variable((node.name, kind, family, at, demand.origin), cost=here * joules)
                    loads.append((load, 1.0))
                    served[family, demand.origin].append((load, 1.0))
                    points[family].append((load, point.accuracy - terms[family].accuracy_floor))
                    comes = ("comes", family, demand.origin, node.region)
                    if comes not in program.names:
                        program.variable(comes, upper=1, whole=True)
                    program.keep([(load, 1.0), (program.names[comes], -most)], most=0.0)
                    if point.p95_ms > left_ms(problem, terms[family], demand.origin, node.region) + 1e-9:
                        program.keep([(program.names[comes], 1.0), (program.names[used], 1.0)], most=1.0)
                program.keep([*loads, (number, -point.rate)], most=0.0)
            program.keep([*counts, (awake[node.name], -float(count))], most=0.0)
    for demand in problem.demands:
        program.keep(served[demand.family, demand.origin], least=demand.rate, most=demand.rate)
    for family in terms:
        program.keep(points[family], least=0.0)
    if problem.survive != "none":
        for node in problem.nodes:
            _survive(program, problem, {node.name}, awake, awake[node.name])
    if problem.survive == "region":
        for grid in problem.regions:
            _survive(program, problem, {node.name for node in problem.nodes if node.region == grid.name}, awake, None)
    found = program.solve()
    return None if found is None or found.fun is None else float(found.fun)


def _all_points(problem: ClusterProblem, kind: str) -> Iterator[tuple[str, int]]:
    for item in problem.terms:
        for at in range(len(points_of(problem, kind, item.family))):
            yield item.family, at


def _survive(
    program: _Program, problem: ClusterProblem, lost: set[str], awake: dict[str, int], condition: int | None
) -> None:
    """Add that all rows that may go elsewhere have room once `lost` is lost, if `condition` is 1."""
    shares: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for node in problem.nodes:
        if node.name in lost:
            continue
        for kind, count in node.devices.items():
            used = []
            for item in problem.terms:
                for demand in problem.demands:
                    if demand.family == item.family:
                        rate = spare_rate(problem, kind, item, left_ms(problem, item, demand.origin, node.region))
                        if rate > 0.0:
                            time = program.variable(
                                ("time", *sorted(lost), node.name, kind, item.family, demand.origin)
                            )
                            used.append((time, 1.0))
                            shares[item.family, demand.origin].append((time, rate))
            program.keep([*used, (awake[node.name], -float(count))], most=0.0)
    for demand in problem.demands:
        gathered = shares[demand.family, demand.origin]
        if gathered and condition is None:
            program.keep(gathered, least=demand.rate)
        elif gathered and condition is not None:
            program.keep([*gathered, (condition, -demand.rate)], least=0.0)


def check_plan(problem: ClusterProblem, plan: ClusterPlan) -> list[str]:
    """Return what is wrong with a plan: promises that it breaks, sums that do not agree, grams that are too low."""
    faults = []
    nodes = {node.name: node for node in problem.nodes}
    if sorted(target.node for target in plan.targets) != sorted(nodes):
        faults.append("targets are not one for each node")
    arriving: dict[tuple[str, str], float] = defaultdict(float)
    leaving: dict[tuple[str, str], float] = defaultdict(float)
    strictest: dict[tuple[str, str], float] = {}
    terms = {item.family: item for item in problem.terms}
    for flow in plan.flows:
        left = left_ms(problem, terms[flow.family], flow.origin, flow.region)
        if left < 0.0:
            faults.append(f"{flow.family} of {flow.origin} may not go to {flow.region}")
        strictest[flow.family, flow.region] = min(left, strictest.get((flow.family, flow.region), math.inf))
        arriving[flow.family, flow.region] += flow.rate
        leaving[flow.family, flow.origin] += flow.rate
    total = max(1.0, sum(demand.rate for demand in problem.demands))
    for family in terms:
        missing = sum(d.rate - leaving[family, d.origin] for d in problem.demands if d.family == family)
        if abs(missing - plan.unserved.get(family, 0.0)) > TOLERANCE * total:
            faults.append(f"{missing} rows/s of {family} are not sent anywhere")
        over = [d.origin for d in problem.demands if d.family == family and leaving[family, d.origin] > d.rate + 1e-3]
        faults += [f"more of {family} leaves {origin} than there is" for origin in over]
    given: dict[tuple[str, str], float] = defaultdict(float)
    weighted: dict[str, tuple[float, float]] = dict.fromkeys(terms, (0.0, 0.0))
    grams = 0.0
    known: dict[object, float | None] = {}
    for target in plan.targets:
        node = nodes[target.node]
        if not target.awake:
            if target.rates or target.devices:
                faults.append(f"{target.node} is released and has rows")
            continue
        if node.state == "lost":
            faults.append(f"{target.node} is lost and has a target")
        if sum(target.devices.values()) > sum(node.devices.values()):
            faults.append(f"{target.node} has fewer devices")
        for family, rate in target.rates.items():
            given[family, node.region] += rate
            rows, points = weighted[family]
            weighted[family] = rows + rate, points + rate * target.accuracy[family]
            if target.p95_ms[family] > strictest[family, node.region] + 1e-6:
                faults.append(f"{target.node} may be slower than {family} allows")
        key = (
            tuple(sorted(node.devices.items())),
            tuple(sorted((name, round(rate, 9)) for name, rate in target.rates.items())),
            tuple(sorted(target.devices.items())),
            tuple(sorted(target.accuracy.items())),
            tuple(sorted(target.p95_ms.items())),
            tuple(sorted(node.correction.items())),
        )
        if key not in known:
            known[key] = _node_watts(problem, node, target)
        watts = known[key]
        if watts is None:
            faults.append(f"{target.node} cannot do what it is asked: {target}")
            continue
        grid = next(grid for grid in problem.regions if grid.name == node.region)
        grams += grid.intensity / 1000.0 * (watts + idle_w(problem, node))
    for (family, region), rate in arriving.items():
        if abs(rate - given[family, region]) > TOLERANCE * total:
            faults.append(f"{rate} rows/s of {family} go to {region}, whose nodes expect {given[family, region]}")
    for family, (rows, points) in weighted.items():
        if points < (terms[family].accuracy_floor - TOLERANCE) * rows and "cannot be kept" not in plan.reason:
            faults.append(f"{family} has {points / rows} of {terms[family].accuracy_floor}")
    if plan.grams_h < grams * (1.0 - TOLERANCE):
        faults.append(f"{plan.grams_h} g/h are said, and {grams} are the least of these targets")
    if plan.bound_g_h > plan.grams_h * (1.0 + 1e-6):
        faults.append(f"the bound {plan.bound_g_h} is above the plan's {plan.grams_h}")
    if "would have no room" not in plan.reason and not plan.unserved:
        faults += _reserves(problem, plan)
    return faults


def _node_watts(problem: ClusterProblem, node: ClusterNode, target: Any) -> float | None:
    """Return the least watts of the rows of a target; None if the node's devices cannot do it."""
    program = _Program()
    for family, rate in target.rates.items():
        loads, points, counts = [], [], []
        for kind, count in node.devices.items():
            for at, point in enumerate(points_of(problem, kind, family)):
                if point.p95_ms <= target.p95_ms[family] + 1e-6:
                    number = program.variable(("count", kind, family, at), upper=count, whole=True)
                    joules = point.watts / point.rate * node.correction.get(family, 1.0)
                    load = program.variable(("load", kind, family, at), cost=joules)
                    program.keep([(load, 1.0), (number, -point.rate)], most=1e-6 * rate)
                    loads.append((load, 1.0))
                    points.append((load, point.accuracy))
                    counts.append((number, 1.0))
        program.keep(loads, least=rate, most=rate)
        program.keep(points, least=(target.accuracy[family] - 1e-7) * rate)
        program.keep(counts, most=float(target.devices[family]))
    for kind, count in node.devices.items():
        program.keep([(at, 1.0) for name, at in program.names.items() if name[:2] == ("count", kind)], most=count)  # type: ignore[index]
    if not target.rates:
        return 0.0
    found = program.solve()
    return None if found is None or found.fun is None else float(found.fun)


def _reserves(problem: ClusterProblem, plan: ClusterPlan) -> list[str]:
    """Return the losses that the plan's awake nodes do not survive."""
    if problem.survive == "none":
        return []
    awake = {target.node for target in plan.targets if target.awake}
    nodes = [node for node in problem.nodes if node.name in awake]
    lost: list[tuple[str, set[str]]] = []
    seen = set()
    for node in nodes:
        if (node.region, tuple(sorted(node.devices.items()))) not in seen:
            seen.add((node.region, tuple(sorted(node.devices.items()))))
            lost.append((node.name, {node.name}))
    if problem.survive == "region":
        lost += [(grid.name, {n.name for n in problem.nodes if n.region == grid.name}) for grid in problem.regions]
    faults = []
    for name, gone in lost:
        program = _Program()
        on = {node.name: program.variable(("on", node.name), upper=float(node.name in awake)) for node in problem.nodes}
        alone = _exempt(problem, gone)
        _survive(program, _without(problem, alone), gone, on, None)
        found = program.solve()
        if found is None or found.fun is None:
            faults.append(f"the loss of {name} is not survived")
    return faults


def _exempt(problem: ClusterProblem, gone: set[str]) -> set[tuple[str, str]]:
    """Return the rows that nothing is left for, whoever is awake."""
    found = set()
    for item in problem.terms:
        for demand in problem.demands:
            if demand.family == item.family:
                able = [
                    node
                    for node in problem.nodes
                    if node.name not in gone
                    and node.state != "lost"
                    and any(
                        spare_rate(problem, kind, item, left_ms(problem, item, demand.origin, node.region)) > 0.0
                        for kind in node.devices
                    )
                ]
                if not able:
                    found.add((demand.family, demand.origin))
    return found


def _without(problem: ClusterProblem, rows: set[tuple[str, str]]) -> ClusterProblem:
    import msgspec

    kept = tuple(demand for demand in problem.demands if (demand.family, demand.origin) not in rows)
    return msgspec.structs.replace(problem, demands=kept)

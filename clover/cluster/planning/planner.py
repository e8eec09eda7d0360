"""Plan a cluster: which nodes are awake, which rows each gets, on how many devices, at which accuracy.

What is minimised is grams per hour: of each awake node, its region's mean intensity over the horizon times the watts of
the machine, of its devices without rows, and of its rows.  What must hold: all rows of the busiest moment ahead are
served; the rows of a family have, all together, its accuracy floor; each row is answered in a region that its origin
allows, by devices whose p95 plus the way there and back is within the SLO; and what `survive` names may be lost.

The way to it: read the problem into groups, modes and streams (`arrays`), solve it with nodes and devices divisible
(`relaxation`), which also gives the bound, then make whole nodes and devices of that (`rounding`).  A plan in force is
kept unless another one saves more than waking nodes again will cost.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from clover.cluster.planning.arrays import Floats, ProblemArrays, read
from clover.cluster.planning.baselines import alone, awake
from clover.cluster.planning.records import ClusterNode, ClusterPlan, ClusterProblem, NodeTarget, RegionFlow
from clover.cluster.planning.rounding import Rounded
from clover.cluster.planning.solving import solve
from clover.cluster.planning.wording import reason_of


def plan_cluster(problem: ClusterProblem) -> ClusterPlan:
    """Return the plan of a cluster; PlanError if the problem contradicts itself.

    A problem that no plan solves gets the plan that serves most: `unserved` says what is left, `reason` why."""
    instance = read(problem)
    solution = solve(instance)
    by_stream: dict[str, float] = defaultdict(float)
    for stream, rate in zip(instance.streams, solution.unserved, strict=True):
        if rate > 0.0:
            by_stream[instance.families[stream.family]] += float(rate)
    apart, equal = alone(instance), awake(instance)
    flows = _flows(instance, solution.rounded)
    return ClusterPlan(
        at_s=problem.at_s,
        targets=_targets(instance, solution.rounded, flows),
        flows=flows,
        grams_h=_grams(instance, solution.rounded),
        bound_g_h=float(solution.bound_g_h),
        alone_g_h=float(apart.grams_h),
        awake_g_h=float(equal.grams_h),
        reason=reason_of(solution, apart),
        unserved=dict(by_stream),
    )


def _awake_nodes(instance: ProblemArrays, rounded: Rounded) -> list[list[ClusterNode]]:
    return [list(group.nodes[: round(count)]) for group, count in zip(instance.groups, rounded.nodes, strict=True)]


def _deal_devices(instance: ProblemArrays, rounded: Rounded) -> list[list[list[int]]]:
    """Return the modes of the devices of each awake node, by group: modes are dealt like cards, so that nodes of a
    group do about the same and the loss of one takes little of any family."""
    dealt = []
    for g, nodes in enumerate(_awake_nodes(instance, rounded)):
        hands: list[list[int]] = [[] for _ in nodes]
        for at in range(len(instance.kinds)):
            cards = [
                int(m)
                for m in np.flatnonzero(instance.mode_kind == at)
                for _ in range(round(float(rounded.counts[g, m])))
            ]
            for number, card in enumerate(cards):
                hands[number % len(nodes)].append(card)
        dealt.append(hands)
    return dealt


def _targets(instance: ProblemArrays, rounded: Rounded, flows: tuple[RegionFlow, ...]) -> tuple[NodeTarget, ...]:
    rates = _mode_rates(instance, rounded)
    limits = _limits(instance, flows)
    targets: dict[str, NodeTarget] = {}
    for g, (nodes, hands) in enumerate(
        zip(_awake_nodes(instance, rounded), _deal_devices(instance, rounded), strict=True)
    ):
        for node, hand in zip(nodes, hands, strict=True):
            served: dict[str, float] = defaultdict(float)
            points: dict[str, float] = defaultdict(float)
            devices: dict[str, int] = defaultdict(int)
            for m in hand:
                family = instance.families[instance.modes[m].family]
                rate = float(rates[g, m] / rounded.counts[g, m])
                devices[family] += 1
                served[family] += rate
                points[family] += rate * instance.modes[m].accuracy
            accuracy = {family: points[family] / served[family] for family in served if served[family] > 0.0}
            targets[node.name] = NodeTarget(
                node=node.name,
                awake=True,
                rates={family: rate for family, rate in served.items() if rate > 0.0},
                devices={family: count for family, count in devices.items() if served[family] > 0.0},
                accuracy=accuracy,
                p95_ms={family: limits[family, node.region] for family in accuracy},
            )
    return tuple(targets.get(node.name, NodeTarget(node=node.name, awake=False)) for node in instance.problem.nodes)


def _mode_rates(instance: ProblemArrays, rounded: Rounded) -> Floats:
    """Return rows/s by group and mode."""
    rates = np.zeros((len(instance.groups), len(instance.modes)))
    for family in rounded.loads:
        for (g, m, _), rate in family.rows.items():
            rates[g, m] += rate
    return rates


def _limits(instance: ProblemArrays, flows: tuple[RegionFlow, ...]) -> dict[tuple[str, str], float]:
    """Return the p95 in ms that nodes of a region must keep for a family, so that the furthest client has its SLO."""
    slo = {terms.family: terms.slo_p95_ms for terms in instance.problem.terms}
    limits: dict[tuple[str, str], float] = {}
    for flow in flows:
        left_ms = slo[flow.family] - instance.problem.latency_ms.get(flow.origin, {}).get(flow.region, 0.0)
        key = flow.family, flow.region
        limits[key] = min(limits.get(key, left_ms), left_ms)
    return limits


def _flows(instance: ProblemArrays, rounded: Rounded) -> tuple[RegionFlow, ...]:
    """Return who sends where: within a stream, rows stay at home first, then go the shortest ways."""
    flows: dict[tuple[str, str, str], float] = defaultdict(float)
    for number, stream in enumerate(instance.streams):
        family = instance.families[stream.family]
        arrive: dict[str, float] = defaultdict(float)
        for (g, _, at), rate in rounded.loads[stream.family].rows.items():
            if at == number:
                arrive[instance.regions[instance.groups[g].region]] += rate
        total = sum(arrive.values())
        leave = {origin: rate * total / stream.rate for origin, rate in stream.rates.items()}
        latency = instance.problem.latency_ms
        ways = sorted(
            (origin != region, latency.get(origin, {}).get(region, 0.0), origin, region)
            for origin in leave
            for region in arrive
        )
        for _, _, origin, region in ways:
            rate = min(leave[origin], arrive[region])
            if rate > 1e-9 * total:
                flows[family, origin, region] += rate
                leave[origin] -= rate
                arrive[region] -= rate
    return tuple(
        RegionFlow(family=family, origin=origin, region=region, rate=float(rate))
        for (family, origin, region), rate in sorted(flows.items())
    )


def _grams(instance: ProblemArrays, rounded: Rounded) -> float:
    """Return grams/h of a plan, each node with its own correction."""
    rates = _mode_rates(instance, rounded)
    total = 0.0
    for g, (nodes, hands) in enumerate(
        zip(_awake_nodes(instance, rounded), _deal_devices(instance, rounded), strict=True)
    ):
        for node, hand in zip(nodes, hands, strict=True):
            total += instance.idle_grams(node)
            total += sum(instance.row_grams(node, instance.modes[m]) * rates[g, m] / rounded.counts[g, m] for m in hand)
    return float(total)

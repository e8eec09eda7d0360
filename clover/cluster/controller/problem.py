"""When a cluster's controller makes a plan, from what, and whether the plan says anything new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from clover.cluster.controller.capacity import Reach
from clover.cluster.controller.demand import STEP_S
from clover.cluster.controller.memory import ClusterMemory, PlannedFor, words
from clover.cluster.planning.records import ClusterPlan, ClusterProblem, NodeTarget, RegionDemand, RegionGrid

Plan = Callable[[ClusterProblem], ClusterPlan]

_FLOOR_MOVED = 0.03
"""Points that a corrected floor moves until a plan is made for it."""
_FIRST_ROWS_S = 0.1
"""Rows/s of a family that are planned for though fewer come, so that a node is awake for the first row after a rest:
with no node awake there is none to count it, and nothing would wake one."""
_SAME_RATE = 0.03
_SAME_ACCURACY = 0.01


def why_plan(memory: ClusterMemory, now_s: float) -> str:
    """Return why to make a plan now, in words; empty if there is no reason."""
    planned, terms = memory.planned, memory.terms
    if memory.plan is None:
        # Without a plan all nodes share all rows; so a new cluster finds out what comes before it decides anything.
        waits = not any(memory.demand.rates().values()) and now_s - memory.totals.since_s < terms.release_after_s
        return "" if waits else "there is no plan yet"
    nodes = memory.plannable()
    if nodes != planned.nodes:
        gone, come = planned.nodes - nodes, nodes - planned.nodes
        parts = [f"{words(gone)} cannot be used"] if gone else []
        parts += [f"{words(come)} can be used"] if come else []
        return "; ".join(parts)
    rates = memory.demand.rates()
    for family in {key[0] for key in rates}:
        keys = [key for key in rates.keys() | planned.rates.keys() if key[0] == family]
        before = sum(planned.rates.get(key, 0.0) for key in keys)
        moved = sum(abs(rates.get(key, 0.0) - planned.rates.get(key, 0.0)) for key in keys)
        if moved > terms.move_by * before and moved > 0.0:
            return (
                f"demand for {family} moved from {before:.4g} to {sum(rates.get(key, 0.0) for key in keys):.4g} rows/s"
            )
    for region, g_per_kwh in planned.intensities.items():
        reading = memory.readings.get(region)
        if reading is not None and abs(reading.g_per_kwh - g_per_kwh) > terms.move_by * max(g_per_kwh, 1.0):
            return f"the intensity of {region} moved from {g_per_kwh:.0f} to {reading.g_per_kwh:.0f} g/kWh"
    floors = memory.floors()
    for family, floor in planned.floors.items():
        if abs(floors.get(family, floor) - floor) > _FLOOR_MOVED:
            return f"the corrected accuracy floor of {family} moved from {floor:.2f} to {floors[family]:.2f} %"
    if now_s - planned.at_s >= terms.plan_s:
        return f"the last plan is {now_s - planned.at_s:.0f} s old"
    return ""


def problem_of(memory: ClusterMemory, now_s: float) -> ClusterProblem:
    """Return what a plan is made from now."""
    terms = memory.terms
    nodes = memory.members.for_plan()
    floors = memory.floors()
    ahead_s = max(STEP_S, terms.horizon_s + max((node.wake_s for node in nodes), default=0.0))
    grids = [
        RegionGrid(name=name, intensity=g_per_kwh, forecast=memory.forecasts.get(name, ()))
        for name, g_per_kwh in _intensities(memory).items()
    ]
    regions = {grid.name for grid in grids}
    families = {grid.family for grid in terms.families}
    return ClusterProblem(
        at_s=now_s,
        regions=tuple(grids),
        nodes=tuple(node for node in nodes if node.region in regions),
        frontiers=tuple(memory.frontiers.values()),
        demands=_with_first_rows(
            [grid for grid in memory.demand.forecast(now_s, ahead_s) if grid.family in families],
            families,
            memory.regions(),
        ),
        terms=tuple(
            msgspec.structs.replace(grid, accuracy_floor=round(floors[grid.family], 4)) for grid in terms.families
        ),
        latency_ms=terms.latency_ms,
        survive=terms.survive,
        horizon_s=terms.horizon_s,
        before=tuple(grid for name, grid in memory.targets.items() if name in memory.members.members),
    )


def _intensities(memory: ClusterMemory) -> dict[str, float]:
    """Return the newest intensity of each region.  One of which none was ever read counts as the dirtiest of the
    others: its nodes are not taken for clean ones, and not released for want of a figure.  Empty if none is known."""
    rates = {name: reading.g_per_kwh for name, reading in memory.readings.items()}
    return {name: rates.get(name, max(rates.values())) for name in memory.regions()} if rates else {}


def regions_unread(memory: ClusterMemory) -> list[str]:
    """Return the regions with nodes of which no intensity was ever read, although one of others was."""
    regions = {member.node.region for member in memory.members.members.values()}
    return sorted(regions - memory.readings.keys()) if memory.readings else []


def _with_first_rows(
    expected: Sequence[RegionDemand], families: Iterable[str], regions: Iterable[str]
) -> tuple[RegionDemand, ...]:
    """Return the demand with at least `_FIRST_ROWS_S` of each family: from where it came before, else from anywhere."""
    demand = [msgspec.structs.replace(item, rate=max(item.rate, _FIRST_ROWS_S)) for item in expected]
    for family in sorted(set(families) - {item.family for item in expected}):
        demand += [RegionDemand(family=family, origin=origin, rate=_FIRST_ROWS_S) for origin in regions]
    return tuple(demand)


def planned_for(memory: ClusterMemory, now_s: float) -> PlannedFor:
    """Return what a plan that is made now is made for."""
    return PlannedFor(
        at_s=now_s,
        rates=memory.demand.rates(),
        intensities={name: reading.g_per_kwh for name, reading in memory.readings.items()},
        floors=memory.floors(),
        nodes=memory.plannable(),
    )


def plain(plan: ClusterPlan) -> ClusterPlan:
    """Return a plan of plain numbers, whatever a planner calculates with; ValidationError if it is no plan."""
    return msgspec.convert(msgspec.to_builtins(plan, enc_hook=float), ClusterPlan)


def with_all_that_may_help(plan: ClusterPlan, problem: ClusterProblem, reach: Reach) -> ClusterPlan:
    """Return a plan that leaves rows unserved with every node awake that may answer any of them, and others as they
    are."""
    if not any(rate > 0.0 for rate in plan.unserved.values()):
        return plan
    sent: dict[tuple[str, str], float] = {}
    for flow in plan.flows:
        sent[flow.family, flow.origin] = sent.get((flow.family, flow.origin), 0.0) + flow.rate
    regions: set[str] = set()
    for demand in problem.demands:
        if sent.get((demand.family, demand.origin), 0.0) < demand.rate * (1.0 - 1e-3):
            regions.update(reach.regions(demand.family, demand.origin))
    targets = {demand.node: demand for demand in plan.targets}
    for node in problem.nodes:
        own_target = targets.get(node.name)
        if node.region in regions and (own_target is None or not own_target.awake):
            targets[node.name] = NodeTarget(node=node.name, awake=True)
    return msgspec.structs.replace(plan, targets=tuple(targets.values()))


def says_anew(plan: ClusterPlan, before: ClusterPlan | None, targets: Mapping[str, NodeTarget]) -> bool:
    """Return whether a plan asks anything of a node that its target in force does not, or shares rows otherwise."""
    if before is None:
        return True
    new = {target.node: target for target in plan.targets}
    if any(_differ(target, targets.get(name)) for name, target in new.items()):
        return True
    if any(target.awake and name not in new for name, target in targets.items()):
        return True
    flows = {(flow.family, flow.origin, flow.region): flow.rate for flow in plan.flows}
    old = {(flow.family, flow.origin, flow.region): flow.rate for flow in before.flows}
    total = sum(flows.values())
    return sum(abs(flows.get(key, 0.0) - old.get(key, 0.0)) for key in flows.keys() | old.keys()) > _SAME_RATE * total


def _differ(new: NodeTarget, before: NodeTarget | None) -> bool:
    if before is None or new.awake != before.awake:
        return before is not None or new.awake
    if not new.awake:
        return False
    most = max(sum(new.rates.values()), sum(before.rates.values()))
    moved = sum(abs(new.rates.get(key, 0.0) - before.rates.get(key, 0.0)) for key in new.rates.keys() | before.rates)
    if moved > _SAME_RATE * most or new.devices != before.devices:
        return True
    return any(abs(new.accuracy.get(key, 0.0) - before.accuracy.get(key, 0.0)) > _SAME_ACCURACY
               for key in new.accuracy.keys() | before.accuracy)  # fmt: skip

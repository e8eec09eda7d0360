"""How a cluster does, as one record for the command line and the dashboard."""

from __future__ import annotations

import math

from clover.cluster.controller.members import ClusterMember
from clover.cluster.controller.memory import ClusterMemory
from clover.cluster.controller.records import (
    ClusterFamilyStatus,
    ClusterNodeStatus,
    ClusterRegionStatus,
    ClusterStatus,
)

_SHOWN_DECISIONS = 20


def status_of(memory: ClusterMemory, now_s: float, stopped: str) -> ClusterStatus:
    """Return the status as of the last look; `stopped`: why the controller controls nothing, empty if it does."""
    plan = memory.plan
    return ClusterStatus(
        at_s=now_s,
        epoch=memory.epoch,
        controlling=not stopped and memory.looked_s is not None,
        reason=stopped or (plan.reason if plan is not None else "there is no plan yet"),
        regions=tuple(_region(memory, name, now_s) for name in memory.regions()),
        nodes=tuple(_node(memory, name, member, now_s) for name, member in sorted(memory.members.members.items())),
        families=tuple(_family(memory, family.family) for family in memory.terms.families),
        flows=plan.flows if plan is not None else (),
        weights=_weights(memory),
        totals=memory.totals,
        grams_h=plan.grams_h if plan is not None else 0.0,
        bound_g_h=plan.bound_g_h if plan is not None else 0.0,
        alone_g_h=plan.alone_g_h if plan is not None else 0.0,
        awake_g_h=plan.awake_g_h if plan is not None else 0.0,
        troubles=tuple(dict.fromkeys(memory.troubles)),
        decisions=tuple(memory.decisions)[-_SHOWN_DECISIONS:],
    )


def _weights(memory: ClusterMemory) -> dict[str, dict[str, float]]:
    return {origin: dict(weight) for (family, origin), weight in memory.weights.items() if not family}


def _node(memory: ClusterMemory, name: str, member: ClusterMember, now_s: float) -> ClusterNodeStatus:
    report = member.report if member.phase in ("ready", "draining", "partitioned") else None
    families = report.families if report is not None else ()
    return ClusterNodeStatus(
        name=name,
        region=member.node.region,
        phase=member.phase,
        devices=member.node.devices,
        rates={item.family: sum(item.rates.values()) for item in families},
        target=memory.targets.get(name),
        epoch=report.target_epoch if report is not None else 0,
        share=memory.given.get(name, 0.0),
        p95_ms={item.family: item.p95_ms for item in families},
        pace=member.pace,
        report_age_s=now_s - member.heard_s if math.isfinite(member.heard_s) else None,
        hold=member.hold,
        why=member.why,
    )


def _region(memory: ClusterMemory, name: str, now_s: float) -> ClusterRegionStatus:
    reading = memory.readings.get(name)
    nodes = [own for own in memory.members.members.values() if own.node.region == name]
    awake = [own for own in nodes if own.phase in ("ready", "partitioned", "draining")]
    flows = memory.plan.flows if memory.plan is not None else ()
    names = [own for own, member in memory.members.members.items() if member.node.region == name]
    power = [memory.budget.power.get(own, (0.0, 0.0)) for own in names]
    return ClusterRegionStatus(
        name=name,
        intensity=reading.g_per_kwh if reading is not None else None,
        provider=reading.provider if reading is not None else "",
        method=reading.known if reading is not None else "",
        age_s=max(0.0, now_s - reading.at_s) if reading is not None else 0.0,
        awake=len(awake),
        nodes=len(nodes),
        devices=sum(sum(own.node.devices.values()) for own in awake),
        sent=sum(rate for (_, origin), rate in memory.demand.rates().items() if origin == name),
        answered=sum(flow.rate for flow in flows if flow.region == name),
        watts=sum(watts for watts, _ in power),
        grams_h=sum(grams_h for _, grams_h in power),
    )


def _family(memory: ClusterMemory, family: str) -> ClusterFamilyStatus:
    terms = next(item for item in memory.terms.families if item.family == family)
    sums = memory.budget.sums.get(family)
    worst = 0.0
    for member in memory.members.members.values():
        if member.phase == "ready" and member.report is not None:
            worst = max(worst, *(item.p95_ms for item in member.report.families if item.family == family), 0.0)
    unserved = memory.plan.unserved.get(family, 0.0) if memory.plan is not None else 0.0
    return ClusterFamilyStatus(
        family=family,
        rate=sum(rate for (of, _), rate in memory.demand.rates().items() if of == family),
        accuracy=sums.accuracy if sums is not None else None,
        accuracy_floor=terms.accuracy_floor,
        corrected=memory.floors()[family],
        p95_ms=worst,
        slo_p95_ms=terms.slo_p95_ms,
        rows=sums.all_rows if sums is not None else 0.0,
        reported_g=sums.grams if sums is not None else 0.0,
        reported_j=sums.joules if sums is not None else 0.0,
        unserved=max(unserved, memory.missing.get(family, 0.0)),
    )

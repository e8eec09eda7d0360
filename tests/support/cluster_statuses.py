"""A status of a cluster, as its controller gives it: invented, with one of everything that a page has to show."""

from __future__ import annotations

import msgspec

from clover.cluster.controller_records import (
    ClusterDecision,
    ClusterFamilyStatus,
    ClusterNodeStatus,
    ClusterRegionStatus,
    ClusterStatus,
    ClusterTotals,
)
from clover.planning.cluster.records import NodeTarget, RegionFlow

AT_S = 1_790_080_200.0
"""2026-09-22 12:30 UTC."""
REGIONS = (("eu-north", 38.0, 3), ("eu-west", 210.0, 3), ("us-east", 395.0, 2))


def _nodes() -> list[ClusterNodeStatus]:
    found = []
    for region, _, count in REGIONS:
        for index in range(count):
            name = f"{region}-{index + 1}"
            awake = region == "eu-north" or index == 0
            target = NodeTarget(
                node=name, awake=awake, rates={"fashion": 180.0}, devices={"a100-40gb": 2}, accuracy={"fashion": 91.2}
            )
            found.append(
                ClusterNodeStatus(
                    name=name,
                    region=region,
                    phase="ready" if awake else "released",
                    devices={"a100-40gb": 2},
                    rates={"fashion": 172.4} if awake else {},
                    target=target,
                    epoch=7,
                    share=0.2 if awake else 0.0,
                    p95_ms={"fashion": 18.3} if awake else {},
                    report_age_s=2.1 if awake else 640.0,
                )
            )
    return found


def cluster_status(*, nodes: int = 0, name: str = "fashion") -> ClusterStatus:
    """Return a status of three regions and eight nodes, or with `nodes` more of them, of the family `name`."""
    made = _nodes()
    made[3] = msgspec.structs.replace(
        made[3], phase="partitioned", why="no report for 31 s; the ingress finds it healthy"
    )
    made[7] = msgspec.structs.replace(
        made[7], phase="lost", hold="awake", why="no report for 95 s: its rows went to us-east-1"
    )
    made += [
        ClusterNodeStatus(name=f"more-{index}", region="eu-north", phase="released", devices={"a100-40gb": 8})
        for index in range(nodes)
    ]
    flows = (
        RegionFlow(family=name, origin="eu-north", region="eu-north", rate=220.0),
        RegionFlow(family=name, origin="eu-west", region="eu-north", rate=310.0),
        RegionFlow(family=name, origin="eu-west", region="eu-west", rate=90.0),
        RegionFlow(family=name, origin="us-east", region="us-east", rate=170.0),
        RegionFlow(family=name, origin="us-east", region="eu-north", rate=42.5),
    )
    regions = tuple(
        ClusterRegionStatus(
            name=region,
            intensity=g_per_kwh,
            provider="electricitymaps",
            method="live",
            age_s=140.0,
            awake=sum(node.phase != "released" for node in made if node.region == region),
            nodes=sum(node.region == region for node in made),
            devices=2 * count,
            sent=sum(flow.rate for flow in flows if flow.origin == region),
            answered=sum(flow.rate for flow in flows if flow.region == region),
            watts=310.0 * count,
            grams_h=310.0 * count / 1e3 * g_per_kwh,
        )
        for region, g_per_kwh, count in REGIONS
    )
    grams_h = sum(region.grams_h for region in regions)
    decision = ClusterDecision(
        id=41,
        at_s=AT_S - 130.0,
        epoch=7,
        trigger="intensity of eu-west by 22 %",
        action="applied",
        reason="eu-north takes 310 rows/s of eu-west, two nodes there are released",
        released=("eu-west-2", "eu-west-3"),
        grams_h=grams_h,
    )
    return ClusterStatus(
        at_s=AT_S,
        epoch=7,
        controlling=True,
        reason=decision.reason,
        regions=regions,
        nodes=tuple(made),
        families=(
            ClusterFamilyStatus(
                family=name,
                rate=832.5,
                accuracy=91.24,
                accuracy_floor=91.2,
                corrected=91.18,
                p95_ms=21.7,
                slo_p95_ms=30.0,
                rows=18_200_331.0,
                reported_g=5120.0,
                reported_j=1.9e8,
            ),
        ),
        flows=flows,
        weights={"eu-west": {"eu-north-1": 0.6, "eu-west-1": 0.4}},
        totals=ClusterTotals(
            since_s=AT_S - 86_400.0,
            planned_g=5100.0,
            alone_g=7900.0,
            awake_g=11_300.0,
            reported_g=5120.0,
            reported_j=1.9e8,
            rows=18_200_331.0,
        ),
        grams_h=grams_h,
        bound_g_h=grams_h * 0.8,
        alone_g_h=grams_h * 1.6,
        awake_g_h=grams_h * 2.2,
        troubles=("us-east-2 does not answer since 12:28 UTC: its rows went to us-east-1",),
        decisions=(decision,),
    )

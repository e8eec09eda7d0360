"""The inputs of a cluster's plan, and the plan.

Units: rates are rows/s, watts are those of the devices and their share of the host, intensities gCO2/kWh, accuracies
points of 100, times seconds unless the name says otherwise.  "Rows" are rows of the family that the record names.
"""

from __future__ import annotations

from typing import Literal

from clover.types import Record

NodeState = Literal["starting", "ready", "draining", "released", "lost"]
"""`starting`: ordered, no report yet.  `draining`: answers what it has, gets nothing new.  `released`: server ended,
uses nothing.  `lost`: reported before, and does not answer."""


class OperatingPoint(Record, frozen=True, kw_only=True):
    """What one device of a kind can do for one family within its SLO: serve `rate` rows/s at `accuracy` for `watts`.

    `watts`: what the rows add to a device that is awake without any; `idle_w` of the `DeviceFrontier` is the rest."""

    rate: float
    accuracy: float
    watts: float
    p95_ms: float


class DeviceFrontier(Record, frozen=True, kw_only=True):
    """The operating points of one family on one device of a kind that no other point dominates."""

    kind: str
    family: str
    points: tuple[OperatingPoint, ...]
    idle_w: float


class ClusterNode(Record, frozen=True, kw_only=True):
    """One machine: its region, how many devices of which kinds, what it uses only by being awake, what waking costs.

    `correction`: by family, what the node's server learned that its joules a row are off by (1: as profiled)."""

    name: str
    region: str
    devices: dict[str, int]
    state: NodeState = "ready"
    awake_w: float = 0.0
    wake_s: float = 60.0
    wake_j: float = 0.0
    correction: dict[str, float] = {}


class RegionGrid(Record, frozen=True, kw_only=True):
    """A region's grid: the intensity now, and what is forecast as (Unix seconds, gCO2/kWh), ascending."""

    name: str
    intensity: float
    forecast: tuple[tuple[float, float], ...] = ()


class RegionDemand(Record, frozen=True, kw_only=True):
    """Rows of a family that clients of a region send now; `forecast`: (Unix seconds, rows/s), ascending."""

    family: str
    origin: str
    rate: float
    forecast: tuple[tuple[float, float], ...] = ()


class FamilyTerms(Record, frozen=True, kw_only=True):
    """What was promised for a family: the least mean accuracy of all its rows, p95 at the client, where rows may go.

    `regions`: by origin, the regions that its rows may be answered in; an origin that is not named may use all."""

    family: str
    accuracy_floor: float
    slo_p95_ms: float
    regions: dict[str, tuple[str, ...]] = {}


class ClusterProblem(Record, frozen=True, kw_only=True):
    """All that one plan of a cluster is made from.

    `latency_ms`: by origin, then region, what the way there and back adds to an answer.  `survive`: what may be lost
    without a promise being broken.  `before`: the rates by node and family in force, () at the start."""

    at_s: float
    regions: tuple[RegionGrid, ...]
    nodes: tuple[ClusterNode, ...]
    frontiers: tuple[DeviceFrontier, ...]
    demands: tuple[RegionDemand, ...]
    terms: tuple[FamilyTerms, ...]
    latency_ms: dict[str, dict[str, float]] = {}
    survive: Literal["none", "node", "region"] = "node"
    horizon_s: float = 900.0
    before: tuple[NodeTarget, ...] = ()


class NodeTarget(Record, frozen=True, kw_only=True):
    """What a node is asked to do: whether to be awake, rows/s by family, the devices for it, and the accuracy of each.

    `accuracy`: the least mean accuracy of the node's own rows of a family, which its own controller keeps.  `p95_ms`:
    by family, the p95 that the node itself must keep, so that its furthest client has the SLO."""

    node: str
    awake: bool
    rates: dict[str, float] = {}
    devices: dict[str, int] = {}
    accuracy: dict[str, float] = {}
    p95_ms: dict[str, float] = {}


class RegionFlow(Record, frozen=True, kw_only=True):
    """Rows/s of a family that go from clients of a region to a region."""

    family: str
    origin: str
    region: str
    rate: float


class ClusterPlan(Record, frozen=True, kw_only=True):
    """Targets of all nodes and the flows between regions, with what they emit beside what else was possible.

    Grams are per hour, modelled.  `bound_g_h`: no plan emits less (of the problem as stated).  `alone_g_h`: each region
    serves its own clients on its own nodes, each by its own best plan.  `awake_g_h`: all nodes awake, equal shares.
    `unserved`: rows/s by family that no node has room for; empty if all are served."""

    at_s: float
    targets: tuple[NodeTarget, ...]
    flows: tuple[RegionFlow, ...]
    grams_h: float
    bound_g_h: float
    alone_g_h: float
    awake_g_h: float
    reason: str
    unserved: dict[str, float] = {}

"""What a cluster's controller is configured with, what it says about the cluster, and what it keeps over a restart.

Units as in `clover.cluster.planning.records`: rows/s, watts, gCO2/kWh, points of 100, seconds.  Grams are modelled
unless the name says `reported`: those are sums of what the nodes' own accounts say.
"""

from __future__ import annotations

from typing import Literal

from clover.cluster.planning.records import (
    ClusterNode,
    ClusterPlan,
    DeviceFrontier,
    FamilyTerms,
    NodeTarget,
    RegionFlow,
)
from clover.planning.budget.forecast import SavedHistory
from clover.types import Reading, Record

FORMAT = 1

Phase = Literal["released", "waking", "ready", "draining", "lost", "partitioned"]
"""`waking`: ordered, and not ready yet.  `lost`: reported before and does not answer.  `partitioned`: does not answer
the controller, but the ingress finds it healthy, so that it keeps its rows."""

Hold = Literal["drained", "released", "awake"]
"""What an operator asked of a node, until he takes it back."""

StepKind = Literal["wake", "follow", "admit", "weigh", "drain", "release", "remove"]


class ClusterTerms(Record, frozen=True, kw_only=True):
    """All that was promised and declared of a cluster.

    `nodes`: every machine that there is, with what is known before its first report.  `frontiers`: what stands in until
    a node has reported its own.  Times are seconds:

    look_s          between two looks
    plan_s          between two plans if nothing happens that asks for one
    lost_s          without a report until a node counts as lost
    drain_s         at most, for a node to answer what it has
    dwell_s         at least, that a node stays awake after it became ready
    release_after_s at least, that plans have to do without a node before it is drained
    patience_s      at most, for one answer of a node, the ingress, the store or a grid
    budget_s        over which the mean accuracy is held to the floor
    correct_s       in which a debt of accuracy is made good
    max_changes     part of the nodes that may be waking or draining at once, unless capacity is short
    move_by         relative change of demand or intensity that asks for a plan
    """

    nodes: tuple[ClusterNode, ...]
    families: tuple[FamilyTerms, ...]
    frontiers: tuple[DeviceFrontier, ...] = ()
    latency_ms: dict[str, dict[str, float]] = {}
    survive: Literal["none", "node", "region"] = "node"
    horizon_s: float = 900.0
    look_s: float = 5.0
    plan_s: float = 300.0
    lost_s: float = 15.0
    drain_s: float = 120.0
    dwell_s: float = 600.0
    release_after_s: float = 300.0
    patience_s: float = 10.0
    budget_s: float = 86_400.0
    correct_s: float = 3600.0
    max_changes: float = 0.2
    move_by: float = 0.1


class ChangeStep(Record, frozen=True, kw_only=True):
    """One thing done to a node, or to the shares of an origin (`node` is then empty), and why."""

    kind: StepKind
    node: str
    why: str
    origin: str = ""
    family: str = ""
    failed: str = ""


class ClusterDecision(Record, frozen=True, kw_only=True):
    """One plan of the controller and what became of it.  Of `count` equal ones in a row, `at_s` is the first's and
    `last_at_s` the last's."""

    id: int
    at_s: float
    epoch: int
    trigger: str
    action: Literal["applied", "kept", "failed", "dry run", "stopped"]
    reason: str
    woken: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    grams_h: float = 0.0
    bound_g_h: float = 0.0
    alone_g_h: float = 0.0
    awake_g_h: float = 0.0
    unserved: dict[str, float] = {}
    seconds: float = 0.0
    count: int = 1
    last_at_s: float = 0.0


class ClusterNodeStatus(Record, frozen=True, kw_only=True):
    """How one node does.  `share` is its part of all rows by the weights in force; `why` says what is wrong, if
    anything."""

    name: str
    region: str
    phase: Phase
    devices: dict[str, int]
    rates: dict[str, float] = {}
    target: NodeTarget | None = None
    epoch: int = 0
    share: float = 0.0
    p95_ms: dict[str, float] = {}
    pace: float = 1.0
    report_age_s: float | None = None
    hold: Hold | None = None
    why: str = ""


class ClusterRegionStatus(Record, frozen=True, kw_only=True):
    """One region: its grid and how the intensity is known, its nodes, rows/s that its clients send and that its nodes
    answer by the plan in force, and watts and grams/h as its nodes reported of late."""

    name: str
    intensity: float | None
    provider: str = ""
    method: str = ""
    age_s: float = 0.0
    awake: int = 0
    nodes: int = 0
    devices: int = 0
    sent: float = 0.0
    answered: float = 0.0
    watts: float = 0.0
    grams_h: float = 0.0


class ClusterFamilyStatus(Record, frozen=True, kw_only=True):
    """How one family does in the whole cluster.  `accuracy`: mean of all rows within the budget's horizon; `corrected`:
    the floor that plans are made for, so that the mean comes to the promised one."""

    family: str
    rate: float
    accuracy: float | None
    accuracy_floor: float
    corrected: float
    p95_ms: float
    slo_p95_ms: float
    rows: float
    reported_g: float
    reported_j: float
    unserved: float = 0.0


class ClusterTotals(Record, frozen=True, kw_only=True):
    """Sums since `since_s` (Unix seconds).  The three modelled ones are of the same hours, in which a controller looked
    and a plan was in force (`planned_s` seconds): of the plans (with nodes that are still awake although these do
    without them), of each region serving its own clients alone, and of all nodes awake with equal shares."""

    since_s: float
    planned_g: float = 0.0
    alone_g: float = 0.0
    awake_g: float = 0.0
    planned_s: float = 0.0
    reported_g: float = 0.0
    reported_j: float = 0.0
    rows: float = 0.0


class ClusterStatus(Record, frozen=True, kw_only=True):
    """All that `clover cluster status` shows.  `troubles`: what is wrong now, in sentences; `weights`:
    the shares in force by origin and node."""

    at_s: float
    epoch: int
    controlling: bool
    reason: str
    regions: tuple[ClusterRegionStatus, ...]
    nodes: tuple[ClusterNodeStatus, ...]
    families: tuple[ClusterFamilyStatus, ...]
    flows: tuple[RegionFlow, ...]
    weights: dict[str, dict[str, float]]
    totals: ClusterTotals
    grams_h: float = 0.0
    bound_g_h: float = 0.0
    alone_g_h: float = 0.0
    awake_g_h: float = 0.0
    troubles: tuple[str, ...] = ()
    decisions: tuple[ClusterDecision, ...] = ()


class ClusterLook(Record, frozen=True, kw_only=True):
    """What one look did, or with `dry` would do: the plan in force (None before the first), the steps, why the
    controller controls nothing (`stopped`, else empty), and what is wrong, in sentences."""

    at_s: float
    epoch: int
    trigger: str
    plan: ClusterPlan | None
    steps: tuple[ChangeStep, ...]
    decision: ClusterDecision | None = None
    dry: bool = False
    stopped: str = ""
    troubles: tuple[str, ...] = ()


# --- kept over a restart ----------------------------------------------------------------------------------------------


class SavedPlanned(Record, frozen=True, kw_only=True):
    """What the newest plan was made for, and when: gCO2/kWh of each region, corrected floors, the nodes that could be
    used."""

    at_s: float
    intensities: dict[str, float]
    floors: dict[str, float]
    nodes: tuple[str, ...]


class SavedMember(Record, frozen=True, kw_only=True):
    """What a controller remembers of a node: since when it is in its phase, what it last reported, rows/s by family and
    origin included, and whether the ingress knows it, at which address (HTTP and gRPC)."""

    phase: Phase
    since_s: float
    ready_s: float | None = None
    unwanted_s: float | None = None
    attempts: int = 0
    hold: Hold | None = None
    reported: ClusterNode | None = None
    rates: dict[str, dict[str, float]] = {}
    admitted: bool = False
    address: tuple[str, str] = ("", "")


class SavedCounter(Record, frozen=True, kw_only=True):
    """The newest counters of a family on a node, which sums go on from."""

    started_s: float
    rows: float
    accuracy_rows: float
    joules: float
    grams: float


class SavedSums(Record, frozen=True, kw_only=True):
    """Sums of a family: those within the budget's horizon, which fade, and those since the start."""

    at_s: float
    rows: float
    accuracy_rows: float
    all_rows: float
    joules: float
    grams: float


class SavedDemand(Record, frozen=True, kw_only=True):
    """The hours of the rows/s of a family from one origin, and the newest estimate."""

    family: str
    origin: str
    rate: float
    history: SavedHistory


class SavedCluster(Record, frozen=True, kw_only=True):
    """The state of a controller, as it is saved.  `holder` tells controllers of the same cluster apart."""

    format: int
    holder: str
    epoch: int
    at_s: float
    plan: ClusterPlan | None
    targets: tuple[NodeTarget, ...]
    members: dict[str, SavedMember]
    counters: dict[str, dict[str, SavedCounter]]
    sums: dict[str, SavedSums]
    demand: tuple[SavedDemand, ...]
    totals: ClusterTotals
    frontiers: tuple[DeviceFrontier, ...]
    decisions: tuple[ClusterDecision, ...] = ()
    planned: SavedPlanned | None = None
    readings: dict[str, Reading] = {}

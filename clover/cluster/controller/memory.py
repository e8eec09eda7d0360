"""All that a controller of a cluster knows and remembers, and how it gets into a store and out again."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from clover.cache import replace_file
from clover.cluster.controller.budget import AccuracyBudget
from clover.cluster.controller.capacity import Capacity, Reach, fastest_ms
from clover.cluster.controller.demand import ClusterDemand, Key
from clover.cluster.controller.members import ClusterMember, Membership
from clover.cluster.controller.records import (
    FORMAT,
    ClusterDecision,
    ClusterTerms,
    ClusterTotals,
    SavedCluster,
    SavedPlanned,
)
from clover.cluster.controller.weights import Rates
from clover.cluster.planning.records import ClusterPlan, DeviceFrontier, NodeTarget
from clover.cluster.ports import NodeReport
from clover.errors import ClusterError
from clover.types import Reading

KEPT = 200
_SAVED_DECISIONS = 20


class StateHolder(msgspec.Struct, frozen=True):
    """Whose a saved state is: all that is read of it to find out whether another controller took over."""

    format: int
    holder: str
    epoch: int


@dataclass
class PlannedFor:
    """What the newest plan was made for."""

    at_s: float = -math.inf
    rates: dict[Key, float] = field(default_factory=dict)
    intensities: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()


@dataclass
class ClusterMemory:
    """The state of one controller.  `targets`: of the plan in force, by node; `weights`: what the ingress was last
    given; `troubles`: what is wrong at this look."""

    terms: ClusterTerms
    members: Membership
    budget: AccuracyBudget
    totals: ClusterTotals
    demand: ClusterDemand = field(default_factory=ClusterDemand)
    frontiers: dict[tuple[str, str], DeviceFrontier] = field(default_factory=dict)
    plan: ClusterPlan | None = None
    targets: dict[str, NodeTarget] = field(default_factory=dict)
    epoch: int = 0
    scouts: frozenset[str] = frozenset()
    """Nodes to wake only to learn what their devices do: one of each kind of device that no node has reported on."""
    planned: PlannedFor = field(default_factory=PlannedFor)
    weights: dict[tuple[str, str], Rates] = field(default_factory=dict)
    given: Rates = field(default_factory=dict)
    """Part of all rows by node, by the weights in force."""
    in_force: bool = False
    """Whether the ingress took every share that was worked out: until then it may have those of a controller before,
    or others that are not known here."""
    rates_given: dict[str, Rates] = field(default_factory=dict)
    """Rows/s by node and family, as the weights in force were worked out."""
    weighed_s: float = -math.inf
    missing: Rates = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    forecasts: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    decisions: deque[ClusterDecision] = field(default_factory=lambda: deque(maxlen=KEPT))
    troubles: list[str] = field(default_factory=list)
    looked_s: float | None = None
    plan_again_s: float = -math.inf

    @classmethod
    def new(cls, terms: ClusterTerms, now_s: float) -> ClusterMemory:
        """Return the memory of a controller that starts with nothing."""
        members = Membership(terms.lost_s)
        members.declare(terms.nodes, now_s)
        return cls(
            terms=terms,
            members=members,
            budget=AccuracyBudget(terms.budget_s, terms.correct_s),
            totals=ClusterTotals(since_s=now_s),
            frontiers={(frontier.kind, frontier.family): frontier for frontier in terms.frontiers},
        )

    # --- what it knows ------------------------------------------------------------------------------------------------

    def regions(self) -> tuple[str, ...]:
        """Return all regions: of nodes, grids and clients, in a lasting order."""
        regions = dict.fromkeys(member.node.region for member in self.members.members.values())
        regions.update(dict.fromkeys(self.readings))
        regions.update(dict.fromkeys(self.terms.latency_ms))
        regions.update(dict.fromkeys(origin for _, origin in self.demand.rates()))
        return tuple(sorted(regions))

    def record_reports(self, now_s: float, reports: Mapping[str, NodeReport]) -> list[str]:
        """Take in what nodes reported; return what changed, in words."""
        changed = self.members.record(now_s, reports)
        self.frontiers = self.members.frontiers(self.frontiers.values())
        self.budget.record(now_s, reports)
        self.scouts = self._scouts()
        families = {own.family for own in self.terms.families}
        counted: dict[Key, float] = {}
        for name, member in self.members.members.items():
            # A node that fell silent goes on counting until it is lost for a while: its rows have not gone away.  Those
            # of one that only the controller does not reach never do, as long as the ingress may give it any.
            apart = member.phase == "partitioned" and (not self.in_force or self.given.get(name, 0.0) > 0.0)
            just_lost = member.phase == "lost" and member.since_s == now_s and not member.attempts
            if now_s - member.rates_s > 2.0 * self.terms.lost_s and not (apart or just_lost):
                continue
            for family in families & member.rates.keys():
                for origin, rate in member.rates[family].items():
                    counted[family, origin] = counted.get((family, origin), 0.0) + rate
        if reports or counted:
            self.demand.record(now_s, counted)
        return changed

    def _scouts(self) -> frozenset[str]:
        members = self.members.members
        kinds = {kind for kind, _ in self.frontiers}
        kinds.update(kind for member in members.values() if member.report is not None for kind in member.node.devices)
        scouts: dict[str, str] = {}
        for name, member in members.items():
            for kind in member.node.devices:
                if kind not in kinds and member.hold is None:
                    scouts.setdefault(kind, name)
        return frozenset(scouts.values())

    def floors(self) -> dict[str, float]:
        """Return the corrected accuracy floor of each family, for plans."""
        rates: Rates = {}
        for (family, _), rate in self.demand.rates().items():
            rates[family] = rates.get(family, 0.0) + rate
        highest = dict.fromkeys(rates, 0.0)
        for frontier in self.frontiers.values():
            for point in frontier.points:
                highest[frontier.family] = max(highest.get(frontier.family, 0.0), point.accuracy)
        return {
            family.family: self.budget.corrected(
                family.family,
                family.accuracy_floor,
                rates.get(family.family, 0.0),
                highest.get(family.family, 0.0),
            )
            for family in self.terms.families
        }

    def reach(self) -> Reach:
        """Return which regions may answer whose rows."""
        known = self.frontiers.values()
        return Reach(self.terms.families, self.regions(), self.terms.latency_ms, fastest_ms(known))

    def capacity(self) -> Capacity:
        """Return what nodes can serve at the corrected floors."""
        return Capacity(self.frontiers.values(), self.reach(), self.floors())

    def wanted(self, name: str, member: ClusterMember) -> bool:
        """Return whether a node is to be awake: by an operator's word, else by the plan in force.  The last one that
        could answer is not ended, should the others have died and no new plan be made."""
        if member.hold is not None:
            return member.hold == "awake"
        if name in self.scouts:
            return True
        if member.phase == "draining" and not any(own.usable for own in self.members.members.values()):
            return True
        if self.plan is None:  # before the first plan everything stays as it is
            return member.phase in ("ready", "partitioned", "waking")
        target = self.targets.get(name)
        return target is not None and target.awake

    def advance_totals(self, now_s: float) -> None:
        """Add the time since the last look to the sums, at the plan in force and with what nodes use at rest that are
        still awake although it does without them."""
        since_s = 0.0 if self.looked_s is None else max(0.0, min(now_s - self.looked_s, 10.0 * self.terms.look_s))
        self.looked_s = now_s
        hours = since_s / 3600.0
        own, plan = self.totals, self.plan
        self.totals = msgspec.structs.replace(
            own,
            planned_g=own.planned_g + ((plan.grams_h + self._lingering_g_h()) * hours if plan else 0.0),
            alone_g=own.alone_g + (plan.alone_g_h * hours if plan else 0.0),
            awake_g=own.awake_g + (plan.awake_g_h * hours if plan else 0.0),
            planned_s=own.planned_s + (since_s if plan else 0.0),
            reported_g=self.budget.grams,
            reported_j=self.budget.joules,
            rows=self.budget.rows,
        )

    def _lingering_g_h(self) -> float:
        idle_w = {frontier.kind: frontier.idle_w for frontier in self.frontiers.values()}
        total = 0.0
        for name, member in self.members.members.items():
            target, reading = self.targets.get(name), self.readings.get(member.node.region)
            if member.phase not in ("ready", "partitioned", "draining") or reading is None:
                continue
            if target is None or not target.awake:
                devices = member.node.devices.items()
                watts = member.node.awake_w + sum(count * idle_w.get(kind, 0.0) for kind, count in devices)
                total += watts * reading.g_per_kwh / 1000.0
        return total

    def record(self, decision: ClusterDecision) -> ClusterDecision:
        """Keep a decision; one that keeps what is in force again is counted with the one before."""
        before = self.decisions[-1] if self.decisions else None
        if before is not None and decision.action == before.action and decision.action in ("kept", "failed"):
            decision = msgspec.structs.replace(decision, id=before.id, at_s=before.at_s, count=before.count + 1)
            self.decisions.pop()
        self.decisions.append(decision)
        return decision

    def next_id(self) -> int:
        """Return the number of the next decision."""
        return self.decisions[-1].id + 1 if self.decisions else 1

    # --- the store ----------------------------------------------------------------------------------------------------

    def snapshot(self, holder: str, now_s: float) -> bytes:
        """Return the state as JSON."""
        counters, sums = self.budget.snapshot()
        return msgspec.json.encode(
            SavedCluster(
                format=FORMAT,
                holder=holder,
                epoch=self.epoch,
                at_s=now_s,
                plan=msgspec.structs.replace(self.plan, targets=()) if self.plan is not None else None,
                targets=tuple(self.targets.values()),
                members=self.members.snapshot(),
                counters=counters,
                sums=sums,
                demand=self.demand.snapshot(),
                totals=self.totals,
                frontiers=tuple(self.frontiers.values()),
                decisions=tuple(self.decisions)[-_SAVED_DECISIONS:],
                planned=self._saved_planned(),
                readings=self.readings,
            )
        )

    def _saved_planned(self) -> SavedPlanned | None:
        own = self.planned
        if not math.isfinite(own.at_s):
            return None
        nodes = tuple(sorted(own.nodes))
        return SavedPlanned(at_s=own.at_s, intensities=own.intensities, floors=own.floors, nodes=nodes)

    def restore(self, state: bytes, now_s: float) -> None:
        """Take up a saved state; ValueError if it is damaged or of another format."""
        saved_state = msgspec.json.decode(state, type=SavedCluster)
        if saved_state.format != FORMAT:
            raise ValueError(f"it is of format {saved_state.format}, and {FORMAT} is read")
        names = {node.name for node in self.terms.nodes}
        self.epoch = saved_state.epoch
        self.targets = {target.node: target for target in saved_state.targets if target.node in names}
        self.plan = (
            msgspec.structs.replace(saved_state.plan, targets=saved_state.targets)
            if saved_state.plan is not None
            else None
        )
        self.members.restore(saved_state.members, now_s)
        self.budget.restore(saved_state.counters, saved_state.sums, saved_state.at_s)
        self.budget.forget(names)
        self.demand.restore(saved_state.demand, now_s)
        self.totals = saved_state.totals
        self.frontiers.update({(frontier.kind, frontier.family): frontier for frontier in saved_state.frontiers})
        self.decisions.extend(saved_state.decisions)
        self.planned = PlannedFor(now_s, self.demand.rates(), nodes=self.plannable())
        if (planned := saved_state.planned) is not None:
            self.planned.at_s = min(planned.at_s, now_s)
            self.planned.intensities, self.planned.floors = planned.intensities, planned.floors
            self.planned.nodes = frozenset(planned.nodes)
        self.readings = dict(saved_state.readings)

    def set_back(self, seconds: float) -> None:
        """Go by a clock that was set back by `seconds`: what was due after a time is due after the same time."""
        self.members.set_back(seconds)
        self.demand.set_back(seconds)
        self.planned.at_s -= seconds
        self.plan_again_s -= seconds
        self.weighed_s -= seconds
        if self.looked_s is not None:
            self.looked_s -= seconds

    def plannable(self) -> frozenset[str]:
        """Return the names of the nodes that a plan made now could use."""
        return frozenset(node.name for node in self.members.for_plan())


def words(names: Iterable[str], most: int = 5) -> str:
    """Return names as people read them: at most `most`, and how many others there are."""
    listed = sorted(names)
    if len(listed) <= most:
        return ", ".join(listed)
    return f"{', '.join(listed[:most])} and {len(listed) - most} others"


_MOST_BYTES = 64 << 20


class FileStore:
    """Implements `clover.cluster.ports.Store` by the file at `path`, on storage that the next controller sees too.

    The file is replaced as a whole, so that one that is read is never half written.  On shared storage (NFS, a volume)
    a controller that is started on another machine finds it; on a local disk the state is lost with the machine, and a
    new controller begins with what the nodes report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def load(self) -> bytes | None:
        """Return what was saved last, or None.  ClusterError if the file is there and cannot be read."""
        return await asyncio.to_thread(self._load)

    async def save(self, state: bytes) -> None:
        """Replace what is kept.  ClusterError if it cannot be written."""
        try:
            await asyncio.to_thread(replace_file, self.path, state)
        except OSError as error:
            raise ClusterError(f"the controller's state cannot be saved to {self.path}: {error.strerror}") from error

    def _load(self) -> bytes | None:
        try:
            with self.path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ClusterError(f"the controller's state cannot be read from {self.path}: {error.strerror}") from error
        if len(text) > _MOST_BYTES:
            raise ClusterError(f"{self.path} is too large to be the state of a controller: give cluster.store another")
        return text

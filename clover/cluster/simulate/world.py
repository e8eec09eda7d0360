"""A simulated cluster: nodes, ingress, store and grids on a virtual clock, as the controller's ports see them.

Rows are a fluid: each step, what clients of a region send is shared by the ingress's weights among the nodes that it
finds healthy, and each node serves its part as `simulate.serving` says.  Faults are done to it by `ClusterFault`s.
Modelled throughout: nothing here is measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from clover.cluster.planning.records import ClusterNode, DeviceFrontier, FamilyTerms, NodeTarget
from clover.cluster.ports import FamilyReport, NodeReport
from clover.cluster.simulate.serving import ServingModel
from clover.errors import ClusterError
from clover.types import Reading, Record

_G_PER_WS = 1.0 / 3.6e6
_LATE = 1e-6

FaultKind = Literal["kill", "partition", "slow", "region", "controller", "store", "grids"]


class ClusterFault(Record, frozen=True, kw_only=True):
    """Something that goes wrong `at_s` seconds after the start, for `seconds`.

    kill        a node's server dies; it starts again if it is woken
    partition   a node serves on, and neither reports nor takes orders
    slow        a node takes `factor` times as long for everything
    region      all nodes of a region are dead
    controller  the controller is killed, and another one starts after `seconds`
    store       the store does not answer
    grids       no intensity can be read
    """

    at_s: float
    kind: FaultKind
    name: str = ""
    seconds: float = 600.0
    factor: float = 2.0


@dataclass
class SimulatedRegion:
    """A region: its intensity (gCO2/kWh) and the rows/s by family that its clients send, at a time (Unix seconds)."""

    name: str
    intensity: Callable[[float], float]
    demand: Callable[[float], Mapping[str, float]]


@dataclass
class _Counter:
    rows: float = 0.0
    accuracy_rows: float = 0.0
    joules: float = 0.0
    grams: float = 0.0


@dataclass
class SimulatedNode:
    """One machine.  `state`: off, waking, serving or dead (its server ended, its machine runs).  `seen_epoch`: that of
    an order whose lease ended before, below which it takes none."""

    machine: ClusterNode
    state: Literal["off", "waking", "serving", "dead"] = "serving"
    ready_s: float = 0.0
    started_s: float = 0.0
    epoch: int = 0
    seen_epoch: int = 0
    target: NodeTarget | None = None
    slow: float = 1.0
    cut_off: bool = False
    down_until_s: float = -math.inf
    rates: dict[tuple[str, str], float] = field(default_factory=dict)
    p95_ms: dict[str, float] = field(default_factory=dict)
    counters: dict[str, _Counter] = field(default_factory=dict)


@dataclass
class ClusterSums:
    """What a simulated cluster emitted and served.  Grams by what they went into; `late`: rows of node steps whose p95,
    the way to the client included, was above the SLO; `refused`: beyond what serves; `in_flight`: on nodes as they
    died, at most."""

    active_g: float = 0.0
    idle_g: float = 0.0
    wake_g: float = 0.0
    joules: float = 0.0
    sent: float = 0.0
    answered: float = 0.0
    refused: float = 0.0
    in_flight: float = 0.0
    late: float = 0.0
    wakes: int = 0
    releases: int = 0
    awake_node_s: float = 0.0
    accuracy_rows: dict[str, float] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)

    @property
    def grams(self) -> float:
        """All grams."""
        return self.active_g + self.idle_g + self.wake_g

    def accuracy(self, family: str) -> float:
        """Return the mean accuracy of the rows of a family, in points; NaN without any."""
        rows = self.rows.get(family, 0.0)
        return self.accuracy_rows[family] / rows if rows > 0.0 else math.nan


@dataclass
class WorldRules:
    """How a simulated world behaves: `wake_spread`: times the wake time that waking varies by; `latency_ms`, `families`
    and `frontiers` as in the controller's terms."""

    families: Sequence[FamilyTerms]
    frontiers: tuple[DeviceFrontier, ...]
    latency_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wake_spread: float = 0.3
    seed: int = 0


class SimulatedWorld:
    """The whole world at `now_s` (Unix seconds), and its sums."""

    def __init__(
        self, regions: Sequence[SimulatedRegion], nodes: Sequence[ClusterNode], rules: WorldRules, start_s: float
    ) -> None:
        self.now_s = self.start_s = start_s
        self.regions = {own.name: own for own in regions}
        self.rules = rules
        self.nodes = {
            own.name: SimulatedNode(own, "off" if own.state == "released" else "serving", start_s, start_s)
            for own in nodes
        }
        self.sums = ClusterSums()
        self.serving = ServingModel(rules.frontiers)
        self.weights: dict[tuple[str, str], dict[str, float]] = {}
        self.admitted: set[str] = set()
        self.drained: set[str] = set()
        self.state: bytes | None = None
        self.store_down_s = self.grids_down_s = -math.inf
        self.misdeeds: list[str] = []
        """What no controller may do: weights for nodes that are not ready, releases of nodes that serve rows."""
        self._terms = {own.family: own for own in rules.families}
        self._random = random.Random(rules.seed)

    # --- time ---------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Serve what is sent in the next `seconds`."""
        end_s = self.now_s + seconds
        for node in self.nodes.values():
            if node.state == "waking" and node.ready_s <= end_s and node.down_until_s <= end_s:
                node.state, node.started_s = "serving", node.ready_s
                node.counters, node.epoch, node.target = {}, 0, None
            node.rates, node.p95_ms = {}, {}
        healthy = {name for name, own in self.nodes.items() if own.state == "serving" and name in self.admitted}
        for region in self.regions.values():
            for family, rate in region.demand(self.now_s).items():
                self._share(family, region.name, rate, healthy, seconds)
        for name, node in self.nodes.items():
            self._serve(name, node, seconds)
        self.now_s = end_s

    def _share(self, family: str, origin: str, rate: float, healthy: set[str], seconds: float) -> None:
        self.sums.sent += rate * seconds
        weights = self.weights.get((family, origin)) or self.weights.get(("", origin), {})
        able = {name: weight for name, weight in weights.items() if name in healthy and name not in self.drained}
        total = sum(able.values())
        if total <= 0.0:
            self.sums.refused += rate * seconds
            return
        for name, weight in able.items():
            rates = self.nodes[name].rates
            rates[family, origin] = rates.get((family, origin), 0.0) + rate * weight / total

    def _serve(self, name: str, node: SimulatedNode, seconds: float) -> None:
        if node.state == "off":
            return
        g_per_j = self.regions[node.machine.region].intensity(self.now_s) * _G_PER_WS
        idle_w = node.machine.awake_w
        if node.state == "serving":
            idle_w += sum(self.serving.idle_w.get(kind, 0.0) * count for kind, count in node.machine.devices.items())
        self.sums.idle_g += idle_w * seconds * g_per_j
        self.sums.joules += idle_w * seconds
        self.sums.awake_node_s += seconds
        families: dict[str, float] = {}
        for (family, _), rate in node.rates.items():
            families[family] = families.get(family, 0.0) + rate
        if node.state != "serving" or not families:
            return
        parts = self._parts(node, families)
        for family, rate in families.items():
            self._serve_family(node, family, rate, parts[family], seconds * g_per_j, seconds)
        idle = idle_w * seconds / len(families)
        for family in families:
            node.counters[family].joules += idle
            node.counters[family].grams += idle * g_per_j

    def _parts(self, node: SimulatedNode, rates: Mapping[str, float]) -> dict[str, float]:
        """Return the part of the devices' time that each family has: what its target says, else of what is left as much
        as its rows need."""
        most = {family: self._most(node, family) for family in rates}
        needs = {family: rate / most[family] if most[family] > 0.0 else 0.0 for family, rate in rates.items()}
        count = sum(node.machine.devices.values())
        asked = node.target.devices if node.target is not None else {}
        named = {family: asked[family] / count for family in rates if asked.get(family)}
        left = 1.0 - sum(named.values())
        others = {family: need for family, need in needs.items() if family not in named}
        if len(rates) == 1 or (others and left <= 0.0):
            named, left, others = {}, 1.0, needs
        total = sum(others.values())
        return named | {family: left * need / total if total > 0.0 else 0.0 for family, need in others.items()}

    def _most(self, node: SimulatedNode, family: str) -> float:
        most = sum(self.serving.most(kind, family) * count for kind, count in node.machine.devices.items())
        return most / node.slow

    def _serve_family(
        self, node: SimulatedNode, family: str, rate: float, part: float, grams_a_watt: float, seconds: float
    ) -> None:
        floor = self._terms[family].accuracy_floor
        if node.target is not None:
            floor = node.target.accuracy.get(family, floor)
        most = self._most(node, family)
        counter = node.counters.setdefault(family, _Counter())
        answered = accuracy_rows = watts = p95_ms = 0.0
        for kind, count in node.machine.devices.items():
            own = self.serving.most(kind, family) * count
            if own <= 0.0 or part <= 0.0:
                continue
            time = part * count
            each = rate * node.slow * (own / node.slow / most) / time  # rows/s a device, as if it were not slow
            served = self.serving.serve(kind, family, each, floor)
            answered += served.rate * time / node.slow
            accuracy_rows += served.rate * time / node.slow * served.accuracy
            watts += served.watts * time
            p95_ms = max(p95_ms, served.p95_ms * node.slow)
        watts *= node.machine.correction.get(family, 1.0)
        sums = self.sums
        sums.answered += answered * seconds
        sums.refused += max(0.0, rate - answered) * seconds
        sums.rows[family] = sums.rows.get(family, 0.0) + answered * seconds
        sums.accuracy_rows[family] = sums.accuracy_rows.get(family, 0.0) + accuracy_rows * seconds
        sums.active_g += watts * grams_a_watt
        sums.joules += watts * seconds
        node.p95_ms[family] = p95_ms
        counter.rows += answered * seconds
        counter.accuracy_rows += accuracy_rows * seconds
        counter.joules += watts * seconds
        counter.grams += watts * grams_a_watt
        for (of, origin), own_rate in node.rates.items():
            if of == family:
                way_ms = self.rules.latency_ms.get(origin, {}).get(node.machine.region, 0.0)
                if p95_ms + way_ms > self._terms[family].slo_p95_ms * (1.0 + _LATE):
                    sums.late += own_rate / rate * answered * seconds

    # --- faults -------------------------------------------------------------------------------------------------------

    def strike(self, fault: ClusterFault) -> None:
        """Let a fault of nodes, store or grids happen now."""
        until_s = self.now_s + fault.seconds
        if fault.kind == "store":
            self.store_down_s = until_s
        elif fault.kind == "grids":
            self.grids_down_s = until_s
        elif fault.kind == "region":
            for node in self.nodes.values():
                if node.machine.region == fault.name:
                    self._kill(node, until_s)
        elif fault.kind != "controller":
            node = self.nodes[fault.name]
            if fault.kind == "kill":
                self._kill(node, self.now_s)
            elif fault.kind == "partition":
                node.cut_off = True
            else:
                node.slow = fault.factor

    def heal(self, fault: ClusterFault) -> None:
        """Let a fault end."""
        if fault.kind == "partition":
            self.nodes[fault.name].cut_off = False
        elif fault.kind == "slow":
            self.nodes[fault.name].slow = 1.0

    def _kill(self, node: SimulatedNode, until_s: float) -> None:
        if node.state == "serving":
            for (family, _), rate in node.rates.items():
                self.sums.in_flight += rate * node.p95_ms.get(family, 0.0) / 1000.0
        if node.state != "off":
            node.state = "dead"
        node.down_until_s = max(node.down_until_s, until_s)
        node.rates = {}

    def wake_time_s(self, node: SimulatedNode) -> float:
        """Return how long the next waking of a node takes."""
        spread = self.rules.wake_spread
        return node.machine.wake_s * self._random.uniform(1.0 - spread, 1.0 + spread)


class SimulatedNodes:
    """The nodes of a world, as `clover.cluster.ports.Nodes`."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world

    async def reports(self) -> Mapping[str, NodeReport]:
        """Return what the nodes that can be reached say."""
        return {
            name: self._report(node)
            for name, node in self._world.nodes.items()
            if node.state == "serving" and not node.cut_off
        }

    def _report(self, node: SimulatedNode) -> NodeReport:
        rates: dict[str, dict[str, float]] = {}
        for (family, origin), rate in node.rates.items():
            rates.setdefault(family, {})[origin] = rate
        return NodeReport(
            node=msgspec.structs.replace(node.machine, state="ready"),
            at_s=self._world.now_s,
            started_s=node.started_s,
            url=f"http://{node.machine.name}",
            families=tuple(
                FamilyReport(
                    family=family,
                    rates=rates.get(family, {}),
                    p95_ms=node.p95_ms.get(family, 0.0),
                    rows=int(counter.rows),
                    accuracy_rows=counter.accuracy_rows
                    * (int(counter.rows) / counter.rows if counter.rows > 0.0 else 0.0),
                    joules=counter.joules,
                    grams=counter.grams,
                )
                for family, counter in node.counters.items()
            ),
            frontiers=self._world.rules.frontiers,
            target_epoch=node.epoch,
            newest_epoch=max(node.epoch, node.seen_epoch),
        )

    async def follow(self, target: NodeTarget, epoch: int) -> None:
        """Give a node its target."""
        node = self._reach_node(target.node)
        if epoch >= max(node.epoch, node.seen_epoch):
            node.target, node.epoch = target, epoch

    async def wake(self, name: str) -> None:
        """Start a node; one that runs already is left as it is."""
        world, node = self._world, self._world.nodes[name]
        if node.state in ("serving", "waking") or world.now_s < node.down_until_s:
            if world.now_s < node.down_until_s:
                raise ClusterError(f"{name} cannot be started")
            return
        node.state, node.ready_s = "waking", world.now_s + world.wake_time_s(node)
        intensity = world.regions[node.machine.region].intensity(world.now_s)
        world.sums.wakes += 1
        world.sums.wake_g += node.machine.wake_j * intensity * _G_PER_WS
        world.sums.joules += node.machine.wake_j

    async def release(self, name: str) -> None:
        """End a node; of one whose server died, the machine.  One that is off stays so."""
        node = self._world.nodes[name]
        if node.cut_off:
            raise ClusterError(f"{name} does not answer")
        if node.state == "off":
            return
        if name in self._world.admitted - self._world.drained:
            self._world.misdeeds.append(f"{name} was released without being drained")
        if node.rates:
            self._world.misdeeds.append(f"{name} was released while it served rows")
        node.state = "off"
        self._world.sums.releases += 1

    def _reach_node(self, name: str) -> SimulatedNode:
        node = self._world.nodes[name]
        if node.cut_off or node.state not in ("serving", "waking"):
            raise ClusterError(f"{name} does not answer")
        return node


class SimulatedIngress:
    """The ingress of a world, as `clover.cluster.ports.Ingress`, with shares by family and health."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world

    async def admit(self, name: str, url: str, grpc_url: str) -> None:
        """Add a node, or take a drained one back."""
        self._world.admitted.add(name)
        self._world.drained.discard(name)

    async def weigh(self, origin: str, weights: Mapping[str, float]) -> None:
        """Set the shares of an origin."""
        self._weigh("", origin, weights)

    async def weigh_family(self, origin: str, family: str, weights: Mapping[str, float]) -> None:
        """Set the shares of an origin's rows of one family."""
        self._weigh(family, origin, weights)

    def _weigh(self, family: str, origin: str, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            if weight > 0.0 and name not in self._world.admitted:
                self._world.misdeeds.append(f"{name} has a weight and is not admitted")
        self._world.weights[family, origin] = dict(weights)

    async def drain(self, name: str) -> None:
        """Give a node nothing new."""
        self._world.drained.add(name)

    async def open_connections(self, name: str) -> int:
        """Return 1 while a node serves what it had, else 0."""
        return int(bool(self._world.nodes[name].rates))

    async def healthy(self, name: str) -> bool:
        """Return whether a node serves."""
        return self._world.nodes[name].state == "serving"

    async def remove(self, name: str) -> None:
        """Forget a node."""
        self._world.admitted.discard(name)
        self._world.drained.discard(name)


class SimulatedStore:
    """The store of a world, as `clover.cluster.ports.Store`."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world

    async def load(self) -> bytes | None:
        """Return what is kept."""
        self._check()
        return self._world.state

    async def save(self, state: bytes) -> None:
        """Keep `state`."""
        self._check()
        self._world.state = state

    def _check(self) -> None:
        if self._world.now_s < self._world.store_down_s:
            raise ClusterError("the store does not answer")


class SimulatedGrids:
    """The grids of a world, as `clover.cluster.ports.RegionGrids`, with perfect forecasts every `step_s`."""

    step_s = 900.0

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world

    async def readings(self, at_s: float) -> Mapping[str, Reading]:
        """Return the intensities of now."""
        self._check()
        return {name: self._at(own, at_s) for name, own in self._world.regions.items()}

    async def forecasts(self, at_s: float, horizon_s: float) -> Mapping[str, Sequence[Reading]]:
        """Return what the intensities will be."""
        self._check()
        times = [at_s + self.step_s * number for number in range(1, math.ceil(horizon_s / self.step_s) + 1)]
        return {name: [self._at(own, when_s) for when_s in times] for name, own in self._world.regions.items()}

    def _at(self, region: SimulatedRegion, at_s: float) -> Reading:
        return Reading(g_per_kwh=region.intensity(at_s), at_s=at_s, provider="simulated", method="synthetic")

    def _check(self) -> None:
        if self._world.now_s < self._world.grids_down_s:
            raise ClusterError("no grid answers")

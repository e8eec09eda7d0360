"""What a production controller asks of a modelled cluster, call by call.

What it asks of nodes, HAProxy and the store are numbered calls.  Before, at or after any of them something can happen:
the call fails, or its answer is lost; an order hangs; a node dies; the controller dies or stands still.

One that stands still goes on later, in another world, from where it was: it looks again with the answers that it had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from clover.cluster.controller.demand import ClusterDemand, Key
from clover.cluster.controller.records import ClusterTotals, SavedCluster, SavedDemand, SavedMember
from clover.cluster.ingress.checked import CheckedIngress
from clover.cluster.ingress.config import IngressOrigin, IngressSettings
from clover.cluster.ingress.haproxy import HAProxyIngress
from clover.cluster.ingress.state import whole_weights
from clover.cluster.planning.records import (
    ClusterNode,
    ClusterPlan,
    NodeState,
    NodeTarget,
    RegionDemand,
    RegionFlow,
)
from clover.cluster.ports import NodeReport
from clover.errors import ClusterError
from clover.types import Reading
from tests.reference.cluster_world import (
    DEMAND,
    FAMILY,
    REGION,
    Heard,
    SavedState,
    World,
)

NOW_S, RECENT_S, LONG_S = 1_000_000.0, 1.0, 1000.0
KEY = (FAMILY, REGION)
NODE_STATES: dict[str, NodeState] = {"up": "ready", "starting": "starting", "ending": "draining"}
READS = frozenset({"reports", "load", "nodes", "open"})
GUARDED = frozenset({"drain", "release", "remove", "save"})
"""Before these a controller asks the store whether it still is the one."""
INGRESS = frozenset({"admit", "weigh", "drain", "remove"})


class Gone(BaseException):
    """The controller that makes a call has died, or stands still."""


@dataclass(frozen=True)
class Happening:
    """What happens at the call of number `at`: "fails" (nothing is done), "late" (it is done, and said to have failed),
    "hangs", "dies" (the controller, before the call), "stops" (it stands still before it), or "kill NODE"."""

    at: int
    what: str


@dataclass
class Calls:
    """The calls of one look.  `script`: answers to the first of them, which were given before."""

    world: World
    holder: str
    script: Sequence[object]
    happening: Happening | None
    now_s: float = NOW_S
    calls: list[str] = field(default_factory=list)
    answers: list[object] = field(default_factory=list)
    older: bool = False
    stale: bool = False
    fenced: bool = False
    """Whether it was told that another controller has taken over."""
    gone: bool = False
    need: int = 1
    struck: set[str] = field(default_factory=set)
    epoch: Callable[[], int] = int
    believed: Callable[[], set[str]] = set
    aged: Callable[[str], bool] = lambda name: False

    async def call(self, kind: str, name: str = "", given: Any = None) -> Any:
        """Make a call and return its answer; ClusterError if it fails."""
        if self.gone:
            raise Gone
        at = len(self.calls)
        self.calls.append(kind)
        answer = self.script[at] if at < len(self.script) else self._live(kind, name, given, at)
        self.answers.append(answer)
        if answer == "hangs":
            await asyncio.get_running_loop().create_future()
        if answer == "fails":
            raise ClusterError(f"{kind} {name} fails")
        return answer

    def _live(self, kind: str, name: str, given: Any, at: int) -> object:
        what = self.happening.what if self.happening is not None and self.happening.at == at else ""
        if what in ("dies", "stops"):
            self.calls.pop()
            self.gone = True
            raise Gone
        if what == "fails":
            return "fails"
        if what.startswith("kill"):
            self.struck |= {what[5:]} & self.world.fit()
            self.world.kill(what[5:])
        if kind == "nodes":
            self.struck.clear()
        if what == "hangs":
            if kind == "release":
                self.world.change(name, server="ending")
            return "hangs"
        if (self.fenced and kind not in READS) or (kind in GUARDED and self.replaced()):
            self.world.blame(f"an old controller's {kind} {name} is carried out")
        if self.stale and kind in INGRESS:
            return None  # the newer one's HAProxyIngress undoes it within seconds
        homes = self.world.homes()
        answer = self._effect(kind, name, given)
        if kind not in READS and answer != "fails" and homes and not self.homes():
            self.world.blame(f"{kind} {name} leaves rows without a node")
        return "fails" if what == "late" else answer

    def _effect(self, kind: str, name: str, given: Any) -> object:
        world = self.world
        node = world.nodes.get(name)
        match kind:
            case "reports":
                return tuple(None if own.cut or own.server == "off" else own for own in world.nodes.values())
            case "load":
                self.fenced = self.replaced()
                return world.store
            case "save":
                world.store = given
            case "nodes":
                return frozenset(world.known), world.healthy()
            case "admit":
                world.known.add(name)
                world.draining.discard(name)
            case "weigh":
                world.weights = given
            case "drain":
                if name not in world.known:
                    return "fails"
                before = self.believed() & (world.known - world.draining)
                if world.weights.get(name, 0) > 1:
                    world.blame(f"{name} is drained with a weight of {world.weights[name]}")
                if len(before - {name}) < min(len(before), self.need):
                    world.blame(f"{name} is drained although only {sorted(before - {name})} stay")
                world.draining.add(name)
            case "open":
                return int(name in world.known and world.nodes[name].rows)
            case "remove":
                if node is not None and node.server == "up" and not node.cut:
                    world.blame(f"{name} is removed although it is up")
                world.known.discard(name)
                world.draining.discard(name)
                world.weights.pop(name, None)
            case _:
                assert node is not None
                if node.cut:
                    return "fails"
                return self._order(kind, name, given)
        return None

    def replaced(self) -> bool:
        """Return whether the store has another controller of an epoch no lower."""
        saved = self.world.store
        return self.older and saved is not None and saved.holder != self.holder and saved.epoch >= self.epoch()

    def homes(self) -> set[str]:
        """Return the nodes that rows go to, with those that died since the ingress was asked: this cannot be known."""
        world = self.world
        return world.homes() | {name for name in self.struck & world.known - world.draining if world.weights.get(name)}

    def _order(self, kind: str, name: str, given: Any) -> object:
        world, node = self.world, self.world.nodes[name]
        if kind == "wake":
            if node.server == "off":
                world.change(name, server="starting")
        elif kind == "release":
            if name in world.known and name not in world.draining:
                world.blame(f"{name} is released and was not drained")
            if node.rows and not self.aged(name):
                world.blame(f"{name} is released with rows open")
            if not (self.struck | world.fit()):
                world.blame(f"{name} is released although no other node answers")
            world.end(name, "off")
        elif node.server != "up":
            return "fails"
        elif given >= node.newest:
            world.change(name, epoch=given, newest=given)
        return None


# --- ports ------------------------------------------------------------------------------------------------------------


def url_of(name: str) -> str:
    return f"http://{name}:1"


def report_of(names: Sequence[str], name: str, heard: Heard, at_s: float) -> NodeReport:
    return NodeReport(
        node=declared(name, NODE_STATES.get(heard.server, "released")),
        at_s=at_s,
        started_s=1.0 if heard.same else 0.5,
        url=url_of(name),
        target_epoch=heard.epoch,
        newest_epoch=heard.newest,
        healthy=heard.server == "up",
    )


def declared(name: str, state: NodeState = "released") -> ClusterNode:
    return ClusterNode(name=name, region=REGION, devices={"gpu": 1}, state=state, wake_s=10.0)


class ModelNodes:
    """Implements `Nodes` and `Store` by calls."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def reports(self) -> Mapping[str, NodeReport]:
        found = await self._calls.call("reports")
        names = self._calls.world.names
        return {
            name: report_of(names, name, Heard(own.server, own.epoch, own.newest), self._calls.now_s)
            for name, own in zip(names, found, strict=True)
            if own is not None
        }

    async def follow(self, target: NodeTarget, epoch: int) -> None:
        await self._calls.call("follow", target.node, epoch)

    async def wake(self, name: str) -> None:
        await self._calls.call("wake", name)

    async def release(self, name: str) -> None:
        await self._calls.call("release", name)

    async def load(self) -> bytes | None:
        found = await self._calls.call("load")
        return saved_bytes(self._calls.world.names, found) if found is not None else None

    async def save(self, state: bytes) -> None:
        found = msgspec.json.decode(state, type=SavedCluster)
        members = tuple(
            (own.phase, is_old(own.since_s), min(own.attempts, 1), own.reported is not None)
            for own in found.members.values()
        )
        plan = awake(found.targets) if found.plan is not None else None
        await self._calls.call("save", "", SavedState(found.holder, found.epoch, plan, members))


class BareIngress(HAProxyIngress):
    """What `CheckedIngress` asks of HAProxy, by calls."""

    def __init__(self, settings: IngressSettings) -> None:
        self.settings = settings
        self.calls: Calls

    async def admit(self, name: str, url: str, grpc_url: str) -> None:
        await self.calls.call("admit", name)

    async def weigh(self, origin: str, weights: Mapping[str, float]) -> None:
        whole = whole_weights(weights)
        known, _ = await self.calls.call("nodes")
        if any(weight and name not in known for name, weight in whole.items()):
            raise ClusterError("admit it before it is given a weight")
        await self.calls.call("weigh", "", {name: weight for name, weight in whole.items() if weight})

    async def drain(self, name: str) -> None:
        await self.calls.call("drain", name)

    async def open_connections(self, name: str) -> int:
        return cast("int", await self.calls.call("open", name))

    async def remove(self, name: str) -> None:
        await self.calls.call("remove", name)

    async def nodes(self) -> dict[str, bool]:
        known, up = await self.calls.call("nodes")
        return {name: name in up for name in sorted(known)}


class ModelIngress(CheckedIngress, BareIngress):
    """The production ingress over calls."""

    def __init__(self, calls: Calls) -> None:
        self.clock_s = 0.0
        names = frozenset(calls.world.names)
        super().__init__(_SETTINGS, {(REGION, ""): names}, monotonic=lambda: self.clock_s, sleep=self._sleep)
        self.calls = calls

    async def _sleep(self, seconds: float) -> None:
        self.clock_s += 10.0


_SETTINGS = IngressSettings(folder="/", origins=(IngressOrigin(name=REGION, listen="127.0.0.1:1"),))


class ModelGrids:
    """What is best shows as an intensity."""

    def __init__(self, aim: str) -> None:
        self._g_per_kwh = intensity_of(aim)

    async def readings(self, at_s: float) -> Mapping[str, Reading]:
        return {REGION: Reading(g_per_kwh=self._g_per_kwh, at_s=at_s, provider="stated", method="configured")}

    async def forecasts(self, at_s: float, horizon_s: float) -> Mapping[str, Sequence[Reading]]:
        return {}


def intensity_of(aim: str) -> float:
    return 100.0 * 2.0 ** "abc".index(aim[0])


class SteadyDemand(ClusterDemand):
    """The same rows/s at any time."""

    def record(self, now_s: float, counted: Mapping[Key, float]) -> None:
        pass

    def rates(self) -> dict[Key, float]:
        return {KEY: DEMAND}

    def forecast(self, now_s: float, ahead_s: float) -> tuple[RegionDemand, ...]:
        return (RegionDemand(family=FAMILY, origin=REGION, rate=DEMAND),)

    def snapshot(self) -> tuple[SavedDemand, ...]:
        return ()


# --- plans ------------------------------------------------------------------------------------------------------------


def plan_of(names: Sequence[str], chosen: Sequence[str]) -> ClusterPlan:
    """Return the plan in which `chosen` share all rows."""
    return ClusterPlan(
        at_s=0.0,
        targets=tuple(
            NodeTarget(node=name, awake=name in chosen, rates={FAMILY: DEMAND / len(chosen)} if name in chosen else {})
            for name in names
        ),
        flows=(RegionFlow(family=FAMILY, origin=REGION, region=REGION, rate=DEMAND),) if chosen else (),
        grams_h=1.0,
        bound_g_h=1.0,
        alone_g_h=1.0,
        awake_g_h=1.0,
        reason="it is best",
    )


def awake(targets: Sequence[NodeTarget]) -> tuple[str, ...]:
    return tuple(sorted(own.node for own in targets if own.awake))


def chosen(aim: str, usable: Sequence[str], need: int) -> tuple[str, ...]:
    """Return the nodes that are best: the first `need` usable ones in the order of `aim`."""
    return tuple(sorted([name for name in aim if name in usable][:need]))


def is_old(at_s: float) -> bool:
    return NOW_S - at_s > LONG_S / 2


def since(old: bool) -> float:
    return NOW_S - (LONG_S if old else RECENT_S)


def saved_bytes(names: Sequence[str], saved: SavedState) -> bytes:
    """Return what a store has, as it has it."""
    plan = plan_of(names, saved.plan) if saved.plan is not None else None
    return msgspec.json.encode(
        SavedCluster(
            format=1,
            holder=saved.holder,
            epoch=saved.epoch,
            at_s=NOW_S,
            plan=msgspec.structs.replace(plan, targets=()) if plan is not None else None,
            targets=plan.targets if plan is not None else (),
            members={
                name: SavedMember(
                    phase=phase, since_s=since(old), attempts=attempts, reported=declared(name) if known else None
                )
                for name, (phase, old, attempts, known) in zip(names, saved.members, strict=True)
            },
            counters={},
            sums={},
            demand=(),
            totals=ClusterTotals(since_s=0.0),
            frontiers=(),
        )
    )

"""One look of a production controller at a modelled cluster, call by call.

`Looker.look` makes a `ClusterController` (with its `ClusterActor`, its memory, `CheckedIngress` and all that these
use) that knows what a `BrainState` says, has it look once, and takes down what it knows then.  What it asks of nodes,
HAProxy and the store are numbered calls.  Before, at or after any of them something can happen: the call fails, or its
answer is lost; an order hangs; a node dies; the controller dies or stands still.

One that stands still goes on later, in another world, from where it was: it looks again with the answers that it had.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from clover.cluster.checked_ingress import CheckedIngress
from clover.cluster.controller import ClusterController
from clover.cluster.controller_demand import ClusterDemand, Key
from clover.cluster.controller_members import ClusterMember
from clover.cluster.controller_memory import ClusterMemory, PlannedFor
from clover.cluster.controller_orders import NodeOrder
from clover.cluster.controller_records import ClusterTerms, ClusterTotals, SavedCluster, SavedDemand, SavedMember
from clover.cluster.haproxy import HAProxyIngress
from clover.cluster.haproxy_config import IngressOrigin, IngressSettings
from clover.cluster.ingress import whole_weights
from clover.cluster.ports import NodeReport
from clover.errors import ClusterError
from clover.planning.cluster.records import (
    ClusterNode,
    ClusterPlan,
    ClusterProblem,
    DeviceFrontier,
    FamilyTerms,
    NodeState as NodePhase,
    NodeTarget,
    OperatingPoint,
    RegionDemand,
    RegionFlow,
)
from clover.types import Reading
from tests.reference.cluster_world import (
    DEMAND,
    FAMILY,
    REGION,
    BrainState,
    Heard,
    MemberState,
    OrderState,
    SavedState,
    World,
)

NOW_S, RECENT_S, LONG_S = 1_000_000.0, 1.0, 1000.0
_KEY = (FAMILY, REGION)
_STATES: dict[str, NodePhase] = {"up": "ready", "starting": "starting", "ending": "draining"}
_READS = frozenset({"reports", "load", "nodes", "open"})
ORDERS = frozenset({"wake", "follow", "release"})


class Gone(BaseException):
    """The controller that makes a call has died, or stands still."""


@dataclass(frozen=True)
class Happening:
    """What happens at the call of number `at`: "fails" (nothing is done), "late" (it is done, and said to have failed),
    "hangs", "dies" (the controller, before the call), "stops" (it stands still before it), or "kill NODE"."""

    at: int
    what: str


@dataclass
class Looked:
    """What became of a look: what the controller knows after it (None if it died), and its calls and their answers."""

    brain: BrainState | None
    calls: list[str]
    answers: list[object]
    stopped: bool = False


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
    gone: bool = False
    need: int = 1
    struck: set[str] = field(default_factory=set)
    believed: Callable[[], set[str]] = set
    aged: Callable[[str], bool] = lambda name: False

    async def call(self, kind: str, name: str = "", given: Any = None) -> Any:
        """Make a call and return its answer; ClusterError if it fails."""
        if self.gone:
            raise Gone
        at = len(self.calls)
        self.calls.append(kind)
        if at < len(self.script):
            answer = self.script[at]
        else:
            answer = self._live(kind, name, given, at)
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
        homes = self.world.homes()
        answer = self._effect(kind, name, given)
        if kind not in _READS and answer != "fails":
            if homes and not self.homes():
                self.world.blame(f"{kind} {name} leaves rows without a node")
            if self.older and self.world.newest not in ("", self.holder) and kind != "follow":
                self.world.blame(f"an old controller's {kind} {name} is carried out")
        return "fails" if what == "late" else answer

    def _effect(self, kind: str, name: str, given: Any) -> object:
        world = self.world
        node = world.nodes.get(name)
        match kind:
            case "reports":
                return tuple(None if own.cut or own.server == "off" else own for own in world.nodes.values())
            case "load":
                return world.store
            case "save":
                world.store = given
                if not self.older:
                    world.newest = self.holder
            case "nodes":
                return frozenset(world.known), frozenset(name for name in world.known if world.nodes[name].server == "up")
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
        node=declared(name, _STATES.get(heard.server, "released")),
        at_s=at_s,
        started_s=1.0 if heard.same else 0.5,
        url=url_of(name),
        target_epoch=heard.epoch,
        newest_epoch=heard.newest,
        healthy=heard.server == "up",
    )


def declared(name: str, state: NodePhase = "released") -> ClusterNode:
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
            (own.phase, _old(own.since_s), min(own.attempts, 1), own.reported is not None)
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

    def note(self, now_s: float, counted: Mapping[Key, float]) -> None:
        pass

    def rates(self) -> dict[Key, float]:
        return {_KEY: DEMAND}

    def expected(self, now_s: float, ahead_s: float) -> tuple[RegionDemand, ...]:
        return (RegionDemand(family=FAMILY, origin=REGION, rate=DEMAND),)

    def saved(self) -> tuple[SavedDemand, ...]:
        return ()


# --- plans ------------------------------------------------------------------------------------------------------------


def plan_of(names: Sequence[str], chosen: Sequence[str]) -> ClusterPlan:
    """Return the plan in which `chosen` share all rows."""
    return ClusterPlan(
        at_s=0.0,
        targets=tuple(
            NodeTarget(
                node=name, awake=name in chosen, rates={FAMILY: DEMAND / len(chosen)} if name in chosen else {}
            )
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


def _old(at_s: float) -> bool:
    return NOW_S - at_s > LONG_S / 2


def _since(old: bool) -> float:
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
                    phase=phase, since_s=_since(old), attempts=attempts, reported=declared(name) if known else None
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


# --- a look -----------------------------------------------------------------------------------------------------------


class _Stopwatch:
    """In place of a selector: nothing is waited for, time is."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "a look waits for what never comes"
        self.now_s += timeout
        return []


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes when nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._kept, self._watch = self._selector, _Stopwatch()  # type: ignore[has-type]
        self._selector = self._watch

    def time(self) -> float:
        return self._watch.now_s

    def close(self) -> None:
        self._selector = self._kept
        super().close()


class Looker:
    """Has controllers look at worlds of nodes of these names, `need` of which are to be awake."""

    def __init__(self, names: tuple[str, ...], need: int, survive: str) -> None:
        self.names, self.need = names, need
        point = OperatingPoint(rate=100.0, accuracy=92.0, watts=100.0, p95_ms=10.0)
        self._terms = ClusterTerms(
            nodes=tuple(declared(name) for name in names),
            families=(FamilyTerms(family=FAMILY, accuracy_floor=90.0, slo_p95_ms=100.0),),
            frontiers=(DeviceFrontier(kind="gpu", family=FAMILY, points=(point,), idle_w=10.0),),
            survive=survive,  # type: ignore[arg-type]
            lost_s=10.0,
            drain_s=LONG_S / 2,
            dwell_s=0.0,
            release_after_s=0.0,
            max_changes=1.0,
        )
        self._loop = SteppedLoop()

    def close(self) -> None:
        self._loop.close()

    def look(
        self,
        brain: BrainState,
        world: World,
        happening: Happening | None = None,
        script: Sequence[object] = (),
        *,
        older: bool = False,
    ) -> Looked:
        """Have a controller that knows `brain` look once; the world is changed by what it does.  `older`: another one
        was started after it."""
        calls = Calls(world, brain.holder, script, happening, older=older, need=self.need)
        controller = self._controller(brain, calls)
        orders = controller._actor._orders
        calls.believed = lambda: {n for n, own in controller._memory.members.members.items() if own.usable}
        calls.aged = lambda name: _old(controller._memory.members.members[name].since_s)
        try:
            self._loop.run_until_complete(controller.step())
        except Gone:
            pass
        after = None if calls.gone or controller.stopped else self._taken_down(brain, controller)
        if any(not task.done() for _, task in orders._running.values()):
            self._loop.run_until_complete(controller.close())
        return Looked(after, calls.calls, calls.answers, bool(controller.stopped))

    def _controller(self, brain: BrainState, calls: Calls) -> ClusterController:
        async def solve(problem: ClusterProblem) -> ClusterPlan:
            usable = [own.name for own in problem.nodes]
            return plan_of(usable, chosen(calls.world.aim, usable, self.need))

        ports, ingress = ModelNodes(calls), ModelIngress(calls)
        controller = ClusterController(
            self._terms, ports, ingress, ports, ModelGrids(calls.world.aim), solve, lambda: calls.now_s, brain.holder
        )
        memory = controller._memory
        memory.demand = SteadyDemand()
        controller._restored, controller._taken_over = brain.stage > 0, brain.stage > 1
        if brain.stage:
            self._put(brain, controller, memory)
        if brain.shares is not None:
            ingress._shares[REGION, ""] = dict(brain.shares)
        return controller

    def _put(self, brain: BrainState, controller: ClusterController, memory: ClusterMemory) -> None:
        memory.epoch = brain.epoch
        if brain.plan is not None:
            memory.plan = plan_of(self.names, brain.plan)
            memory.targets = {own.node: own for own in memory.plan.targets}
        memory.planned = PlannedFor(
            _since("plan" in brain.again),
            {_KEY: DEMAND},
            {REGION: intensity_of(brain.aim)} if brain.aim else {},
            {},
            brain.planned,
        )
        for name, own in zip(self.names, brain.members, strict=True):
            _member(memory.members.members[name], name, own)
        if brain.weights is not None:
            memory.weights = {("", REGION): dict(brain.weights)}
        memory.given = dict.fromkeys(brain.given, 1.0)
        memory.in_force = brain.in_force
        memory.rates_given = {name: {FAMILY: rate} for name, rate in brain.had}
        memory.weighed_s = _since("weigh" in brain.again)
        controller._saved_s = _since("save" in brain.again)
        for order in brain.orders:
            future: asyncio.Future[str] = self._loop.create_future()
            if order.done:
                future.set_result("")
            kept = controller._actor._orders._running
            kept[order.kind, order.node] = (  # type: ignore[index]
                NodeOrder(order.kind, order.node, order.epoch),  # type: ignore[arg-type]
                cast("asyncio.Task[str]", future),
            )

    def _taken_down(self, brain: BrainState, controller: ClusterController) -> BrainState:
        memory = controller._memory
        stage = 2 if controller._taken_over else 1 if controller._restored else 0
        if not stage:
            return brain
        again = {
            "plan": memory.planned.at_s, "weigh": memory.weighed_s, "save": controller._saved_s or -math.inf
        }  # fmt: skip
        weights = memory.weights.get(("", REGION))
        intensity = memory.planned.intensities.get(REGION)
        ingress = cast("ModelIngress", controller._ingress)
        shares = ingress._shares.get((REGION, ""))
        return BrainState(
            holder=brain.holder,
            stage=stage,
            epoch=memory.epoch,
            plan=awake(list(memory.targets.values())) if memory.plan is not None else None,
            planned=memory.planned.nodes,
            aim=next((aim for aim in "abc" if intensity == intensity_of(aim)), ""),
            members=tuple(_known(memory.members.members[name]) for name in self.names),
            weights=_rounded(weights),
            had=tuple(sorted((name, round(sum(own.values()), 6)) for name, own in memory.rates_given.items())),
            given=frozenset(memory.given),
            in_force=memory.in_force,
            shares=_rounded(shares),
            orders=tuple(
                OrderState(order.kind, order.node, order.epoch, task.done())
                for order, task in controller._actor._orders._running.values()
            ),
            again=frozenset(what for what, at_s in again.items() if _old(at_s)),
        )


def _rounded(shares: Mapping[str, float] | None) -> tuple[tuple[str, float], ...] | None:
    return None if shares is None else tuple(sorted((name, round(own, 6)) for name, own in shares.items()))


def _member(member: ClusterMember, name: str, own: MemberState) -> None:
    member.phase, member.since_s = own.phase, _since(own.old)
    if own.heard is not None:
        member.report = report_of((), name, own.heard, -1.0)
        member.heard_s = max(_since(own.silent), member.since_s) if own.anew else _since(own.silent) - RECENT_S
        member.sent_s = member.heard_s - (0.5 if own.after else 0.0)
    elif not own.silent:  # restored: it was heard of by the controller before
        member.heard_s = member.sent_s = _since(False)
    member.attempts = own.attempts
    member.retry_s = NOW_S + 50.0 if own.waits else -math.inf
    member.admitted, member.address = own.admitted, (url_of(name), "") if own.address else ("", "")
    member.epoch_sent = own.sent
    member.ended_s = _since(False) if own.ended else -math.inf


def _known(member: ClusterMember) -> MemberState:
    report = member.report
    heard = None
    if report is not None:
        server = next((key for key, value in _STATES.items() if value == report.node.state), "off")
        heard = Heard(server, report.target_epoch, report.newest_epoch, report.started_s == 1.0)
    return MemberState(
        phase=member.phase,
        old=_old(member.since_s),
        silent=_old(member.heard_s),
        anew=member.heard_s >= member.since_s,
        after=member.heard_s > member.sent_s,
        heard=heard,
        attempts=min(member.attempts, 1),
        waits=member.retry_s > NOW_S,
        admitted=member.admitted,
        address=member.address != ("", ""),
        sent=member.epoch_sent,
        ended=not _old(member.ended_s),
    )

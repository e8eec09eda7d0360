"""One look of a production controller at a modelled cluster.

`Looker.look` makes a `ClusterController` (with its `ClusterActor`, its memory, `CheckedIngress` and all that these
use) that knows what a `BrainState` says, has it look once through the calls of `cluster_ports`, and takes down what it
knows then.  Its event loop waits for nothing: its time passes when nothing else is to be done.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from clover.cluster.controller.controller import ClusterController
from clover.cluster.controller.members import ClusterMember
from clover.cluster.controller.memory import ClusterMemory, PlannedFor
from clover.cluster.controller.orders import NodeOrder
from clover.cluster.controller.records import ClusterTerms
from clover.cluster.planning.records import (
    ClusterPlan,
    ClusterProblem,
    DeviceFrontier,
    FamilyTerms,
    NodeTarget,
    OperatingPoint,
)
from tests.reference.cluster_ports import (
    KEY,
    LONG_S,
    NODE_STATES,
    NOW_S,
    RECENT_S,
    Calls,
    Gone,
    Happening,
    ModelGrids,
    ModelIngress,
    ModelNodes,
    SteadyDemand,
    awake,
    chosen,
    declared,
    intensity_of,
    is_old,
    plan_of,
    report_of,
    since,
    url_of,
)
from tests.reference.cluster_world import DEMAND, FAMILY, REGION, BrainState, Heard, MemberState, OrderState, World

FLOOR = 90.0


@dataclass
class Looked:
    """What became of a look: what the controller knows after it (None if it died), and its calls and their answers."""

    brain: BrainState | None
    calls: list[str]
    answers: list[object]
    stopped: bool = False


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
            families=(FamilyTerms(family=FAMILY, accuracy_floor=FLOOR, slo_p95_ms=100.0),),
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
        stale: bool = False,
    ) -> Looked:
        """Have a controller that knows `brain` look once; the world is changed by what it does.  `older`: it took
        charge before now, so that another one may have done so since; `stale`: another one has."""
        calls = Calls(world, brain.holder, script, happening, older=older, stale=stale, need=self.need)
        controller = self._controller(brain, calls)
        orders = controller._actor._orders
        calls.epoch = lambda: controller._memory.epoch
        calls.believed = lambda: {n for n, own in controller._memory.members.members.items() if own.usable}
        calls.aged = lambda name: is_old(controller._memory.members.members[name].since_s)
        with contextlib.suppress(Gone):
            self._loop.run_until_complete(controller.step())
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
            since("plan" in brain.again),
            {KEY: DEMAND},
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
        memory.weighed_s = since("weigh" in brain.again)
        controller._saved_s = since("save" in brain.again)
        for order in brain.orders:
            future: asyncio.Future[str] = self._loop.create_future()
            if order.done:
                future.set_result("")
            kept = controller._actor._orders._running
            kept[order.kind, order.node] = (  # type: ignore[index]
                NodeOrder(order.kind, order.node, order.epoch, _target(order.node, order.rate)),  # type: ignore[arg-type]
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
                OrderState(order.kind, order.node, order.epoch, task.done(), _rate(order.target))
                for order, task in controller._actor._orders._running.values()
            ),
            again=frozenset(what for what, at_s in again.items() if is_old(at_s)),
        )


def _rounded(shares: Mapping[str, float] | None) -> tuple[tuple[str, float], ...] | None:
    return None if shares is None else tuple(sorted((name, round(own, 6)) for name, own in shares.items()))


def _target(name: str, rate: float) -> NodeTarget | None:
    return NodeTarget(node=name, awake=True, rates={FAMILY: rate}, accuracy={FAMILY: FLOOR}) if rate else None


def _rate(target: NodeTarget | None) -> float:
    return round(target.rates[FAMILY], 6) if target is not None else 0.0


def _member(member: ClusterMember, name: str, own: MemberState) -> None:
    member.phase, member.since_s = own.phase, since(own.old)
    if own.heard is not None:
        member.report = report_of((), name, own.heard, -1.0)
        member.heard_s = max(since(own.silent), member.since_s) if own.anew else since(own.silent) - RECENT_S
        member.sent_s = member.heard_s - (0.5 if own.after else 0.0)
    elif not own.silent:  # restored: it was heard of by the controller before
        member.heard_s = member.sent_s = since(False)
    member.attempts = own.attempts
    member.retry_s = NOW_S + 50.0 if own.waits else -math.inf
    member.admitted, member.address = own.admitted, (url_of(name), "") if own.address else ("", "")
    member.epoch_sent = own.sent
    member.taken = _target(name, own.taken)
    member.ended_s = since(False) if own.ended else -math.inf


def _known(member: ClusterMember) -> MemberState:
    report = member.report
    heard = None
    if report is not None:
        server = next((key for key, value in NODE_STATES.items() if value == report.node.state), "off")
        heard = Heard(server, report.target_epoch, report.newest_epoch, report.started_s == 1.0)
    return MemberState(
        phase=member.phase,
        old=is_old(member.since_s),
        silent=is_old(member.heard_s),
        anew=member.heard_s >= member.since_s,
        after=member.heard_s > member.sent_s,
        heard=heard,
        attempts=min(member.attempts, 1),
        waits=member.retry_s > NOW_S,
        admitted=member.admitted,
        address=member.address != ("", ""),
        sent=member.epoch_sent,
        taken=_rate(member.taken),
        ended=not is_old(member.ended_s),
    )

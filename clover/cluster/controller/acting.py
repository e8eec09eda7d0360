"""Carry out what a cluster's controller decided: targets, shares, wakes, drains, releases, in the safe order.

A call that fails is noted and tried again at the next look; what depends on it waits (`controller.changes`)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from clover.cluster.controller.capacity import Capacity, Cover, keeps
from clover.cluster.controller.changes import Covers, NodeView, admissions, departures, wakes
from clover.cluster.controller.members import ClusterMember
from clover.cluster.controller.memory import ClusterMemory, words
from clover.cluster.controller.orders import FAILURES, NodeOrder, NodeOrders, OrderEnd, attempt
from clover.cluster.controller.records import ChangeStep, StepKind
from clover.cluster.controller.weights import ClusterShares, Rates, Seat, share
from clover.cluster.planning.records import NodeTarget
from clover.cluster.ports import FamilyIngress, HealthIngress, Ingress, Nodes

RESEND_S = 60.0
"""Seconds after which shares are given to the ingress again, should it have lost them."""
_SAME_SHARE = 0.005
_AT_ONCE = 64
_TIGHT = 0.9
"""Load above which nodes are woken without regard to `ClusterTerms.max_changes`."""


class ClusterActor:
    """Acts on nodes and ingress for a controller whose memory is `memory`.  `in_charge` says whether it still is one:
    asked before nodes leave."""

    def __init__(
        self, memory: ClusterMemory, nodes: Nodes, ingress: Ingress, in_charge: Callable[[], Awaitable[bool]]
    ) -> None:
        self.memory = memory
        self._in_charge = in_charge
        self._nodes = nodes
        self._ingress = ingress
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._orders = NodeOrders(memory.terms.patience_s)

    # --- shares -------------------------------------------------------------------------------------------------------

    async def weigh(self, now_s: float) -> list[ChangeStep]:
        """Give the ingress the shares that hold now, if they differ from those it has."""
        memory = self.memory
        capacity = memory.capacity()
        origins = memory.regions()
        seats = self._seats(capacity)
        flows = memory.plan.flows if memory.plan is not None else None
        shares = share(seats, flows, memory.demand.rates(), origins, capacity.reach)
        memory.missing = {family: rate for family, rate in shares.missing.items() if rate > 1e-6}
        weights = {key: rates for key, rates in shares.weights().items() if rates}
        resend = now_s - memory.weighed_s >= RESEND_S
        steps = []
        own_shares: Mapping[tuple[str, str], Rates] = {}
        if len(memory.terms.families) > 1 and isinstance(self._ingress, FamilyIngress):
            own_shares = weights
            for (family, origin), rates in own_shares.items():
                before = memory.weights.get((family, origin), {})
                if resend or _has_moved(before, rates):
                    done = self._ingress.weigh_family(origin, family, rates)
                    steps.append(await self._weight_step(done, (family, origin), before, rates))
        elif len(memory.terms.families) > 1:
            self._trouble(
                "the ingress shares the rows of all families alike, so nodes get rows that they have no plan for"
            )
        combined = _combine(shares, origins)
        for origin, rates in combined.items():
            before = memory.weights.get(("", origin), {})
            if resend or _has_moved(before, rates):
                steps.append(await self._weight_step(self._ingress.weigh(origin, rates), ("", origin), before, rates))
        if steps and resend:
            memory.weighed_s = now_s
        wanted = [*own_shares, *(("", origin) for origin in combined)]
        memory.in_force = bool(wanted) and all(key in memory.weights for key in wanted)
        self._note_given(shares)
        return [step for step in steps if step.why or step.failed]

    async def _weight_step(
        self, call: Awaitable[None], key: tuple[str, str], before: Rates, rates: Rates
    ) -> ChangeStep:
        family, origin = key
        why = _words(before, rates) if _has_moved(before, rates) else ""
        failed = await self._try(call)
        if failed:  # what the ingress has now is not known: it may have taken them all the same
            self.memory.weights.pop(key, None)
        else:
            self.memory.weights[key] = rates
        return ChangeStep(kind="weigh", node="", why=why, origin=origin, family=family, failed=failed)

    def _seats(self, capacity: Capacity) -> list[Seat]:
        memory = self.memory
        families = [own.family for own in memory.terms.families]
        seats = []
        for name, member in memory.members.members.items():
            if not member.usable or not member.admitted:
                continue
            target = memory.targets.get(name)
            planned = target.rates if target is not None and target.awake else {}
            asked = target is not None and target.awake
            steady = asked and member.epoch_sent < memory.epoch and bool(memory.rates_given)
            seats.append(
                Seat(
                    name,
                    member.node.region,
                    planned,
                    {family: capacity.node_rate(member.node, family) for family in families},
                    True,
                    member.pace,
                    steady,
                    self._keep_rates(name, member, capacity.floors) if steady else {},
                    {family: capacity.node_rate(member.node, family, degraded=True) for family in families},
                )
            )
        there = {seat.name for seat in seats}
        for name, target in memory.targets.items():
            owner = memory.members.members.get(name)
            if target.awake and name not in there and owner is not None:
                seats.append(Seat(name, owner.node.region, target.rates, {}, False))
        return seats

    def _keep_rates(self, name: str, member: ClusterMember, floors: Mapping[str, float]) -> Rates:
        """Return the rows/s by family that a node may have before it has taken the newest target.

        These are the rows that it has, or those that its last target made it ready for, if it answers them as
        accurately as it is asked to now, or as all rows together have to be.  Plans may come faster than a slow node
        takes them: if it kept only the rows that it has, it would never get those that the plans give it."""
        target, had = self.memory.targets[name], self.memory.rates_given.get(name, {})
        return {
            family: max(had.get(family, 0.0), member.ready_for(family, min(floor, target.accuracy.get(family, floor))))
            for family, floor in floors.items()
        }

    def _note_given(self, shares: ClusterShares) -> None:
        """Keep what each node is given by the weights that the ingress has."""
        memory = self.memory
        rates: dict[str, Rates] = {}
        for (family, _), own in shares.rates.items():
            for name, rate in own.items():
                mine = rates.setdefault(name, {})
                mine[family] = mine.get(family, 0.0) + rate
        memory.rates_given = rates
        sums = {name: sum(own.values()) for name, own in rates.items()}
        total = sum(sums.values())
        in_force = {name for own in memory.weights.values() for name in own}
        memory.given = {name: sums.get(name, 0.0) / total if total > 0.0 else 0.0 for name in in_force}

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def change(self, now_s: float) -> list[ChangeStep]:
        """Do what is safe at this look: wake, targets, admit, shares, drain, release, remove."""
        memory = self.memory
        self._take_up(now_s)
        steps = await self._order(wakes(self._views(now_s, {}), self._room(now_s, waking=True)), now_s)
        steps += await self._follow(now_s)
        steps += await self._each("admit", admissions(self._views(now_s, {})), now_s)
        steps += await self.weigh(now_s)
        open_now = await self._open_connections()
        views = self._views(now_s, open_now)
        room, covers = self._room(now_s), self._covers(views)
        planned = departures(views, room, covers)
        if planned:
            planned = departures(await self._vouched_nodes(views), room, covers) if await self._in_charge() else []
        steps += await self._each("drain", [step for step in planned if step.kind == "drain"], now_s)
        steps += await self._order([step for step in planned if step.kind == "release"], now_s)
        # A node is forgotten once it is released, at this look or at a later one.
        gone = [step for step in planned if step.kind == "remove"]
        gone = [step for step in gone if memory.members.members[step.node].phase == "released"]
        return steps + await self._each("remove", gone, now_s)

    def _views(self, now_s: float, open_now: Mapping[str, int]) -> list[NodeView]:
        memory, terms = self.memory, self.memory.terms
        views = []
        for name, member in memory.members.members.items():
            wanted = memory.wanted(name, member)
            if wanted or member.phase not in ("ready", "partitioned"):
                member.unwanted_s = None
            elif member.unwanted_s is None:
                member.unwanted_s = now_s
            views.append(
                NodeView(
                    name=name,
                    phase=member.phase,
                    usable=member.usable and member.hold not in ("drained", "released"),
                    admitted=member.admitted and (not member.usable or member.address == _address(member)),
                    wanted=wanted,
                    may_leave=self._may_leave(member, now_s),
                    weighted=name in memory.given or not memory.in_force,
                    empty=open_now.get(name, 1) == 0 or now_s - member.since_s >= terms.drain_s,
                    stays=member.hold == "drained",
                    ending=self._orders.running("release", name),
                    may_wake=now_s >= member.retry_s and member.hold not in ("drained", "released"),
                )
            )
        return views

    async def _vouched_nodes(self, views: Sequence[NodeView]) -> list[NodeView]:
        """Return the views in which only nodes that the ingress finds healthy are usable, if the ingress can tell.  It
        notices in a second what reports show only after `ClusterTerms.lost_s`, and the last node that answers must not
        leave."""
        ingress = self._ingress
        if not isinstance(ingress, HealthIngress):
            return list(views)
        troubles: dict[str, str] = {}

        async def healthy(view: NodeView) -> bool:
            try:
                async with self._limit, asyncio.timeout(self.memory.terms.patience_s):
                    return await ingress.healthy(view.name)
            except FAILURES as error:
                troubles[view.name] = str(error) or "no answer in time"
                return False

        staying = [view for view in views if view.stays_in_place]
        answers = await asyncio.gather(*(healthy(view) for view in staying))
        answers_by_node = {view.name: answer for view, answer in zip(staying, answers, strict=True)}
        if troubles:
            names, why = words(troubles), next(iter(troubles.values()))
            self._trouble(
                f"the ingress does not say whether {names} can answer, so no node leaves its rows to them: {why}"
            )
        return [replace(view, usable=view.usable and answers_by_node.get(view.name, True)) for view in views]

    def _may_leave(self, member: ClusterMember, now_s: float) -> bool:
        terms = self.memory.terms
        if member.hold in ("drained", "released"):
            return True
        if member.unwanted_s is None or self.memory.plan is None:
            return False
        awake_s = now_s - (member.ready_s if member.ready_s is not None else -math.inf)
        return now_s - member.unwanted_s >= terms.release_after_s and awake_s >= terms.dwell_s

    def _room(self, now_s: float, *, waking: bool = False) -> int:
        """Return how many nodes may begin to wake or to drain now."""
        members = self.memory.members
        if waking:
            usable = frozenset(name for name, member in members.members.items() if member.usable)
            if self._cover("none").load(usable) > _TIGHT:
                return len(members.members)
        most = max(1, math.ceil(self.memory.terms.max_changes * len(members.members)))
        if waking:
            return max(0, most - len(members.in_phase("waking")))
        # One that died as it drained may never say that it has ended: others are not to wait for it.
        silent_s = now_s - self.memory.terms.lost_s
        draining = [name for name in members.in_phase("draining") if members.members[name].heard_s >= silent_s]
        return max(0, most - len(draining))

    def _covers(self, views: Sequence[NodeView]) -> Covers:
        """Return what tells whether nodes can serve all that comes and all that is planned for.  If the plan is in
        place, it has the reserve that was asked for; if not, those that stay have to have it, too."""
        memory = self.memory
        before = frozenset(view.name for view in views if view.usable and view.phase != "draining")
        wanted = [member for name, member in memory.members.members.items() if memory.wanted(name, member)]
        in_place = memory.plan is not None and all(member.usable and member.admitted for member in wanted)
        serve = keeps(self._cover("none"), before)
        if in_place or memory.terms.survive == "none":
            return serve
        survive = keeps(self._cover(memory.terms.survive), before)
        return lambda names: serve(names) and survive(names)

    def _cover(self, survive: str) -> Cover:
        memory = self.memory
        now = memory.demand.rates()
        demands = {key: max(now.get(key, 0.0), memory.planned.rates.get(key, 0.0))
                   for key in now.keys() | memory.planned.rates.keys()}  # fmt: skip
        families = {family.family for family in memory.terms.families}
        demands = {key: rate for key, rate in demands.items() if key[0] in families}
        nodes = [member.node for member in memory.members.members.values()]
        return Cover(memory.capacity(), nodes, demands, survive)

    async def _follow(self, now_s: float) -> list[ChangeStep]:
        """Give targets of the epoch in force to the nodes that do not follow it."""
        memory, due = self.memory, []
        for name, target in memory.targets.items():
            member = memory.members.members.get(name)
            if member is None or not target.awake or not member.usable or member.phase == "partitioned":
                continue
            report = member.report
            if report is None:
                continue  # it has yet to answer this controller
            taken = member.epoch_sent >= memory.epoch
            forgot = report.target_epoch < memory.epoch and member.heard_s > member.sent_s
            if taken and forgot:
                self._trouble(f"{name} took epoch {memory.epoch}, and follows epoch {report.target_epoch}: asked again")
            if not taken or forgot:
                due.append(ChangeStep(kind="follow", node=name, why=f"epoch {memory.epoch}"))
        return await self._order(due, now_s)

    async def _open_connections(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name in self.memory.members.in_phase("draining"):
            try:
                async with asyncio.timeout(self.memory.terms.patience_s):
                    counts[name] = await self._ingress.open_connections(name)
            except Exception as error:  # whatever it is, other nodes have to be looked at, too
                why = str(error) or "no answer in time"
                self._trouble(f"the ingress does not say what {name} has open: {why}")
        return counts

    async def _each(self, kind: StepKind, steps: list[ChangeStep], now_s: float) -> list[ChangeStep]:
        """Ask one kind of step of the ingress for several nodes at once; return what was done, with what failed."""
        failures = await asyncio.gather(*(self._ask(step) for step in steps))
        done = []
        for step, failed in zip(steps, failures, strict=True):
            done.append(ChangeStep(kind=kind, node=step.node, why=step.why, failed=failed))
            member = self.memory.members.members[step.node]
            if failed:
                if kind != "remove":  # it may have been done all the same: the node is admitted anew
                    member.admitted = False
                    if member.phase == "draining":
                        member.enter("ready", now_s)
                continue
            if kind == "admit":
                member.admitted, member.address = True, _address(member)
                if member.phase == "draining":
                    member.enter("ready", now_s)
            elif kind == "drain":
                member.enter("draining", now_s)
            elif kind == "remove":
                member.admitted = False
        self._say_failures(kind, {step.node: step.failed for step in done})
        return done

    async def _ask(self, step: ChangeStep) -> str:
        if step.kind == "admit":
            return await self._try(self._ingress.admit(step.node, *_address(self.memory.members.members[step.node])))
        if step.kind == "drain":
            return await self._try(self._ingress.drain(step.node))
        return await self._try(self._ingress.remove(step.node))

    async def _order(self, steps: list[ChangeStep], now_s: float) -> list[ChangeStep]:
        """Give orders to nodes, and take up how those ended that did, older ones too."""
        memory = self.memory
        orders: list[tuple[NodeOrder, Awaitable[None]]] = []
        given = []
        for step in steps:
            if self._orders.running(step.kind, step.node):
                continue
            given.append(step)
            if step.kind == "wake":
                member = memory.members.members[step.node]
                attempts = member.attempts
                member.enter("waking", now_s)
                member.attempts, member.retry_s = attempts, now_s
                orders.append((NodeOrder("wake", step.node), self._nodes.wake(step.node)))
            elif step.kind == "follow":
                target = self._target_of(step.node)
                order = NodeOrder("follow", step.node, memory.epoch, target)
                orders.append((order, self._nodes.follow(target, memory.epoch)))
            else:
                orders.append((NodeOrder("release", step.node), self._nodes.release(step.node)))
        await self._orders.give(orders)
        failures = {(end.order.kind, end.order.node): end.failed for end in self._take_up(now_s)}
        return [
            ChangeStep(kind=step.kind, node=step.node, why=step.why, failed=failures.get((step.kind, step.node), ""))
            for step in given
        ]

    def _target_of(self, name: str) -> NodeTarget:
        """Return the target that a node is given.  A family without planned rows on the node gets the floor: rows that
        come all the same would otherwise be planned by the node's own policy.  A node without any rows stands in for
        the loss of another one, and is asked to be ready for the rows of the node that has most."""
        target = self.memory.targets[name]
        accuracy = {**self.memory.floors(), **target.accuracy}
        rates = target.rates or max((own.rates for own in self.memory.targets.values()), key=_total)
        return msgspec.structs.replace(target, accuracy=accuracy, rates=rates)

    def _take_up(self, now_s: float) -> list[OrderEnd]:
        """Note how orders ended."""
        ends = [end for end in self._orders.take_ended() if end.order.node in self.memory.members.members]
        for end in ends:
            member, order = self.memory.members.members[end.order.node], end.order
            if order.kind == "wake" and end.failed and member.phase == "waking":
                member.record_failure(now_s, end.failed)
            elif order.kind == "follow" and not end.failed:
                member.epoch_sent, member.taken, member.sent_s = order.epoch, order.target, now_s
            elif order.kind == "release" and not end.failed and member.phase == "draining":
                member.enter("released", now_s)
                member.ended_s = now_s
        for kind in ("wake", "follow", "release"):
            ended = [end for end in ends if end.order.kind == kind]
            self._say_failures(kind, {end.order.node: end.failed for end in ended})
        return ends

    def _say_failures(self, kind: str, failures: Mapping[str, str]) -> None:
        failed = {name: why for name, why in failures.items() if why}
        if failed:
            self._trouble(f"{kind} failed for {words(failed)}: {next(iter(failed.values()))}")

    async def _try(self, call: Awaitable[None]) -> str:
        """Wait for a call to the ingress; return what failed, empty if nothing did."""
        return await attempt(call, self.memory.terms.patience_s, self._limit)

    async def close(self) -> None:
        """Give up orders that are under way."""
        await self._orders.close()

    def _trouble(self, text: str) -> None:
        self.memory.troubles.append(text)


def _total(rates: Rates) -> float:
    return sum(rates.values())


def _address(member: ClusterMember) -> tuple[str, str]:
    report = member.report
    return (report.url, report.grpc_url) if report is not None else member.address


def _combine(shares: ClusterShares, origins: tuple[str, ...]) -> dict[str, Rates]:
    """Return the shares of each origin over all families, as parts of 1."""
    combined = {}
    for origin in origins:
        own: Rates = {}
        for (_, of), rates in shares.rates.items():
            if of == origin:
                for name, rate in rates.items():
                    own[name] = own.get(name, 0.0) + rate
        total = sum(own.values())
        if total > 0.0:
            combined[origin] = {name: rate / total for name, rate in own.items() if rate > 1e-6 * total}
    return combined


def _has_moved(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    if before.keys() != after.keys():
        return True
    return any(abs(after[name] - before[name]) > _SAME_SHARE * max(after[name], before[name]) + 1e-4 for name in after)


def _words(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Return a change of shares as people read it: the nodes whose share changed most."""
    moved = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in before.keys() | after.keys()}
    most = sorted(moved, key=lambda name: (-abs(moved[name]), name))[:3]
    return ", ".join(f"{name} {before.get(name, 0.0):.1%} -> {after.get(name, 0.0):.1%}" for name in most)

"""The controller of a cluster: shares demand between nodes and regions so that emissions fall, and nothing is lost.

One look (`ClusterController.step`) asks all nodes for their reports and all regions for their grids, sums demand by
family and origin, corrects the accuracy floors by what was really answered, makes a plan if something asks for one,
and does of it what is safe now.  It is pure over the ports (`clover.cluster.ports`) and an injected clock: Ray and
HAProxy, or a simulation, are alike to it.

**One controller at a time.**  Every plan that is applied has an epoch, one higher than the last.  Nodes ignore targets
of older ones, so that a controller that was thought dead can give no orders any more; if it sees a newer epoch in a
report, or another holder in the store, it stops and says so.  A controller that starts takes up the state of the one
before with an epoch that is higher than any it can see, and changes nothing else without need.

**What it does not do.**  It answers no request and is on no request's way: while it is away, the ingress shares as it
was last asked to, and nodes serve as they were.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from clover.cluster.controller.acting import ClusterActor
from clover.cluster.controller.dry import DryNodes, DryStore, dry_ingress
from clover.cluster.controller.memory import ClusterMemory, StateHolder, words
from clover.cluster.controller.orders import FAILURES
from clover.cluster.controller.problem import (
    Plan,
    plain,
    planned_for,
    problem_of,
    regions_unread,
    says_anew,
    why_plan,
    with_all_that_may_help,
)
from clover.cluster.controller.records import (
    ClusterDecision,
    ClusterLook,
    ClusterStatus,
    ClusterTerms,
    Hold,
)
from clover.cluster.controller.status import status_of
from clover.cluster.planning.records import ClusterPlan, ClusterProblem
from clover.cluster.ports import HealthIngress, Ingress, NodeReport, Nodes, RegionGrids, Store
from clover.errors import ClusterError
from clover.malformed import MALFORMED

log = logging.getLogger("clover.cluster")

SAVE_S = 60.0
"""Seconds after which the state is saved although nothing was decided: what was served counts."""
_FORECAST_S = 3600.0
_PLAN_AGAIN_S = 30.0
"""Seconds from a plan that failed to the next one."""

Solve = Callable[[ClusterProblem], Awaitable[ClusterPlan]]
T = TypeVar("T")


def in_thread(plan: Plan) -> Solve:
    """Return what makes plans in a thread, so that a large one does not keep the event loop."""

    async def solve(problem: ClusterProblem) -> ClusterPlan:
        return await asyncio.to_thread(plan, problem)

    return solve


class ClusterController:
    """Keeps a cluster as its terms want it.

    `solve` makes plans (`in_thread(plan_cluster)`), `clock` gives Unix seconds, `holder` tells this controller from
    another one of the same cluster (by default drawn at random).  All methods belong on one event loop.
    """

    def __init__(
        self,
        terms: ClusterTerms,
        nodes: Nodes,
        ingress: Ingress,
        store: Store,
        grids: RegionGrids,
        solve: Solve,
        clock: Callable[[], float] = time.time,
        holder: str = "",
    ) -> None:
        self.terms = terms
        self.holder = holder or secrets.token_hex(8)
        self.stopped = ""
        """Why this controller controls nothing any more; empty while it does."""
        self._nodes, self._ingress, self._store, self._grids = nodes, ingress, store, grids
        self._solve = solve
        self._clock = clock
        self._memory = ClusterMemory.new(terms, clock())
        self._actor = ClusterActor(self._memory, nodes, ingress, self._in_charge)
        self._restored = False
        self._taken_over = False
        self._saved_s: float | None = None
        self._early: dict[str, Hold | None] = {}
        """What operators asked of nodes before the saved state was read."""
        self._failing = ""
        """Why the last look failed; empty if it did not."""
        self._lock = asyncio.Lock()

    # --- looks --------------------------------------------------------------------------------------------------------

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Look every `ClusterTerms.look_s`; return if another controller took over.  A look that fails is logged, and
        the next one is taken all the same."""
        try:
            while not self.stopped:
                try:
                    await self.step()
                    self._failing = ""
                except Exception as error:
                    self._failing = f"the last look failed, so what is shown may be older: {error!r}"
                    log.exception("a look at the cluster failed")
                await sleep(self.terms.look_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """Give up orders to nodes that are under way; a controller that starts later gives them again."""
        await self._actor.close()

    async def step(self, *, dry: bool = False) -> ClusterLook:
        """Look once.  `dry`: make a plan, say what would be done now, and do nothing."""
        async with self._lock:
            if dry:
                return await self._rehearse()
            known = set(self._memory.troubles)
            look = await self._observe(force="")
            for text in dict.fromkeys(self._memory.troubles):
                if text not in known:  # once, and not at each look that finds it again
                    log.warning("%s", text)
            return look

    async def _rehearse(self) -> ClusterLook:
        """Look with a copy of the memory, through ports that change nothing."""
        nodes, ingress = DryNodes(self._nodes), dry_ingress(self._ingress)
        twin = ClusterController(
            self.terms, nodes, ingress, DryStore(self._store), self._grids, self._solve, self._clock, self.holder
        )
        twin._memory = copy.deepcopy(self._memory)
        twin._actor = ClusterActor(twin._memory, nodes, ingress, twin._in_charge)
        twin._restored, twin._taken_over, twin.stopped = self._restored, self._taken_over, self.stopped
        look = await twin._observe(force="dry run")
        decision = look.decision
        if decision is not None and decision.action != "stopped":
            decision = msgspec.structs.replace(decision, action="dry run")
        return msgspec.structs.replace(look, dry=True, decision=decision)

    async def _observe(self, force: str) -> ClusterLook:
        memory, now_s = self._memory, self._clock()
        memory.troubles.clear()
        if memory.looked_s is not None and now_s < memory.looked_s:
            memory.set_back(memory.looked_s - now_s)
            memory.troubles.append("the clock was set back: what was due after a time is due after the same time")
            self._saved_s = None
        if not self._restored:
            await self._restore(now_s)
            memory = self._memory
        if not self._restored or not await self._in_charge():
            return self._idle(now_s)
        reports = await self._reports(now_s)
        memory.advance_totals(now_s)
        if reports is None:
            return self._idle(now_s)
        await self._read_grids(now_s)
        changed = memory.record_reports(now_s, reports)
        for text in changed:
            log.info("%s", text)
        await self._tell_partitions(now_s)
        newest = memory.members.newest_epoch(met=True)
        if self._taken_over and newest > memory.epoch:
            self._stop(f"a node follows epoch {newest}, which is newer than {memory.epoch}", now_s)
            return msgspec.structs.replace(self._idle(now_s), decision=memory.decisions[-1])
        await self._take_over(now_s)
        if self.stopped:
            return msgspec.structs.replace(self._idle(now_s), decision=memory.decisions[-1])
        limits_ms = {family.family: family.slo_p95_ms for family in self.terms.families}
        memory.troubles += memory.members.pace(now_s, limits_ms, memory.targets)
        steps = await self._actor.weigh(now_s)  # what was lost gets nothing from now on, whatever else is decided
        trigger = force or (why_plan(memory, now_s) if now_s >= memory.plan_again_s else "")
        decision = await self._plan(trigger, now_s) if trigger else None
        if not self.stopped:
            steps += await self._actor.change(now_s)
        self._note_troubles()
        if (
            (decision is not None and decision.action == "applied")
            or changed
            or any(step.kind != "weigh" for step in steps)
            or self._saved_s is None
            or now_s - self._saved_s >= SAVE_S
        ):
            await self._save(now_s)
        return msgspec.structs.replace(self._idle(now_s), trigger=trigger, steps=tuple(steps), decision=decision)

    def _idle(self, now_s: float) -> ClusterLook:
        """Return a look that did nothing."""
        memory = self._memory
        return ClusterLook(
            at_s=now_s,
            epoch=memory.epoch,
            trigger="",
            plan=memory.plan,
            steps=(),
            stopped=self.stopped,
            troubles=tuple(dict.fromkeys(memory.troubles)),
        )

    # --- what it sees -------------------------------------------------------------------------------------------------

    async def _reports(self, now_s: float) -> Mapping[str, NodeReport] | None:
        """Return the reports, None if no node could be asked: then their silence says nothing, and nothing is done."""
        memory = self._memory
        try:
            return await self._within(self._nodes.reports())
        except FAILURES as error:
            memory.members.unheard(now_s - (memory.looked_s if memory.looked_s is not None else now_s))
            memory.troubles.append(
                f"no node can be asked, so everything is left as it is: {error or 'no answer in time'}"
            )
            return None

    async def _read_grids(self, now_s: float) -> None:
        memory = self._memory
        try:
            memory.readings.update(await self._within(self._grids.readings(now_s)))
            horizon_s = max(_FORECAST_S, self.terms.horizon_s)
            for name, ahead in (await self._within(self._grids.forecasts(now_s, horizon_s))).items():
                memory.forecasts[name] = tuple((reading.at_s, reading.g_per_kwh) for reading in ahead)
        except Exception as error:  # whatever is wrong with a grid, nodes have to be looked at
            why = str(error) or "no answer in time"
            memory.troubles.append(f"the grids cannot be read, so the last intensities hold: {why}")

    async def _tell_partitions(self, now_s: float) -> None:
        """Ask the ingress about nodes that just fell silent: dead, or only out of the controller's reach."""
        members = self._memory.members
        silent = [name for name, own in members.members.items() if own.phase == "lost" and own.since_s == now_s]
        silent += members.in_phase("partitioned")
        if not silent or not isinstance(self._ingress, HealthIngress):
            return
        for name in silent:
            member = members.members[name]
            try:
                healthy = member.in_ingress and await self._within(self._ingress.healthy(name))
            except Exception as error:  # whatever it is, other nodes have to be looked at, too
                self._memory.troubles.append(f"the ingress does not say whether {name} is healthy: {error!r}")
                continue
            if healthy and member.phase == "lost" and not member.attempts:
                members.record_partition(name, now_s)
            elif not healthy and member.phase == "partitioned":
                member.enter("lost", now_s, "neither the controller nor the ingress reaches it")

    def _note_troubles(self) -> None:
        memory = self._memory
        members = memory.members
        if unread := regions_unread(memory):
            memory.troubles.append(
                f"the intensity of {words(unread)} is not known: planned with as if it were the highest of the others"
            )
        for name, member in members.members.items():
            if member.phase in ("lost", "partitioned") or (member.phase == "ready" and member.why):
                memory.troubles.append(f"{name} is {member.phase}: {member.why}")
            if member.phase == "ready" and member.hold in ("drained", "released") and memory.given.get(name, 0.0) > 0.0:
                memory.troubles.append(
                    f"{name} is to be {member.hold} and serves on, until others can take all its rows"
                )
        for family, rate in memory.missing.items():
            asleep = members.in_phase("released", "waking")
            rest = f"{words(asleep)} are not awake yet" if asleep else "all nodes are awake"
            memory.troubles.append(f"{rate:.4g} rows/s of {family} have no node with room: {rest}")
        if (plan := memory.plan) is not None:
            for family, rate in plan.unserved.items():
                memory.troubles.append(f"the plan cannot serve {rate:.4g} rows/s of {family}: {plan.reason}")

    # --- what it decides ----------------------------------------------------------------------------------------------

    async def _plan(self, trigger: str, now_s: float) -> ClusterDecision | None:
        """Make a plan and put it in force if it says anything new."""
        memory = self._memory
        problem = problem_of(memory, now_s)
        if not problem.regions or not problem.frontiers:
            what = "the intensity of a region" if not problem.regions else "what nodes can serve"
            memory.troubles.append(f"no plan can be made: {what} is not known yet")
            return None
        made_for = planned_for(memory, now_s)
        began = time.perf_counter()
        try:
            plan = with_all_that_may_help(plain(await self._solve(problem)), problem, memory.reach())
        except Exception as error:  # a planner that fails must not end the loop; the plan in force stays
            log.exception("no plan could be made")
            memory.plan_again_s = now_s + _PLAN_AGAIN_S
            memory.troubles.append(f"no plan could be made, so what is in force stays: {error}")
            return memory.record(self._decision("failed", trigger, str(error), None, now_s, began))
        if not await self._in_charge():  # a plan may take long enough for another controller to take over
            return memory.decisions[-1]
        memory.planned = made_for
        if not says_anew(plan, memory.plan, memory.targets):
            assert memory.plan is not None
            memory.plan = msgspec.structs.replace(plan, flows=memory.plan.flows)
            return memory.record(self._decision("kept", trigger, plan.reason, plan, now_s, began))
        decision = self._decision("applied", trigger, plan.reason, plan, now_s, began)
        memory.plan = plan
        memory.targets = {target.node: target for target in plan.targets}
        memory.epoch = max(memory.epoch, memory.members.seen_epoch()) + 1
        decision = memory.record(msgspec.structs.replace(decision, epoch=memory.epoch))
        log.info("epoch %d: %s: %s", memory.epoch, trigger, plan.reason)
        await self._save(now_s)  # before any node hears of the epoch
        return decision

    def _decision(
        self, action: str, trigger: str, reason: str, plan: ClusterPlan | None, now_s: float, began: float
    ) -> ClusterDecision:
        memory = self._memory
        awake = {target.node for target in plan.targets if target.awake} if plan is not None else set()
        before = {name for name, target in memory.targets.items() if target.awake}
        if memory.plan is None:
            before = set(memory.members.in_phase("ready", "partitioned"))
        changes = action == "applied"
        document = {
            "id": memory.next_id(),
            "at_s": now_s,
            "last_at_s": now_s,
            "epoch": memory.epoch,
            "trigger": trigger,
            "action": action,
            "reason": reason,
            "woken": tuple(sorted(awake - before)) if changes else (),
            "released": tuple(sorted(before - awake)) if changes else (),
            "seconds": time.perf_counter() - began,
        }
        if plan is not None:
            document |= {name: getattr(plan, name) for name in _FIGURES}
        return msgspec.convert(document, ClusterDecision)

    # --- one controller at a time -------------------------------------------------------------------------------------

    async def _restore(self, now_s: float) -> None:
        """Take up what the controller before left; without an answer of the store, nothing is controlled yet."""
        memory = self._memory
        try:
            state = await self._within(self._store.load())
        except FAILURES as error:
            memory.troubles.append(f"nothing is controlled before the saved state can be read: {error}")
            return
        self._restored = True
        if state is None:
            return
        try:
            memory.restore(state, now_s)
        except MALFORMED as error:
            self._memory = self._actor.memory = memory = ClusterMemory.new(self.terms, now_s)
            memory.troubles.append(f"the saved state was damaged and is not used: {error}")
        for name, hold in self._early.items():
            memory.members.members[name].hold = hold

    async def _take_over(self, now_s: float) -> None:
        """Begin an epoch of this controller's own, above any that is seen.  A node that answers later than the others,
        or had followed a controller whose state was lost, may have a higher one: then above that, too."""
        members = self._memory.members
        seen = max(members.newest_epoch(met=False), members.seen_epoch())
        members.meet()
        if not self._taken_over or seen > self._memory.epoch:
            self._taken_over = True
            self._memory.epoch = max(self._memory.epoch, seen) + 1
            await self._save(now_s)  # before any node hears of the epoch

    async def _in_charge(self) -> bool:
        """Return whether this controller still is the one of its cluster, by what the store says now.  It is asked
        before everything that another controller could not undo at once: nodes that leave, and the saved state."""
        if self._taken_over and not self.stopped:
            await self._fence_by_store()
        return not self.stopped

    async def _fence_by_store(self) -> None:
        try:
            state = await self._within(self._store.load())
            holder = msgspec.json.decode(state, type=StateHolder) if state is not None else None
        except FAILURES as error:
            self._memory.troubles.append(f"the saved state cannot be read: {error}")
            return
        except MALFORMED as error:
            self._memory.troubles.append(f"the saved state is damaged and will be written again: {error}")
            return
        if holder is not None and holder.holder != self.holder and holder.epoch >= self._memory.epoch:
            self._stop(f"another controller ({holder.holder}) saved epoch {holder.epoch}", self._clock())
        elif holder is not None and holder.holder != self.holder:
            self._saved_s = None  # an older one saved after this one did: who starts next shall find this one's

    def _stop(self, why: str, now_s: float) -> None:
        self.stopped = f"another controller is in charge: {why}"
        log.error("this controller stops: %s", self.stopped)
        self._memory.record(self._decision("stopped", "takeover", self.stopped, None, now_s, time.perf_counter()))

    async def _save(self, now_s: float) -> None:
        if not await self._in_charge():
            return
        try:
            await self._within(self._store.save(self._memory.snapshot(self.holder, now_s)))
            self._saved_s = now_s
        except FAILURES as error:
            self._memory.troubles.append(f"the state cannot be saved: {error}")

    async def _within(self, call: Awaitable[T]) -> T:
        async with asyncio.timeout(self.terms.patience_s):
            return await call

    # --- operators ----------------------------------------------------------------------------------------------------

    def hold(self, name: str, hold: Hold | None) -> None:
        """Keep a node as an operator wants it from the next look on: "drained" (running, without rows), "released",
        "awake", or None to leave it to plans again.  ClusterError if there is no such node."""
        member = self._memory.members.members.get(name)
        if member is None:
            nodes = words(self._memory.members.members, most=20)
            raise ClusterError(f"there is no node {name!r}; there are {nodes}")
        member.hold = hold
        if not self._restored:
            self._early[name] = hold
        self._saved_s = None  # an operator's word is kept from the next look on

    def status(self) -> ClusterStatus:
        """Return how the cluster does, as of the last look."""
        status = status_of(self._memory, self._clock(), self.stopped)
        troubles = (self._failing, *status.troubles) if self._failing else status.troubles
        return msgspec.structs.replace(status, troubles=troubles)


_FIGURES = ("grams_h", "bound_g_h", "alone_g_h", "awake_g_h", "unserved")

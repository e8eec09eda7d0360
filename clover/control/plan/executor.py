"""The executor: puts a plan in force, rolls a bad one back, and gives up workers on devices that are lost.

Whether a plan may be taken is decided in `clover.control.plan.gate`.  Only the capacity floor is checked here again,
because devices may have changed since.  `clover.control.state.apply` carries a transition out step by step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from msgspec import structs

from clover.control.plan.gate import below_floor, changes_routing, keeps_workers
from clover.control.plan.recording import PlanResult, record
from clover.control.plan.ways import Way, Ways
from clover.control.state.apply import NOWHERE, ApplyError, interim
from clover.control.state.context import Context
from clover.control.state.family import DeployedPlan, Family, Watch
from clover.control.state.parked import parking_words
from clover.control.state.request import PlanRequest
from clover.control.state.triggers import RETRY_S
from clover.planning.transition.memory import Swap
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, Configuration, Decision, DeviceShape, Plan, Routing, Transition

log = logging.getLogger("clover.control")


class Executor:
    """Carries out plans.  The caller holds the context's lock."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def transition(self, family: Family, target: tuple[Assignment, ...]) -> Transition:
        """Return the steps from the workers that shall run now to `target`: the fewest that keep the capacity floor."""
        return self.ways(family, target).quick()

    def ways(self, family: Family, target: tuple[Assignment, ...]) -> Ways:
        """Return the ways from the workers that shall run now to `target`."""
        context = self._context
        context.look_at_memory(family)
        shapes, share = self.shapes(), context.share_of(family)
        return Ways(
            running=family.desired,
            target=target,
            devices=shapes,
            leg=lambda before, after, floor, replaced: self._steps(family, before, after, shapes, floor, replaced),
            capacity=family.capacity(share),
            floor=family.capacity_floor() if family.desired else 0.0,
            durations=family.step_seconds(shapes, target),
            resident=family.slice_memory().resident,
        )

    def shapes(self) -> tuple[DeviceShape, ...]:
        """Return what the devices allow now."""
        return tuple(self._context.device_pool.shapes().values())

    def _steps(
        self,
        family: Family,
        running: Sequence[Assignment],
        target: Sequence[Assignment],
        shapes: Sequence[DeviceShape],
        floor: float = math.inf,
        replaced: Collection[str] = (),
    ) -> Transition:
        """Return the steps from `running` to `target`, given the memory that workers have and the time that they take.
        `replaced`: placements whose process will be another one by then."""
        swap = Swap(family.slice_memory().without(replaced), running, target)
        transition = plan_transition(
            running,
            target,
            shapes,
            capacity=family.capacity(self._context.share_of(family)),
            floor=floor,
            durations=family.step_seconds(shapes, target),
            beside=swap.beside,
            resident=swap.memory.resident,
        )
        return structs.replace(transition, memory=swap.words)

    async def apply(
        self,
        family: Family,
        plan: Plan,
        way: Way | None = None,
        *,
        may_lose: bool = False,
    ) -> PlanResult:
        """Put `plan` in force: by routing alone if its workers run already, else by a transition, after which the new
        deployment is watched.  Refuses a transition below the capacity floor, unless it `may_lose` capacity.
        `way`: the transition that was chosen, with how rows go on it, unless the devices changed since."""
        context, deployed = self._context, family.deployed
        if deployed is not None and keeps_workers(plan, deployed):
            return PlanResult(action=self._reroute(family, deployed, plan), plan=plan)
        if deployed is None:
            await self._adopt_instances(plan.deployment)
        if way is not None and way.shapes != self.shapes():
            way = None
        transition = way.transition if way is not None else self.transition(family, plan.deployment)
        family.transition = transition
        stay = below_floor(plan, transition, may_lose or context.config.allow_capacity_loss)
        if deployed is not None and stay is not None:
            return PlanResult(action="refused", detail=stay.reason, plan=plan)
        before = deployed.configuration if deployed is not None else None
        target = DeployedPlan(plan.deployment, plan.routing, plan)
        action, detail = await self._change(family, target, transition, way.routing if way is not None else {})
        if action == "applied":
            seen = family.fleet.observe()
            family.watch = Watch(
                since_s=context.monotonic(),
                rows=seen.get("rows", 0.0),
                restarts=seen.get("restarts", 0.0),
                rate=family.rate(context.config),
                queue_rows=seen.get("queue_rows", 0.0),
                late_ms=family.observed.get("p95_ms", math.inf) if family.slo.late else math.nan,
            )
        return PlanResult(action=action, detail=detail, plan=plan, before=before)

    async def roll_back(self, family: Family, why: str) -> Decision:
        """Return to the last good deployment and back the present configuration off."""
        context = self._context
        started_s = context.monotonic()
        bad, good = family.deployed, family.good
        assert bad is not None
        assert good is not None
        until_s = family.back_off(bad.configuration, started_s)
        family.rollbacks += 1
        family.transition = self.transition(family, good.deployment)
        action, more = await self._change(family, good, family.transition, {})
        reading = context.grid.reading
        if reading is not None:
            family.triggers.record_plan(reading, family.rate(context.config), family.missing)
        family.triggers.again(until_s)
        family.watch = None
        detail = f"{why}; this configuration is left alone for {until_s - started_s:.0f} s"
        if action == "applied":
            result = PlanResult(action="rolled back", detail=detail, plan=good.plan)
        else:
            result = PlanResult(action=action, detail=f"{detail}; {more}", plan=good.plan)
        return record(context, family, PlanRequest(trigger="verification"), started_s, result)

    async def give_up(self, family: Family, devices: Collection[str]) -> Decision:
        """Serve without the workers on `devices`, which are lost: rows go at once to the workers that are left."""
        context, deployed = self._context, family.deployed
        started_s = context.monotonic()
        names = ", ".join(sorted(devices))
        reason = f"{names} {'is' if len(devices) == 1 else 'are'} lost"
        before = family.desired
        left = tuple(item for item in before if item.placement.device not in devices)
        if deployed is not None:
            routing = interim(left, deployed.routing, deployed.routing)
            if left:
                family.fleet.route(left, routing)
            family.deployed = DeployedPlan(left, routing, deployed.plan) if left else None
        await family.applier.forget(devices, reason)
        family.good = family.watch = None
        family.transition = None
        if deployed is not None and not left:
            family.triggers.again(started_s)
        result = PlanResult(
            action="routed" if left else "failed",
            detail=f"{len(before) - len(left)} of {len(before)} workers given up",
            plan=deployed.plan if deployed is not None else None,
        )
        return record(context, family, PlanRequest(trigger=reason), started_s, result)

    def _reroute(self, family: Family, deployed: DeployedPlan, plan: Plan) -> str:
        """Route rows to the workers that run as `plan` has it; return the action for the record."""
        changed = changes_routing(deployed.routing, plan.routing)
        if changed:
            family.fleet.route(deployed.deployment, plan.routing)
            family.turned += (deployed.routing.chain, deployed.routing.thresholds) != (
                plan.routing.chain,
                plan.routing.thresholds,
            )
        routed = DeployedPlan(deployed.deployment, plan.routing if changed else deployed.routing, plan)
        if family.good is deployed:
            family.good = routed
        family.deployed = routed
        return "routed" if changed else "kept"

    async def _change(
        self,
        family: Family,
        target: DeployedPlan,
        transition: Transition,
        on_the_way: Mapping[Configuration, Routing],
    ) -> tuple[str, str]:
        """Carry out `transition`; return the action for the record, and what went wrong."""
        context, deployed = self._context, family.deployed
        family.applier.way_back = partial(self._steps, family)
        try:
            notes = await family.applier.run(
                transition,
                before=family.desired,
                routing_before=deployed.routing if deployed is not None else NOWHERE,
                routing=target.routing,
                capacity=family.capacity(context.share_of(family)),
                on_the_way=on_the_way,
            )
        except ApplyError as error:
            now_s = context.monotonic()
            family.triggers.again(family.back_off(target.configuration, now_s))
            if not error.restored:
                self._take_stock(family)
            follows = [family.memory_troubles.record(failed, target.deployment) for failed in error.starts]
            if any(follows) and family.deployed is None:
                family.triggers.again(now_s)  # nothing runs, so the next plan is made at once
            text = "; ".join(dict.fromkeys(filter(None, (str(error), *follows))))
            return ("rolled back" if error.restored and deployed is not None else "failed"), text
        devices = context.devices_of(family.name)
        family.sleep.record_change(devices, family.desired, target.deployment, context.monotonic())
        notes = (*notes, *parking_words(devices, family.desired, target.deployment))
        family.deployed = target
        family.changes += 1
        context.count_parked()
        return "applied", "; ".join(notes)

    async def _adopt_instances(self, deployment: tuple[Assignment, ...]) -> None:
        """Take over the instances of an earlier run that `deployment` needs, and remove the rest: before the first
        workers of a family start on its GPUs."""
        for name in sorted({item.placement.device for item in deployment}):
            gpu = self._context.device_pool.gpu(name)
            if gpu is not None and not gpu.lost:
                others = [place for places in self._context.occupied().values() for place in places]
                adopted = await gpu.reconcile([*(item.placement for item in deployment), *others])
                standing = gpu.report()
                if adopted and standing.get("mig") and not standing.get("fixed"):  # else nobody made them
                    log.info("%s: adopted %s from an earlier run", name, ", ".join(place.id for place in adopted))

    def _take_stock(self, family: Family) -> None:
        """Make the workers that are left the deployment in force, after the way back of a transition failed."""
        deployed, left = family.deployed, family.applier.workers
        if deployed is None:
            return
        # Nothing left is like before the start: the next plan counts on no worker, and starts all of its own.
        family.deployed = DeployedPlan(left, deployed.routing, deployed.plan) if left else None
        family.good = None
        family.watch = None
        family.triggers.again(self._context.monotonic() + RETRY_S)

"""The planner: from a reason to a decision, for one family at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from clover.control.apply import NOWHERE, ApplyError, interim
from clover.control.family import Family, Pin, Standing, Targets, Watch
from clover.control.gate import Gate, checked, moved, refusal, same, transition_to, unless_worse, words
from clover.control.inputs import inputs_of
from clover.control.triggers import RETRY_S
from clover.errors import CloverError, PlanError
from clover.planning.model.problem import LEAST_RATE
from clover.policies import BUDGETED, SPENDING
from clover.policies.demanded import heeds, with_met
from clover.types import Assignment, Decision, Plan, State, Transition

if TYPE_CHECKING:
    from clover.control.controller import Controller, Solver

log = logging.getLogger("clover.control")


class Planner:
    """Makes plans and carries them out.  The caller holds the controller's lock."""

    def __init__(self, controller: Controller, solver: Solver) -> None:
        self._controller = controller
        self._solver = solver
        self._gate = Gate(controller, solver)

    async def proposed(
        self,
        family: Family,
        *,
        pin: Pin | None = None,
        targets: Targets | None = None,
        g_per_kwh: float | None = None,
        rate: float | None = None,
    ) -> tuple[State, Plan]:
        """Return the state and the plan of the policy in force (or of `pin`), with what is given in place of what
        holds."""
        controller, config = self._controller, self._controller.config
        reading = controller.reading or await controller.look_at_grid()
        devices = controller.devices_of(family)
        if not devices:
            raise PlanError(f"no device is left for {family.name}{controller.why_none()}")
        held = pin or family.pin or Pin(policy=config.policy)
        rate = rate if rate is not None else family.triggers.held(family.rate(config), config.rate_change)
        grid_s = controller.grid_clock.now()
        outlook = None
        if held.policy in SPENDING:
            family.ledger.look(grid_s, family.observed, family.config.budget_horizon_s)
            outlook = await controller.grid.outlook(
                family.ledger,
                reading=reading,
                grid_s=grid_s,
                horizon_s=family.config.budget_horizon_s,
                rate=max(family.observed.get("arrival_rate", 0.0), LEAST_RATE),  # not what is planned for in case
            )
        state = family.state(
            reading=reading,
            grid_s=grid_s,
            devices=devices,
            share=controller.device_pool.share(family.name),
            config=config,
            targets=targets,
            g_per_kwh=g_per_kwh,
            rate=rate,
            budgeted=held.policy in BUDGETED,
            outlook=outlook,
            demand=family.demand.wanted(controller.monotonic()) if heeds(held.policy) else (),
        )
        plan = await self._solver.propose(state, held.policy or "objective", held.configuration)
        checked(plan, family, state.objective.slo_ms)
        return with_met(state, plan), plan

    async def plan_and_apply(
        self,
        family: Family,
        trigger: str,
        *,
        force: bool = False,
        operator: str = "",
        pin: Pin | None = None,
        dry_run: bool = False,
        targets: Targets | None = None,
        g_per_kwh: float | None = None,
        rate: float | None = None,
        review: Callable[[State, Plan], tuple[bool, str]] | None = None,
    ) -> Decision:
        """Plan for `trigger` and act on it as the mode allows.  `force` (the start, an operator) acts in any mode and
        waits for no dwell or back-off.  `review` says whether the plan is refused, which changes nothing, and why, or
        what to note of it.  Raises PlanError where no plan was made; what happened to a plan that was made is in the
        decision."""
        controller = self._controller
        started = controller.monotonic()
        own = pin is None  # a plan of the policy in force: only such a one tells what comes of the rows that wait
        # An operator who says what to run, or for which inputs, gets it; a command to plan anew is no such word.
        directed = pin is not None or g_per_kwh is not None or rate is not None or targets not in (None, family.targets)
        family.look(started)
        family.demand.look(started, family.fleet.demanded())
        family.transition = None
        try:
            state, plan = await self.proposed(family, pin=pin, targets=targets, g_per_kwh=g_per_kwh, rate=rate)
        except CloverError as error:
            if not dry_run:
                family.answered(controller.grid_clock.now())
            if not dry_run and controller.reading is not None:  # not every look, but before long
                family.triggers.planned(controller.reading.g_per_kwh, family.rate(controller.config), family.missing)
                family.triggers.again(controller.monotonic() + RETRY_S)
            action = "refused" if dry_run else "failed"
            self._record(family, trigger, action, None, None, started, str(error), operator, tells=own and not dry_run)
            raise
        refused, note = review(state, plan) if review is not None else (False, "")
        if dry_run or refused:
            action = "dry run" if dry_run else "refused"
            return self._record(family, trigger, action, state, plan, started, note, operator, tells=False)
        family.answered(controller.grid_clock.now())
        family.triggers.planned(state.intensity.g_per_kwh, state.arrival_rate, family.missing)
        if not force and controller.mode_of(family) != "active":
            return self._record(family, trigger, "observed", state, plan, started, note, operator, tells=own)
        detail = ""
        avoided = family.backed_off(plan.configuration, controller.monotonic())
        try:
            if not force and (avoided or not same(plan, family.standing)):
                plan, detail = await self._gate.admitted(family, plan, state)
            if not (force and directed):
                plan = unless_worse(plan, family)
            action, more = await self._apply(family, plan)
        except CloverError as error:  # a device changed while the plan was made, or refuses
            action, more = "failed", str(error)
            family.triggers.again(controller.monotonic() + RETRY_S)
        detail = "; ".join(filter(None, (note, detail, more)))
        return self._record(family, trigger, action, state, plan, started, detail, operator, tells=own)

    async def roll_back(self, family: Family, why: str, trigger: str = "verification") -> Decision:
        """Return to the last good deployment and leave the present configuration alone for a while."""
        controller = self._controller
        started = controller.monotonic()
        bad, good = family.standing, family.good
        assert bad is not None
        assert good is not None
        until_s = family.back_off(bad.configuration, started)
        family.rollbacks += 1
        action, more = await self._change(family, good, transition_to(controller, family, good.deployment))
        reading = controller.reading
        if reading is not None:
            family.triggers.planned(reading.g_per_kwh, family.rate(controller.config), family.missing)
        family.triggers.again(until_s)
        family.watch = None
        detail = f"{why}; this configuration is left alone for {until_s - started:.0f} s"
        if action != "applied":
            return self._record(family, trigger, action, None, good.plan, started, f"{detail}; {more}", "")
        return self._record(family, trigger, "rolled back", None, good.plan, started, detail, "")

    async def give_up(self, family: Family, devices: Collection[str]) -> Decision:
        """Go on without the workers on `devices`, which are lost: rows go to those that are left at once."""
        controller = self._controller
        started = controller.monotonic()
        names = ", ".join(sorted(devices))
        reason = f"{names} {'is' if len(devices) == 1 else 'are'} lost"
        standing = family.standing
        before = family.running
        left = tuple(item for item in before if item.placement.device not in devices)
        plan = standing.plan if standing is not None else None
        if standing is not None:
            routing = interim(left, standing.routing, standing.routing)
            if left:
                family.fleet.route(left, routing)
            family.standing = Standing(left, routing, standing.plan) if left else None
        await family.applier.forget(devices, reason)
        family.good = family.watch = None
        family.dwell_until_s = started
        family.transition = None
        if standing is not None and not left:
            family.triggers.again(started)
        detail = f"{len(before) - len(left)} of {len(before)} workers given up"
        return self._record(family, reason, "routed" if left else "failed", None, plan, started, detail, "")

    # --- applying -----------------------------------------------------------------------------------------------------

    async def _apply(self, family: Family, plan: Plan) -> tuple[str, str]:
        """Make `plan` the standing one; the action and what went wrong."""
        controller = self._controller
        standing = family.standing
        target = Standing(plan.deployment, plan.routing, plan)
        if standing is not None and same(plan, standing):
            changed = moved(standing.routing, plan.routing)
            if changed:
                family.fleet.route(standing.deployment, plan.routing)
                family.turned += (standing.routing.chain, standing.routing.thresholds) != (
                    plan.routing.chain,
                    plan.routing.thresholds,
                )
            routed = Standing(standing.deployment, plan.routing if changed else standing.routing, plan)
            if family.good is standing:
                family.good = routed
            family.standing = routed
            return ("routed" if changed else "kept"), ""
        if standing is None:
            await self._clear_the_ground(target.deployment)
        transition = transition_to(controller, family, plan.deployment)
        if standing is not None and not transition.holds and not controller.config.allow_capacity_loss:
            return "refused", f"{words(plan.configuration)} {refusal(transition)}"
        action, more = await self._change(family, target, transition)
        if action == "applied":
            seen = family.fleet.observe()
            family.watch = Watch(
                since_s=controller.monotonic(),
                rows=seen.get("rows", 0.0),
                restarts=seen.get("restarts", 0.0),
                rate=family.rate(controller.config),
                queue_rows=seen.get("queue_rows", 0.0),
            )
        return action, more

    async def _change(self, family: Family, target: Standing, transition: Transition) -> tuple[str, str]:
        controller = self._controller
        standing = family.standing
        try:
            notes = await family.applier.run(
                transition,
                before=family.running,
                routing_before=standing.routing if standing is not None else NOWHERE,
                routing=target.routing,
                capacity=family.capacity(controller.device_pool.share(family.name)),
            )
        except ApplyError as error:
            now_s = controller.monotonic()
            family.triggers.again(family.back_off(target.configuration, now_s))
            family.dwell_until_s = now_s + controller.config.min_dwell_s
            if not error.restored:
                self._take_stock(family)
            return ("rolled back" if error.restored and standing is not None else "failed"), str(error)
        family.standing = target
        family.changes += 1
        family.dwell_until_s = controller.monotonic() + controller.config.min_dwell_s
        return "applied", "; ".join(notes)

    async def _clear_the_ground(self, deployment: tuple[Assignment, ...]) -> None:
        """Before the first workers of a family: of what stands on its GPUs from an earlier run, `deployment` adopts
        what it needs, and the rest goes."""
        for name in sorted({item.placement.device for item in deployment}):
            gpu = self._controller.device_pool.gpu(name)
            if gpu is not None and not gpu.lost:
                adopted = await gpu.reconcile([item.placement for item in deployment])
                if adopted:
                    log.info("%s: adopted %s from an earlier run", name, ", ".join(place.id for place in adopted))

    def _take_stock(self, family: Family) -> None:
        """After a way back that failed: what stands is what there is."""
        standing, left = family.standing, family.applier.workers
        if standing is None:
            return
        # Nothing left is like before the start: the next plan counts on no worker, and starts all of its own.
        family.standing = Standing(left, standing.routing, standing.plan) if left else None
        family.good = None
        family.watch = None
        family.triggers.again(self._controller.monotonic() + RETRY_S)

    def transition(self, family: Family, plan: Plan) -> Transition:
        """Return the steps that `plan` would take from here."""
        return transition_to(self._controller, family, plan.deployment)

    # --- recording ----------------------------------------------------------------------------------------------------

    def _record(
        self,
        family: Family,
        trigger: str,
        action: str,
        state: State | None,
        plan: Plan | None,
        started: float,
        detail: str,
        operator: str,
        *,
        tells: bool = True,
    ) -> Decision:
        controller = self._controller
        seconds = controller.monotonic() - started
        if tells:
            family.demand.decided(action, state, plan, family.running, detail, controller.monotonic())
        if family.demand.held():
            family.triggers.again(controller.monotonic() + RETRY_S)
        level = logging.WARNING if action in ("failed", "rolled back") else logging.INFO
        if action not in ("kept", "dry run"):
            log.log(level, "%s: %s: %s%s", family.name, trigger, action, f": {detail}" if detail else "")
        return controller.record.record(
            family=family.name,
            trigger=trigger,
            mode=controller.mode_of(family),
            action=action,
            grid_s=controller.grid_clock.now(),
            inputs=inputs_of(controller, family, state),
            plan=plan,
            detail=detail,
            seconds=seconds,
            operator=operator,
        )

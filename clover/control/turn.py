"""One turn for one family: from a reason to a decision.  The order of the checks is the policy of the controller."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from clover.control.apply import ApplyError
from clover.control.family import Family, Pin, Standing, Targets, Watch
from clover.control.triggers import RETRY_S
from clover.errors import CloverError, PlanError
from clover.planning.transition import plan_transition
from clover.types import Assignment, Configuration, Decision, Plan, State, Transition

if TYPE_CHECKING:
    from clover.control.controller import Controller, Solver

log = logging.getLogger("clover.control")

_SAME_SHARE = 1e-3


class Turns:
    """Makes plans and carries them out.  The caller holds the controller's lock."""

    def __init__(self, controller: Controller, solver: Solver) -> None:
        self._controller = controller
        self._solver = solver

    async def proposed(
        self,
        family: Family,
        *,
        pin: Pin | None = None,
        targets: Targets | None = None,
        g_per_kwh: float | None = None,
        rate: float | None = None,
    ) -> tuple[State, Plan]:
        """The state and the plan of the policy in force (or of `pin`), with what is given in place of what holds."""
        controller = self._controller
        reading = controller.reading or await controller.look_at_grid()
        total = sum(item.config.share for item in controller.families.values())
        state = family.state(
            reading=reading,
            grid_s=controller.grid_clock.now(),
            devices=tuple(device.shape() for device in controller.devices.values()),
            share=family.config.share / total if total > 0.0 else 1.0,
            config=controller.config,
            targets=targets,
            g_per_kwh=g_per_kwh,
            rate=rate,
        )
        held = pin or family.pin or Pin(policy=controller.config.policy)
        plan = await self._solver.propose(state, held.policy or "objective", held.configuration)
        checked(plan, family)
        return state, plan

    async def turn(
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
    ) -> Decision:
        """Plan for `trigger` and act on it as the mode allows.  `force` (the start, an operator) acts in any mode and
        waits for no dwell or back-off.  Raises PlanError where no plan was made; what happened to a plan that was made
        is in the decision."""
        controller = self._controller
        started = controller.monotonic()
        family.observed = family.fleet.observe()
        try:
            state, plan = await self.proposed(family, pin=pin, targets=targets, g_per_kwh=g_per_kwh, rate=rate)
        except CloverError as error:
            if not dry_run and controller.reading is not None:  # not every look, but before long
                family.triggers.planned(controller.reading.g_per_kwh, family.rate(controller.config), family.missing)
                family.triggers.again(controller.monotonic() + RETRY_S)
            self._record(family, trigger, "refused" if dry_run else "failed", None, None, started, str(error), operator)
            raise
        if dry_run:
            return self._record(family, trigger, "dry run", state, plan, started, "", operator)
        family.triggers.planned(state.intensity.g_per_kwh, state.arrival_rate, family.missing)
        if not force and controller.mode_of(family) != "active":
            return self._record(family, trigger, "observed", state, plan, started, "", operator)
        detail = ""
        avoided = family.backed_off(plan.configuration, controller.monotonic())
        if not force and (avoided or not same(plan, family.standing)):
            plan, detail = await self._held_back(family, plan, state)
        action, more = await self._apply(family, plan)
        detail = "; ".join(filter(None, (detail, more)))
        return self._record(family, trigger, action, state, plan, started, detail, operator)

    async def roll_back(self, family: Family, why: str, trigger: str = "verification") -> Decision:
        """Return to the last good deployment and leave the present configuration alone for a while."""
        controller = self._controller
        started = controller.monotonic()
        bad, good = family.standing, family.good
        assert bad is not None
        assert good is not None
        until_s = family.back_off(bad.configuration, started)
        family.rollbacks += 1
        action, more = await self._change(family, good, self._transition(family, good.deployment))
        reading = controller.reading
        if reading is not None:
            family.triggers.planned(reading.g_per_kwh, family.rate(controller.config), family.missing)
        family.triggers.again(until_s)
        family.watch = None
        detail = f"{why}; this configuration is left alone for {until_s - started:.0f} s"
        if action != "applied":
            return self._record(family, trigger, action, None, good.plan, started, f"{detail}; {more}", "")
        return self._record(family, trigger, "rolled back", None, good.plan, started, detail, "")

    # --- applying -----------------------------------------------------------------------------------------------------

    async def _held_back(self, family: Family, plan: Plan, state: State) -> tuple[Plan, str]:
        """`plan`, or where it may not be taken now the plan that is, and why."""
        controller = self._controller
        standing, now_s = family.standing, controller.monotonic()
        if standing is None:
            return plan, ""
        if family.backed_off(plan.configuration, now_s):
            held = f"{words(plan.configuration)} failed lately and is left alone"
            family.triggers.again(family.backoffs[plan.configuration].until_s)
            for other in plan.candidates:
                if other.feasible and not family.backed_off(other.configuration, now_s):
                    plan = await self._fixed(family, state, other.configuration)
                    break
            else:
                return await self._fixed(family, state, standing.configuration), held
            if same(plan, standing):
                return plan, held
        else:
            held = ""
        if now_s < family.dwell_until_s:
            family.triggers.again(family.dwell_until_s)
            reason = f"{words(plan.configuration)} waits {family.dwell_until_s - now_s:.1f} s for the dwell time"
            return await self._fixed(family, state, standing.configuration), reason
        lost = self._transition(family, plan.deployment).lost_capacity
        if lost > 0.0 and not controller.config.allow_capacity_loss:
            reason = f"{words(plan.configuration)} would cost {lost:.0%} of the capacity meanwhile; not allowed"
            return await self._fixed(family, state, standing.configuration), reason
        return plan, held

    async def _fixed(self, family: Family, state: State, configuration: Configuration) -> Plan:
        plan = await self._solver.propose(state, "objective", configuration)
        checked(plan, family)
        return plan

    async def _apply(self, family: Family, plan: Plan) -> tuple[str, str]:
        """Make `plan` the standing one; the action and what went wrong."""
        controller = self._controller
        standing = family.standing
        target = Standing(plan.deployment, plan.routing, plan)
        if standing is not None and same(plan, standing):
            changed = _moved(standing.routing.shares, plan.routing.shares)
            if changed:
                family.fleet.route(standing.deployment, plan.routing.shares)
            routed = Standing(standing.deployment, plan.routing if changed else standing.routing, plan)
            if family.good is standing:
                family.good = routed
            family.standing = routed
            return ("routed" if changed else "kept"), ""
        transition = self._transition(family, plan.deployment)
        if standing is not None and transition.lost_capacity > 0.0 and not controller.config.allow_capacity_loss:
            return "refused", (
                f"{transition.lost_capacity:.0%} of the capacity would be lost meanwhile; "
                "controller.allow_capacity_loss allows it"
            )
        action, more = await self._change(family, target, transition)
        if action == "applied":
            seen = family.fleet.observe()
            family.watch = Watch(
                since_s=controller.monotonic(),
                rows=seen.get("rows", 0.0),
                restarts=seen.get("restarts", 0.0),
                rate=family.rate(controller.config),
            )
        return action, more

    async def _change(self, family: Family, target: Standing, transition: Transition) -> tuple[str, str]:
        controller = self._controller
        standing = family.standing
        try:
            await family.applier.run(
                transition,
                before=family.running,
                shares_before=standing.routing.shares if standing is not None else {},
                shares=target.routing.shares,
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
        return "applied", ""

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

    def _transition(self, family: Family, target: tuple[Assignment, ...]) -> Transition:
        devices = tuple(device.shape() for device in self._controller.devices.values())
        return plan_transition(family.running, target, devices)

    def transition(self, family: Family, plan: Plan) -> Transition:
        """The steps that `plan` would take from here."""
        return self._transition(family, plan.deployment)

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
    ) -> Decision:
        controller = self._controller
        seconds = controller.monotonic() - started
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


def inputs_of(controller: Controller, family: Family, state: State | None) -> dict[str, float | str | None]:
    """What a decision was made from."""
    reading = state.intensity if state is not None else controller.reading
    objective = state.objective if state is not None else None
    reference = controller.config.reference_g_per_kwh
    targets = family.targets
    return {
        "intensity_g_per_kwh": reading.g_per_kwh if reading is not None else None,
        "intensity_state": reading.state if reading is not None else None,
        "intensity_provider": reading.provider if reading is not None else None,
        "arrival_rate": state.arrival_rate if state is not None else family.rate(controller.config),
        "observed_rate": family.observed.get("arrival_rate"),
        "observed_p95_ms": family.observed.get("p95_ms"),
        "queue_rows": family.observed.get("queue_rows"),
        "missing_workers": float(family.missing),
        "objective": objective.form if objective is not None else targets.form,
        "slo_ms": objective.slo_ms if objective is not None else targets.slo_ms,
        "accuracy_floor": objective.accuracy_floor if objective is not None else targets.accuracy_floor,
        "lambda": objective.lam if objective is not None and objective.lam is not None else family.lam(reference),
    }


def checked(plan: Plan, family: Family) -> None:
    """PlanError where a plan (a custom policy's, say) is not one this family can be served by."""
    known = {variant.name for variant in family.spec.variants}
    if not plan.deployment:
        raise PlanError(f"policy {plan.policy} planned no workers")
    served = {item.variant for item in plan.deployment}
    for variant in served | set(plan.routing.shares):
        if variant not in known:
            raise PlanError(f"policy {plan.policy} planned the unknown variant {variant!r}")
    shares = plan.routing.shares
    if any(not 0.0 <= share <= 1.0 + 1e-6 for share in shares.values()) or abs(sum(shares.values()) - 1.0) > 1e-3:
        raise PlanError(f"policy {plan.policy} planned shares that are no shares: {shares}")
    if any(share > 0.0 and variant not in served for variant, share in shares.items()):
        raise PlanError(f"policy {plan.policy} gave rows to a variant without a worker: {shares}")


def same(plan: Plan, standing: Standing | None) -> bool:
    """Whether `plan` only changes the routing."""
    return standing is not None and Counter(plan.deployment) == Counter(standing.deployment)


def words(configuration: Configuration) -> str:
    """A configuration for people."""
    return " + ".join(f"{group.count} x {group.variant}@{group.profile}" for group in configuration)


def _moved(before: dict[str, float], after: dict[str, float]) -> bool:
    names = set(before) | set(after)
    return any(abs(before.get(name, 0.0) - after.get(name, 0.0)) > _SAME_SHARE for name in names)

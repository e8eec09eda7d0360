"""One turn for one family: from a reason to a decision.  The order of the checks is the policy of the controller."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from clover.control.apply import NOWHERE, ApplyError, interim, possible
from clover.control.family import Family, Pin, Standing, Targets, Watch
from clover.control.triggers import RETRY_S
from clover.errors import CloverError, PlanError
from clover.planning.keeping import kept_plan, moment
from clover.planning.objective import HYSTERESIS, objective_of
from clover.planning.problem import LEAST_RATE
from clover.planning.search import ALTERNATIVES
from clover.planning.transition import plan_transition
from clover.policies import BUDGETED, SPENDING
from clover.policies.demanded import heeds, with_met
from clover.types import Assignment, Configuration, Decision, DeviceShape, Plan, Routing, State, Transition

if TYPE_CHECKING:
    from clover.control.controller import Controller, Solver

log = logging.getLogger("clover.control")

_SAME_SHARE = 1e-3
_SAME_WAIT_MS = 1e-3


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
            share=controller.yard.share(family.name),
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
        review: Callable[[State, Plan], tuple[bool, str]] | None = None,
    ) -> Decision:
        """Plan for `trigger` and act on it as the mode allows.  `force` (the start, an operator) acts in any mode and
        waits for no dwell or back-off.  `review` says whether the plan is refused, which changes nothing, and why, or
        what to note of it.  Raises PlanError where no plan was made; what happened to a plan that was made is in the
        decision."""
        controller = self._controller
        started = controller.monotonic()
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
            self._record(family, trigger, "refused" if dry_run else "failed", None, None, started, str(error), operator)
            raise
        refused, note = review(state, plan) if review is not None else (False, "")
        if dry_run or refused:
            action = "dry run" if dry_run else "refused"
            return self._record(family, trigger, action, state, plan, started, note, operator)
        family.answered(controller.grid_clock.now())
        family.triggers.planned(state.intensity.g_per_kwh, state.arrival_rate, family.missing)
        if not force and controller.mode_of(family) != "active":
            return self._record(family, trigger, "observed", state, plan, started, note, operator)
        detail = ""
        avoided = family.backed_off(plan.configuration, controller.monotonic())
        try:
            if not force and (avoided or not same(plan, family.standing)):
                plan, detail = await self._held_back(family, plan, state)
            if not force:
                plan = _unless_worse(plan, family)
            action, more = await self._apply(family, plan)
        except CloverError as error:  # a device changed while the plan was made, or refuses
            action, more = "failed", str(error)
            family.triggers.again(controller.monotonic() + RETRY_S)
        detail = "; ".join(filter(None, (note, detail, more)))
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

    async def _held_back(self, family: Family, plan: Plan, state: State) -> tuple[Plan, str]:
        """`plan`, or where it may not be taken now the plan that is, and why."""
        controller = self._controller
        standing, now_s = family.standing, controller.monotonic()
        if standing is None:
            return plan, ""
        weighed = plan.policy == "objective"  # a custom policy knows for itself when a change is worth it
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
        if weighed and not family.backed_off(standing.configuration, now_s):
            stay = await self._stay(family, plan, state)
            if stay is not None:
                reason = f"{words(plan.configuration)} gains no more than noise of the intensity explains"
                return stay, "; ".join(filter(None, (held, reason)))
        if now_s < family.dwell_until_s:
            family.triggers.again(family.dwell_until_s)
            reason = f"{words(plan.configuration)} waits {family.dwell_until_s - now_s:.1f} s for the dwell time"
            return await self._fixed(family, state, standing.configuration), reason
        transition = self._transition(family, plan.deployment)
        if not transition.holds and not controller.config.allow_capacity_loss:
            reason = f"{words(plan.configuration)} {refusal(transition)}"
            return await self._within_reach(family, plan, state, reason)
        if not plan.feasible and (here := await self._here(family, state)) is not None and here.feasible:
            return here, "; ".join(filter(None, (held, f"{words(plan.configuration)} would not keep the limits")))
        return plan, held

    async def _within_reach(self, family: Family, plan: Plan, state: State, reason: str) -> tuple[Plan, str]:
        """Return a plan in place of `plan`, which cannot be reached for `reason`: the first of its candidates that can
        be and that is clearly better than the workers that run, else the plan of these."""
        standing = family.standing
        assert standing is not None
        here = await self._fixed(family, state, standing.configuration)
        margin = HYSTERESIS * moment(state).scale
        others = [
            other
            for other in plan.candidates
            if other.feasible
            and other.configuration not in (plan.configuration, standing.configuration)
            and not family.backed_off(other.configuration, self._controller.monotonic())
            and (not here.feasible or other.score > here.score + margin)
        ]
        for other in others[:ALTERNATIVES]:
            found = await self._fixed(family, state, other.configuration)
            better = found.feasible and (not here.feasible or found.score > here.score + margin)
            if better and self._transition(family, found.deployment).holds:
                return found, f"{reason}; {words(found.configuration)} is within reach"
        return here, reason

    async def _here(self, family: Family, state: State) -> Plan | None:
        """Return the plan of the workers that run; None if the devices do not allow them any more."""
        assert family.standing is not None
        try:
            return await self._fixed(family, state, family.standing.configuration)
        except PlanError:
            return None

    async def _stay(self, family: Family, plan: Plan, state: State) -> Plan | None:
        """The plan of the configuration that runs, where it still serves and `plan` is not clearly better.

        What the planner would rather have counts: of plans near the best it takes the one that keeps most of what runs.
        """
        standing = family.standing
        assert standing is not None
        if family.demand.lapsed(self._controller.monotonic()):
            return None  # what runs holds a worker for rows that do not come any more
        stay = await self._here(family, state)
        if stay is None or not stay.feasible or not same(stay, standing):
            return None
        if not plan.feasible:
            return stay
        objective = objective_of(state)
        told = [plan.prediction, *(candidate.prediction for candidate in plan.candidates[:1])]
        best = max(told, key=lambda found: objective.score(found.accuracy, found.energy_j_per_row))
        return None if objective.worth_leaving(stay.prediction, best) else stay

    async def _fixed(self, family: Family, state: State, configuration: Configuration) -> Plan:
        plan = await self._solver.propose(state, "objective", configuration)
        checked(plan, family, state.objective.slo_ms)
        return plan

    async def _apply(self, family: Family, plan: Plan) -> tuple[str, str]:
        """Make `plan` the standing one; the action and what went wrong."""
        controller = self._controller
        standing = family.standing
        target = Standing(plan.deployment, plan.routing, plan)
        if standing is not None and same(plan, standing):
            changed = _moved(standing.routing, plan.routing)
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
        transition = self._transition(family, plan.deployment)
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
                capacity=family.capacity(controller.yard.share(family.name)),
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
            gpu = self._controller.yard.gpu(name)
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

    def _transition(self, family: Family, target: tuple[Assignment, ...]) -> Transition:
        controller = self._controller
        share = controller.yard.share(family.name)
        own = controller.devices_of(family)
        family.transition = plan_transition(
            family.running,
            target,
            tuple(controller.yard.shapes().values()),
            capacity=family.capacity(share),
            floor=family.capacity_floor(controller.config, own, share) if family.running else 0.0,
        )
        return family.transition

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


def inputs_of(controller: Controller, family: Family, state: State | None) -> dict[str, float | str | None]:
    """What a decision was made from."""
    reading = state.intensity if state is not None else controller.reading
    objective = state.objective if state is not None else None
    lam = objective.lam if objective is not None else None
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
        **devices_of(controller, family, state),
        "objective": objective.form if objective is not None else targets.form,
        "slo_ms": objective.slo_ms if objective is not None else targets.slo_ms,
        "accuracy_floor": objective.accuracy_floor if objective is not None else targets.accuracy_floor,
        "lambda": lam if lam is not None else family.lam(controller.config),
        **_budget_of(state),
    }


def _budget_of(state: State | None) -> dict[str, float | str | None]:
    """What a decision under an accuracy budget was made from besides."""
    if state is None or state.objective.accuracy_budget is None:
        return {}
    served = state.served_accuracy_rows / state.served_rows if state.served_rows > 0.0 else None
    return {
        "accuracy_budget": state.objective.accuracy_budget,
        "budget_left_s": sum(part.seconds for part in state.ahead),
        "served_rows": state.served_rows,
        "served_accuracy": served,
        "forecast": state.forecast,
    }


def devices_of(controller: Controller, family: Family, state: State | None) -> dict[str, float | str | None]:
    """Which devices a decision was made for, and how low capacity goes on the way that was planned."""
    shapes = state.devices if state is not None else controller.devices_of(family)
    lost = controller.yard.lost()
    names = [*(shape.device for shape in shapes), *(f"{name} (lost)" for name in sorted(lost))]
    found: dict[str, float | str | None] = {"devices": ", ".join(names)}
    transition = family.transition
    if transition is not None and transition.steps:
        found["capacity_floor"] = transition.capacity_floor
        found["lowest_capacity"] = transition.lowest_capacity
        found["loses_s"] = transition.loses_s
    return found


def refusal(transition: Transition) -> str:
    """Why a transition that does not hold the floor is not taken."""
    return (
        f"could only be reached with {transition.lowest_capacity:.1f} rows/s for about {transition.loses_s:.1f} s "
        f"({transition.lost_capacity:.0%} of the capacity lost), below the capacity floor of "
        f"{transition.capacity_floor:.1f} rows/s; controller.allow_capacity_loss allows it"
    )


def checked(plan: Plan, family: Family, slo_ms: float) -> None:
    """PlanError where a plan (a custom policy's, say) is not one this family can be served by within `slo_ms`."""
    known = {variant.name for variant in family.spec.variants}
    if not plan.deployment:
        raise PlanError(f"policy {plan.policy} planned no workers")
    served = {item.variant for item in plan.deployment}
    routing = plan.routing
    for variant in served.union(routing.shares, routing.largest, routing.wait_ms, routing.chain):
        if variant not in known:
            raise PlanError(f"policy {plan.policy} planned the unknown variant {variant!r}")
    shares = routing.shares
    if any(not 0.0 <= share <= 1.0 + 1e-6 for share in shares.values()) or abs(sum(shares.values()) - 1.0) > 1e-3:
        raise PlanError(f"policy {plan.policy} planned shares that are no shares: {shares}")
    if any(share > 0.0 and variant not in served for variant, share in shares.items()):
        raise PlanError(f"policy {plan.policy} gave rows to a variant without a worker: {shares}")
    if not served.issuperset(routing.chain):
        raise PlanError(f"policy {plan.policy} planned a chain with a variant without a worker: {routing.chain}")
    if len(set(routing.chain)) < len(routing.chain) or len(routing.thresholds) != max(0, len(routing.chain) - 1):
        thresholds = list(routing.thresholds)
        raise PlanError(f"policy {plan.policy} planned a chain that is none: {routing.chain}, thresholds {thresholds}")
    if not all(map(math.isfinite, routing.thresholds)):
        raise PlanError(f"policy {plan.policy} planned thresholds that are no scores: {list(routing.thresholds)}")
    if any(rows < 1 for rows in routing.largest.values()):
        raise PlanError(f"policy {plan.policy} planned batches without rows: {routing.largest}")
    if not all(0.0 <= wait_ms < slo_ms for wait_ms in routing.wait_ms.values()):
        waits = f"policy {plan.policy} planned waits (ms) that do not lie below the SLO of {slo_ms:g} ms"
        raise PlanError(f"{waits}: {routing.wait_ms}")


def still_possible(standing: Standing | None, shapes: tuple[DeviceShape, ...]) -> Standing | None:
    """`standing`, or None where the devices do not allow its deployment any more."""
    if standing is None or len(possible(standing.deployment, shapes, ())) < len(standing.deployment):
        return None
    return standing


def same(plan: Plan, standing: Standing | None) -> bool:
    """Whether `plan` only changes the routing."""
    return standing is not None and Counter(plan.deployment) == Counter(standing.deployment)


def _unless_worse(plan: Plan, family: Family) -> Plan:
    """Return `plan`, or the plan of keeping everything as it is if that is predicted to be better.  What an operator
    pinned is brought all the same; how its rows are routed is compared."""
    if not plan.worse_than_keeping or (family.pin is not None and not same(plan, family.standing)):
        return plan
    assert plan.keeping is not None
    return kept_plan(plan, plan.keeping, family.running)


def words(configuration: Configuration) -> str:
    """A configuration for people."""
    return " + ".join(f"{group.count} x {group.variant}@{group.profile}" for group in configuration)


def _moved(before: Routing, after: Routing) -> bool:
    """Whether `after` sends rows other ways, or lets them form other batches."""
    names = set(before.shares) | set(after.shares)
    if any(abs(before.shares.get(name, 0.0) - after.shares.get(name, 0.0)) > _SAME_SHARE for name in names):
        return True
    if (before.chain, before.thresholds) != (after.chain, after.thresholds):
        return True
    if before.largest != after.largest or before.wait_ms.keys() != after.wait_ms.keys():
        return True
    return any(abs(before.wait_ms[name] - after.wait_ms[name]) > _SAME_WAIT_MS for name in after.wait_ms)

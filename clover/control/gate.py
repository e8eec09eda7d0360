"""May this plan be taken now?  What a plan is asked between the policy that made it and the fleet that carries it out.

The order of the questions is the policy of the controller: is its configuration one that failed lately; is what runs
as good within the noise of the intensity; is the dwell time over; can it be reached without falling below the capacity
floor; and last (`unless_worse`), is it predicted to be better than keeping everything as it is.  A plan that does not
pass is replaced: by another candidate that does, or by the plan of the workers that run.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from clover.control.apply import possible
from clover.control.family import Family, Standing
from clover.errors import PlanError
from clover.planning.budget.keeping import kept_plan, momentary
from clover.planning.model.objective import HYSTERESIS, objective_of
from clover.planning.packing.exhaustive import ALTERNATIVES
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, Configuration, DeviceShape, Plan, Routing, State, Transition

if TYPE_CHECKING:
    from clover.control.controller import Controller, Solver

_SAME_SHARE = 1e-3
_SAME_WAIT_MS = 1e-3


class Gate:
    """Admits plans, or says which to take instead.  The caller holds the controller's lock."""

    def __init__(self, controller: Controller, solver: Solver) -> None:
        self._controller = controller
        self._solver = solver

    async def admitted(self, family: Family, plan: Plan, state: State) -> tuple[Plan, str]:
        """Return `plan`, or if it may not be taken now the plan that may, and why."""
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
                    plan = await self.fixed(family, state, other.configuration)
                    break
            else:
                return await self.fixed(family, state, standing.configuration), held
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
            return await self.fixed(family, state, standing.configuration), reason
        transition = transition_to(self._controller, family, plan.deployment)
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
        here = await self.fixed(family, state, standing.configuration)
        margin = HYSTERESIS * momentary(state, objective_of(state)).scale
        others = [
            other
            for other in plan.candidates
            if other.feasible
            and other.configuration not in (plan.configuration, standing.configuration)
            and not family.backed_off(other.configuration, self._controller.monotonic())
            and (not here.feasible or other.score > here.score + margin)
        ]
        refused = family.transition
        for other in others[:ALTERNATIVES]:
            try:
                found = await self.fixed(family, state, other.configuration)
            except PlanError:  # the devices do not allow this one beside what runs
                continue
            better = found.feasible and (not here.feasible or found.score > here.score + margin)
            if better and transition_to(self._controller, family, found.deployment).holds:
                return found, f"{reason}; {words(found.configuration)} is within reach"
        family.transition = refused  # the record says why the plan was refused, and of no other
        return here, reason

    async def _here(self, family: Family, state: State) -> Plan | None:
        """Return the plan of the workers that run; None if the devices do not allow them any more."""
        assert family.standing is not None
        try:
            return await self.fixed(family, state, family.standing.configuration)
        except PlanError:
            return None

    async def _stay(self, family: Family, plan: Plan, state: State) -> Plan | None:
        """Return the plan of the configuration that runs if it still serves and `plan` is not clearly better.

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

    async def fixed(self, family: Family, state: State, configuration: Configuration) -> Plan:
        plan = await self._solver.propose(state, "objective", configuration)
        checked(plan, family, state.objective.slo_ms)
        return plan


def transition_to(controller: Controller, family: Family, target: tuple[Assignment, ...]) -> Transition:
    """Return the steps from what runs to `target`, and keep them as the family's last."""
    share = controller.device_pool.share(family.name)
    own = controller.devices_of(family)
    family.transition = plan_transition(
        family.running,
        target,
        tuple(controller.device_pool.shapes().values()),
        capacity=family.capacity(share),
        floor=family.capacity_floor(controller.config, own, share) if family.running else 0.0,
    )
    return family.transition


def refusal(transition: Transition) -> str:
    """Return why a transition that does not hold the capacity floor is not taken."""
    return (
        f"could only be reached with {transition.lowest_capacity:.1f} rows/s for about {transition.loses_s:.1f} s "
        f"({transition.lost_capacity:.0%} of the capacity lost), below the capacity floor of "
        f"{transition.capacity_floor:.1f} rows/s; controller.allow_capacity_loss allows it"
    )


def checked(plan: Plan, family: Family, slo_ms: float) -> None:
    """Raise PlanError if a plan (a custom policy's, say) is not one this family can be served by within `slo_ms`."""
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
    """Return `standing`, or None if the devices do not allow its deployment any more."""
    if standing is None or len(possible(standing.deployment, shapes, ())) < len(standing.deployment):
        return None
    return standing


def same(plan: Plan, standing: Standing | None) -> bool:
    """Return whether `plan` only changes the routing."""
    return standing is not None and Counter(plan.deployment) == Counter(standing.deployment)


def unless_worse(plan: Plan, family: Family) -> Plan:
    """Return `plan`, or the plan of keeping everything as it is if that is predicted to be better.  What an operator
    pinned is brought all the same; how its rows are routed is compared."""
    if not plan.worse_than_keeping or (family.pin is not None and not same(plan, family.standing)):
        return plan
    assert plan.keeping is not None
    return kept_plan(plan, plan.keeping, family.running)


def words(configuration: Configuration) -> str:
    """Return a configuration as people read it."""
    return " + ".join(f"{group.count} x {group.variant}@{group.profile}" for group in configuration)


def moved(before: Routing, after: Routing) -> bool:
    """Return whether `after` sends rows other ways, or lets them form other batches."""
    names = set(before.shares) | set(after.shares)
    if any(abs(before.shares.get(name, 0.0) - after.shares.get(name, 0.0)) > _SAME_SHARE for name in names):
        return True
    if (before.chain, before.thresholds) != (after.chain, after.thresholds):
        return True
    if before.largest != after.largest or before.wait_ms.keys() != after.wait_ms.keys():
        return True
    return any(abs(before.wait_ms[name] - after.wait_ms[name]) > _SAME_WAIT_MS for name in after.wait_ms)

"""May this plan be taken now?  The questions between the policy that made a plan and the fleet that runs it.

Every question is a pure function of what is known.  None means that it has no objection.  `Stay` means that the
workers that run stay for now, and says why and when to plan again.  `clover.control.plan.planner` asks the questions in
this order, and finds the plan that is taken instead:

    failed_lately   its configuration was rolled back, or failed to start, and is backed off
    within_noise    what runs meets the targets, and either the plan does not, or it gains no more than noise of the
                    intensity explains
    below_floor     it cannot be reached without falling below the capacity floor (`pays_for_loss`: unless staying is
                    worse)

`breaches` says what an operator's command is predicted to break: the accuracy floor, the SLO, the load at which they
hold.  It compares with the targets themselves, so neither the margin above the floor nor a floor that the guard raised
stops an operator.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from clover.control.state.apply import possible
from clover.control.state.family import DeployedPlan, Family
from clover.control.state.request import Targets
from clover.errors import PlanError
from clover.planning.model.objective import objective_of
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.types import DeviceShape, Plan, Routing, State, Transition, words_of

_SAME_SHARE = 1e-3
_SAME_WAIT_MS = 1e-3
_LATE = 0.05
"""The least part of the rows that is later than an SLO which the p95 is above."""
_LEAST_POINTS = 5e-3
"""Percent of accuracy that is ignored: it is lost in printing and in the rounding of shares."""
FORCE = '`--force` ("force": true) does it all the same'


@dataclass(frozen=True)
class Stay:
    """The workers that run stay for now.  `reason`: why, for the record; `again_s`: when to plan again (monotonic),
    None if at the next trigger."""

    reason: str
    again_s: float | None = None


def failed_lately(family: Family, plan: Plan, now_s: float) -> Stay | None:
    """Judge whether the configuration of `plan` is backed off."""
    if not family.backed_off(plan.configuration, now_s):
        return None
    reason = f"{words_of(plan.configuration)} failed lately and is left alone"
    return Stay(reason, family.backoffs[plan.configuration].until_s)


def within_noise(family: Family, plan: Plan, here: Plan, state: State) -> Stay | None:
    """Judge whether to stay: `here`, the plan of the workers that run, still serves, and `plan` does not, or gains no
    more than noise explains.  The gain counts as the planner sees it: of plans near the best the planner takes the one
    that keeps most of what runs."""
    if not here.feasible or not keeps_workers(here, family.deployed):
        return None
    if not plan.feasible:
        return Stay(f"{words_of(plan.configuration)} would not keep the limits")
    objective = objective_of(state)
    predictions = [plan.prediction, *(candidate.prediction for candidate in plan.candidates[:1])]
    best = max(predictions, key=lambda found: objective.score(found.accuracy, found.joules))
    if objective.worth_leaving(here.prediction, best):
        return None
    return Stay(f"{words_of(plan.configuration)} gains no more than noise of the intensity explains")


def below_floor(plan: Plan, transition: Transition, allowed: bool) -> Stay | None:
    """Judge whether `transition`, which leads to `plan`, loses more capacity than the floor permits.  If the
    configuration allows it (`allowed`), it may."""
    if transition.holds or allowed:
        return None
    memory = f" ({transition.memory})" if transition.memory else ""
    return Stay(
        f"{words_of(plan.configuration)} could only be reached with {transition.lowest_capacity:.1f} rows/s for about "
        f"{transition.loses_s:.1f} s ({transition.lost_capacity:.0%} of the capacity lost; {transition.loses_how}), "
        f"below the capacity floor of {transition.capacity_floor:.1f} rows/s{memory}; controller.allow_capacity_loss "
        "allows it"
    )


def pays_for_loss(
    plan: Plan, transition: Transition, here: Plan, *, slo_ms: float, rate: float, capacity: float, within_s: float
) -> bool:
    """Return whether the loss of capacity on the way to `plan` costs fewer rows than staying.  `plan` keeps the limits.
    Within `within_s` seconds the workers that run, whose plan is `here` and which serve `capacity` of the `rate` rows/s
    that come, would refuse or answer late some rows; `transition` would leave others without a worker.  If the p95 of
    the workers that run is above `slo_ms`, one in twenty of their rows counts as late: no fewer are."""
    if here.feasible or not plan.feasible:
        return False
    late = _LATE * min(rate, capacity) if here.prediction.p95_ms > slo_ms else 0.0
    missed_by_staying = (max(0.0, rate - capacity) + late) * within_s
    missed_on_the_way = max(0.0, rate - transition.lowest_capacity) * transition.loses_s
    return missed_on_the_way < missed_by_staying


def check_plan(plan: Plan, family: Family, slo_ms: float) -> None:
    """Raise PlanError if a plan (of a custom policy, say) cannot serve this family within `slo_ms`."""
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
        raise PlanError(f"policy {plan.policy} planned shares that do not sum to 1 or are negative: {shares}")
    if any(share > 0.0 and variant not in served for variant, share in shares.items()):
        raise PlanError(f"policy {plan.policy} gave rows to a variant without a worker: {shares}")
    if not served.issuperset(routing.chain):
        raise PlanError(f"policy {plan.policy} planned a chain with a variant without a worker: {routing.chain}")
    if len(set(routing.chain)) < len(routing.chain) or len(routing.thresholds) != max(0, len(routing.chain) - 1):
        thresholds = list(routing.thresholds)
        raise PlanError(f"policy {plan.policy} planned an invalid chain: {routing.chain}, thresholds {thresholds}")
    if not all(map(math.isfinite, routing.thresholds)):
        raise PlanError(f"policy {plan.policy} planned thresholds that are not finite: {list(routing.thresholds)}")
    if any(rows < 1 for rows in routing.largest.values()):
        raise PlanError(f"policy {plan.policy} planned batches without rows: {routing.largest}")
    if not all(0.0 <= wait_ms < slo_ms for wait_ms in routing.wait_ms.values()):
        waits = f"policy {plan.policy} planned waits (ms) that do not lie below the SLO of {slo_ms:g} ms"
        raise PlanError(f"{waits}: {routing.wait_ms}")


def still_possible(deployed: DeployedPlan | None, shapes: tuple[DeviceShape, ...]) -> DeployedPlan | None:
    """Return `deployed`, or None if the devices do not allow its workers any more."""
    if deployed is None or len(possible(deployed.deployment, shapes, ())) < len(deployed.deployment):
        return None
    return deployed


def keeps_workers(plan: Plan, deployed: DeployedPlan | None) -> bool:
    """Return whether `plan` has the workers that run, so that it changes the routing at most."""
    return deployed is not None and Counter(plan.deployment) == Counter(deployed.deployment)


def changes_routing(before: Routing, after: Routing) -> bool:
    """Return whether `after` sends rows other ways than `before`, or lets them form other batches."""
    names = set(before.shares) | set(after.shares)
    if any(abs(before.shares.get(name, 0.0) - after.shares.get(name, 0.0)) > _SAME_SHARE for name in names):
        return True
    if (before.chain, before.thresholds) != (after.chain, after.thresholds):
        return True
    if before.largest != after.largest or before.wait_ms.keys() != after.wait_ms.keys():
        return True
    return any(abs(before.wait_ms[name] - after.wait_ms[name]) > _SAME_WAIT_MS for name in after.wait_ms)


# --- what a command would break ---------------------------------------------------------------------------------------


def breaches(plan: Plan, targets: Targets, max_utilisation: float) -> str:
    """Return what `plan` is predicted to break, each with its limit; empty if nothing."""
    expected, broken = plan.prediction, []
    if expected.accuracy < targets.accuracy_floor - _LEAST_POINTS:
        broken.append(
            f"an accuracy of {expected.accuracy:.2f} % is predicted, below the floor of {targets.accuracy_floor:.2f} %"
        )
    if expected.p95_ms > targets.slo_ms:
        p95 = "without bound" if expected.p95_ms >= UNBOUNDED_MS else f"of {expected.p95_ms:.3g} ms"
        broken.append(f"a p95 {p95} is predicted, above the SLO of {targets.slo_ms:.3g} ms")
    elif expected.utilisation > max_utilisation + 1e-6:
        broken.append(
            f"a utilisation of {expected.utilisation:.0%} is predicted, above the limit of {max_utilisation:.0%} that "
            "the SLO is counted on"
        )
    return " and ".join(broken)


def stricter(one: Targets, other: Targets) -> Targets:
    """Return `one`, with those limits of `other` that are stricter."""
    return Targets(
        slo_ms=min(one.slo_ms, other.slo_ms),
        accuracy_floor=max(one.accuracy_floor, other.accuracy_floor),
        form=one.form,
        lam=one.lam,
    )


def is_stricter(before: Targets, after: Targets) -> bool:
    """Return whether a limit of `after` is stricter than in `before`.  If none is, `after` cannot be the reason that
    plans fail."""
    return after.slo_ms < before.slo_ms or after.accuracy_floor > before.accuracy_floor

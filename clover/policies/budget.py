"""An accuracy budget over a horizon, spent in the hours that the forecast says are clean.

`planning.budget.target` says which accuracy this moment has to reach.  The plan is the one of the least carbon there,
with shares that reach it exactly.  The state brings the forecast and what was served.  So the policy itself has no
memory, and the same state gives the same plan.  (Solved problems are remembered from one call to the next.)
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import msgspec

from clover.planning.budget.frontiers import frontier
from clover.planning.budget.steering import steer
from clover.planning.budget.target import BudgetTarget, budget_target, target_of
from clover.planning.model.objective import Objective, PlanningInput, held_to
from clover.planning.model.problem import Problem
from clover.planning.packing.evaluation import evaluate
from clover.planning.search.best import best_power_state, best_sustained, with_idle_energy
from clover.planning.search.configurations import SearchResult, choose
from clover.policies.objective import StaticPolicy
from clover.policies.plans import bound_of, kept_counter, plan_of, steered_plan, with_waits
from clover.quantities import grams
from clover.types import Assignment, Candidate, Plan, State, configuration_of, words_of

_GRID = 1e-4
"""Points of accuracy within which targets count as the same, so that a solved one is remembered."""


class BudgetPolicy:
    """Holds to the accuracy budget of the state over the horizon of its forecast.

    `flat`: as if the intensity never changed, to compare with if the best static plan cannot reach the budget exactly
    (a cascade is a point).  `online`: without the forecast, by an online primal-dual rule (`planning.budget.target`).
    """

    def __init__(self, *, flat: bool = False, online: bool = False) -> None:
        self.flat, self.online = flat, online
        self.name = "budget:flat" if flat else "budget:online" if online else "budget"

    def propose(self, state: State) -> Plan:
        """Return the plan of this moment; PlanError if no configuration exists at all."""
        if self.flat:
            state = _flatten(state)
        if self.online:
            state = msgspec.structs.replace(state, online=True)
        given = PlanningInput.from_state(state)
        target = budget_target(given)
        if state.ahead and state.objective.cascade and state.profile.cascade is not None:
            steering = steer(given, target)
            if steering is not None:
                return steered_plan(given, steering, policy=self.name, note=_note(state, target))
        return plan_at_accuracy(given, target.accuracy, policy=self.name, note=_note(state, target))


class StaticMixPolicy:
    """The best fixed mix: the least carbon at the budget's accuracy, whatever the grid does or will do."""

    def __init__(self, name: str = "static:mix") -> None:
        self.name = name

    def propose(self, state: State) -> Plan:
        """Return the mix at `accuracy_budget` points below the best variant, at the floor without one; PlanError if
        no configuration exists at all."""
        _, _, rest = self.name.partition(":")
        if rest in state.profile.backend:  # a variant of that name is what was meant
            return StaticPolicy(rest).propose(state)
        target = target_of(state)
        return plan_at_accuracy(
            PlanningInput.from_state(state), target, policy=self.name, note=f"the best fixed mix at {target:.2f} %"
        )


def plan_at_accuracy(given: PlanningInput, accuracy: float, *, policy: str, note: str) -> Plan:
    """Return the plan of the least carbon at `accuracy` percent, or at the floor if that cannot be reached."""
    state, problem, objective = given.state, given.problem, given.objective
    # On a grid, and from below: the most accurate plan of all is still one that reaches it.
    wanted = math.floor((accuracy + 1e-9) / _GRID) * _GRID - 1e-6
    # At another intensity every score is as many times larger, and nothing else changes: solved at the reference.
    at_reference = replace(objective, carbon_weight=1.0)
    result, limit = _solve(problem, at_reference, wanted, state.running, state.seed)
    if not result.best.feasible and wanted > objective.planned_floor:
        result, limit = _solve(problem, at_reference, objective.planned_floor, state.running, state.seed)
    weight = objective.carbon_weight
    return plan_of(
        state,
        problem,
        held_to(objective, accuracy if result.best.feasible else objective.planned_floor),
        replace(
            result,
            best=_weigh(result.best, weight),
            candidates=tuple(_weigh(candidate, weight) for candidate in result.candidates),
        ),
        policy=policy,
        note=note,
        limit=limit * weight,
    )


@lru_cache(maxsize=256)
def _solve(
    problem: Problem, objective: Objective, accuracy: float, running: tuple[Assignment, ...], seed: int
) -> tuple[SearchResult, float]:
    """Return the least carbon at `accuracy` percent, and its bound."""
    aimed = held_to(objective, accuracy)
    kept = kept_counter(problem, running)
    search = best_sustained if accuracy <= objective.planned_floor else best_power_state
    result = search(problem, aimed, running, kept=kept, seed=seed)
    if not result.complete:  # a searched space: what the frontier was made of may be better
        known = {candidate.configuration for candidate in result.candidates}
        plans = frontier(problem, objective, problem.rate, seed=seed)
        others = {plan.configuration: plan.awake for plan in plans}
        more = [
            with_idle_energy(evaluate(problem, aimed, other, standby=False), problem, aimed, others[other])
            for other in sorted(others.keys() - known, key=words_of)
        ]
        now = configuration_of(running) if running else None
        best, ranked = choose([result.best, *result.candidates, *more], aimed, running=now, kept=kept)
        result = SearchResult(best, ranked[:10], result.evaluated + len(more), result.total, complete=False)
    return with_waits(problem, aimed, result), bound_of(problem, aimed)


def _weigh(candidate: Candidate, weight: float) -> Candidate:
    return msgspec.structs.replace(candidate, score=candidate.score * weight)


def _flatten(state: State) -> State:
    """Return `state` on a grid that always is at the reference intensity."""
    level = state.objective.reference_g_per_kwh
    return msgspec.structs.replace(
        state,
        intensity=msgspec.structs.replace(state.intensity, g_per_kwh=level),
        ahead=tuple(msgspec.structs.replace(part, g_per_kwh=level) for part in state.ahead),
    )


def _note(state: State, target: BudgetTarget) -> str:
    hours = sum(part.seconds for part in state.ahead) / 3600.0
    if not state.ahead:
        return f"budget of {target.target:.2f} %, no forecast: the best fixed mix"
    so_far = "" if math.isnan(target.served) else f", {target.served:.2f} % over {state.served_rows:.0f} rows so far"
    if state.online:
        return (
            f"budget of {target.target:.2f} %{so_far}, online: price {grams(target.price)} a percent of a row "
            f"(lambda {target.lam:.4f}), no forecast"
        )
    price = "at any price" if math.isinf(target.price) else f"price {grams(target.price)} a percent of a row"
    return (
        f"budget of {target.target:.2f} %{so_far}, {target.asked:.2f} % asked of the {hours:.1f} h left, {price} "
        f"(lambda {target.lam:.4f}), forecast: {state.forecast or 'given'}"
    )

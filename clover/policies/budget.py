"""An accuracy budget over a horizon, spent where the forecast says that the grid is clean.

`planning.budget.price` says which accuracy this moment is to land on; the plan is the one of the least carbon there,
its shares on the point.  The state brings the forecast and what was served, so that the policy itself remembers nothing
and the same state gives the same plan.  (What is kept from one call to the next are answers to the same question.)
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import msgspec

from clover.planning.budget.price import Course, course, held_to, question, target_of, ways
from clover.planning.budget.steering import steered
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.packing.exhaustive import Found, chosen, evaluate
from clover.planning.search.power_states import best_awake, charged
from clover.planning.search.sustained import best_sustained
from clover.policies.plans import (
    bound_of,
    counting_kept,
    described,
    plan_of,
    running_configuration,
    steered_plan,
    with_waits,
)
from clover.policies.static import StaticPolicy
from clover.types import Candidate, Plan, State

_GRID = 1e-4
"""Points of accuracy that count as the same: an answer is remembered for them."""


class BudgetPolicy:
    """Holds to the accuracy budget of the state over the horizon of its forecast; `flat`: as if the grid never moved,
    which is what to compare it with where the best static plan cannot land on the budget (a cascade is a point)."""

    def __init__(self, *, flat: bool = False) -> None:
        self.flat = flat
        self.name = "budget:flat" if flat else "budget"

    def propose(self, state: State) -> Plan:
        """Return the plan of this moment; PlanError where no configuration exists at all."""
        if self.flat:
            state = _flattened(state)
        now = course(state)
        if state.ahead and state.objective.cascade and state.profile.cascade is not None:
            found = steered(state, now)
            if found is not None:
                return steered_plan(state, found, policy=self.name, note=_note(state, now))
        return mixed(state, now.accuracy, policy=self.name, note=_note(state, now))


class StaticMixPolicy:
    """The best static mix: the least carbon at the budget's accuracy, whatever the grid does or will do."""

    def __init__(self, name: str = "static:mix") -> None:
        self.name = name

    def propose(self, state: State) -> Plan:
        """Return the mix at `accuracy_budget` points below the best variant, at the floor without one; PlanError where
        no configuration exists at all."""
        _, _, rest = self.name.partition(":")
        if rest in state.profile.backend:  # a variant of that name is what was meant
            return StaticPolicy(rest).propose(state)
        target = target_of(state)
        return mixed(state, target, policy=self.name, note=f"the static mix at {target:.2f} %")


def mixed(state: State, accuracy: float, *, policy: str, note: str) -> Plan:
    """Return the plan of the least carbon that lands on `accuracy` percent, or at the floor where it cannot be
    reached."""
    problem, objective = problem_of(state), objective_of(state)
    # On a grid, and from below: the most accurate plan of all is still one that reaches it.
    wanted = math.floor((accuracy + 1e-9) / _GRID) * _GRID - 1e-6
    asked = question(state, state.arrival_rate, running=True)
    found, limit = _solved(asked, wanted)
    if not found.best.feasible and wanted > objective.planned_floor:
        found, limit = _solved(asked, objective.planned_floor)
    weight = objective.carbon_weight
    return plan_of(
        state,
        problem,
        held_to(objective, accuracy if found.best.feasible else objective.planned_floor),
        replace(
            found,
            best=_weighed(found.best, weight),
            candidates=tuple(_weighed(candidate, weight) for candidate in found.candidates),
        ),
        policy=policy,
        note=note,
        limit=limit * weight,
    )


@lru_cache(maxsize=256)
def _solved(asked: bytes, accuracy: float) -> tuple[Found, float]:
    """Return the least carbon at `accuracy` and its bound, both at the reference intensity: at another one every score
    is as many times larger, and nothing else changes."""
    state = msgspec.json.decode(asked, type=State)
    problem, objective = problem_of(state), held_to(objective_of(state), accuracy)
    kept = counting_kept(state, problem)
    search = best_sustained if accuracy <= objective_of(state).planned_floor else best_awake
    found = search(problem, objective, state.running, kept=kept, seed=state.seed)
    if not found.complete:  # a searched space: what the frontier was made of may be better
        known = {candidate.configuration for candidate in found.candidates}
        others = {way.configuration: way.awake for way in ways(state, state.arrival_rate)}
        more = [
            charged(evaluate(problem, objective, other, standby=False), problem, objective, others[other])
            for other in sorted(others.keys() - known, key=described)
        ]
        running = running_configuration(state)
        best, ranked = chosen([found.best, *found.candidates, *more], objective, running=running, kept=kept)
        found = Found(best, ranked[:10], found.evaluated + len(more), found.total, complete=False)
    return with_waits(state, problem, objective, found), bound_of(state, problem, objective)


def _weighed(candidate: Candidate, weight: float) -> Candidate:
    return msgspec.structs.replace(candidate, score=candidate.score * weight)


def _flattened(state: State) -> State:
    """`state` on a grid that always is at the reference intensity."""
    level = state.objective.reference_g_per_kwh
    return msgspec.structs.replace(
        state,
        intensity=msgspec.structs.replace(state.intensity, g_per_kwh=level),
        ahead=tuple(msgspec.structs.replace(part, g_per_kwh=level) for part in state.ahead),
    )


def _note(state: State, now: Course) -> str:
    hours = sum(part.seconds for part in state.ahead) / 3600.0
    if not state.ahead:
        return f"budget of {now.target:.2f} %, no forecast: the static mix"
    so_far = "" if math.isnan(now.served) else f", {now.served:.2f} % over {state.served_rows:.0f} rows so far"
    price = "at any price" if math.isinf(now.price) else f"price {1e6 * now.price:.4g} ug a percent of a row"
    return (
        f"budget of {now.target:.2f} %{so_far}, {now.asked:.2f} % asked of the {hours:.1f} h left, {price} "
        f"(lambda {now.lam:.4f}), forecast: {state.forecast or 'given'}"
    )

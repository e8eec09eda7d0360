"""A policy's plan with workers for the rows that ask for an accuracy of their own, as far as that is possible.

The policy is asked with all of `State.demand` first.  If no plan with that keeps the limits, the most demanding part is
left out, and so on.  Rows that need a part left out are refused, and other rows do not pay for them.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from clover.errors import PlanError
from clover.planning.model.problem import Problem, direct, measured, problem_of
from clover.policies import BUDGETED, build
from clover.types import Demand, Plan, State

HEEDING = frozenset({"objective", *BUDGETED})
"""Policies whose plans have workers for the demand.  A custom policy may have them: it is judged by its plan."""


def heeds(policy: str) -> bool:
    """Return whether `policy` may plan workers for rows that ask for an accuracy."""
    kind, _, rest = policy.partition(":")
    return policy in HEEDING or (bool(rest) and kind not in ("static", "base", "budget", "oracle"))


def propose_with_demand(policy: str, state: State) -> Plan:
    """Return the plan of `policy` for `state`; PlanError if it has none."""
    chosen = build(policy)
    if not state.demand or not heeds(policy):
        return chosen.propose(msgspec.structs.replace(state, demand=()))
    if policy not in HEEDING:
        return chosen.propose(state)
    for number in range(len(state.demand), 0, -1):
        part = msgspec.structs.replace(state, demand=state.demand[:number])
        try:
            plan = chosen.propose(part)
        except PlanError:
            continue
        if plan.feasible:
            return plan
    return chosen.propose(msgspec.structs.replace(state, demand=()))


def with_met(state: State, plan: Plan) -> State:
    """Return `state` with the demand that `plan` has workers for, and enough of them."""
    if not state.demand:
        return state
    problem, met = problem_of(state), len(state.demand)
    known = measured(problem, plan.configuration)
    while met and (not known or _short(problem, plan, state.demand[:met])):
        met -= 1
    return msgspec.structs.replace(state, demand=state.demand[:met])


def _short(problem: Problem, plan: Plan, demand: tuple[Demand, ...]) -> bool:
    """Return whether `plan` lacks workers for `demand`."""
    return bool(direct(replace(problem, demand=demand), plan.configuration, problem.objective.max_utilisation).why)

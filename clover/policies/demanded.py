"""A policy's plan with workers for the rows that ask for an accuracy of their own, as far as that can be had.

The policy is asked with all of `State.demand` first.  If no plan with that keeps the limits, what is most demanding is
left out, and so on: rows that need it are refused then, and nobody else pays for them.
"""

from __future__ import annotations

import msgspec

from clover.errors import PlanError
from clover.planning.demand import met_by
from clover.planning.problem import accuracies
from clover.policies import BUDGETED, build
from clover.types import Plan, State

HEEDING = frozenset({"objective", *BUDGETED})
"""Policies whose plans have workers for what is asked for.  A custom one may: it is judged by its plan."""


def heeds(policy: str) -> bool:
    """Return whether `policy` may plan workers for rows that ask for an accuracy."""
    kind, _, rest = policy.partition(":")
    return policy in HEEDING or (bool(rest) and kind not in ("static", "base", "budget", "oracle"))


def proposed(policy: str, state: State) -> Plan:
    """Return the plan of `policy` for `state`; PlanError if it has none."""
    found = build(policy)
    if not state.demand or not heeds(policy):
        return found.propose(msgspec.structs.replace(state, demand=()))
    if policy not in HEEDING:
        return found.propose(state)
    for number in range(len(state.demand), 0, -1):
        part = msgspec.structs.replace(state, demand=state.demand[:number])
        try:
            plan = found.propose(part)
        except PlanError:
            continue
        if plan.feasible:
            return plan
    return found.propose(msgspec.structs.replace(state, demand=()))


def with_met(state: State, plan: Plan) -> State:
    """Return `state` with the demand that `plan` has workers for."""
    if not state.demand:
        return state
    met = met_by(state.demand, plan.deployment, accuracies(state.profile))
    return msgspec.structs.replace(state, demand=met)

"""Every plan beside what keeping everything as it is would do (`clover.planning.keeping`)."""

from __future__ import annotations

import msgspec

from clover.planning.keeping import keeping, moment, worth_taking
from clover.policies.paper import SCHEMES
from clover.types import Assignment, Plan, State

_BY_SCORE = ("objective", "fixed", "static", "static:mix")
"""Policies that score the moment itself."""


def beside_keeping(state: State, plan: Plan) -> Plan:
    """Return `plan` with what keeping would do in the same state, and whether that is predicted to be better.

    A policy that serves what its name says, whatever comes of it (BASE, one variant, the paper's schemes), is never
    marked as worse: it is there to be compared with."""
    kept = keeping(state)
    if kept is None:
        return plan
    literal = plan.policy in SCHEMES or plan.policy.startswith("base") or _one_variant(plan.policy)
    # Scores leave out what devices draw when idle, unless they may sleep: those of other devices are not comparable.
    comparable = state.objective.spared_w is not None or _devices(plan.deployment) == _devices(state.running)
    spread = state.ahead and state.objective.accuracy_budget is not None
    by_score = plan.policy in _BY_SCORE and comparable and not spread
    worse = not literal and not worth_taking(plan, kept, moment(state), by_score=by_score)
    return msgspec.structs.replace(plan, keeping=kept, worse_than_keeping=worse)


def _devices(deployment: tuple[Assignment, ...]) -> set[str]:
    return {item.placement.device for item in deployment}


def _one_variant(policy: str) -> bool:
    return policy.startswith("static:") and policy != "static:mix"

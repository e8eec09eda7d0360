"""Compare every plan with keeping everything as it is (`clover.planning.budget.keeping`)."""

from __future__ import annotations

from collections import Counter

import msgspec

from clover.planning.budget.keeping import keeping, momentary, worth_taking
from clover.planning.model.planning_input import PlanningInput
from clover.planning.packing.evaluation import LEAST_PART
from clover.policies import SCHEMES
from clover.types import Assignment, Candidate, Plan, State

_BY_SCORE = ("objective", "fixed", "static", "static:mix")
"""Policies that score the moment itself."""


def beside_keeping(state: State, plan: Plan) -> Plan:
    """Return `plan` with what keeping would do in the same state, and whether that is predicted to be better.

    The plan of a policy that serves what its name says (`literal`) is never marked as worse."""
    if not state.running or state.routing is None:
        return plan
    given = PlanningInput.of(state)
    kept = keeping(given)
    if kept is None:
        return plan
    # Scores leave out what devices draw when idle, unless they may sleep: those of other devices are not comparable.
    comparable = state.objective.spared_w is not None or _devices(plan.deployment) == _devices(state.running)
    # In a searched plan every worker must get rows (`LEAST_PART`), which a worker on standby does not.
    comparable = comparable and (plan.configuration == kept.configuration or not _has_standby(kept))
    spread = state.ahead and state.objective.accuracy_budget is not None
    by_score = plan.policy in _BY_SCORE and comparable and not spread
    better = worth_taking(plan, kept, momentary(state, given.objective), by_score=by_score)
    worse = not better and not literal(plan.policy)
    return msgspec.structs.replace(plan, keeping=kept, worse_than_keeping=worse)


def literal(policy: str) -> bool:
    """Return whether a policy serves what its name says, whatever the prediction, as it is there to be compared with:
    BASE, one variant, the paper's schemes."""
    return policy in SCHEMES or policy.startswith("base") or _one_variant(policy)


def _devices(deployment: tuple[Assignment, ...]) -> set[str]:
    return {item.placement.device for item in deployment}


def _has_standby(kept: Candidate) -> bool:
    """Return whether some variant of `kept` has workers and next to no rows."""
    alone = [group for group in kept.configuration if not group.beside]  # a worker that shares its time serves another
    routing, total = kept.routing, sum(group.count for group in kept.configuration)
    if routing.chain:
        return not {group.variant for group in alone} <= set(routing.chain)
    workers = Counter[str]()
    for group in alone:
        workers[group.variant] += group.count
    return any(routing.shares.get(name, 0.0) < 0.5 * LEAST_PART * count / total for name, count in workers.items())


def _one_variant(policy: str) -> bool:
    return policy.startswith("static:") and policy != "static:mix"

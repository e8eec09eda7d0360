"""Serve one variant always, on the layout that serves it best under the objective's limits."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from clover.errors import PlanError
from clover.planning.model.objective import PlanningInput
from clover.planning.search.best import best_power_state
from clover.planning.search.configurations import SearchResult
from clover.policies.plans import plan_of, with_waits
from clover.types import Plan, State


class StaticPolicy:
    """The policy that serves `variant` only, also below the accuracy floor: the plan is then marked infeasible."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.name = f"static:{variant}"

    def propose(self, state: State) -> Plan:
        """Return the best plan that serves only the variant; PlanError if it was not measured on these devices."""
        given = PlanningInput.of(state)
        problem, objective = given.problem, given.objective
        if self.variant not in problem.variants:
            raise PlanError(f"{self.variant} was not measured here; measured: {', '.join(problem.variants)}")
        own = {key: value for key, value in problem.services.items() if key[0] == self.variant}
        only = replace(problem, variants=(self.variant,), services=own)
        accuracy = problem.accuracy[self.variant]
        relaxed = replace(objective, planned_floor=min(objective.planned_floor, accuracy))
        found = with_waits(problem, relaxed, best_power_state(only, relaxed, state.running, seed=state.seed))
        if accuracy < objective.accuracy_floor and found.best.feasible:
            why = f"accuracy {accuracy:.2f} % is below the floor of {objective.accuracy_floor:.2f} %"
            best = msgspec.structs.replace(found.best, feasible=False, why=why)
            found = SearchResult(best, found.candidates, found.evaluated, found.total, found.complete)
        return plan_of(state, problem, objective, found, policy=self.name)

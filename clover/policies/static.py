"""One variant, always, on the layout that serves it best under the objective's limits."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from clover.errors import PlanError
from clover.planning.objective import objective_of
from clover.planning.problem import problem_of
from clover.planning.search import Found, search
from clover.planning.spaces import space_of
from clover.policies.plans import fitting, plan_of, running_configuration, with_running
from clover.types import Plan, State


class StaticPolicy:
    """Serves `variant` only.  A variant below the accuracy floor is served all the same, and marked infeasible."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.name = f"static:{variant}"

    def propose(self, state: State) -> Plan:
        """The best plan that serves only the variant; PlanError where it was not measured on these devices."""
        problem, objective = problem_of(state), objective_of(state)
        if self.variant not in problem.variants:
            raise PlanError(f"{self.variant} was not measured here; measured: {', '.join(problem.variants)}")
        own = {key: value for key, value in problem.services.items() if key[0] == self.variant}
        only = replace(problem, variants=(self.variant,), services=own)
        space, note = space_of(problem.devices, fitting(only))
        if not space:
            raise PlanError(f"{self.variant} was not measured on every profile of any layout: profile it again")
        accuracy = problem.accuracy[self.variant]
        relaxed = replace(objective, planned_floor=min(objective.planned_floor, accuracy))
        running = running_configuration(state)
        found = search(only, relaxed, with_running(state, only, space), running=running)
        if accuracy < objective.accuracy_floor and found.best.feasible:
            why = f"accuracy {accuracy:.2f} % is below the floor of {objective.accuracy_floor:.2f} %"
            best = msgspec.structs.replace(found.best, feasible=False, why=why)
            found = Found(best, found.candidates, found.evaluated, found.total, found.complete)
        return plan_of(state, problem, objective, found, policy=self.name, note=note)

"""What a plan is made from: a `State`, with the problem and the objective that it poses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from clover.planning.model.objective import Objective, objective_of
from clover.planning.model.problem import Problem, problem_of
from clover.types import State


@dataclass(frozen=True)
class PlanningInput:
    """A state with the problem and objective derived from it.

    Made where a plan begins (a policy's `propose`) and handed to every function below."""

    state: State
    problem: Problem
    objective: Objective

    @classmethod
    def of(cls, state: State) -> PlanningInput:
        """Derive problem and objective from `state`; PlanError if it poses no problem (`problem_of`)."""
        return cls(state, problem_of(state), objective_of(state))

    def without_demand(self) -> PlanningInput:
        """Return the same moment without rows that ask for an accuracy of their own."""
        state = msgspec.structs.replace(self.state, demand=())
        return replace(self, state=state, problem=replace(self.problem, demand=()))

"""The policies of the objective as it is: the default, one variant always, and BASE.

`objective`       the best plan of the objective over the configurations of the devices: exact if there are few enough
                  to weigh them all, annealed if there are more (`planning.search.configurations`).  The plan's bound
                  says how much better any other could be
`static:VARIANT`  one variant always, on the layout that serves it best under the objective's limits
`base`            BASE, with which every saving is compared: the best variant on whole devices, whatever the grid does
`base:fitted`     BASE on as few devices as keep the SLO within the utilisation limit; what the other devices draw does
                  not count
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from clover.errors import PlanError
from clover.planning.model.objective import PlanningInput
from clover.planning.model.problem import best_whole
from clover.planning.packing.evaluation import evaluate
from clover.planning.search.best import best_power_state, best_sustained
from clover.planning.search.configurations import SearchResult
from clover.policies.plans import kept_counter, plan_of, result_of, with_waits
from clover.types import Candidate, Plan, State


class ObjectivePolicy:
    """The policy that maximises the configured objective."""

    name = "objective"

    def propose(self, state: State) -> Plan:
        """Return the best plan; PlanError if no configuration exists at all."""
        given = PlanningInput.from_state(state)
        problem, objective = given.problem, given.objective
        kept = kept_counter(problem, state.running)
        result = best_sustained(problem, objective, state.running, kept=kept, seed=state.seed)
        return plan_of(state, problem, objective, with_waits(problem, objective, result), policy=self.name)


class StaticPolicy:
    """The policy that serves `variant` only, also below the accuracy floor: the plan is then marked infeasible."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.name = f"static:{variant}"

    def propose(self, state: State) -> Plan:
        """Return the best plan that serves only the variant; PlanError if it was not measured on these devices."""
        given = PlanningInput.from_state(state)
        problem, objective = given.problem, given.objective
        if self.variant not in problem.variants:
            raise PlanError(f"{self.variant} was not measured here; measured: {', '.join(problem.variants)}")
        own = {key: value for key, value in problem.services.items() if key[0] == self.variant}
        only = replace(problem, variants=(self.variant,), services=own)
        accuracy = problem.accuracy[self.variant]
        relaxed = replace(objective, planned_floor=min(objective.planned_floor, accuracy))
        result = with_waits(problem, relaxed, best_power_state(only, relaxed, state.running, seed=state.seed))
        if accuracy < objective.accuracy_floor and result.best.feasible:
            why = f"accuracy {accuracy:.2f} % is below the floor of {objective.accuracy_floor:.2f} %"
            best = msgspec.structs.replace(result.best, feasible=False, why=why)
            result = SearchResult(best, result.candidates, result.evaluated, result.total, result.complete)
        return plan_of(state, problem, objective, result, policy=self.name)


class BasePolicy:
    """The best variant on the layout of fewest placements of each device; `fitted`: of as few devices as needed."""

    def __init__(self, *, fitted: bool = False) -> None:
        self._fitted = fitted
        self.name = "base:fitted" if fitted else "base"

    def propose(self, state: State) -> Plan:
        """Return BASE's plan; PlanError if the best variant was not measured on whole devices."""
        given = PlanningInput.from_state(state)
        problem, objective = given.problem, given.objective
        usable = [device for device in state.devices if device.layouts]
        least = 1 if self._fitted else len(usable)
        for number in range(least, len(usable) + 1):
            candidate = evaluate(problem, objective, best_whole(problem, usable[:number]))
            if candidate.feasible:
                break
        result = result_of(_on(candidate, number if self._fitted else 0))
        return plan_of(state, problem, objective, result, policy=self.name)


def _on(candidate: Candidate, awake: int) -> Candidate:
    return msgspec.structs.replace(candidate, awake=awake)

"""BASE, the comparison of every claim: the best variant on whole devices, whatever the grid does."""

from __future__ import annotations

from clover.errors import PlanError
from clover.planning.objective import objective_of
from clover.planning.problem import problem_of, whole
from clover.planning.search import evaluate
from clover.policies.plans import alone, plan_of
from clover.types import Configuration, GroupCount, Plan, State


class BasePolicy:
    """The best variant on the layout of fewest placements of each device."""

    name = "base"

    def propose(self, state: State) -> Plan:
        """BASE's plan; PlanError where the best variant was not measured on whole devices."""
        problem, objective = problem_of(state), objective_of(state)
        best = problem.best
        counts: dict[str, int] = {}
        for device in state.devices:
            for placement in whole(device):
                counts[placement.profile] = counts.get(placement.profile, 0) + 1
        for profile in counts:
            if (best, profile) not in problem.services:
                raise PlanError(f"{best} was not measured on {profile}: profile it again")
        configuration: Configuration = tuple(
            GroupCount(variant=best, profile=profile, count=number) for profile, number in sorted(counts.items())
        )
        found = alone(evaluate(problem, objective, configuration))
        return plan_of(state, problem, objective, found, policy=self.name)

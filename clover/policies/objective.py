"""The default policy: the best plan of the objective over the configurations of the devices.

Exact if there are few enough to weigh them all, annealed if there are more (`planning.search.configurations`); the
plan's bound says how much better any other could be.
"""

from __future__ import annotations

from clover.planning.model.objective import PlanningInput
from clover.planning.search.best import best_sustained
from clover.policies.plans import counting_kept, plan_of, with_waits
from clover.types import Plan, State


class ObjectivePolicy:
    """The policy that maximises the configured objective."""

    name = "objective"

    def propose(self, state: State) -> Plan:
        """Return the best plan; PlanError if no configuration exists at all."""
        given = PlanningInput.of(state)
        problem, objective = given.problem, given.objective
        kept = counting_kept(problem, state.running)
        found = best_sustained(problem, objective, state.running, kept=kept, seed=state.seed)
        return plan_of(state, problem, objective, with_waits(problem, objective, found), policy=self.name)

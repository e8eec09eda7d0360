"""The default policy: the best plan of the objective over the configurations of the devices.

Exact where there are few enough to weigh them all, annealed where there are more (`planning.search.annealed`); the
plan's bound says how much better any other could be.
"""

from __future__ import annotations

from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.search.sustained import best_sustained
from clover.policies.plans import counting_kept, plan_of, with_waits
from clover.types import Plan, State


class ObjectivePolicy:
    """Maximises the configured objective."""

    name = "objective"

    def propose(self, state: State) -> Plan:
        """Return the best plan; PlanError where no configuration exists at all."""
        problem, objective = problem_of(state), objective_of(state)
        kept = counting_kept(state, problem)
        found = best_sustained(problem, objective, state.running, kept=kept, seed=state.seed)
        return plan_of(state, problem, objective, with_waits(state, problem, objective, found), policy=self.name)

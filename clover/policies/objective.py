"""The default policy: the best plan of the objective over the configurations of the devices.

Exact where there are few enough to weigh them all.  Larger spaces are cut (`planning.spaces` says how), and the plan's
reason says so.
"""

from __future__ import annotations

from collections.abc import Callable

from clover.errors import PlanError
from clover.planning.objective import objective_of
from clover.planning.problem import Problem, problem_of
from clover.planning.search import search
from clover.planning.spaces import space_of
from clover.policies.plans import fitting, placed, plan_of, running_configuration, with_running
from clover.types import Configuration, Plan, State


class ObjectivePolicy:
    """Maximises the configured objective by enumeration."""

    name = "objective"

    def propose(self, state: State) -> Plan:
        """The best plan; PlanError where no configuration exists at all."""
        problem, objective = problem_of(state), objective_of(state)
        space, note = space_of(problem.devices, fitting(problem))
        if not space:
            raise PlanError(f"no layout of the devices can run {state.family}: profile it for these devices")
        found = search(
            problem,
            objective,
            with_running(state, problem, space),
            running=running_configuration(state),
            kept=_kept(state, problem) if state.running else None,
        )
        return plan_of(state, problem, objective, found, policy=self.name, note=note)


def _kept(state: State, problem: Problem) -> Callable[[Configuration], int]:
    """How many workers a configuration could keep."""
    running = set(state.running)

    def kept(configuration: Configuration) -> int:
        return len(running.intersection(placed(state, problem, configuration)))

    return kept

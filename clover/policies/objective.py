"""The default policy: the best plan of the objective over every configuration of the devices.

Exact where a space holds at most `FULL` configurations.  Larger ones are cut to configurations of at most two variants
(then one), which loses nothing unless a capacity limit binds; the plan's reason says so.
"""

from __future__ import annotations

from clover.errors import PlanError
from clover.planning.enumerate import configurations
from clover.planning.layout import lay_out
from clover.planning.objective import objective_of
from clover.planning.problem import Problem, problem_of
from clover.planning.search import search
from clover.policies.plans import fitting, plan_of, running_configuration
from clover.types import Configuration, Plan, State

FULL = 5000


class ObjectivePolicy:
    """Maximises the configured objective by exact enumeration."""

    name = "objective"

    def propose(self, state: State) -> Plan:
        """The best plan; PlanError where no configuration exists at all."""
        problem, objective = problem_of(state), objective_of(state)
        space, note = _space(problem)
        if not space:
            raise PlanError(f"no layout of the devices can run {state.family}: profile it for these devices")
        running = running_configuration(state)
        found = search(problem, objective, space, running=running, kept=_kept(state, problem, space))
        return plan_of(state, problem, objective, found, policy=self.name, note=note)


def _space(problem: Problem) -> tuple[list[Configuration], str]:
    fits = fitting(problem)
    for most in (0, 2, 1):
        try:
            space = configurations(problem.devices, fits, limit=FULL, max_variants=most)
        except PlanError:
            if most == 1:
                raise
            continue
        return space, f"searched configurations of at most {most} variant{'s' * (most > 1)}" if most else ""
    raise AssertionError("unreachable")


def _kept(state: State, problem: Problem, space: list[Configuration]) -> dict[Configuration, int]:
    """How many workers each configuration could keep; counted only where something runs and the space is small."""
    if not state.running or len(space) > 500:
        return {}
    running = set(state.running)
    return {
        configuration: len(
            running.intersection(
                lay_out(
                    configuration,
                    family=state.family,
                    backend=problem.backend,
                    devices=state.devices,
                    running=state.running,
                )
            )
        )
        for configuration in space
    }

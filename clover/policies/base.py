"""BASE, the comparison of every claim: the best variant on whole devices, whatever the grid does.

`base` takes all devices.  `base:fitted` is BASE on as few devices as keep the latency target within the utilisation
limit; what the other devices draw does not count.
"""

from __future__ import annotations

import msgspec

from clover.planning.model.objective import PlanningInput
from clover.planning.model.problem import best_whole
from clover.planning.packing.evaluation import evaluate
from clover.policies.plans import alone, plan_of
from clover.types import Candidate, Plan, State


class BasePolicy:
    """The best variant on the layout of fewest placements of each device; `fitted`: of as few devices as needed."""

    def __init__(self, *, fitted: bool = False) -> None:
        self._fitted = fitted
        self.name = "base:fitted" if fitted else "base"

    def propose(self, state: State) -> Plan:
        """Return BASE's plan; PlanError if the best variant was not measured on whole devices."""
        given = PlanningInput.of(state)
        problem, objective = given.problem, given.objective
        usable = [device for device in state.devices if device.layouts]
        least = 1 if self._fitted else len(usable)
        for number in range(least, len(usable) + 1):
            candidate = evaluate(problem, objective, best_whole(problem, usable[:number]))
            if candidate.feasible:
                break
        found = alone(_on(candidate, number if self._fitted else 0))
        return plan_of(state, problem, objective, found, policy=self.name)


def _on(candidate: Candidate, awake: int) -> Candidate:
    return msgspec.structs.replace(candidate, awake=awake)

"""BASE, the comparison of every claim: the best variant on whole devices, whatever the grid does.

`base` takes all devices.  `base:fitted` is BASE as somebody would run it who counts devices: on as few of them as keep
the latency target within the utilisation limit.  What the others draw is not its business.
"""

from __future__ import annotations

import msgspec

from clover.planning.model.objective import objective_of
from clover.planning.model.problem import best_whole, problem_of
from clover.planning.packing.exhaustive import evaluate
from clover.policies.plans import alone, plan_of
from clover.types import Candidate, Plan, State


class BasePolicy:
    """The best variant on the layout of fewest placements of each device, or of as few devices as need be."""

    def __init__(self, *, fitted: bool = False) -> None:
        self._fitted = fitted
        self.name = "base:fitted" if fitted else "base"

    def propose(self, state: State) -> Plan:
        """Return BASE's plan; PlanError where the best variant was not measured on whole devices."""
        problem, objective = problem_of(state), objective_of(state)
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

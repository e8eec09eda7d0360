"""If no plan keeps the limits at a rate, find the one that keeps them at the highest rate below it.

The rate that is planned for is what may arrive, with room for chance.  If nothing serves that much in time, the plan of
the least p95 at that rate need not be the one that serves most: the real rate may be lower, and a plan that is late at
any rate would be late then, too.  So the search is repeated at parts of the rate, and the first feasible plan is run;
it stays marked as infeasible, with its prediction for the rate that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from clover.planning.cascade.routed import predicted, shortfall
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.packing.exhaustive import SearchResult
from clover.planning.search.power_states import best_power_state, with_idle_energy
from clover.types import Assignment, Configuration

PARTS = (0.9, 0.8, 0.7, 0.6, 0.45)
"""Parts of the rate that are tried, in turn, until some plan serves one in time."""
WASTED = 1.25
"""A plan whose utilisation is more than this many times that of the least bad one is not run, even if it keeps the SLO
at a lower rate."""


def best_sustained(
    problem: Problem,
    objective: Objective,
    running: Sequence[Assignment] = (),
    *,
    kept: Callable[[Configuration], int] | None = None,
    seed: int = 0,
) -> SearchResult:
    """Return what `best_power_state` finds, or if that is infeasible, what is feasible at the highest of `PARTS` of the
    rate, unless it serves clearly less (`WASTED`).  Raises PlanError as `best_power_state`."""
    found = best_power_state(problem, objective, running, kept=kept, seed=seed)
    if found.best.feasible:
        return found
    for part in PARTS:
        fewer = replace(problem, rate=part * problem.rate)
        there = predicted(fewer, found.best.configuration, found.best.routing)
        chained = len(found.best.routing.chain) > 1
        if there is not None and not shortfall(objective, there, chained=chained):
            break
        less = best_power_state(fewer, objective, running, kept=kept, seed=seed)
        if less.best.feasible:
            whole = predicted(problem, less.best.configuration, less.best.routing)
            if whole is None or whole.utilisation > WASTED * found.best.prediction.utilisation:
                break
            why = shortfall(objective, whole, chained=len(less.best.routing.chain) > 1)
            best = msgspec.structs.replace(less.best, prediction=whole, feasible=not why, why=why)
            best = with_idle_energy(best, problem, objective, less.best.awake)
            score = objective.score(whole.accuracy, best.prediction.joules)
            best = msgspec.structs.replace(best, score=score)
            return replace(found, best=best, evaluated=found.evaluated + less.evaluated)
    return found

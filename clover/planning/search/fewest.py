"""How few cores would do: what a right-sized machine for this load would have, and what the others idle for.

A plan on n cores is what the search finds on the first n.  More cores never serve less, so that the fewest are found by
halving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from clover.errors import PlanError
from clover.planning.model.cores import core_counts, first_cores, row_of_cores
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem, best_whole
from clover.planning.packing.evaluation import evaluate
from clover.planning.search.annealed import best_found
from clover.types import Candidate

Found = Callable[[Problem, Objective], Candidate]
"""What some way to plan makes of a problem; PlanError if nothing."""


def fewest_cores(problem: Problem, objective: Objective, found: Found | None = None) -> tuple[int, Candidate] | None:
    """Return the fewest cores on which a plan keeps SLO, floor and utilisation limit, and the best plan on them.

    None if no number does, or if the devices are not one row of cores.  `found` plans another way than by the best of
    all configurations (`base_found`: by BASE)."""
    row = row_of_cores(problem.devices)
    if row is None:
        return None
    plan = found or _best
    counts = core_counts(row.slices)
    least: tuple[int, Candidate] | None = None
    low, high = 0, len(counts)
    while low < high:
        # All cores come first: if they do not serve the load, fewer need not be tried.
        middle = (low + high) // 2 if least is not None else len(counts) - 1
        try:
            candidate = plan(replace(problem, devices=(first_cores(row, counts[middle]),)), objective)
        except PlanError:  # the profile has no such core-sets
            candidate = None
        if candidate is not None and candidate.feasible:
            least, high = (counts[middle], candidate), middle
        elif least is None:
            return None
        else:
            low = middle + 1
    return least


def base_found(problem: Problem, objective: Objective) -> Candidate:
    """Return BASE on the devices of `problem`: the best variant on the fewest core-sets that cover them."""
    return evaluate(problem, objective, best_whole(problem, problem.devices))


def _best(problem: Problem, objective: Objective) -> Candidate:
    return best_found(problem, objective).best

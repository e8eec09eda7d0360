"""How few cores would do: what a right-sized machine for this load would have, and what the others idle for.

A plan on n cores is what the search finds on the first n.  More cores never serve less, so that the fewest are found by
halving.
"""

from __future__ import annotations

from dataclasses import replace

from clover.errors import PlanError
from clover.planning.model.cores import core_counts, first_cores, row_of_cores
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.search.annealed import best_found
from clover.types import Candidate


def fewest_cores(problem: Problem, objective: Objective) -> tuple[int, Candidate] | None:
    """Return the fewest cores on which a plan keeps SLO, floor and utilisation limit, and the best plan on them.

    None if no number does, or if the devices are not one row of cores.
    """
    row = row_of_cores(problem.devices)
    if row is None:
        return None
    counts = core_counts(row.slices)
    least: tuple[int, Candidate] | None = None
    low, high = 0, len(counts)
    while low < high:
        # All cores come first: if they do not serve the load, fewer need not be tried.
        middle = (low + high) // 2 if least is not None else len(counts) - 1
        try:
            part = replace(problem, devices=(first_cores(row, counts[middle]),))
            candidate = best_found(part, objective).best
        except PlanError:  # the profile has no such core-sets
            candidate = None
        if candidate is not None and candidate.feasible:
            least, high = (counts[middle], candidate), middle
        elif least is None:
            return None
        else:
            low = middle + 1
    return least

"""The frontier of a family at one rate: the useful pairs of accuracy and joules a row, each with its plan.

Intensity only scales the grams of a plan.  So the frontier is found once for a rate, SLO and floor, in joules and at
the reference intensity; an hour at intensity I has the same points at I x joules.  It is found by searches of the
paper's objective at a few lambdas: both ends first, then between the two neighbours with most room between them.

**Cascades.**  If plans may have a chain, the plan of a point is a configuration *with* a chain and thresholds.  The
frontier is then the frontier of everything that the configurations found for it permit
(`planning.cascade.permitted`).  A chain may be more accurate than the best variant alone; the frontier ends at the best
variant's accuracy, because nothing asks for more.

Frontiers are remembered by their problem and objective, which is why both are hashable.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec

from clover.planning.budget.counterfactual import Fixed
from clover.planning.cascade.permitted import joint, permitted, point_of
from clover.planning.model.frontier import FrontierPoint, hull, reaching
from clover.planning.model.objective import Objective, PlanningInput
from clover.planning.model.problem import LEAST_RATE, Problem, is_shared
from clover.planning.packing.candidates import Profiles, held_together, whole_sets
from clover.planning.packing.waits import tune_waits
from clover.planning.search.best import best_power_state, with_idle_energy
from clover.planning.search.configurations import JOINT, every
from clover.types import Candidate, Configuration, State

_SOLVES = 7  # plans that a frontier is made of, at most
_RATE_STEP = math.log(1.03)  # rates that share a frontier: the highest of them has to be served
COARSE_STEP = math.log(1.25)
"""The same for hours whose load is not like the present one."""
_CHEAPEST, _BEST = 0.999, 0.001  # lambdas of the ends: all for carbon or accuracy, and equals differ in the other
_STRAIGHT = 1e-3  # of the joules: a point that lies less than this below the line adds nothing


@dataclass(frozen=True)
class FrontierPlan:
    """A point of the frontier, in percent and joules a row (idle joules included if plans differ in them), and the
    candidate that reaches it."""

    point: FrontierPoint
    candidate: Candidate

    @property
    def configuration(self) -> Configuration:
        """The workers that do it."""
        return self.candidate.configuration

    @property
    def shares(self) -> dict[str, float]:
        """The rows' shares of its variants."""
        return self.candidate.routing.shares

    @property
    def awake(self) -> int:
        """The number of devices, or cores of a row, that it keeps awake (0: all)."""
        return self.candidate.awake


def fixed_mixes(state: State, rate: float) -> tuple[Fixed, ...]:
    """Return the best fixed mixes at `rate` rows a second, from the most frugal up; none if nothing keeps the limits of
    `state`.  PlanError if no device can be used."""
    given = PlanningInput.from_state(state)
    plans = frontier(given.problem, given.objective, rate, seed=state.seed)
    return tuple(Fixed(configuration=plan.configuration, shares=plan.shares) for plan in plans)


def frontier(
    problem: Problem, objective: Objective, rate: float, *, seed: int = 0, coarse: bool = False
) -> tuple[FrontierPlan, ...]:
    """Return the plans of the frontier at `rate` rows a second or a little more (`coarse`: up to a quarter more), from
    the most frugal to the most accurate.  Empty if nothing keeps floor, SLO and utilisation limit.  What runs and the
    present intensity do not matter."""
    step = COARSE_STEP if coarse else _RATE_STEP
    # How much of it a budget lets plans use is no part of the frontier: all budgets share one.
    asked = msgspec.structs.replace(problem.objective, accuracy_budget=None)
    known = replace(problem, rate=_rounded_up(rate, step), objective=asked)
    return _frontier(known, replace(objective, carbon_weight=1.0), seed)


def permitted_on(
    problem: Problem, objective: Objective, configuration: Configuration, awake: int = 0
) -> tuple[Candidate, ...]:
    """Return what `configuration` on `awake` devices (0: all) permits at the problem's rate or a little more."""
    rounded = replace(problem, rate=_rounded_up(problem.rate, _RATE_STEP))
    return _permitted_on(rounded, replace(objective, carbon_weight=1.0), configuration, awake)


@lru_cache(maxsize=256)
def _permitted_on(
    problem: Problem, objective: Objective, configuration: Configuration, awake: int
) -> tuple[Candidate, ...]:
    candidates = permitted(problem, objective, configuration)
    return tuple(with_idle_energy(item, problem, objective, awake) for item in candidates)


def _rounded_up(rate: float, step: float) -> float:
    """Return the lowest rate of a logarithmic grid of `step` that is no less than `rate`."""
    return max(LEAST_RATE, math.exp(math.ceil(math.log(max(rate, LEAST_RATE)) / step - 1e-9) * step))


@lru_cache(maxsize=64)
def _frontier(problem: Problem, objective: Objective, seed: int) -> tuple[FrontierPlan, ...]:
    """Find the plans that are best at some price of accuracy, most accurate and most frugal first.

    Then, again and again, the two neighbours that leave most room between them are taken, and the best plan is found at
    the price at which these two are equally good: until none lies below the line between its neighbours, or `_SOLVES`
    plans are made.
    """
    candidates: dict[FrontierPoint, Candidate] = {}
    space = (every(problem, JOINT) if problem.points and problem.spared_w is None else None) or []
    # What all configurations of a small machine permit is weighed afterwards, so that no search need look for chains.
    searched = replace(problem, points=()) if space else problem
    # The same holds of what shared workers permit.  Their mixes lie between that: no average of hours needs them.
    searched = replace(searched, resident=1) if problem.points else searched

    def solved(lam: float) -> FrontierPoint | None:
        scored = replace(objective, form="paper", lam=lam)
        best = best_power_state(searched, scored, seed=seed).best
        if space and problem.objective.waits:
            best = tune_waits(searched, scored, best)
        if not best.feasible:
            return None
        point = FrontierPoint(accuracy=best.prediction.accuracy, grams=best.prediction.joules)
        candidates.setdefault(point, best)
        return point

    if solved(_CHEAPEST) is None or solved(_BEST) is None:
        return tuple(FrontierPlan(point, candidate) for point, candidate in candidates.items())
    ends = hull(tuple(candidates))
    order = itertools.count()
    gaps = [(0.0, next(order), ends[0], ends[-1])] if len(ends) > 1 else []
    for _ in range(_SOLVES - 2):
        if not gaps:
            break
        _, _, low, high = heapq.heappop(gaps)
        slope = (high.grams - low.grams) / (high.accuracy - low.accuracy)
        point = solved(1.0 / (1.0 + slope * objective.base_accuracy / objective.base_energy_j))
        if point is None or not low.accuracy < point.accuracy < high.accuracy:
            continue
        if point.grams < (1.0 - _STRAIGHT) * (low.grams + slope * (point.accuracy - low.accuracy)):
            for left, right in ((low, point), (point, high)):
                if right.grams <= left.grams:
                    continue  # a search that is not exact may find a point that is better than the frugal end
                room = (right.accuracy - left.accuracy) * (right.grams - left.grams)
                heapq.heappush(gaps, (-room, next(order), left, right))
    if problem.points or problem.resident > 1:
        for item in _chained(problem, objective, space, tuple(candidates.values())):
            if point_of(item) not in candidates or is_shared(item.configuration):  # of equals what permits more
                candidates[point_of(item)] = item
    useful = reaching(hull(tuple(candidates)), objective.base_accuracy)
    return tuple(FrontierPlan(point, candidates[point]) for point in useful)


def _chained(
    problem: Problem, objective: Objective, space: Sequence[Configuration], found: Sequence[Candidate]
) -> Iterator[Candidate]:
    """Yield what all configurations of `space` permit, and those whose workers share their time between as many
    variants as they hold; if it is empty, those of `found`, and the same of their layouts."""
    if space:
        yield from joint(problem, objective, [*space, *whole_sets(problem)])
        return
    known = dict.fromkeys((item.configuration, item.awake) for item in found)
    if problem.resident > 1:
        laid = [(_profiles(configuration), awake) for configuration, awake in known]
        known |= dict.fromkeys(
            (configuration, awake)
            for profiles, awake in dict.fromkeys(laid)
            for configuration in held_together(problem, profiles)
        )
    for configuration, awake in known:
        for item in permitted(problem, objective, configuration):
            yield with_idle_energy(item, problem, objective, awake)


def _profiles(configuration: Configuration) -> Profiles:
    counts = Counter[str]()
    for group in configuration:
        counts[group.profile] += group.count
    return tuple(sorted(counts.items()))

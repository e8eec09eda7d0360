"""The least grams that any schedule of plans over a horizon can emit: a proven limit beside an accuracy budget.

Terms.
 - *schedule*: for every step of a horizon the plan, or the plans in turn, that it runs
 - n_t, w_t: rows of step t, and grams a joule in it
 - E_t, A_t: joules and percent a row of the plan of step t
 - A, N: the accuracy (percent) to reach over all rows, and how many rows these are
 - p: a price of accuracy, grams for a percent of a row; m = p / w_t: the same in joules

Whatever the price p is, a schedule that reaches A has

    sum n_t w_t E_t  >=  sum n_t w_t E_t - p (sum n_t A_t - N A)  >=  p N A + sum n_t w_t G(p / w_t),
    G(m) = min over plans of E - m A,

because the first parentheses hold nothing below zero.  Only the ratio of price and intensity is left in G, so that one
function of one number stands for all steps of a rate.  G itself is not known, but `research.simulate.slo_bound` gives
what it cannot be below (`CostBound`).  It is concave, as is the right side in p, whose greatest value is the limit;
every p gives a valid one.  The bound lies below the frontier that plans reach by what the relaxations of
`research.simulate.slo_bound` and `research.simulate.lane_ceilings` leave out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from clover.errors import PlanError
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.plan_bound import least_by_sections
from clover.planning.search.best import sleep_states
from clover.planning.search.configurations import every
from clover.research.simulate.lane_ceilings import lane_ceilings
from clover.research.simulate.slo_bound import slo_bound

_GRID = 24
_FINER = 160
_ROOM = 2e-4
"""Of BASE's joules: prices lie so close that chords miss no more."""
_HALVINGS = 80


@dataclass(frozen=True)
class CostBound:
    """A lower bound of G: what E - m A of any plan is at least (joules a row), at some prices m (joules a percent,
    ascending from 0).

    G is concave, so that the chord between two of its values lies below it, and lower bounds of the values make a lower
    chord.  Beyond the last price G falls by `best`, the highest accuracy of all (percent), a step at most.
    """

    prices: tuple[float, ...]
    values: tuple[float, ...]
    best: float

    def at(self, price: float) -> float:
        """Return a lower bound of G at a `price` of 0 or more."""
        after = bisect_left(self.prices, price)
        if after >= len(self.prices):
            return self.values[-1] - (price - self.prices[-1]) * self.best
        if after == 0:
            return self.values[0]
        low, high = self.prices[after - 1], self.prices[after]
        part = (price - low) / (high - low)
        return (1.0 - part) * self.values[after - 1] + part * self.values[after]


def cost_bound(problem: Problem, objective: Objective) -> CostBound:
    """Return the lower bound of G for a family at its rate, without accuracy floor.  Joules are those that plans differ
    in: active ones, and if devices may have no workers, the idle ones of the devices that have some.

    If configurations are too many to be weighed one by one, the planner gives no row to a worker that is too slow
    alone, and the bound is that of such plans; else of all.
    """
    sleep, awake_w = sleep_states(problem.spared_w)
    base_j, base = objective.base_energy_j, objective.base_accuracy
    paper_objective = replace(
        objective, form="paper", carbon_weight=1.0, accuracy_floor=0.0, planned_floor=0.0, chain_floor=None
    )

    def formed(lam: float, slow: bool) -> Formulation:
        member = PackingMember(problem, replace(paper_objective, lam=lam))
        return Formulation([member], problem.devices, sleep=sleep, awake_w=awake_w, slow=slow)

    slow = every(problem) is not None
    try:
        planes = lane_ceilings(formed(0.5, slow))
    except PlanError:  # nothing but slow workers: the planner takes these as well
        slow = True
        planes = lane_ceilings(formed(0.5, slow))

    @cache
    def value(price: float) -> float:
        lam = 1.0 / (1.0 + price * base / base_j)
        most = slo_bound(formed(lam, slow), waits=problem.objective.waits, ceilings=planes)
        return base_j * (1.0 - ((1.0 - lam) + most) / lam)

    accuracies = [problem.accuracy[variant] for variant in problem.variants]
    reach = max(max(accuracies) - min(accuracies), 1e-9)
    # From a thousandth of what BASE would save a percent by losing all there is to lose, to a thousand times that.
    prices = [0.0, *(base_j / reach * 10.0 ** (-3.0 + 6.0 * at / (_GRID - 1)) for at in range(_GRID))]
    for _ in range(_FINER):
        values = [value(price) for price in prices]
        room, at = max((_room(prices, values, at, accuracies), at) for at in range(1, len(prices)))
        if room < _ROOM * base_j:
            break
        prices.insert(at, 0.5 * (prices[at - 1] + prices[at]))
    return CostBound(tuple(prices), tuple(value(price) for price in prices), max(accuracies))


def _room(prices: Sequence[float], values: Sequence[float], at: int, accuracies: Sequence[float]) -> float:
    """Return how far above the chord from the price before to that at `at` a concave function with these values may
    lie, which falls by no less than the least and no more than the highest accuracy."""

    def slope(after: int) -> float:
        return (values[after] - values[after - 1]) / (prices[after] - prices[after - 1])

    before = slope(at - 1) if at > 1 else -min(accuracies)
    after = slope(at + 1) if at + 1 < len(prices) else -max(accuracies)
    rise, fall = before - slope(at), slope(at) - after  # from the chord up to where both meet
    return (prices[at] - prices[at - 1]) * rise * fall / (rise + fall) if min(rise, fall) > 0.0 else 0.0


@dataclass(frozen=True)
class HorizonPart:
    """A part of a horizon: rows, grams of CO2e a joule, and what plans can do at its load."""

    rows: float
    grams_per_j: float
    front: CostBound


def least_grams(steps: Sequence[HorizonPart], accuracy: float) -> float:
    """Return grams that no schedule over `steps` can undercut that reaches `accuracy` percent over all rows."""
    rows = sum(step.rows for step in steps)
    alike: dict[tuple[float, int], tuple[float, HorizonPart]] = {}
    for step in steps:
        key = (step.grams_per_j, id(step.front))
        alike[key] = (alike[key][0] + step.rows if key in alike else step.rows, step)

    def value(price: float) -> float:
        found = price * rows * accuracy
        for own, step in alike.values():
            w = step.grams_per_j
            found += own * (w * step.front.at(price / w) if w > 0.0 else -price * step.front.best)
        return found

    low, high = 0.0, max(step.grams_per_j * step.front.prices[-1] for step in steps)
    least, *_ = least_by_sections(lambda price: (-value(price), price), low, high, _HALVINGS)
    return max(value(low), value(high), -least)

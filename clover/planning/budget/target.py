"""What this moment has to reach of an accuracy budget, from the price of accuracy over what is left of the horizon.

Terms.
 - *budget*: points below the best variant that rows may lose on average over a horizon of grid time
 - *target*: the accuracy that this asks for on average
 - *price* of accuracy: grams for a percent of a row
 - *part*: a stretch of the forecast with one intensity and one rate
 - *frontier* of a part: its useful pairs of accuracy and grams a row (`planning.budget.frontiers`)
 - *climb*: the step from one point of a frontier to the next

**The budget.**  Rows may lose `accuracy_budget` points below the best variant on average.  So they have to reach
T = best - budget, but never less than the accuracy floor, which holds at every moment.  If R rows were served at a mean
of S and F rows are to come, these have to reach

    A = T + (T - S) R / F

Example: the best variant has 91 %, the budget is 1 point, so T = 90.  If 1,000 rows were served at 90.5 % and 3,000 are
to come, these have to reach 90 - 0.5 x 1,000 / 3,000 = 89.83 %.  What was really served corrects what was planned, hour
by hour, so the horizon ends where it should even if its forecasts were wrong.

**The price.**  The cheapest climbs over all parts of the forecast are taken until A is reached.  The last of them gives
the price p.

**This moment.**  An hour takes the point where grams - p x accuracy is least.  The paper's objective is
f = L (C_base - C) / C_ref - (1 - L) (A_base - A) / A_base with C = E I and C_ref = E_base REF.  In it one percent of
accuracy is worth (1 - L) / A_base and one gram L / C_ref, so that a percent is worth p = (1 - L) C_ref / (L A_base)
grams:

    L = 1 / (1 + p A_base / C_ref)

The intensity is not in it, so one lambda stands for a price over the whole horizon: the paper's objective at a fixed L
*is* a budget, for an L that is not known beforehand.  L leaves open which of two equally good points to take, and a
flat day consists of nothing else.  So parts whose break-even lies within `_BAND` of the price share what the price
leaves over, each in the same proportion.  The moment's share of it is an accuracy to reach (`BudgetTarget.accuracy`),
which the plan reaches at the least carbon by the shares of its variants.  A flat day gets the best fixed mix, in every
hour.

**Cascades.**  A plan with a chain is a point with nothing between it and the next one, and what runs now need not be on
the frontier.  `budget_target` says what to reach among the points that *it* permits (`here`).

**Trust.**  Rows to come are a forecast too.  Only a part of them, `TRUST`, is relied on to make good, at their best,
what this moment loses; if they could not, the moment may lose less.

**Online.**  If `State.online`, the price follows from what was served alone, without a forecast.  This is an online
primal-dual rule, to compare the forecast's plans with.  The budget is a constraint on the average over a horizon, and
its dual variable is the price of accuracy p.  Each moment takes the point of its frontier where grams - p x accuracy is
least.  The sub-gradient of the constraint, how far the moment's accuracy is below the target, moves the price (as in
GAR, arXiv 2605.11603):

    log p <- log p + eta x (target - accuracy)        summed over the hours of the horizon, weighted by their rows

The step is multiplicative, which keeps the price positive and has no scale of its own.  So the price is a function of
what was served: with D the percent-hours by which rows are below the target so far (an hour of the present load, a
percent below, is one),

    p = p0 exp(D / Q),        Q = `STEP` x budget x sqrt(hours of the horizon)

p0 stands for the lambda at which the best variant and the cheapest mix at the floor break even at the reference
intensity.  At the end of the horizon the average is off by Q |log(p / p0)| / hours.  What the rule costs more than the
best schedule known afterwards grows with the square root of the hours, not with the hours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clover.planning.budget.frontiers import COARSE_STEP, frontier
from clover.planning.model.frontier import FrontierPoint
from clover.planning.model.objective import Objective, PlanningInput, planned_floor
from clover.planning.model.problem import LEAST_RATE, accuracies
from clover.types import ObjectiveConfig, State

Floats = NDArray[np.float64]

GRAMS_PER_J = 1.0 / 3.6e6
"""At 1 g/kWh."""
_DOWN = 8  # steps of `COARSE_STEP` that are tried below a rate that nothing can serve
_BAND = 0.02
TRUST = 0.9
STEP = 0.25
_MOST = 12.0  # of the exponent: a price of e^12 times the first one is every price


@dataclass(frozen=True)
class BudgetTarget:
    """What an accuracy budget asks of this moment.  `accuracy` (percent): to reach now at the least carbon, at least
    the floor; `price`: grams for a percent of a row (0: accuracy is not wanted, inf: at any price); `lam`: the lambda
    that stands for the price; `asked`: what rows from now on have to reach for `target`; `served`: what they reached so
    far (NaN: none yet); `least`: what must be reached now, because the rows to come could not make it good."""

    accuracy: float
    price: float
    lam: float
    asked: float
    target: float
    served: float
    least: float = 0.0


@dataclass(frozen=True)
class RemainingHorizon:
    """What is left of a horizon, as arrays [part] and [part, climb], this moment first.

    `rows` of each part, the lowest and highest accuracy it can be run at (`bottom`, `top`), and the climbs between
    them: `slopes`, the grams that a percent of a row costs there, and `rises`, the percent that are gained (none, at an
    infinite price, if a part has fewer climbs than others)."""

    rows: Floats
    bottom: Floats
    top: Floats
    slopes: Floats
    rises: Floats

    @classmethod
    def from_frontiers(
        cls, rows: Sequence[float], grams_per_j: Sequence[float], frontiers: Sequence[Sequence[FrontierPoint]]
    ) -> RemainingHorizon:
        """Return parts with these rows and these `frontiers` (in joules), at so many grams a joule."""
        columns = max(len(points) for points in frontiers) - 1
        slopes, rises = np.full((len(frontiers), columns), np.inf), np.zeros((len(frontiers), columns))
        climbs: dict[int, tuple[list[float], list[float]]] = {}
        for at, points in enumerate(frontiers):
            if id(points) not in climbs:
                pairs = list(itertools.pairwise(points))
                rise = [above.accuracy - below.accuracy for below, above in pairs]
                slope = [(above.grams - below.grams) / up for (below, above), up in zip(pairs, rise, strict=True)]
                climbs[id(points)] = (slope, rise)
            slope, rise = climbs[id(points)]
            slopes[at, : len(slope)] = grams_per_j[at] * np.array(slope)
            rises[at, : len(rise)] = rise
        bottom = np.array([points[0].accuracy for points in frontiers])
        return cls(np.array(rows), bottom, bottom + rises.sum(axis=1), slopes, rises)

    def price(self, asked: float) -> float:
        """Return the price at which `asked` percent are met over all parts: climbs are taken from the cheapest up, and
        the last one needed makes the price.  0 if none is needed, infinite if all are not enough."""
        missing = asked * self.rows.sum() - (self.rows * self.bottom).sum()
        if missing <= 1e-12 * self.rows.sum():
            return 0.0
        order = np.argsort(self.slopes, axis=None, kind="stable")
        reached = np.cumsum((self.rows[:, None] * self.rises).ravel()[order])
        at = int(np.searchsorted(reached, missing * (1.0 - 1e-12)))
        return float(self.slopes.ravel()[order[at]]) if at < len(order) else math.inf

    def accuracies_at(self, price: float) -> Floats:
        """Return the accuracy that each part takes at `price`: its climbs up to those that cost no more."""
        accuracies: Floats = self.bottom + np.where(self.slopes <= price, self.rises, 0.0).sum(axis=1)
        return accuracies

    def accuracy_now(self, asked: float, price: float) -> float:
        """Return the accuracy of this moment, if all parts that break even near `price` share alike what is left
        over."""
        low, high = self.accuracies_at(price / (1.0 + _BAND)), self.accuracies_at(price * (1.0 + _BAND))
        room = float((self.rows * (high - low)).sum())
        part = (asked * self.rows.sum() - (self.rows * low).sum()) / room if room > 0.0 else 0.0
        return float(low[0] + min(1.0, max(0.0, part)) * (high[0] - low[0]))

    def accuracy_at(self, price: float) -> float:
        """Return the accuracy of this moment at `price`, half way up the climbs that break even near it."""
        low, high = self.accuracies_at(price / (1.0 + _BAND)), self.accuracies_at(price * (1.0 + _BAND))
        return 0.5 * float(low[0] + high[0])

    def least_now(self, target: float, state: State) -> float:
        """Return the least accuracy of this moment that the rows after it, `TRUST` of them at their best, can make
        good."""
        later = float((self.rows * np.maximum(self.top - target, 0.0))[1:].sum())
        debt = target * state.served_rows - state.served_accuracy_rows
        return target + (debt - TRUST * later) / float(self.rows[0])


def target_of(state: State) -> float:
    """Return the accuracy (percent) that the budget asks for on average: best - budget, or what plans are held to if
    that is more, or if there is no budget."""
    cascade = state.objective.cascade and state.profile.cascade is not None
    return target_from(state.objective, max(accuracies(state.profile).values(), default=0.0), cascade=cascade)


def target_from(objective: ObjectiveConfig, best: float, *, cascade: bool = False) -> float:
    """Return the target (percent) of an objective whose best variant has `best` percent, for mixes or for chains."""
    floor, budget = planned_floor(objective, best, cascade=cascade), objective.accuracy_budget
    return floor if budget is None else max(floor, best - budget)


def budget_target(given: PlanningInput, here: Sequence[FrontierPoint] = ()) -> BudgetTarget:
    """Return what to reach now.  Without a forecast, or if no plan is feasible, it is the target itself.  `here` are
    the points (in joules, a hull) at which this moment can be run, if it cannot be run everywhere on the frontier."""
    state, objective = given.state, given.objective
    target = target_of(state)
    served = state.served_accuracy_rows / state.served_rows if state.served_rows > 0.0 else math.nan
    left = _remaining(given, here)
    if left is None:
        return BudgetTarget(target, 0.0, objective.lam, target, target, served)
    if state.online:
        asked, least = target, 0.0
        price = online_price(state, objective, target, state.ahead[0].rate)
    else:
        rows = float(left.rows.sum())
        asked = (target * (state.served_rows + rows) - state.served_accuracy_rows) / rows
        price, least = left.price(asked), left.least_now(target, state)
    now = left.accuracy_at(price) if state.online else left.accuracy_now(asked, price)
    now = min(max(now, least), float(left.top[0]))
    floor = objective.cascade_floor if given.problem.points else objective.planned_floor
    c_ref = objective.base_energy_j * GRAMS_PER_J * state.objective.reference_g_per_kwh
    return BudgetTarget(
        accuracy=max(now, floor),
        price=price,
        lam=1.0 / (1.0 + price * objective.base_accuracy / c_ref),
        asked=asked,
        target=target,
        served=served,
        least=max(least, floor),
    )


def _remaining(given: PlanningInput, here: Sequence[FrontierPoint] = ()) -> RemainingHorizon | None:
    """Return what is left of the horizon, this moment at the points `here` if there are any; None without a forecast,
    or if nothing can be served now."""
    state = given.state
    known: dict[tuple[bool, float], tuple[FrontierPoint, ...]] = {}
    later = given.without_demand()  # rows that ask for an accuracy now do not do so all day
    rows, grams_per_j, frontiers = [], [], []
    for at, part in enumerate(state.ahead[:1] if state.online else state.ahead):
        if part.rows <= 0.0 and at > 0:
            continue
        rate = part.rate if at > 0 else state.arrival_rate  # this moment is planned for what may come, too
        key = (at == 0, rate)
        if key not in known:
            known[key] = _reachable(given if at == 0 else later, rate)
        points = tuple(here) if here and at == 0 else known[key]
        if not points and at == 0:
            return None
        if points:
            rows.append(max(part.rows, 1e-9))
            grams_per_j.append(GRAMS_PER_J * (state.intensity.g_per_kwh if at == 0 else part.g_per_kwh))
            frontiers.append(points)
    return RemainingHorizon.from_frontiers(rows, grams_per_j, frontiers) if rows else None


def _reachable(given: PlanningInput, rate: float) -> tuple[FrontierPoint, ...]:
    """Return the frontier at a rate: the present one if the rates are alike, else its own, or that of the highest rate
    below that can be served."""
    problem, objective, seed = given.problem, given.objective, given.state.seed
    alike = abs(math.log(max(rate, LEAST_RATE) / problem.rate)) < 0.5 * COARSE_STEP
    points = frontier(problem, objective, problem.rate, seed=seed) if alike else ()
    for down in range(_DOWN):
        points = points or frontier(problem, objective, rate * math.exp(-down * COARSE_STEP), seed=seed, coarse=True)
    return tuple(plan.point for plan in points)


# --- online -----------------------------------------------------------------------------------------------------------


def first_price(objective: Objective, reference_g_per_kwh: float) -> float:
    """Return the price that stands for the objective's lambda: grams for a percent of a row."""
    c_ref = objective.base_energy_j * GRAMS_PER_J * reference_g_per_kwh
    return (1.0 - objective.lam) * c_ref / (max(objective.lam, 1e-9) * objective.base_accuracy)


def price_at(first: float, debt_hours: float, budget: float, hours: float) -> float:
    """Return the price after rows were `debt_hours` percent-hours below the target, in a horizon of so many `hours`."""
    scale = STEP * max(budget, 1e-3) * math.sqrt(max(hours, 1.0))
    return first * math.exp(max(-_MOST, min(_MOST, debt_hours / scale)))


def online_price(state: State, objective: Objective, target: float, rate: float) -> float:
    """Return the price of this moment for a budget whose rows have to reach `target` percent; `rate` is the present
    load (rows/s)."""
    config = state.objective
    debt = target * state.served_rows - state.served_accuracy_rows
    first = first_price(objective, config.reference_g_per_kwh)
    budget = config.accuracy_budget or 0.0
    return price_at(first, debt / (3600.0 * max(rate, 1e-9)), budget, config.budget_horizon_s / 3600.0)

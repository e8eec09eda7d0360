"""An accuracy budget without a forecast: an online primal-dual rule, to compare the forecast's plans with.

The budget is a constraint on the average over a horizon, and its dual variable is the price of accuracy p: grams for a
percent of a row.  Each moment takes the point of its frontier where grams - p x accuracy is least, and the sub-gradient
of the constraint, how far the moment's accuracy is below the target, moves the price (as in GAR, arXiv 2605.11603):

    log p <- log p + eta x (target - accuracy)        summed over the hours of the horizon, weighted by their rows

The step is multiplicative, which keeps the price positive and has no scale of its own.  So the price is a function of
what was served: with D the percent-hours by which rows are below the target so far (an hour of the present load, a
percent below, is one),

    p = p0 exp(D / Q),        Q = `STEP` x budget x sqrt(hours of the horizon)

p0 stands for the lambda at which the best variant and the cheapest mix at the floor break even at the reference
intensity.  At the end of the horizon the average is off by Q |log(p / p0)| / hours, and what the rule costs more than
the best schedule known afterwards grows with the square root of the hours, not with the hours.
"""

from __future__ import annotations

import math

from clover.planning.model.objective import Objective
from clover.types import State

STEP = 0.25
_MOST = 12.0  # of the exponent: a price of e^12 times the first one is every price
_GRAMS_PER_J = 1.0 / 3.6e6


def first_price(objective: Objective, reference_g_per_kwh: float) -> float:
    """Return the price that stands for the objective's lambda: grams for a percent of a row."""
    c_ref = objective.base_energy_j * _GRAMS_PER_J * reference_g_per_kwh
    return (1.0 - objective.lam) * c_ref / (max(objective.lam, 1e-9) * objective.base_accuracy)


def price_at(first: float, debt_hours: float, budget: float, hours: float) -> float:
    """Return the price after rows were `debt_hours` percent-hours below the target, in a horizon of so many `hours`."""
    scale = STEP * max(budget, 1e-3) * math.sqrt(max(hours, 1.0))
    return first * math.exp(max(-_MOST, min(_MOST, debt_hours / scale)))


def online_price(state: State, objective: Objective, target: float, rate: float) -> float:
    """Return the price of this moment for a budget whose rows have to reach `target` percent; `rate` is the load of now
    (rows/s)."""
    config = state.objective
    debt = target * state.served_rows - state.served_accuracy_rows
    first = first_price(objective, config.reference_g_per_kwh)
    budget = config.accuracy_budget or 0.0
    return price_at(first, debt / (3600.0 * max(rate, 1e-9)), budget, config.budget_horizon_s / 3600.0)

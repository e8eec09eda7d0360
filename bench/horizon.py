"""Spend an accuracy budget over a horizon, exactly: clean hours buy accuracy, dirty ones save grams.

A horizon is a row of steps, each with the rows it expects and the *points* it can be run at: an accuracy, and the grams
a row costs there at the step's intensity.  Wanted are the points of the fewest grams whose accuracy, averaged over all
rows, reaches the budget; a step may run at one point for a part of its time and at another for the rest.  That is the
relaxation of a multiple-choice knapsack, and it is solved exactly.  Each step's useful points are the lower convex hull
of (accuracy, grams); going up a hull, every point of accuracy costs more than the last.  So start everywhere at the
cheapest point, and climb where accuracy is cheapest, until the budget is reached: only the last climb is a part of one.

The slope of that last climb is the *price* of accuracy, grams for a percent of a row.  At this one price every hour by
itself makes the same choice, which is how a controller follows the budget without the whole plan at hand:
the objective of an hour is grams - price x accuracy, the paper's f with lambda that moves with the intensity.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from clover.errors import PlanError
from clover.planning.model.frontier import FrontierPoint, hull, slope
from clover.types import Record

_EPSILON = 1e-12


class Hour(Record, frozen=True, kw_only=True):
    """A step of a horizon: how many rows it expects, and how they can be served (one point at least)."""

    rows: float
    points: tuple[FrontierPoint, ...]


class Spent(Record, frozen=True, kw_only=True):
    """How a budget is spent: the accuracy and grams a row of each hour, accuracy over all rows, grams in total, and the
    price of accuracy (grams for a percent of a row; 0 if the cheapest points reach the budget)."""

    hours: tuple[FrontierPoint, ...]
    accuracy: float
    grams: float
    price: float


def spend(hours: Sequence[Hour], budget: float) -> Spent:
    """Return the fewest grams that reach `budget` percent of accuracy over all rows; PlanError if nothing does."""
    if not hours or any(hour.rows < 0.0 or not hour.points for hour in hours) or not any(hour.rows for hour in hours):
        raise PlanError("a horizon needs hours with points, and rows in one of them")
    hulls = [hull(hour.points) for hour in hours]
    taken = [hull[0] for hull in hulls]
    rows = sum(hour.rows for hour in hours)
    missing = budget * rows - sum(hour.rows * point.accuracy for hour, point in zip(hours, taken, strict=True))
    climbs = [(slope(hull[0], hull[1]), at, 1) for at, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(climbs)
    price = 0.0
    while missing > _EPSILON * rows:
        if not climbs:
            best = sum(hour.rows * hull[-1].accuracy for hour, hull in zip(hours, hulls, strict=True)) / rows
            raise PlanError(f"the budget of {budget:.3f} % is above the {best:.3f} % that can be reached")
        price, at, step = heapq.heappop(climbs)
        low, high = hulls[at][step - 1], hulls[at][step]
        whole = hours[at].rows * (high.accuracy - low.accuracy)
        part = 1.0 if whole <= missing else missing / whole
        taken[at] = _between(low, high, part)
        missing -= part * whole
        if step + 1 < len(hulls[at]):
            heapq.heappush(climbs, (slope(hulls[at][step], hulls[at][step + 1]), at, step + 1))
    return Spent(
        hours=tuple(taken),
        accuracy=sum(hour.rows * point.accuracy for hour, point in zip(hours, taken, strict=True)) / rows,
        grams=sum(hour.rows * point.grams for hour, point in zip(hours, taken, strict=True)),
        price=price,
    )


def _between(low: FrontierPoint, high: FrontierPoint, part: float) -> FrontierPoint:
    return FrontierPoint(
        accuracy=low.accuracy + part * (high.accuracy - low.accuracy), grams=low.grams + part * (high.grams - low.grams)
    )

"""What a simulated node does with the rows it gets: the cheapest mix of operating points that keeps its floor.

Devices divide their time between operating points.  With x_p the part of a device's time at point p,

    least  sum x_p watts_p     so that     sum x_p rate_p = rate,     sum x_p <= 1,
                                           sum x_p rate_p (accuracy_p - floor) >= 0

A price on device time turns each point into a cost a row, (watts + price) / rate.  The cheapest mix at the floor is
then a pair of points; the price at which all rows just fit is found by bisection, and the two mixes beside it are
blended: the optimum of this linear program.  A node that gets more than it can serve at its floor serves with less
accuracy (as relief does in a server); more than its fastest point serves is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clover.cluster.controller.capacity import most_rows
from clover.cluster.planning.records import DeviceFrontier, OperatingPoint

_RATE_STEPS = 256
_FLOOR_STEPS = 50.0
_BISECTIONS = 30

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ServedRows:
    """What one device does with its rows: rows/s answered, their mean accuracy, watts beyond idle, and p95 (ms)."""

    rate: float
    accuracy: float
    watts: float
    p95_ms: float


@dataclass(frozen=True)
class _Mix:
    """Parts of the rows at each point."""

    parts: Floats
    use: float
    """Device time a row/s takes."""


class ServingModel:
    """How devices of every kind serve every family, by their frontiers.  Answers are kept: rates are rounded to 1/256
    of the most, floors to 1/50 of a point."""

    def __init__(self, frontiers: Iterable[DeviceFrontier]) -> None:
        self._points = {(own.kind, own.family): own.points for own in frontiers}
        self.idle_w: dict[str, float] = {}
        for own in frontiers:
            self.idle_w[own.kind] = min(self.idle_w.get(own.kind, math.inf), own.idle_w)
        self._known: dict[tuple[str, str, int, int], ServedRows] = {}

    def most(self, kind: str, family: str) -> float:
        """Return the rows/s of a device's fastest point; 0 if it cannot serve the family."""
        return max((point.rate for point in self._points.get((kind, family), ())), default=0.0)

    def serve(self, kind: str, family: str, rate: float, floor: float) -> ServedRows:
        """Return what a device of `kind` does with `rate` rows/s at a floor of `floor` points."""
        most = self.most(kind, family)
        if rate <= 0.0 or most <= 0.0:
            return ServedRows(0.0, 0.0, 0.0, 0.0)
        step = min(_RATE_STEPS, math.ceil(rate / most * _RATE_STEPS))
        key = (kind, family, step, math.ceil(floor * _FLOOR_STEPS - 1e-6))
        if key not in self._known:
            self._known[key] = _serve(self._points[kind, family], most * step / _RATE_STEPS, key[3] / _FLOOR_STEPS)
        service = self._known[key]
        part = min(rate, most) / service.rate
        return ServedRows(service.rate * part, service.accuracy, service.watts * part, service.p95_ms)


def _serve(points: tuple[OperatingPoint, ...], rate: float, floor: float) -> ServedRows:
    floor = min(floor, max(point.accuracy for point in points))
    if most_rows(points, floor) < rate:
        low = min(point.accuracy for point in points)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + floor)
            low, floor = (middle, floor) if most_rows(points, middle) >= rate else (low, middle)
        floor = low
    rates = np.array([point.rate for point in points])
    watts = np.array([point.watts for point in points])
    accuracies = np.array([point.accuracy for point in points])
    parts = _cheapest(rates, watts, accuracies, rate, floor)
    used = [point.p95_ms for point, part in zip(points, parts, strict=True) if part > 1e-6]
    return ServedRows(rate, float(parts @ accuracies), float(rate * (parts @ (watts / rates))), max(used))


def _cheapest(rates: Floats, watts: Floats, accuracies: Floats, rate: float, floor: float) -> Floats:
    """Return the parts of the rows at each point."""
    free = _mix(rates, watts, accuracies, floor, 0.0)
    if free.use * rate <= 1.0 + 1e-9:
        return free.parts
    high = max(1.0, float(watts.max()))
    tight = _mix(rates, watts, accuracies, floor, high)
    while tight.use * rate > 1.0 + 1e-9 and high < 1e12:
        high *= 4.0
        tight = _mix(rates, watts, accuracies, floor, high)
    low = 0.0
    for _ in range(_BISECTIONS):
        price = 0.5 * (low + high)
        found = _mix(rates, watts, accuracies, floor, price)
        if found.use * rate > 1.0 + 1e-9:
            free, low = found, price
        else:
            tight, high = found, price
    if free.use <= tight.use + 1e-15:
        return tight.parts
    blend = min(1.0, max(0.0, (1.0 / rate - tight.use) / (free.use - tight.use)))
    return blend * free.parts + (1.0 - blend) * tight.parts


def _mix(rates: Floats, watts: Floats, accuracies: Floats, floor: float, price: float) -> _Mix:
    """Return the cheapest mix of two points, at a price of device time, that has the floor's accuracy."""
    costs = (watts + price) / rates
    parts = np.zeros(len(rates))
    above = np.flatnonzero(accuracies >= floor - 1e-9)
    below = np.flatnonzero(accuracies < floor - 1e-9)
    single = above[np.argmin(costs[above])]
    if len(below):
        high = (floor - accuracies[below])[:, None] / (accuracies[above][None, :] - accuracies[below][:, None])
        mixed = high * costs[above][None, :] + (1.0 - high) * costs[below][:, None]
        one, two = np.unravel_index(int(np.argmin(mixed)), mixed.shape)
        if mixed[one, two] < costs[single]:
            parts[above[two]] = high[one, two]
            parts[below[one]] = 1.0 - high[one, two]
            return _Mix(parts, float((parts / rates).sum()))
    parts[single] = 1.0
    return _Mix(parts, float(1.0 / rates[single]))

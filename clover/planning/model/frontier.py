"""Points of accuracy and carbon a row, and the lower convex hull that is worth moving along."""

from __future__ import annotations

from collections.abc import Sequence

from clover.types import Record

_EPSILON = 1e-12


class FrontierPoint(Record, frozen=True, kw_only=True):
    """One way to serve: accuracy in percent, grams of CO2e a row."""

    accuracy: float
    grams: float


def hull(given: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return the lower convex hull, from the cheapest point up to the most accurate one."""
    ordered = sorted(set(given), key=lambda point: (point.grams, -point.accuracy))
    rising = [ordered[0]]
    for point in ordered[1:]:
        if point.accuracy <= rising[-1].accuracy + _EPSILON:
            continue
        while len(rising) > 1 and slope(rising[-2], rising[-1]) >= slope(rising[-1], point):
            rising.pop()
        rising.append(point)
    return rising


def reaching(points: Sequence[FrontierPoint], accuracy: float) -> list[FrontierPoint]:
    """Return a hull up to its first point that reaches `accuracy` percent: all above it cost more for what is not asked
    for."""
    enough = next((at for at, point in enumerate(points) if point.accuracy >= accuracy - _EPSILON), len(points) - 1)
    return list(points[: enough + 1])


def slope(low: FrontierPoint, high: FrontierPoint) -> float:
    """Return the grams a row for each point of accuracy, from `low` to `high`."""
    return (high.grams - low.grams) / (high.accuracy - low.accuracy)

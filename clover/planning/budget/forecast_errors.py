"""How far forecasts of the grid and of the load were off, by how many hours ahead they looked.

Once an hour the forecast of the next `LEADS` hours is kept.  When one of these hours is over, each forecast that was
made of it is held against what was seen, and the relative errors enter a running mean of squares by lead hour.  What is
kept is bounded: `LEADS` forecasts, and two numbers for each lead hour.

A budget believes that the rows to come make good what a moment loses.  `trust` is the part of them that past errors
justify: 1 less the root mean square error of a forecast, in rows and in intensity together.  An error in rows is a part
of what came in that hour, or of the mean of the hours that were foreseen if that is more.  Before there were any it
is `PRIOR`, which counts as much as `_PRIOR_HOURS` hours that were seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from clover.planning.budget.forecast import HOUR_S
from clover.types import Ahead, Record

LEADS = 24
PRIOR = 0.9
LEAST, MOST = 0.5, 0.98
"""The bounds of trust."""
_PRIOR_HOURS = 24.0
_HOURS = 14.0 * 24.0
"""Hours of which a running mean holds about as many."""
_LARGEST = 1.0
"""A relative error that is larger counts as this: one hour without rows must not end all trust."""


class SavedErrors(Record, frozen=True, kw_only=True):
    """`ForecastErrors` as a file has them: by lead hour the weight and the mean square of the errors."""

    weights: tuple[float, ...]
    squares: tuple[float, ...]


class ForecastErrors:
    """Errors of past forecasts by lead hour (1 is the next hour)."""

    def __init__(self) -> None:
        self._weights = [0.0] * LEADS
        self._squares = [0.0] * LEADS
        self._made: dict[int, list[tuple[float, float]]] = {}  # by hour: intensity and rate of the hours after it
        self._hour: int | None = None
        self._seen = [0.0, 0.0, 0.0]  # of the running hour: looks, sums of intensity and of rate

    def look(self, grid_s: float, g_per_kwh: float, rate: float) -> None:
        """Take note of what is at grid time `grid_s`; at the end of an hour, of how far forecasts of it were off."""
        hour = math.floor(grid_s / HOUR_S)
        if self._hour is not None and hour != self._hour:
            looks, intensity, rows = self._seen
            if hour > self._hour and looks:
                self._over(self._hour, intensity / looks, rows / looks)
            else:  # the clock was set back
                self._made.clear()
            self._seen = [0.0, 0.0, 0.0]
        self._hour = hour
        if math.isfinite(g_per_kwh) and math.isfinite(rate):
            self._seen = [value + more for value, more in zip(self._seen, (1.0, g_per_kwh, rate), strict=True)]

    def foreseen(self, grid_s: float, steps: Sequence[Ahead]) -> None:
        """Keep a forecast that was made at `grid_s`, whose first part is the rest of the running hour; one an hour."""
        hour = math.floor(grid_s / HOUR_S)
        if hour in self._made:
            return
        hours = []
        for part in steps[1 : LEADS + 1]:
            if abs(part.seconds - HOUR_S) > 1.0:  # the end of the horizon, or hours that were put together
                break
            hours.append((part.g_per_kwh, part.rate))
        self._made[hour] = hours
        for old in [at for at in self._made if at <= hour - 2 - LEADS]:
            del self._made[old]

    def _over(self, hour: int, intensity: float, rate: float) -> None:
        for made, hours in self._made.items():
            lead = hour - made
            if 1 <= lead <= len(hours):
                expected = hours[lead - 1]
                usual = sum(rate for _, rate in hours) / len(hours)  # hours with next to no rows are next to no error
                square = _error(expected[0], intensity) ** 2 + _error(expected[1], rate, usual) ** 2
                at = lead - 1
                self._weights[at] = min(self._weights[at] + 1.0, _HOURS)
                self._squares[at] += (square - self._squares[at]) / self._weights[at]

    @property
    def hours(self) -> float:
        """How many hours were held against a forecast, of one lead hour at most."""
        return max(self._weights)

    @property
    def trust(self) -> float:
        """The part of the rows to come that a budget may count on."""
        known = [(weight, square) for weight, square in zip(self._weights, self._squares, strict=True) if weight]
        seen = max(self._weights)
        error2 = sum(square for _, square in known) / len(known) if known else 0.0
        prior2 = (1.0 - PRIOR) ** 2
        mean2 = (_PRIOR_HOURS * prior2 + seen * error2) / (_PRIOR_HOURS + seen)
        return min(MOST, max(LEAST, 1.0 - math.sqrt(mean2)))

    def saved(self) -> SavedErrors:
        """Return what a file keeps of it."""
        return SavedErrors(weights=tuple(self._weights), squares=tuple(self._squares))

    def restore(self, saved: SavedErrors) -> None:
        """Take up what a file kept; ValueError if that is none of these."""
        values = (*saved.weights, *saved.squares)
        if len(saved.weights) != LEADS or len(saved.squares) != LEADS:
            raise ValueError(f"errors of {LEADS} lead hours are expected")
        if not all(math.isfinite(value) and value >= 0.0 for value in values):
            raise ValueError("errors are finite and not negative")
        self._weights = [min(weight, _HOURS) for weight in saved.weights]
        self._squares = [min(square, 2.0 * _LARGEST**2) for square in saved.squares]


def _error(expected: float, seen: float, least: float = 0.0) -> float:
    """Return the error of a forecast as a part of what was seen, or of `least` if that is more."""
    return min(_LARGEST, abs(expected - seen) / max(abs(seen), least, 1e-9))

"""Carbon intensities that need no account and no file: a constant, and a duck curve by formula.

The constant is what the operator states (`static:G` with G in gCO2e/kWh).  The curve is labelled synthetic wherever it
shows.  With h the hour of the day (UTC, 0..24) and B(h; m, w) = exp(-d^2 / 2 w^2), d the hours between h and m the
short way round the clock:

    daily(h)   = 250 + 60 B(h; 7.5, 1.6) - 115 B(h; 13, 2.8) + 150 B(h; 20, 2.4)      morning, solar dip, evening
    weekday    = 0.94 on Saturday and Sunday, 1 on other days
    season     = 1 + 0.05 cos(2 pi (day of the year - 15) / 365.2425)                 winter dirtier than summer
    intensity  = daily x weekday x season, in gCO2e/kWh

which stays between 120 and 420 g/kWh, the range of the fossil-and-solar grids it imitates.  It is evaluated at the
start of every five minutes.  It is deterministic, stands for no real grid, and claims no emission scope.
"""

from __future__ import annotations

import math

from clover.types import Reading

_DAY_S = 86_400.0
_YEAR_DAYS = 365.2425


def _bump(hour: float, middle: float, width: float) -> float:
    distance = abs(hour - middle)
    distance = min(distance, 24.0 - distance)
    return math.exp(-(distance**2) / (2.0 * width**2))


def duck_curve_g_per_kwh(grid_s: float) -> float:
    """Return the formula of this module at a grid time (Unix seconds), in gCO2e/kWh."""
    day, second = divmod(grid_s, _DAY_S)
    hour = second / 3600.0
    daily = 250.0 + 60.0 * _bump(hour, 7.5, 1.6) - 115.0 * _bump(hour, 13.0, 2.8) + 150.0 * _bump(hour, 20.0, 2.4)
    weekday = 0.94 if (day + 3) % 7 >= 5 else 1.0  # day 0, 1970-01-01, was a Thursday; Monday is 0
    season = 1.0 + 0.05 * math.cos(2.0 * math.pi * ((day % _YEAR_DAYS) - 14.0) / _YEAR_DAYS)
    return daily * weekday * season


class SyntheticSource:
    """The duck curve as a source: average signal, always fresh, with a forecast that is the formula itself."""

    remote = False
    perfect_forecast = True
    step_s = 300.0

    def __init__(self) -> None:
        self.name = "synthetic"

    async def read(self, grid_s: float) -> Reading:
        """Return the curve at the start of the running five minutes."""
        at_s = math.floor(grid_s / self.step_s) * self.step_s
        return self._at(at_s, age_s=grid_s - at_s)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return the curve every five minutes from the running step to `grid_s + horizon_s`."""
        first = math.floor(grid_s / self.step_s)
        last = math.floor((grid_s + horizon_s) / self.step_s)
        return [self._at(n * self.step_s) for n in range(first, last + 1)]

    def _at(self, at_s: float, age_s: float = 0.0) -> Reading:
        return Reading(
            g_per_kwh=duck_curve_g_per_kwh(at_s),
            at_s=at_s,
            provider=self.name,
            zone="synthetic",
            signal="average",
            method="synthetic",
            estimated=True,
            age_s=age_s,
        )


class StaticSource:
    """The same intensity at every time, labelled "configured"."""

    remote = False
    step_s = 300.0

    def __init__(self, g_per_kwh: float) -> None:
        self.name = "static"
        self.g_per_kwh = g_per_kwh

    async def read(self, grid_s: float) -> Reading:
        """Return the constant, which is always current."""
        return self._at(grid_s)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return the constant, once a step."""
        return [self._at(grid_s + n * self.step_s) for n in range(max(0, int(horizon_s // self.step_s)) + 1)]

    def _at(self, at_s: float) -> Reading:
        return Reading(g_per_kwh=self.g_per_kwh, at_s=at_s, provider=self.name, method="configured")

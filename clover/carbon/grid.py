"""The grid's carbon intensity for everybody in the server: now, in the past, and to come.

A server has one `Grid`, and whatever needs an intensity asks it, as often as it likes: the energy account each second
(`priced`), the controller and an operator's command (`read`).  Both methods ask the chain (`clover.carbon.chain`) at
the grid time of the moment.  The chain bounds what that costs: a remote source is called every `carbon.poll_s` at most.

**History** is the chain's, by the hour of grid time: only the first source makes it.  Hours without it are gaps, which
the forecast fills.  A source's forecast counts only if it is of the same signal as the reading.

**The reference intensity** of a grid is the median of all hours of its history and its forecast.  A fixed figure would
make the same objective save always on a dirty grid and never on a clean one.

**Grid time** is the time for which intensities are looked up.  Scheduling runs on monotonic time; carbon runs on its
own clock, so that a trace of last year can be replayed, faster if wished, under live traffic.  Grid time is anchored
once and then follows CLOCK_BOOTTIME, which counts suspended time and is not moved when somebody steps the wall clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clover.carbon.chain import FORECAST_S
from clover.errors import ConfigError
from clover.planning.budget.forecast import (
    DAY,
    HOUR_S,
    Floats,
    ForecastInput,
    History,
    Outlook,
    Sample,
    expect,
    hours_of,
    outlook,
    values,
)
from clover.types import Reading


@dataclass(frozen=True)
class Reference:
    """The intensity (gCO2e/kWh) at which accuracy and carbon weigh alike, and in words how it is known."""

    g_per_kwh: float
    label: str


ASSUMED = Reference(250.0, "assumed: less than a day of this grid is known")
_LEAST_REFERENCE = 1.0
"""gCO2e/kWh: no reference is lower, since intensities are divided by it."""


def reference_in_force(configured_g_per_kwh: float | None, own: Reference) -> Reference:
    """Return the configured reference intensity if there is one, else the grid's `own`."""
    return own if configured_g_per_kwh is None else Reference(configured_g_per_kwh, "configured")


class IntensitySource(Protocol):
    """Gives intensities, whatever happens to the sources behind it (`clover.carbon.SourceChain`).  `history`: what the
    first of them gave; `last_error`: what failed last; `trouble`: why newer data cannot be used."""

    @property
    def history(self) -> History: ...

    @property
    def last_error(self) -> str: ...

    @property
    def trouble(self) -> str: ...

    async def read(self, grid_s: float) -> Reading: ...

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]: ...


@dataclass(frozen=True)
class _HoursAhead:
    """Means of hours to come (NaN: not foreseen), and who foresees them."""

    means: Floats
    provider: str


class Grid:
    """The intensity of one grid at the time of `now` (Unix seconds of grid time, `clover.carbon.GridClock.now`).

    `reading` is the newest one of `read`, which plans are made from, None before the first; `reference` the grid's
    reference intensity (`find_reference`).  `forecast_error` is how far off (gCO2e/kWh, on average) the last day's
    hours were foreseen in the day before each; None before one was.
    """

    def __init__(self, source: IntensitySource, now: Callable[[], float]) -> None:
        self.now = now
        self.reading: Reading | None = None
        self.reference = ASSUMED
        self._reference_hour: int | None = None
        self._source = source
        self._forecast_hour: int | None = None
        self._forecast: Sequence[Reading] = ()
        self.forecast_error: float | None = None
        self._forecasts: dict[int, list[float]] = {}
        """What was expected of the hours after each of the last two days' hours."""

    @property
    def history(self) -> History:
        """Hourly means of what the first source gave."""
        return self._source.history

    @property
    def trouble(self) -> str:
        """Why newer data of a source cannot be used, and what failed last while the intensity is not a fresh one of the
        first source; else empty."""
        stands_in = self.reading is not None and self.reading.state != "fresh"
        failed = self._source.last_error if stands_in else ""
        return "; ".join(dict.fromkeys(filter(None, (failed, self._source.trouble))))

    @property
    def foreseen(self) -> Sequence[Reading]:
        """The source's newest forecast, as it was last asked for; it may reach back before now."""
        return self._forecast

    async def read(self) -> Reading:
        """Read the present intensity, which plans go by.  Never raises for a source."""
        self.reading = await self._source.read(self.now())
        return self.reading

    async def find_reference(self) -> Reference:
        """Find the reference intensity of this grid from what is now known: once an hour of grid time, and each time
        while too little is known.  Unlike a reading it waits for the source's first forecast."""
        grid_s = self.now()
        hour = math.floor(grid_s / HOUR_S)
        if self.reading is not None and hour != self._reference_hour:
            self.reference = await self._median(self.reading, grid_s)
            if self.reference is not ASSUMED:
                self._reference_hour = hour
        return self.reference

    async def _median(self, reading: Reading, grid_s: float) -> Reference:
        """Return the median intensity of the hours before and after `grid_s` that are known."""
        past = self.history.means()
        ahead = await self._hours_ahead(reading, grid_s, grid_s + FORECAST_S)
        foreseen = ahead.means[np.isfinite(ahead.means)]
        known = np.concatenate((past, foreseen))
        if len(known) < DAY:
            return ASSUMED
        parts = [f"{len(past)} past hours"] if len(past) else []
        parts += [f"{len(foreseen)} hours foreseen"] if len(foreseen) else []
        return Reference(max(round(float(np.median(known)), 1), _LEAST_REFERENCE), f"median of {' and '.join(parts)}")

    @property
    def perfect_forecast(self) -> bool:
        """Whether the forecast is what will be: a file's own rows to come, or a formula."""
        return bool(getattr(self._source, "perfect_forecast", False))

    async def priced(self) -> Reading:
        """Return the present intensity, to price energy at.

        It does not become `reading`: one poll of the controller, with all that it awaits, goes by one intensity."""
        return await self._source.read(self.now())

    async def outlook(self, reading: Reading, rates: History, *, grid_s: float, until_s: float, rate: float) -> Outlook:
        """Return what to expect, hour by hour, from `grid_s` until `until_s`: intensities as the source foresees them,
        otherwise by the history, and loads (rows/s) that follow `rates` from `rate` on."""
        made_from = await self._forecast_input(reading, rates, grid_s, max(until_s, grid_s), rate=rate)
        parts = outlook(made_from, now_s=grid_s, until_s=until_s)
        self._compare(math.floor(grid_s / HOUR_S), [step.g_per_kwh for step in parts.steps[1 : DAY + 1]])
        return parts

    async def hours(self, reading: Reading, *, grid_s: float, until_s: float) -> tuple[Floats, str]:
        """Return the intensities (gCO2e/kWh) of the hour of `grid_s` and those after it until `until_s`, as `outlook`
        expects them, and in words what they were made from."""
        until_s = max(until_s, grid_s + 1.0)
        made_from = await self._forecast_input(reading, History(), grid_s, until_s, rate=0.0)
        return expect(made_from, *hours_of(grid_s, until_s))

    async def _forecast_input(
        self, reading: Reading, rates: History, grid_s: float, until_s: float, *, rate: float
    ) -> ForecastInput:
        ahead = await self._hours_ahead(reading, grid_s, until_s)
        return ForecastInput(self.history, rates, reading.g_per_kwh, rate, provider=ahead.means, name=ahead.provider)

    def _compare(self, hour: int, expected: list[float]) -> None:
        """Once an hour, record what is `expected` after `hour`, and compare earlier expectations with the hours that
        came."""
        if hour in self._forecasts:
            return
        forecasts = {made: values for made, values in self._forecasts.items() if hour - 2 * DAY < made < hour}
        self._forecasts = forecasts | {hour: expected}
        off = [
            abs(value - came)
            for made, values in forecasts.items()
            for at, value in enumerate(values, made + 1)
            if hour - DAY <= at < hour and (came := self.history.mean(at)) is not None
        ]
        self.forecast_error = sum(off) / len(off) if off else None

    async def _hours_ahead(self, reading: Reading, grid_s: float, until_s: float) -> _HoursAhead:
        """Return what the source foresees of each hour from the running one until `until_s`."""
        hour, count = hours_of(grid_s, until_s)
        known = [item for item in await self._foreseen(grid_s) if _same_signal(item, reading)]
        means = values([Sample(at_s=item.at_s, g_per_kwh=item.g_per_kwh) for item in known], hour, count)
        return _HoursAhead(means, f"provider {known[0].provider}" if known else "")

    async def _foreseen(self, grid_s: float) -> Sequence[Reading]:
        """Return the source's newest forecast, asked for once an hour of grid time."""
        hour = math.floor(grid_s / HOUR_S)
        if hour != self._forecast_hour:
            readings = await self._source.forecast(grid_s, FORECAST_S)
            if readings and readings is not self._forecast:  # else a new one may be on its way: look for it next time
                self._forecast_hour = hour
            # If it fails, the previous forecast still holds, as far as it reaches.
            self._forecast = readings or self._forecast
        return self._forecast


def _same_signal(foreseen: Reading, reading: Reading) -> bool:
    return "unknown" in (foreseen.signal, reading.signal) or foreseen.signal == reading.signal


def boot_seconds() -> float:
    """Return seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class GridClock:
    """Unix seconds of grid time: `start_s` (now by default) plus `speed` grid seconds per real second."""

    def __init__(
        self, start_s: float | None = None, speed: float = 1.0, monotonic: Callable[[], float] = boot_seconds
    ) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise ConfigError(f"trace_speed must be a positive number of grid seconds per second, not {speed}")
        if start_s is not None and not math.isfinite(start_s):
            raise ConfigError(f"grid time must start at a finite Unix time, not {start_s}")
        self.start_s = time.time() if start_s is None else start_s
        self.speed = speed
        self._monotonic = monotonic
        self._anchor = monotonic()

    def now(self) -> float:
        """Return Unix seconds of grid time."""
        return self.start_s + self.speed * (self._monotonic() - self._anchor)

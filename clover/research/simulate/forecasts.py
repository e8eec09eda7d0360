"""What a policy knows of the hours to come, right or wrong: `--forecast`.

    perfect       what the trace says of them
    seasonal      no forecast of the source: the planner expects a typical day of the last two weeks
                  (`clover.planning.budget.forecast`), and until a day of the run is over takes it as constant
    persistence   the intensity stays as it is, always
    error:PCT     what the trace says, each hour times 1 + PCT % of a normal error (never below a twentieth): drawn once
                  for each hour of the trace by the seed, so that an hour is misjudged alike whenever it is asked for

The running hour is known in any case: the reading is no forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np

from clover.errors import ConfigError
from clover.interfaces import CarbonSource
from clover.planning.budget.forecast import HOUR_S
from clover.types import Reading

KINDS = ("perfect", "seasonal", "persistence")
_LEAST = 0.05


@dataclass(frozen=True)
class Forecast:
    """A kind of forecast; `error` is a fraction, of the kind "error" only."""

    kind: str = "perfect"
    error: float = 0.0

    @property
    def name(self) -> str:
        """The forecast as the command line gives it."""
        return f"error:{100.0 * self.error:g}" if self.kind == "error" else self.kind


PERFECT = Forecast()


def parse(text: str) -> Forecast:
    """Return the forecast that `text` names; ConfigError if it names none."""
    if text in KINDS:
        return Forecast(text)
    kind, _, rest = text.partition(":")
    try:
        error = float(rest) / 100.0 if kind == "error" else math.nan
    except ValueError:
        error = math.nan
    if not 0.0 <= error <= 2.0:
        raise ConfigError(f"--forecast is {', '.join(KINDS)}, or error:PCT with 0 to 200 percent, not {text!r}")
    return Forecast("error", error)


class ForecastSource:
    """A carbon source (`clover.interfaces.CarbonSource`) with the readings of `source` and another forecast."""

    remote = False

    def __init__(self, source: CarbonSource, forecast: Forecast, seed: int) -> None:
        self.name = source.name
        self.step_s = source.step_s
        self._source = source
        self._forecast = forecast
        self._seed = seed

    async def read(self, grid_s: float) -> Reading:
        """Return the source's reading."""
        return await self._source.read(grid_s)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return the forecast for `horizon_s` seconds from `grid_s` on."""
        if self._forecast.kind == "seasonal":
            return []
        if self._forecast.kind == "persistence":
            now = await self._source.read(grid_s)
            first = math.floor(grid_s / HOUR_S) * HOUR_S
            hours = range(math.ceil(horizon_s / HOUR_S))
            return [
                msgspec.structs.replace(now, at_s=first + hour * HOUR_S, estimated=True, provider="persistence")
                for hour in hours
            ]
        foretold = await self._source.forecast(grid_s, horizon_s)
        return foretold if self._forecast.kind == "perfect" else [self._wrong(reading) for reading in foretold]

    def _wrong(self, reading: Reading) -> Reading:
        drawn = np.random.default_rng([self._seed, math.floor(reading.at_s / HOUR_S)]).standard_normal()
        value = reading.g_per_kwh * max(_LEAST, 1.0 + self._forecast.error * float(drawn))
        return msgspec.structs.replace(reading, g_per_kwh=value, provider=f"{reading.provider} ({self._forecast.name})")

"""The WebApi of the Green Software Foundation's Carbon Aware SDK: whatever source stands behind it, in g/kWh.

The WebApi does not say whether a value is average or marginal, so the configuration does (`?signal=`).  A location may
be answered under the name that its own source has for it, but all values of an answer must be of one location.
"""

from __future__ import annotations

import itertools
import re

import msgspec

from clover.carbon.layouts import HowKnown, Signal
from clover.carbon.providers.http import ApiClient, Values, decode
from clover.carbon.providers.live import LiveSource, Series, iso, seconds
from clover.errors import CarbonError, ConfigError
from clover.types import Reading

STEP_S = 3600.0
LOOK_BACK_S = 3 * 3600.0
_LOCATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Emission(msgspec.Struct):
    """What was recorded."""

    time: str
    rating: float | None
    location: str | None = None


class _Foreseen(msgspec.Struct):
    """What is foreseen; `duration` in minutes."""

    timestamp: str
    value: float | None
    location: str | None = None
    duration: float | None = None


class _Forecast(msgspec.Struct, rename="camel"):
    forecast_data: Values[_Foreseen]


def parse_emissions(body: bytes, series: Series, name: str = "carbon-aware-sdk") -> list[Reading]:
    """Return the readings of an answer about what was, none for an empty one; CarbonError if it is something else."""
    if not body.strip():
        return []
    items = decode(body, Values[_Emission], name)
    _check_one_place([item.location for item in items], name)
    return _in_order([(item.time, item.rating, None) for item in items], series, "unknown", name)


def parse_forecasts(body: bytes, series: Series, name: str = "carbon-aware-sdk") -> list[Reading]:
    """Return the readings of a forecast, none for an empty answer; CarbonError if it is something else."""
    if not body.strip():
        return []
    items = [item for one in decode(body, Values[_Forecast], name) for item in one.forecast_data]
    _check_one_place([item.location for item in items], name)
    minutes = ((item.timestamp, item.value, item.duration) for item in items)
    return _in_order([(at, value, last and 60.0 * last) for at, value, last in minutes], series, "forecast", name)


def _in_order(
    items: list[tuple[str, float | None, float | None]], series: Series, known: HowKnown, name: str
) -> list[Reading]:
    """Return readings by time.  If a reading does not say for how long it holds, it holds for the shortest distance of
    two."""
    times = sorted({seconds(at, name) for at, _, _ in items})
    shortest = min((later - at for at, later in itertools.pairwise(times)), default=series.step_s)
    return [
        msgspec.structs.replace(series.at(seconds(at, name), value, known), step_s=held_s or shortest)
        for at, value, held_s in items
        if value is not None and (held_s is None or held_s >= 0.0)
    ]


def _check_one_place(places: list[str | None], name: str) -> None:
    locations = sorted({place for place in places if place})
    if len(locations) > 1:
        raise CarbonError(f"{name}: the answer is about several locations: {', '.join(locations)[:80]}", kind="answer")


def location_of(argument: str) -> str:
    """Return the location that `carbon-aware-sdk:ARGUMENT` names; ConfigError if it does not look like one."""
    location = argument.strip()
    if not _LOCATION.fullmatch(location):
        raise ConfigError(f"carbon-aware-sdk:LOCATION takes a location of its configuration, not {argument!r}")
    return location


class CarbonAwareSource(LiveSource):
    """One location of a server of the SDK."""

    poll_s = 60.0
    lag_s = 3600.0  # unknown, as the source behind it is: hours are taken to be recorded when they are over

    def __init__(self, location: str, signal: Signal, client: ApiClient) -> None:
        super().__init__(client.name, Series("carbon-aware-sdk", location, signal, "unknown", STEP_S), client)
        self._location = {"location": location}

    async def _latest(self, grid_s: float) -> list[Reading]:
        return await self._past(grid_s - LOOK_BACK_S, grid_s)

    async def _ahead(self, grid_s: float, horizon_s: float) -> list[Reading]:
        try:
            body = await self.client.get("/emissions/forecasts/current", self._location)
        except CarbonError as error:
            if error.status == 501:  # the source behind it has no forecast
                return []
            raise
        return parse_forecasts(body, self.series, self.name)

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        span = {"time": iso(start_s), "toTime": iso(end_s)}
        body = await self.client.get("/emissions/bylocation", {**self._location, **span})
        return parse_emissions(body, self.series, self.name)

"""Electricity Maps, API v4 and v3: most of the world, with a key, average intensity with flows traced.

One parser reads both versions.  The newest hour is normally an estimate, and is labelled so.  The lookup of a zone by
the caller's address is always turned off.  A 401 may also mean that a plan does not contain what was asked for, so the
error quotes the provider's words.  Levels and percentages are no grams, and are refused.
"""

from __future__ import annotations

import re

import msgspec

from clover.carbon.layouts import HowKnown, Scope
from clover.carbon.providers.http import ApiClient, Values, decode
from clover.carbon.providers.live import LiveSource, Series, check_zone, seconds
from clover.errors import CarbonError, ConfigError
from clover.types import Reading

STEP_S = 3600.0
HORIZON_H = 72
_STEPS = {"5_minutes": 300.0, "15_minutes": 900.0, "hourly": 3600.0}
_ZONE = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,8}){0,2}")
_NO_LOOKUP = {"v4": ("disableCallerLookup", "true"), "v3": ("shouldUseFallbackCallerLookup", "false")}


class _Item(msgspec.Struct, rename="camel"):
    """One value, or the answer about the newest one."""

    datetime: str
    carbon_intensity: float | None
    zone: str | None = None
    emission_factor_type: str | None = None
    is_estimated: bool | None = None
    temporal_granularity: str | None = None


class _History(msgspec.Struct, rename="camel"):
    zone: str
    history: Values[_Item]
    temporal_granularity: str | None = None


class _Forecast(msgspec.Struct, rename="camel"):
    zone: str
    forecast: Values[_Item]
    temporal_granularity: str | None = None


class MapsZone(msgspec.Struct, rename="camel"):
    """A zone of the list that a key sees."""

    zone_name: str = ""
    access: list[str] = []


def parse_latest(body: bytes, series: Series, name: str = "electricity-maps") -> list[Reading]:
    """Return the reading of an answer about now, none if its value is null; CarbonError if it is something else."""
    item = decode(body, _Item, name)
    check_zone(name, series.zone, item.zone or "")
    return _readings([item], series, item.temporal_granularity, name)


def parse_history(body: bytes, series: Series, name: str = "electricity-maps") -> list[Reading]:
    """Return the readings of an answer about the past; CarbonError if it is something else."""
    answer = decode(body, _History, name)
    check_zone(name, series.zone, answer.zone)
    return _readings(answer.history, series, answer.temporal_granularity, name)


def parse_forecast(body: bytes, series: Series, name: str = "electricity-maps") -> list[Reading]:
    """Return the readings of a forecast; CarbonError if it is something else."""
    answer = decode(body, _Forecast, name)
    check_zone(name, series.zone, answer.zone)
    return _readings(answer.forecast, series, answer.temporal_granularity, name, foreseen=True)


def parse_zones(body: bytes, name: str = "electricity-maps") -> dict[str, MapsZone]:
    """Return the zones that a key sees, by their names."""
    zones: dict[str, MapsZone] = decode(body, dict[str, MapsZone], name)
    return zones


def _readings(
    items: list[_Item], series: Series, granularity: str | None, name: str, *, foreseen: bool = False
) -> list[Reading]:
    step_s = _STEPS.get(granularity or "hourly")
    if step_s is None:
        raise CarbonError(f"{name}: values of {str(granularity)[:40]!r} are no intensity of a moment", kind="answer")
    readings = []
    for item in items:
        if item.zone is not None:
            check_zone(name, series.zone, item.zone)
        if item.carbon_intensity is None:
            continue
        if item.emission_factor_type not in (None, series.scope):
            raise CarbonError(f"{name}: the answer is {item.emission_factor_type!r}, not {series.scope}", kind="answer")
        known: HowKnown = "forecast" if foreseen else "estimated" if item.is_estimated else "published"
        reading = series.at(seconds(item.datetime, name), item.carbon_intensity, known)
        readings.append(msgspec.structs.replace(reading, step_s=step_s))
    return readings


def zone_of(argument: str) -> str:
    """Return the zone that `electricity-maps:ARGUMENT` names; ConfigError if it does not look like one."""
    zone = argument.strip().upper()
    if not _ZONE.fullmatch(zone):
        raise ConfigError(f"electricity-maps:ZONE takes a zone as DE, DK-DK2 or US-CAL-CISO, not {argument!r}")
    return zone


class ElectricityMapsSource(LiveSource):
    """One zone by one version of the API; `scope` is the kind of emission factors."""

    poll_s = 60.0
    lag_s = 900.0  # the running step is an estimate, taken to be there after a quarter of an hour at the latest

    def __init__(self, zone: str, scope: Scope, version: str, client: ApiClient, key: str) -> None:
        super().__init__(client.name, Series("electricity-maps", zone, "average", scope, STEP_S), client)
        self._base = f"/{version}/carbon-intensity"
        self._params = dict([("zone", zone), ("emissionFactorType", scope), _NO_LOOKUP[version]])
        self._headers = {"auth-token": key}

    async def zones(self) -> dict[str, MapsZone]:
        """Return the zones that the key sees; raises CarbonError."""
        return parse_zones(await self.client.get("/v4/zones", headers=self._headers), self.name)

    async def _get(self, what: str, **more: str) -> bytes:
        return await self.client.get(f"{self._base}/{what}", {**self._params, **more}, self._headers)

    async def _latest(self, grid_s: float) -> list[Reading]:
        return parse_latest(await self._get("latest"), self.series, self.name)

    async def _ahead(self, grid_s: float, horizon_s: float) -> list[Reading]:
        return parse_forecast(await self._get("forecast", horizonHours=str(HORIZON_H)), self.series, self.name)

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        return parse_history(await self._get("history"), self.series, self.name)

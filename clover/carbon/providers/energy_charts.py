"""Energy-Charts of Fraunhofer ISE: some 30 European countries, no key, quarter-hours, average intensity, CC BY 4.0.

Both arrays of an answer have nulls.  Where there is no value yet, the provider's forecast of that quarter-hour stands
in, and is labelled so.  The provider asks for a poll every 15 minutes at most.  CO2 equivalents are over the life cycle
of the plants.
"""

from __future__ import annotations

import msgspec

from clover.carbon.providers.http import ApiClient, Values, decode
from clover.carbon.providers.live import LiveSource, Series, iso
from clover.errors import CarbonError, ConfigError
from clover.hints import did_you_mean
from clover.types import Reading

STEP_S = 900.0
COUNTRIES = (
    "AL", "AM", "AT", "AZ", "BA", "BE", "BG", "BY", "CH", "CY", "CZ", "DE", "DK", "EE",
    "ES", "FI", "FR", "GE", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV", "MD", "ME",
    "MK", "MT", "NL", "NO", "PL", "PT", "RO", "RS", "SE", "SI", "SK", "TR", "UA", "XK",
)  # fmt: skip
"""Those that it knows; of some it has no values at times."""


class _Answer(msgspec.Struct):
    unix_seconds: Values[int]
    co2eq: Values[float | None] | None = None
    co2eq_forecast: Values[float | None] | None = None


def parse(body: bytes, series: Series, name: str = "energy-charts") -> list[Reading]:
    """Return the readings of an answer; CarbonError if it is none, or its arrays differ in length."""
    answer = decode(body, _Answer, name)
    times = answer.unix_seconds
    nothing: list[float | None] = [None] * len(times)
    columns = [nothing if column is None else column for column in (answer.co2eq, answer.co2eq_forecast)]
    if any(len(column) != len(times) for column in columns):
        raise CarbonError(f"{name}: the answer has {len(times)} times but another number of values", kind="answer")
    readings = []
    for at_s, value, foreseen in zip(times, *columns, strict=True):
        if value is not None:
            readings.append(series.at(float(at_s), value, "published"))
        elif foreseen is not None:
            readings.append(series.at(float(at_s), foreseen, "forecast"))
    return readings


def country_of(argument: str) -> str:
    """Return the country that `energy-charts:ARGUMENT` names, in upper case; ConfigError if it is none."""
    country = argument.strip().upper()
    if country not in COUNTRIES:
        raise ConfigError(
            f"energy-charts:COUNTRY takes one of {', '.join(COUNTRIES)}, as energy-charts:DE, not {argument!r}"
            f"{did_you_mean(country, COUNTRIES)}"
        )
    return country


class EnergyChartsSource(LiveSource):
    """One country, as ISO 3166 has it."""

    poll_s = 900.0
    lag_s = 4500.0
    """If no forecast stands in: transmission operators publish generation by type an hour after its quarter-hour at
    the latest (Regulation (EU) 543/2013, article 16)."""

    def __init__(self, country: str, client: ApiClient) -> None:
        super().__init__(client.name, Series("energy-charts", country, "average", "lifecycle", STEP_S), client)
        self._country = {"country": country.lower()}

    async def _latest(self, grid_s: float) -> list[Reading]:
        return parse(await self.client.get("/co2eq", self._country), self.series, self.name)

    async def _ahead(self, grid_s: float, horizon_s: float) -> list[Reading]:
        return parse(await self.client.get("/co2eq_forecast", self._country), self.series, self.name)

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        span = {**self._country, "start": iso(start_s), "end": iso(end_s)}
        readings = parse(await self.client.get("/co2eq", span), self.series, self.name)
        return [reading for reading in readings if reading.method == "published"]

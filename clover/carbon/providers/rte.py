"""RTE's eCO2mix in real time, by ODRE: France, no key, quarter-hours, direct average intensity, no forecast.

The set already has rows for the day to come, with nulls.
"""

from __future__ import annotations

import msgspec

from clover.carbon.providers.http import ApiClient, Values, decode
from clover.carbon.providers.live import LiveSource, Series, iso, seconds
from clover.errors import CarbonError, ConfigError
from clover.types import Reading

STEP_S = 900.0
_PATH = "/api/explore/v2.1/catalog/datasets/eco2mix-national-tr"
_KNOWN = "nucleaire is not null and taux_co2 is not null"
_COLUMNS = "date_heure,perimetre,taux_co2"


class _Row(msgspec.Struct):
    """A quarter-hour of France."""

    date_heure: str
    taux_co2: float | None = None
    perimetre: str = "France"


class _Records(msgspec.Struct):
    results: Values[_Row]


def parse(body: bytes, series: Series, name: str = "rte") -> list[Reading]:
    """Return the readings of an answer: an object with `results`, or an export, which is a list.  CarbonError if it is
    neither, or not about France."""
    records = decode(body, _Records | Values[_Row], name)  # type: ignore[arg-type]  # msgspec takes a union for a type
    readings = []
    for row in records.results if isinstance(records, _Records) else records:
        if row.perimetre != "France":
            raise CarbonError(f"{name}: the answer is about {row.perimetre[:40]!r}, not France", kind="answer")
        if row.taux_co2 is not None:
            readings.append(series.at(seconds(row.date_heure, name), row.taux_co2, "published"))
    return readings


def check_argument(argument: str) -> None:
    """Refuse any other zone than France with a ConfigError."""
    if argument.strip().upper() not in ("", "FR"):
        raise ConfigError(f"rte gives the intensity of France and takes no other zone, not {argument!r}")


class RteSource(LiveSource):
    """France."""

    poll_s = 300.0
    lag_s = 5400.0  # the set gets its newest quarter-hours about once an hour, the last of them half an hour old

    def __init__(self, client: ApiClient) -> None:
        super().__init__(client.name, Series("rte", "FR", "average", "direct", STEP_S), client)

    async def _latest(self, grid_s: float) -> list[Reading]:
        query = {"select": _COLUMNS, "where": _KNOWN, "order_by": "date_heure desc", "limit": "1"}
        return parse(await self.client.get(f"{_PATH}/records", query), self.series, self.name)

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        where = f"{_KNOWN} and date_heure >= date'{iso(start_s).removesuffix('Z')}:00Z'"
        query = {"select": _COLUMNS, "where": where, "order_by": "date_heure"}
        return parse(await self.client.get(f"{_PATH}/exports/json", query), self.series, self.name)

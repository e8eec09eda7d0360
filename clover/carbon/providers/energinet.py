"""Energinet's Energi Data Service: Denmark's two price areas, no key, five minutes, average intensity of consumption.

Times have no zone and are UTC.  The newest row comes first, and 100 rows are the default, so both are asked for.
"""

from __future__ import annotations

import msgspec

from clover.carbon.layouts import HowKnown
from clover.carbon.providers.http import ApiClient, Values, decode
from clover.carbon.providers.live import LiveSource, Series, check_zone, seconds
from clover.errors import ConfigError
from clover.types import Reading

STEP_S = 300.0
AREAS = ("DK1", "DK2")


class _Record(msgspec.Struct):
    at: str = msgspec.field(name="Minutes5UTC")
    area: str = msgspec.field(name="PriceArea")
    emission: float | None = msgspec.field(name="CO2Emission", default=None)


class _Answer(msgspec.Struct):
    records: Values[_Record]


def parse(body: bytes, series: Series, known: HowKnown, name: str = "energinet") -> list[Reading]:
    """Return the readings of an answer, each `known` so; CarbonError if it is none, or of another area."""
    readings = []
    for record in decode(body, _Answer, name).records:
        check_zone(name, series.zone, record.area)
        if record.emission is not None:
            readings.append(series.at(seconds(record.at, name), record.emission, known))
    return readings


def area_of(argument: str) -> str:
    """Return the price area that `energinet:ARGUMENT` names; ConfigError if it is none."""
    area = argument.strip().upper().removeprefix("DK-")
    if area not in AREAS:
        raise ConfigError(
            f"energinet:AREA takes DK1 (Jutland and Funen) or DK2 (Zealand and Bornholm), as energinet:DK1, not "
            f"{argument!r}"
        )
    return area


class EnerginetSource(LiveSource):
    """One price area of Denmark."""

    poll_s = 60.0
    lag_s = 900.0  # a row is of the start of its five minutes, and appears when they are over and were added up

    def __init__(self, area: str, client: ApiClient) -> None:
        super().__init__(client.name, Series("energinet", area, "average", "direct", STEP_S), client)
        self._filter = {"filter": f'{{"PriceArea":["{area}"]}}'}

    async def _latest(self, grid_s: float) -> list[Reading]:
        return await self._rows("CO2Emis", "published", {"sort": "Minutes5UTC DESC", "limit": "12"})

    async def _ahead(self, grid_s: float, horizon_s: float) -> list[Reading]:
        return await self._rows("CO2EmisProg", "forecast", _since("now-PT10M"))

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        return await self._rows("CO2Emis", "published", _since(f"now-P{max(1, round((end_s - start_s) / 86_400.0))}D"))

    async def _rows(self, dataset: str, known: HowKnown, params: dict[str, str]) -> list[Reading]:
        body = await self.client.get(f"/dataset/{dataset}", {**self._filter, **params})
        return parse(body, self.series, known, self.name)


def _since(start: str) -> dict[str, str]:
    return {"start": start, "sort": "Minutes5UTC ASC", "limit": "0"}

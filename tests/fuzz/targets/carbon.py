"""Bodies that carbon providers answer with: the first byte chooses the provider and what it is asked for.

Readings, whose values and times are finite and whose history lies where it was asked for, or a CarbonError in one short
printable line.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, cast

from clover.carbon.layouts import MAX_G_PER_KWH
from clover.carbon.providers.carbon_aware_sdk import CarbonAwareSource
from clover.carbon.providers.electricity_maps import ElectricityMapsSource
from clover.carbon.providers.energinet import EnerginetSource
from clover.carbon.providers.energy_charts import EnergyChartsSource
from clover.carbon.providers.http import ApiClient, words_of
from clover.carbon.providers.live import LiveSource
from clover.carbon.providers.neso import NesoSource
from clover.carbon.providers.rte import RteSource
from clover.carbon.providers.watttime import WattTimeSource
from clover.errors import CarbonError

INSTRUMENTED = ("clover.carbon",)
NOW_S = 1_774_558_800.0  # 2026-03-26T21:00Z
AT = "2026-03-26T20:30:00Z"

DICTIONARY = (
    *(b'"data":', b'"from":', b'"intensity":', b'"actual":', b'"forecast":', b'"carbonIntensity":', b'"datetime":',
      b'"zone":'),
    *(b'"meta":', b'"point_time":', b'"value":', b'"records":', b'"results":', b'"unix_seconds":', b'"rating":',
      b'"time":'),
    *(AT.encode(), b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00-23:59", b"1e400", b"-1", b"null", b"true",
      b"1e308", b"[[[["),
    *(b"5000.1", b'"token":', b"<html>", b"\xef\xbb\xbf", b"[]", b"{}", b'""', b"2026-W13-4T20",
      b"99999999999999999999"),
)  # fmt: skip


class FixedClient(ApiClient):
    """Answers every request with the same body."""

    def __init__(self, body: bytes) -> None:
        super().__init__("fuzz", "http://localhost")
        self.body = body

    async def get(self, path: str, params: Any = None, headers: Any = None) -> bytes:
        return b'{"token":"t"}' if path.endswith("/login") else self.body


def sources(body: bytes) -> list[LiveSource]:
    """Return every source there is, answered with `body`."""
    client = FixedClient(body)
    return [
        NesoSource("", client), NesoSource("13", client), EnergyChartsSource("de", client), EnerginetSource("DK1",
        client),
        RteSource(client), ElectricityMapsSource("DE", cast(Any, "lifecycle"), "v3", client, "k"),
        WattTimeSource("CAISO_NORTH", client, "u", "p"), CarbonAwareSource("westus", cast(Any, "average"), client),
    ]  # fmt: skip


COUNT = len(sources(b""))
ASKED = ("read", "forecast", "history", "words")


def seeds() -> list[bytes]:
    """Return an answer of each provider, asked for everything."""
    bodies: list[Any] = [
        {"data": [{"from": "2026-03-26T20:30Z", "to": "2026-03-26T21:00Z", "intensity": {"forecast": 200,
        "actual": 190}}]},
        {"data": [{"regionid": 13, "data": [{"from": "2026-03-26T20:30Z", "intensity": {"forecast": 200}}]}]},
        {"unix_seconds": [1774557000], "co2eq": [300.5], "co2eq_forecast": [310.5], "deprecated": False},
        {"total": 1, "records": [{"Minutes5UTC": "2026-03-26T20:55:00", "CO2Emission": 90.0}]},
        {"total_count": 1, "results": [{"date_heure": AT, "taux_co2": 40}]},
        {"zone": "DE", "carbonIntensity": 300, "datetime": AT, "isEstimated": False, "emissionFactorType": "lifecycle",
         "history": [{"zone": "DE", "carbonIntensity": 300, "datetime": AT}], "forecast": []},
        {"data": [{"point_time": AT, "value": 800.0}], "meta": {"region": "CAISO_NORTH", "signal_type": "co2_moer",
         "units": "lbs_co2_per_mwh", "data_point_period_seconds": 300, "model": {"date": "2026-01-01"}}},
        [{"location": "westus", "time": AT, "rating": 300.5, "duration": "00:05:00"}],
    ]  # fmt: skip
    found = []
    for at, body in enumerate(bodies):
        found += [bytes([at * 4 + ask]) + json.dumps(body).encode() for ask in range(3)]
    found += [b"\3" + text for text in (b'{"error":{"message":"no"}}', b"<html>", b"plain words", b'"a"')]
    return found


def check(data: bytes) -> str:
    """Ask one provider."""
    choice, body = (data[:1] or b"\0")[0], data[1:]
    source, ask = sources(body)[choice // 4 % COUNT], ASKED[choice % 4]
    if ask == "words":
        text = words_of(body.decode("utf-8", "replace"))
        assert text.isprintable(), text
        assert len(text) < 1000, text
        return text
    try:
        readings = asyncio.run(_asked(source, ask))
    except CarbonError as error:
        text = str(error)
        assert text.isprintable(), repr(text)
        assert len(text) < 1000, text
        return f"refused: {text}"
    for reading in readings:
        assert math.isfinite(reading.g_per_kwh), reading
        assert math.isfinite(reading.at_s), reading
        assert 0 < reading.step_s < math.inf, reading
        if ask != "read":
            assert 0.0 <= reading.g_per_kwh <= MAX_G_PER_KWH, reading
            assert abs(reading.at_s - NOW_S) <= 2 * 86400 + reading.step_s, reading
    return repr([(reading.at_s, reading.g_per_kwh, reading.step_s) for reading in readings])


async def _asked(source: LiveSource, ask: str) -> list[Any]:
    if ask == "read":
        return [await source.read(NOW_S)]
    if ask == "forecast":
        return await source.forecast(NOW_S, 86400.0)
    return await source.history(NOW_S - 86400.0, NOW_S)

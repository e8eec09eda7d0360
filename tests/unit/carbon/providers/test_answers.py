"""What each provider documents, replayed: values, units, signal, scope and how known; and parsers before any bytes."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.carbon import build_source
from clover.carbon.providers import (
    carbon_aware_sdk,
    electricity_maps,
    energinet,
    energy_charts,
    neso,
    rte,
    watttime,
)
from clover.carbon.providers.http import MOST_VALUES, Bounds
from clover.carbon.providers.live import LiveSource, Series
from clover.config import CarbonConfig, ProviderConfig
from clover.errors import CarbonError, ConfigError
from clover.types import Reading
from tests.support.carbon_server import (
    DOCUMENTS,
    KEY,
    NOW_S,
    PASSWORD,
    TOKEN,
    Answer,
    CarbonServer,
    Request,
    grid_g,
    iso,
)

HOUR, DAY = 3600.0, 86_400.0
SOURCES = {
    "neso": "neso",
    "neso:13": "neso:london",
    "neso:SW1": "neso:sw1",
    "energy-charts": "energy-charts:de",
    "energinet": "energinet:DK2",
    "rte": "rte",
    "electricity-maps": "electricity-maps:DE",
    "electricity-maps v3": "electricity-maps:DE?version=v3&scope=direct",
    "watttime": "watttime:CAISO_NORTH",
    "carbon-aware-sdk": "carbon-aware-sdk:westus?signal=marginal",
}
# zone, signal, scope, method of now, step in seconds, hours foreseen at least (0: none), hours of the past at least
KNOWN: dict[str, tuple[str, str, str, str, float, int, int]] = {
    "neso": ("GB", "average", "unknown", "forecast", 1800.0, 47, 167),
    "neso:13": ("GB-13", "average", "unknown", "forecast", 1800.0, 47, 167),
    "neso:SW1": ("GB-SW1", "average", "unknown", "forecast", 1800.0, 47, 167),
    "energy-charts": ("DE", "average", "lifecycle", "forecast", 900.0, 47, 166),
    "energinet": ("DK2", "average", "direct", "published", 300.0, 47, 167),
    "rte": ("FR", "average", "direct", "published", 900.0, 0, 167),
    "electricity-maps": ("DE", "average", "lifecycle", "estimated", 3600.0, 72, 23),
    "electricity-maps v3": ("DE", "average", "direct", "estimated", 3600.0, 72, 23),
    "watttime": ("CAISO_NORTH", "marginal", "direct", "estimated", 300.0, 71, 167),
    "carbon-aware-sdk": ("westus", "marginal", "unknown", "unknown", 3600.0, 47, 167),
}


def live(server: CarbonServer, name: str, **bounds: Any) -> LiveSource:
    async def pause(_: float) -> None:
        return None

    config = CarbonConfig(provider=server.providers())
    made = build_source(SOURCES[name], config, bounds=Bounds(pause=pause, **bounds))
    assert isinstance(made, LiveSource)
    return made


@pytest.mark.parametrize("name", SOURCES)
def test_now_forecast_and_past(server: CarbonServer, name: str) -> None:
    zone, signal, scope, method, step_s, ahead_h, past_h = KNOWN[name]
    source = live(server, name)

    async def story() -> tuple[Reading, list[Reading], list[Reading]]:
        return (
            await source.read(NOW_S),
            await source.forecast(NOW_S, 7 * DAY),
            await source.history(NOW_S - 7 * DAY, NOW_S),
        )

    now, ahead, past = asyncio.run(story())
    assert (now.provider, now.zone, now.signal, now.scope) == (name.partition(":")[0].split()[0], zone, signal, scope)
    assert (now.method, now.estimated, now.step_s) == (method, method in ("forecast", "estimated"), step_s)
    assert now.at_s == math.floor(NOW_S / step_s) * step_s
    assert now.age_s == NOW_S - now.at_s
    for reading in (now, *ahead, *past):
        assert reading.g_per_kwh == pytest.approx(grid_g(reading.at_s))
        assert (reading.zone, reading.signal, reading.scope) == (zone, signal, scope)
    assert {reading.method for reading in ahead} <= {"forecast"}
    assert all(reading.at_s + reading.step_s > NOW_S for reading in ahead)
    assert len(ahead) * step_s / HOUR >= ahead_h if ahead_h else not ahead
    assert all(NOW_S - 7 * DAY <= reading.at_s <= NOW_S for reading in past)
    assert len(past) * step_s / HOUR >= past_h
    assert past == sorted(past, key=lambda reading: reading.at_s)
    assert source.calls == len(server.requests)


def test_the_names_of_sources_are_theirs_alone_and_show_no_key(server: CarbonServer) -> None:
    made = [live(server, name) for name in SOURCES]
    assert [source.name for source in made] == [
        "neso", "neso:13", "neso:SW1", "energy-charts:DE", "energinet:DK2", "rte", "electricity-maps:DE",
        "electricity-maps:DE", "watttime:CAISO_NORTH", "carbon-aware-sdk:westus",
    ]  # fmt: skip
    for source in made:
        assert not {KEY, PASSWORD} & set(f"{source!r} {source.client!r} {source.name}".split())


def test_a_zone_is_always_named_and_never_looked_up_by_address(server: CarbonServer) -> None:
    async def story() -> None:
        await live(server, "electricity-maps").read(NOW_S)
        await live(server, "electricity-maps v3").read(NOW_S)

    asyncio.run(story())
    new, old = server.requests
    assert (new.path, new.headers["auth-token"]) == ("/v4/carbon-intensity/latest", KEY)
    assert new.params == {"zone": "DE", "emissionFactorType": "lifecycle", "disableCallerLookup": "true"}
    assert old.path == "/v3/carbon-intensity/latest"
    assert old.params == {"zone": "DE", "emissionFactorType": "direct", "shouldUseFallbackCallerLookup": "false"}


def test_the_token_of_watttime_is_used_again_until_it_is_refused(server: CarbonServer) -> None:
    source = live(server, "watttime")
    paths: list[str] = []
    once = iter([Answer(b'{"error":"Unauthorized"}', 401)])

    async def story() -> None:
        for number in range(3):
            server.requests.clear()
            if number == 2:
                server.fault = lambda request: next(once, None)
            await source.read(NOW_S)
            paths.append(" ".join(request.path for request in server.requests))

    asyncio.run(story())
    assert paths == ["/login /v3/forecast", "/v3/forecast", "/v3/forecast /login /v3/forecast"]
    server.fault = lambda request: Answer(f'{{"error": "no, {TOKEN}"}}'.encode(), 401)
    with pytest.raises(CarbonError, match=r"answers 401 Status: no, \*\*\*$") as caught:
        asyncio.run(source.read(NOW_S))
    assert caught.value.refused


def test_a_token_of_watttime_that_ended_is_forgotten(server: CarbonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source: Any = live(server, "watttime")
    monkeypatch.setattr(watttime, "TOKEN_S", 0.0)
    logins = iter(range(3))

    async def get(path: str, *_: Any, **__: Any) -> bytes:
        return b'{"token": "token-%d"}' % next(logins) if path == "/login" else b""

    monkeypatch.setattr(source.client, "get", get)

    async def story() -> None:
        for _ in range(3):
            await source._call("forecast", {})

    asyncio.run(story())
    assert [secret for secret in source.client.secrets if secret.startswith("token-")] == ["token-2"]


def test_another_model_of_watttime_is_said(server: CarbonServer, caplog: pytest.LogCaptureFixture) -> None:
    source = live(server, "watttime")
    asyncio.run(source.read(NOW_S))
    server.change = lambda found: found | {"meta": found["meta"] | {"model": {"date": "2026-09-01"}}}
    with caplog.at_level(logging.WARNING, "clover.carbon"):
        asyncio.run(source.read(NOW_S))
    assert "from another model from now on (2026-09-01, before 2026-05-01)" in caplog.text


def test_a_forecast_that_a_key_may_not_have_is_left_alone_for_hours(
    server: CarbonServer, caplog: pytest.LogCaptureFixture
) -> None:
    source = live(server, "electricity-maps")
    server.fault = lambda request: Answer(b'{"error":"Forbidden","message":"Not in your plan"}', 403)

    async def story() -> None:
        assert await source.forecast(NOW_S, DAY) == []
        assert await source.forecast(NOW_S + HOUR, DAY) == []
        assert source.calls == 1
        server.fault = None
        assert await source.forecast(NOW_S + 6 * HOUR, DAY)

    asyncio.run(story())
    assert "gives no forecast: electricity-maps:DE: " in caplog.text
    assert "answers 403 Status: Forbidden: Not in your plan" in caplog.text


def test_a_carbon_aware_sdk_without_data_or_forecast(server: CarbonServer) -> None:
    source = live(server, "carbon-aware-sdk")
    server.fault = lambda request: Answer(b"", 204)
    with pytest.raises(CarbonError, match="holds no value"):
        asyncio.run(source.read(NOW_S))
    assert asyncio.run(source.forecast(NOW_S, DAY)) == []
    server.fault = lambda request: Answer(b'{"title":"NotImplementedException"}', 501)
    assert asyncio.run(source.forecast(NOW_S, DAY)) == []


# --- what is no intensity of that zone ------------------------------------------------------------------------------


def changed(document: Any, **values: Any) -> Any:
    """The document with every field of those names replaced."""
    if isinstance(document, list):
        return [changed(item, **values) for item in document]
    if isinstance(document, dict):
        return {name: values.get(name, changed(item, **values)) for name, item in document.items()}
    return document


NULLS: dict[str, dict[str, Any]] = {
    "neso": {"forecast": None, "actual": None},
    "neso:13": {"forecast": None},
    "energy-charts": {"co2eq": None, "co2eq_forecast": None},
    "energinet": {"CO2Emission": None},
    "rte": {"taux_co2": None},
    "electricity-maps": {"carbonIntensity": None},
    "watttime": {"value": None},
    "carbon-aware-sdk": {"rating": None},
}


@pytest.mark.parametrize("name", NULLS)
def test_nulls_are_no_values(server: CarbonServer, name: str) -> None:
    server.change = lambda document: changed(document, **NULLS[name])
    with pytest.raises(CarbonError, match="the answer holds no value"):
        asyncio.run(live(server, name).read(NOW_S))


ELSEWHERE: dict[str, dict[str, Any]] = {
    "neso:13": {"regionid": 3},
    "neso:SW1": {"postcode": "E1"},
    "energinet": {"PriceArea": "DK1"},
    "rte": {"perimetre": "Bretagne"},
    "electricity-maps": {"zone": "PL"},
    "watttime": {"region": "PJM_DC"},
}


def test_the_slot_before_that_neso_may_put_first_is_not_foreseen(server: CarbonServer) -> None:
    def preceded(found: Any) -> Any:
        slot = {"from": iso(NOW_S // 1800 * 1800 - 1800), "intensity": {"forecast": 1.0, "actual": 1.0}}
        return {"data": [slot, *found["data"]]}

    server.change = preceded
    ahead = asyncio.run(live(server, "neso").forecast(NOW_S, DAY))
    assert min(reading.at_s for reading in ahead) == NOW_S // 1800 * 1800
    assert asyncio.run(live(server, "neso").read(NOW_S)).at_s == NOW_S // 1800 * 1800


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_answer_about_another_zone_is_refused(server: CarbonServer, name: str) -> None:
    server.change = lambda document: changed(document, **ELSEWHERE[name])
    with pytest.raises(CarbonError, match="the answer is about"):
        asyncio.run(live(server, name).read(NOW_S))


def test_an_answer_about_two_locations_is_refused(server: CarbonServer) -> None:
    server.change = lambda document: [*document, document[0] | {"location": "eastus"}]
    with pytest.raises(CarbonError, match="several locations: eastus, westus"):
        asyncio.run(live(server, "carbon-aware-sdk").read(NOW_S))


@pytest.mark.parametrize("name", SOURCES)
def test_values_that_are_all_to_come_are_refused(server: CarbonServer, name: str) -> None:
    with CarbonServer(lambda: NOW_S + 2 * DAY) as ahead:
        source = live(ahead, name)
        if name == "carbon-aware-sdk":  # answers for the times that were asked for
            ahead.change = lambda found: [item | {"time": "2030-01-01T00:00Z"} for item in found]
        with pytest.raises(CarbonError, match=r"still to come; is this machine's clock right\?"):
            asyncio.run(source.read(NOW_S))


OTHER_UNITS: list[tuple[str, dict[str, Any], str]] = [
    ("watttime", {"signal_type": "signal_index", "units": "percentile"}, "not co2_moer in lbs_co2_per_mwh"),
    ("watttime", {"units": "g_per_kwh"}, "not co2_moer in lbs_co2_per_mwh"),
    ("watttime", {"data_point_period_seconds": 0}, "no intensity of a moment"),
    ("electricity-maps", {"emissionFactorType": "direct"}, "is 'direct', not lifecycle"),
    ("electricity-maps", {"temporalGranularity": "yearly"}, "no intensity of a moment"),
    ("electricity-maps", {"carbonIntensity": "low"}, "not what its API documents"),
    ("energy-charts", {"co2eq": [1.0]}, "another number of values"),
    ("neso", {"from": "yesterday"}, "is no ISO 8601 time"),
]


@pytest.mark.parametrize(("name", "values", "text"), OTHER_UNITS)
def test_what_is_no_mass_of_now_is_refused(server: CarbonServer, name: str, values: dict[str, Any], text: str) -> None:
    server.change = lambda document: changed(document, **values)
    with pytest.raises(CarbonError, match=text):
        asyncio.run(live(server, name).read(NOW_S))


def test_a_level_is_no_intensity(server: CarbonServer) -> None:
    server.change = lambda document: {"zone": "DE", "data": {"level": "high"}, "datetime": document["datetime"]}
    with pytest.raises(CarbonError, match="carbonIntensity"):
        asyncio.run(live(server, "electricity-maps").read(NOW_S))


# --- how sources are written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("neso:18", "no region of Great Britain"),
        ("neso:Londn", "did you mean LONDON"),
        ("neso?zone=1", "unknown option 'zone'"),
        ("energy-charts", "takes one of AL, AM"),
        ("energy-charts:us", "takes one of AL, AM"),
        ("energinet:DK", "takes DK1"),
        ("rte:Bretagne", "takes no other zone"),
        ("electricity-maps:de/../x", "takes a zone as DE"),
        ("electricity-maps:DE?scope=both", "scope is one of lifecycle, direct"),
        ("electricity-maps:DE", r"electricity-maps needs a key: give a key in its table \[\[carbon.provider\]\], or"),
        ("watttime:CAISO_NORTH", """watttime","user":"ME","key":"file:PATH"}]'"""),
        ("watttime:CAISO_NORTH?signal=signal_index", "signal is one of co2_moer"),
        ("carbon-aware-sdk:westus", r"\?signal=average"),
        ("carbon-aware-sdk:westus?signal=average", "needs a url"),
        ("auto:DE?x=1", "takes no options"),
        ("auto:DK", "auto:DK1"),
        ("auto:US-CAL-CISO", "electricity-maps:ZONE with a key"),
        ("auto:SE-SE3", "auto:SE is its whole country"),
        ("auto:", "no provider without a key"),
    ],
)
def test_what_cannot_be_meant_is_refused(source: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_source(source)


@pytest.mark.parametrize(
    ("zone", "name"),
    [("GB", "neso"), ("gb-13", "neso:13"), ("DK1", "energinet:DK1"), ("DK-DK2", "energinet:DK2"), ("FR", "rte"),
     ("de", "energy-charts:DE")],
)  # fmt: skip
def test_auto_is_the_provider_without_a_key(zone: str, name: str) -> None:
    assert build_source(f"auto:{zone}").name == name


@pytest.mark.parametrize(
    "key",
    ["two words", "line\r\nbreak", "ä"],
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        build_source("electricity-maps:DE", CarbonConfig(provider=(ProviderConfig(name="electricity-maps", key=key),)))
    assert key not in str(caught.value)


# --- parsers before any bytes ---------------------------------------------------------------------------------------

SERIES = {name: Series(name, "DE", "average", "lifecycle", 900.0) for name in SOURCES}
PARSERS: list[Callable[[bytes], list[Reading]]] = [
    lambda body: neso.parse_national(body, SERIES["neso"]),
    lambda body: neso.parse_regional(body, SERIES["neso"], "13"),
    lambda body: energy_charts.parse(body, SERIES["energy-charts"]),
    lambda body: energinet.parse(body, Series("energinet", "DK1", "average", "direct", 300.0), "published"),
    lambda body: rte.parse(body, SERIES["rte"]),
    lambda body: electricity_maps.parse_latest(body, SERIES["electricity-maps"]),
    lambda body: electricity_maps.parse_history(body, SERIES["electricity-maps"]),
    lambda body: electricity_maps.parse_forecast(body, SERIES["electricity-maps"]),
    lambda body: watttime.parse(body, SERIES["watttime"], "estimated")[0],
    lambda body: carbon_aware_sdk.parse_emissions(body, SERIES["carbon-aware-sdk"]),
    lambda body: carbon_aware_sdk.parse_forecasts(body, SERIES["carbon-aware-sdk"]),
]
_NAMES = st.sampled_from(
    re.findall(
        r"\S+",
        "data from to intensity forecast actual regionid unix_seconds co2eq co2eq_forecast records Minutes5UTC "
        "PriceArea CO2Emission results date_heure taux_co2 perimetre zone carbonIntensity datetime history "
        "temporalGranularity point_time value meta region signal_type units location time rating forecastData "
        "timestamp duration",
    )
)
_TEXTS = st.one_of(
    st.sampled_from(["DE", "DK1", "France", "hourly", "co2_moer", "lbs_co2_per_mwh", "2026-01-01T00:00Z"]),
    st.sampled_from(["0001-01-01T00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-02-30T00:00Z"]),
    st.text(max_size=5),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | _TEXTS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(_NAMES, below, max_size=6),
    max_leaves=25,
)


@given(st.one_of(st.binary(max_size=60), _JSON.map(lambda found: json.dumps(found).encode())))
def test_any_bytes_are_readings_or_a_carbon_error(body: bytes) -> None:
    for parse in PARSERS:
        text, readings = "", []
        try:
            readings = parse(body)
        except CarbonError as error:
            text = str(error)
        assert text.isprintable()
        assert len(text) < 400
        assert all(isinstance(reading, Reading) and math.isfinite(reading.at_s) for reading in readings)


LISTS: dict[str, tuple[bytes, bytes, bytes]] = {  # what is before, of, and after a list of values; by the parser
    "neso national": (b'{"data":[', b'{"from":"2026-09-21T00:00Z","intensity":{"actual":1}}', b"]}"),
    "neso regional": (
        b'{"data":{"regionid":13,"data":[', b'{"from":"2026-09-21T00:00Z","intensity":{"actual":1}}', b"]}}"
    ),
    "energy-charts": (b'{"unix_seconds":[', b"1", b"]}"),
    "energinet": (b'{"records":[', b'{"Minutes5UTC":"2026-09-21T00:00","PriceArea":"DK1"}', b"]}"),
    "rte": (b"[", b'{"date_heure":"2026-09-21T00:00Z"}', b"]"),
    "electricity-maps latest": (b"", b"", b""),  # no list
    "electricity-maps history": (
        b'{"zone":"DE","history":[', b'{"datetime":"2026-09-21T00:00Z","carbonIntensity":null}', b"]}"
    ),
    "electricity-maps forecast": (
        b'{"zone":"DE","forecast":[', b'{"datetime":"2026-09-21T00:00Z","carbonIntensity":null}', b"]}"
    ),
    "watttime": (
        b'{"meta":{"region":"DE","signal_type":"co2_moer","units":"lbs_co2_per_mwh"},"data":[',
        b'{"point_time":"2026-09-21T00:00Z","value":null}', b"]}",
    ),
    "carbon-aware-sdk": (b"[", b'{"time":"2026-09-21T00:00Z","rating":1}', b"]"),
    "carbon-aware-sdk forecast": (b'[{"forecastData":[', b'{"timestamp":"2026-09-21T00:00Z","value":1}', b"]}]"),
}  # fmt: skip


@pytest.mark.parametrize(("parse", "name"), [found for found in zip(PARSERS, LISTS, strict=True) if LISTS[found[1]][1]])
def test_a_list_of_more_values_than_any_provider_has_is_refused(
    parse: Callable[[bytes], list[Reading]], name: str
) -> None:
    before, one, after = LISTS[name]
    for count in (3, MOST_VALUES, MOST_VALUES + 1):
        body = before + b",".join([one] * count) + after
        if count <= MOST_VALUES:
            parse(body)
        else:
            with pytest.raises(CarbonError, match=rf"Expected `array` of length <= {MOST_VALUES}"):
                parse(body)


def test_a_week_of_every_provider_fits(server: CarbonServer) -> None:
    for name in SOURCES:
        source = live(server, name, body_bytes=Bounds().body_bytes // 2)
        assert len(asyncio.run(source.history(NOW_S - 7 * DAY, NOW_S))) < MOST_VALUES / 4, name


@given(st.integers(0, 200), st.data())
def test_a_damaged_document_is_readings_or_a_carbon_error(at: int, data: st.DataObject) -> None:
    body = bytearray(json.dumps(DOCUMENTS["neso"](Request("/intensity", {}, {}), NOW_S)).encode())
    body[at % len(body)] = data.draw(st.integers(0, 255))
    del body[len(body) - data.draw(st.integers(0, 20)) :]
    try:
        readings = neso.parse_national(bytes(body), SERIES["neso"])
    except CarbonError:
        return
    assert all(math.isfinite(reading.at_s) for reading in readings)

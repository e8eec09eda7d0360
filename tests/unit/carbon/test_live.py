"""Live providers in the chain: the start, the clock, polling, an outage that passes, and answers that cannot be."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from clover import carbon
from clover.carbon.grid import ASSUMED, Grid
from clover.config import CarbonConfig
from clover.errors import ConfigError
from clover.telemetry.metrics.server import carbon as metrics_of
from clover.types import Reading
from tests.support.carbon_server import Answer, CarbonServer, Request, grid_g

NOW_S = 1_790_001_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
DOWN = Answer(b'{"error":"maintenance"}', 503, {"Retry-After": "40"})


def past_asked(request: Request) -> bool:
    """Whether NESO is asked for its past: /intensity/FROM/UNTIL."""
    return request.path.count("/") == 3 and not forecast_asked(request)


def forecast_asked(request: Request) -> bool:
    """Whether NESO is asked for its forecast."""
    return request.path.endswith("fw48h")


class Now:
    """Real seconds that stand still until they are set; the wall clock is `NOW_S` at 0."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s

    def wall(self) -> float:
        return NOW_S + self.s


class Scene:
    """The chain and the grid of a configuration, before a replay server."""

    def __init__(self, source: str, server: CarbonServer, now: Now, **settings: Any) -> None:
        poll_s = settings.pop("poll_s", carbon.POLL_S)
        config = CarbonConfig(source=source, **{"provider": server.providers(), **settings})
        self.chain, clock = carbon.build(config, monotonic=now, wall=now.wall, poll_s=poll_s)
        self.grid = Grid(self.chain, clock.now)
        self.now = now

    async def at(self, second: float) -> Reading:
        """The reading at a second, with all that was asked for answered."""
        self.now.s = second
        await self.grid.read()
        for link in self.chain.links:
            asked = [task for task in (link._asking, link._foreseeing) if task is not None]
            await asyncio.gather(*asked)
        return await self.grid.read()

    def metrics(self) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for metric in metrics_of(self.chain)
            for sample in metric.samples
        }


def play(story: Callable[[CarbonServer, Now], Any]) -> None:
    """Run a story on a loop of its own; sockets that stay open are errors."""
    now = Now()
    with CarbonServer(now.wall) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        with asyncio.Runner() as runner:
            complaints: list[Any] = []
            runner.get_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            runner.run(story(server, now))
        gc.collect()
        assert not complaints


def test_the_start_takes_the_past_and_now(caplog: pytest.LogCaptureFixture) -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("neso", server, now)
        await scene.chain.open(scene.grid.now())
        assert {request.path.split("/")[1] for request in server.requests} == {"intensity"}
        assert len(server.requests) == 2
        reading = await scene.grid.read()
        assert (reading.state, reading.provider, reading.zone) == ("fresh", "neso", "GB")
        assert len(server.requests) == 2  # within its step nothing is asked again
        assert 166 <= len(scene.grid.history) <= 169
        reference = await scene.grid.find_reference()
        assert "past hours and 4" in reference.label
        assert len(server.requests) == 3
        await scene.chain.close()

    play(story)


@pytest.mark.parametrize(
    ("source", "settings", "text"),
    [
        ("electricity-maps:DE,static:300", {"electricity_maps": "wrong"}, "401 Status: Unauthorized: Invalid auth"),
        ("static:300,watttime:CAISO_NORTH", {"watttime": "wrong"}, "401 Status: Invalid credentials"),
    ],
)
def test_a_provider_that_refuses_the_key_stops_the_start(source: str, settings: dict[str, str], text: str) -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene(source, server, now, provider=server.providers(**settings))
        with pytest.raises(ConfigError, match=text) as caught:
            await scene.chain.open(scene.grid.now())
        assert "wrong" not in str(caught.value)
        await scene.chain.close()

    play(story)


@pytest.mark.parametrize(
    ("source", "state", "provider", "g"),
    [("neso", "configured", "stand-in", 444.0), ("neso,static:300", "fallback", "static", 300.0),
     ("neso,energy-charts:DE", "fallback", "energy-charts", None)],
)  # fmt: skip
def test_started_with_the_provider_down_it_falls_back_as_configured_and_says_so(
    source: str, state: str, provider: str, g: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        server.fault = lambda request: DOWN if request.path.startswith("/intensity") else None
        scene = Scene(source, server, now, configured_g_per_kwh=444.0)
        await scene.chain.open(scene.grid.now())
        reading = await scene.grid.read()
        assert (reading.state, reading.provider) == (state, provider)
        assert g is None or reading.g_per_kwh == g
        assert "503 Status: maintenance" in scene.grid.trouble
        assert len(scene.grid.history) == 0
        await scene.chain.close()

    with caplog.at_level(logging.WARNING, "clover.carbon"):
        play(story)
    assert "503 Status: maintenance" in caplog.text


def test_a_provider_that_was_down_at_the_start_is_asked_for_everything_once_it_answers() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        server.fault = lambda request: DOWN
        scene = Scene("neso", server, now)
        (link,) = scene.chain.links
        await scene.chain.open(scene.grid.now())
        for second in range(0, 180, 5):
            assert (await scene.at(float(second))).state == "configured"
            assert await scene.grid.find_reference() is ASSUMED
        assert "503 Status: maintenance" in link.error
        server.fault = None
        server.requests.clear()
        reading = await scene.at(240.0)
        assert reading.state == "fresh"
        assert len(server.requests) == 3, "the newest value, the past and the forecast, once each"
        assert 166 <= len(scene.grid.history) <= 169
        assert "past hours and 4" in (await scene.grid.find_reference()).label, "in the hour of the start, too"
        assert len(server.requests) == 3
        assert (link.error, scene.grid.trouble) == ("", "")
        await scene.chain.close()

    play(story)


@pytest.mark.parametrize("part", ["past", "forecast"])
def test_a_past_or_forecast_that_fails_alone_is_asked_for_again_with_back_off(part: str) -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        def is_part(request: Request) -> bool:
            return (forecast_asked if part == "forecast" else past_asked)(request)

        server.fault = lambda request: DOWN if is_part(request) else None
        scene = Scene("neso", server, now)
        (link,) = scene.chain.links
        await scene.chain.open(scene.grid.now())
        for second in range(0, 600, 5):
            assert (await scene.at(float(second))).state == "fresh"
        asked = len([request for request in server.requests if is_part(request)])
        assert 4 <= asked <= 9, "after 40 s, as the provider says, and then 64, 128, ..."
        assert "503 Status: maintenance" in link.error
        server.fault = None
        await scene.at(1200.0)
        await scene.grid.find_reference()
        assert len(scene.grid.history) >= 166
        assert len(scene.grid.foreseen) >= 48
        assert link.error == ""
        before = len(server.requests)
        await scene.at(1500.0)
        assert len([request for request in server.requests[before:] if is_part(request)]) == 0
        await scene.chain.close()

    play(story)


def test_a_past_that_is_refused_is_not_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        refusal = Answer(b'{"error": "not in this plan"}', 403)
        server.fault = lambda request: refusal if past_asked(request) else None
        scene = Scene("neso", server, now)
        await scene.chain.open(scene.grid.now())
        for minute in range(120):
            assert (await scene.at(minute * MINUTE)).state == "fresh"
        assert len([request for request in server.requests if past_asked(request)]) == 1
        assert scene.chain.links[0].error == ""
        await scene.chain.close()

    play(story)
    assert caplog.text.count("gives no past") == 1


def test_an_outage_is_bridged_and_passes_and_metrics_show_it() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("neso,energinet:DK1", server, now)
        await scene.chain.open(scene.grid.now())
        assert (await scene.at(0.0)).state == "fresh"
        await scene.grid.find_reference()
        server.fault = lambda request: DOWN if request.path.startswith("/intensity") else None
        seen: list[str] = []
        for minute in range(0, 5 * 60, 5):
            reading = await scene.at(minute * MINUTE)
            at_s = scene.grid.now()
            if reading.provider == "neso":
                assert reading.g_per_kwh == grid_g(reading.at_s)
            assert reading.age_s == at_s - reading.at_s
            if reading.state not in seen[-1:]:
                seen.append(reading.state)
        assert seen == ["fresh", "stale", "fallback"]
        assert reading.provider == "energinet"
        shown = scene.metrics()
        assert shown["clover_carbon_failures_total", "neso", "status"] >= 10.0
        assert shown["clover_carbon_calls_total", "neso"] >= shown["clover_carbon_failures_total", "neso", "status"]
        server.fault = None
        assert (await scene.at(5 * HOUR + 10 * MINUTE)).state == "fresh"
        assert scene.grid.trouble == ""
        await scene.chain.close()

    play(story)


def test_a_lone_provider_is_bridged_by_its_forecast() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("neso,static:300", server, now)
        await scene.chain.open(scene.grid.now())
        await scene.at(0.0)
        await scene.grid.find_reference()
        server.fault = lambda request: DOWN
        reading = await scene.at(4 * HOUR)
        assert (reading.state, reading.method, reading.provider) == ("forecast", "forecast", "neso")
        assert reading.g_per_kwh == grid_g(math.floor(scene.grid.now() / 1800.0) * 1800.0)
        reading = await scene.at(3 * DAY)  # beyond the forecast: what past days had at this hour
        assert (reading.state, reading.provider) == ("seasonal", "neso")
        await scene.chain.close()

    play(story)


def late_by(seconds: float) -> Callable[[float], float]:
    """A provider that publishes every value so late."""
    return lambda now_s: now_s - seconds


def hourly(now_s: float) -> float:
    """A provider that publishes once an hour what is older than half an hour, as eCO2mix in real time."""
    return math.floor(now_s / HOUR) * HOUR - 1800.0


def unforeseen(found: Any) -> Any:
    """Return an answer of Energy-Charts about a country that it has no forecast of."""
    return found | {"co2eq_forecast": [None] * len(found["unix_seconds"])}


def unchanged(found: Any) -> Any:
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "published", "change", "oldest_s", "poll_s"),
    [
        ("neso", late_by(0.0), unchanged, 1800.0, 5.0),
        ("neso:13", late_by(0.0), unchanged, 1800.0, 5.0),
        ("energy-charts:DE", late_by(0.0), unchanged, 1800.0, 5.0),
        # The replay has values half an hour after the time that they are of at the earliest.
        ("energy-charts:DE", late_by(4500.0 - 1800.0), unforeseen, 900.0 + 4500.0 + 900.0, 5.0),
        ("energinet:DK1", late_by(900.0), unchanged, 300.0 + 900.0, 5.0),
        ("energinet:DK1", late_by(900.0), unchanged, 300.0 + 900.0 + 1800.0, 1800.0),
        ("rte", late_by(5400.0), unchanged, 900.0 + 5400.0 + 300.0, 5.0),
        ("rte", hourly, unchanged, 900.0 + 5400.0, 5.0),
        ("electricity-maps:DE", late_by(900.0), unchanged, 3600.0 + 900.0 + 360.0, 5.0),
        ("watttime:CAISO_NORTH", late_by(600.0), unchanged, 300.0 + 600.0, 5.0),
        ("carbon-aware-sdk:westus?signal=average", late_by(3600.0), unchanged, 3600.0 + 3600.0 + 360.0, 5.0),
    ],
)
def test_a_provider_that_is_as_late_as_always_is_fresh_and_its_age_is_shown(
    source: str,
    published: Callable[[float], float],
    change: Callable[[Any], Any],
    oldest_s: float,
    poll_s: float,
) -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        server.published, server.change = published, change
        begin = 800.0  # within a step of each
        now.s = begin
        scene = Scene(source, server, now, poll_s=poll_s)
        await scene.chain.open(scene.grid.now())
        ages = set()
        for minute in range(3 * 60):  # the slowest repeats itself after an hour
            reading = await scene.at(begin + minute * MINUTE)
            assert reading.state == "fresh", (minute, reading.age_s)
            assert reading.age_s == scene.grid.now() - reading.at_s
            assert reading.g_per_kwh == pytest.approx(grid_g(reading.at_s))
            ages.add(reading.age_s)
        assert max(ages) <= oldest_s + MINUTE
        assert scene.grid.trouble == ""
        server.fault = lambda request: DOWN
        assert (await scene.at(begin + 9 * HOUR)).state != "fresh"
        assert "503 Status: maintenance" in scene.grid.trouble
        await scene.chain.close()

    play(story)


def test_who_polls_once_a_day_has_no_fresh_value_for_a_day() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("energinet:DK1", server, now, poll_s=DAY)
        await scene.chain.open(scene.grid.now())
        assert (await scene.at(2 * HOUR)).state == "fresh"
        assert (await scene.at(3 * HOUR)).state != "fresh"
        await scene.chain.close()

    play(story)


def test_retry_after_is_heeded_and_a_provider_is_polled_as_it_asks() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("energy-charts:DE", server, now, poll_s=1.0)
        await scene.chain.open(scene.grid.now())

        async def asked_until(begin: int, end: int) -> list[int]:
            times = []
            for second in range(begin, end):
                before = len([request for request in server.requests if request.path == "/co2eq"])
                await scene.at(float(second))
                if len([request for request in server.requests if request.path == "/co2eq"]) > before:
                    times.append(second)
            return times

        for minute in range(61):
            await scene.at(minute * MINUTE)
        assert len([request for request in server.requests if request.path == "/co2eq"]) == 2 + 4
        server.fault = lambda request: DOWN
        assert await asked_until(4500, 4600) == [4500, 4540, 4580]
        await scene.chain.close()

    play(story)


def test_an_answer_without_a_value_is_an_answer_and_the_provider_is_left_alone_as_after_any() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("energy-charts:DE", server, now)
        server.change = lambda found: unforeseen(found) | {"co2eq": [None] * len(found["unix_seconds"])}
        await scene.chain.open(scene.grid.now())
        for minute in range(61):
            await scene.at(minute * MINUTE)
        assert scene.chain.errors["energy-charts:DE", "answer"] == 1 + 4
        assert len([request for request in server.requests if request.path == "/co2eq"]) == 2 + 4
        server.change = unchanged
        assert (await scene.at(75 * MINUTE)).state == "fresh"
        await scene.chain.close()

    play(story)


def test_what_failed_between_two_looks_is_said_at_the_next() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("neso", server, now)
        await scene.chain.open(scene.grid.now())
        link = scene.chain.links[0]
        link.refresh_wait_s = 0.0
        server.fault = lambda request: DOWN
        now.s = 2000.0
        await scene.grid.read()
        assert link._asking is not None
        await link._asking
        assert (await scene.grid.read()).state == "stale"
        assert "503 Status: maintenance" in scene.grid.trouble
        await scene.chain.close()

    play(story)


def test_a_provider_that_hangs_holds_up_nobody_but_the_start() -> None:
    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene("neso", server, now)
        await scene.chain.open(scene.grid.now())
        server.fault = lambda request: Answer(manner="hang")
        now.s = 2000.0
        link = scene.chain.links[0]
        link.refresh_wait_s = 0.0
        for _ in range(3):
            assert (await scene.grid.read()).state == "stale"
        assert link._asking is not None
        async with asyncio.timeout(10.0):
            while len(server.requests) < 3:
                await asyncio.sleep(0.001)
        assert not link._asking.done()
        await scene.chain.close()
        assert link._asking.done()

    play(story)


def zeros(found: Any) -> Any:
    """Return the document with every intensity 0."""
    if isinstance(found, list):
        return [zeros(item) for item in found]
    if not isinstance(found, dict):
        return found
    return {
        name: [None if value is None else 0.0 for value in item]
        if name.startswith("co2eq")
        else 0.0
        if name in ("value", "actual", "forecast") and item is not None
        else zeros(item)
        for name, item in found.items()
    }


@pytest.mark.parametrize("name", ["watttime:CAISO_NORTH", "neso", "energy-charts:DE"])
def test_zeros_for_hours_are_not_believed(name: str) -> None:
    """As a provider once sent them; an average over the life cycle is refused at once."""

    async def story(server: CarbonServer, now: Now) -> None:
        scene = Scene(name, server, now, max_age_s=1e6)
        await scene.chain.open(scene.grid.now())
        server.change = zeros
        link = scene.chain.links[0]
        given_out = [(await scene.at(step * 1800.0)).g_per_kwh for step in range(1, 30)]
        assert given_out.count(0.0) * 1800.0 <= 8 * HOUR
        assert 0.0 not in given_out[18:]
        assert link.errors["implausible"] > 10
        assert "0 g/kWh" in link.last_error
        await scene.chain.close()

    play(story)


@pytest.mark.parametrize("settings", [{"trace_speed": 60.0}, {"trace_start": "2026-01-01T00:00Z"}])
def test_a_live_source_needs_the_time_of_day(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="neso gives the intensity of now, but the carbon data's time starts at"):
        carbon.build(CarbonConfig(source="neso", **settings))


def test_a_provider_is_told_from_another_source_by_its_zone() -> None:
    with pytest.raises(ConfigError, match="names neso twice"):
        carbon.build(CarbonConfig(source="neso,auto:GB"))
    chain, _ = carbon.build(CarbonConfig(source="neso,neso:13,auto:DE"))
    assert chain.name == "neso,neso:13,energy-charts:DE"
    assert set(chain.live) == {"neso", "neso:13", "energy-charts:DE"}


def test_a_server_without_a_live_source_does_not_import_aiohttp() -> None:
    program = """if True:
        import sys
        import clover.carbon, clover.server
        clover.carbon.build_source("static:300")
        assert "aiohttp" not in sys.modules
        clover.carbon.build_source("neso")
        assert "aiohttp" in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

"""One grid for everybody: what it asks its sources, what it keeps, and what it expects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps

import msgspec
import pytest

from clover.carbon import GridClock, SourceChain
from clover.carbon.chain import FORECAST_S
from clover.carbon.grid import ASSUMED, Grid
from clover.errors import CarbonError
from clover.planning.budget.forecast import History
from clover.types import Reading
from tests.support.profiles_fixture import reading

HOUR = 3600.0


def on_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        async def story() -> None:
            await test()

        asyncio.run(story())

    return run


class Source:
    """Gives 100 g/kWh in the first hour, 200 in the second, and so on; keeps the times it was asked for."""

    name = "far"
    remote = True
    step_s = HOUR

    def __init__(self) -> None:
        self.fails = False
        self.foresees = True
        self.read_at: list[float] = []
        self.forecast_at: list[float] = []

    async def read(self, grid_s: float) -> Reading:
        self.read_at.append(grid_s)
        if self.fails:
            raise CarbonError("it is away")
        hour = grid_s // HOUR
        return Reading(
            g_per_kwh=100.0 * (hour + 1.0),
            at_s=hour * HOUR,
            provider=self.name,
            method="published",
            age_s=grid_s % HOUR,
        )

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        assert horizon_s == FORECAST_S
        self.forecast_at.append(grid_s)
        if not self.foresees:
            return []
        first = grid_s // HOUR
        return [
            msgspec.structs.replace(reading(100.0 * (first + n + 1.0)), at_s=(first + n) * HOUR, provider=self.name)
            for n in range(6)
        ]


class Time:
    """Real seconds that stand still until told; grid time runs `speed` times as fast."""

    def __init__(self, speed: float = 1.0) -> None:
        self.now_s = 0.0
        self.grid = GridClock(0.0, speed, self)

    def __call__(self) -> float:
        return self.now_s


@on_a_loop
async def test_a_remote_source_is_asked_every_poll_s_however_many_ask_and_however_fast_grid_time_runs() -> None:
    time, source = Time(speed=3600.0), Source()
    grid = Grid(SourceChain([source], max_age_s=1e9, monotonic=time, poll_s=5.0), time.grid.now)
    assert grid.reading is None
    for second in range(20):
        time.now_s = float(second)
        for _ in range(3):  # the account, the controller, a command
            assert await grid.read() is grid.reading
    assert source.read_at == [0.0, 5 * HOUR, 10 * HOUR, 15 * HOUR]
    assert grid.reading is not None
    assert (grid.reading.g_per_kwh, grid.reading.state, grid.reading.age_s) == (1600.0, "stale", 4 * HOUR)


@on_a_loop
async def test_what_was_read_is_history_by_the_hour() -> None:
    time, source = Time(), Source()
    source.foresees = False
    grid = Grid(SourceChain([source], max_age_s=HOUR, configured_g_per_kwh=9.0, monotonic=time), time.grid.now)
    for time.now_s in (10.0, HOUR - 1.0, HOUR + 1.0):
        await grid.read()
    source.fails = True
    time.now_s = 4 * HOUR
    assert grid.trouble == ""
    assert (await grid.read()).state == "configured"
    assert grid.trouble == "it is away"
    assert grid.history.hourly(1) == pytest.approx([100.0, 200.0])
    assert len(grid.history) == 2, "the value of last resort is none"


@on_a_loop
async def test_a_forecast_is_asked_for_once_an_hour_and_holds_while_the_source_has_none() -> None:
    time, source = Time(), Source()
    grid = Grid(SourceChain([source], monotonic=time), time.grid.now)

    async def expected() -> list[float]:
        now = await grid.read()
        grid_s = time.grid.now()
        seen = await grid.outlook(now, History(), grid_s=grid_s, until_s=6 * HOUR, rate=1.0)
        hours, label = await grid.hours(now, grid_s=grid_s, until_s=6 * HOUR)
        assert (hours.tolist(), label) == ([step.g_per_kwh for step in seen.steps], seen.label)
        return [step.g_per_kwh for step in seen.steps]

    assert await expected() == pytest.approx([100.0, 200.0, 300.0, 400.0, 500.0, 600.0])
    time.now_s = HOUR / 2
    await expected()
    assert source.forecast_at == [0.0]
    source.foresees, time.now_s = False, 2 * HOUR
    assert (await expected())[1:] == pytest.approx([400.0, 500.0, 600.0])
    assert source.forecast_at == [0.0, 2 * HOUR]


@on_a_loop
async def test_how_far_off_the_last_day_was_foreseen_is_the_mean_of_all_that_was_said_of_it() -> None:
    time, source = Time(), Source()
    source.foresees = False  # so that less than a day of history foresees that it stays as it is
    grid = Grid(SourceChain([source], monotonic=time), time.grid.now)
    for hour in range(4):
        time.now_s = hour * HOUR
        now = await grid.read()
        await grid.outlook(now, History(), grid_s=time.grid.now(), until_s=9 * HOUR, rate=1.0)
        # Each hour brings 100 g/kWh more: an hour is missed by 100 an hour before, by 200 two hours before, ...
        off = [100.0 * (at - made) for made in range(hour) for at in range(made + 1, hour)]
        assert grid.forecast_error == (pytest.approx(sum(off) / len(off)) if off else None)


class Slow(Source):
    """A source whose forecasts take until `answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.Event()

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        found = await super().forecast(grid_s, horizon_s)
        await self.answer.wait()
        return found


@on_a_loop
async def test_no_reading_waits_for_a_forecast_and_no_plan_but_the_first() -> None:
    time, source = Time(), Slow()
    chain = SourceChain([source], max_age_s=HOUR, monotonic=time)
    grid = Grid(chain, time.grid.now)

    async def expected() -> float:
        now = await grid.read()
        seen = await grid.outlook(now, History(), grid_s=time.grid.now(), until_s=9 * HOUR, rate=1.0)
        return seen.steps[-1].g_per_kwh

    async with asyncio.timeout(1.0):
        for time.now_s in (0.0, 1.0, 2.0):
            assert (await grid.priced()).state == "fresh"
        first = asyncio.create_task(expected())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not first.done(), "there is nothing else to plan by yet"
        assert (await grid.read()).state == "fresh"
        source.answer.set()
        await first
        assert source.forecast_at == [0.0], "asked once, whoever waits"
        source.answer.clear()
        time.now_s = 3 * HOUR
        assert (await grid.priced()).g_per_kwh == 400.0
        before = await expected()
        source.answer.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert await expected() != before, "the new one, which reaches farther, is taken once it is there"
        assert source.forecast_at == [0.0, 3 * HOUR]
        time.now_s, source.fails = 6 * HOUR - 1.0, True
        found = await grid.read()
        assert (found.state, found.g_per_kwh) == ("forecast", 600.0), "and it bridges an outage"


class Foretold:
    def __init__(self, *readings: Reading) -> None:
        self.readings = list(readings)
        self.history = History()
        self.last_error = ""
        self.trouble = ""
        self.asked = 0

    async def read(self, grid_s: float) -> Reading:
        return self.readings[0]

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        self.asked += 1
        return self.readings


@on_a_loop
async def test_a_forecast_counts_only_if_it_speaks_of_the_same_signal() -> None:
    marginal = msgspec.structs.replace(reading(700.0), at_s=HOUR, signal="marginal", provider="m")
    source = Foretold(marginal)
    grid = Grid(source, lambda: 5.0)
    average = msgspec.structs.replace(reading(100.0), signal="average")
    for _ in range(3):
        seen = await grid.outlook(average, History(), grid_s=5.0, until_s=5.0 + 4 * HOUR, rate=1.0)
    assert seen.label == "persistence"
    assert source.asked == 1, "once an hour"
    seen = await grid.outlook(marginal, History(), grid_s=5.0, until_s=5.0 + 4 * HOUR, rate=1.0)
    assert seen.steps[1].g_per_kwh == 700.0


@on_a_loop
async def test_a_price_of_energy_does_not_change_what_plans_are_made_from() -> None:
    now, source = [0.0], Source()
    grid = Grid(SourceChain([source], monotonic=lambda: now[0]), lambda: now[0])
    planned = await grid.read()
    now[0] = 2 * HOUR
    assert (await grid.priced()).g_per_kwh == 300.0
    assert grid.reading == planned
    assert (await grid.read()).g_per_kwh == 300.0


@on_a_loop
async def test_the_reference_is_the_median_of_the_hours_that_are_known() -> None:
    now, source = [0.5 * HOUR], Foretold(reading(100.0))
    grid = Grid(source, lambda: now[0])
    assert await grid.find_reference() == ASSUMED, "nothing was read yet"
    await grid.read()
    found = await grid.find_reference()
    assert (found.g_per_kwh, "assumed" in found.label) == (250.0, True), "an hour says nothing of a zone"
    for hour in range(30):
        source.history.record(hour * HOUR, 20.0 + hour)
    now[0] = 30.5 * HOUR
    found = await grid.find_reference()
    assert found.g_per_kwh == pytest.approx(34.5)
    assert found.label == "median of 30 past hours"
    source.readings += [msgspec.structs.replace(reading(700.0), at_s=(31 + hour) * HOUR) for hour in range(40)]
    assert (await grid.find_reference()).g_per_kwh == pytest.approx(34.5), "once an hour"
    now[0] = 31.5 * HOUR
    found = await grid.find_reference()
    assert (found.g_per_kwh, found.label) == (700.0, "median of 30 past hours and 40 hours foreseen")


@on_a_loop
async def test_a_grid_without_emissions_has_a_reference_that_one_can_divide_by() -> None:
    source = Foretold(reading(0.0))
    for hour in range(30):
        source.history.record(hour * HOUR, 0.0)
    grid = Grid(source, lambda: 30 * HOUR)
    await grid.read()
    assert (await grid.find_reference()).g_per_kwh == 1.0

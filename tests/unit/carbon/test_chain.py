"""The chain of sources: a table of what happens and what is then given out; back-off, caching and odd sources."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.carbon import SourceChain
from clover.errors import CarbonError
from clover.types import Reading

STEP = 300.0
MAX_AGE = 1000.0


class Source:
    """A source that gives `value` (at the start of the step, or `lag_s` before), raises it, or hangs on None."""

    def __init__(self, name: str, value: float | Exception | None, *, remote: bool = False, lag_s: float = 0.0) -> None:
        self.name = name
        self.step_s = STEP
        self.remote = remote
        self.value = value
        self.lag_s = lag_s
        self.calls = 0
        self.forecasts = 0

    async def read(self, grid_s: float) -> Reading:
        self.calls += 1
        if self.value is None:
            await asyncio.Event().wait()
        if isinstance(self.value, Exception):
            raise self.value
        assert self.value is not None
        at_s = math.floor((grid_s - self.lag_s) / STEP) * STEP
        return Reading(
            g_per_kwh=self.value,
            at_s=at_s,
            provider=self.name,
            signal="average",
            method="published",
            age_s=grid_s - at_s,
        )

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        self.forecasts += 1
        if isinstance(self.value, Exception):
            raise self.value
        return [] if self.value is None else [Reading(g_per_kwh=self.value, at_s=grid_s, provider=self.name)]


DOWN = CarbonError("down")


def chain(*sources: Source, now: Callable[[], float] = lambda: 0.0, timeout_s: float = 10.0) -> SourceChain:
    return SourceChain(
        sources,
        max_age_s=MAX_AGE,
        configured_g_per_kwh=444.0,
        monotonic=now,
        backoff_s=(1.0, 8.0),
        timeout_s=timeout_s,
    )


# Each row: grid time, what source A and source B do from then on, and what must come out: value, state, provider, age.
TABLE: list[tuple[float, float | Exception, float | Exception, tuple[float, str, str, float]]] = [
    (0.0, 100.0, 200.0, (100.0, "fresh", "a", 0.0)),
    (299.0, 101.0, 200.0, (100.0, "fresh", "a", 299.0)),  # within its step: not asked again
    (300.0, 101.0, 200.0, (101.0, "fresh", "a", 0.0)),  # the next step
    (500.0, DOWN, 200.0, (101.0, "fresh", "a", 200.0)),  # down, but its value still holds
    (600.0, DOWN, 200.0, (101.0, "fresh", "a", 300.0)),  # exactly one step old
    (601.0, DOWN, 200.0, (101.0, "stale", "a", 301.0)),
    (1300.0, DOWN, 200.0, (101.0, "stale", "a", 1000.0)),  # exactly the age limit
    (1301.0, DOWN, 200.0, (200.0, "fallback", "b", 101.0)),
    (1550.0, DOWN, DOWN, (200.0, "fallback", "b", 50.0)),  # a value read at 1500 by nobody: asked at 1500+
    (2500.0, DOWN, DOWN, (200.0, "fallback", "b", 1000.0)),  # b's last good value, still in the limit
    (2501.0, DOWN, DOWN, (444.0, "configured", "stand-in", 0.0)),
    (2600.0, DOWN, 210.0, (210.0, "fallback", "b", 200.0)),
    (2700.0, 110.0, 210.0, (110.0, "fresh", "a", 0.0)),  # recovered
    (100.0, 110.0, 210.0, (110.0, "fresh", "a", 100.0)),  # the grid clock was set back
]


def test_state_table() -> None:
    a, b = Source("a", None), Source("b", None)
    both = chain(a, b)

    async def walk() -> None:
        for grid_s, a.value, b.value, expected in TABLE:
            if grid_s == 1550.0:  # b answers once more in its step, then goes down
                b.value = 200.0
                await both.read(1500.0)
                b.value = DOWN
            reading = await both.read(grid_s)
            assert (reading.g_per_kwh, reading.state, reading.provider, reading.age_s) == expected, grid_s

    asyncio.run(walk())
    assert {source for source, _ in both.errors} == {"a", "b"}
    assert both.last_error == "down"
    assert both.last is not None
    assert both.last.method == "published"


def test_without_any_source_working_the_configured_value_is_given_and_labelled() -> None:
    reading = asyncio.run(chain(Source("a", DOWN)).read(50.0))
    assert (reading.g_per_kwh, reading.state, reading.method, reading.estimated) == (
        444.0,
        "configured",
        "stand-in",
        True,
    )
    assert (reading.provider, reading.at_s) == ("stand-in", 50.0), "distinct from what an operator stated"


def test_a_source_that_lags_is_stale_and_is_asked_every_tenth_of_a_step() -> None:
    source = Source("a", 100.0, lag_s=600.0)
    lagging = chain(source)

    async def walk() -> None:
        for grid_s in range(0, 300, 3):
            assert (await lagging.read(float(grid_s))).state == "stale"

    asyncio.run(walk())
    assert source.calls == 10


def test_a_source_whose_newest_value_is_beyond_the_limit_has_failed() -> None:
    old = chain(Source("a", 100.0, lag_s=2000.0), Source("b", 200.0))
    assert asyncio.run(old.read(0.0)).state == "fallback"
    assert "old" in old.last_error


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e6])
def test_a_number_that_is_no_intensity_is_a_failure(value: float) -> None:
    odd = chain(Source("a", value))
    assert asyncio.run(odd.read(0.0)).state == "configured"
    assert "no intensity" in odd.last_error
    assert sum(odd.errors.values()) == 1


def test_a_remote_source_is_left_alone_for_longer_and_longer(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    source = Source("a", DOWN, remote=True)
    backing_off = chain(source, now=lambda: now[0])
    asked: list[float] = []

    async def walk() -> None:
        for tick in range(400):
            now[0] = tick / 10
            before = source.calls
            await backing_off.read(now[0])
            if source.calls > before:
                asked.append(now[0])

    asyncio.run(walk())
    assert asked == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0, 31.0, 39.0]
    assert sum(backing_off.errors.values()) == 8
    assert asyncio.run(backing_off.forecast(40.0, 60.0)) == []
    assert sum(backing_off.errors.values()) == 8
    source.value = 100.0
    now[0] = 48.0
    assert asyncio.run(backing_off.read(48.0)).state == "fresh"
    source.value = DOWN
    now[0] = 1000.0
    asyncio.run(backing_off.read(400.0))
    now[0] = 1001.0
    source.value = 120.0
    assert asyncio.run(backing_off.read(401.0)).g_per_kwh == 120.0  # the waits start again at the first
    assert [record.levelname for record in caplog.records].count("WARNING") == 2  # changes of state only


def test_a_local_source_is_asked_every_time() -> None:
    source = Source("a", DOWN)
    local = chain(source)

    async def walk() -> None:
        for grid_s in range(10):
            await local.read(float(grid_s))

    asyncio.run(walk())
    assert source.calls == 10


def test_a_source_that_hangs_times_out_and_one_with_a_bug_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    hanging = chain(Source("a", None), Source("b", 200.0), timeout_s=0.01)
    assert asyncio.run(hanging.read(0.0)).state == "fallback"
    assert hanging.last_error == "a did not answer within 0.01 s"
    buggy = chain(Source("a", KeyError("carbonIntensity")), Source("b", 200.0))
    assert asyncio.run(buggy.read(0.0)).state == "fallback"
    assert buggy.last_error == "a: KeyError: 'carbonIntensity'"
    assert any(record.exc_info for record in caplog.records)


def test_two_readers_at_once_ask_once() -> None:
    source = Source("a", 100.0)
    shared = chain(source)

    async def both() -> list[Reading]:
        return list(await asyncio.gather(*(shared.read(1.0) for _ in range(5))))

    assert len({reading.g_per_kwh for reading in asyncio.run(both())}) == 1
    assert source.calls == 1


def test_the_forecast_passes_through_and_a_fallback_says_so() -> None:
    a, b = Source("a", 100.0), Source("b", 200.0)
    both = chain(a, b)
    assert [(r.g_per_kwh, r.state) for r in asyncio.run(both.forecast(0.0, 60.0))] == [(100.0, "fresh")]
    a.value = DOWN
    assert [(r.g_per_kwh, r.state) for r in asyncio.run(both.forecast(0.0, 60.0))] == [(200.0, "fallback")]
    assert both.last_error == "down"
    b.value = None
    assert asyncio.run(both.forecast(0.0, 60.0)) == []


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2000),
            st.one_of(st.just(DOWN), st.floats(0, 5000)),
            st.one_of(st.just(DOWN), st.floats(0, 5000)),
        ),
        max_size=30,
    )
)
def test_whatever_happens_there_is_an_answer_and_its_label_is_true(
    steps: list[tuple[float, float | CarbonError, float | CarbonError]],
) -> None:
    a, b = Source("a", None), Source("b", None)
    both = chain(a, b)

    async def walk() -> None:
        grid_s = 0.0
        for ahead_s, a.value, b.value in steps:
            grid_s += ahead_s
            reading = await both.read(grid_s)
            assert reading.age_s == max(0.0, grid_s - reading.at_s) <= MAX_AGE
            assert (
                reading.provider
                == {"fresh": "a", "stale": "a", "fallback": "b", "configured": "stand-in"}[reading.state]
            )
            assert (reading.age_s <= STEP) or reading.state in ("stale", "fallback")
            assert isinstance(a.value, Exception) or reading.state == "fresh"

    asyncio.run(walk())


def polled(*sources: Source, now: Callable[[], float]) -> SourceChain:
    return SourceChain(sources, max_age_s=MAX_AGE, configured_g_per_kwh=444.0, monotonic=now, poll_s=5.0)


def test_a_remote_source_is_asked_once_every_poll_whoever_asks_and_however_fast_grid_time_runs() -> None:
    now_s, remote, local = [0.0], Source("a", 100.0, remote=True), Source("b", 200.0)

    async def walk(made: SourceChain, speed: float) -> None:
        for _ in range(61):
            await asyncio.gather(*(made.read(speed * now_s[0]) for _ in range(3)))  # energy, controller, an operator
            now_s[0] += 1.0

    made = polled(remote, now=lambda: now_s[0])
    asyncio.run(walk(made, STEP))
    assert remote.calls == 13
    assert remote.forecasts == 6  # one an hour of grid time
    assert made.last is not None
    assert made.last.state == "fresh"
    now_s[0] = 0.0
    asyncio.run(walk(polled(local, now=lambda: now_s[0]), STEP))
    assert local.calls == 61  # every reading follows grid time


def test_a_remote_source_that_fails_is_asked_no_more_often_than_polled() -> None:
    now_s, remote = [0.0], Source("a", DOWN, remote=True)
    made, calls = polled(remote, now=lambda: now_s[0]), list[float]()

    async def walk() -> None:
        for second in range(60):
            now_s[0], before = float(second), remote.calls
            assert (await made.read(0.0)).state == "configured"
            if remote.calls > before:
                calls.append(now_s[0])

    asyncio.run(walk())
    assert calls == [0.0, 5.0, 10.0, 15.0, 23.0, 39.0]  # five seconds, until the back-off is longer


def test_a_value_that_outlives_its_step_between_two_polls_says_that_it_is_stale() -> None:
    now_s, remote = [0.0], Source("a", 100.0, remote=True)
    made = polled(remote, now=lambda: now_s[0])

    async def walk() -> None:
        assert (await made.read(0.0)).state == "fresh"
        now_s[0] = 4.0
        assert (await made.read(4.0 * STEP / 2)).state == "stale"
        now_s[0] = 5.0
        assert (await made.read(5.0 * STEP / 2)).state == "fresh"

    asyncio.run(walk())

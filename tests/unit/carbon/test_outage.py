"""What stands in while a source has no value, and which answers are not believed."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

import msgspec
import pytest

from clover.carbon import SourceChain
from clover.carbon.plausible import Plausibility
from clover.carbon.synthetic import StaticSource, SyntheticSource
from clover.errors import CarbonError
from clover.interfaces import CarbonSource
from clover.types import Reading

HOUR = 3600.0
DAY = 24 * HOUR


def daily(grid_s: float) -> float:
    """A grid whose intensity follows the hour of the day."""
    return 200.0 + 10.0 * ((grid_s // HOUR) % 24)


class Remote:
    """A provider that answers `g_per_kwh(grid_s)` every hour, and foresees `ahead` hours of it; None: it is down."""

    def __init__(self, g_per_kwh: Callable[[float], float] = daily, *, ahead: int = 6, remote: bool = True) -> None:
        self.name = "provider"
        self.step_s = HOUR
        self.remote = remote
        self.g_per_kwh = g_per_kwh
        self.ahead = ahead
        self.down = False
        self.forecasts = 0

    async def read(self, grid_s: float) -> Reading:
        if self.down:
            raise CarbonError("it does not answer")
        return self._at(math.floor(grid_s / HOUR) * HOUR)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        self.forecasts += 1
        if self.down:
            raise CarbonError("it does not answer")
        first = math.floor(grid_s / HOUR)
        return [self._at((first + hour) * HOUR) for hour in range(self.ahead)]

    def _at(self, at_s: float) -> Reading:
        return Reading(
            g_per_kwh=self.g_per_kwh(at_s),
            at_s=at_s,
            provider=self.name,
            zone="DE",
            signal="average",
            method="published",
        )


class Walk:
    """A chain that is read every ten minutes; real time is grid time."""

    def __init__(self, *sources: CarbonSource) -> None:
        self.now_s = 0.0
        self.chain = SourceChain(
            sources, max_age_s=2 * HOUR, configured_g_per_kwh=444.0, monotonic=lambda: self.now_s, poll_s=5.0
        )

    def until(self, at_s: float) -> Reading:
        """The reading at `at_s`, after all those before."""

        async def walk() -> Reading:
            while True:
                reading = await self.chain.read(self.now_s)
                if self.now_s >= at_s:
                    return reading
                self.now_s += 600.0

        return asyncio.run(walk())

    def states(self, until_s: float) -> list[str]:
        """The states on the way to `until_s`, each once."""
        seen: list[str] = []
        while self.now_s < until_s:
            state = self.until(self.now_s + 600.0).state
            if state not in seen[-1:]:
                seen.append(state)
        return seen


def test_an_outage_is_bridged_by_the_last_forecast_then_by_past_days_then_by_the_configured_value() -> None:
    source = Remote()
    walk = Walk(source)
    assert walk.until(2 * DAY).state == "fresh"
    source.down = True
    assert walk.until(2 * DAY + 2 * HOUR).state == "stale"
    found = walk.until(2 * DAY + 3 * HOUR)
    assert (found.state, found.method, found.g_per_kwh, found.estimated) == ("forecast", "forecast", 230.0, True)
    assert (found.provider, found.zone, found.signal, found.at_s) == ("provider", "DE", "average", 2 * DAY + 3 * HOUR)
    assert walk.until(2 * DAY + 5.5 * HOUR).g_per_kwh == 250.0
    found = walk.until(2 * DAY + 7.5 * HOUR)  # the forecast reached six hours
    assert (found.state, found.method, found.g_per_kwh) == ("seasonal", "forecast", daily(7 * HOUR))
    assert (found.provider, found.zone, found.age_s) == ("provider", "DE", HOUR / 2)
    assert walk.until(3 * DAY + 20 * HOUR).g_per_kwh == daily(20 * HOUR)
    assert walk.states(11 * DAY) == ["seasonal", "configured"]
    source.down = False
    assert walk.until(12 * DAY).state == "fresh"


def test_a_seasonal_value_is_the_mean_of_the_same_hour_of_the_last_seven_days() -> None:
    source = Remote(lambda grid_s: 100.0 + grid_s // DAY, ahead=0)
    walk = Walk(source)
    walk.until(10 * DAY - 600.0)
    source.down = True
    assert walk.until(10 * DAY + 3 * HOUR).g_per_kwh == pytest.approx(100.0 + (3 + 4 + 5 + 6 + 7 + 8 + 9) / 7)


def test_a_forecast_is_asked_for_once_an_hour_to_bridge_what_may_come() -> None:
    source = Remote()
    walk = Walk(source)
    walk.until(10 * HOUR - 600.0)
    assert source.forecasts == 10
    local = Remote(remote=False)
    Walk(local).until(10 * HOUR)
    assert local.forecasts == 0, "a file that fails has no forecast of anybody"


def test_a_source_whose_forecast_fails_is_read_as_before() -> None:
    class NoForecast(Remote):
        async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
            self.forecasts += 1
            raise CarbonError("501: no forecast at this source")

    source = NoForecast()
    walk = Walk(source)
    assert walk.states(10 * HOUR - 600.0) == ["fresh"]
    assert source.forecasts == sum(walk.chain.errors.values()) == 10


def test_another_source_goes_before_the_bridge_and_a_stated_number_after_it() -> None:
    for other, state in ((Remote(lambda _: 77.0), "fallback"), (StaticSource(300.0), "forecast")):
        source = Remote()
        if isinstance(other, Remote):
            other.name = "other"
        walk = Walk(source, other)
        walk.until(3 * HOUR)
        source.down = True
        assert walk.until(6 * HOUR).state == state
    source = Remote(ahead=0)
    for stated, method in ((StaticSource(300.0), "configured"), (SyntheticSource(), "synthetic")):
        walk = Walk(source, stated)
        source.down = False
        walk.until(3 * HOUR)
        source.down = True
        found = walk.until(6 * HOUR)
        assert (found.state, found.method) == ("fallback", method), "there is no day of history yet"


@pytest.mark.parametrize("more", [(), (Remote(lambda _: 77.0),), (StaticSource(300.0),)])
def test_what_stands_in_does_not_become_history(more: tuple[CarbonSource, ...]) -> None:
    source = Remote()
    walk = Walk(source, *more)
    walk.until(DAY - 600.0)
    source.down = True
    walk.until(3 * DAY)
    assert len(walk.chain.history) == 24 + 2  # two hours of it stale


def test_every_stand_in_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    source = Remote(ahead=4)
    walk = Walk(source)
    walk.until(DAY)
    source.down = True
    walk.until(9 * DAY)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    for text, words in zip(
        said,
        ("stale, 4200 s old", "by the last forecast", "by the mean of past days", "no source has a value"),
        strict=True,
    ):
        assert words in text
        assert "it does not answer" in text
    assert said[-1].startswith("carbon intensity: 444 g/kWh (a stand-in, no source has a value)"), "it is of no source"


# --- implausible answers --------------------------------------------------------------------------------------------


def stuck(value: float, since_s: float, before: Callable[[float], float] = daily) -> Callable[[float], float]:
    return lambda grid_s: value if grid_s >= since_s else before(grid_s)


@pytest.mark.parametrize(
    ("g_per_kwh", "refused_s", "words"),
    [
        (stuck(0.0, 8 * DAY), 8 * DAY + 4 * HOUR, "0 g/kWh without a change for 4.0 hours"),
        (stuck(310.0, 2 * DAY), 2 * DAY + 7 * HOUR, "310 g/kWh without a change for 7.0 hours"),
        (stuck(1500.0, 2 * DAY), 2 * DAY, "1500 g/kWh, more than 3 times the 430 that were the most so far"),
    ],
)
def test_an_implausible_answer_is_refused_said_counted_and_bridged(
    g_per_kwh: Callable[[float], float], refused_s: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = Remote(g_per_kwh, ahead=0)
    walk = Walk(source)
    walk.until(refused_s - 600.0)
    assert sum(walk.chain.errors.values()) == 0
    walk.until(refused_s)
    assert sum(walk.chain.errors.values()) == 1
    assert words in walk.chain.last_error
    found = walk.until(refused_s + 3 * HOUR)
    assert (found.state, found.g_per_kwh) == ("seasonal", pytest.approx(daily(found.at_s), abs=60.0))
    assert walk.until(refused_s + 2 * DAY).state == "seasonal", "for as long as it lasts"
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("provider gave")]
    assert len(said) == 1, "once until it is believed again"
    assert words in said[0]


def test_a_provider_that_answers_rightly_again_is_believed_again() -> None:
    source = Remote(ahead=0)
    source.g_per_kwh = lambda grid_s: 0.0 if 2 * DAY <= grid_s < 2 * DAY + 10 * HOUR else daily(grid_s)
    walk = Walk(source)
    assert walk.until(2 * DAY + 9 * HOUR).state == "seasonal"
    found = walk.until(2 * DAY + 10 * HOUR + 600.0)
    assert (found.state, found.g_per_kwh) == ("fresh", daily(10 * HOUR))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("g_per_kwh", "why"),
    [
        (lambda _: 350.0, "a yearly mean never changes"),
        (lambda _: 0.0, "a grid of water alone, direct emissions"),
        (lambda grid_s: 0.0 if (grid_s // HOUR) % 48 > 3 else 2.0, "and one that is nearly so"),
        (lambda grid_s: 14.0 if (grid_s // DAY) % 2 else 15.0, "whole grams of a nuclear grid"),
        (lambda grid_s: 30.0 if (grid_s // DAY) % 2 else 95.0, "imports for a day"),
        (lambda grid_s: 300.0 + 5.0 * ((grid_s // DAY) % 7), "a value a day"),
        (lambda grid_s: 0.0 if 11 <= (grid_s // HOUR) % 24 <= 13 else daily(grid_s), "solar power in excess, marginal"),
    ],
)
def test_grids_that_are_really_flat_or_near_zero_are_believed(g_per_kwh: Callable[[float], float], why: str) -> None:
    walk = Walk(Remote(g_per_kwh))
    assert walk.until(600.0).state == "fresh"
    assert walk.states(15 * DAY) == ["fresh"], why
    assert sum(walk.chain.errors.values()) == 0


def doubted(
    g_per_kwh: Callable[[float], float], hours: range, *, per_hour: int = 2, judge: Plausibility | None = None
) -> list[float]:
    """The hours of grid time whose values are not believed, of a marginal series of `per_hour` values an hour."""
    judge, found = judge or Plausibility(), []
    for number in range(hours.start * per_hour, hours.stop * per_hour):
        at_s = number * HOUR / per_hour
        seen = Reading(g_per_kwh=g_per_kwh(at_s), at_s=at_s, provider="x", signal="marginal", step_s=HOUR / per_hour)
        if judge.doubt(seen):
            found.append(number / per_hour)
    return found


def hour_of(grid_s: float) -> float:
    return grid_s % DAY / HOUR


@pytest.mark.parametrize(
    ("g_per_kwh", "why"),
    [
        (lambda at_s: 0.0 if 1 <= hour_of(at_s) < 7 else 80.0 + hour_of(at_s), "a windy night, direct emissions"),
        (lambda at_s: 0.0 if 9 <= hour_of(at_s) < 16 else daily(at_s), "solar power in excess, marginal"),
        (lambda at_s: 0.0 if at_s > 5 * DAY and 9 <= hour_of(at_s) < 16 else daily(at_s), "the first on day 6"),
        (lambda at_s: 0.0 if 8 <= hour_of(at_s) < 16 + at_s / DAY / 4 else daily(at_s), "longer every day"),
        (
            lambda at_s: 21.0 if at_s > 2 * DAY and hour_of(at_s) < 12 else 22.0 + hour_of(at_s) // 1,
            "whole grams of a nuclear grid",
        ),
    ],
)
def test_zeros_and_coarse_numbers_of_real_grids_are_believed(g_per_kwh: Callable[[float], float], why: str) -> None:
    assert doubted(g_per_kwh, range(14 * 24)) == [], why


def test_ten_hours_of_zeros_of_a_source_that_was_never_near_zero_are_refused() -> None:
    def failing(at_s: float) -> float:
        return 0.0 if 0 <= at_s - 8 * DAY < 10 * HOUR else daily(at_s)

    start = 8 * 24
    assert doubted(failing, range(10 * 24), per_hour=1) == [start + hour for hour in range(4, 10)], "a week is known"
    assert doubted(failing, range(7 * 24, 10 * 24), per_hour=1) == [start + 9], "a day: longer than a sunny one"


@pytest.mark.parametrize("per_hour", [1, 2, 12])
@pytest.mark.parametrize("steep_h", [3.0, 4.0])
def test_the_first_midday_at_zero_that_the_sun_brings_is_believed(steep_h: float, per_hour: int) -> None:
    """After a week: down from 8 h on within `steep_h`, at 0 until 17 h, and up again."""

    def solar(at_s: float) -> float:
        hour = hour_of(at_s)
        if at_s < 8 * DAY or hour < 8.0 or hour > 20.0:
            return daily(at_s)
        if hour > 17.0:
            return daily(at_s) * (hour - 17.0) / 3.0
        return max(0.0, daily(8 * HOUR) * (1.0 - (hour - 8.0) / steep_h))

    assert doubted(solar, range(14 * 24), per_hour=per_hour) == []


@pytest.mark.parametrize("last_g", [300.0, 120.0])
def test_a_sudden_fall_to_zero_is_no_sun(last_g: float) -> None:
    def failing(at_s: float) -> float:
        """Falls by 10 g an hour to `last_g`, and then to nothing."""
        hours = at_s / HOUR - 8 * 24
        return daily(at_s) if hours < -4 else last_g - 10.0 * hours if hours < 0 else 0.0 if hours < 10 else daily(at_s)

    assert doubted(failing, range(10 * 24), per_hour=1) == [8 * 24 + hour for hour in range(4, 10)]


def test_the_first_sunny_day_of_a_source_known_for_a_week_costs_one_afternoon_if_it_begins_at_once() -> None:
    def sunny(at_s: float) -> float:
        return 0.0 if at_s > 8 * DAY and 9 <= hour_of(at_s) < 16 else daily(at_s)

    assert doubted(sunny, range(14 * 24)) == [8 * 24 + 12.5 + half / 2 for half in range(7)]


def hanging(value: float, first: float) -> Callable[[float], float]:
    """Return a series that rises with the hour for two days, from `first` above `value`, and then stays at `value`."""
    return lambda at_s: value if at_s >= 2 * DAY else value + hour_of(at_s) // 1 + first


def test_a_flat_line_is_judged_by_how_fine_the_numbers_are() -> None:
    for value, first, hours in ((60.0, 0.25, 6.5), (60.0, 0.0, 10.5), (150.0, 0.0, 6.5)):
        assert doubted(hanging(value, first), range(4 * 24))[:1] == [2 * 24 + hours], (value, first)


def test_a_leap_that_holds_is_believed_and_is_the_highest_from_then_on() -> None:
    def calm(at_s: float) -> float:
        """Wind for 26 hours, then none."""
        return 30.0 + hour_of(at_s) if at_s < 26 * HOUR else 320.0 + 8.0 * hour_of(at_s)

    assert doubted(calm, range(14 * 24), per_hour=1) == [26, 27]
    assert doubted(calm, range(14 * 24), per_hour=2) == [26, 26.5]
    assert len(doubted(lambda at_s: calm(at_s) + at_s % HOUR / HOUR, range(14 * 24), per_hour=12)) == 12
    judge = Plausibility()
    assert doubted(calm, range(48), judge=judge) == [26, 26.5]
    assert doubted(lambda _: 1400.0, range(48, 49), judge=judge) == []
    assert doubted(lambda _: 4500.0, range(49, 50), judge=judge) == [49, 49.5], "three times the new highest"


def test_a_leap_is_not_believed_if_it_comes_and_goes_does_not_change_or_is_asked_for_again() -> None:
    def spikes(at_s: float) -> float:
        return 1500.0 + at_s / DAY if at_s > 2 * DAY and at_s // HOUR % 3 else daily(at_s)

    assert len(doubted(spikes, range(6 * 24), per_hour=1)) == 4 * 16
    assert len(doubted(stuck(1500.0, 2 * DAY), range(6 * 24), per_hour=1)) == 4 * 24
    judge = Plausibility()
    assert doubted(daily, range(48), judge=judge) == []
    for value in (1500.0, 1501.0, 1502.0, 1503.0):
        assert judge.doubt(Reading(g_per_kwh=value, at_s=2 * DAY, provider="x", step_s=HOUR)), "one moment"


def test_a_leap_of_a_source_that_never_changes_is_believed_once_it_holds() -> None:
    yearly = stuck(300.0, 3 * DAY, before=lambda _: 30.0)
    assert doubted(yearly, range(6 * 24), per_hour=1) == [72, 73]


def test_what_was_stated_or_is_replayed_is_not_judged() -> None:
    walk = Walk(StaticSource(0.0))
    assert walk.states(3 * DAY) == ["fresh"]
    judge = Plausibility()
    base = Reading(g_per_kwh=0.0, at_s=0.0, provider="x", signal="average", scope="lifecycle", step_s=HOUR)
    assert "life cycle" in judge.doubt(base)
    for method in ("synthetic", "configured"):
        assert not judge.doubt(msgspec.structs.replace(base, method=method))
    assert not judge.doubt(msgspec.structs.replace(base, replayed=True))


def test_a_value_that_is_the_same_after_an_outage_did_not_hang() -> None:
    judge = Plausibility()
    for hour in range(48):
        assert not judge.doubt(Reading(g_per_kwh=daily(hour * HOUR), at_s=hour * HOUR, provider="x", step_s=HOUR))
    last = daily(47 * HOUR)
    assert not judge.doubt(Reading(g_per_kwh=last, at_s=60 * HOUR, provider="x", step_s=HOUR))

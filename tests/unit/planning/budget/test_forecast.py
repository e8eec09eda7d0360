"""What is expected of grid and load: the seasons of what was, a provider's word, and a horizon in few parts."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clover.planning.budget.forecast import (
    DAY,
    HOUR_S,
    KEPT,
    LIMIT,
    WEEK,
    Floats,
    ForecastInput,
    History,
    Sample,
    forecast,
    group_hours,
    outlook,
    values,
)
from tests.support.examples import examples


def curve(hours: int) -> Floats:
    """A week of days: an hour is known by its place in the week."""
    hour = np.arange(hours)
    made: Floats = 200.0 + 80.0 * np.cos(hour / DAY * 2 * np.pi) + np.where(hour // DAY % 7 >= 5, -30.0, 0.0)
    return made


def history(values: Floats, first: int = 0) -> History:
    noted = History()
    for at, value in enumerate(values):
        noted.record((first + at) * HOUR_S, float(value))
    return noted


def test_less_than_a_day_is_persistence() -> None:
    known = ForecastInput(history(curve(20)), History(), g_per_kwh=123.0, rate=5.0)
    seen = outlook(known, now_s=19.5 * HOUR_S, until_s=30 * HOUR_S)
    assert seen.label == "persistence"
    assert [step.g_per_kwh for step in seen.steps] == pytest.approx([123.0] * 11)
    assert seen.steps[0].seconds == pytest.approx(0.5 * HOUR_S)
    assert seen.steps[0].rows == pytest.approx(0.5 * HOUR_S * 5.0)
    assert seen.steps[0].rate == pytest.approx(5.0)


def test_what_repeats_itself_is_foretold() -> None:
    truth = curve(6 * WEEK)
    for known in (2 * WEEK + 7, 3 * WEEK + 100):
        told = forecast(truth[: known + 1], truth[known], 2 * WEEK)
        far = told[WEEK:]
        assert far == pytest.approx(truth[known + WEEK : known + 2 * WEEK], abs=0.05), "weeks ahead are weeks that were"
        # Before a weekend yesterday is a wrong witness: the blend is out by some of the step, and no more.
        assert np.abs(told - truth[known : known + 2 * WEEK]).max() <= 30.0
        assert told[0] == truth[known]


def test_two_days_are_a_season_and_what_is_unusual_now_fades() -> None:
    truth = np.tile(curve(DAY), 3)
    told = forecast(truth[: 2 * DAY + 1], truth[2 * DAY] + 40.0, DAY)
    above = told - truth[2 * DAY : 3 * DAY]
    assert above[0] == pytest.approx(40.0)
    assert np.all(np.diff(np.abs(above)) <= 1e-9)
    assert abs(above[-1]) < 16.0


def test_one_unusual_day_counts_for_little_where_days_are_alike() -> None:
    truth = np.tile(curve(DAY), 15)
    truth[13 * DAY : 14 * DAY] += 100.0  # yesterday
    told = forecast(truth[: 14 * DAY + 1], truth[14 * DAY], DAY)
    assert np.abs(told - truth[14 * DAY : 15 * DAY]).max() < 25.0


def test_a_rise_of_every_day_is_expected_also_as_it_begins() -> None:
    loads = History()
    for at in range(2 * 144 + 15 * 6):  # every ten minutes
        hour = at / 6.0 % DAY
        rate = 700.0 if 12.0 < hour < 15.0 else 60.0  # at 12:00 what was counted is of the minutes before
        loads.record(at * 600.0, rate)
        if at >= 2 * 144:
            seen = outlook(ForecastInput(History(), loads, 100.0, rate), now_s=at * 600.0, until_s=at * 600.0 + 3e4)
            begins = np.cumsum([0.0] + [step.seconds for step in seen.steps[:-1]]) / 3600.0 + hour
            risen = [step.rate for begin, step in zip(begins, seen.steps, strict=True) if 12.5 < begin < 14.5]
            assert all(rate > 550.0 for rate in risen), f"at {hour:.2f} h: {risen}"
            assert seen.steps[0].rate == pytest.approx(rate)


def test_weeks_far_ahead_are_not_averages() -> None:
    truth = np.concatenate([np.full(WEEK, value) for value in (100.0, 300.0, 500.0)] + [np.array([500.0])])
    told = forecast(truth, 500.0, 7 * WEEK)
    assert {100.0, 300.0, 500.0} <= set(np.round(told[2 * WEEK :], 6))


@st.composite
def readings(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Irregular steps with gaps, in any order, some not numbers."""
    times = draw(st.lists(st.floats(0.0, 400 * HOUR_S), max_size=80))
    value = st.one_of(st.floats(0.0, 900.0), st.sampled_from([math.nan, math.inf]))
    return [(at, draw(value)) for at in times]


@pytest.mark.slow
@settings(max_examples=examples(80), deadline=None)
@given(
    noted=readings(),
    provided=readings(),
    now_s=st.floats(0.0, 420 * HOUR_S),
    hours=st.floats(0.01, 900.0),
    now=st.floats(0.0, 900.0),
    rate=st.floats(0.0, 1e4),
)
@example(noted=[], provided=[], now_s=0.0, hours=1.0, now=1.03125, rate=5e-324)
def test_whatever_went_in_what_comes_out_is_whole(
    noted: list[tuple[float, float]],
    provided: list[tuple[float, float]],
    now_s: float,
    hours: float,
    now: float,
    rate: float,
) -> None:
    intensities, rates = History(), History()
    for at, value in noted:
        intensities.record(at, value)
        rates.record(at, value / 10.0)
    hour = math.floor(now_s / HOUR_S)
    given = values([Sample(at_s=at, g_per_kwh=value) for at, value in provided], hour, 1000)
    until_s = now_s + hours * HOUR_S
    made_from = ForecastInput(intensities, rates, g_per_kwh=now, rate=rate, provider=given, name="provider x")
    seen = outlook(made_from, now_s=now_s, until_s=until_s)
    assert 1 <= len(seen.steps) <= LIMIT
    assert sum(step.seconds for step in seen.steps) == pytest.approx(until_s - now_s)
    known = [value for _, value in (*noted, *provided) if math.isfinite(value)] + [now]
    for step in seen.steps:
        assert step.seconds > 0.0
        assert 0.0 <= step.rows < math.inf
        assert min(known) - 1e-6 <= step.g_per_kwh <= max(known) + 1e-6
    assert seen.steps[0].g_per_kwh == pytest.approx(now)
    assert seen.label


def test_a_provider_knows_better_as_far_as_it_reaches() -> None:
    now = 3 * DAY
    truth = np.tile(curve(DAY), 4)
    provider = [
        Sample(at_s=(now + k) * HOUR_S + part, g_per_kwh=50.0 + k) for k in range(1, 7) for part in (0.0, 1800.0)
    ]
    provider[2] = Sample(at_s=provider[2].at_s, g_per_kwh=math.nan)
    given = values(provider, now, 30)
    assert np.isnan(given[0])
    assert given[2] == pytest.approx(52.0), "the half that is known"
    past = history(truth[: now + 1])
    known = ForecastInput(past, History(), g_per_kwh=float(truth[now]), rate=1.0, provider=given, name="provider p")
    seen = outlook(known, now_s=now * HOUR_S, until_s=(now + 12) * HOUR_S)
    assert [step.g_per_kwh for step in seen.steps[1:7]] == pytest.approx([51.0, 52.0, 53.0, 54.0, 55.0, 56.0])
    assert seen.steps[8].g_per_kwh == pytest.approx(truth[now + 8])
    assert seen.label == "provider p for 6 h, then seasonal, 3 days known"
    short = outlook(known, now_s=now * HOUR_S, until_s=(now + 5) * HOUR_S)
    assert short.label == "provider p"


def test_a_year_is_few_parts_that_keep_its_clean_and_its_dirty_time() -> None:
    rng = np.random.default_rng(3)
    intensity = np.clip(curve(8760) + rng.normal(0.0, 40.0, 8760), 20.0, 500.0)
    rows = HOUR_S * np.where(np.arange(8760) % DAY < 8, 20.0, 60.0)
    seconds = np.full(8760, HOUR_S)
    steps = group_hours(seconds, intensity, rows)
    assert len(steps) <= LIMIT
    assert sum(step.rows for step in steps) == pytest.approx(rows.sum())
    assert sum(step.seconds for step in steps) == pytest.approx(seconds.sum())
    assert sum(step.rows * step.g_per_kwh for step in steps) == pytest.approx((rows * intensity).sum())
    assert [step.g_per_kwh for step in steps[:48]] == pytest.approx(list(intensity[:48]))
    assert {round(step.rate) for step in steps} == {20, 60}, "quiet and busy hours are not mixed"
    assert len(msgspec.json.encode(steps)) < 32_000
    spread = np.repeat([s.g_per_kwh for s in steps], [round(s.seconds / HOUR_S) for s in steps])
    for part in (5, 25, 50, 75, 95):
        assert np.percentile(spread, part) == pytest.approx(np.percentile(intensity, part), abs=4.0)


def test_history_is_bounded_and_a_clock_set_back_sees_no_future() -> None:
    noted = history(np.arange(KEPT + 100, dtype=float))
    assert len(noted) == KEPT
    assert noted.hourly(KEPT + 99)[-1] == KEPT + 99
    assert noted.hourly(200).max() == 200.0
    assert len(noted.hourly(50)) == 0
    five_minutes = History()
    for step in range(24):
        five_minutes.record(step * 300.0, float(step // 12))
    assert five_minutes.hourly(1) == pytest.approx([0.0, 1.0])


def test_a_gap_is_the_same_hour_of_a_day_that_is_known() -> None:
    truth = np.tile(curve(DAY), 6)
    holes = truth.copy()
    holes[60:100] = np.nan
    assert history(holes).hourly(len(truth) - 1) == pytest.approx(truth)
    nothing = ForecastInput(History(), History(), g_per_kwh=1.0, rate=1.0)
    assert len(outlook(nothing, now_s=5.0, until_s=5.0).steps) == 0

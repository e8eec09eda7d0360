"""Forecasts are believed as far as those of the last weeks came true."""

from __future__ import annotations

import numpy as np
import pytest

from clover.planning.budget.forecast import DAY, HOUR_S, WEEK, Floats, forecast
from clover.waiting.forecasts import IssuedForecasts, hours_ahead, spare_ahead
from clover.waiting.schedule import Hour, PendingJob, plan

WEEKS = 6


def daily(weeks: int = WEEKS) -> Floats:
    return 200.0 + 100.0 * np.sin(2.0 * np.pi * np.arange(weeks * WEEK) / DAY)


def flipping(weeks: int = WEEKS, days: int = 2) -> Floats:
    """A grid whose noon is clean for some days, dirty for as many, and so on: what was is no guide."""
    hour = np.arange(weeks * WEEK)
    return 200.0 + 100.0 * np.sin(2.0 * np.pi * hour / DAY) * np.where(hour // (days * DAY) % 2, 1.0, -1.0)


def wrong(real: Floats) -> IssuedForecasts:
    """Forecasts, kept of every hour, that say the opposite of what comes."""
    issued = IssuedForecasts()
    for hour in range(len(real) - DAY):
        issued.record(hour, 400.0 - real[hour : hour + DAY])
    return issued


def test_hours_are_those_of_the_clock() -> None:
    assert hours_ahead(5.5 * HOUR_S, [9.0, 8.0]) == (
        Hour(5 * HOUR_S, 6 * HOUR_S, 9.0),
        Hour(6 * HOUR_S, 7 * HOUR_S, 8.0),
    )


def test_the_machine_is_spare_as_on_the_days_before() -> None:
    past = np.tile(np.where(np.arange(DAY) < 8, 0.9, 0.2), 10)
    spare = spare_ahead(past, len(past) - 1, 0.2, 48)
    assert spare((len(past) + 3) * HOUR_S) == pytest.approx(0.9, abs=0.05)
    assert spare((len(past) + 12) * HOUR_S) == pytest.approx(0.2, abs=0.05)
    assert 0.0 <= spare(1e12) <= 1.0


def test_a_pattern_that_holds_is_believed_from_the_history_alone() -> None:
    past = daily()
    assert IssuedForecasts().trust(past, len(past) - 1)[0] == pytest.approx(1.0, abs=0.02)
    assert IssuedForecasts().margin(past, len(past) - 1) == 0.0


def test_nothing_is_held_against_forecasts_of_which_too_little_is_known() -> None:
    past = flipping()[: WEEK - 1]
    assert IssuedForecasts().margin(past, len(past) - 1) == 0.0
    assert IssuedForecasts().margin(np.empty(0), 0) == 0.0


def test_forecasts_that_mislead_leave_nothing_to_wait() -> None:
    past = daily()
    hour = len(past) - 1
    issued = wrong(past)
    assert issued.trust(past, hour)[0] == pytest.approx(-1.0, abs=0.1)
    now_s = hour * HOUR_S
    job = PendingJob("a", 3600.0, now_s + 20 * HOUR_S, "wait", 1.0, 1.0)
    ahead = hours_ahead(now_s, forecast(past, past[-1], DAY))
    assert plan(now_s, [job], ahead).running(now_s) == ()
    assert plan(now_s, [job], ahead, margin_gco2e_kwh=issued.margin(past, hour)).running(now_s) == ("a",)


def test_the_less_came_true_the_more_a_forecast_has_to_promise() -> None:
    past = daily()
    noise = np.random.default_rng(0)
    margins = []
    for part in (0.9, 0.5, 0.3, 0.2, 0.0):
        issued = IssuedForecasts()
        for hour in range(len(past) - DAY):
            real = past[hour : hour + DAY]
            issued.record(hour, np.where(noise.random(DAY) < part, real, noise.permutation(real)))
        margins.append(issued.margin(past, len(past) - 1))
    assert margins[:2] == [0.0, 0.0]
    assert margins == sorted(margins)
    assert margins[-1] > 20.0


def test_what_was_issued_stays_what_it_was_and_is_forgotten_after_weeks() -> None:
    issued = IssuedForecasts()
    issued.record(1, np.arange(48.0))
    issued.record(1, np.zeros(48))
    kept = issued.issued(1)
    assert kept is not None
    assert kept.tolist() == list(range(DAY))
    issued.record(1 + 5 * WEEK, np.zeros(48))
    assert issued.issued(1) is None


@pytest.mark.parametrize("days", [1, 2])
def test_waiting_is_hardly_worse_than_at_once_on_a_grid_without_a_pattern(days: int) -> None:
    """Jobs of four hours that may wait a day, played by the pattern of a grid that contradicts itself."""
    real = flipping(12, days)
    issued = IssuedForecasts()
    waited = at_once = 0.0
    for begin in range(5 * WEEK, len(real) - DAY, 31):
        left = 4 * HOUR_S
        at_once += float(real[begin : begin + 4].mean())
        for hour in range(begin, begin + DAY):
            now_s = hour * HOUR_S
            past = real[: hour + 1]
            job = PendingJob("a", left, (begin + DAY) * HOUR_S, "wait", 1.0, 1.0)
            ahead = hours_ahead(now_s, forecast(past, past[-1], DAY + 1))
            margin = issued.margin(past, hour)
            if plan(now_s, [job], ahead, margin_gco2e_kwh=margin).running(now_s):
                waited += float(real[hour]) / 4
                left -= HOUR_S
            if left <= 0.0:
                break
        assert left <= 0.0
    assert waited <= 1.01 * at_once

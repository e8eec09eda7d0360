"""How far forecasts were off, and how much of the rows to come a budget may count on for that."""

from __future__ import annotations

import math
import random

import pytest

from clover.planning.budget.forecast import HOUR_S
from clover.planning.budget.forecast_errors import LEADS, LEAST, MOST, PRIOR, ForecastErrors, SavedErrors
from clover.types import Ahead


def after(hours: int, off: float, seed: int = 1) -> ForecastErrors:
    """Errors after so many hours, each of whose values is off the forecast by up to `off` (a part)."""
    errors, draws = ForecastErrors(), random.Random(seed)
    for hour in range(hours):
        steps = [Ahead(seconds=HOUR_S, g_per_kwh=200.0, rows=100.0 * HOUR_S)] * 48
        errors.foreseen(hour * HOUR_S, steps)
        g, rate = (value * (1.0 + draws.uniform(-off, off)) for value in (200.0, 100.0))
        for part in range(4):
            errors.look((hour + part / 4.0) * HOUR_S, g, rate)
    return errors


def test_before_anything_was_seen_trust_is_the_prior() -> None:
    assert ForecastErrors().trust == pytest.approx(PRIOR)
    assert after(1, 0.5).trust == pytest.approx(PRIOR), "no hour of a forecast is over yet"


def test_trust_follows_the_errors_within_its_bounds() -> None:
    exact, good, bad = (after(24 * 14, off) for off in (0.0, 0.1, 0.5))
    assert exact.trust > good.trust > bad.trust
    assert PRIOR < exact.trust <= MOST
    root = math.sqrt(2.0 * 0.5**2 / 3.0)  # of two uniform errors together
    assert bad.trust == pytest.approx(1.0 - root, abs=0.1)
    assert after(24 * 14, 3.0).trust >= LEAST


def test_nights_with_hardly_any_rows_do_not_end_trust_in_days_that_are_foreseen() -> None:
    errors, draws = ForecastErrors(), random.Random(1)
    rates = [100.0 if 7 <= hour % 24 < 23 else draws.expovariate(20.0) for hour in range(24 * 15)]
    for hour in range(24, 24 * 14):
        foreseen = rates[hour - 24 : hour]  # the day before, again
        errors.foreseen(hour * HOUR_S, [Ahead(seconds=HOUR_S, g_per_kwh=200.0, rows=HOUR_S * r) for r in foreseen])
        errors.look(hour * HOUR_S, 200.0, rates[hour])
    assert errors.trust > 0.95


def test_few_hours_change_little() -> None:
    assert abs(after(3, 0.5).trust - PRIOR) < abs(after(100, 0.5).trust - PRIOR)


def test_errors_belong_to_how_far_ahead_they_looked() -> None:
    errors = ForecastErrors()
    for hour in range(60):
        # The next hour is foreseen exactly, all others at half of what comes.
        steps = [Ahead(seconds=HOUR_S, g_per_kwh=200.0 if lead <= 1 else 100.0, rows=HOUR_S) for lead in range(30)]
        errors.foreseen(hour * HOUR_S, steps)
        errors.look(hour * HOUR_S, 200.0, 1.0)
    saved = errors.saved()
    assert saved.squares[0] == pytest.approx(0.0)
    assert saved.squares[1:] == pytest.approx([0.25] * (LEADS - 1))


def test_hours_that_were_put_together_are_no_forecast_of_one() -> None:
    errors = ForecastErrors()
    errors.foreseen(0.0, [Ahead(seconds=HOUR_S, g_per_kwh=1.0, rows=1.0), Ahead(seconds=5e4, g_per_kwh=9.0, rows=1.0)])
    for hour in range(3):
        errors.look(hour * HOUR_S, 200.0, 1.0)
    assert errors.hours == 0.0


def test_memory_is_bounded_and_a_clock_that_is_set_back_forgets_forecasts() -> None:
    errors = after(500, 0.1)
    assert len(errors._made) <= LEADS + 2
    before = errors.trust
    errors.look(0.0, 200.0, 100.0)
    errors.look(HOUR_S, 900.0, 900.0)
    assert errors._made == {}
    assert errors.trust == before


def test_it_survives_a_file_and_refuses_what_is_none() -> None:
    errors, other = after(100, 0.3), ForecastErrors()
    other.restore(errors.saved())
    assert other.trust == errors.trust
    for squares in ((0.1,) * (LEADS - 1), (math.nan,) * LEADS, (-1.0,) * LEADS):
        with pytest.raises(ValueError, match="errors"):
            other.restore(SavedErrors(weights=(1.0,) * LEADS, squares=squares))

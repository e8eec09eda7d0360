"""Duty cycles and the line of power over them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.profiling.duty import LIGHT, DutyPoint, Pauses, fit


def point(duty: float, watts: float, *, seconds: float = 2.0, row_s: float = 0.001, off_w: float = 0.0) -> DutyPoint:
    """Two seconds in which a GPU that draws `watts` above rest while it works was busy for the part `duty`."""
    busy_s = duty * seconds
    return DutyPoint(seconds, busy_s, round(busy_s / row_s), seconds * (duty * watts + off_w))


@given(st.floats(5.0, 500.0), st.floats(0.2, 1.0), st.floats(0.05, 0.9))
def test_points_on_a_line_give_the_joules_of_a_row_and_no_error(watts: float, heavy: float, light: float) -> None:
    found = fit([point(heavy, watts), point(light, watts)])
    assert found.joules == pytest.approx(watts * 0.001, rel=0.02)  # rows are whole ones
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_a_price_of_being_awake_that_was_missed_is_seen_as_an_error() -> None:
    """10 W too little taken for rest: at light load that weighs three times as much."""
    both = fit([point(1.0, 40.0, off_w=10.0), point(LIGHT, 40.0, off_w=10.0)])
    alone = fit([point(LIGHT, 40.0, off_w=10.0)])
    assert 40.0 < both.joules * 1000 < 53.0 < alone.joules * 1000
    assert both.error > 0.1
    assert alone.error == pytest.approx(0.0, abs=1e-9)  # one point says nothing of a line


def test_noise_of_the_counters_grain_averages_out() -> None:
    luck = random.Random(0)
    noisy = [point(duty, 60.0, off_w=luck.gauss(0.0, 2.0)) for duty in (1.0, LIGHT) * 10]
    found = fit(noisy)
    assert found.joules == pytest.approx(0.06, rel=0.03)
    assert 0.0 < found.error < 0.1


def test_nothing_measured_is_nothing() -> None:
    assert fit([]).joules == 0.0
    assert fit([DutyPoint(2.0, 1.0, 100, -5.0)]).joules < 0.0


@pytest.mark.parametrize("service_s", [0.0002, 0.01, 0.3])
def test_rests_make_the_duty_cycle_and_never_beat_with_the_counter(service_s: float) -> None:
    light, full = Pauses(duty=LIGHT), Pauses(duty=1.0)
    rests = [light.before(service_s) for _ in range(4000)]
    duty = service_s / (service_s + sum(rests) / len(rests))
    assert duty == pytest.approx(LIGHT, abs=0.03)
    assert len(set(rests)) > 1000
    jitter = [full.before(service_s) for _ in range(4000)]
    assert len(jitter) * service_s / (len(jitter) * service_s + sum(jitter)) > 0.9
    assert len({rest for rest in jitter if rest}) > 5
    assert max(jitter) <= 0.01


def test_without_a_duty_cycle_rests_are_what_was_asked_for() -> None:
    assert [Pauses().before(0.1), Pauses(fixed_s=0.02).before(0.1)] == [0.0, 0.02]

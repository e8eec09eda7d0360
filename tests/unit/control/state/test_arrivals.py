"""The rate that is planned for: above what arrives as chance has it, near it in the long run, and quick to rise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.state.arrivals import KEPT_S, LONGEST, SURE, WINDOW_S, ArrivalRate, most
from tests.support.examples import examples


def watched(counts: list[float], every_s: float = WINDOW_S) -> ArrivalRate:
    found = ArrivalRate()
    for at, rate in enumerate(counts):
        found.record(at * every_s, rate)
    return found


def test_nothing_is_planned_for_before_anything_arrives() -> None:
    assert ArrivalRate().rows_per_s() == 0.0
    assert watched([0.0, 0.0]).rows_per_s() == 0.0


def test_one_window_leaves_more_open_than_many() -> None:
    assert watched([40.0]).rows_per_s() == pytest.approx(40.0 + SURE * 2.0, rel=0.03)
    assert watched([40.0] * LONGEST).rows_per_s() == pytest.approx(40.0 + SURE * 2.0 / LONGEST**0.5, rel=0.001)


@pytest.mark.parametrize(("rows", "seconds"), [(1.0, 10.0), (70.0, 10.0), (2000.0, 120.0)])
def test_the_most_that_may_arrive_is_what_would_give_so_few_rows_at_so_many_deviations(
    rows: float, seconds: float
) -> None:
    expected = most(rows, seconds, SURE) * seconds
    assert (expected - rows) / expected**0.5 == pytest.approx(SURE)
    assert most(0.0, seconds, SURE) == 0.0


def test_windows_that_are_old_say_nothing_any_more() -> None:
    rising = [10.0 + 0.1 * at for at in range(25)]
    seldom = watched(rising, every_s=KEPT_S / 4.0)
    assert seldom.rows_per_s() == pytest.approx(watched(rising[-5:]).rows_per_s())


@pytest.mark.parametrize("rate", [2.0, 11.0, 100.0, 5000.0])
def test_what_is_planned_for_is_seldom_less_than_what_arrives(rate: float) -> None:
    rng = np.random.default_rng(7)
    short = late = 0
    for _ in range(100):
        found = ArrivalRate()
        for at in range(60):
            found.record(at * WINDOW_S, rng.poisson(rate * WINDOW_S) / WINDOW_S)
            short += found.rows_per_s() < rate
            late += found.rows_per_s() < 0.97 * rate
    assert short <= 6
    assert late == 0


def test_a_rise_counts_at_once_and_a_fall_once_it_is_sure() -> None:
    found = watched([100.0] * 6)
    found.record(55.0, 150.0)  # half of the window is of before
    assert found.rows_per_s() >= 145.0
    found.record(60.0, 200.0)
    assert found.rows_per_s() >= 195.0
    fallen = watched([100.0] * 6)
    fallen.record(60.0, 90.0)
    assert fallen.rows_per_s() >= 95.0, "one window may be so by chance"
    for at in range(7, 10):
        fallen.record(at * WINDOW_S, 60.0)
    assert fallen.rows_per_s() < 70.0


def test_a_rate_that_is_known_leaves_nothing_to_chance() -> None:
    found = ArrivalRate()
    for at, rate in enumerate((40.0, 41.0, 40.0)):
        found.record(at * WINDOW_S, rate, float("inf"))
        assert found.rows_per_s() == rate


def test_looks_within_a_window_say_nothing_new() -> None:
    assert watched([50.0] * 10, every_s=1.0).rows_per_s() == pytest.approx(watched([50.0]).rows_per_s())


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.floats(0.0, 1e6), max_size=40), st.floats(0.1, 30.0))
def test_it_is_a_rate_whatever_is_seen(rates: list[float], every_s: float) -> None:
    found = watched(rates, every_s).rows_per_s()
    assert 0.0 <= found <= max(rates, default=0.0) * 1.5 + 10.0
    if rates:
        assert found >= rates[-1] - (rates[-1] / WINDOW_S) ** 0.5 - 1e-6

"""Two rings of samples and the latency of the last seconds: bounded, in order, whatever the clock does."""

from __future__ import annotations

from clover._native.histogram import Histogram
from clover.dashboard.history import COARSE, COARSE_S, FINE, FINE_S, LatencyWindow, SampleHistory, tidy


def fill(history: SampleHistory, count: int, begin_s: float = 0.0) -> None:
    for number in range(count):
        history.add({"at": begin_s + FINE_S * number, "x": float(number)})


def test_the_history_is_bounded_and_runs_forward() -> None:
    history = SampleHistory()
    fill(history, 20_000)
    at = history.columns()["at"]
    assert len(at) <= FINE + COARSE
    assert at == sorted(at, key=lambda value: value or 0.0)
    assert at[-1] == FINE_S * 19_999
    assert (at[-1] or 0.0) - (at[0] or 0.0) > COARSE_S * (COARSE - 2), "about a day"


def test_a_clock_that_is_set_back_begins_anew() -> None:
    history = SampleHistory()
    fill(history, 10, 1000.0)
    assert history.due(500.0)
    history.add({"at": 500.0, "x": 1.0})
    assert history.columns() == {"at": [500.0], "x": [1.0]}


def test_a_sample_is_due_every_ten_seconds() -> None:
    history = SampleHistory()
    assert history.due(0.0)
    history.add({"at": 0.0})
    assert not history.due(8.0)
    assert history.due(10.0)


def test_a_model_that_comes_later_has_gaps_before() -> None:
    history = SampleHistory()
    history.add({"at": 0.0, "a": 1.0})
    history.add({"at": 10.0, "a": 2.0, "b": 3.0})
    assert history.columns() == {"at": [0.0, 10.0], "a": [1.0, 2.0], "b": [None, 3.0]}


def test_latency_is_that_of_the_last_seconds() -> None:
    window, histogram = LatencyWindow(), Histogram()
    histogram.record(5_000_000, 100)
    assert [round(value or 0) for value in window.observe(0.0, {"m": histogram})["m"]] == [5, 5, 5]
    for second in range(2, 14, 2):
        histogram.record(50_000_000, 10)
        window.observe(float(second), {"m": histogram})
    p50, _, p99 = window.observe(14.0, {"m": histogram})["m"]
    assert round(p50 or 0) == round(p99 or 0) == 50, "what was before no longer counts"
    for second in range(16, 40, 2):
        found = window.observe(float(second), {"m": histogram})["m"]
    assert found == [None, None, None], "and without answers there is none"


def test_a_router_that_counts_anew_is_taken_as_it_is() -> None:
    window, histogram = LatencyWindow(), Histogram()
    histogram.record(5_000_000, 100)
    window.observe(0.0, {"m": histogram})
    fresh = Histogram()
    fresh.record(9_000_000)
    assert [round(value or 0) for value in window.observe(2.0, {"m": fresh})["m"]] == [9, 9, 9]
    assert window.observe(4.0, {}) == {}


def test_numbers_are_short_and_finite() -> None:
    assert tidy(1.23456789) == 1.23457
    assert tidy(float("nan")) is tidy(float("inf")) is tidy(None) is None
    assert tidy("x") == "x"

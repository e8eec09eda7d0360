"""When relief comes on and goes off, as a matter of time and figures alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.runtime.router.relief import MEASURED_NS, Relief, capacity, longest

MS = 1_000_000


def relief(wait_ms: float = 10.0, rows_per_s: float = 100.0) -> Relief:
    found = Relief()
    found.set(int(wait_ms * MS), rows_per_s)
    return found


def test_it_comes_on_where_a_row_would_wait_too_long() -> None:
    found = relief()
    assert not found.update(0, 10.0 * MS, 5, 5)
    assert not found.active
    assert found.update(MS, 10.0 * MS + 1, 6, 6)
    assert found.active
    assert found.count == 1


def test_it_goes_off_once_no_more_comes_than_the_plan_serves() -> None:
    found = relief()
    found.update(0, 11.0 * MS, 0, 3)
    assert not found.update(MEASURED_NS - 1, 0.0, 1, 0), "not within a slot"
    assert not found.update(MEASURED_NS, 0.0, 23, 0), "23 rows in a quarter of a second are 92 a second"
    assert not found.update(2 * MEASURED_NS, 0.0, 45, 1), "88 a second, but one waits"
    assert found.update(3 * MEASURED_NS, 0.0, 67, 0)
    assert not found.active
    assert found.update(3 * MEASURED_NS + 1, 11.0 * MS, 68, 3), "and comes on again"
    assert found.count == 2


def test_it_goes_off_after_a_silence() -> None:
    found = relief()
    found.update(0, 11.0 * MS, 0, 3)
    assert found.update(1000 * MEASURED_NS, 0.0, 50, 0)


def test_capacity_is_that_of_the_lane_that_is_short_first() -> None:
    assert capacity((100.0, 300.0, 0.0), (0.5, 0.5, 0.0)) == 200.0
    assert capacity((100.0, 300.0, 0.0), (0.0, 1.0, 0.0)) == 300.0
    assert capacity((0.0,), (1.0,)) == math.inf, "an unknown rate is no reason for relief to stay"


def test_lanes_of_the_same_workers_share_their_time() -> None:
    rates, shares = (100.0, 300.0, 50.0), (0.25, 0.25, 0.5)
    assert capacity(rates, shares) == 100.0
    assert capacity(rates, shares, [[0, 1], [2]]) == 100.0, "what shares nothing is short first"
    assert capacity(rates, shares, [[0, 1, 2]]) == pytest.approx(75.0, rel=0.02)
    assert longest([1.0, 2.0, 4.0], [[0, 1], [2]]) == 4.0
    assert longest([1.0, 2.0, 4.0], [[0, 2], [1]]) == 5.0


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0.0, 1e9), st.integers(0, 1000), st.integers(0, 50))))
def test_it_never_turns_twice_the_same_way(steps: list[tuple[int, float, int, int]]) -> None:
    found = relief()
    now_ns = rows = ons = 0
    for passed_ns, wait_ns, more, waiting in steps:
        now_ns, rows = now_ns + passed_ns, rows + more
        before = found.active
        turned = found.update(now_ns, wait_ns, rows, waiting)
        assert turned == (found.active != before)
        ons += turned and found.active
    assert found.count == ons


@pytest.mark.parametrize("waiting", [1, 5])
def test_it_stays_while_rows_wait(waiting: int) -> None:
    found = relief()
    found.update(0, 11.0 * MS, 0, 3)
    assert not found.update(MEASURED_NS, 0.0, 0, waiting)

"""The pace of a lane: counted only while it is saturated, told for a long queue, and forgotten once it is old."""

from __future__ import annotations

import pytest

from clover.runtime.router.lane_pace import LanePace
from tests.support.router_fixture import MS, SECOND


def served(
    pace: LanePace, batches: int, *, rows: int = 4, waiting: int = 100, every_ns: int = 10 * MS, now_ns: int = SECOND
) -> int:
    """Let a saturated lane send `batches` batches from `now_ns` on; return the time after them."""
    pace.record_saturation(now_ns, True)
    for _ in range(batches):
        now_ns += every_ns
        pace.record_departure(now_ns, rows, waiting, 4)
        pace.record_saturation(now_ns, True)
    return now_ns


def test_a_pace_is_known_after_a_few_batches_and_forgotten_when_the_workers_change() -> None:
    pace = LanePace()
    now_ns = served(pace, 3)
    assert pace.wait_ns(now_ns, 40) == 0.0
    now_ns = served(pace, 1, now_ns=now_ns)
    assert pace.wait_ns(now_ns, 40) == pytest.approx(100 * MS)
    assert pace.wait_ns(now_ns + 11 * SECOND, 40) == 0.0
    pace.forget()
    assert (pace.wait_ns(now_ns, 40), pace.since_ns) == (0.0, 0)


def test_time_in_which_no_row_waits_does_not_count() -> None:
    pace = LanePace()
    now_ns = served(pace, 20)
    pace.record_saturation(now_ns, False)
    assert pace.since_ns == 0
    pace.record_saturation(now_ns + 5 * SECOND, True)
    pace.record_departure(now_ns + 5 * SECOND + 10 * MS, 4, 0, 4)
    assert pace.wait_ns(now_ns + 5 * SECOND + 10 * MS, 40) == pytest.approx(100 * MS)


def test_small_batches_of_a_short_queue_say_what_full_ones_would_do() -> None:
    pace = LanePace()
    now_ns = served(pace, 20, rows=1, waiting=0)
    assert pace.wait_ns(now_ns, 40) == pytest.approx(100 * MS)


def test_batches_that_are_not_full_though_enough_rows_wait_count_as_they_are() -> None:
    pace = LanePace()
    now_ns = served(pace, 20, rows=1)  # each row has a shape of its own
    assert pace.wait_ns(now_ns, 40) == pytest.approx(400 * MS)


def test_what_is_long_past_weighs_little() -> None:
    pace = LanePace()
    now_ns = served(pace, 100, every_ns=100 * MS)
    now_ns = served(pace, 400, now_ns=now_ns)
    assert pace.wait_ns(now_ns, 40) == pytest.approx(100 * MS, rel=0.1)


def test_the_expected_time_of_a_batch_follows_what_was_seen() -> None:
    pace = LanePace()
    assert pace.expected_ns == 0
    for _ in range(50):
        pace.record_batch(20 * MS)
    assert pace.expected_ns == pytest.approx(20 * MS, rel=0.01)
    pace.record_batch(10 * SECOND)  # one pause
    assert pace.expected_ns > 5 * SECOND
    for _ in range(40):
        pace.record_batch(20 * MS)
    assert pace.expected_ns < 100 * MS
    for took_ms in (10, 30) * 40:
        pace.record_batch(took_ms * MS)
    assert pace.expected_ns > 35 * MS  # most are done by then


def test_the_least_time_is_that_of_the_fastest_of_the_latest_batches() -> None:
    pace = LanePace()
    for took_ms in (600, 25, 22):
        pace.record_batch(took_ms * MS)
    assert pace.least_ns == 0  # too few to say
    pace.record_batch(24 * MS)
    assert pace.least_ns == 22 * MS
    pace.record_batch(5 * SECOND)
    assert pace.least_ns == 22 * MS  # one pause condemns no row
    for _ in range(70):
        pace.record_batch(40 * MS)
    assert pace.least_ns == 40 * MS
    pace.record_batch(10 * MS)
    assert pace.least_ns == 10 * MS
    pace.forget()
    assert pace.least_ns == 0

"""The deadline wheel and trailing figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.runtime.memory.slab import Layout
from clover.runtime.router.state import slots_in_turn
from clover.runtime.router.tickets import Deadlines, RouterTicket
from clover.runtime.router.traffic import Rate, Traffic, TrailingHistogram
from clover.types import TensorSpec
from tests.support.router_fixture import House, family

MS = 1_000_000
SECOND = 1000 * MS


def _ticket(deadline_ns: int) -> RouterTicket:
    ticket = RouterTicket([0], 0)
    ticket.deadline_ns = deadline_ns
    return ticket


@given(st.lists(st.integers(1, 3000), max_size=40), st.sets(st.integers(0, 39)))
def test_deadlines_fall_due_after_they_pass_and_soon(after_ms: list[int], discarded: set[int]) -> None:
    wheel = Deadlines()
    tickets = [_ticket(ms * MS) for ms in after_ms]
    for ticket in tickets:
        wheel.add(ticket, 0)
    expected = [ticket for index, ticket in enumerate(tickets) if index not in discarded]
    for index in discarded:
        if index < len(tickets):
            wheel.discard(tickets[index])
    seen: list[RouterTicket] = []
    while due_ns := wheel.next_ns():
        for ticket in wheel.due(due_ns):
            assert 0 < due_ns - ticket.deadline_ns <= 17 * (1 << 20)
            seen.append(ticket)
        assert wheel.due(due_ns) == []
    assert {id(t) for t in seen} == {id(t) for t in expected}


def test_discarding_what_is_not_watched_does_nothing() -> None:
    wheel = Deadlines()
    ticket = _ticket(5 * MS)
    wheel.discard(ticket)
    wheel.add(ticket, 0)
    assert wheel.due(10 * MS) == [ticket]
    wheel.discard(ticket)
    assert wheel.next_ns() == 0


def test_rates_cover_the_time_there_was() -> None:
    rate = Rate(10)
    assert rate.per_s(5 * SECOND) == 0.0
    rate.add(100 * SECOND, 4)
    assert rate.per_s(100 * SECOND) == 4.0
    assert rate.per_s(102 * SECOND) == 2.0
    rate.add(109 * SECOND, 6)
    assert rate.per_s(110 * SECOND) == pytest.approx(1.0)
    assert rate.per_s(115 * SECOND) == pytest.approx(0.6)
    assert rate.per_s(200 * SECOND) == 0.0


def test_a_trailing_quantile_forgets() -> None:
    window = TrailingHistogram(parts=5, part_s=2.0)
    assert window.quantile(0, 0.95) is None
    window.record(1 * SECOND, 100 * MS)
    assert window.quantile(2 * SECOND, 0.95) == pytest.approx(100 * MS, rel=0.01)
    window.record(9 * SECOND, 1 * MS)
    assert window.quantile(12 * SECOND, 0.95) == pytest.approx(1 * MS, rel=0.01)
    assert window.quantile(60 * SECOND, 0.95) is None


def test_a_few_late_answers_do_not_show_that_a_twentieth_is_late() -> None:
    for late, of, shown in ((1, 1, False), (2, 10, False), (3, 10, True), (10, 100, False), (12, 100, True)):
        window = TrailingHistogram()
        for each in range(of):
            window.record(SECOND, (100 if each < late else 1) * MS)
        least_ms = window.least_quantile(SECOND, 0.95) / MS
        assert (least_ms > 50) == shown, (late, of)
        assert least_ms * MS <= (window.quantile(SECOND, 0.95) or 0.0)
    assert TrailingHistogram().least_quantile(SECOND, 0.95) == 0.0


def test_an_idle_model_has_empty_statistics() -> None:
    report = Traffic(["a"]).report("m", "1", 5)
    assert (report["last_inference"], report["inference_count"], report["batch_stats"]) == (0, 0, [])


def test_far_deadlines_of_requests_long_answered_take_bounded_room() -> None:
    wheel = Deadlines()
    for step in range(1, 20_001):
        ticket = RouterTicket([0], 0)
        ticket.deadline_ns = step * 10**9
        wheel.add(ticket, 0)
        assert ticket.deadline_ns <= ticket.bucket.number << 20 <= ticket.deadline_ns * (1 + 1 / 512) + (17 << 20)
        wheel.discard(ticket)
    assert len(wheel._buckets) < 8000


@given(st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(0, 5)), max_size=60), st.integers(0, 30 * SECOND))
def test_a_rate_is_what_was_counted_over_the_time_it_covers(steps: list[tuple[int, int]], after_ns: int) -> None:
    rate, now_ns, seen = Rate(10), 7 * SECOND, []
    for step_ns, count in steps:
        now_ns += step_ns
        rate.add(now_ns, count)
        seen.append((now_ns, count))
        if count == 3:
            rate.per_s(now_ns)  # asking changes nothing
    now_ns += after_ns
    if not seen:
        assert rate.per_s(now_ns) == 0.0
        return
    oldest = now_ns // SECOND - 10
    total = sum(count for at_ns, count in seen if at_ns // SECOND >= oldest)
    covered_s = (now_ns - max(seen[0][0], oldest * SECOND)) / SECOND
    assert rate.per_s(now_ns) == pytest.approx(total / max(covered_s, 1.0))


@pytest.mark.parametrize(
    ("mib", "batch", "slots"),
    [(0, 32, 64), (1, 32, 63), (1, 16, 32), (8, 4, 7), (8, 32, 32)],
)
def test_rows_that_come_one_by_one_touch_little_memory_of_a_slab(mib: int, batch: int, slots: int) -> None:
    """Two batches, in 64 MiB: what is beside the rows makes it one less than fits without."""
    values = TensorSpec(name="x", datatype="FP32", shape=(max(1, mib << 18),))
    spec = family(inputs=(values,), max_batch=batch)
    assert slots_in_turn(spec) == slots
    assert slots == batch or slots * Layout(spec, 1).row_bytes <= 64 << 20


def test_a_router_takes_so_many_slots_in_turn() -> None:
    house = House(family(inputs=(TensorSpec(name="x", datatype="FP32", shape=(8 << 18,)),)), slots=16)
    house.route(0)
    seen: set[int] = set()
    last = house.router.open(1)
    for _ in range(20):  # there is always one, and never a third
        seen.update(last.slots)
        ticket = house.router.open(1)
        house.router.close(last)
        last = ticket
    assert seen == set(range(7))

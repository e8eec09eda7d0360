"""Rows of a family that sleeps: they wait for a worker within their own deadline, and count apart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import BadRequest, Overloaded
from clover.types import Declined, Routing
from tests.support.examples import examples
from tests.support.router_fixture import MS, SECOND, House, dealt

SMALL, MEDIUM, LARGE = range(3)


class Night:
    """A house whose only worker ended, so that the next row has to wake it."""

    def __init__(self, routing: Routing | None = None, **config: float) -> None:
        self.house = House(slots=64, **config)
        self.router = self.house.router
        self.routing = routing or dealt(1.0, 0.0, 0.0)
        self.wanted = 0
        entries = [self.house.entry(lane) for lane in (SMALL, LARGE)]
        self.router.route(entries, self.routing)
        self.router.decline({}, lambda: None)
        self.router.fall_asleep(self._want)
        self.router.expect_workers([SMALL, LARGE])
        for entry in entries:
            self.router.leave(entry[0], lambda: None)

    def _want(self) -> None:
        self.wanted += 1

    def wake(self) -> None:
        workers = [self.house.entry(lane) for lane in (SMALL, LARGE)]
        self.router.expect_workers([])
        self.router.join(*workers)
        self.house.loop.turn()
        while any(worker.ring.batches for worker, *_ in workers):
            for worker, *_ in workers:
                if worker.ring.batches:
                    self.house.complete(worker)
                    self.house.loop.turn()


def test_it_is_ready_and_only_a_row_wakes_it() -> None:
    night = Night()
    assert night.router.ready
    night.router.observe()
    night.router.stats()
    assert night.wanted == 0
    first = night.house.ask()
    assert (night.wanted, first.status) == (1, 0)
    night.house.loop.advance(2 * SECOND)
    night.wake()
    assert (first.status, first.variants) == (200, [SMALL])
    assert night.router.state.asleep is None


def test_rows_that_waited_are_no_part_of_the_p95_and_those_after_them_are() -> None:
    night = Night()
    night.house.ask()
    night.house.loop.advance(9 * SECOND)
    night.wake()
    now_ns = night.house.loop.now_ns
    assert night.router.traffic.p95_ms(now_ns) is None
    assert night.router.traffic.latency.count == 1
    night.house.loop.advance(MS)
    night.house.ask()
    night.house.complete(night.house.workers[-2])
    night.house.loop.turn()
    p95_ms = night.router.traffic.p95_ms(night.house.loop.now_ns)
    assert p95_ms is not None
    assert p95_ms < 1000.0


def test_a_deadline_before_the_start_is_503_with_the_time_to_come_back() -> None:
    night = Night()
    ticket = night.house.ask(timeout_ns=100 * MS)
    asleep = night.router.state.asleep
    assert asleep is not None
    asleep.refusal = Declined(why="the model is being loaded", retry_after_s=7.0)
    night.house.loop.advance(101 * MS)
    assert (ticket.status, ticket.error, ticket.retry_after_s) == (503, "the model is being loaded", 7.0)


def test_no_row_is_refused_by_a_prediction_and_what_the_queue_does_not_hold_is() -> None:
    night = Night(queue_rows=40)
    night.router.aim(0.001, 0.0)
    tickets = [night.house.ask() for _ in range(35)]
    with pytest.raises(Overloaded):  # the last eighth is kept for other clients
        night.house.ask()
    night.wake()
    assert {ticket.status for ticket in tickets} == {200}


def test_a_cascade_stays_one() -> None:
    night = Night(dealt(1.0, 0.0, 0.0, chain=("small", "large"), thresholds=(0.5,)))
    ticket = night.house.ask()
    night.house.slab.score[:] = 0.0
    night.wake()
    assert (ticket.status, ticket.variants) == (200, [LARGE])


def test_a_row_that_asks_for_an_accuracy_waits_for_a_worker_that_has_it() -> None:
    night = Night()
    ticket = night.house.ask(min_accuracy=88.0)
    assert (night.wanted, ticket.awaits) == (1, -1)
    night.wake()
    assert (ticket.status, ticket.variants) == (200, [LARGE])
    with pytest.raises(BadRequest):
        night.house.ask(min_accuracy=99.9)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 400), st.booleans()), max_size=12),
    st.integers(0, 500),
)
def test_every_row_is_answered_or_refused_at_its_deadline(asked: list[tuple[int, int, bool]], start_ms: int) -> None:
    night = Night()
    tickets = []
    for rows, timeout_ms, closes in asked:
        ticket = night.house.ask(rows, timeout_ns=timeout_ms * MS)
        if closes:
            night.router.close(ticket)
        else:
            tickets.append((ticket, timeout_ms))
    night.house.loop.advance(start_ms * MS)
    night.wake()
    for ticket, timeout_ms in tickets:
        assert ticket.status == (200 if timeout_ms > start_ms else 503) or timeout_ms == start_ms
        night.router.close(ticket)
    night.house.check_slots()
    assert night.router.idle

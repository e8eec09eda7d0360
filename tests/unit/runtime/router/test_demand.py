"""Rows that ask for an accuracy which no worker reaches: they wait for one, or are refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.errors import BadRequest, Overloaded, Unavailable
from clover.types import Declined
from tests.support.router_fixture import MS, SECOND, House, dealt

LARGE = 2


class Planner:
    """Whoever plans: counts how often it is called."""

    def __init__(self, house: House, declined: Mapping[str, Declined] | None = None) -> None:
        self.house = house
        self.calls = 0
        self.say(declined or {})

    def say(self, declined: Mapping[str, Declined]) -> None:
        self.house.router.decline(declined, self._wanted)

    def _wanted(self) -> None:
        self.calls += 1


@pytest.fixture
def house() -> House:
    house = House(slots=64)
    house.route(0)
    return house


def test_without_anybody_who_plans_it_is_refused_at_once(house: House) -> None:
    with pytest.raises(Unavailable) as error:
        house.ask(min_accuracy=88.0)
    assert error.value.retry_after_s == 1.0


def test_a_row_waits_for_its_worker_and_is_served_by_it(house: House) -> None:
    planner = Planner(house)
    small = house.workers[0]
    ticket = house.ask(min_accuracy=88.0)
    other = house.ask(min_accuracy=89.0)
    assert planner.calls == 1  # for the first of them
    assert small.ring.batches == []
    asked = house.router.demand.report(house.loop.now_ns)
    assert (asked["large"].rows, asked["large"].waiting, asked["large"].accuracy) == (2, 2, 90.0)
    assert house.router.observe()["awaiting_rows"] == 2.0
    house.loop.advance(3 * SECOND)
    entry = house.entry(LARGE)
    house.router.route([*house.router.state.lanes.entries(), entry], dealt(1.0, 0.0, 0.0))
    house.loop.turn()
    house.complete(entry[0])
    assert house.done == [ticket, other]
    assert [(item.status, item.variants) for item in house.done] == [(200, [LARGE]), (200, [LARGE])]
    assert house.router.demand.report(house.loop.now_ns)["large"].waiting == 0
    assert "p95_ms" not in house.router.observe()  # what they waited says nothing of what runs
    for item in house.done:
        house.router.close(item)
    house.check_slots()


def test_what_any_variant_reaches_is_no_demand(house: House) -> None:
    Planner(house)
    house.ask(min_accuracy=80.0)
    assert house.router.demand.report(house.loop.now_ns) == {}


def test_what_no_variant_reaches_is_the_clients_error(house: House) -> None:
    planner = Planner(house)
    with pytest.raises(BadRequest):
        house.ask(min_accuracy=95.0)
    assert planner.calls == 0


def test_rows_that_find_a_worker_are_demand_too(house: House) -> None:
    house.route(0, LARGE)
    planner = Planner(house)
    house.ask(2, min_accuracy=88.0)
    asked = house.router.demand.report(house.loop.now_ns)["large"]
    assert (asked.rows, asked.waiting, planner.calls) == (2, 0, 0)


def test_at_its_deadline_a_row_is_late(house: House) -> None:
    Planner(house)
    house.ask(min_accuracy=88.0, timeout_ns=100 * MS)
    house.loop.advance(200 * MS)
    assert [item.status for item in house.done] == [504]
    house.router.close(house.done[0])
    house.check_slots()
    assert house.router.demand.waiting == 0


def test_at_its_deadline_a_row_whose_worker_was_held_back_may_come_again(house: House) -> None:
    planner = Planner(house)
    house.ask(min_accuracy=88.0, timeout_ns=100 * MS)
    planner.say({"large": Declined(why="it waits for the capacity floor", retry_after_s=1.0, waits=True)})
    assert house.done == []
    house.loop.advance(200 * MS)
    ticket = house.done[0]
    assert (ticket.status, ticket.retry_after_s, ticket.error) == (503, 1.0, "it waits for the capacity floor")
    assert house.router.demand.report(house.loop.now_ns)["large"].refused == 1


def test_rows_that_wait_to_no_avail_are_refused_at_once(house: House) -> None:
    planner = Planner(house)
    house.ask(min_accuracy=88.0)
    medium = house.ask(min_accuracy=84.0)
    planner.say({"large": Declined(why="the controller is frozen")})
    assert [(item.status, item.error, item.retry_after_s) for item in house.done] == [
        (503, "the controller is frozen", None)
    ]
    with pytest.raises(Unavailable, match="frozen") as error:
        house.ask(min_accuracy=88.0)
    assert error.value.retry_after_s is None
    assert medium.status == 0  # it waits on
    assert house.router.demand.report(house.loop.now_ns)["large"].refused == 2


def test_a_worker_that_is_better_serves_too(house: House) -> None:
    planner = Planner(house)
    ticket = house.ask(min_accuracy=84.0)
    entry = house.entry(LARGE)
    house.router.route([*house.router.state.lanes.entries(), entry], dealt(1.0, 0.0, 0.0))
    planner.say({"medium": Declined(why="never")})
    house.loop.turn()
    house.complete(entry[0])
    assert (ticket.status, ticket.variants) == (200, [LARGE])


def test_a_quarter_of_the_queue_may_wait(house: House) -> None:
    Planner(house)
    for _ in range(16):
        house.ask(min_accuracy=88.0)
    with pytest.raises(Unavailable, match="too many") as error:
        house.ask(min_accuracy=88.0)
    assert error.value.retry_after_s == 1.0
    house.ask()  # others find room


def test_one_request_does_not_take_more_than_that_quarter_either(house: House) -> None:
    Planner(house)
    with pytest.raises(Unavailable, match="too many"):
        house.router.submit(house.router.open(17), house.done.append, min_accuracy=88.0)
    house.check_slots()


def test_they_wait_no_longer_than_rows_do_without_a_timeout_of_their_own(house: House) -> None:
    Planner(house)
    house.ask(min_accuracy=88.0, timeout_ns=3_600_000 * MS)
    house.loop.advance(31_000 * MS)
    assert [item.status for item in house.done] == [504]


def test_they_count_in_the_queue() -> None:
    house = House(slots=64, queue_rows=4)
    house.route(0)
    Planner(house)
    house.ask(min_accuracy=88.0)
    flying = [house.ask() for _ in range(2)]  # both credits
    for _ in range(3):
        house.ask()
    with pytest.raises(Overloaded):
        house.ask()
    assert len(flying) == 2


def test_who_goes_away_waits_no_longer(house: House) -> None:
    Planner(house)
    ticket = house.ask(min_accuracy=88.0)
    house.router.close(ticket)
    assert house.router.demand.waiting == 0
    house.check_slots()


def test_the_end_of_a_drain_ends_the_wait(house: House) -> None:
    Planner(house)
    house.ask(min_accuracy=88.0)
    house.router.fail_waiting("the server stops")
    assert [item.status for item in house.done] == [503]
    assert house.router.demand.waiting == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["small", "large", "close", "wait", "bring", "decline", "allow"]), st.integers(1, 3)),
        max_size=40,
    )
)
def test_every_row_that_waits_is_counted_once(steps: list[tuple[str, int]]) -> None:
    house = House(slots=64)
    house.route(0)
    planner = Planner(house)
    open_tickets = []
    for step, number in steps:
        if step in ("small", "large"):
            try:
                open_tickets.append(house.ask(number, min_accuracy=88.0 if step == "large" else 0.0, timeout_ns=SECOND))
            except (Unavailable, Overloaded):
                continue
        elif step == "close" and open_tickets:
            house.router.close(open_tickets.pop(number % len(open_tickets)))
        elif step == "wait":
            house.loop.advance(number * 400 * MS)
        elif step == "bring":
            house.route(0, LARGE)
        elif step == "decline":
            planner.say({"large": Declined(why="no")})
        elif step == "allow":
            planner.say({})
        waiting = sum(len(item.slots) for item in open_tickets if item.awaits >= 0 and item.status == 0)
        assert house.router.demand.waiting == waiting
    for ticket in open_tickets:
        house.router.close(ticket)
    assert house.router.demand.waiting == 0

"""Rows that a worker refuses: their requests end with 400 and the reason, their neighbours are answered."""

from __future__ import annotations

import pytest

from clover.runtime.memory.slab import ROWS_REFUSED
from clover.types import StepsSpec
from tests.support.router_fixture import FakeWorker, House, family


def served(house: House, worker: FakeWorker) -> int:
    """Return what the meter of a worker holds for answered rows."""
    (meter,) = [link.meter for link in house.router.state.lanes.links if link.worker is worker]
    return meter.window_useful - meter.window_gone_on


@pytest.fixture
def house() -> House:
    return House(family(steps=StepsSpec()))


def refuse(house: House, slots: list[int], *refused: int) -> None:
    house.slab.refuse(slots, {at: "no picture" for at, slot in enumerate(slots) if slot in refused})


def test_one_bad_row_leaves_its_neighbours(house: House) -> None:
    (worker,) = house.route(0)
    good, bad, other = (house.ask(turn=False) for _ in range(3))
    house.loop.turn()
    refuse(house, [ticket.slots[0] for ticket in (good, bad, other)], bad.slots[0])
    house.complete(worker, ROWS_REFUSED)
    assert [(ticket.status, ticket.error) for ticket in (good, bad, other)] == [
        (200, ""),
        (400, "no picture"),
        (200, ""),
    ]
    assert served(house, worker) == 2
    assert house.router.traffic.codes == {200: 2, 400: 1}
    assert list(house.router.traffic.rows) == [2, 0, 0]
    for ticket in (good, bad, other):
        house.router.close(ticket)
    house.check_slots()


def test_a_request_of_several_rows_is_told_which(house: House) -> None:
    (worker,) = house.route(0)
    ticket, other = house.ask(3, turn=False), house.ask(turn=False)
    house.loop.turn()
    refuse(house, [*ticket.slots, *other.slots], *ticket.slots[1:])
    house.complete(worker, ROWS_REFUSED)
    assert (ticket.status, ticket.error, other.status) == (400, "row 1: no picture", 200)
    assert served(house, worker) == 1
    for one in (ticket, other):
        house.router.close(one)
    house.check_slots()


def test_a_batch_of_refused_rows_alone_is_not_tried_again(house: House) -> None:
    (worker,) = house.route(0)
    tickets = [house.ask(turn=False) for _ in range(2)]
    house.loop.turn()
    slots = [ticket.slots[0] for ticket in tickets]
    refuse(house, slots, *slots)
    house.complete(worker, ROWS_REFUSED)
    assert [ticket.status for ticket in tickets] == [400, 400]
    assert worker.ring.batches == []
    assert house.router.traffic.retried_rows == 0


def test_a_worker_that_refuses_none_answers_all(house: House) -> None:
    (worker,) = house.route(0)
    ticket = house.ask()
    house.complete(worker, ROWS_REFUSED)
    assert ticket.status == 200


def test_a_family_without_steps_has_no_refusals() -> None:
    plain = House()
    (worker,) = plain.route(0)
    ticket = plain.ask()
    plain.complete(worker, ROWS_REFUSED)
    assert ticket.status == 200
    assert plain.slab.refusals(ticket.slots) == {}

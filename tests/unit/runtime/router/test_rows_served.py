"""Which rows count as served, and may be said to have saved something: those whose answers clients get, once each."""

from __future__ import annotations

from tests.support.router_fixture import MS, FakeWorker, House


def served(house: House, *workers: FakeWorker) -> int:
    """What the meters of these workers hold for answered rows."""
    meters = [link.meter for link in house.router.state.lanes.links if link.worker in workers]
    return sum(meter.window_useful - meter.window_gone_on for meter in meters)


def test_rows_on_which_the_model_fails_are_not_served() -> None:
    house = House()
    (worker,) = house.route(0)
    house.ask(3)
    house.complete(worker, status=1)
    assert [ticket.status for ticket in house.done] == [500]
    assert served(house, worker) == 0


def test_rows_that_are_retried_count_once() -> None:
    house = House()
    (worker,) = house.route(0)
    house.ask(2, turn=False)
    house.ask(2)
    house.complete(worker, status=1)
    while worker.ring.batches:
        house.complete(worker)
    assert [ticket.status for ticket in house.done] == [200, 200]
    assert served(house, worker) == 4


def test_rows_that_come_too_late_are_not_served() -> None:
    house = House()
    (worker,) = house.route(0)
    house.ask(3, timeout_ns=2 * MS)
    house.loop.advance(5 * MS)
    assert [ticket.status for ticket in house.done] == [504]
    house.complete(worker)
    assert served(house, worker) == 0


def test_rows_of_a_request_that_fails_later_are_not_served_and_later_batches_make_up_for_them() -> None:
    house = House()
    (worker,) = house.route(0)
    house.ask(6, timeout_ns=50 * MS)
    house.complete(worker)
    assert served(house, worker) == 4
    house.loop.advance(60 * MS)
    assert [ticket.status for ticket in house.done] == [504]
    house.complete(worker)
    for _ in range(5):
        house.ask(1)
        house.complete(worker)
    assert served(house, worker) == 5


def test_rows_of_a_client_that_went_away_are_not_served() -> None:
    house = House()
    (worker,) = house.route(0)
    ticket = house.ask(6)
    house.complete(worker)
    house.router.close(ticket)
    house.complete(worker)
    for _ in range(5):
        house.ask(1)
        house.complete(worker)
    assert served(house, worker) == 5


def test_rows_found_useless_after_their_window_was_closed_are_taken_from_later_ones() -> None:
    house = House()
    (worker,) = house.route(0)
    meter = house.router.state.lanes.links[0].meter
    house.ask(6)
    ticket = house.ask(1)
    house.complete(worker)
    assert meter.window_useful == 4
    meter.forget_window()
    house.router.close(house.router.state.table.owner[0])
    while worker.ring.batches:
        house.complete(worker)
    counted = [meter.window_useful]
    for _ in range(5):
        meter.forget_window()
        house.ask(1)
        house.complete(worker)
        counted.append(meter.window_useful)
    assert ticket.status == 200
    assert 4 + sum(counted) == 6

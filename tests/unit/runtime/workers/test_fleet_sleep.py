"""A fleet that sleeps: its workers end, its members stay, and it wakes with workers for all of them."""

from __future__ import annotations

from clover.errors import WorkerError
from clover.types import Assignment, Routing
from tests.support.fleet_fixture import House, at, in_a_house

ROUTED = Routing(shares={"small": 1.0})


async def asleep(house: House, *items: Assignment) -> list[int]:
    """Route to `items`, then let the family sleep; return a list to which each request that waits adds one."""
    wanted: list[int] = []
    for item in items:
        await house.fleet.spawn(item)
    house.fleet.route(items, ROUTED)
    assert house.fleet.may_sleep
    await house.fleet.put_to_sleep(lambda: wanted.append(1))
    return wanted


def row(house: House) -> list[int]:
    """Submit a row; return a list to which its status is added."""
    status: list[int] = []
    ticket = house.router.open(1)
    house.router.submit(ticket, lambda done: status.append(done.status))
    return status


@in_a_house
async def test_it_sleeps_and_wakes_with_all_of_its_workers_and_counts_no_restart(house: House) -> None:
    await asleep(house, at(0), at(1, "large"))
    assert [worker.state for worker in house.started] == ["dead", "dead"]
    assert (house.fleet.asleep, house.fleet.missing, house.fleet.ready) == (True, 0, True)
    assert not house.account.workers()
    house.watch_for(30)
    await house.settle()
    assert len(house.started) == 2
    house.fleet.start_again()
    house.fleet.start_again()
    await house.settle()
    assert len(house.started) == 4
    assert (house.fleet.asleep, house.fleet.restarts, house.slept) == (False, 0, [])
    assert set(house.fleet.ready_assignments()) == {at(0), at(1, "large")}
    assert house.fleet.routed == (at(0), at(1, "large"))


@in_a_house
async def test_a_start_that_fails_is_tried_again_as_that_of_any_worker(house: House) -> None:
    await asleep(house, at(0))
    house.failing, house.failure = 2, WorkerError("no memory")
    status = row(house)
    house.fleet.start_again()
    await house.settle()
    assert house.fleet.ready_assignments() == (at(0),)
    assert house.fleet.restarts == 2
    assert len(house.slept) == 2
    assert house.started[-1].sent
    assert status == []


@in_a_house
async def test_a_row_that_comes_while_workers_end_is_kept(house: House) -> None:
    item = at(0)
    await house.fleet.spawn(item)
    house.fleet.route((item,), ROUTED)
    worker = house.started[0]
    wanted: list[int] = []
    statuses: list[list[int]] = []

    async def slow_exit() -> None:
        statuses.append(row(house))
        worker.state = "dead"

    worker.drain_and_exit = slow_exit  # type: ignore[method-assign]
    await house.fleet.put_to_sleep(lambda: wanted.append(1))
    assert wanted == [1]
    assert not house.fleet.empty
    house.fleet.start_again()
    await house.settle()
    assert house.started[-1].sent


@in_a_house
async def test_who_is_busy_or_in_trouble_does_not_sleep(house: House) -> None:
    await house.fleet.spawn(at(0))
    assert not house.fleet.may_sleep  # nothing is routed to it
    house.fleet.route((at(0),), ROUTED)
    ticket = house.router.open(1)  # a client is sending its row
    assert not house.fleet.may_sleep
    house.router.close(ticket)
    house.may_start.clear()
    house.started[0].die()
    assert not house.fleet.may_sleep
    await house.fleet.put_to_sleep(lambda: None)
    assert not house.fleet.asleep


@in_a_house
async def test_members_may_leave_while_it_sleeps(house: House) -> None:
    await asleep(house, at(0), at(1))
    house.fleet.forget(at(0), "its device is lost")
    await house.fleet.drain(at(1))
    house.fleet.start_again()
    await house.settle()
    assert len(house.started) == 2
    await house.fleet.spawn(at(0))
    house.fleet.route((at(0),), ROUTED)
    assert not house.fleet.asleep
    assert house.router.state.asleep is None


@in_a_house
async def test_a_fleet_that_stops_is_not_asleep(house: House) -> None:
    await asleep(house, at(0))
    await house.fleet.stop()
    assert not house.fleet.asleep
    assert not house.fleet.ready
